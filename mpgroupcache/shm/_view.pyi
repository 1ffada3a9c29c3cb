"""Types of ``_view.pyx``, which has the reasons."""

import io
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, SupportsIndex, final, overload

from typing_extensions import Buffer

from mpgroupcache.shm._reader import Mapping
from mpgroupcache.shm.viewio import Chunks

def loaded_view(value: str | Buffer | Mapping, version: int | None, fresh: float | None) -> ByteView:
    """A view of what was not read from the arena: its ``version`` (None: it has none), and for how many seconds it is
    ``fresh`` (None: for ever; less than 0: it is stale since then)."""

def dead_in(view: ByteView) -> float | None:
    """Seconds until the value is dead, or 0; None: it never is.

    Of what was not read from the arena nobody here knows that: it is taken for dead when it is stale.
    """

@final
class ByteView:
    """An immutable view of a cached value (Go: ``ByteView``).

    It shows the bytes where they lie, which are kept unchanged for as long as this view, a slice or a ``memoryview`` of
    it lives. Equal to equal bytes, text and views, so not hashable. Use after ``release`` is a ``ValueError``.
    What it has of ``bytes`` takes what that takes, no text, and does not copy the value.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, value: str | Buffer | Mapping = b"") -> None:
        """A view of ``bytes`` (kept), ``str`` (as UTF-8) any bytes-like object (copied) or a ``Mapping``."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> ByteView: ...
    def __iter__(self) -> Iterator[int]: ...
    def __bytes__(self) -> bytes: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __contains__(self, item: SupportsIndex | Buffer, /) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __enter__(self) -> ByteView: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def __reduce__(self) -> tuple[type[ByteView], tuple[bytes]]: ...
    @property
    def version(self) -> int | None:
        """The number of this value: no other one of its group ever has it (Go: no counterpart). None: it has none.

        A value has one that a coordinator has taken. Where it is a copy of what another host owns, it is that host's.
        """

    @property
    def ttl(self) -> float | None:
        """Seconds until the value is no longer fresh (Go: no counterpart). Negative: it is stale. None: that never is.

        Counted from now; and of a value in the arena it is read there, so that a ``touch`` shows.
        """

    def release(self) -> None:
        """Give up the value now. Slices and memoryviews stay good."""

    def find(
        self, sub: SupportsIndex | Buffer, start: SupportsIndex | None = ..., end: SupportsIndex | None = ..., /
    ) -> int:
        """Where ``sub``, bytes or the number of a byte, is first, or -1 (``bytes.find``)."""

    def index(
        self, sub: SupportsIndex | Buffer, start: SupportsIndex | None = ..., end: SupportsIndex | None = ..., /
    ) -> int:
        """Where ``sub`` is first, or ``ValueError`` (``bytes.index``)."""

    def count(
        self, sub: SupportsIndex | Buffer, start: SupportsIndex | None = ..., end: SupportsIndex | None = ..., /
    ) -> int:
        """How often ``sub`` is there, without overlaps (``bytes.count``)."""

    def startswith(
        self,
        prefix: Buffer | tuple[Buffer, ...],
        start: SupportsIndex | None = ...,
        end: SupportsIndex | None = ...,
        /,
    ) -> bool:
        """Whether the value begins with ``prefix``, or with one of a tuple (``bytes.startswith``)."""

    def endswith(
        self,
        suffix: Buffer | tuple[Buffer, ...],
        start: SupportsIndex | None = ...,
        end: SupportsIndex | None = ...,
        /,
    ) -> bool:
        """Whether the value ends with ``suffix``, or with one of a tuple (``bytes.endswith``)."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The value as text (``bytes.decode``)."""

    def hex(self, sep: str | bytes = ..., bytes_per_sep: SupportsIndex = ...) -> str:
        """Two digits for each byte (``bytes.hex``)."""

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
