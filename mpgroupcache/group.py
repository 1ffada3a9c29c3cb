"""Groups: what an application declares and gets from (Go: ``Group``).

What ``get`` does up to a hit is native (``shm._group.GroupCore``); a miss is worker/miss.py's.
"""

from __future__ import annotations

from typing import Any, overload

from mpgroupcache.counters import Counter
from mpgroupcache.getters import BoundGetter, Getter, GetterFunction, source_of
from mpgroupcache.keys import encode_key
from mpgroupcache.late import importing
from mpgroupcache.pickers import BoundPicker, PeerPicker, picker_of
from mpgroupcache.shm._group import with_own_get
from mpgroupcache.shm._view import ByteView
from mpgroupcache.sinks import Sink
from mpgroupcache.sizes import format_size
from mpgroupcache.stats import CacheStats, CacheType, Stats
from mpgroupcache.worker import drivers
from mpgroupcache.worker.declared import DeclaredGroup
from mpgroupcache.worker.miss import glance, miss, serve
from mpgroupcache.worker.process import current


@with_own_get
class Group(DeclaredGroup):
    """A namespace of keys with its loader and its share of the cache (Go: ``Group``). Made by ``new_group``."""

    def __init__(
        self,
        name: str,
        cache_bytes: int,
        getter: Getter | GetterFunction,
        load_timeout: float | None = None,
        peers: PeerPicker | None = None,
    ) -> None:
        """``peers``: None: the registered ones, and then, those that the coordinator's ring has."""

        def find_picker() -> BoundPicker | None:
            picker = picker_of(name) if peers is None else peers
            return None if picker is None else BoundPicker(picker)

        super().__init__(name, cache_bytes, BoundGetter(getter), source_of(getter), load_timeout, find_picker)

    def __repr__(self) -> str:
        size = format_size(self.cache_bytes if self.budget is None else self.budget)
        return f"<mpgroupcache.Group {self.name!r} ({size}, {'attached' if self.attached else 'not attached'})>"

    def _load(self, key: str | bytes, ctx: Any, timeout: float | None) -> ByteView:
        """``get``, from its miss on."""
        raw = encode_key(key)
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
        view = self.lookup(key)
        if view is None:
            with importing:
                from mpgroupcache.worker import loops  # asyncio, which only those pay for who have imported it

            view = await loops.run(miss, current(), self, encode_key(key), ctx, False, timeout=timeout)
        if dest is None:
            return view
        dest._fill(view)
        return None

    # ---- For peers, where a process of the application serves them

    def serve(self, key: bytes, ctx: Any, timeout: float | None) -> ByteView:
        """Answer a peer's request: as `get`, but no other peer is asked for it, nor waited for."""
        if self.getter.is_async:
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
