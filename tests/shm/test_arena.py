"""Arenas as the coordinator sees them: what is put in and reserved, how they end, and that the books are right."""

from __future__ import annotations

import gc
import itertools
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from arenas import Instance, Lookup, OpenArena, whole_value

from mpgroupcache.errors import ArenaError
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.shm._control import MAX_GROUPS
from mpgroupcache.shm._writer import Arena, arena_size

MakeArena = Callable[..., OpenArena]


# ---- Entries


def test_put_find_replace_remove(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    assert opened.get(b"key") is None
    assert opened.arena.put(b"key", b"value")
    assert opened.get(b"key") == b"value"
    assert opened.arena.put(b"key", bytearray(b"another value"))
    assert opened.get(b"key") == b"another value"
    assert opened.arena.list_stats(0) == (3 + 13, 1, 0)
    assert opened.arena.remove(b"key")
    assert not opened.arena.remove(b"key")
    assert opened.get(b"key") is None
    assert opened.arena.list_stats(0) == (0, 0, 0)


@pytest.mark.parametrize("key", [b"", b"\0", b"k", "Schlüssel".encode(), b"\xff" * 17, b"x" * MAX_KEY_BYTES])
@pytest.mark.parametrize("value", [b"", b"\0", b"v" * 7, b"v" * 4096])
def test_any_key_holds_any_value(arena: MakeArena, key: bytes, value: bytes) -> None:
    opened = arena(1 << 20)
    assert opened.arena.put(key, value)
    assert opened.get(key) == value
    assert Lookup(*opened.address).copy(key) == value
    assert opened.live_bytes() == len(key) + len(value)


def test_keys_of_all_lengths_are_told_apart(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    keys = [bytes(length) for length in range(100)] + [b"a" * length for length in range(1, 100)]
    for number, key in enumerate(keys):
        assert opened.arena.put(key, b"%d" % number)
    lookup = Lookup(*opened.address)
    assert [lookup.copy(key) for key in keys] == [b"%d" % number for number in range(len(keys))]


def test_a_key_over_the_limit_is_refused(arena: MakeArena) -> None:
    opened = arena(1 << 20)
    assert not opened.arena.put(b"x" * (MAX_KEY_BYTES + 1), b"")
    assert opened.get(b"x" * (MAX_KEY_BYTES + 1)) is None


def test_putting_a_key_again_never_leaks_accounting(arena: MakeArena) -> None:
    opened = arena(10_000)
    for size in [*range(0, 2000, 37), 1000, 1000, 0, 1]:
        for hot in (False, True):
            assert opened.arena.put(b"key", bytes(size), hot=hot)
            assert opened.arena.list_stats(hot)[:2] == (3 + size, 1)
            assert opened.arena.list_stats(not hot)[:2] == (0, 0)
    assert opened.evictions() == 0


def test_what_cannot_fit_is_refused_and_evicts_nothing(arena: MakeArena) -> None:
    opened = arena(10_000, max_entry=4_000)
    keys = [b"%03d" % number for number in range(99)]
    for key in keys:
        assert opened.arena.put(key, bytes(97))
    assert not opened.arena.put(b"key", bytes(4_000 - 3 + 1))
    assert not opened.arena.put(b"key", bytes(1 << 20))
    assert opened.arena.reserve(b"key", 1 << 62) is None
    assert (opened.items(), opened.evictions()) == (99, 0)
    assert opened.arena.put(b"key", bytes(4_000 - 3))
    assert opened.evictions() == 39


def test_max_entry_is_at_most_the_budget(arena: MakeArena) -> None:
    opened = arena(1000, max_entry=1 << 40)
    assert opened.arena.max_entry == 1000
    assert opened.arena.put(b"a", b"")
    assert not opened.arena.put(b"b", bytes(1000))
    assert opened.items() == 1
    assert opened.arena.put(b"b", bytes(999))
    assert opened.items() == 1


@pytest.mark.parametrize("budget", [1, 20, 1 << 10])
def test_tiny_budgets(arena: MakeArena, budget: int) -> None:
    opened = arena(budget, max_entry=budget)
    for number in range(1000):
        key = b"%d" % number
        fits = len(key) <= budget
        assert opened.arena.put(key, bytes(number % max(budget - len(key) + 1, 1))) is fits
        assert opened.live_bytes() <= budget
        assert (opened.get(key) is not None) is fits
    assert opened.arena.check() == []


def test_an_arena_that_words_could_not_address_is_refused() -> None:
    assert arena_size(64 << 30) < 1 << 40
    for budget in (1 << 40, 1 << 62, (1 << 64) - 1):
        with pytest.raises(ArenaError, match=f"got {budget}, expected at most"):
            arena_size(budget)


def test_groups_beyond_the_table_are_refused(instance: Instance) -> None:
    for number in range(MAX_GROUPS):
        assert instance.control.add_group(f"g{number}", 0) == number
    with pytest.raises(ArenaError, match="expected at most 256 groups"):
        instance.control.add_group("one more", 0)


def test_a_groups_name_has_a_limit(instance: Instance) -> None:
    with pytest.raises(ArenaError, match="names of at most 255 bytes"):
        instance.control.add_group("ü" * 128, 0)
    assert instance.control.add_group("x" * 255, 0) == 0


# ---- Reservations


def test_a_reservation_is_seen_when_it_is_published(arena: MakeArena) -> None:
    opened = arena(1000)
    reservation = opened.arena.reserve(b"key", 5)
    assert reservation is not None
    with memoryview(reservation) as room:
        room[:] = b"value"
        assert opened.get(b"key") is None
        with pytest.raises(BufferError, match="1 memoryviews"):
            reservation.publish()
    assert opened.arena.check() == []
    assert reservation.publish()
    assert opened.get(b"key") == b"value"
    assert not reservation.publish()
    with pytest.raises(BufferError, match="published or abandoned"):
        memoryview(reservation)
    reservation.abandon()
    assert opened.get(b"key") == b"value"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_interleaved_reservations_of_one_key_the_last_published_stays(
    arena: MakeArena, order: tuple[int, ...]
) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", bytes(200))
    reservations = [opened.arena.reserve(b"key", 50 * (number + 1)) for number in range(3)]
    for number, reservation in enumerate(reservations):
        assert reservation is not None
        with memoryview(reservation) as room:
            room[:] = bytes([number]) * len(room)
    for number in order:
        assert reservations[number].publish()  # type: ignore[union-attr]
        assert opened.get(b"key") == bytes([number]) * (50 * (number + 1))
        assert opened.arena.check() == []
    assert opened.items() == 1


def test_the_entry_that_a_reservation_would_replace_may_go_meanwhile(arena: MakeArena) -> None:
    opened = arena(1000)
    for change in (lambda: opened.arena.remove(b"key"), lambda: opened.arena.put(b"big", bytes(700)), lambda: None):
        opened.arena.put(b"key", bytes(240))
        reservation = opened.arena.reserve(b"key", 240)
        assert reservation is not None
        change()
        assert reservation.publish()
        assert opened.live_bytes() <= 1000
        assert opened.get(b"key") == bytes(240)


def _abandon(reservations: list[Any]) -> None:
    for reservation in reservations:
        reservation.abandon()
        reservation.abandon()


def _drop_in_a_cycle(reservations: list[Any]) -> None:
    cycle: list[Any] = [reservations[0]]
    cycle.append(cycle)
    reservations.clear()
    del cycle
    gc.collect()


@pytest.mark.parametrize("give_up", [_abandon, lambda reservations: reservations.clear(), _drop_in_a_cycle])
def test_room_of_a_reservation_that_is_given_up_comes_back(
    arena: MakeArena, give_up: Callable[[list[Any]], None]
) -> None:
    opened = arena(1000, max_entry=1000)
    for _ in range(3):
        reservations = [opened.arena.reserve(b"a", 900)]
        assert reservations[0] is not None
        assert opened.arena.reserve(b"b", 900) is None  # it counts towards the budget
        give_up(reservations)
        assert opened.arena.check() == []
    assert opened.arena.put(b"b", bytes(900))


def test_abandoned_room_is_not_reused_while_it_can_be_written_to(arena: MakeArena) -> None:
    opened = arena(100_000)
    reservation = opened.arena.reserve(b"a", 10_000)
    assert reservation is not None
    room = memoryview(reservation)
    reservation.abandon()
    for number in range(1000):
        opened.arena.put(b"%d" % number, b"%d" % number * 50)
    room[:] = b"\xff" * 10_000
    assert opened.arena.check() == []
    assert opened.get(b"999") == b"999" * 50
    with pytest.raises(BufferError, match="published or abandoned"):
        memoryview(reservation)
    room.release()
    assert not reservation.publish()
    assert opened.arena.check() == []


def test_reservations_at_random(arena: MakeArena) -> None:
    opened = arena(20_000)
    rng = random.Random(5)
    open_ones: list[tuple[bytes, bytes, Any]] = []
    for step in range(3000):
        key = b"%d" % rng.randrange(50)
        if rng.random() < 0.5 and len(open_ones) < 20:
            value = whole_value(key, step, rng.randrange(1000))
            if (reservation := opened.arena.reserve(key, len(value), hot=rng.random() < 0.2)) is not None:
                with memoryview(reservation) as room:
                    room[:] = value
                open_ones.append((key, value, reservation))
        elif open_ones:
            key, value, reservation = open_ones.pop(rng.randrange(len(open_ones)))
            if rng.random() < 0.7:
                assert reservation.publish()
                assert opened.get(key) == value
            else:
                reservation.abandon()
        if step % 100 == 0:
            assert opened.arena.check() == []
    del open_ones, reservation


# ---- Ends


def test_a_retired_arena_takes_nothing_more(arena: MakeArena) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    reservation = opened.arena.reserve(b"other", 5)
    lookup = Lookup(*opened.address)
    opened.arena.retire()
    assert lookup.copy(b"key") is None
    assert not lookup.attached
    assert not opened.arena.put(b"key", b"value")
    assert reservation is not None
    assert not reservation.publish()
    with pytest.raises(ArenaError, match="it is retired"):
        Lookup(*opened.address)


def test_memory_is_let_go_of_in_order(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1000)
    reservation = opened.arena.reserve(b"key", 5)
    assert reservation is not None
    with memoryview(reservation), pytest.raises(BufferError, match="1 memoryviews of reservations"):
        opened.arena.close()
    with pytest.raises(BufferError, match="1 arenas are open"):
        instance.control.close()
    with pytest.raises(BufferError):
        opened.segment.close()


def test_what_is_closed_says_so(instance: Instance) -> None:
    opened = OpenArena(instance, 1000)
    instance.arenas.clear()
    reservation = opened.arena.reserve(b"key", 5)
    assert reservation is not None
    opened.close()
    opened.arena.close()
    assert not reservation.publish()
    for use in (
        opened.arena.check, opened.arena.sweep, opened.arena.retire, opened.arena.retry_memory,
        lambda: opened.arena.put(b"", b""), lambda: opened.arena.find(b""), lambda: opened.arena.remove(b""),
        lambda: opened.arena.serve(b""), lambda: opened.arena.minute_qps(b""),
        lambda: opened.arena.committed, lambda: opened.arena.budget, lambda: opened.arena.list_stats(0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the arena is closed"):
            use()
    other = Instance(os.path.join(os.path.dirname(instance.path), f"{instance.segment.name}-other"))
    other.close()
    for use in (
        other.control.retire, other.control.reap, other.control.drain, lambda: other.control.add_group("g", 0),
        lambda: other.control.spare_regions(1), lambda: other.control.touches_lost, lambda: other.control.count(0, 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the control segment is closed"):
            use()
    with pytest.raises(ValueError, match="the control segment is closed"):
        Arena(other.control, bytearray(), -1, group=0, incarnation=0, budget=1, max_entry=1, seed=0)
