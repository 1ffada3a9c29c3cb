"""A cached value as a file and as an iterator of chunks. Both keep the value until they are closed."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from mpgroupcache.shm._view import ByteView


class ViewReader(io.RawIOBase):
    """A seekable binary file object over a view (Go: ``ByteView.Reader``); made by ``view.reader()``.

    It owns the view that it is given: closing the file releases it. What was read is the caller's.
    """

    def __init__(self, view: ByteView) -> None:
        self._view = view
        self._position = 0

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Copy as much as fits into ``buffer``; 0 at the end."""
        self._check_open()
        count = self._view.read_at(buffer, self._position)
        self._position += count
        return count

    def readall(self) -> bytes:
        """What is left, in one copy; the base class would make many."""
        self._check_open()
        position = min(self._position, len(self._view))
        self._position = max(self._position, len(self._view))
        return bytes(self._view[position:])

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position, which may lie beyond the end, and return it."""
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._view)}
        if whence not in bases:
            raise ValueError(f"whence: got {whence}, expected os.SEEK_SET, SEEK_CUR or SEEK_END")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"seek: got position {position}, expected 0 or more")
        self._position = position
        return position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def close(self) -> None:
        """Release the value."""
        if not self.closed:
            self._view.release()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file over a ByteView is closed; call reader() again")


class Chunks:
    """An iterator over copies of a view's chunks; made by ``view.chunks()``."""

    def __init__(self, view: ByteView, size: int) -> None:
        self._view = view
        self._size = size
        self._position = 0
        self._left = len(view)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            self.close()
            raise StopIteration
        chunk = bytes(self._view[self._position : self._position + self._size])
        self._position += len(chunk)
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        """Release the value; the iterator is at its end then."""
        self._left = 0
        self._view.release()


def iter_chunks(view: ByteView, size: int) -> Chunks:
    """Return an iterator of ``bytes`` of at most ``size``, which releases ``view`` when it is exhausted or closed."""
    if size < 1:
        raise ValueError(f"size: got {size}, expected 1 or more bytes")
    return Chunks(view, size)
