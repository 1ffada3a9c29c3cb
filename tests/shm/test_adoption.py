"""The next coordinator's arena is the one that a dead one has left."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from adopted import KEYS, Adopted
from arenas import Instance, churn, whole_value
from children import Child

import mpgroupcache
from mpgroupcache.shm._reader import lock_writer
from mpgroupcache.shm.ownership import Segment, open_instance


@pytest.fixture
def adopted(instance_path: str) -> Iterator[Adopted]:
    adopted = Adopted(instance_path)
    yield adopted
    adopted.opened.arena.sweep()
    assert adopted.opened.arena.check() == []
    adopted.instance.close()


def test_everything_survives(adopted: Adopted) -> None:
    adopted.put(*KEYS)
    adopted.put(b"hot", hot=True)
    before = [adopted.opened.arena.list_stats(which) for which in (0, 1)]
    committed = adopted.opened.arena.committed
    arena = adopted.next()
    assert arena.check() == []
    assert arena.taken_over == (len(KEYS) + 1, 0)
    assert [arena.list_stats(which) for which in (0, 1)] == before
    assert arena.committed == committed
    assert adopted.found(*KEYS, b"hot") == [*KEYS, b"hot"]
    # Workers go on with the same mapping, and with the next one's entries.
    assert adopted.lookup.copy(KEYS[7]) == whole_value(KEYS[7], 0, 500)
    adopted.put(b"new")
    assert adopted.lookup.copy(b"new") == whole_value(b"new", 0, 500)


def test_an_empty_arena(adopted: Adopted) -> None:
    arena = adopted.next()
    assert arena.taken_over == (0, 0)
    adopted.put(b"key")
    assert adopted.next().taken_over == (1, 0)


def test_the_order_of_use_survives_to_the_last_drain(adopted: Adopted) -> None:
    adopted.put(*KEYS[:100], size=2000)
    used = random.Random(1).sample(KEYS[:100], 50)
    for key in used:
        assert adopted.lookup.copy(key)
    adopted.instance.control.drain()
    arena = adopted.next()
    for i in range(10_000):
        if adopted.opened.evictions() >= 50:
            break
        arena.put(b"filler-%d" % i, bytes(2000))
    assert sorted(adopted.found(*KEYS[:100])) == sorted(used)


def test_views_stay_what_they_are(adopted: Adopted) -> None:
    """Of entries that are there, and of some that were evicted, replaced and removed before the coordinator died."""
    adopted.put(*KEYS[:200])
    views = {key: adopted.lookup.lookup(key) for key in KEYS[:40]}
    for key in KEYS[:10]:
        assert adopted.opened.arena.remove(key)
    for key in KEYS[10:20]:
        assert adopted.opened.arena.put(key, whole_value(key, 1, 600))
    arena = adopted.next()
    assert arena.check() == []
    assert arena.limbo_bytes > 0
    churn(adopted.opened)
    for key, view in views.items():
        assert view == whole_value(key, 0, 500)
    # And once more, with what is in limbo now as one block.
    arena = adopted.next()
    churn(adopted.opened)
    for key, view in views.items():
        assert view == whole_value(key, 0, 500)
    views.clear()
    del view
    arena.sweep()
    assert arena.limbo_bytes == 0
    assert arena.check() == []


def test_a_range_is_kept_until_its_last_view_is_gone(adopted: Adopted) -> None:
    adopted.put(*KEYS[:30])
    views = [adopted.lookup.lookup(key) for key in KEYS[:30]]
    for key in KEYS[:30]:
        assert adopted.opened.arena.remove(key)
    arena = adopted.next()
    assert arena.limbo_bytes > 30 * 500
    while len(views) > 1:
        del views[0]
        churn(adopted.opened)
        assert arena.limbo_bytes > 0
        assert views[-1] == whole_value(KEYS[29], 0, 500)
    views.clear()
    arena.sweep()
    assert arena.limbo_bytes == 0


def test_pins_of_a_dead_worker_hold_nothing(adopted: Adopted, child: Callable[..., Child]) -> None:
    from arenas import LookupWorker

    adopted.put(*KEYS[:10])
    worker = child(LookupWorker, *adopted.opened.address)
    worker.call("hold", *KEYS[:10])
    for key in KEYS[:10]:
        assert adopted.opened.arena.remove(key)
    worker.kill()
    assert adopted.next().limbo_bytes == 0


def test_growing_after_it(adopted: Adopted) -> None:
    """Index, slots and memory go on growing where they were."""
    adopted.put(*(b"small-%d" % i for i in range(300)), size=20)
    arena = adopted.next()
    more = [b"more-%d" % i for i in range(6000)]
    adopted.put(*more, size=40)
    assert arena.check() == []
    assert len(adopted.found(*more)) == len(more)
    assert adopted.next().taken_over[0] == adopted.opened.items()


def test_it_can_happen_again_and_again(adopted: Adopted) -> None:
    chance = random.Random(3)
    live: set[bytes] = set()
    for round_ in range(20):
        for _ in range(100):
            key = chance.choice(KEYS)
            adopted.put(key, size=chance.randrange(20, 4000))
            live.add(key)
            if chance.random() < 0.2:
                gone = chance.choice(sorted(live))
                adopted.opened.arena.remove(gone)
                live.discard(gone)
        items = adopted.opened.items()
        arena = adopted.next()
        assert (arena.check(), arena.taken_over) == ([], (items, 0)), round_


def test_groups_keep_their_numbers(instance_path: str) -> None:
    instance = Instance(instance_path)
    for i in range(3):
        instance.control.add_group(f"group {i}", i)
    instance.control.count_request(1)
    instance.control.close()
    instance.segment.close()
    instance.segment, instance.control = open_instance(instance.name)
    assert instance.control.groups() == [("group 0", 0), ("group 1", 1), ("group 2", 2)]
    assert instance.control.add_group("group 3", 0) == 3
    instance.close()


def test_the_lock_is_needed_to_adopt(instance_path: str) -> None:
    instance = Instance(instance_path)
    with pytest.raises(mpgroupcache.AlreadyRunning):
        open_instance(instance.name)
    other = Segment.attach(instance.segment.name)
    with pytest.raises(mpgroupcache.AlreadyRunning):
        lock_writer(other.fd)
    other.close()
    instance.close()
