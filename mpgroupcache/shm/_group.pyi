"""Types of ``_group.pyx``, which has the reasons."""

from collections.abc import Iterable
from typing import Any, TypeVar, overload

from mpgroupcache.shm._reader import Reader
from mpgroupcache.shm._view import ByteView

T = TypeVar("T", bound=GroupCore)
K = TypeVar("K", bound=str | bytes)

class GroupCore:
    """What of ``Group`` is native: ``get`` up to the hit.

    The subclass gives ``_load`` and ``_load_many``, which run on misses, and ``_stale``, which asks for a refresh.
    """

    def attach(self, reader: Reader, group: int, arena_path: str | None) -> None:
        """Look up through ``reader`` from now on; ``arena_path`` is None for a group without a cache.

        Raises ``ArenaError`` for a segment that is retired, of another group, or of another version, and ``OSError``
        where there is none; then the group stays attached as it was.
        """

    def deliver(self) -> None:
        """Add what was counted without a region to what is counted in it, if there is one now."""

    def detach(self) -> None:
        """Forget the arena, or hear of one that is out of reach: every ``get`` is a miss until the next ``attach``."""

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

    @property
    def cleared(self) -> tuple[int, int]:
        """The hits and loads that were counted when the group was cleared last; zeros where that cannot be seen."""

    @property
    def changes(self) -> int:
        """The group's change count; -1 if there was a coordinator and it cannot be seen, 0 if there never was one."""

    @property
    def stale_if_error(self) -> float:
        """Seconds, counted from where it is no longer fresh, for which `find_kept` finds a value; inf: for ever."""

    @stale_if_error.setter
    def stale_if_error(self, seconds: float) -> None: ...
    def lookup(self, key: str | bytes) -> ByteView | None:
        """The value of ``key`` in shared memory, fresh or stale; None: none, or it is noted that there is none.

        It asks for no refresh. Hits count, misses do not.
        """

    def find(self, key: str | bytes) -> ByteView | None:
        """The value of ``key`` in shared memory, or None: what ``get`` looks at first.

        Raises ``NotFound`` where it is noted that there is none. Where a refresh is due, it is asked for.
        """

    def find_kept(self, key: str | bytes) -> ByteView | None:
        """As `lookup`, also what is dead, for ``stale_if_error``: for a load that has failed. It counts nothing."""

    def absent_for(self, key: str | bytes) -> float | None:
        """Seconds for which it is noted that there is no value of ``key``, or 0; None: for ever. It counts nothing."""

    def find_many(self, keys: Iterable[K]) -> tuple[dict[K, ByteView], list[K], dict[K, str]]:
        """Find many keys in one pass: ``(found, missing, absent)``, each in the order of ``keys``.

        ``found`` has a view for each key that has a value, ``absent`` the text of its ``NotFound`` for each that has
        none, and ``missing`` lists the others. A key that comes twice is there once; ``str`` and ``bytes`` differ. It
        counts and asks for refreshes as ``find``, and raises for keys as ``get``.
        """

    def get_many(
        self,
        keys: Iterable[str | bytes],
        *,
        return_exceptions: bool = False,
        ctx: Any = None,
        timeout: float | None = None,
    ) -> dict[str | bytes, Any]:
        """Return the values of many keys, in their order, without those that are `NotFound`."""

    @overload
    def get(self, key: str | bytes, dest: None = None, *, ctx: Any = None, timeout: float | None = None) -> ByteView:
        """Return the value of ``key``, loading it if no cache of the ring has it (Go: ``Group.Get``)."""

    @overload
    def get(self, key: str | bytes, dest: Any, *, ctx: Any = None, timeout: float | None = None) -> None:
        """Fill ``dest``, a ``Sink``, with the value of ``key``."""

def with_own_get(subclass: type[T]) -> type[T]:
    """Decorate a subclass of ``GroupCore``, whose instances' ``get`` it becomes."""
