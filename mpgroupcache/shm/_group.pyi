"""Types of ``_group.pyx``, which has the reasons."""

from typing import Any, TypeVar, overload

from mpgroupcache.shm._reader import Reader
from mpgroupcache.shm._view import ByteView

T = TypeVar("T", bound=GroupCore)

class GroupCore:
    """What of ``Group`` is native: ``get`` up to the hit. The subclass gives ``_load``, which runs on every miss."""

    def attach(self, reader: Reader, group: int, arena_path: str | None) -> None:
        """Look up through ``reader`` from now on; ``arena_path`` is None for a group without a cache.

        Raises ``ArenaError`` for a segment that is retired, of another group, or of another version, and ``OSError``
        where there is none; then the group stays attached as it was.
        """

    def deliver(self) -> None:
        """Add what was counted without a region to what is counted in it, if there is one now."""

    def detach(self) -> None:
        """Forget the arena: every ``get`` is a miss until the next ``attach``."""

    @property
    def attached(self) -> bool:
        """Whether lookups of this process reach the coordinator's arena (or there is none to reach)."""

    @property
    def readable(self) -> bool:
        """Whether this process could see a value that is in the arena."""

    def count(self, counter: int, n: int = 1) -> None:
        """Add to one of this process's counters, in the order of ``struct mgc_counters``."""

    def counters(self) -> tuple[int, ...]:
        """The group's counts: the host's where attached, and this process's that have no region yet."""

    @property
    def server_requests(self) -> int:
        """How many of the host's gets came from peers."""

    def list_stats(self, which: int) -> tuple[int, int, int]:
        """(bytes, items, evictions) of the main (0) or hot (1) list; zeros where there is no arena."""

    def lookup(self, key: str | bytes) -> ByteView | None:
        """The value of ``key`` in shared memory, or None."""

    @overload
    def get(self, key: str | bytes, dest: None = None, *, ctx: Any = None, timeout: float | None = None) -> ByteView:
        """Return the value of ``key``, loading it if no cache of the ring has it (Go: ``Group.Get``)."""

    @overload
    def get(self, key: str | bytes, dest: Any, *, ctx: Any = None, timeout: float | None = None) -> None:
        """Fill ``dest``, a ``Sink``, with the value of ``key``."""

def with_own_get(subclass: type[T]) -> type[T]:
    """Decorate a subclass of ``GroupCore``, whose instances' ``get`` it becomes."""

class SharedCounter:
    """A 64-bit counter in a page that children inherit: threads and processes add to it atomically."""

    def add(self, n: int) -> None:
        """Add ``n``, which may be negative; wraps around."""

    def get(self) -> int:
        """The sum so far."""
