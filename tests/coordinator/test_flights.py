"""Flights and leases: each row of the table, and the interleavings that it is there for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from flying import K, assert_nothing_left, granted, join, load

from mpgroupcache.coordinator.flights import Action, Deliver, Fail, FlightTable, Lease, Waiter
from mpgroupcache.coordinator.transitions import TRANSITIONS, Event, Role

# The rows


class Scene:
    """A flight with all roles: ``revoked`` had its lease, ``holder`` has it, ``first``, ``second``, ``guest`` wait."""

    def __init__(self) -> None:
        self.table = FlightTable()
        self.revoked = load(self.table, K, "r").holder
        self.holder, self.first, self.second = (join(self.table, K, owner) for owner in "hfs")
        self.guest, self.visitor = Waiter("g", guest=True), Waiter("v", guest=True)
        assert self.table.ask(K, self.guest) == []
        self.revoked_lease = self.lease_of(self.revoked)
        assert granted(self.table.revoke(self.revoked_lease.id)).holder is self.holder
        self.holder_lease = self.lease_of(self.holder)
        self.newcomer = Waiter("n")

    @staticmethod
    def lease_of(waiter: Waiter) -> Lease:
        assert waiter.lease is not None
        return waiter.lease

    def fire(self, event: Event, role: Role) -> list[Action]:
        waiter = {
            "nobody": self.newcomer,
            "waiter": self.first,
            "guest": self.guest,
            "holder": self.holder,
            "revoked": self.revoked,
        }[role]
        assert waiter.role == role
        match event:
            case "ask":
                return self.table.ask(K, waiter)
            case "visit":
                return self.table.ask(K, self.visitor, "peer")
            case "change":
                self.table.change(K)
                return []
            case "replace":
                self.table.refresh(K, waiter)
                return []
            case "value":
                return self.table.value(self.lease_of(waiter).id, "value")
            case "error":
                return self.table.error(self.lease_of(waiter).id, "error")
            case "return":
                return self.table.give_back(self.lease_of(waiter).id)
            case "revoke":
                return self.table.revoke(self.lease_of(waiter).id)
            case "cancel":
                return self.table.cancel(waiter)
            case "lose":
                return self.table.lose(waiter.owner)
        raise AssertionError(event)


@dataclass
class Row:
    """What a row of ``TRANSITIONS[LEASED]`` does to the scene, by the names of its waiters."""

    holder: str | None = "holder"
    waiters: list[str] = field(default_factory=lambda: ["first", "second", "guest"])
    revoked: list[str] = field(default_factory=lambda: ["revoked"])
    tells: type[Deliver | Fail] | None = None  # whoever waits
    overtaken: bool = False
    replaced: bool = False


PASSED_ON = Row(holder="first", waiters=["second", "guest"])
ENDED: dict[str, Any] = {"holder": None, "waiters": [], "revoked": []}

ROWS = {
    ("ask", "nobody"): Row(waiters=["first", "second", "guest", "newcomer"]),
    ("visit", "nobody"): Row(waiters=["first", "second", "guest", "visitor"]),
    ("change", "nobody"): Row(overtaken=True),
    ("replace", "nobody"): Row(replaced=True),
    ("cancel", "waiter"): Row(waiters=["second", "guest"]),
    ("lose", "waiter"): Row(waiters=["second", "guest"]),
    ("cancel", "guest"): Row(waiters=["first", "second"]),
    ("lose", "guest"): Row(waiters=["first", "second"]),
    ("value", "holder"): Row(tells=Deliver, **ENDED),
    ("error", "holder"): Row(tells=Fail, **ENDED),
    ("return", "holder"): PASSED_ON,
    ("revoke", "holder"): Row(holder="first", waiters=["second", "guest"], revoked=["revoked", "holder"]),
    ("cancel", "holder"): PASSED_ON,
    ("lose", "holder"): PASSED_ON,
    ("value", "revoked"): Row(tells=Deliver, **ENDED),
    ("error", "revoked"): Row(revoked=[]),
    ("return", "revoked"): Row(revoked=[]),
    ("revoke", "revoked"): Row(),
    ("cancel", "revoked"): Row(revoked=[]),
    ("lose", "revoked"): Row(revoked=[]),
}


def test_each_row_of_a_leased_flight_is_tested() -> None:
    assert ROWS.keys() == TRANSITIONS["leased"].keys()


@pytest.mark.parametrize(("event", "role"), ROWS)
def test_rows_of_a_leased_flight(event: Event, role: Role) -> None:
    scene, row = Scene(), ROWS[event, role]
    flight = scene.table.flight(K)
    assert flight is not None
    actions = scene.fire(event, role)
    assert scene.table.check() == []
    if row.tells is not None:
        assert actions == [row.tells(K, (scene.first, scene.second, scene.guest), event)]
    elif row.holder == "first":
        assert granted(actions).holder is scene.first
    else:
        assert actions == []
    assert flight.state == ("ended" if row.holder is None else "leased")
    if row.holder is None:
        assert flight.lease is None
    else:
        assert flight.lease is not None
        assert flight.lease.holder is getattr(scene, row.holder)
    assert list(flight.waiters) == [getattr(scene, name) for name in row.waiters]
    assert list(flight.revoked) == [getattr(scene, name) for name in row.revoked]
    assert (scene.table.lease(scene.holder_lease.id) is not None) == ("holder" in [row.holder, *row.revoked])
    assert (scene.table.lease(scene.revoked_lease.id) is not None) == ("revoked" in row.revoked)
    assert flight.overtaken == row.overtaken
    assert flight.replaced == row.replaced
    is_found = row.holder is not None and not row.overtaken and not row.replaced
    assert (scene.table.flight(K) is flight) == is_found


def test_rows_of_a_flight_without_a_lease(flights: FlightTable) -> None:
    assert list(TRANSITIONS["unleased"]) == [
        ("ask", "nobody"),  # who opens a flight gets its lease,
        ("visit", "nobody"),  # or waits for a loader
        ("begin", "nobody"),
        ("next", "waiter"),
        ("next", "guest"),
        ("next", "nobody"),
    ]
    lease = load(flights, K)
    assert flights.live_leases() == [lease]
    assert flights.give_back(lease.id) == []
    assert not lease.live
    assert_nothing_left(flights)


def test_nothing_happens_to_an_ended_flight(flights: FlightTable) -> None:
    assert TRANSITIONS["ended"] == {}
    lease = load(flights, K, "a")
    waiter = join(flights, K, "b")
    assert flights.value(lease.id, "value") == [Deliver(K, (waiter,), "value")]
    for late in (flights.give_back, flights.revoke):
        assert late(lease.id) == []
    assert flights.value(lease.id, "other") == []
    assert flights.error(lease.id, "late") == []
    assert flights.cancel(waiter) == []
    assert flights.cancel(lease.holder) == []
    assert flights.lose("a") == flights.lose("b") == []
    assert_nothing_left(flights)


@pytest.mark.parametrize("event", ["value", "error"])
def test_a_load_that_nobody_waits_for_still_has_its_outcome(flights: FlightTable, event: str) -> None:
    lease = load(flights, K)
    [action] = getattr(flights, event)(lease.id, "outcome")
    assert action in (Deliver(K, (), "outcome"), Fail(K, (), "outcome"))
    assert_nothing_left(flights)


def test_unknown_leases_are_ignored(flights: FlightTable) -> None:
    lease = load(flights, K)
    for unknown in (0, lease.id + 1, 1 << 62):
        assert flights.value(unknown, "v") == flights.error(unknown, "e") == []
        assert flights.give_back(unknown) == flights.revoke(unknown) == []
    assert flights.live_leases() == [lease]


def test_lease_ids_are_never_used_twice(flights: FlightTable) -> None:
    ids = []
    for _ in range(3):
        lease = load(flights, K, "a")
        join(flights, K, "b")
        ids += [lease.id, granted(flights.give_back(lease.id)).id]
        flights.lose("b")
    assert ids == sorted(set(ids))


def test_leases_are_numbered_one_by_one() -> None:
    assert [load(FlightTable(), K).id, load(FlightTable(41), K).id] == [1, 42]
    table = FlightTable()
    assert [load(table, key).id for key in "xyz"] == [1, 2, 3]


def test_what_an_owner_has_in_flights(flights: FlightTable) -> None:
    lease = load(flights, "x", "a")
    other = load(flights, "y", "b")
    waiting = join(flights, "y", "a")
    assert flights.waiters_of("a") == [lease.holder, waiting]
    assert flights.waiters_of("b") == [other.holder]
    assert flights.waiters_of("c") == flights.waiters_of(None) == []
    assert repr(flights) == "<FlightTable: 2 flights, 3 callers>"


def test_an_ask_needs_a_waiter_of_its_own(flights: FlightTable) -> None:
    lease = load(flights, K)
    with pytest.raises(ValueError, match="expected a new one for each ask"):
        flights.ask((1, b"other"), lease.holder)


# Interleavings


def test_the_holder_dies(flights: FlightTable) -> None:
    lease = load(flights, K, "a")
    b, c = join(flights, K, "b"), join(flights, K, "c")
    second = granted(flights.lose("a"))
    assert second.holder is b
    assert flights.value(lease.id, "from the dead") == []
    assert flights.value(second.id, "value") == [Deliver(K, (c,), "value")]
    assert_nothing_left(flights)


def test_a_lost_lease_does_not_pass_to_another_waiter_of_the_lost_owner(flights: FlightTable) -> None:
    load(flights, K, "a")
    join(flights, K, "a")
    b = join(flights, K, "b")
    join(flights, K, "a")
    assert granted(flights.lose("a")).holder is b
    assert flights.lose("b") == []
    assert_nothing_left(flights)


def test_losing_an_owner_touches_all_of_its_flights_and_no_others(flights: FlightTable) -> None:
    first = load(flights, "x", "a")
    second = load(flights, "y", "b")
    load(flights, "z", "a")
    x, y = join(flights, "x", "b"), join(flights, "y", "a")
    assert granted(flights.lose("a")).holder is x
    assert y.role == "nobody"
    assert [lease.flight.key for lease in flights.live_leases()] == ["x", "y"]
    assert flights.value(first.id, "late") == []
    assert flights.value(second.id, "value") == [Deliver("y", (), "value")]


def test_the_holder_goes_silent_then_sends_the_value(flights: FlightTable) -> None:
    silent = load(flights, K, "a")
    b, c = join(flights, K, "b"), join(flights, K, "c")
    second = granted(flights.revoke(silent.id))
    assert second.holder is b
    assert not silent.live
    assert flights.lease(silent.id) is silent
    # The first value wins. Neither holder is answered: both have their own.
    assert flights.value(silent.id, "late but first") == [Deliver(K, (c,), "late but first")]
    assert flights.value(second.id, "second") == []
    assert_nothing_left(flights)


def test_the_late_value_of_a_revoked_lease_comes_second(flights: FlightTable) -> None:
    silent = load(flights, K, "a")
    join(flights, K, "b")
    second = granted(flights.revoke(silent.id))
    assert flights.value(second.id, "first") == [Deliver(K, (), "first")]
    assert flights.value(silent.id, "late") == []
    assert_nothing_left(flights)


@pytest.mark.parametrize("event", ["error", "give_back"])
def test_a_late_error_or_return_does_not_end_another_load(flights: FlightTable, event: str) -> None:
    silent = load(flights, K, "a")
    b, c = join(flights, K, "b"), join(flights, K, "c")
    second = granted(flights.revoke(silent.id))
    assert getattr(flights, event)(silent.id, *(["boom"] if event == "error" else [])) == []
    assert flights.lease(silent.id) is None  # it had its say
    assert b.role == "holder"
    assert flights.value(second.id, "value") == [Deliver(K, (c,), "value")]


def test_revoking_the_lease_of_the_only_caller_ends_the_flight(flights: FlightTable) -> None:
    lease = load(flights, K)
    assert flights.revoke(lease.id) == []
    assert_nothing_left(flights)
    assert load(flights, K).id > lease.id


def test_a_cancellation_crosses_the_grant(flights: FlightTable) -> None:
    lease = load(flights, K, "a")
    b, c = join(flights, K, "b"), join(flights, K, "c")
    crossing = granted(flights.give_back(lease.id))
    assert crossing.holder is b
    passed_on = granted(flights.cancel(b))  # b gave up before it heard of its lease
    assert passed_on.holder is c
    assert flights.give_back(crossing.id) == []  # and says so when it does
    assert flights.cancel(b) == []
    assert flights.value(passed_on.id, "value") == [Deliver(K, (), "value")]
    assert_nothing_left(flights)


def test_a_waiter_that_gave_up_is_not_answered(flights: FlightTable) -> None:
    lease = load(flights, K, "a")
    b, c = join(flights, K, "b"), join(flights, K, "c")
    assert flights.cancel(b) == []
    assert flights.value(lease.id, "value") == [Deliver(K, (c,), "value")]


def test_error_then_retry(flights: FlightTable) -> None:
    lease = load(flights, K, "a")
    b = join(flights, K, "b")
    error = ValueError("no pixels")
    assert flights.error(lease.id, error) == [Fail(K, (b,), error)]
    assert_nothing_left(flights)
    again = load(flights, K, "b")
    assert flights.value(again.id, "value") == [Deliver(K, (), "value")]
