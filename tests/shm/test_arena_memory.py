"""The memory of an arena: it grows under readers, and where the machine has no more of it the arena stays smaller."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any

import pytest
from arenas import Instance, Lookup, LookupWorker, OpenArena, whole_value
from children import Child
from small_memory import NoPrivateMount, mount_small, resize
from tools import missing
from workers import segments_of

from mpgroupcache.errors import AlreadyRunning, ArenaError
from mpgroupcache.shm.ownership import open_instance
from mpgroupcache.shm.segment import room

MakeArena = Callable[..., OpenArena]
StartChild = Callable[..., Child]


# ---- Growth


def test_an_index_grows_to_hold_what_is_put(arena: MakeArena) -> None:
    opened = arena(4 << 20)
    keys = [b"%d" % number for number in range(30_000)]
    for key in keys:
        assert opened.arena.put(key, key * 3)
    assert opened.items() == len(keys)
    assert opened.arena.check() == []
    lookup = Lookup(*opened.address)
    assert all(lookup.copy(key) == key * 3 for key in keys)


@pytest.mark.parametrize("small", [True, False])
def test_readers_in_the_middle_of_a_get_do_not_notice_growth_and_reuse(
    arena: MakeArena, child: StartChild, small: bool
) -> None:
    rng = random.Random(small)
    for _ in range(2):
        opened = arena(2 << 20 if small else 8 << 20)
        keys = [b"%d" % number for number in range(200)]
        version = 0

        def put(keys: list[bytes], opened: OpenArena = opened) -> None:
            nonlocal version
            for key in keys:
                version += 1
                opened.arena.put(key, whole_value(key, version, rng.randrange(40 if small else 4000)))

        put(keys)
        worker = child(LookupWorker, *opened.address)
        worker.call("hit", keys[0])
        worker.send("verify", keys, 1.5)
        while len(keys) < 30_000:
            worker.signal(signal.SIGSTOP)  # wherever it is
            grown = [b"%d" % number for number in range(len(keys), 2 * len(keys))]
            put(grown)
            put(rng.sample(keys, min(len(keys), 500)))
            keys += grown
            worker.signal(signal.SIGCONT)
            for _ in range(5):
                put(rng.sample(keys[:200], 100))
        gets, hits = worker.receive()
        assert gets > 100
        assert hits > 0
        worker.close()
        opened.arena.sweep()
        assert opened.arena.check() == []
        assert opened.arena.limbo_bytes == 0


# ---- Short of memory


class SmallMemory:
    """A coordinator and a worker in a small /dev/shm."""

    def __init__(self, size: int, socket_path: str) -> None:
        self.refused = ""
        self.socket_path = socket_path
        try:
            mount_small(size)
        except NoPrivateMount as error:
            self.refused = str(error)

    def why_not(self) -> str:
        return self.refused

    def open_instance(self) -> None:
        self.instance = Instance(self.socket_path)

    def open_without_memory(self) -> tuple[bool, int, int, list[str]]:
        """Whether the control segment is shared, what is used of /dev/shm, groups that it takes, and what is left."""
        instance = Instance(self.socket_path)
        with pytest.raises(AlreadyRunning):
            open_instance(instance.name)
        group = instance.control.add_group("group", 1 << 20)
        instance.control.count(group, 0)
        memory = room()
        assert memory is not None
        shared = instance.segment.memfd < 0
        instance.close()
        return shared, memory.size - memory.free, group, segments_of(self.socket_path)

    def error_of_an_arena(self) -> tuple[str, list[str]]:
        self.open_instance()
        with pytest.raises(ArenaError) as caught:
            OpenArena(self.instance, 1 << 20)
        return str(caught.value), segments_of(self.socket_path)

    def fill(self, budget: int, count: int, size: int, reserve: int = 0) -> dict[str, Any]:
        """Put far more than there is memory for, and read it all back."""
        self.opened = OpenArena(self.instance, budget, reserve=reserve)
        return self.fill_more(count, size)

    def fill_more(self, count: int, size: int) -> dict[str, Any]:
        opened = self.opened
        keys = [b"%d" % number for number in range(count)]
        cached = [opened.arena.put(key, whole_value(key, 1, size)) for key in keys]
        lookup = Lookup(*opened.address)
        read = [lookup.copy(key) for key in keys]
        assert all(
            value == whole_value(key, 1, size) for key, value in zip(keys, read, strict=True) if value is not None
        )
        return {
            "cached": sum(cached),
            "read": sum(value is not None for value in read),
            "live": opened.live_bytes(),
            "items": opened.items(),
            "short": opened.arena.short_of_memory,
            "faults": opened.arena.check(),
            "memory": opened.memory(),
            "room": room(),
        }

    def resize(self, size: int) -> None:
        resize(size)
        self.opened.arena.retry_memory()


@pytest.fixture
def small_memory(child: StartChild, instance_path: str) -> Callable[[int], Child]:
    def start(size: int) -> Child:
        process = child(SmallMemory, size, instance_path)
        if reason := process.call("why_not"):
            missing(f"no mounts of our own here: {reason}")
        return process

    return start


def test_where_memory_runs_out_the_arena_stays_smaller(small_memory: Callable[[int], Child]) -> None:
    process = small_memory(6 << 20)
    process.call("open_instance")
    result = process.call("fill", 64 << 20, 30_000, 1000)
    assert result["faults"] == []
    assert result["cached"] == 30_000
    assert result["short"]
    assert result["read"] == result["items"]
    assert result["live"] > 3 << 20  # of the 6: a control segment is below one
    assert result["memory"] <= 6 << 20
    process.call("resize", 20 << 20)
    result = process.call("fill_more", 30_000, 1000)
    assert result["faults"] == []
    assert result["live"] > 15 << 20


def test_a_reserve_is_left(small_memory: Callable[[int], Child]) -> None:
    """To the last step that does not touch it; and where it is more than there is, an arena is there, and empty."""
    process = small_memory(8 << 20)
    process.call("open_instance")
    reserve = 3 << 20
    result = process.call("fill", 64 << 20, 30_000, 1000, reserve)
    assert result["faults"] == []
    assert result["short"]
    assert reserve <= result["room"].free < reserve + (64 << 10)
    process.call("resize", 12 << 20)
    result = process.call("fill_more", 30_000, 1000)
    assert reserve <= result["room"].free < reserve + (64 << 10)
    result = process.call("fill", 64 << 20, 100, 1000, 4 << 20)
    assert (result["cached"], result["memory"], result["short"]) == (0, 8 << 10, True)


def test_memory_without_a_bound_has_no_reserve_to_leave(small_memory: Callable[[int], Child]) -> None:
    process = small_memory(0)
    process.call("open_instance")
    result = process.call("fill", 64 << 20, 5000, 1000, 1 << 60)
    assert (result["cached"], result["items"], result["short"], result["room"]) == (5000, 5000, False, None)


def test_where_memory_runs_out_large_values_are_refused_or_make_room(small_memory: Callable[[int], Child]) -> None:
    process = small_memory(8 << 20)
    process.call("open_instance")
    result = process.call("fill", 256 << 20, 3, 32 << 20)
    assert (result["cached"], result["items"], result["faults"]) == (0, 0, [])
    result = process.call("fill_more", 100, 1 << 20)
    assert result["faults"] == []
    assert result["cached"] == 100
    assert result["live"] >= 4 << 20
    result = process.call("fill_more", 20_000, 100)
    assert result["faults"] == []
    assert result["cached"] == 20_000


def test_where_there_is_no_memory_at_all_the_control_segment_is_its_makers(
    small_memory: Callable[[int], Child],
) -> None:
    assert small_memory(64 << 10).call("open_without_memory") == (False, 0, 0, [])


def test_where_there_is_none_for_an_arena_opening_that_says_so(small_memory: Callable[[int], Child]) -> None:
    message, left = small_memory(1084 << 10).call("error_of_an_arena")
    assert "no shared memory for an arena of 1048576 bytes: No space left on device; enlarge /dev/shm" in message
    assert len(left) == 1
