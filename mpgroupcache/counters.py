"""The counters of a group, in the order in which shared memory has them."""

from __future__ import annotations

from enum import IntEnum


class Counter(IntEnum):
    """The words of ``struct mgc_counters`` in shared memory, from which ``Stats`` is read."""

    MAIN_HITS = 0
    HOT_HITS = 1
    LOADS = 2
    LOADS_DEDUPED = 3
    LOCAL_LOADS = 4
    LOCAL_LOAD_ERRS = 5
    PEER_LOADS = 6
    PEER_ERRORS = 7
    STALE_HITS = 8
    ABSENT_HITS = 9
    REFRESHES = 10
    REFRESH_ERRORS = 11
    REMOVALS = 12
    EXPIRED = 13
