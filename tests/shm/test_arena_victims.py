"""Which entry of an arena goes, and how often each is asked for: both against models."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from arenas import Instance, Lookup, OpenArena
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MakeArena = Callable[..., OpenArena]

MIB = 1 << 20


# ---- Victims


class Model:
    """Go's cache: two LRU lists within one budget; the victim is hot where hot holds more than an eighth of main.

    Unlike Go's, it evicts up to 16 at a time, as long as the room that this makes is at most 1/1024 of the budget.
    """

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

    def room(self) -> int:
        return self.budget - self.bytes_of(0) - self.bytes_of(1)

    def victim(self, spared: bytes) -> bytes | None:
        first = int(self.bytes_of(1) > self.bytes_of(0) // 8)
        return next((key for key in [*self.lists[first], *self.lists[1 - first]] if key != spared), None)

    def size(self, key: bytes) -> int:
        return next((len(key) + len(entries[key]) for entries in self.lists if key in entries), 0)

    def put(self, key: bytes, value: bytes, hot: bool) -> bool:
        size = len(key) + len(value)
        if size > self.max_entry:
            return False
        needed = max(size - self.size(key), 0)
        evicted = 0
        while self.room() < needed:
            victim = self.victim(key)
            assert victim is not None
            self.remove(victim)
            evicted += 1
        while 0 < evicted < 16:
            victim = self.victim(key)
            if victim is None or self.room() - needed + self.size(victim) > self.budget // 1024:
                break
            self.remove(victim)
            evicted += 1
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


@pytest.mark.parametrize(
    ("budget", "max_entry", "used"),
    [(1000, 280, 0), (4000, 4000, 1000), (4000, 4000, 3000), (MIB, MIB, MIB - 3000), (MIB, MIB, MIB - 1000)],
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_victims_are_those_of_the_model(
    arena: MakeArena, instance: Instance, budget: int, max_entry: int, used: int, steps: list[tuple[Any, ...]]
) -> None:
    """``used``: bytes of the budget that are one entry which is got all the time; only a large budget evicts ahead."""
    if not instance.arenas:
        arena(budget, max_entry=max_entry)
    opened, model = instance.arenas[0], Model(budget, max_entry)
    for key in (b"filler", *(b"k%d" % number for number in range(13))):
        opened.arena.remove(key)
    if used:
        assert opened.arena.put(b"filler", bytes(used - 6))
        assert model.put(b"filler", bytes(used - 6), hot=False)
    for step, key, *rest in steps:
        assert (opened.get(b"filler") is None) == (model.find(b"filler") is None)
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


def test_some_victims_go_ahead_of_the_inserts_that_need_their_room(arena: MakeArena) -> None:
    for size, ahead in ((100, 10), (40, 16), (1024, 2), (1025, 1)):
        opened = arena(MIB)
        count = MIB // size
        keys = [b"%05d" % number for number in range(count + 2 * ahead)]
        for number, key in enumerate(keys):
            assert opened.arena.put(key, bytes(size - 5))
            batches = -(-max(number + 1 - count, 0) // ahead)
            assert (opened.evictions(), opened.items()) == (batches * ahead, number + 1 - batches * ahead)
        assert [opened.get(key) is None for key in keys[2 * ahead - 1 : 2 * ahead + 1]] == [True, False]


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


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
                    assert bytes(served[0].value) == b"value"
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
