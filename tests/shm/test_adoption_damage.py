"""What a dead coordinator has left may be damaged, by whatever: what is not sound is dropped, and never served."""

from __future__ import annotations

import os
import random
import struct

import pytest
from adopted import BUDGET, KEYS, Adopted
from arenas import Instance, OpenArena, is_whole, whole_value
from workers import segments_of

from mpgroupcache.errors import ArenaError
from mpgroupcache.shm._writer import Arena
from mpgroupcache.shm.ownership import Segment, open_instance

# Where in the arena's header, and what stands there: nothing of such a segment can be used.
HEADER_DAMAGE = {
    "magic": (0, "<Q", 7),
    "version": (8, "<I", 99),
    "state": (12, "<I", 2),
    "boot": (16, "<Q", 7),
    "size": (40, "<Q", 1 << 20),
    "budget": (48, "<Q", 1 << 40),
    "slots": (56, "<Q", 1 << 12 | 8),
    "index": (64, "<Q", 0),
    "group": (80, "<I", 5),
    "descriptor": (128, "<Q", 0xFFFF_FFFF_FFFF),
    "a retired index": (128, "<Q", 0),
    "end of entries": (136, "<Q", (1 << 64) - 4096),
    "an end between pages": (136, "<Q", 12345),
}


@pytest.mark.parametrize("damage", HEADER_DAMAGE.values(), ids=list(HEADER_DAMAGE))
def test_a_damaged_header_is_refused(instance_path: str, damage: tuple[int, str, int]) -> None:
    adopted = Adopted(instance_path)
    adopted.put(*KEYS[:10])
    offset, form, value = damage
    struct.pack_into(form, adopted.opened.segment.buffer, offset, value)
    name = adopted.opened.segment.name
    adopted.opened.arena.close()
    adopted.opened.segment.close()
    segment = Segment.attach(name)
    with pytest.raises(ArenaError, match="cannot be taken over"):
        Arena(adopted.instance.control, segment.buffer, segment.fd, group=adopted.opened.group, adopt=True)
    adopted.instance.arenas.clear()
    segment.unlink()
    segment.close()
    adopted.instance.close()


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_is_dropped_and_never_served(instance_path: str, seed: int) -> None:
    """Random words of what is committed are overwritten. Bytes of values are looked at where checksums are on."""
    chance = random.Random(seed)
    checksums = seed % 2 == 1
    adopted = Adopted(instance_path, 256 << 10, checksums)
    keys = KEYS[:300]
    adopted.put(*keys)
    holding = [adopted.lookup.lookup(key) for key in keys[:5]]
    for key in keys[:3]:
        adopted.opened.arena.remove(key)
    memory, fd = adopted.opened.segment.buffer, adopted.opened.segment.fd
    ranges = []
    position = 0
    while True:  # what holds memory
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((max(start, 64), position))
    for _ in range(chance.choice([1, 10, 300])):
        start, end = chance.choice(ranges)
        at = chance.randrange(start, end - 8) & ~7
        if 64 <= at < 192:
            continue  # the header has its own test
        value = chance.choice([0, chance.getrandbits(64), chance.getrandbits(20), (1 << 64) - 1])
        struct.pack_into("<Q", memory, at, value)
    try:
        arena = adopted.next()
    except ArenaError:
        adopted.opened.arena.close()
    else:
        assert arena.check() == []
        for key in keys:
            for got in (adopted.opened.get(key), adopted.lookup.copy(key)):
                assert got is None or len(got) == 500
                assert got is None or not checksums or is_whole(key, got)
        for i in range(300):
            arena.put(b"after-%d" % i, bytes(700))
        assert arena.check() == []
    holding.clear()
    adopted.instance.close()


def test_a_damaged_value_is_dropped_where_checksums_are_on(instance_path: str) -> None:
    adopted = Adopted(instance_path, checksums=True)
    adopted.put(*KEYS[:10])
    at = bytes(adopted.opened.segment.buffer).index(whole_value(KEYS[3], 0, 500))
    adopted.opened.segment.buffer[at + 499] ^= 1
    arena = adopted.next()
    assert arena.taken_over == (9, 1)
    assert adopted.found(*KEYS[:10]) == KEYS[:3] + KEYS[4:10]
    assert arena.check() == []
    # Without them nobody would know: an arena is only taken over by a coordinator that has the same.
    adopted.checksums = False
    with pytest.raises(ArenaError, match="with other --checksums"):
        adopted.next()
    adopted.opened.arena.close()
    adopted.instance.close()


@pytest.mark.parametrize(
    "damage",
    [(0, "<Q", 7), (8, "<I", 99), (12, "<I", 2), (16, "<Q", 7), (32, "<I", 0), (32, "<I", 4097), (36, "<I", 999)],
)
def test_a_control_segment_that_is_of_no_use(instance_path: str, damage: tuple[int, str, int]) -> None:
    instance = Instance(instance_path)
    OpenArena(instance, BUDGET)
    offset, form, value = damage
    struct.pack_into(form, instance.segment.buffer, offset, value)
    for arena in instance.arenas:
        arena.arena.close()
        arena.segment.close()
    instance.control.close()
    instance.segment.close()
    segment, control = open_instance(instance.name)
    assert control.groups() == []
    assert len(segments_of(instance_path)) == 1
    control.close()
    segment.unlink()
    segment.close()


def scribble(memory: memoryview, chance: random.Random, start: int, end: int, times: int) -> None:
    """Overwrite random words with what might do harm."""
    for _ in range(times):
        at = chance.randrange(start, end) & ~7
        value = chance.choice([0, 1, chance.getrandbits(64), chance.getrandbits(36), 1 << 63, (1 << 64) - 1])
        struct.pack_into("<Q", memory, at, value)


# What the layout's table says.
ROWS, TOTALS, REGIONS, REGION_STRIDE = 4096, 4096 + 256 * 320, 2 << 16, 1 << 16


@pytest.mark.parametrize("seed", range(30))
def test_a_control_segment_with_any_damage(instance_path: str, seed: int) -> None:
    """It is taken over or begun anew; a name that cannot be read is a group that nobody asks for."""
    chance = random.Random(seed)
    instance = Instance(instance_path)
    for name in ("one", "two", "three"):
        instance.control.add_group(name, 1 << 20)
    end = REGIONS + 16 * REGION_STRIDE
    start, end = chance.choice([(0, 64), (ROWS, ROWS + 4 * 320), (TOTALS, REGIONS), (REGIONS, end), (0, end)])
    scribble(instance.segment.buffer, chance, start, end, chance.choice([1, 20, 2000]))
    instance.control.close()
    instance.segment.close()
    instance.segment, instance.control = open_instance(instance.name)
    instance.control.reap()
    instance.control.spare_regions(8)
    for name, budget in instance.control.groups():
        assert name is None or isinstance(name, str)
        assert budget >= 0
    instance.control.add_group("four", 1 << 20)
    instance.close()


def test_counts_in_a_control_segment_in_use_may_be_anything(instance_path: str) -> None:
    """1. The coordinator has taken it over. 2. A worker writes how many regions and groups there are. 3. It goes on."""
    adopted = Adopted(instance_path)
    control = adopted.instance.control
    struct.pack_into("<II", adopted.instance.segment.buffer, 32, 0xFFFFFFFF, 0xFFFFFFFF)
    adopted.put(*(b"%d" % i for i in range(200)), size=5000)
    control.drain()
    control.reap()
    assert control.attached == 1
    assert control.spare_regions(20) >= 20
    assert len(control.groups()) == 1
    assert control.add_group("another", 0) == 1
    assert adopted.opened.arena.check() == []
    adopted.instance.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_region_may_hold_anything(instance_path: str, seed: int) -> None:
    """Workers write their regions; what stands there may keep blocks from being used again, and nothing worse."""
    chance = random.Random(seed)
    adopted = Adopted(instance_path)
    arena, control = adopted.opened.arena, adopted.instance.control
    for round_ in range(20):
        scribble(adopted.instance.segment.buffer, chance, REGIONS, REGIONS + 3 * REGION_STRIDE, 500)
        adopted.put(*(b"%d-%d" % (round_, i) for i in range(200)), size=chance.choice([50, 500, 5000]))
        control.drain()
        arena.sweep()
        assert arena.check() == []
    control.reap()
    arena = adopted.next()
    assert arena.check() == []
    assert arena.taken_over[1] == 0
    adopted.instance.close()


@pytest.mark.parametrize("size", [0, 100, 1 << 20])
def test_a_control_segment_that_was_cut_off(instance_path: str, size: int) -> None:
    instance = Instance(instance_path)
    opened = OpenArena(instance, BUDGET)
    opened.arena.close()
    opened.segment.close()
    instance.control.close()
    name = instance.segment.name
    instance.segment.close()
    os.truncate(f"/dev/shm/{name}", size)
    segment, control = open_instance(instance.name)
    assert control.groups() == []
    assert segments_of(instance_path) == [segment.name]
    assert control.add_group("another", BUDGET) == 0
    control.close()
    segment.unlink()
    segment.close()


# What stands in an entry's ages (relative to the clock, which these know), and what it is to the next coordinator.
FOREVER = (1 << 64) - 1
HOUR = 3600 * 10**9
AGES = {
    "as they were": ((HOUR, 2 * HOUR, 0), (HOUR, 2 * HOUR, False)),
    "dead in an absurd time": ((HOUR, 5 << 60, 0), None),
    "fresh for an absurd time": ((5 << 60, FOREVER, 0), None),
    "dead for ever": ((-HOUR, FOREVER, 0), (-HOUR, None, True)),
    "fresh for longer than it lives": ((3 * HOUR, 2 * HOUR, 0), (2 * HOUR, 2 * HOUR, False)),
    "no refresh for ever": ((-HOUR, HOUR, FOREVER), (-HOUR, HOUR, True)),
    "no refresh for years": ((-HOUR, HOUR, 20_000 * HOUR), (-HOUR, HOUR, True)),
    "no refresh for a while": ((-HOUR, HOUR, HOUR), (-HOUR, HOUR, False)),
    "dead": ((-HOUR, -1, 0), None),
}


@pytest.mark.parametrize(("times", "expected"), AGES.values(), ids=list(AGES))
def test_ages_that_nobody_stored(
    instance_path: str, times: tuple[int, int, int], expected: tuple[int, int | None, bool] | None
) -> None:
    adopted = Adopted(instance_path)
    arena, buffer = adopted.opened.arena, adopted.opened.segment.buffer
    assert arena.put(b"keyofage", b"value", fresh=HOUR)
    offset = bytes(buffer).index(b"keyofage") + len(b"keyofage")
    now = struct.unpack_from("<Q", buffer, offset)[0] - HOUR
    stored = [age if age in (0, FOREVER) else (now + age) % (1 << 64) for age in times]
    struct.pack_into("<3Q", buffer, offset, *stored)
    del buffer
    arena = adopted.next()
    found = arena.find_kept(b"keyofage")
    assert arena.check() == []
    assert (found is None) is (expected is None)
    assert arena.taken_over == (int(found is not None), int(found is None and times[1] > 0))
    if found is not None and expected is not None:
        got = [None if left is None else round(left / HOUR, 1) for left in (found.fresh, found.dead)]
        assert got == [None if left is None else left / HOUR for left in expected[:2]]
        assert found.refresh_due is expected[2]
    adopted.instance.close()
