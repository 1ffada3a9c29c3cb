"""The victim is the least recently used entry over all workers: hits anywhere count, in the order of their times."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from arenas import LookupWorker, OpenArena
from children import Child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WORKERS = 3
ENTRIES = 8
ENTRY_BYTES = 100

KEYS = st.integers(0, 11).map(lambda number: b"%02d" % number)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS),
        st.tuples(st.just("hit"), st.integers(0, WORKERS - 1), st.lists(KEYS, min_size=1, max_size=6)),
        st.tuples(st.just("hit"), st.integers(0, WORKERS - 1), st.lists(KEYS, min_size=1, max_size=6)),
        st.tuples(st.just("find"), KEYS),
        st.tuples(st.just("remove"), KEYS),
        st.tuples(st.just("drain")),
    ),
    min_size=1,
    max_size=40,
)


@pytest.fixture
def several(arena: Callable[..., OpenArena], child: Callable[..., Child]) -> tuple[OpenArena, list[Child]]:
    opened = arena(ENTRIES * ENTRY_BYTES)
    return opened, [child(LookupWorker, *opened.address) for _ in range(WORKERS)]


def value_of(key: bytes) -> bytes:
    return key * ((ENTRY_BYTES - 2) // 2)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_victims_are_the_least_recently_used_across_processes(
    several: tuple[OpenArena, list[Child]], steps: list[tuple[Any, ...]]
) -> None:
    opened, workers = several
    model: OrderedDict[bytes, None] = OrderedDict()  # oldest first
    for number in range(12):
        opened.arena.remove(b"%02d" % number)
    for step, *rest in steps:
        if step == "put":
            key = rest[0]
            if key not in model and len(model) == ENTRIES:
                model.popitem(last=False)
            model[key] = None
            model.move_to_end(key)
            assert opened.arena.put(key, value_of(key))
        elif step == "hit":
            worker, keys = rest
            found = workers[worker].call("hit", *keys)
            assert found == [value_of(key) if key in model else None for key in keys]
            for key in keys:
                if key in model:
                    model.move_to_end(key)
        elif step == "find":
            key = rest[0]
            assert (opened.get(key) is not None) == (key in model)
            if key in model:
                model.move_to_end(key)
        elif step == "remove":
            assert opened.arena.remove(rest[0]) == (rest[0] in model)
            model.pop(rest[0], None)
        assert opened.items() == len(model)
    # What is evicted now, one by one, is what was used longest ago.
    for number in range(ENTRIES - len(model)):
        assert opened.arena.put(b"f%d" % number, bytes(ENTRY_BYTES - 2))
    last = workers[-1]
    for number, victim in enumerate(list(model)):
        assert opened.arena.put(b"g%d" % number, bytes(ENTRY_BYTES - 2))
        assert last.call("hit", victim) == [None]
    for number in range(ENTRIES):
        opened.arena.remove(b"f%d" % number)
        opened.arena.remove(b"g%d" % number)


def test_hits_closer_together_than_clocks_tell_keep_their_order(several: tuple[OpenArena, list[Child]]) -> None:
    opened, workers = several
    keys = [b"%02d" % number for number in range(ENTRIES)]
    for _ in range(20):
        for key in keys:
            opened.arena.put(key, value_of(key))
        order = keys[3:] + keys[:3]
        workers[0].call("hit", *order * 50)  # the last round counts
        for number, victim in enumerate(order):
            opened.arena.put(b"x%d" % number, bytes(ENTRY_BYTES - 2))
            assert not opened.arena.remove(victim)
        for number in range(ENTRIES):
            opened.arena.remove(b"x%d" % number)


def test_a_ring_that_overflows_forgets_its_oldest_touches(
    instance: Any, several: tuple[OpenArena, list[Child]]
) -> None:
    opened, workers = several
    for key in (b"a", b"b"):
        opened.arena.put(key, bytes(98))
    instance.control.drain()
    lost = instance.control.touches_lost
    workers[0].call("hit", b"a", *[b"b"] * 3000)
    assert instance.control.drain() in (1023, 1024)  # the oldest may be in the middle of being overwritten
    assert instance.control.touches_lost - lost >= 3001 - 1024
    for number in range(ENTRIES - 1):
        opened.arena.put(b"%d" % number, bytes(98))
    assert opened.get(b"a") is None
    assert opened.get(b"b") is not None
