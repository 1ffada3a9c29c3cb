"""Types of ``_writer.pyx``, which has the reasons.

Times are in ns, relative to now; None: for ever.
"""

from typing import final

from typing_extensions import Buffer

from mpgroupcache.shm._control import Control

def arena_size(budget: int) -> int:
    """The size in bytes of the sparse file for an arena of this budget. ``ArenaError`` where that is too large."""

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

    def reserve(
        self,
        key: bytes,
        size: int,
        hot: bool = False,
        *,
        version: int = 0,
        fresh: int | None = None,
        dead: int | None = None,
        absent: bool = False,
        copy: int | None = None,
        aligned: bool = False,
    ) -> Reservation | None:
        """Make room for a value of ``size`` bytes; None when it cannot be cached now.

        ``version``: of ``new_version``; 0: the next. ``fresh``: how long it is, from publication on, and then stale;
        ``dead``: when it is dead. Where one of them is None, it is the other. ``absent``: the value is the text of a
        ``NotFound``. ``copy``: another host owns the key, and this is its version of the value; 0: it gave none.
        ``aligned``: it begins at a multiple of 64 bytes, else of 8.
        """

    def put(
        self,
        key: bytes,
        value: Buffer,
        hot: bool = False,
        *,
        version: int = 0,
        fresh: int | None = None,
        dead: int | None = None,
        absent: bool = False,
        copy: int | None = None,
        aligned: bool = False,
    ) -> bool:
        """Cache a value, in place of the key's old one. False when it cannot be cached now."""

    def new_version(self) -> int:
        """A number for a value, for ``put`` and ``reserve``: never another's, not even after this coordinator."""

    def find(self, key: bytes) -> Found | None:
        """What is cached of a key and not dead. A find is a touch."""

    def find_kept(self, key: bytes) -> Found | None:
        """The same for what is dead and kept in case that its load fails, too; and no touch."""

    def serve(self, key: bytes) -> tuple[Found, float] | None:
        """For a peer's request: ``find``, and the key's rate (to 3 %). A request that is served is counted as one."""

    def minute_qps(self, key: bytes) -> float:
        """Requests per second for a key, of workers and peers, in the last minute; 0.0 where it is not cached.

        A request weighs half after 40 s. A young entry's rate is that of the time since it came, or of 10 s if that is
        longer; the get that loaded it is not in it. As of the last ``Control.drain``; not a touch.
        """

    def remove(self, key: bytes, version: int = 0) -> bool:
        """Drop a key's entry (Go: ``lru.Cache.Remove``), if it has that version. Whether it was a live value."""

    def touch(self, key: bytes, fresh: int | None, dead: int | None) -> bool:
        """Give what is cached of a key, and not dead, other ages. False: nothing is, or it had no room and is gone."""

    def put_off(self, key: bytes, pause: int) -> bool:
        """Have nobody asked for a refresh for a time: one is under way, or has failed. Whether the key is there."""

    def revive(self, key: bytes, pause: int) -> bool:
        """A load has failed: ``put_off``, and what is dead and kept is stale again until it is not kept any more."""

    def clear(self) -> None:
        """Have all that is cached dead, at once; ``reclaim`` gives memory back. What is being filled is dropped."""

    def reclaim(self, most: int) -> tuple[int, bool]:
        """Give back what is dead and not kept, in at most so many steps.

        Returns how many entries had expired, here and where new ones needed room, since the last call; and whether more
        is to be done now.
        """

    @property
    def next_death(self) -> int | None:
        """In how many ns ``reclaim`` has something to do, at the least; None: nothing will die."""

    def sweep(self) -> None:
        """Free blocks whose views have gone."""

    def check(self) -> list[str]:
        """Every inconsistency as a line: [] for a sound arena. For tests and post-mortems; reads all of it."""

    def list_stats(self, which: int) -> tuple[int, int, int]:
        """(bytes, items, evictions) of the main (0) or hot (1) list."""

@final
class Found:
    """What an arena has of a key."""

    @property
    def value(self) -> memoryview:
        """Good until the next call on the arena; of what is absent, the text."""

    @property
    def version(self) -> int:
        """Of a copy its owner's, if that gave one."""

    @property
    def fresh(self) -> int | None:
        """How long it is fresh, in ns; less than 0: since when it is not, or 0; None: for ever."""

    @property
    def dead(self) -> int | None:
        """How long it is not dead yet, in ns; less than 0: since when it is, or 0; None: for ever."""

    @property
    def aligned(self) -> bool:
        """It begins at a multiple of 64 bytes."""

    @property
    def absent(self) -> bool:
        """There is no such value; this is the text of its ``NotFound``."""

    @property
    def copy(self) -> bool:
        """Another host owns the key."""

    @property
    def refresh_due(self) -> bool:
        """It is stale, and nobody is refreshing it or has just failed to."""

@final
class Reservation:
    """Room for one value: fill it through the buffer protocol, then ``publish``; dropped, it is abandoned."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def publish(self) -> bool:
        """Let readers see the entry. ``BufferError`` while a memoryview of the value could still write to it.

        False, and the room is given back, when the reservation was abandoned, or the arena cleared, retired or closed.
        """

    def abandon(self) -> None:
        """Give the room back: now, or when the last memoryview that could still write to it is gone."""
