"""What a group counts, and a counter for applications that count along.

All counters start at zero with the instance and only grow; ``CacheStats.bytes`` and ``items`` are levels. Go's are one
process's. Where a counter differs from Go's of that name in more than this, it says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mpgroupcache.shm._reader import SharedCounter


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of one group over the whole host: all workers, living and dead, and the coordinator (Go: ``Stats``).

    A snapshot: read again for newer figures. Its counters are read one after the other while others count, so sums such
    as ``gets == cache_hits + loads`` hold exactly only when nobody is in the middle of a get.
    """

    gets: int = 0
    """Every get on this host: those that fail, time out or are cancelled, and those that came from peers, included.

    Not included is what was wrong before anything was looked up: a key over the limit, ``get`` with an async getter.
    """

    cache_hits: int = 0
    """Gets answered from the main or the hot cache, at the first look or at the coordinator's second one.

    Go counts a hit at the second look under `loads` too, so that there the two make up more than `gets`.
    """

    peer_loads: int = 0
    """Flights that a peer answered with a value, from its cache or by a load of its own. The same in Go."""

    peer_errors: int = 0
    """Flights whose peer failed, which went on with a loader here, and those whose loader raised there, which ended.

    Go cannot tell the two apart, and goes on with a loader here in both cases. Gets whose picker raised count here,
    too; in Go a picker has no errors.
    """

    loads: int = 0
    """Gets that were not hits, and went on to a flight: ``gets - cache_hits``.

    Go counts each get that missed at the first look; what the second look found is a hit here, and only that.
    """

    loads_deduped: int = 0
    """Those of `loads` that were given the value of a flight which another caller had opened; an error is no value.

    Go counts the opposite under this name, the flights that ran: here ``loads - loads_deduped``, if no load failed and
    nobody gave up.
    """

    local_loads: int = 0
    """Loaders on this host that returned a value, for whomever: peers' requests included. The same in Go."""

    local_load_errs: int = 0
    """Loaders on this host that raised an ``Exception``, or set nothing.

    Go caches an empty value for the latter. One that is left otherwise (``SystemExit``, a cancellation) is no result,
    and the next waiter loads; in Go a panic is not counted either, and strands them.
    """

    server_requests: int = 0
    """Gets that came over the network from peers. The same in Go."""

    stale_hits: int = 0
    """Those of `cache_hits` that were given a value which was no longer fresh. Go: no counterpart."""

    absent_hits: int = 0
    """Those of `cache_hits` that raised `NotFound`: it was cached that there is no value. Go: no counterpart."""

    refreshes: int = 0
    """Loads that were begun though there may be a value. Go: no counterpart.

    In the place of stale values, in the background or by ``get_or_load``, and whatever there is, by ``refresh``. They
    are no gets.
    """

    refresh_errors: int = 0
    """Loads that failed where an old value was there, or kept for ``stale_if_error``; it stays. Go: no counterpart."""

    removals: int = 0
    """Entries that ``remove`` and ``clear`` ended; what ``set`` replaced is none. Go: no counterpart."""

    expired: int = 0
    """Entries whose memory was taken back because their time was over; no evictions. Go: no counterpart."""


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
    """Keys and values held now, in bytes, as ``cache_bytes`` counts them: without padding and index.

    Go's sum grows by the whole entry again when a key is added a second time.
    """

    items: int = 0
    """Entries held now. The same in Go."""

    gets: int = 0
    """Gets that looked here: all of a group that caches in the main cache, those that it did not answer in the hot one.

    A get counts once, where Go counts the second look of a miss as well. Peers' requests count as in Go.
    """

    hits: int = 0
    """Gets that found their key here. The same in Go."""

    evictions: int = 0
    """Entries thrown out to make room; not those replaced, removed or dead. Go removes none in another way."""


class AtomicInt:
    """A 64-bit counter, atomic between threads and between processes that inherited it by fork (Go: ``AtomicInt``).

    Make it before the workers fork, for instance at import time under ``gunicorn --preload``: a worker that makes one
    of its own counts alone. It cannot be pickled, and wraps around at 2**63 as Go's does.
    """

    __slots__ = ("_counter",)

    def __init__(self) -> None:
        self._counter = SharedCounter()

    def add(self, n: int) -> None:
        """Add ``n``, which may be negative (Go: ``Add``). Raises ``OverflowError`` for more than 64 bits."""
        self._counter.add(n)

    def get(self) -> int:
        """Return the sum so far (Go: ``Get``). So does ``str(counter)``, as text (Go: ``String``)."""
        return self._counter.get()

    def __str__(self) -> str:
        return str(self.get())

    def __repr__(self) -> str:
        return f"AtomicInt({self.get()})"
