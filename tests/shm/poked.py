"""What the coordinator says to readers of an entry, of the arena and of time, written over where it lies in memory.

And a reader that notes what it was asked.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from arenas import Instance, Lookup, OpenArena

from mpgroupcache.counters import Counter
from mpgroupcache.shm._group import with_own_get

SECOND = 10**9  # ns
FOREVER = 2**64 - 1
AGED, ABSENT, COPY = 2, 4, 8  # flags of a block

CLOCK_OFFSET = 64  # in the control segment
GROUPS_OFFSET, GROUP_ROW, CHANGES = 4096, 352, 16
VERSION, LENGTHS, KEY = 8, 24, 32  # in a block


@dataclass
class Block:
    """A published block: where it lies, and the lengths and flags that its writer gave it."""

    offset: int
    ages: int  # where they lie
    was: int


class Poked:
    """An arena's memory. ``undo`` comes before the writer looks at what was written over."""

    def __init__(self, instance: Instance, opened: OpenArena) -> None:
        self.control, self.memory = instance.segment.buffer, opened.segment.buffer
        self.opened = opened
        self.blocks: dict[bytes, Block] = {}

    def now(self) -> int:
        """The instance's time, in ns."""
        (offset,) = struct.unpack_from("<Q", self.control, CLOCK_OFFSET)
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(offset)

    def advance(self, seconds: float) -> None:
        (offset,) = struct.unpack_from("<Q", self.control, CLOCK_OFFSET)
        struct.pack_into("<Q", self.control, CLOCK_OFFSET, offset + round(seconds * SECOND))

    def put(
        self,
        key: bytes,
        value: bytes,
        *,
        fresh: float | None = None,
        dead: float | None = None,
        refresh: float = -1,
        absent: bool = False,
        copy: int | None = None,
        hot: bool = False,
    ) -> None:
        """Publish a value. Times are seconds from now; None: for ever. ``copy``: its owner's version."""
        self.undo(key)
        aged = fresh is not None or dead is not None
        flags = AGED * aged | ABSENT * absent | COPY * (copy is not None)
        between = bytes(24 * aged) + (b"" if copy is None else struct.pack("<Q", copy))
        assert self.opened.arena.put(key, between + value, hot=hot)
        lengths = len(between + value) | len(key) << 40 | hot << 57
        offset = bytes(self.memory).find(struct.pack("<Q", lengths) + key) - LENGTHS
        assert offset > 0
        self.blocks[key] = Block(offset, offset + (KEY + len(key) + 7) // 8 * 8, lengths)
        struct.pack_into("<Q", self.memory, offset + LENGTHS, lengths - len(between) | flags << 57)
        if aged:
            self.set_ages(key, fresh, dead, refresh)

    def set_ages(self, key: bytes, fresh: float | None, dead: float | None, refresh: float = -1) -> None:
        now = self.now()
        ages = [FOREVER if age is None else now + round(age * SECOND) for age in (fresh, dead, refresh)]
        struct.pack_into("<3Q", self.memory, self.blocks[key].ages, *ages)

    def version(self, key: bytes) -> int:
        (version,) = struct.unpack_from("<Q", self.memory, self.blocks[key].offset + VERSION)
        return int(version)

    def clear(self) -> None:
        """End this era, and all entries with it."""
        self.undo()
        self.opened.arena.clear()

    def raise_changes(self) -> None:
        place = GROUPS_OFFSET + GROUP_ROW * self.opened.group + CHANGES
        (changes,) = struct.unpack_from("<Q", self.control, place)
        struct.pack_into("<Q", self.control, place, changes + 1)

    def undo(self, *keys: bytes) -> None:
        """Give the headers of these keys' blocks back, or of all."""
        for key in keys or list(self.blocks):
            if (block := self.blocks.pop(key, None)) is not None:
                struct.pack_into("<Q", self.memory, block.offset + LENGTHS, block.was)


@with_own_get
class NotingLookup(Lookup):
    """A worker's half, which notes of what it was to ask for a refresh."""

    def __init__(self, control_path: str, group: int, arena_path: str | None) -> None:
        super().__init__(control_path, group, arena_path)
        self.stale: list[str | bytes] = []
        self.versions: list[int] = []
        self.trouble: BaseException | None = None

    def _stale(self, key: str | bytes, version: int) -> None:
        self.stale.append(key)
        self.versions.append(version)
        if self.trouble is not None:
            raise self.trouble

    def said(self) -> list[str | bytes]:
        """For which keys it was to ask since it was looked at last."""
        said, self.stale = self.stale, []
        return said

    def counted(self) -> dict[str, int]:
        return {Counter(i).name: n for i, n in enumerate(self.counters()) if n}
