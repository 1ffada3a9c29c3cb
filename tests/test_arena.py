"""Arenas as the coordinator sees them: what is put in, what is thrown out, and that the books are right."""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import signal
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from arenas import Instance, Lookup, LookupWorker, OpenArena, whole_value
from children import Child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_memory import NoPrivateMount, mount_small, resize
from workers import segments_of

from mpgroupcache.errors import ArenaError
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.shm._writer import MAX_GROUPS, Arena, arena_size

MakeArena = Callable[..., OpenArena]
StartChild = Callable[..., Child]


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


# ---- Victims


class Model:
    """Go's cache: two LRU lists within one budget; the victim is hot where hot holds more than an eighth of main."""

    def __init__(self, budget: int, max_entry: int) -> None:
        self.budget = budget
        self.max_entry = max_entry
        self.lists: tuple[OrderedDict[bytes, bytes], OrderedDict[bytes, bytes]] = (OrderedDict(), OrderedDict())

    def bytes_of(self, which: int) -> int:
        return sum(len(key) + len(value) for key, value in self.lists[which].items())

    def find(self, key: bytes) -> bytes | None:
        for entries in self.lists:
            if key in entries:
                entries.move_to_end(key)
                return entries[key]
        return None

    def remove(self, key: bytes) -> bool:
        return any(entries.pop(key, None) is not None for entries in self.lists)

    def put(self, key: bytes, value: bytes, hot: bool) -> bool:
        size = len(key) + len(value)
        if size > self.max_entry:
            return False
        old = next((len(key) + len(entries[key]) for entries in self.lists if key in entries), 0)
        while self.bytes_of(0) + self.bytes_of(1) + max(size - old, 0) > self.budget:
            first = int(self.bytes_of(1) > self.bytes_of(0) // 8)
            victims = [*self.lists[first], *self.lists[1 - first]]
            victim = next(victim for victim in victims if victim != key)
            self.remove(victim)
        self.remove(key)
        self.lists[hot][key] = value
        return True


KEYS = st.integers(0, 12).map(lambda n: b"k%d" % n)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 300), st.booleans()),
        st.tuples(st.just("find"), KEYS),
        st.tuples(st.just("remove"), KEYS),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_victims_are_those_of_the_model(arena: MakeArena, instance: Instance, steps: list[tuple[Any, ...]]) -> None:
    if not instance.arenas:
        arena(1000, max_entry=280)
    opened, model = instance.arenas[0], Model(1000, 280)
    for key in range(13):
        opened.arena.remove(b"k%d" % key)
    for step, key, *rest in steps:
        if step == "put":
            size, hot = rest
            assert opened.arena.put(key, bytes(size), hot=hot) == model.put(key, bytes(size), hot)
        elif step == "find":
            assert opened.get(key) == model.find(key)
        else:
            assert opened.arena.remove(key) == model.remove(key)
        for which in (0, 1):
            assert opened.arena.list_stats(which)[:2] == (model.bytes_of(which), len(model.lists[which]))
    assert opened.arena.check() == []
    expected = {**model.lists[0], **model.lists[1]}
    for key in (b"k%d" % number for number in range(13)):
        assert opened.get(key) == expected.get(key)


def test_hot_entries_go_first_where_they_pass_an_eighth_of_main(arena: MakeArena) -> None:
    opened = arena(1000)
    for number in range(7):
        assert opened.arena.put(b"main%d" % number, bytes(95))  # 700 bytes
    assert opened.arena.put(b"hot-1", bytes(95), hot=True)
    assert opened.arena.put(b"hot-2", bytes(95), hot=True)
    assert opened.arena.put(b"main7", bytes(100))  # 105 more: 200 hot bytes are above 700 / 8
    assert [opened.get(key) is not None for key in (b"hot-1", b"hot-2", b"main0")] == [False, True, True]
    assert opened.arena.remove(b"hot-2")
    assert opened.arena.put(b"hot-3", bytes(15), hot=True)
    assert opened.arena.put(b"main8", bytes(200))  # 20 hot bytes are not above 805 / 8
    assert [opened.get(key) is not None for key in (b"hot-3", b"main1", b"main0")] == [True, False, True]


def test_entries_with_views_are_passed_over(arena: MakeArena) -> None:
    opened = arena(1000)
    for number in range(10):
        opened.arena.put(b"key-%d" % number, bytes([number]) * 95)
    lookup = Lookup(*opened.address)
    views = [lookup.get(b"key-%d" % number) for number in range(3)]
    for number in range(10, 100):
        assert opened.arena.put(b"key-%2d" % number, bytes(94))
    assert [view == bytes([number]) * 95 for number, view in enumerate(views)] == [True] * 3
    assert [opened.get(b"key-%d" % number) is not None for number in range(4)] == [True, True, True, False]


def test_where_everything_is_in_use_an_insert_is_refused_and_evicts_nothing(arena: MakeArena) -> None:
    opened = arena(1000)
    for number in range(10):
        opened.arena.put(b"key-%d" % number, bytes(95))
    lookup = Lookup(*opened.address)
    views = [lookup.get(b"key-%d" % number) for number in range(10)]
    assert not opened.arena.put(b"more!", bytes(95))
    assert (opened.items(), opened.evictions()) == (10, 0)
    assert opened.arena.put(b"key-3", b"replacing what is in use is possible")
    assert views.pop(3) == bytes(95)
    assert opened.arena.put(b"more!", bytes(1))


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


# ---- Rates

HALF_LIFE, YOUNGEST = 40.0, 10.0  # s


class Rates:
    """What every key's rate has to be: all requests kept, and weighed when asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.since: dict[bytes, float] = {}
        self.requests: dict[bytes, list[float]] = {}

    def put(self, key: bytes) -> None:
        if key not in self.since:
            self.since[key] = self.now
            self.requests[key] = []

    def remove(self, key: bytes) -> None:
        self.since.pop(key, None)

    def count(self, key: bytes, times: int = 1) -> None:
        self.requests.setdefault(key, []).extend([self.now] * times)

    def minute_qps(self, key: bytes) -> float:
        if key not in self.since:
            return 0.0
        age = self.now - self.since[key]
        missing = max(YOUNGEST - age, 0.0)
        weights = math.fsum(2 ** ((time - self.now - missing) / HALF_LIFE) for time in self.requests[key])
        return weights / (HALF_LIFE / math.log(2) * (1 - 2 ** (-max(age, YOUNGEST) / HALF_LIFE)))


RATE_KEYS = st.sampled_from([b"a", b"b", b"c"])
RATE_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), RATE_KEYS, st.booleans()),
        st.tuples(st.just("hit"), RATE_KEYS, st.integers(0, 1), st.integers(1, 40)),
        st.tuples(st.just("hit"), RATE_KEYS, st.integers(0, 1), st.integers(1, 40)),
        st.tuples(st.just("serve"), RATE_KEYS),
        st.tuples(st.just("remove"), RATE_KEYS),
        st.tuples(st.just("drain"), st.integers(0, 1_600)),
        st.tuples(st.just("drain"), st.integers(0, 100_000)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=RATE_STEPS)
def test_rates_are_those_of_all_workers_and_peers(instance_path: str, steps: list[tuple[Any, ...]]) -> None:
    instance = Instance(instance_path)
    try:
        opened, model = OpenArena(instance, 10_000), Rates()
        workers = [Lookup(*opened.address) for _ in range(2)]
        touches: Counter[bytes] = Counter()  # to be drained
        for step, *rest in steps:
            if step in ("drain", "put", "remove"):  # the latter may or may not take a block's touches with it
                model.now += rest[0] / 16 if step == "drain" else 0
                instance.control.drain(model.now)
                for key, times in touches.items():
                    model.count(key, times)
                touches.clear()
            if step == "put":
                key, hot = rest
                assert opened.arena.put(key, b"value", hot=hot)
                model.put(key)
            elif step == "hit":
                key, worker, times = rest
                touches[key] += sum(workers[worker].copy(key) is not None for _ in range(times))
            elif step == "serve":
                (key,) = rest
                served = opened.arena.serve(key)
                assert (served is not None) is (key in model.since)
                if served is not None:
                    model.count(key)
                    assert bytes(served[0]) == b"value"
                    assert served[1] == pytest.approx(model.minute_qps(key), rel=0.032)
            elif step == "remove":
                (key,) = rest
                assert opened.arena.remove(key) == (key in model.since)
                model.remove(key)
            for key in (b"a", b"b", b"c"):
                assert opened.arena.minute_qps(key) == pytest.approx(model.minute_qps(key), rel=1e-4, abs=1e-12)
    finally:
        instance.close()


def test_rates_age_by_the_clock_where_no_time_is_told(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    opened.arena.serve(b"key")
    before = opened.arena.minute_qps(b"key")
    instance.control.drain()
    assert 0 < opened.arena.minute_qps(b"key") <= before
    instance.control.drain(3600.0)
    late = opened.arena.minute_qps(b"key")
    assert 0 <= late < 1e-12
    instance.control.drain(1800.0)  # time does not go back
    assert opened.arena.minute_qps(b"key") == late


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

    def error_of_opening(self) -> tuple[str, list[str]]:
        with pytest.raises(ArenaError) as caught:
            Instance(self.socket_path)
        return str(caught.value), segments_of(self.socket_path)

    def error_of_an_arena(self) -> tuple[str, list[str]]:
        self.open_instance()
        with pytest.raises(ArenaError) as caught:
            OpenArena(self.instance, 1 << 20)
        return str(caught.value), segments_of(self.socket_path)

    def fill(self, budget: int, count: int, size: int) -> dict[str, Any]:
        """Put far more than there is memory for, and read it all back."""
        self.opened = OpenArena(self.instance, budget)
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
        }

    def resize(self, size: int) -> None:
        resize(size)
        self.opened.arena.retry_memory()


@pytest.fixture
def small_memory(child: StartChild, instance_path: str) -> Callable[[int], Child]:
    def start(size: int) -> Child:
        process = child(SmallMemory, size, instance_path)
        if reason := process.call("why_not"):
            pytest.skip(f"no mounts of our own here: {reason}")
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


def test_where_there_is_no_memory_at_all_opening_says_so(small_memory: Callable[[int], Child]) -> None:
    message, left = small_memory(64 << 10).call("error_of_opening")
    assert "no shared memory for the control segment: No space left on device; enlarge /dev/shm" in message
    assert left == []


def test_where_there_is_none_for_an_arena_opening_that_says_so(small_memory: Callable[[int], Child]) -> None:
    message, left = small_memory(808 << 10).call("error_of_an_arena")
    assert "no shared memory for an arena of 1048576 bytes: No space left on device; enlarge /dev/shm" in message
    assert len(left) == 1
