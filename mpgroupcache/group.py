"""Groups: what an application declares and gets from (Go: ``Group``).

What ``get`` does up to a hit is native (``shm._group.GroupCore``); a miss is worker/miss.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

from mpgroupcache.ages import AGELESS, Ages
from mpgroupcache.changing import ChangingGroup
from mpgroupcache.counters import Counter
from mpgroupcache.errors import LoadErrors, NotFound
from mpgroupcache.keys import encode_key
from mpgroupcache.late import importing
from mpgroupcache.pickers import BoundPicker, PeerPicker, picker_of
from mpgroupcache.shm._group import with_own_get
from mpgroupcache.shm._view import ByteView
from mpgroupcache.sinks import Sink
from mpgroupcache.sizes import format_size
from mpgroupcache.stats import CacheStats, CacheType, Stats
from mpgroupcache.worker import drivers
from mpgroupcache.worker.many import Outcomes, miss_many
from mpgroupcache.worker.miss import glance, look, miss, serve
from mpgroupcache.worker.process import current
from mpgroupcache.worker.waits import Maker


@with_own_get
class Group(ChangingGroup):
    """A namespace of keys with its loader and its share of the cache (Go: ``Group``). Made by ``new_group``."""

    def __init__(
        self,
        name: str,
        cache_bytes: int,
        maker: Maker | None,
        source: tuple[str, str],
        load_timeout: float | None = None,
        peers: PeerPicker | None = None,
        ages: Ages = AGELESS,
    ) -> None:
        """``maker``: None: nothing is loaded. ``peers``: None: the registered ones, then the coordinator's ring."""

        def find_picker() -> BoundPicker | None:
            picker = picker_of(name) if peers is None else peers
            return None if picker is None else BoundPicker(picker)

        super().__init__(name, cache_bytes, maker, source, load_timeout, ages, find_picker)

    def __repr__(self) -> str:
        size = format_size(self.cache_bytes if self.budget is None else self.budget)
        return f"<mpgroupcache.Group {self.name!r} ({size}, {'attached' if self.attached else 'not attached'})>"

    def _load(self, key: str | bytes, ctx: Any, timeout: float | None) -> ByteView:
        """``get``, from its miss on."""
        raw = encode_key(key)
        if self.getter is None:
            return drivers.run(look, current(), self, raw, timeout=timeout)
        if self.getter.is_async:
            raise TypeError(f"group {self.name!r} has an async getter: got get(), expected `await group.aget(key)`")
        return drivers.run(miss, current(), self, raw, ctx, False, timeout=timeout)

    @overload
    async def aget(
        self, key: str | bytes, dest: None = None, *, ctx: Any = None, timeout: float | None = None
    ) -> ByteView: ...

    @overload
    async def aget(self, key: str | bytes, dest: Sink, *, ctx: Any = None, timeout: float | None = None) -> None: ...

    async def aget(
        self, key: str | bytes, dest: Sink | None = None, *, ctx: Any = None, timeout: float | None = None
    ) -> ByteView | None:
        """``get`` for asyncio: a hit never suspends (Go: ``Group.Get``).

        An ``async`` getter is awaited on this loop, a plain one runs in a thread. Cancelling stops the waiting, not a
        load: others may wait for it.
        """
        if dest is not None and not isinstance(dest, Sink):
            raise TypeError(f"dest: got {type(dest).__name__}, expected a mpgroupcache.Sink, or None for a ByteView")
        view = self.find(key)
        if view is None:
            with importing:
                from mpgroupcache.worker import loops  # asyncio, which only those pay for who have imported it

            raw = encode_key(key)
            if self.getter is None:
                view = await loops.run(look, current(), self, raw, timeout=timeout)
            else:
                view = await loops.run(miss, current(), self, raw, ctx, False, timeout=timeout)
        if dest is None:
            return view
        dest._fill(view)
        return None

    def lookup(self, key: str | bytes) -> ByteView | None:
        """The value that is there, a stale one too; None: there is none. It never loads, and asks for no refresh.

        A hit counts as a get's, a miss does not count. A process that is not attached yet attaches where a coordinator
        serves, and waits 50 ms for that at most. Go has no counterpart.
        """
        view = super().lookup(key)
        if view is None and not self.attached:
            self._see()
            view = super().lookup(key)
        return view

    # ---- Many keys

    def _load_many(
        self,
        asked: tuple[str | bytes, ...],
        found: dict[Any, ByteView],
        missing: list[str | bytes],
        absent: dict[Any, str],
        return_exceptions: bool,
        ctx: Any,
        timeout: float | None,
    ) -> dict[str | bytes, Any]:
        """``get_many``, from its first miss on."""
        loaded: Outcomes = {}
        if missing:
            if self.getter is not None and self.getter.is_async:
                raise TypeError(
                    f"group {self.name!r} has an async getter: got get_many(), expected `await aget_many()`"
                )
            raw = tuple(map(encode_key, missing))
            loaded = drivers.run(miss_many, current(), self, raw, ctx, timeout=timeout)
        return _collect(asked, found, absent, loaded, return_exceptions)

    async def aget_many(
        self,
        keys: Iterable[str | bytes],
        *,
        return_exceptions: bool = False,
        ctx: Any = None,
        timeout: float | None = None,
    ) -> dict[str | bytes, Any]:
        """``get_many`` for asyncio: where all are hits it does not suspend. Go has no counterpart."""
        asked = tuple(keys)
        found, missing, absent = self.find_many(asked)
        if not (missing or absent):
            return found
        loaded: Outcomes = {}
        if missing:
            with importing:
                from mpgroupcache.worker import loops

            raw = tuple(map(encode_key, missing))
            loaded = await loops.run(miss_many, current(), self, raw, ctx, timeout=timeout)
        return _collect(asked, found, absent, loaded, return_exceptions)

    # ---- For peers, where a process of the application serves them

    def serve(self, key: bytes, ctx: Any, timeout: float | None) -> ByteView:
        """Answer a peer's request: as `get`, but no other peer is asked for it, nor waited for."""
        if self.getter is not None and self.getter.is_async:
            with importing:
                import asyncio

            return asyncio.run(self.serve_async(key, ctx, timeout))
        return drivers.run(serve, current(), self, key, ctx, timeout=timeout)

    async def serve_async(self, key: bytes, ctx: Any, timeout: float | None) -> ByteView:
        """The same for a coroutine."""
        with importing:
            from mpgroupcache.worker import loops

        return await loops.run(serve, current(), self, key, ctx, timeout=timeout)

    # ---- Stats

    def _see(self) -> None:
        """Have this process see what the host counts, if that is soon: to read is no reason to start anything."""
        if not self.attached:
            drivers.run(glance, current(), self)

    @property
    def stats(self) -> Stats:
        """The group's counters over all workers and the coordinator (Go: ``Group.Stats``).

        A process that is not attached yet attaches where a coordinator serves, and waits 50 ms for that at most.
        """
        self._see()
        counts = self.counters()
        hits = counts[Counter.MAIN_HITS] + counts[Counter.HOT_HITS]
        return Stats(
            gets=hits + counts[Counter.LOADS],
            cache_hits=hits,
            peer_loads=counts[Counter.PEER_LOADS],
            peer_errors=counts[Counter.PEER_ERRORS],
            loads=counts[Counter.LOADS],
            loads_deduped=counts[Counter.LOADS_DEDUPED],
            local_loads=counts[Counter.LOCAL_LOADS],
            local_load_errs=counts[Counter.LOCAL_LOAD_ERRS],
            server_requests=self.server_requests,
            stale_hits=counts[Counter.STALE_HITS],
            absent_hits=counts[Counter.ABSENT_HITS],
            refreshes=counts[Counter.REFRESHES],
            refresh_errors=counts[Counter.REFRESH_ERRORS],
            removals=counts[Counter.REMOVALS],
            expired=counts[Counter.EXPIRED],
        )

    def cache_stats(self, which: CacheType) -> CacheStats:
        """The state of the main or the hot cache, host-wide (Go: ``Group.CacheStats``). Zeros: nothing is cached.

        It attaches as `stats` does.
        """
        hot = CacheType(which) is CacheType.HOT_CACHE
        self._see()
        if not self._caches:
            return CacheStats()
        counts = self.counters()
        held, items, evictions = self.list_stats(int(hot))
        hits = counts[Counter.HOT_HITS if hot else Counter.MAIN_HITS]
        gets = counts[Counter.HOT_HITS] + counts[Counter.LOADS] + (0 if hot else counts[Counter.MAIN_HITS])
        return CacheStats(bytes=held, items=items, gets=gets, hits=hits, evictions=evictions)


def _collect(
    asked: tuple[str | bytes, ...],
    found: Mapping[Any, ByteView],
    absent: Mapping[Any, str],
    loaded: Outcomes,
    return_exceptions: bool,
) -> dict[str | bytes, Any]:
    """What many keys are given. Raises ``LoadErrors``."""
    values: dict[Any, Any] = {}
    errors: dict[Any, Exception] = {}
    for key in asked:
        outcome: Any = found.get(key)
        if outcome is None:
            outcome = NotFound(absent[key]) if key in absent else loaded[encode_key(key)]
        if return_exceptions or not isinstance(outcome, Exception):
            values[key] = outcome
        elif not isinstance(outcome, NotFound):
            errors[key] = outcome
    if errors:
        raise LoadErrors(errors, values)
    return values
