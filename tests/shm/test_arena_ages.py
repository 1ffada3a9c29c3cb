"""Values that change, as the coordinator has them in an arena: ages, what is kept and reclaimed, versions, clears."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from adopted import Adopted
from arenas import Instance, Lookup, OpenArena, hold

from mpgroupcache.shm._writer import Found

MakeArena = Callable[..., OpenArena]
SECOND = 10**9  # ns
HOUR = 3600
FOREVER = 1 << 62  # ns, and beyond


def keep(instance: Instance, opened: OpenArena, stale_if_error: float) -> None:
    instance.control.set_ages(opened.group, 60, 0, stale_if_error, math.inf, 0, 0)


def seconds(left: int | None) -> float | None:
    """Whole ones; a test does not take half of one."""
    return None if left is None else round(left / SECOND)


def there(found: Found | None) -> Found:
    assert found is not None
    return found


def ages(got: Found | None) -> tuple[float | None, float | None]:
    found = there(got)
    return seconds(found.fresh), seconds(found.dead)


# ---- Fresh, stale, dead


@pytest.mark.parametrize(
    ("fresh", "dead", "expected"),
    [
        (None, None, (None, None)),
        (60, None, (60, 60)),
        (60, 100, (60, 100)),
        (None, 100, (100, 100)),
        (100, 60, (60, 60)),
        (-5, 60, (-5, 60)),
        (60, FOREVER, (60, None)),
        (FOREVER, None, (None, None)),
        (1 << 80, 1 << 90, (None, None)),
    ],
)
def test_ages_that_are_given(
    arena: MakeArena, fresh: int | None, dead: int | None, expected: tuple[float | None, float | None]
) -> None:
    opened = arena(1 << 20)
    given = [None if age is None else age * SECOND for age in (fresh, dead)]
    assert opened.arena.put(b"key", b"value", fresh=given[0], dead=given[1])
    assert ages(opened.arena.find(b"key")) == expected
    assert opened.arena.put(b"other", b"value")
    assert opened.arena.touch(b"other", *given)
    assert ages(opened.arena.find(b"other")) == expected


def test_fresh_then_stale_then_dead_then_gone(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    keep(instance, opened, 5 * HOUR)
    opened.arena.put(b"key", b"value", fresh=HOUR * SECOND, dead=2 * HOUR * SECOND)
    found = there(opened.arena.find(b"key"))
    assert not found.refresh_due
    assert bytes(found.value) == b"value"
    instance.control.advance(HOUR + 1)
    found = there(opened.arena.find(b"key"))
    assert found.refresh_due
    assert ages(found) == (-1, HOUR - 1)
    instance.control.advance(HOUR)
    assert opened.arena.find(b"key") is None
    assert opened.arena.serve(b"key") is None
    assert not opened.arena.touch(b"key", None, None)
    assert not opened.arena.put_off(b"key", SECOND)
    found = opened.arena.find_kept(b"key")
    assert ages(found) == (-HOUR - 1, -1)
    assert opened.arena.reclaim(100) == (0, False)
    instance.control.advance(4 * HOUR)
    assert opened.arena.find_kept(b"key") is None
    assert not opened.arena.revive(b"key", SECOND)
    assert opened.items() == 1
    assert opened.arena.reclaim(100) == (1, False)
    assert opened.items() == 0


def test_a_refresh_is_due_again_when_its_time_has_passed(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    opened.arena.put(b"key", b"value", fresh=0, dead=FOREVER)
    for pause in (30, 60):
        found = there(opened.arena.find(b"key"))
        assert found.refresh_due
        assert opened.arena.put_off(b"key", pause * SECOND)
        found = there(opened.arena.find(b"key"))
        assert not found.refresh_due
        instance.control.advance(pause + 1)
    opened.arena.put_off(b"key", 60 * SECOND)
    assert opened.arena.touch(b"key", 10 * SECOND, 20 * SECOND)  # which ends it
    instance.control.advance(11)
    found = there(opened.arena.find(b"key"))
    assert found.refresh_due
    assert opened.arena.put_off(b"other", 1) is False


def test_what_is_kept_lives_on_as_stale_when_its_load_fails(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    keep(instance, opened, 10 * HOUR)
    opened.arena.put(b"key", b"value", fresh=HOUR * SECOND)
    assert opened.arena.revive(b"key", 60 * SECOND)  # lives: only a refresh that is put off
    assert ages(opened.arena.find(b"key")) == (HOUR, HOUR)
    instance.control.advance(2 * HOUR)
    assert opened.arena.find(b"key") is None
    assert opened.arena.revive(b"key", 60 * SECOND)
    found = there(opened.arena.find(b"key"))
    assert ages(found) == (-HOUR, 9 * HOUR)
    assert not found.refresh_due
    instance.control.advance(61)
    found = there(opened.arena.find(b"key"))
    assert found.refresh_due
    instance.control.advance(9 * HOUR)
    assert opened.arena.find(b"key") is None
    assert not opened.arena.revive(b"key", SECOND)
    assert opened.arena.reclaim(10) == (1, False)


def test_a_touch_keeps_value_version_and_kind(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    for number, aged in enumerate((None, 50 * SECOND)):
        key = b"%d" % number
        opened.arena.put(key, b"value", version=77, fresh=aged, absent=True, copy=99, hot=True)
        assert opened.arena.touch(key, 10 * SECOND, 20 * SECOND)
        found = there(opened.arena.find(key))
        assert ages(found) == (10, 20)
        assert (bytes(found.value), found.version, found.absent, found.copy) == (b"value", 99, True, True)
        assert opened.arena.list_stats(1)[1] == number + 1
        assert opened.arena.touch(key, None, None)
        assert ages(opened.arena.find(key)) == (None, None)
    assert not opened.arena.touch(b"none", None, None)


def test_a_touch_without_room_is_the_end_of_the_entry(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    opened.arena.put(b"key", bytes(1000))
    opened.arena.max_entry = 100
    assert not opened.arena.touch(b"key", SECOND, SECOND)
    assert opened.arena.find(b"key") is None


def test_ages_count_from_the_publication(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    reservation = opened.arena.reserve(b"key", 5, fresh=HOUR * SECOND)
    assert reservation is not None
    instance.control.advance(HOUR)
    assert reservation.publish()
    assert ages(opened.arena.find(b"key")) == (HOUR, HOUR)


def test_the_rate_of_a_key_outlives_its_values(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    for end in (lambda: instance.control.advance(60), opened.arena.clear):
        opened.arena.put(b"key", b"value", fresh=SECOND)
        opened.arena.serve(b"key")
        before = opened.arena.minute_qps(b"key")
        assert before > 0
        end()
        opened.arena.put(b"key", b"value")
        assert opened.arena.minute_qps(b"key") == before
        reservation = opened.arena.reserve(b"key", 5)
        assert reservation is not None
        opened.arena.serve(b"key")
        counted = opened.arena.minute_qps(b"key")
        assert counted > before
        reservation.publish()
        assert opened.arena.minute_qps(b"key") == counted
        opened.arena.remove(b"key")


# ---- Kinds and counters


def test_what_is_absent_or_a_copy_says_so(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    opened.arena.put(b"absent", b"no such user", absent=True)
    opened.arena.put(b"copy", b"value", copy=12345)
    opened.arena.put(b"unknown", b"value", version=54321, copy=0)
    for key, value, absent, copy, version in (
        (b"absent", b"no such user", True, False, None),
        (b"copy", b"value", False, True, 12345),
        (b"unknown", b"value", False, True, 54321),
    ):
        found = there(opened.arena.find(key))
        assert (bytes(found.value), found.absent, found.copy) == (value, absent, copy)
        assert version is None or found.version == version
    assert opened.arena.remove(b"absent") is False
    assert opened.arena.find(b"absent") is None
    assert opened.arena.remove(b"copy") is True


def test_serving_counts_what_is_stale_and_absent(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    opened.arena.put(b"stale", b"value", fresh=0, dead=60 * SECOND)
    opened.arena.put(b"absent", b"text", absent=True, fresh=60 * SECOND)
    lookup = Lookup(*opened.address)
    before = lookup.reader.counters(opened.group)
    assert opened.arena.serve(b"stale") is not None
    assert opened.arena.serve(b"absent") is not None
    counted = [now - was for now, was in zip(lookup.reader.counters(opened.group), before, strict=True)]
    assert (counted[0], counted[8], counted[9]) == (2, 1, 1)


def test_only_the_version_that_is_meant_is_removed(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    opened.arena.put(b"key", b"value", version=10)
    assert not opened.arena.remove(b"key", 9)
    assert opened.arena.remove(b"key", 10)
    opened.arena.put(b"key", b"value", version=10, copy=20)
    assert not opened.arena.remove(b"key", 10)
    assert opened.arena.remove(b"key", 20)


def test_a_version_is_given_once(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    versions = [opened.arena.new_version() for _ in range(10)]
    for number in range(10):
        opened.arena.put(b"key", b"value", version=versions[number] if number % 2 else 0)
        found = there(opened.arena.find(b"key"))
        assert (found.version in versions) is (number % 2 == 1)
        versions.append(found.version)
    assert len(set(versions)) == 15
    assert 0 < versions[0] < 1 << 62


def test_changes_are_counted(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    before = instance.control.changes(opened.group)
    assert before > 0
    assert [instance.control.raise_changes(opened.group) for _ in range(3)] == [before + 1, before + 2, before + 3]
    assert instance.control.changes(opened.group) == before + 3
    with pytest.raises(IndexError, match="group 256"):
        instance.control.changes(256)


def test_ages_of_a_group_are_kept(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    assert instance.control.ages(opened.group) == (math.inf, 0, 0, math.inf, 0, 0)
    for given in ((1.5, 2.5, math.inf, 5, 0.25, 0.1), (math.inf, 0, 1e30, math.inf, math.inf, 1.0)):
        instance.control.set_ages(opened.group, *given)
        assert instance.control.ages(opened.group) == tuple(math.inf if age > 1e20 else age for age in given)
    instance.control.set_ages(opened.group, 1, 1, 1, 1, 1, math.nan)
    assert instance.control.ages(opened.group)[5] == 0


# ---- Clears


def test_a_clear_is_at_once_and_gives_memory_back_later(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    lookup = Lookup(*opened.address)
    for number in range(100):
        opened.arena.put(b"%d" % number, b"value", hot=number % 3 == 0, fresh=SECOND if number % 2 else None)
    held = hold(lookup, b"7")
    opened.arena.clear()
    assert opened.live_bytes() == opened.items() == 0
    assert all(opened.arena.find_kept(b"%d" % number) is None for number in range(100))
    assert not opened.arena.remove(b"1")
    assert opened.arena.next_death == 0
    opened.arena.put(b"2", b"new")
    opened.arena.clear()
    opened.arena.put(b"2", b"newer", fresh=60 * SECOND)
    opened.arena.put(b"3", b"newer")
    assert opened.arena.check() == []
    assert opened.arena.reclaim(30) == (0, True)
    assert opened.arena.reclaim(1000) == (0, False)
    assert (opened.items(), opened.get(b"2"), opened.get(b"3")) == (2, b"newer", b"newer")
    assert opened.evictions() == 0
    assert bytes(held) == b"value"
    assert opened.arena.limbo_bytes > 0
    held.release()
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0


def test_a_dead_entry_is_given_back_when_its_key_is_reserved(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    opened.arena.put(b"key", b"value", fresh=SECOND)
    instance.control.advance(60)
    reservation = opened.arena.reserve(b"key", 5)
    assert reservation is not None
    reservation.abandon()
    assert opened.items() == 0
    assert opened.arena.check() == []


def test_what_is_filled_during_a_clear_is_not_published(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    reservation = opened.arena.reserve(b"key", 5)
    assert reservation is not None
    opened.arena.clear()
    assert reservation.publish() is False
    assert opened.arena.find(b"key") is None


def test_touches_of_what_was_cleared_are_nothing(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    opened.arena.put(b"key", b"value")
    lookup = Lookup(*opened.address)
    assert lookup.copy(b"key") == b"value"
    opened.arena.clear()
    assert instance.control.drain() == 1
    assert opened.arena.check() == []
    assert opened.arena.minute_qps(b"key") == 0


# ---- Room


def test_dead_entries_go_before_live_ones(arena: MakeArena, instance: Instance) -> None:
    opened = arena(100_000)
    for number in range(50):
        opened.arena.put(b"old-%02d" % number, bytes(900))
    for number in range(50):
        opened.arena.put(b"new-%02d" % number, bytes(900), fresh=HOUR * SECOND)
    instance.control.advance(2 * HOUR)
    for number in range(50):  # takes just the room of the younger ones, which are dead
        opened.arena.put(b"more-%d" % number, bytes(900))
    assert opened.evictions() == 0
    assert all(opened.get(b"old-%02d" % number) is not None for number in range(50))
    expired, more = opened.arena.reclaim(0)
    assert 40 <= expired <= 50
    assert more is (expired < 50)
    opened.arena.clear()
    assert opened.arena.reclaim(1000) == (0, False)
    for number in range(100):
        opened.arena.put(b"last-%d" % number, bytes(900))
    assert opened.evictions() == 0


@pytest.mark.parametrize("size", [100, 3000, 200_000])
def test_after_a_clear_all_the_room_is_there(arena: MakeArena, size: int) -> None:
    """Also for blocks much larger than those that are dead."""
    opened = arena(1 << 20, max_entry=1 << 19)
    for _ in range(3):
        number = 0
        while opened.live_bytes() < opened.arena.budget - 1200:
            assert opened.arena.put(b"%d" % number, bytes(1000))
            number += 1
        opened.arena.clear()
        before = opened.evictions()
        for more in range(opened.arena.budget * 3 // 4 // (size + 8)):
            assert opened.arena.put(b"b-%d" % more, bytes(size))
        assert opened.evictions() == before
        opened.arena.clear()


def test_a_key_that_changes_without_end_leaves_nothing_behind(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    for number in range(5000):
        opened.arena.put(b"key", bytes(100), fresh=(1 + number % 100) * HOUR * SECOND)
        if number % 3 == 0:
            opened.arena.touch(b"key", (200 - number % 100) * HOUR * SECOND, None)
    assert opened.arena.check() == []
    committed = opened.arena.committed
    for _ in range(5000):
        opened.arena.put(b"key", bytes(100), fresh=HOUR * SECOND)
    assert opened.arena.committed == committed
    instance.control.advance(2 * HOUR)
    told = [(0, True)]
    while told[-1][1]:
        told.append(opened.arena.reclaim(1))  # steps down in the wheel, and then
    assert sum(expired for expired, _ in told) == 1


def test_the_next_death_is_told(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    assert opened.arena.next_death is None
    opened.arena.put(b"ageless", b"")
    opened.arena.put(b"stale for ever", b"", fresh=SECOND, dead=FOREVER)
    assert opened.arena.next_death is None
    opened.arena.put(b"key", b"", fresh=100 * HOUR * SECOND)
    for _ in range(20):
        left = opened.arena.next_death
        assert left is not None
        assert left <= 100 * HOUR * SECOND
        instance.control.advance(left / SECOND + 0.002)
        if opened.arena.reclaim(10)[0]:
            break
    else:
        pytest.fail("it is still there")
    assert opened.arena.next_death is None
    assert opened.arena.find_kept(b"key") is None


def test_a_group_that_keeps_longer_or_shorter_is_found_by_the_wheel(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1 << 20)
    for number in range(10):
        opened.arena.put(b"%d" % number, b"", fresh=HOUR * SECOND)
    for kept in (math.inf, 10 * HOUR, 0, 5 * HOUR):
        keep(instance, opened, kept)
        assert opened.arena.check() == []
        assert (opened.arena.next_death is None) is (kept == math.inf)
    instance.control.advance(3 * HOUR)
    assert opened.arena.reclaim(100) == (0, False)
    keep(instance, opened, HOUR)
    assert opened.arena.reclaim(100) == (10, False)


# ---- Against a model


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_changes(arena: MakeArena, instance: Instance, seed: int) -> None:
    """Time goes in hours, and ages end in the middle of one."""
    chance = random.Random(seed)
    opened = arena(1 << 20)
    model: dict[bytes, tuple[bytes, int, float, float]] = {}  # value, version, fresh until, dead at
    now, kept = 0, 0.0
    keys = [b"key-%d" % number for number in range(30)]

    def age(most: int) -> tuple[int | None, float]:
        """As it is given, and as it is noted."""
        if chance.random() < 0.3:
            return None, math.inf
        hours = chance.randrange(most) + 0.5
        return int(hours * HOUR * SECOND), now + hours

    def is_kept(key: bytes) -> bool:
        return key in model and max(model[key][3], model[key][2] + kept) > now

    for number in range(600):
        key = chance.choice(keys)
        live = key in model and model[key][3] > now
        match chance.randrange(10):
            case 0 | 1 | 2:
                (fresh, fresh_until), (dead, dead_at) = age(10), age(30)
                value = b"%d" % number
                version = opened.arena.new_version()
                assert opened.arena.put(key, value, version=version, fresh=fresh, dead=dead)
                dead_at = fresh_until if dead is None else dead_at
                model[key] = (value, version, min(fresh_until, dead_at), dead_at)
            case 3:
                assert opened.arena.remove(key) is live
                model.pop(key, None)
            case 4:
                fresh, fresh_until = age(20)
                assert opened.arena.touch(key, fresh, None) is live
                if live:
                    model[key] = (*model[key][:2], fresh_until, fresh_until)
            case 5:
                assert opened.arena.put_off(key, SECOND) is live
            case 6:
                assert opened.arena.revive(key, SECOND) is is_kept(key)
                if is_kept(key) and not live:
                    value, version, fresh_until, _ = model[key]
                    model[key] = (value, version, fresh_until, fresh_until + kept)
            case 7:
                opened.arena.reclaim(chance.randrange(5))
            case 8:
                now += 1
                instance.control.advance(HOUR)
            case 9 if chance.random() < 0.2:
                opened.arena.clear()
                model.clear()
            case 9 if chance.random() < 0.2:
                changed = chance.choice([0, 5, 20, math.inf])
                for gone in [key for key in model if not is_kept(key)]:
                    del model[gone]  # whether it is back when the group keeps longer is nobody's promise
                    opened.arena.remove(gone)
                kept = changed
                keep(instance, opened, kept * HOUR)
        for key in chance.sample(keys, 3):
            found, still = opened.arena.find(key), opened.arena.find_kept(key)
            assert (found is not None) is (key in model and model[key][3] > now)
            assert (still is not None) is is_kept(key)
            if still is not None:
                assert (bytes(still.value), still.version) == model[key][:2]
        if number % 20 == 0:
            assert opened.arena.check() == []
    now += 1000
    instance.control.advance(1000 * HOUR)
    opened.arena.reclaim(10_000)
    assert opened.items() == sum(is_kept(key) for key in model)


# ---- Taking over


def test_the_next_coordinator_takes_over_what_lives(instance_path: str) -> None:
    adopted = Adopted(instance_path)
    arena, control = adopted.opened.arena, adopted.instance.control
    control.set_ages(adopted.opened.group, 60, 30, 10 * HOUR, 5, 1, 0.5)
    count = control.raise_changes(adopted.opened.group)
    arena.put(b"cleared", b"value")
    arena.clear()
    arena.put(b"dead", b"value", fresh=SECOND)
    instance_ages = {b"kept": (HOUR, HOUR), b"stale": (HOUR, 30 * HOUR), b"fresh": (20 * HOUR, 20 * HOUR)}
    for key, (fresh, dead) in instance_ages.items():
        arena.put(key, b"value", fresh=fresh * SECOND, dead=dead * SECOND, copy=7)
    arena.put(b"ageless", b"value", absent=True)
    arena.put(b"newest", b"value")
    newest = arena.find(b"newest")
    assert newest is not None
    arena.remove(b"newest")
    version = newest.version
    control.advance(10 * HOUR + 30)
    arena = adopted.next()
    control = adopted.instance.control
    assert arena.taken_over == (4, 0)
    assert arena.check() == []
    assert control.ages(adopted.opened.group) == (60, 30, 10 * HOUR, 5, 1, 0.5)
    assert control.changes(adopted.opened.group) == count
    assert arena.find_kept(b"cleared") is arena.find_kept(b"dead") is arena.find_kept(b"newest") is None
    assert arena.find(b"kept") is None
    for key, (fresh, dead) in instance_ages.items():
        found = there(arena.find_kept(key))
        assert ages(found) == (fresh - 10 * HOUR - 30, dead - 10 * HOUR - 30)
        assert found.copy
        assert found.version == 7
    assert arena.new_version() > version
    control.advance(HOUR)
    assert arena.reclaim(100) == (1, False)
    control.advance(20 * HOUR)
    assert arena.reclaim(100) == (2, False)
    found = there(arena.find(b"ageless"))
    assert found.absent
    adopted.instance.close()
