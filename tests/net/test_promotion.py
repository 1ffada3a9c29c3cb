"""Values that are asked for often go to the hot cache; the rule follows rates wherever they go, and saves requests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.promotion import LOADS, Entry, Load, compare
from mpgroupcache.net.promotion import HIGHEST, Promotion, fill

SIZE = 100


def share(rule: Promotion, rates: Iterable[float | None], size: int = SIZE) -> float:
    """Of the values with these rates, how many a rule admits to a full hot cache."""
    decisions = [rule.admits(rate, size, 1.0) for rate in rates]
    return sum(decisions) / len(decisions)


def rates(seed: int, count: int = 20_000, scale: float = 1.0) -> list[float]:
    rng = random.Random(seed)
    return [scale * rng.paretovariate(1.0) for _ in range(count)]


@pytest.mark.parametrize("rate", [None, math.nan, math.inf, -math.inf, -1.0])
def test_without_a_rate_it_is_gos_one_in_ten(rate: float | None) -> None:
    drawn = iter([0.0, 0.0999, 0.1, 0.5, 0.9999])
    rule = Promotion(lambda: next(drawn))
    assert [rule.admits(rate, SIZE, 1.0) for _ in range(5)] == [True, True, False, False, False]


def test_with_rates_it_is_the_best_tenth() -> None:
    rule = Promotion(random.Random(1).random)
    share(rule, rates(1))
    offered = rates(2)
    admitted = [rate for rate in offered if rule.admits(rate, SIZE, 1.0)]
    assert len(admitted) == pytest.approx(len(offered) / 10, rel=0.1)
    limit = sorted(offered)[-len(admitted)]
    assert sum(rate >= limit for rate in admitted) > 0.75 * len(admitted)
    assert min(admitted) > limit / 3


@pytest.mark.parametrize("factor", [1e-3, 1e-1, 10.0, 1e3])
def test_it_follows_rates_that_fall_or_rise(factor: float) -> None:
    rule = Promotion(random.Random(1).random)
    share(rule, rates(1))
    share(rule, rates(2, count=2_000, scale=factor))
    assert share(rule, rates(3, scale=factor)) == pytest.approx(0.1, rel=0.1)


def test_a_new_hotspot_is_admitted_at_once_while_old_ones_are_there() -> None:
    rule = Promotion(random.Random(1).random)
    share(rule, rates(1))
    assert rule.admits(1000.0, SIZE, 1.0)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_equal_rates_are_told_apart_by_chance(rate: float) -> None:
    rule = Promotion(random.Random(1).random)
    share(rule, rates(1))
    share(rule, [rate] * 5_000)
    assert share(rule, [rate] * 20_000) == pytest.approx(0.1, rel=0.2)


def test_an_absurd_rate_does_not_shut_others_out() -> None:
    rule = Promotion(random.Random(1).random)
    share(rule, rates(1))
    share(rule, [1e300] * 10_000)
    assert repr(rule) == f"<Promotion above {HIGHEST:.3g}>"
    assert share(rule, rates(2, count=4_000)) > 0
    assert share(rule, rates(3)) == pytest.approx(0.1, rel=0.1)


def test_while_there_is_room_what_was_asked_for_goes_there() -> None:
    rule = Promotion(random.Random(1).random)
    share(rule, rates(1))
    assert all(rule.admits(0.01, SIZE, 0.5) for _ in range(1_000))
    share(rule, rates(1))
    assert not any(rule.admits(0.0, SIZE, 0.5) for _ in range(100))
    assert not rule.admits(0.01, SIZE, 1.0)


def test_room_goes_to_many_small_values_but_large_ones_are_worth_their_bytes() -> None:
    def admits(rate: float, size: int) -> bool:
        rule = Promotion(random.Random(1).random)
        share(rule, rates(1), size=1_000)
        return rule.admits(rate, size, 1.0)

    assert not admits(3.0, 1_000)
    assert admits(3.0, 100)
    assert admits(3.0, 0)  # an empty key's empty value
    assert not admits(30.0, 1 << 20)  # as many requests as ten admitted ones, for a thousand times the room
    assert [admits(1_000.0, 1 << exponent) for exponent in (20, 25, 30)] == [True, True, True]


@pytest.mark.parametrize(
    ("main_bytes", "hot_bytes", "expected"),
    [
        (0, 0, 0.0),
        (0, 900, 1.0),
        (0, 450, 0.5),
        (800, 50, 0.5),
        (800, 100, 1.0),
        (600, 300, 1.0),  # more than an eighth: of room that main left
        (600, 150, 0.5),
        (900, 0, 0.0),
        (900, 112, 1.0),
    ],
)
def test_fill_is_of_what_gos_choice_of_victims_leaves_the_hot_cache(
    main_bytes: int, hot_bytes: int, expected: float
) -> None:
    assert fill(main_bytes, hot_bytes, 900) == expected


def test_a_group_without_a_budget_is_full() -> None:
    assert fill(0, 0, 0) == 1.0


# ---- The simulation

SMALL = replace(Load("", 1.0), hosts=4, keys=4_000, qps=800)


@pytest.mark.parametrize(
    "load",
    [
        replace(SMALL, exponent=0.8),
        SMALL,
        replace(SMALL, exponent=1.2),
        replace(SMALL, sizes=LOADS[3].sizes),
        replace(SMALL, shift_every=10.0, shifted=30),
        replace(SMALL, exponent=0.8, shift_every=5.0, shifted=10),
    ],
    ids=["zipf 0.8", "zipf 1.0", "zipf 1.2", "sizes", "shift", "flat shift"],
)
def test_fewer_requests_are_sent_to_owners_than_by_one_in_ten(load: Load) -> None:
    go, ours = compare(load, seconds=80.0, seed=1)
    assert 0 < ours < 0.95 * go


def test_the_simulation_has_the_rates_that_arenas_have(arena: Callable[..., Any], instance: Any) -> None:
    opened, rng, now = arena(1000), random.Random(1), 0.0
    opened.arena.put(b"key", b"value")
    entry = Entry(8, now)
    for _ in range(300):
        if rng.random() < 0.5:
            now += rng.randrange(200) / 16
            instance.control.drain(now)
        entry.count(now)
        _, rate = opened.arena.serve(b"key")
        assert rate == pytest.approx(entry.minute_qps(now), rel=0.032)
