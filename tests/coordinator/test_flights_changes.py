"""Flights of keys that change: who is overtaken, and what a refresh finds. races/ has the interleavings."""

from __future__ import annotations

import pytest
from flying import K, assert_nothing_left, fetch, granted, join, load, seek

from mpgroupcache.coordinator.flights import PICKED, Cycle, Deliver, Fail, Fetch, FlightTable, Waiter

OTHER, ELSEWHERE = (1, b"dog.jpg"), (2, b"cat.jpg")  # of K's group, and of another one with K's key


def test_a_change_overtakes_the_load_and_the_fetch_of_its_key_and_no_other(flights: FlightTable) -> None:
    far, here = fetch(flights, K), seek(flights, K)
    others = [load(flights, key).flight for key in (OTHER, ELSEWHERE)]
    flights.change(K)
    assert (flights.flight(K), flights.fetch(K)) == (None, None)
    assert [flight.overtaken for flight in (far, here, *others)] == [True, True, False, False]
    assert [flights.flight(flight.key) for flight in others] == others
    assert flights.check() == []


def test_a_change_of_what_nobody_loads_is_nothing(flights: FlightTable) -> None:
    flights.change(K)
    flights.clear(1)
    assert_nothing_left(flights)


def test_clear_overtakes_a_group(flights: FlightTable) -> None:
    far, here = fetch(flights, K), seek(flights, K)
    other, elsewhere = load(flights, OTHER).flight, load(flights, ELSEWHERE).flight
    flights.clear(1)
    assert [flight.overtaken for flight in (far, here, other, elsewhere)] == [True, True, True, False]
    assert flights.flight(ELSEWHERE) is elsewhere
    assert flights.check() == []
    flights.clear(1)  # whom a change has overtaken stays so
    assert len(flights) == 4


def test_overtaken_flights_are_watched_as_others(flights: FlightTable) -> None:
    old = load(flights, K, "a")
    waiting = join(flights, K, "b")
    flights.change(K)
    new = load(flights, K, "c")
    assert flights.live_leases() == [new, old]
    assert flights.waiters_of("b") == [waiting]
    assert repr(flights) == "<FlightTable: 2 flights, 3 callers>"
    again = granted(flights.revoke(old.id))
    assert again.flight.overtaken
    assert flights.give_back(again.id) == flights.give_back(new.id) == []
    assert_nothing_left(flights)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("late", ["revoked", "holder"])
def test_no_value_of_an_overtaken_flight_is_published(flights: FlightTable, late: str, waits: bool) -> None:
    silent = load(flights, K, "a")
    join(flights, K, "b")
    waiters = (join(flights, K, "c"),) if waits else ()
    flights.change(K)
    holder = granted(flights.revoke(silent.id))
    lease = silent if late == "revoked" else holder
    assert flights.value(lease.id, "old") == [Deliver(K, waiters, "old", overtaken=True)]
    assert_nothing_left(flights)


def test_who_fails_is_told_that_the_load_was_overtaken(flights: FlightTable) -> None:
    lease, far, sought = load(flights, OTHER), fetch(flights, ELSEWHERE), seek(flights, K)
    for key in (OTHER, ELSEWHERE, K):
        flights.change(key)
    assert flights.error(lease.id, "boom") == [Fail(OTHER, (), "boom", overtaken=True)]
    for flight, event in ((far, flights.refused), (sought, flights.no_loader)):
        told = Fail(flight.key, tuple(flight.waiters), "boom", overtaken=True)
        assert event(flight, "boom") == [told]
    assert_nothing_left(flights)


def test_a_loader_that_is_sought_may_come_after_the_change(flights: FlightTable) -> None:
    """Also when its guest has left: the driver has not been told that nobody is sought any more."""
    flight = seek(flights, K, "guest")
    assert flights.lose("guest") == []
    flights.change(K)
    lease = granted(flights.enlist(flight, Waiter("loader")))
    assert flights.value(lease.id, "value") == [Deliver(K, (), "value", overtaken=True)]
    assert_nothing_left(flights)


def test_circles_are_found_through_overtaken_flights(flights: FlightTable) -> None:
    """1. a loads K, and c's loader waits for it. 2. K is changed. 3. a's loader waits for b's. 4. b's asks for c's."""
    old = load(flights, K, "a")
    waiting = load(flights, ELSEWHERE, "c")
    join(flights, K, "c", (waiting.id,))
    flights.change(K)
    other = load(flights, OTHER, "b")
    join(flights, OTHER, "a", (old.id,))
    asking = Waiter("b", (other.id,))
    assert flights.ask(ELSEWHERE, asking) == [Cycle(asking, (OTHER, ELSEWHERE, K))]
    granted(flights.ask(K, asking))  # the load that began after the change waits for nobody


def test_a_loader_that_changes_its_own_key_loads_anew(flights: FlightTable) -> None:
    old = load(flights, K)
    flights.change(K)
    new = load(flights, K, held=(old.id,))
    asking = Waiter("worker", (old.id, new.id))
    assert flights.ask(K, asking) == [Cycle(asking, (K,))]


def test_a_loader_that_refreshes_its_own_key_would_never_end(flights: FlightTable) -> None:
    lease = load(flights, K)
    asking = Waiter("worker", (lease.id,))
    assert flights.refresh(K, asking) == [Cycle(asking, (K,))]
    assert not lease.flight.overtaken
    picked = granted(flights.ask(OTHER, Waiter("worker"), PICKED))
    asking = Waiter("worker", (lease.id, picked.id))
    assert flights.refresh(OTHER, asking) == [Cycle(asking, (OTHER,))]
    assert flights.live_leases() == [lease, picked]


def test_a_refresh_replaces_a_load_and_a_fetch(flights: FlightTable) -> None:
    far, here = fetch(flights, K), seek(flights, K)
    lease = granted(flights.refresh(K, Waiter("worker")))
    assert (flights.flight(K), flights.fetch(K)) == (lease.flight, None)
    assert (far.overtaken, here.overtaken, lease.flight.overtaken) == (False, False, False)
    assert flights.check() == []
    flights.value(lease.id, "value")
    assert (far.overtaken, here.overtaken) == (True, True)
    assert flights.check() == []


def test_a_change_overtakes_what_a_refresh_has_replaced(flights: FlightTable) -> None:
    first = load(flights, K)
    second = granted(flights.refresh(K, Waiter("worker")))
    third = granted(flights.refresh(K, Waiter("worker")))
    assert flights.value(third.id, "third") == [Deliver(K, (), "third")]
    assert (first.flight.overtaken, second.flight.overtaken) == (True, True)
    fourth = granted(flights.refresh(K, Waiter("worker")))
    fifth = granted(flights.refresh(K, Waiter("worker")))
    flights.change(K)
    assert (fourth.flight.overtaken, fifth.flight.overtaken) == (True, True)
    assert flights.value(fourth.id, "fourth") == [Deliver(K, (), "fourth", overtaken=True)]


def test_what_was_replaced_is_good_until_a_later_one_is_there(flights: FlightTable) -> None:
    """A refresh that has returned is seen, though another one has begun meanwhile, and however that ends."""
    leases = [granted(flights.refresh(K, Waiter(name))) for name in "abcd"]
    assert flights.value(leases[1].id, "b") == [Deliver(K, (), "b")]
    assert [lease.flight.overtaken for lease in leases] == [True, False, False, False]
    assert flights.give_back(leases[3].id) == []
    assert flights.value(leases[2].id, "c") == [Deliver(K, (), "c")]
    assert flights.value(leases[0].id, "a") == [Deliver(K, (), "a", overtaken=True)]
    assert_nothing_left(flights)


def test_of_a_load_and_a_fetch_that_one_refresh_has_replaced_neither_is_later(flights: FlightTable) -> None:
    far, here = fetch(flights, K), seek(flights, K)
    flights.refresh(K, Waiter("worker"))
    flights.fetched(far, "value")
    assert not here.overtaken
    assert flights.check() == []


def test_clear_overtakes_what_was_replaced(flights: FlightTable) -> None:
    lease = load(flights, K)
    flights.refresh(K, Waiter("worker"))
    flights.clear(K[0])
    assert lease.flight.overtaken
    assert flights.check() == []


def test_a_refresh_of_what_nobody_loads_is_an_ask(flights: FlightTable) -> None:
    lease = granted(flights.refresh(K, Waiter("worker")))
    waiting = join(flights, K)
    assert flights.value(lease.id, "value") == [Deliver(K, (waiting,), "value")]


@pytest.mark.parametrize("peer", [None, PICKED])
def test_a_flight_that_nobody_asked_for_ends_with_its_lease(flights: FlightTable, peer: object) -> None:
    for end in (flights.give_back, flights.revoke, lambda _: flights.lose("worker")):
        lease = granted(flights.begin(K, Waiter("worker"), peer))
        assert flights.begin(K, Waiter("other"), peer) == []
        assert len(flights) == 1
        assert end(lease.id) == []
        assert_nothing_left(flights)


def test_a_fetch_that_nobody_asked_for(flights: FlightTable) -> None:
    leader = Waiter("worker")
    [action] = flights.begin(K, leader, "peer")
    assert isinstance(action, Fetch)
    flight = action.flight
    assert (flight.peer, flight.state, leader.role, flights.fetch(K)) == ("peer", "fetching", "nobody", flight)
    waiting = Waiter("asked meanwhile")
    assert flights.ask(K, waiting, "peer") == []
    assert granted(flights.unreached(flight)).holder is waiting


def test_nothing_is_begun_beside_what_is_under_way(flights: FlightTable) -> None:
    fetch(flights, K)
    seek(flights, OTHER)
    for key in (K, OTHER):
        assert flights.begin(key, Waiter("worker")) == flights.begin(key, Waiter("worker"), "peer") == []
    flights.change(K)
    granted(flights.begin(K, Waiter("worker")))  # what was overtaken is not in its way
