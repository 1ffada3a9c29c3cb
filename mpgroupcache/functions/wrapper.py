"""What ``@cached`` makes of a function: it is called as that is, and returns what that has returned once."""

from __future__ import annotations

import functools
import html
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, cast, overload

from mpgroupcache.changing import TIMEOUT
from mpgroupcache.counters import Counter
from mpgroupcache.errors import LoadErrors, NotFound
from mpgroupcache.functions.loading import CallLoader
from mpgroupcache.late import importing
from mpgroupcache.sizes import format_size
from mpgroupcache.stats import CacheType
from mpgroupcache.worker import drivers
from mpgroupcache.worker.changes import refresh, renew
from mpgroupcache.worker.many import miss_many
from mpgroupcache.worker.miss import miss
from mpgroupcache.worker.process import current

if TYPE_CHECKING:
    from typing import Self

    from mpgroupcache.functions.binding import Calls
    from mpgroupcache.functions.codecs import Codec
    from mpgroupcache.functions.loading import Call, Loader
    from mpgroupcache.group import Group
    from mpgroupcache.shm._view import ByteView
    from mpgroupcache.worker.many import Outcomes
    from mpgroupcache.worker.waits import Steps

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)  # so that what an async function returns is a Coroutine, of whatever class
S = TypeVar("S")
T = TypeVar("T")


class CacheInfo(NamedTuple):
    """As ``functools.lru_cache`` has it, but of all processes of the host."""

    hits: int
    misses: int
    maxsize: None
    currsize: int


class CachedFunction(Generic[P, R]):
    """A function whose values all processes of the host share. Made by ``cached``.

    Its methods take the function's own arguments. Those that wait have a twin for an ``async`` function (``aset`` for
    ``set``), which is to be awaited, and such a function has the twins alone.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, R]

    def __init__(
        self,
        function: Callable[P, R],
        group: Group,
        calls: Calls,
        codec: Codec,
        loader: Loader,
        parameters: Mapping[str, Any],
    ) -> None:
        functools.update_wrapper(self, function)
        self.__qualname__ = calls.name  # which a partial has not
        self.group = group
        """The group behind the function."""
        self._make_key: Callable[..., bytes] = calls.key
        self._find = group.find
        self._codec = codec
        self._loader = loader
        self._parameters = parameters
        self._first: tuple[Any, ...] = ()  # the arguments that it is bound to
        self._renews = group.getter is None and group.ages.stale > 0  # its callers do: nobody else could

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        key = self._make_key(*args, **kwargs)
        view = self._find(key)
        if view is None or self._renews:
            view = self._look_twice(key, view, args, kwargs)
        return cast("R", self._codec.decode(view))

    def _look_twice(self, key: bytes, view: ByteView | None, args: Any, kwargs: Any) -> ByteView:
        """What to return where there may be something to load."""
        if view is None:
            return drivers.run(miss, current(), self.group, key, None, False, self._caller({key: (args, kwargs)}))
        if self.group.is_to_renew(view):
            return drivers.run(renew, current(), self.group, key, None, self._caller({key: (args, kwargs)}), view)
        return view

    # ---- What never waits

    def key(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """The key of a call in ``group``."""
        return self._make_key(*args, **kwargs)

    @overload
    def lookup(self: CachedFunction[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T | None: ...

    @overload
    def lookup(self, *args: P.args, **kwargs: P.kwargs) -> R | None: ...

    def lookup(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The value that is there, a stale one too; None: there is none. It never loads."""
        view = self.group.lookup(self._make_key(*args, **kwargs))
        return None if view is None else self._codec.decode(view)

    # ---- Changes

    def set(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> None:  # type: ignore[misc]
        """Put ``value`` in the place of what is there of a call. Raises what ``Group.set`` does."""
        self._check_sync("set")
        key, product = self._make_key(*args, **kwargs), self._loader.product(value)
        if product.ttl == 0:  # it is not to be kept
            self.group.remove(key)
        else:
            self.group.set(key, product.value, **_lives(product.ttl))

    async def aset(
        self: CachedFunction[P, Coroutine[Any, Any, T]], value: T, /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """``set`` of an ``async`` function."""
        self._check_async("aset")
        key, product = self._make_key(*args, **kwargs), self._loader.product(value)
        if product.ttl == 0:
            await self.group.aremove(key)
        else:
            await self.group.aset(key, product.value, **_lives(product.ttl))

    def remove(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """End the value of a call: the next one loads. Returns whether there was one. Raises ``ChangeError``."""
        self._check_sync("remove")
        return self.group.remove(self._make_key(*args, **kwargs))

    async def aremove(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """``remove`` of an ``async`` function."""
        self._check_async("aremove")
        return await self.group.aremove(self._make_key(*args, **kwargs))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now, and return its value, which all see. Others get the old one meanwhile.

        Raises what the function raises, and ``ChangeError``.
        """
        self._check_sync("refresh")
        key = self._make_key(*args, **kwargs)
        maker = self._caller({key: (args, kwargs)})
        view = drivers.run(refresh, current(), self.group, key, None, maker, TIMEOUT, timeout=TIMEOUT)
        return cast("R", self._codec.decode(view))

    async def arefresh(self: CachedFunction[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """``refresh`` of an ``async`` function."""
        self._check_async("arefresh")
        key = self._make_key(*args, **kwargs)
        maker = self._caller({key: (args, kwargs)})
        view = await _await(refresh, self.group, key, None, maker, TIMEOUT, timeout=TIMEOUT)
        return cast("T", self._codec.decode(view))

    def clear(self) -> None:
        """End all values of the function. Raises ``ChangeError``."""
        self._check_sync("clear")
        self.group.clear()

    async def aclear(self) -> None:
        """``clear`` of an ``async`` function."""
        self._check_async("aclear")
        await self.group.aclear()

    # ---- Many calls

    def get_many(self, calls: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], R]:
        """The values of many calls, by their positional arguments, without those that are ``NotFound``.

        One look at shared memory for all; what is missing is loaded by one call after another. Raises ``LoadErrors``
        where some failed, when all are done.
        """
        self._check_sync("get_many")
        keys, views = self._find_many(calls)
        if missing := self._missing(keys, views):
            maker = self._caller(missing)
            views.update(drivers.run(miss_many, current(), self.group, tuple(missing), None, maker))
        return self._collect(keys, views)

    async def aget_many(
        self: CachedFunction[P, Coroutine[Any, Any, T]], calls: Iterable[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], T]:
        """``get_many`` of an ``async`` function."""
        self._check_async("aget_many")
        keys, views = self._find_many(calls)
        if missing := self._missing(keys, views):
            views.update(await _await(miss_many, self.group, tuple(missing), None, self._caller(missing)))
        return self._collect(keys, views)

    def _find_many(self, calls: Iterable[tuple[Any, ...]]) -> tuple[dict[tuple[Any, ...], bytes], Outcomes]:
        """The calls' keys, and what is there of them."""
        keys = {call: self._make_key(*call) for call in calls}
        found, _, absent = self.group.find_many(keys.values())
        views: Outcomes = dict(found)
        views.update({key: NotFound(text) for key, text in absent.items()})
        return keys, views

    def _missing(self, keys: Mapping[tuple[Any, ...], bytes], views: Outcomes) -> dict[bytes, Call]:
        return {key: (call, {}) for call, key in keys.items() if key not in views}

    def _collect(self, keys: Mapping[tuple[Any, ...], bytes], views: Outcomes) -> dict[tuple[Any, ...], Any]:
        values: dict[Any, Any] = {}
        errors: dict[Any, Exception] = {}
        for call, key in keys.items():
            outcome = views[key]
            if not isinstance(outcome, Exception):
                values[call] = self._codec.decode(outcome)
            elif not isinstance(outcome, NotFound):
                errors[call] = outcome
        if errors:
            raise LoadErrors(errors, values)
        return values

    # ---- As functools.lru_cache has it

    def cache_info(self) -> CacheInfo:
        """How often values were there, and were not, since the host's last ``cache_clear``; and how many there are."""
        stats = self.group.stats
        hits, loads = self.group.cleared
        items = sum(self.group.cache_stats(which).items for which in CacheType)
        return CacheInfo(max(stats.cache_hits - hits, 0), max(stats.loads - loads, 0), None, items)

    def cache_clear(self) -> None:
        """``clear``."""
        self._check_sync("cache_clear")
        self.group.clear()

    async def acache_clear(self) -> None:
        """``aclear``."""
        self._check_async("acache_clear")
        await self.group.aclear()

    def cache_parameters(self) -> dict[str, Any]:
        """How it was declared; and ``loads``: "key", or "caller" where a value is loaded by whoever calls alone."""
        return dict(self._parameters)

    # ---- As a method, and as an object

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], T], instance: S, owner: type | None = None
    ) -> CachedFunction[Q, T]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Self: ...  # a static method's, to type checkers

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._bound(self, instance)

    def bound_to(self, instance: Any) -> CachedFunction[Any, Any]:
        """The same function with a first argument."""
        kind = AsyncCachedFunction if self._loader.is_async else CachedFunction  # not with a call of its own
        bound: CachedFunction[Any, Any] = object.__new__(kind)
        bound.__dict__.update(self.__dict__)
        bound._first = (*self._first, instance)
        bound._make_key = functools.partial(self._make_key, instance)
        return bound

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled and copied as a function is: by its name

    def __repr__(self) -> str:
        return f"<cached {self.__module__}.{self.__qualname__}: {self._summary()}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        name = html.escape(f"{self.__module__}.{self.__qualname__}")
        budget = self.group.cache_bytes if self.group.budget is None else self.group.budget
        rows = {
            "group": self.group.name,
            "calls": self._summary(),
            "at most": format_size(budget),
            "loaded from": "its key" if self._parameters["loads"] == "key" else "its caller",
        }
        cells = "".join(f"<tr><th>{term}</th><td>{html.escape(text)}</td></tr>" for term, text in rows.items())
        return f"<table><caption>cached <code>{name}</code></caption>{cells}</table>"

    def _summary(self) -> str:
        """How often values were there: as far as this process sees, since it is not worth a wait."""
        counts = self.group.counters()
        hits = counts[Counter.MAIN_HITS] + counts[Counter.HOT_HITS]
        calls = hits + counts[Counter.LOADS]
        return f"{hits / calls:.1%} of {calls:,} calls were hits" if calls else "not called yet"

    # ---- How

    def _caller(self, calls: Mapping[bytes, Call]) -> CallLoader:
        if first := self._first:
            calls = {key: ((*first, *args), kwargs) for key, (args, kwargs) in calls.items()}
        return CallLoader(self._loader, calls)

    def _check_sync(self, method: str) -> None:
        if self._loader.is_async:
            raise TypeError(f"{self.__qualname__} is async: got {method}(), expected `await a{method}()`")

    def _check_async(self, method: str) -> None:
        if not self._loader.is_async:
            raise TypeError(f"{self.__qualname__} is not async: got {method}(), expected {method[1:]}()")

    class _bound:  # it as a method of an object
        __slots__ = ("__func__", "__self__", "__weakref__")

        def __init__(self, function: CachedFunction[Any, Any], instance: Any) -> None:
            self.__func__ = function
            self.__self__ = instance

        def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
            return self.__func__(self.__self__, *args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__func__.bound_to(self.__self__), name)

        @property
        def __doc__(self) -> str | None:  # type: ignore[override]
            return self.__func__.__doc__

        @property
        def __signature__(self) -> inspect.Signature:  # without the object
            return inspect.signature(MethodType(self.__func__.__wrapped__, self.__self__))

        def __repr__(self) -> str:
            return f"<bound {self.__func__!r} of {self.__self__!r}>"


def make_cached(function: Callable[P, R], *arguments: Any) -> CachedFunction[P, R]:
    """Make a `CachedFunction` of a function that is not ``async``: one whose class has its call, in one piece."""
    made: CachedFunction[P, R] = CachedFunction(function, *arguments)
    _, calls, codec, *_ = arguments
    call = calls.getter(made._find, made._renews, made._look_twice, codec)
    made.__class__ = type("CachedFunction", (CachedFunction,), {"__call__": staticmethod(call), "__module__": __name__})
    return made


class AsyncCachedFunction(CachedFunction[P, R]):
    """The same of an ``async`` function. To type checkers it is one with the other."""

    def __init__(self, function: Callable[P, R], *arguments: Any) -> None:
        super().__init__(function, *arguments)
        # What asks whether this is a coroutine function (Flask, Starlette) asks ``inspect``.
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)  # type: ignore[unreachable]
        elif (code := getattr(function, "__code__", None)) is not None:
            self.__code__ = code
            self.__defaults__ = getattr(function, "__defaults__", None)
            self.__kwdefaults__ = getattr(function, "__kwdefaults__", None)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override]
        key = self._make_key(*args, **kwargs)
        view = self._find(key)
        if view is None:
            view = await _await(miss, self.group, key, None, False, self._caller({key: (args, kwargs)}))
        elif self._renews and self.group.is_to_renew(view):
            view = await _await(renew, self.group, key, None, self._caller({key: (args, kwargs)}), view)
        return self._codec.decode(view)


async def _await(program: Callable[..., Steps[T]], group: Group, *arguments: Any, timeout: float | None = None) -> T:
    with importing:
        from mpgroupcache.worker import loops  # asyncio, which only those pay for who have imported it

    return await loops.run(program, current(), group, *arguments, timeout=timeout)


def _lives(ttl: float | None) -> dict[str, Any]:
    return {} if ttl is None else {"ttl": None if ttl == float("inf") else ttl}
