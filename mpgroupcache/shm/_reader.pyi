"""Types of ``_reader.pyx``, which has the reasons."""

import io
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, SupportsIndex, final, overload

from typing_extensions import Buffer

from mpgroupcache.viewio import Chunks

PINS: int
"""Pins of a region: views that a process may hold, and one for copying."""

COUNTERS: int
"""Counters of a group, in the order of ``struct mgc_counters``."""

MAX_GROUPS: int
"""Groups of an instance."""

LAYOUT_VERSION: int
"""Coordinator and workers must have the same."""

CONTROL_SIZE: int
"""Bytes of a control segment's address range."""

def forked() -> bool:
    """Whether this process is the child of a fork that ran no hooks; ``renew_epoch`` ends that."""

def renew_epoch() -> None:
    """Make every inherited reader unusable for lookups: called in a child, before it makes its own."""

@final
class Mapping:
    """A file mapped read-only; unmapped with its last reference. No descriptor is kept."""

    @property
    def size(self) -> int: ...
    def __new__(cls, fd: int, size: int) -> Mapping:
        """Map the first ``size`` bytes of ``fd``. Raises ``OSError``."""

    def view(self) -> ByteView:
        """A ``ByteView`` of the whole file, which must never change or shrink."""

@final
class Reader:
    """This process's place in one instance: the control segment, a region of its own, and the arenas it attached."""

    def __new__(cls, path: str) -> Reader:
        """Attach the control segment at ``path``, and claim a region if one is free.

        Raises ``ArenaError`` for a segment that is retired or of another version, ``OSError`` where there is none.
        """

    @property
    def number(self) -> int:
        """Of the region; -1: none."""

    @property
    def generation(self) -> int:
        """The region's count of claims, which tells two owners of one region apart; 0 without a region."""

    @property
    def live_pins(self) -> int:
        """Pins that views of this process hold."""

    @property
    def usable(self) -> bool:
        """Whether this process may look up through this reader."""

    @property
    def retired(self) -> bool:
        """Whether the coordinator has ended this instance."""

    def reads(self, path: str) -> bool:
        """Whether ``path`` is the instance that this reader reads, and it may look up in this process."""

    def counters(self, group: int) -> tuple[int, ...]:
        """The host's counts of a group, in the order of ``struct mgc_counters``."""

    def before_fork(self) -> None:
        """Claim a region for the child and copy the live pins into it. Until ``after_fork_*`` no pin is cleared."""

    def after_fork_in_parent(self) -> None:
        """Let go of the child's region, and clear the pins that were given back meanwhile."""

    def after_fork_in_child(self) -> None:
        """Take over the copied pins; ``renew_epoch`` comes first."""

@final
class ByteView:
    """An immutable view of a cached value (Go: ``ByteView``).

    It shows the bytes where they lie, which are kept unchanged for as long as this view, a slice or a ``memoryview`` of
    it lives. Equal to equal bytes, text and views, so not hashable. Use after ``release`` is a ``ValueError``.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, value: str | Buffer = b"") -> None:
        """A view of ``bytes`` (kept), ``str`` (as UTF-8) or any bytes-like object (copied)."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> ByteView: ...
    def __iter__(self) -> Iterator[int]: ...
    def __bytes__(self) -> bytes: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __enter__(self) -> ByteView: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def __reduce__(self) -> tuple[type[ByteView], tuple[bytes]]: ...
    def release(self) -> None:
        """Give up the value now. Slices and memoryviews stay good."""

    def copy_to(self, buffer: Buffer) -> int:
        """Copy into a writable buffer as much as fits, and return the number of bytes (Go: ``Copy``)."""

    def read_at(self, buffer: Buffer, offset: int) -> int:
        """Copy from ``offset`` into a writable buffer as much as fits, and return the number of bytes (Go: ``ReadAt``).

        At or past the end that is 0, where Go returns ``io.EOF``. ``ValueError`` for a negative offset.
        """

    def write_to(self, file: io.RawIOBase | io.BufferedIOBase | Any) -> int:
        """Write the whole value to a binary file object, and return the number of bytes (Go: ``WriteTo``)."""

    def reader(self) -> io.RawIOBase:
        """A seekable binary file object over the value (Go: ``Reader``). It keeps the value until it is closed."""

    def chunks(self, size: int = 65536) -> Chunks:
        """An iterator of ``bytes`` of at most ``size``, which keeps the value until it is exhausted or closed."""

class GroupCore:
    """What of ``Group`` is native: ``get`` up to the hit. The subclass gives ``_load``, which runs on every miss."""

    def attach(self, reader: Reader, group: int, arena_path: str | None) -> None:
        """Look up through ``reader`` from now on; ``arena_path`` is None for a group without a cache.

        Raises ``ArenaError`` for a segment that is retired, of another group, or of another version, and ``OSError``
        where there is none; then the group stays attached as it was.
        """

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

class SharedCounter:
    """A 64-bit counter in a page that children inherit: threads and processes add to it atomically."""

    def add(self, n: int) -> None:
        """Add ``n``, which may be negative; wraps around."""

    def get(self) -> int:
        """The sum so far."""
