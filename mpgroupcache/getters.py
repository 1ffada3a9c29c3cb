"""Getters: what an application gives to load values, plain or ``async``, object or function (Go: ``Getter``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import FunctionType
from typing import Any, Protocol, TypeAlias, runtime_checkable

from mpgroupcache.keys import decode_key
from mpgroupcache.late import importing
from mpgroupcache.product import Product
from mpgroupcache.sinks import LoadSink, Sink


@runtime_checkable
class Getter(Protocol):
    """Loads the value of a key (Go: ``Getter``)."""

    def get(self, ctx: Any, key: Any, dest: Sink) -> Any:
        """Put the value of ``key`` into ``dest``, or raise (Go: ``Getter.Get``); may be ``async``.

        ``ctx`` is what the caller gave to ``Group.get``. ``key`` is ``str`` where it is valid UTF-8, else ``bytes``.
        """


_CO_COROUTINE = 0x80  # as ``inspect`` has it

GetterFunction: TypeAlias = Callable[[Any, Any, Sink], "Awaitable[None] | None"]
"""A plain callable ``(ctx, key, dest)`` is a getter too (Go: ``GetterFunc``)."""


def is_async(function: object) -> bool:
    """Whether calling it makes a coroutine: ``inspect.iscoroutinefunction``."""
    if isinstance(function, FunctionType) and not function.__dict__:
        # What most getters are, without a mark on it (``inspect.markcoroutinefunction``): they are told apart without a
        # module that is slow to import.
        return bool(function.__code__.co_flags & _CO_COROUTINE)
    with importing:
        import inspect

    return inspect.iscoroutinefunction(function)


def source_of(getter: object) -> tuple[str, str]:
    """The module and the name of what an application wrote: a function's own, of another object its type's."""
    while isinstance(getter, partial):
        getter = getter.func
    named: Any = getter if hasattr(getter, "__qualname__") else type(getter)
    return str(getattr(named, "__module__", None) or ""), str(named.__qualname__)  # a method of a C type has no module


class BoundGetter:
    """A getter as a miss has it: it brings a product."""

    __slots__ = ("_function", "is_async")

    def __init__(self, getter: Getter | GetterFunction) -> None:
        function = getter.get if isinstance(getter, Getter) else getter
        if not callable(function):
            raise TypeError(
                f"getter: got {type(getter).__name__}, expected a function (ctx, key, dest) or an object with get()"
            )
        self._function: Callable[..., Any] = function
        self.is_async = is_async(function) or is_async(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )

    def __repr__(self) -> str:
        return f"the getter {self._function!r}"

    def load(self, ctx: Any, key: bytes) -> Product:
        """Run a plain getter in this thread, and return what it set."""
        dest = LoadSink()
        self._function(ctx, decode_key(key), dest)
        return Product(dest.take())

    async def load_async(self, ctx: Any, key: bytes) -> Product:
        """Await an ``async`` getter, and return what it set."""
        dest = LoadSink()
        await self._function(ctx, decode_key(key), dest)
        return Product(dest.take())
