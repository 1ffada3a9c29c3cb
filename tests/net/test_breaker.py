"""The breaker: each of its ways, and against a model without a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.net.breaker import FIRST_DELAY, MAX_DELAY, TRANSITIONS, Breaker, Event, State


def always_most() -> float:
    return 1.0


def test_the_first_failure_opens() -> None:
    breaker = Breaker(always_most)
    assert breaker.closed
    assert breaker.delay == 0.0
    assert breaker.failed(began=1.0)
    assert not breaker.closed
    assert breaker.delay == FIRST_DELAY
    assert not breaker.failed(began=1.0)  # another that was under way


def test_a_failure_does_not_count_if_the_peer_answered_another_request_meanwhile() -> None:
    breaker = Breaker(always_most)
    breaker.answered(2.0)
    assert not breaker.failed(began=1.0)
    assert breaker.closed
    assert breaker.failed(began=2.0)


def test_a_probes_answer_closes() -> None:
    breaker = Breaker(always_most)
    breaker.failed(1.0)
    breaker.probe()
    assert not breaker.closed
    assert breaker.answered(2.0, probe=True)
    assert breaker.closed


def test_delays_double_up_to_a_bound() -> None:
    breaker = Breaker(always_most)
    breaker.failed(1.0)
    delays = [breaker.delay]
    while delays[-1] < MAX_DELAY:
        breaker.probe()
        assert breaker.failed(1.0, probe=True)
        delays.append(breaker.delay)
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]


def test_a_real_answer_while_a_probe_is_under_way_closes() -> None:
    breaker = Breaker(always_most)
    breaker.failed(1.0)
    breaker.probe()
    assert breaker.answered(2.0)
    assert breaker.closed
    breaker.failed(2.0)
    assert breaker.delay == FIRST_DELAY


def test_failures_that_come_meanwhile_leave_the_delay_as_it_is() -> None:
    """Of requests that were under way: while it is open, and while a probe is."""
    breaker = Breaker(always_most)
    breaker.failed(1.0)
    assert not breaker.failed(1.0)
    breaker.probe()
    assert not breaker.failed(1.0)
    assert breaker.delay == FIRST_DELAY
    assert breaker.failed(2.0, probe=True)
    assert breaker.delay == 2 * FIRST_DELAY


def test_only_a_real_answer_makes_the_delay_short_again() -> None:
    breaker = Breaker(always_most)
    for began in (1.0, 2.0, 3.0):  # its door is open, its loaders hang
        assert breaker.failed(began)
        breaker.probe()
        breaker.answered(began, probe=True)
    assert breaker.delay == 4 * FIRST_DELAY
    breaker.answered(4.0)
    breaker.failed(4.0)
    assert breaker.delay == FIRST_DELAY


def test_an_answer_to_a_request_that_was_under_way_closes() -> None:
    breaker = Breaker(always_most)
    breaker.failed(1.0)
    assert breaker.answered(2.0)
    assert breaker.closed
    breaker.failed(2.0)
    assert breaker.delay == FIRST_DELAY


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_jitter(jitter: float, share: float) -> None:
    breaker = Breaker(lambda: jitter)
    breaker.failed(0.0)
    assert breaker.delay == FIRST_DELAY * share


def test_what_a_state_does_not_know_cannot_come() -> None:
    """A probe ends before another begins, and is given up when the breaker closes without it."""
    assert set(TRANSITIONS) == set(State)
    assert Event.PROBE_ANSWER not in TRANSITIONS[State.CLOSED]
    assert Event.PROBE_FAILURE not in TRANSITIONS[State.OPEN]
    with pytest.raises(KeyError):
        Breaker(always_most).probe()


def test_repr() -> None:
    assert repr(Breaker(always_most)) == "<Breaker: closed, next delay 0.5 s>"


class PlainBreaker:
    """The same in a few flags."""

    def __init__(self) -> None:
        self.open = self.probing = False
        self.trips = 0  # since the last real answer
        self.last_answer = -1.0

    def answered(self, now: float, probe: bool) -> bool:
        was_open, self.open, self.probing = self.open, False, False
        self.last_answer = now
        if not probe:
            self.trips = 0
        return was_open

    def failed(self, began: float, probe: bool) -> bool:
        counts = probe or (not self.open and began >= self.last_answer)
        if counts:
            self.open, self.probing = True, False
            self.trips += 1
        return counts


@given(st.lists(st.tuples(st.sampled_from(["answer", "failure", "probe"]), st.integers(0, 3), st.booleans())))
def test_against_the_plain_one(steps: list[tuple[str, int, bool]]) -> None:
    breaker, plain = Breaker(always_most), PlainBreaker()
    for now, (what, age, of_probe) in enumerate(steps, 10):
        probe = of_probe and plain.probing
        match what:
            case "answer":
                assert breaker.answered(now, probe) == plain.answered(now, probe)
            case "failure":
                assert breaker.failed(now - age, probe) == plain.failed(now - age, probe)
            case "probe" if plain.open and not plain.probing:
                plain.probing = True
                breaker.probe()
        assert breaker.closed == (not plain.open)
        assert (breaker.state is State.PROBING) == plain.probing
        if plain.open:
            assert breaker.delay == min(FIRST_DELAY * 2 ** (plain.trips - 1), MAX_DELAY)
