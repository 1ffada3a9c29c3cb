"""What a change asks for, and how it is divided into frames. Data alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from mpgroupcache.ipc.fields import INLINE_BYTES, MAX_KEYS, What

BATCH_BYTES: Final = 128 << 10  # of keys and values in a frame


class Asked(Struct, frozen=True):
    """A change, as it is asked for."""

    what: What
    keys: tuple[bytes, ...] = ()
    values: tuple[bytes, ...] = ()
    ttl: float | None = None
    stale: float | None = None
    version: int | None = None
    amount: int = 0
    initial: int | None = None

    @property
    def repeats(self) -> bool:
        """Whether it may be done twice: then it is, where its answer was lost."""
        return self.what in ("remove", "clear") and self.version is None

    def parts(self) -> Iterator[Asked]:
        """What fits into a frame each: a large value has one of its own."""
        if len(self.keys) <= 1:
            yield self
            return
        begin = size = 0
        for i, key in enumerate(self.keys):
            value = len(self.values[i]) if self.values else 0
            if i > begin and (size + len(key) + value > BATCH_BYTES or i - begin == MAX_KEYS or value > INLINE_BYTES):
                yield self._part(begin, i)
                begin, size = i, 0
            size += len(key) + value
            if value > INLINE_BYTES:
                yield self._part(begin, i + 1)
                begin, size = i + 1, 0
        if begin < len(self.keys):
            yield self._part(begin, len(self.keys))

    def _part(self, begin: int, end: int) -> Asked:
        values = self.values[begin:end]
        return Asked(self.what, self.keys[begin:end], values, self.ttl, self.stale, self.version, self.amount)
