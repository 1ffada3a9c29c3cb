"""What a function's annotation says that it returns."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Final

import msgspec


class Unresolved(Exception):
    """An annotation names what is not there: perhaps not yet. ``str()`` says what."""


def return_type(function: Callable[..., Any]) -> Any:
    """Return what ``function`` is annotated to return, or what its coroutine results in: ``Any`` where it does not say.

    A text is evaluated where the function was written. Raises `Unresolved`, and what evaluating it raises.
    """
    function = _written(function)
    try:
        annotations = _annotations(function)
        if "return" not in annotations:
            return Any
        stub = SimpleNamespace(__annotations__={"return": annotations["return"]})
        innermost: Any = inspect.unwrap(function)
        hints = typing.get_type_hints(
            stub, getattr(innermost, "__globals__", {}), _names(innermost), include_extras=True
        )
    except (NameError, AttributeError) as error:
        raise Unresolved(str(error)) from error
    return hints["return"]


def _written(function: Any) -> Any:
    """The function that has the annotations of ``function``, which may be anything that can be called."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif hasattr(function, "__annotations__") and not isinstance(function, type):
            return function
        else:
            return type(function).__call__


if sys.version_info >= (3, 14):

    def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
        from annotationlib import Format, get_annotations

        return get_annotations(function, format=Format.FORWARDREF)

else:

    def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
        return inspect.get_annotations(function)


def _names(function: Any) -> dict[str, Any]:
    """The names that a function sees beside its module's."""
    names = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    code, closure = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), closure or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # defined further below
            continue
    return names


_SAYS_MORE: Final = msgspec.Meta


def bare(annotation: Any) -> Any:
    """Return what ``annotation`` is another name of: without ``NewType``, aliases, and what ``Annotated`` adds, unless
    that is a constraint."""
    while True:
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif typing.get_origin(annotation) is Annotated and not any(
            isinstance(said, _SAYS_MORE) for said in annotation.__metadata__
        ):
            annotation = annotation.__origin__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif type(typing.get_origin(annotation)).__name__ == "TypeAliasType":
            alias = typing.get_origin(annotation)
            annotation = alias.__value__[annotation.__args__]
        else:
            return annotation
