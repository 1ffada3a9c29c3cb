"""Counters: those of all workers, living and dead, each counted once."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest
from arenas import Instance, Lookup, LookupWorker, OpenArena
from children import Child

from mpgroupcache.shm import _reader
from mpgroupcache.shm._group import GroupCore
from mpgroupcache.shm._reader import COUNTERS, MAX_GROUPS, Reader

MakeArena = Callable[..., OpenArena]
StartChild = Callable[..., Child]

REGIONS = 16  # of a new instance
REGION_COUNT = 32  # where the control segment has that number


def test_hits_and_counts_are_the_hosts(arena: MakeArena, instance: Instance, child: StartChild) -> None:
    opened, other = arena(1000), arena(1000)
    opened.arena.put(b"main", b"value")
    opened.arena.put(b"hot", b"value", hot=True)
    workers = [child(LookupWorker, *opened.address) for _ in range(2)]
    here = Lookup(*opened.address)
    for worker in workers:
        worker.call("hit", b"main", b"main", b"hot", b"none")
        worker.call("count", 2, 7)
    instance.control.count(opened.group, 4, 3)
    expected = (4, 2, 14, 0, 3, *[0] * (COUNTERS - 5))
    assert here.counters() == expected
    assert Lookup(*other.address).counters() == (0,) * COUNTERS
    workers[0].kill()
    assert here.counters() == expected
    assert instance.control.reap() == 2  # with that of the other group's look
    assert here.counters() == expected
    heir = child(LookupWorker, *opened.address)
    heir.call("hit", b"main")
    assert here.counters() == (5, *expected[1:])
    assert here.list_stats(0) == opened.arena.list_stats(0)
    for wrong in (COUNTERS, 1 << 31):
        with pytest.raises(IndexError):
            here.count(wrong)
        with pytest.raises(IndexError):
            instance.control.count(opened.group, wrong)
    with pytest.raises(IndexError):
        here.reader.counters(MAX_GROUPS)


def test_a_number_of_regions_that_cannot_be_is_not_believed(arena: MakeArena, instance: Instance) -> None:
    """Any worker can write it; what lies beyond the segment nobody may read."""
    opened = arena(1000)
    here = Lookup(*opened.address)
    here.count(1, 7)
    before = here.counters()
    struct.pack_into("<I", instance.segment.buffer, REGION_COUNT, 1_000_000)
    assert here.counters() == before
    assert Lookup(*opened.address).counters() == before
    struct.pack_into("<I", instance.segment.buffer, REGION_COUNT, REGIONS)


class Poller(LookupWorker):
    def poll(self, rounds: int, hits_of_each: int) -> int:
        """Until all of them are counted; never may the sum go back, or count a dead worker twice."""
        last = 0
        while last < rounds * hits_of_each:
            now = self.group.counters()[0]
            assert last <= now <= rounds * hits_of_each
            last = now
        return last


def test_a_sum_never_misses_or_doubles_a_dead_worker(arena: MakeArena, instance: Instance, child: StartChild) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    rounds, hits = 60, 50
    poller = child(Poller, *opened.address)
    poller.send("poll", rounds, hits)
    for _ in range(rounds):
        lookup = Lookup(*opened.address)
        for _ in range(hits):
            lookup.copy(b"key")
        del lookup
        assert instance.control.reap() == 1
    assert poller.receive() == rounds * hits


def test_what_a_parent_counted_is_not_the_childs_to_tell(arena: MakeArena, child: StartChild) -> None:
    opened = arena(1000)
    worker = child(Unattached, *opened.address)
    assert worker.call("run") == [10, 20]
    assert Lookup(*opened.address).counters()[2] == 20


class Unattached:
    """Counts before it forks and attaches, as a preloading master does."""

    def __init__(self, control_path: str, group: int, arena_path: str) -> None:
        self.address = control_path, group, arena_path

    def run(self) -> list[int]:
        group = GroupCore()
        group.count(2, 10)
        seen = [group.counters()[2]]
        reader = Reader(self.address[0])
        os.register_at_fork(after_in_child=_reader.renew_epoch)
        pid = os.fork()
        if pid == 0:
            group.count(2, 10)
            group.attach(Reader(self.address[0]), *self.address[1:])
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        group.attach(reader, *self.address[1:])
        return [*seen, group.counters()[2]]
