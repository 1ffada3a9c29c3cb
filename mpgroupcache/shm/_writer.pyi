"""Types of ``_writer.pyx``, which has the reasons."""

from typing import final

from typing_extensions import Buffer

CONTROL_SIZE: int
"""Bytes of a control segment's address range."""

MAX_GROUPS: int
"""Groups of an instance."""

def arena_size(budget: int) -> int:
    """The size in bytes of the sparse file for an arena of this budget. ``ArenaError`` where that is too large."""

def retire_segment(path: str) -> None:
    """Tell the workers that attached a dead instance's segment to let go of it. Others' files are left alone."""

def sign_of_life(path: str) -> tuple[bytes, int] | None:
    """(boot id, CLOCK_BOOTTIME in ns) of the last tick of a control segment's coordinator; None where it is none.

    Of any layout: before the fourth, which brought this, the time is 0.
    """

@final
class Control:
    """The writer of a control segment: ``memory`` is its whole buffer, ``fd`` a locked description of it."""

    def __new__(cls, memory: Buffer, fd: int, boot_id: bytes, *, adopt: bool = False) -> Control:
        """Format it, or go on with a dead coordinator's. ``ArenaError``: no memory, or it cannot be taken over."""

    @property
    def boot_id(self) -> bytes: ...
    @property
    def touches_lost(self) -> int:
        """Touches that were overwritten before they were drained."""

    def close(self) -> None:
        """Let go of the memory. ``BufferError`` while arenas are open: they read the pins."""

    def retire(self) -> None:
        """Tell attached workers that this instance has ended."""

    def stamp(self) -> None:
        """Note the time, for ``sign_of_life``."""

    def add_group(self, name: str, budget: int) -> int:
        """Add a group's row and return its id. ``ArenaError`` after ``MAX_GROUPS``."""

    def groups(self) -> list[tuple[str | None, int]]:
        """(name, budget in bytes) of each group's row, in the order of their ids. A name that is no text is None."""

    @property
    def attached(self) -> int:
        """How many workers had a region at the last ``reap``."""

    def spare_regions(self, spare: int) -> int:
        """Commit regions until ``spare`` are free above all claimed ones, and return how many are."""

    def reap(self) -> int:
        """Free the regions of dead workers, and return their number."""

    def drain(self, now: float | None = None) -> int:
        """Bring the workers' touches into the LRU lists and count them in the rates; returns their number.

        Rates are as of the last drain: ``now``, in seconds since the control segment was made (default: what the clock
        says), which does not go back.
        """

    def count_request(self, group: int) -> None:
        """Count one get of a peer's."""

    def count(self, group: int, counter: int, n: int = 1) -> None:
        """Add to the coordinator's own counters of a group."""

@final
class Arena:
    """One group's arena: the index, the entries, the main and hot LRU lists (Go: a ``Group``'s two ``cache``s)."""

    def __new__(
        cls,
        control: Control,
        memory: Buffer,
        fd: int,
        *,
        group: int,
        incarnation: int = 0,
        budget: int = 0,
        max_entry: int = ...,
        seed: int = 0,
        checksums: bool = False,
        reserve: int = 0,
        adopt: bool = False,
    ) -> Arena:
        """Format it in ``memory`` of ``arena_size(budget)`` zero bytes, or go on with a dead coordinator's.

        ``checksums``: of values, too, so that none that is damaged is taken over; a dead one's arena has to have them.
        ``reserve``: bytes of its file system that it leaves free when it grows.
        ``ArenaError``: no memory for it, or it cannot be taken over.
        """

    @property
    def budget(self) -> int:
        """Bytes of keys and values."""

    @property
    def max_entry(self) -> int:
        """The largest key plus value, in bytes; at most the budget. It can be set to less."""

    @max_entry.setter
    def max_entry(self, most: int) -> None: ...
    @property
    def incarnation(self) -> int:
        """The number that tells this segment from earlier ones of the group."""

    @property
    def taken_over(self) -> tuple[int, int]:
        """(entries, dropped ones) of the dead coordinator's; dropped were those that were damaged."""

    @property
    def committed(self) -> int:
        """Bytes of memory that the segment holds."""

    @property
    def limbo_bytes(self) -> int:
        """Bytes of blocks that are unpublished, but were pinned when last looked at."""

    @property
    def short_of_memory(self) -> bool:
        """Whether shared memory ran out: the arena hardly grows, and evicts instead, until ``retry_memory``."""

    def retry_memory(self) -> None:
        """Try to commit memory again when it is next needed."""

    def close(self) -> None:
        """Let go of the memory; the segment stays as it is. ``BufferError`` while a reservation is being filled."""

    def retire(self) -> None:
        """Tell attached workers to let go: their next get is a miss. Nothing can be put into the arena any more."""

    def reserve(self, key: bytes, size: int, hot: bool = False) -> Reservation | None:
        """Make room for a value of ``size`` bytes; None when it cannot be cached now."""

    def put(self, key: bytes, value: Buffer, hot: bool = False) -> bool:
        """Cache a value, in place of the key's old one. False when it cannot be cached now."""

    def find(self, key: bytes) -> memoryview | None:
        """The value, good until the next call on this arena, or None. A find is a touch."""

    def serve(self, key: bytes) -> tuple[memoryview, float] | None:
        """For a peer's request: ``find``, and the key's rate (to 3 %). A request that is served is counted as one."""

    def minute_qps(self, key: bytes) -> float:
        """Requests per second for a key, of workers and peers, in the last minute; 0.0 where it is not cached.

        A request weighs half after 40 s. A young entry's rate is that of the time since it came, or of 10 s if that is
        longer; the get that loaded it is not in it. As of the last ``Control.drain``; not a touch.
        """

    def remove(self, key: bytes) -> bool:
        """Drop a key's entry (Go: ``lru.Cache.Remove``)."""

    def sweep(self) -> None:
        """Free blocks whose views have gone."""

    def check(self) -> list[str]:
        """Every inconsistency as a line: [] for a sound arena. For tests and post-mortems; reads all of it."""

    def list_stats(self, which: int) -> tuple[int, int, int]:
        """(bytes, items, evictions) of the main (0) or hot (1) list."""

@final
class Reservation:
    """Room for one value: fill it through the buffer protocol, then ``publish``; dropped, it is abandoned."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def publish(self) -> bool:
        """Let readers see the entry. ``BufferError`` while a memoryview of the value could still write to it.

        False, and the room is given back, when the reservation was abandoned or the arena retired or closed meanwhile.
        """

    def abandon(self) -> None:
        """Give the room back: now, or when the last memoryview that could still write to it is gone."""
