"""Functions with the parameters of another one, so that Python binds the arguments of a call: the fastest way there is.

`inspect.getsource` shows what was generated.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from textwrap import indent
from typing import Any


class _Named:
    """A default, which the source writes by the name that it has there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def parameters_of(function: Callable[..., Any], name: str) -> list[Parameter]:
    """Return the parameters of ``function``, which errors call ``name``."""
    try:
        return [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got what shows no parameters ({error}), expected a function of Python code") from None


def generate(
    function: Callable[..., Any],
    word: str,
    name: str,
    parameters: Sequence[Parameter],
    body: str,
    helpers: dict[str, Any],
) -> Callable[..., Any]:
    """Return a function with these ``parameters`` of ``function``, which errors call ``name``. ``word``: what it does.

    In its ``body``, a $ stands before each name that is no parameter's; ``helpers`` are what they mean.
    """
    prefix = "_"
    while any(parameter.name.startswith(prefix) for parameter in parameters):
        prefix += "_"
    namespace = {prefix + helper: value for helper, value in helpers.items()}
    written = []
    for parameter in parameters:
        default = parameter.default
        if default is not Parameter.empty:
            default = _Named(f"{prefix}default_of_{parameter.name}")
            namespace[default.name] = parameter.default
        written.append(Parameter(parameter.name, parameter.kind, default=default))
    source = f"def {word}{Signature(written)}:\n{indent(body.replace('$', prefix), '    ')}\n"
    file = f"<{word} of {getattr(function, '__module__', None)}.{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), namespace)
    made: Callable[..., Any] = namespace[word]
    made.__name__ = made.__qualname__ = name  # what Python calls it when a call is wrong
    return made
