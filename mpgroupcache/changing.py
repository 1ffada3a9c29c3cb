"""What of ``Group`` changes values: each method here has a twin for coroutines. The programs are worker/changes.py's.

When a change has returned, no load that began before it is ever cached after it, and every get that begins afterwards,
in any process of this host, sees it or a later one. Commit to your database first, then change the cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from mpgroupcache.ages import UNSET, stale_of, ttl_of
from mpgroupcache.getters import MomentGetter
from mpgroupcache.keys import encode_key
from mpgroupcache.late import importing
from mpgroupcache.shm._view import ByteView
from mpgroupcache.sinks import ProtoMessage, encode_value
from mpgroupcache.worker import drivers
from mpgroupcache.worker.asked import Asked
from mpgroupcache.worker.changes import change, refresh, renew
from mpgroupcache.worker.declared import DeclaredGroup
from mpgroupcache.worker.miss import miss
from mpgroupcache.worker.process import current
from mpgroupcache.worker.waits import Steps

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mpgroupcache.ages import Seconds, Ttl, Unset
    from mpgroupcache.worker.waits import Maker

T = TypeVar("T")

Key: TypeAlias = "str | bytes"
Contents: TypeAlias = "Buffer | str | ProtoMessage"
"""A value: bytes-like, text, or a protobuf message."""
Timeout: TypeAlias = "float | None"
"""Seconds that a change may wait for the coordinator, and for peers; None: no bound. Then ``ChangeError``."""

TIMEOUT = 5.0  # s; longer than a coordinator's restart takes
MAX_COUNT = 1 << 63


class ChangingGroup(DeclaredGroup):
    """A group's changes."""

    # ---- Remove

    def remove(self, key: Key, *, if_version: int | None = None, timeout: Timeout = TIMEOUT) -> bool:
        """End the value of ``key``: the next get loads. Returns whether there was one (Go: no counterpart).

        Also ends a kept absence. ``if_version``: only where the value there has that ``view.version``. ``timeout`` in
        seconds bounds the waiting; None: no bound. Raises ``ChangeError``.
        """
        return bool(self._change(_remove((key,), if_version), timeout))

    async def aremove(self, key: Key, *, if_version: int | None = None, timeout: Timeout = TIMEOUT) -> bool:
        """``remove`` for a coroutine."""
        return bool(await self._achange(_remove((key,), if_version), timeout))

    def remove_many(self, keys: Iterable[Key], *, timeout: Timeout = TIMEOUT) -> int:
        """``remove`` each of these keys. Returns how many had a value. Raises ``ChangeError``."""
        return self._change(_remove(keys), timeout)

    async def aremove_many(self, keys: Iterable[Key], *, timeout: Timeout = TIMEOUT) -> int:
        """``remove_many`` for a coroutine."""
        return await self._achange(_remove(keys), timeout)

    def clear(self, *, timeout: Timeout = TIMEOUT) -> None:
        """End all values of the group, at once. Their memory comes back by and by. Raises ``ChangeError``."""
        self._change(Asked("clear"), timeout)

    async def aclear(self, *, timeout: Timeout = TIMEOUT) -> None:
        """``clear`` for a coroutine."""
        await self._achange(Asked("clear"), timeout)

    # ---- Set

    def set(
        self,
        key: Key,
        value: Contents,
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        if_version: int | None = None,
        timeout: Timeout = TIMEOUT,
    ) -> bool:
        """Put a value in the place of what is there. Returns True (Go: no counterpart).

        With ``if_version``, a ``view.version``, only in the place of that value; False: something else is there, or
        nothing. ``ttl``, ``stale``: seconds or ``timedelta``; left out: the group's; a ``ttl`` of None: for ever.
        ``timeout``: seconds.

        Raises ``ChangeError``; ``ValueError`` for a ``ttl`` of 0 or less, and for a value over its share of the cache.
        In the latter case, and where there is no room, the old value is gone all the same.
        """
        return bool(self._change(_put("set", key, value, ttl, stale, if_version), timeout))

    async def aset(
        self,
        key: Key,
        value: Contents,
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        if_version: int | None = None,
        timeout: Timeout = TIMEOUT,
    ) -> bool:
        """``set`` for a coroutine."""
        return bool(await self._achange(_put("set", key, value, ttl, stale, if_version), timeout))

    def set_many(
        self,
        values: Mapping[Key, Contents],
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        timeout: Timeout = TIMEOUT,
    ) -> None:
        """``set`` each of these keys. What ``set`` raises for the first that failed comes after all others were set."""
        self._change(_put_many(values, ttl, stale), timeout)

    async def aset_many(
        self,
        values: Mapping[Key, Contents],
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        timeout: Timeout = TIMEOUT,
    ) -> None:
        """``set_many`` for a coroutine."""
        await self._achange(_put_many(values, ttl, stale), timeout)

    def add(
        self,
        key: Key,
        value: Contents,
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        timeout: Timeout = TIMEOUT,
    ) -> bool:
        """Put a value where there is none. Returns whether it did: of callers that come together, one does.

        A kept absence is no value, a stale value is one. Options and errors are those of ``set``.
        """
        return bool(self._change(_put("add", key, value, ttl, stale), timeout))

    async def aadd(
        self,
        key: Key,
        value: Contents,
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        timeout: Timeout = TIMEOUT,
    ) -> bool:
        """``add`` for a coroutine."""
        return bool(await self._achange(_put("add", key, value, ttl, stale), timeout))

    def touch(self, key: Key, ttl: Ttl = UNSET, *, stale: Seconds | Unset = UNSET, timeout: Timeout = TIMEOUT) -> bool:
        """Have a value live as if it were put there now. Returns whether there was one. It keeps its version.

        ``ttl``, ``stale``: seconds or ``timedelta``; left out: the group's; a ``ttl`` of None: for ever. Raises
        ``ChangeError``, and ``ValueError`` for a ``ttl`` of 0 or less.
        """
        return bool(self._change(_touch(key, ttl, stale), timeout))

    async def atouch(
        self, key: Key, ttl: Ttl = UNSET, *, stale: Seconds | Unset = UNSET, timeout: Timeout = TIMEOUT
    ) -> bool:
        """``touch`` for a coroutine."""
        return bool(await self._achange(_touch(key, ttl, stale), timeout))

    def incr(
        self,
        key: Key,
        amount: int = 1,
        *,
        initial: int | None = None,
        ttl: Ttl = UNSET,
        timeout: Timeout = TIMEOUT,
    ) -> int:
        """Add ``amount`` to the number that is there, and return the sum. It keeps its age.

        A number is ASCII decimal of 64 bits, with a sign. Where there is none, ``initial`` is put there, with ``ttl``
        (seconds or ``timedelta``), and returned. It may be evicted like any value, and counts from there again.

        Raises ``NotFound`` where there is none and no ``initial``; ``TypeError`` for a value that is no number;
        ``OverflowError`` for more than 64 bits; ``ChangeError``.
        """
        return self._change(_incr(key, amount, initial, ttl), timeout)

    async def aincr(
        self,
        key: Key,
        amount: int = 1,
        *,
        initial: int | None = None,
        ttl: Ttl = UNSET,
        timeout: Timeout = TIMEOUT,
    ) -> int:
        """``incr`` for a coroutine."""
        return await self._achange(_incr(key, amount, initial, ttl), timeout)

    # ---- Load

    def refresh(self, key: Key, *, ctx: Any = None, timeout: Timeout = TIMEOUT) -> ByteView:
        """Load the value of ``key`` anew, in this thread, and return it. Others get the old one meanwhile.

        The load begins now: no earlier one is shared. When this returns, all see what it brought. ``ctx`` is handed to
        the loader. ``timeout`` in seconds bounds the waiting for the coordinator, not the loader.

        Raises ``ChangeError``, and the loader's own exception; ``TypeError`` in a group without a loader, or with an
        async one.
        """
        getter = self._loader("refresh")
        if getter.is_async:
            raise TypeError(f"group {self.name!r} has an async getter: got refresh(), expected `await arefresh()`")
        return drivers.run(refresh, current(), self, encode_key(key), ctx, getter, timeout, timeout=timeout)

    async def arefresh(self, key: Key, *, ctx: Any = None, timeout: Timeout = TIMEOUT) -> ByteView:
        """``refresh`` for a coroutine."""
        getter = self._loader("arefresh")
        return await _await(refresh, current(), self, encode_key(key), ctx, getter, timeout, timeout=timeout)

    def get_or_load(
        self,
        key: Key,
        fn: Callable[[Any], Contents],
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        ctx: Any = None,
        timeout: Timeout = None,
    ) -> ByteView:
        """Return the value of ``key``, loading it with ``fn(key)`` if it is not there: once, for all who ask meanwhile.

        ``fn`` returns bytes, text or a protobuf message, or raises ``NotFound``. ``ttl``, ``stale``: of what it
        returns, in seconds or as ``timedelta``; left out: the group's. A stale value is loaded anew by one caller in
        its own thread, who gets the old one where that fails; others get the old one at once. ``timeout``, in seconds,
        and errors are those of ``get``.
        """
        view = self.lookup(key)
        if view is not None and not self.is_to_renew(view):
            return view
        maker = MomentGetter(fn, ttl_of(ttl), stale_of(stale))
        if maker.is_async:
            raise TypeError("fn: got an async function, expected `await group.aget_or_load(key, fn)` for it")
        if view is not None:
            return drivers.run(renew, current(), self, encode_key(key), ctx, maker, view, timeout=timeout)
        return drivers.run(miss, current(), self, encode_key(key), ctx, False, maker, timeout=timeout)

    async def aget_or_load(
        self,
        key: Key,
        fn: Callable[[Any], Contents | Awaitable[Contents]],
        *,
        ttl: Ttl = UNSET,
        stale: Seconds | Unset = UNSET,
        ctx: Any = None,
        timeout: Timeout = None,
    ) -> ByteView:
        """``get_or_load`` for a coroutine; ``fn`` may be async."""
        view = self.lookup(key)
        if view is not None and not self.is_to_renew(view):
            return view
        maker = MomentGetter(fn, ttl_of(ttl), stale_of(stale))
        if view is not None:
            return await _await(renew, current(), self, encode_key(key), ctx, maker, view, timeout=timeout)
        return await _await(miss, current(), self, encode_key(key), ctx, False, maker, timeout=timeout)

    # ---- How

    def is_to_renew(self, view: ByteView) -> bool:
        """Whether the caller is to load a stale value anew itself: what ``fn`` loads, nobody else can."""
        return (left := view.ttl) is not None and left < 0 and self._may_ask(view.version)

    def _loader(self, method: str) -> Maker:
        if self.getter is None:
            raise TypeError(f"group {self.name!r} has no loader: got {method}(), expected set() or get_or_load()")
        return self.getter

    def _change(self, asked: Asked, timeout: Timeout) -> int:
        if not asked.keys and asked.what != "clear":
            return 0
        return drivers.run(change, current(), self, asked, timeout, timeout=timeout)

    async def _achange(self, asked: Asked, timeout: Timeout) -> int:
        if not asked.keys and asked.what != "clear":
            return 0
        return await _await(change, current(), self, asked, timeout, timeout=timeout)


async def _await(program: Callable[..., Steps[T]], *arguments: Any, timeout: Timeout) -> T:
    with importing:
        from mpgroupcache.worker import loops  # asyncio, which only those pay for who have imported it

    return await loops.run(program, *arguments, timeout=timeout)


def _remove(keys: Iterable[Key], version: int | None = None) -> Asked:
    return Asked("remove", tuple(dict.fromkeys(map(encode_key, keys))), version=version)


def _put(
    what: Literal["set", "add"], key: Key, value: Contents, ttl: Ttl, stale: Seconds | Unset, version: int | None = None
) -> Asked:
    return Asked(what, (encode_key(key),), (encode_value(value),), ttl_of(ttl), stale_of(stale), version)


def _put_many(values: Mapping[Key, Contents], ttl: Ttl, stale: Seconds | Unset) -> Asked:
    encoded = {encode_key(key): encode_value(value) for key, value in values.items()}
    return Asked("set", tuple(encoded), tuple(encoded.values()), ttl_of(ttl), stale_of(stale))


def _touch(key: Key, ttl: Ttl, stale: Seconds | Unset) -> Asked:
    return Asked("touch", (encode_key(key),), (), ttl_of(ttl), stale_of(stale))


def _incr(key: Key, amount: int, initial: int | None, ttl: Ttl) -> Asked:
    for option, number in (("amount", amount), ("initial", initial)):
        if number is not None and not -MAX_COUNT <= number < MAX_COUNT:
            raise OverflowError(f"{option}: got {number}, expected a number of 64 bits")
    return Asked("incr", (encode_key(key),), ttl=ttl_of(ttl), amount=amount, initial=initial)
