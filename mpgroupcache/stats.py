"""What a group counts, and a counter for applications that count along.

All counters start at zero with the instance and only grow; ``CacheStats.bytes`` and ``items`` are levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mpgroupcache.shm._group import SharedCounter


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of one group over the whole host: all workers, living and dead, and the coordinator (Go: ``Stats``).

    A snapshot: read again for newer figures. Its counters are read one after the other while others count, so sums such
    as ``gets == cache_hits + loads`` hold exactly only when nobody is in the middle of a get.
    """

    gets: int = 0
    """Every get on this host, those that came from peers included."""

    cache_hits: int = 0
    """Gets answered from the main or the hot cache."""

    peer_loads: int = 0
    """Flights that a peer answered, from its cache or by a load of its own."""

    peer_errors: int = 0
    """Flights whose peer failed, which went on with a loader here, and those whose loader raised there, which ended."""

    loads: int = 0
    """Gets that were not hits and went on to a flight: ``gets - cache_hits``."""

    loads_deduped: int = 0
    """Those of ``loads`` that were answered by a flight which another caller had opened.

    Go counts the opposite under this name, the flights that ran: that is ``loads - loads_deduped`` here.
    """

    local_loads: int = 0
    """Loaders on this host that returned a value."""

    local_load_errs: int = 0
    """Loaders on this host that raised."""

    server_requests: int = 0
    """Gets that came over the network from peers."""


class Counter(IntEnum):
    """The words of ``struct mgc_counters`` in shared memory, from which `Stats` is read."""

    MAIN_HITS = 0
    HOT_HITS = 1
    LOADS = 2
    LOADS_DEDUPED = 3
    LOCAL_LOADS = 4
    LOCAL_LOAD_ERRS = 5
    PEER_LOADS = 6
    PEER_ERRORS = 7


class CacheType(IntEnum):
    """Which of a group's two caches (Go: ``CacheType``)."""

    MAIN_CACHE = 1
    """Values that this host owns."""

    HOT_CACHE = 2
    """Copies of values that peers own and that are asked for often here."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The state of one of a group's caches, host-wide (Go: ``CacheStats``). A snapshot, as `Stats` is."""

    bytes: int = 0
    """Keys and values held now, in bytes, as ``cache_bytes`` counts them: without padding and index."""

    items: int = 0
    """Entries held now."""

    gets: int = 0
    """Lookups in this cache."""

    hits: int = 0
    """Lookups that found their key."""

    evictions: int = 0
    """Entries thrown out to make room; replaced and removed ones are not counted."""


class AtomicInt:
    """A 64-bit counter, atomic between threads and between processes that inherited it by fork (Go: ``AtomicInt``).

    Make it before the workers fork, for instance at import time under ``gunicorn --preload``: a worker that makes one
    of its own counts alone. It cannot be pickled, and wraps around at 2**63 as Go's does.
    """

    __slots__ = ("_counter",)

    def __init__(self) -> None:
        self._counter = SharedCounter()

    def add(self, n: int) -> None:
        """Add ``n``, which may be negative. Raises ``OverflowError`` for an ``n`` of more than 64 bits."""
        self._counter.add(n)

    def get(self) -> int:
        """Return the sum so far."""
        return self._counter.get()

    def __str__(self) -> str:
        return str(self.get())

    def __repr__(self) -> str:
        return f"AtomicInt({self.get()})"
