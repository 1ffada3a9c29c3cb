"""``@cached``: what it takes, and what it refuses, all of it when the function is declared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from mpgroupcache import registry
from mpgroupcache.ages import UNSET, Seconds, Unset, make_ages
from mpgroupcache.functions.binding import Calls
from mpgroupcache.functions.codecs import codec_of
from mpgroupcache.functions.loading import Loader
from mpgroupcache.functions.wrapper import AsyncCachedFunction, CachedFunction, make_cached
from mpgroupcache.getters import is_async, source_of

if TYPE_CHECKING:
    from mpgroupcache.ages import Ttl
    from mpgroupcache.pickers import PeerPicker

P = ParamSpec("P")
R = TypeVar("R")

CACHE_BYTES = "64MiB"  # an upper bound: memory is committed as it is used


class Decorator(Protocol):
    """Makes a function a cached one."""

    def __call__(self, function: Callable[P, R], /) -> CachedFunction[P, R]: ...


@overload
def cached(function: Callable[P, R], /) -> CachedFunction[P, R]: ...


@overload
def cached(
    name: str | None = None,
    cache_bytes: int | str = CACHE_BYTES,
    *,
    ttl: Seconds | Callable[[Any], Ttl] | None = None,
    key: str | Callable[..., Any] | None = None,
    ignore: Iterable[str] = (),
    codec: Any = None,
    stale: Seconds = 0,
    stale_if_error: Seconds = 0,
    jitter: float = 0,
    copy_ttl: Seconds | Unset | None = UNSET,
    negative_ttl: Seconds | None = None,
    load_timeout: float | None = None,
    peers: PeerPicker | None = None,
) -> Decorator: ...


def cached(
    name: str | Callable[..., Any] | None = None,
    cache_bytes: int | str = CACHE_BYTES,
    *,
    ttl: Seconds | Callable[[Any], Ttl] | None = None,
    key: str | Callable[..., Any] | None = None,
    ignore: Iterable[str] = (),
    codec: Any = None,
    stale: Seconds = 0,
    stale_if_error: Seconds = 0,
    jitter: float = 0,
    copy_ttl: Seconds | Unset | None = UNSET,
    negative_ttl: Seconds | None = None,
    load_timeout: float | None = None,
    peers: PeerPicker | None = None,
) -> Any:
    """Share what a function returns with all processes of the host: each of its calls runs once, whoever asks.

        @mpgroupcache.cached
        def user(user_id: int, locale: str = "en") -> User: ...

        @mpgroupcache.cached("users", "256MiB", ttl=60, ignore=("db",))
        def user(user_id: int, *, db: Session) -> User: ...

    A call returns what the function returned, as its annotation says; it may be ``async``. Every spelling of a call is
    one: by position, by name, with defaults left out.

    ``name``: of the group behind it, one on the whole host; left out: the function's module and name. ``cache_bytes``:
    an upper bound. ``ttl``: seconds, or a function of the value that returns them (None: for ever; 0: not kept).
    ``ignore``: names of parameters that the value does not depend on. ``key``: a template such as
    ``"user:{user_id}"``, or a function of the arguments; None: all of them, but the ignored ones. ``codec``: "view" for
    a zero-copy `ByteView`, "pickle", or an object with ``encode`` and ``decode``. All else is ``new_group``'s.

    Raises ``TypeError`` and ``ValueError``, which name the option, for what could not work.
    """

    def decorate(function: Callable[..., Any]) -> CachedFunction[..., Any]:
        _check(function, ignore, key)
        calls = Calls(function, ignore, key)
        by_value = ttl if callable(ttl) else None
        asynchronous = is_async(function)
        loader = Loader(function, asynchronous, calls, found := codec_of(function, codec), by_value)
        ages = make_ages(None if callable(ttl) else ttl, stale, stale_if_error, jitter, copy_ttl, negative_ttl)
        group_name = name if isinstance(name, str) else _name_of(function)
        former = _former(group_name, function)
        group = registry.declare(
            group_name,
            cache_bytes,
            loader if calls.loads_from_key else None,
            source_of(function),
            peers,
            load_timeout,
            ages,
            None if former is None else former.group,
        )
        parameters = {
            "maxsize": None,
            "typed": True,
            "name": group.name,
            "cache_bytes": group.cache_bytes,
            "loads": "key" if calls.loads_from_key else "caller",
        }
        make = AsyncCachedFunction if asynchronous else make_cached
        made = make(function, group, calls, found, loader, parameters)
        if _may_come_again(function):
            _functions[group_name] = made
        if former is not None:  # whoever has it calls the new one
            former.__class__, former.__dict__ = made.__class__, made.__dict__
        return made

    if name is None or isinstance(name, str):
        return decorate
    return decorate(name)


_functions: dict[str, CachedFunction[..., Any]] = {}  # by the names of their groups


def _former(name: str, function: Callable[..., Any]) -> CachedFunction[..., Any] | None:
    """What a function that is declared again takes the place of: in a notebook, or a module that is loaded again."""
    former = _functions.get(name)
    if former is None or registry.get_group(name) is not former.group or not _may_come_again(function):
        return None
    if (former.__module__, former.__qualname__) != (function.__module__, function.__qualname__):
        return None
    return former


def _may_come_again(function: Callable[..., Any]) -> bool:
    """Two closures of one factory look like one that is declared again, and are two: they have to say two names."""
    return "<locals>" not in getattr(function, "__qualname__", "<locals>")


def _name_of(function: Callable[..., Any]) -> str:
    """What its group is called where nobody says: the same in a process that ``multiprocessing`` has spawned."""
    if not hasattr(function, "__qualname__"):
        kind = type(function).__qualname__
        raise TypeError(f"cached: got a {kind}, which has no name of its own; say one for its group: cached('NAME')")
    module = "__main__" if function.__module__ == "__mp_main__" else function.__module__
    return f"{module}.{function.__qualname__}"


def _check(function: Any, ignore: Iterable[str], key: object) -> None:
    """Raise ``TypeError`` for what is no function whose values could be kept."""
    if isinstance(function, classmethod | staticmethod):
        kind = type(function).__name__
        raise TypeError(f"cached: got a {kind}, expected a function; write @{kind} above @cached")
    if not callable(function):
        raise TypeError(f"cached: got {type(function).__name__}, expected a function, or the name of its group")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name}: got a generator, whose values are gone once they are read; return a list or a tuple")
    first = next(iter(inspect.signature(function).parameters), None)
    in_class = "." in name and not name.rpartition(".")[0].endswith("<locals>")
    if not in_class or first not in ("self", "cls"):
        return
    if first == "cls":
        raise TypeError(f"{name}: got a class method, expected a static one, or a function of the module")
    if first not in ignore and key is None:
        raise TypeError(
            f"{name}: got a method, whose object is an argument; say ignore=('self',) where its values do not depend "
            'on the object, else key="...{self.id}..." with what they depend on'
        )
