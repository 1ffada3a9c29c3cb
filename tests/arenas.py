"""Instances, arenas and lookups for the tests of ``mpgroupcache.shm``; the test itself is the coordinator."""

from __future__ import annotations

import os
import random
import struct
import time
import zlib

from mpgroupcache.shm._group import GroupCore
from mpgroupcache.shm._reader import Reader
from mpgroupcache.shm._view import ByteView
from mpgroupcache.shm._writer import Arena, arena_size
from mpgroupcache.shm.ownership import Segment, open_instance
from mpgroupcache.shm.segment import arena_name, instance_name, segment_path

SEED = 0x5EED


def whole_value(key: bytes, version: int, size: int) -> bytes:
    """A value that says whose it is, and whether all of it is there: at least 12 bytes and the key."""
    body = key + struct.pack("<Q", version) + bytes(random.Random(version).randbytes(max(size - len(key) - 12, 0)))
    return body + struct.pack("<L", zlib.crc32(body))


def is_whole(key: bytes, value: memoryview | bytes) -> bool:
    with memoryview(value) as view:
        (crc,) = struct.unpack_from("<L", view, len(view) - 4)
        return bytes(view[: len(key)]) == key and zlib.crc32(view[:-4]) == crc


class Instance:
    """An instance whose coordinator is this process."""

    def __init__(self, socket_path: str) -> None:
        self.name = instance_name(socket_path)
        self.segment, self.control = open_instance(self.name)
        self.arenas: list[OpenArena] = []

    @property
    def path(self) -> str:
        return segment_path(self.segment.name)

    def close(self) -> None:
        for arena in self.arenas:
            arena.close()
        self.control.retire()
        self.control.close()
        self.segment.unlink()
        self.segment.close()


class OpenArena:
    """An arena, with what it takes to attach it."""

    def __init__(
        self,
        instance: Instance,
        budget: int,
        max_entry: int | None = None,
        seed: int = SEED,
        checksums: bool = False,
        reserve: int = 0,
    ) -> None:
        self.control_path = instance.path
        self.group = instance.control.add_group(f"group-{len(instance.arenas)}", budget)
        self.segment = Segment(arena_name(instance.name, self.group, 0), arena_size(budget))
        try:
            self.arena = Arena(
                instance.control,
                self.segment.buffer,
                self.segment.fd,
                group=self.group,
                incarnation=0,
                budget=budget,
                max_entry=budget // 4 if max_entry is None else max_entry,
                seed=seed,
                checksums=checksums,
                reserve=reserve,
            )
        except BaseException:
            self.segment.unlink()
            self.segment.close()
            raise
        instance.arenas.append(self)

    @property
    def path(self) -> str:
        return segment_path(self.segment.name)

    @property
    def address(self) -> tuple[str, int, str]:
        """What ``Lookup`` takes, here or in another process."""
        return self.control_path, self.group, self.path

    def get(self, key: bytes) -> bytes | None:
        """The coordinator's own look, which is a touch."""
        found = self.arena.find(key)
        return None if found is None else bytes(found.value)

    def items(self) -> int:
        return self.arena.list_stats(0)[1] + self.arena.list_stats(1)[1]

    def live_bytes(self) -> int:
        return self.arena.list_stats(0)[0] + self.arena.list_stats(1)[0]

    def evictions(self) -> int:
        return self.arena.list_stats(0)[2] + self.arena.list_stats(1)[2]

    def memory(self) -> int:
        """Bytes that the segment takes from the machine."""
        return os.stat(self.segment.fd).st_blocks * 512

    def close(self) -> None:
        self.arena.close()
        self.segment.unlink()
        self.segment.close()


class Lookup(GroupCore):
    """A worker's half of a group, without a loader: a miss is None."""

    def __init__(self, control_path: str, group: int, arena_path: str | None) -> None:
        self.reader = Reader(control_path)
        self.attach(self.reader, group, arena_path)

    def _load(self, key: str | bytes, ctx: object, timeout: float | None) -> None:
        return None

    def copy(self, key: str | bytes) -> bytes | None:
        """The value, without holding it."""
        view = self.lookup(key)
        return None if view is None else bytes(view)


def hold(lookup: Lookup, key: bytes) -> ByteView:
    """A view of a value that is cached."""
    view = lookup.lookup(key)
    assert view is not None
    return view


def churn(opened: OpenArena) -> None:
    """Overwrite every byte that is free for it."""
    filler = b"\xee" * 1000
    for _ in range(3):
        for number in range(opened.arena.budget // 1000):
            opened.arena.put(b"filler-%d" % number, filler)
    for number in range(opened.arena.budget // 1000):
        opened.arena.remove(b"filler-%d" % number)


class LookupWorker:
    """A worker that looks keys up on command: ``child(LookupWorker, *arena.address)``."""

    def __init__(self, control_path: str, group: int, arena_path: str | None) -> None:
        self.group = Lookup(control_path, group, arena_path)
        self.held: dict[bytes, ByteView] = {}

    def region(self) -> tuple[int, int]:
        """Number and generation of the region."""
        return self.group.reader.number, self.group.reader.generation

    def live_pins(self) -> int:
        return self.group.reader.live_pins

    def hit(self, *keys: bytes) -> list[bytes | None]:
        """Look keys up in this order, and hold none."""
        return [self.group.copy(key) for key in keys]

    def hold(self, *keys: bytes) -> list[bytes | None]:
        """Look keys up, and hold their views."""
        for key in keys:
            if (view := self.group.lookup(key)) is not None:
                self.held[key] = view
        return self.values(*keys)

    def values(self, *keys: bytes) -> list[bytes | None]:
        """What held views show now."""
        return [bytes(self.held[key]) if key in self.held else None for key in keys]

    def release(self, *keys: bytes) -> None:
        for key in keys:
            del self.held[key]

    def count(self, counter: int, n: int) -> None:
        self.group.count(counter, n)

    def verify(self, keys: list[bytes], seconds: float, seed: int = 0) -> tuple[int, int]:
        """Get keys at random, whose values are ``whole_value``s. Returns how many gets and how many hits there were."""
        rng = random.Random(seed)
        gets = hits = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for key in rng.sample(keys, min(len(keys), 100)):
                gets += 1
                if (view := self.group.lookup(key)) is not None:
                    hits += 1
                    assert is_whole(key, view), f"{key!r}: {view!r}"
        return gets, hits
