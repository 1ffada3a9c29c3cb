"""Getters: what an application gives to load values, plain or ``async``, object or function (Go: ``Getter``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any, Protocol, TypeAlias, runtime_checkable

from mpgroupcache.errors import NotFound
from mpgroupcache.keys import decode_key
from mpgroupcache.late import importing
from mpgroupcache.product import Product
from mpgroupcache.sinks import LoadSink, Sink, encode_value


@runtime_checkable
class Getter(Protocol):
    """Loads the value of a key (Go: ``Getter``)."""

    def get(self, ctx: Any, key: Any, dest: Sink) -> Any:
        """Put the value of ``key`` into ``dest``, or raise (Go: ``Getter.Get``); may be ``async``.

        ``ctx`` is what the caller gave to ``Group.get``. ``key`` is ``str`` where it is valid UTF-8, else ``bytes``.
        ``dest.set_bytes(value, ttl=5, stale=60)`` says how many seconds this value lives; raising `NotFound` says that
        there is none. A refresh of a stale value, and a load for a peer's request, call it without the caller's
        ``ctx``: it is None, or what ``HTTPPool(context=...)`` made.

        It may have a ``get_many(ctx, keys, dest)``, too, async if ``get`` is. `Group.get_many` calls it once with the
        list of the keys that are missing, 1000 at most. ``dest[key]`` is that key's sink. A key that is left unset is
        `NotFound`. What it raises is the error of all keys that are not set yet.
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

    __slots__ = ("_function", "_many", "batches", "is_async")

    def __init__(self, getter: Getter | GetterFunction) -> None:
        function = getter.get if isinstance(getter, Getter) else getter
        self._many: Callable[..., Any] | None = getattr(getter, "get_many", None)
        if not callable(function):
            raise TypeError(
                f"getter: got {type(getter).__name__}, expected a function (ctx, key, dest) or an object with get()"
            )
        self._function: Callable[..., Any] = function
        self.is_async = is_async(function) or is_async(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )

        self.batches = callable(self._many)
        """Whether it loads many keys in one call."""
        if self.batches and is_async(self._many) != self.is_async:
            raise TypeError(
                f"getter: got {type(getter).__name__}, expected get() and get_many() both async, or neither"
            )

    def __repr__(self) -> str:
        return f"the getter {self._function!r}"

    def load(self, ctx: Any, key: bytes) -> Product:
        """Run a plain getter in this thread, and return what it set."""
        dest = LoadSink()
        self._function(ctx, decode_key(key), dest)
        return dest.take()

    async def load_async(self, ctx: Any, key: bytes) -> Product:
        """Await an ``async`` getter, and return what it set."""
        dest = LoadSink()
        await self._function(ctx, decode_key(key), dest)
        return dest.take()

    def load_many(self, ctx: Any, keys: Sequence[bytes]) -> list[Product | Exception]:
        """Run a plain batch getter in this thread: of each key what it set, or why there is nothing."""
        assert self._many is not None
        names, dest = _dests(keys)
        error = None
        try:
            self._many(ctx, names, dest)
        except Exception as raised:
            error = raised
        return _products(dest, error)

    async def load_many_async(self, ctx: Any, keys: Sequence[bytes]) -> list[Product | Exception]:
        """Await an ``async`` one."""
        assert self._many is not None
        names, dest = _dests(keys)
        error = None
        try:
            await self._many(ctx, names, dest)
        except Exception as raised:
            error = raised
        return _products(dest, error)


def _dests(keys: Sequence[bytes]) -> tuple[list[str | bytes], dict[str | bytes, LoadSink]]:
    names = [decode_key(key) for key in keys]
    return names, {name: LoadSink() for name in names}


def _products(dest: dict[str | bytes, LoadSink], error: Exception | None) -> list[Product | Exception]:
    unset = error or NotFound("the batch getter has set nothing for this key")
    return [unset if sink.product is None else sink.product for sink in dest.values()]


class MomentGetter:
    """A function ``fn(key)`` of the moment that returns a value, as a miss has it."""

    __slots__ = ("_function", "_stale", "_ttl", "is_async")

    def __init__(self, function: Callable[[Any], Any], ttl: float | None, stale: float | None) -> None:
        if not callable(function):
            raise TypeError(f"fn: got {type(function).__name__}, expected a function of the key")
        self._function = function
        self._ttl = ttl
        self._stale = stale
        self.is_async = is_async(function)

    def __repr__(self) -> str:
        return f"the loader {self._function!r}"

    def load(self, _ctx: Any, key: bytes) -> Product:
        """Run a plain function in this thread."""
        return self._product(self._function(decode_key(key)))

    async def load_async(self, _ctx: Any, key: bytes) -> Product:
        """Await an ``async`` one."""
        return self._product(await self._function(decode_key(key)))

    def _product(self, value: Any) -> Product:
        return Product(encode_value(value), ttl=self._ttl, stale=self._stale)
