"""Flights that would wait for each other: which circles are found, what they name, and what makes none."""

from __future__ import annotations

from itertools import pairwise

import pytest
from flying import K, assert_nothing_left, granted, join, load

from mpgroupcache.coordinator.flights import Cycle, Deliver, FlightTable, Waiter


def test_a_loader_asks_for_its_own_key(flights: FlightTable) -> None:
    lease = load(flights, K)
    asking = Waiter("worker", (lease.id,))
    assert flights.ask(K, asking) == [Cycle(asking, (K,))]
    assert asking.role == "nobody"
    assert flights.live_leases() == [lease]


def test_loaders_inside_each_other(flights: FlightTable) -> None:
    a = load(flights, "a")
    b = load(flights, "b", held=(a.id,))
    c = load(flights, "c", held=(a.id, b.id))
    for key, keys in (("a", ("a", "b", "c")), ("b", ("b", "c")), ("c", ("c",))):
        asking = Waiter("worker", (a.id, b.id, c.id))
        assert flights.ask(key, asking) == [Cycle(asking, keys)]


def test_three_owners_wait_for_each_other(flights: FlightTable) -> None:
    a, b, c = (load(flights, key, f"owner of {key}") for key in "abc")
    join(flights, "b", "owner of a", (a.id,))
    waiting = join(flights, "c", "owner of b", (b.id,))
    asking = Waiter("owner of c", (c.id,))
    assert flights.ask("a", asking) == [Cycle(asking, ("c", "a", "b"))]
    # Nothing else has changed: c's loader may go on without a, and then everybody has what they wait for.
    assert flights.value(c.id, "c") == [Deliver("c", (waiting,), "c")]
    assert [len(flights.value(lease.id, lease.flight.key)) for lease in (b, a)] == [1, 1]
    assert_nothing_left(flights)


def test_a_circle_through_loaders_inside_each_other(flights: FlightTable) -> None:
    a = load(flights, "a", "one")
    b = load(flights, "b", "one", (a.id,))
    c = load(flights, "c", "two")
    join(flights, "a", "two", (c.id,))
    asking = Waiter("one", (a.id, b.id))
    assert flights.ask("c", asking) == [Cycle(asking, ("a", "b", "c"))]


def test_leases_that_are_not_inside_each_other(flights: FlightTable) -> None:
    # A caller that loads for two others: both wait for what it asks, but neither waits for the other.
    a, b = load(flights, "a"), load(flights, "b")
    c = load(flights, "c", held=(a.id, b.id))
    for key in "ab":
        asking = Waiter("worker", (c.id,))
        assert flights.ask(key, asking) == [Cycle(asking, ("c", key))]
        asking = Waiter("worker", (a.id, b.id, c.id))
        assert flights.ask(key, asking) == [Cycle(asking, (key, "c"))]


def test_the_search_visits_each_flight_once(flights: FlightTable) -> None:
    # With 2**40 ways through them.
    layers = [[load(flights, (layer, side)) for side in range(2)] for layer in range(40)]
    for upper, lower in pairwise(layers):
        for above in upper:
            for below in lower:
                join(flights, below.flight.key, held=(above.id,))
    join(flights, (0, 0), held=(load(flights, "other").id,))
    asking = Waiter("worker", (layers[-1][0].id,))
    [cycle] = flights.ask((0, 1), asking)
    assert isinstance(cycle, Cycle)
    assert len(cycle.keys) == 40


@pytest.mark.parametrize("how", ["answered", "failed", "cancelled", "lost", "holder lost", "revoked"])
def test_edges_vanish_with_what_they_were_for(flights: FlightTable, how: str) -> None:
    a, b = load(flights, "a", "a's"), load(flights, "b", "b's")
    waiting = join(flights, "b", "a's second connection", (a.id,))
    asking = Waiter("b's", (b.id,))
    assert flights.ask("a", asking) == [Cycle(asking, ("b", "a"))]
    match how:
        case "answered":
            flights.value(b.id, "b")
        case "failed":
            flights.error(b.id, "boom")
        case "cancelled":
            flights.cancel(waiting)
        case "lost":
            flights.lose("a's second connection")
        case "holder lost":
            join(flights, "a", "c")
            granted(flights.lose("a's"))
        case "revoked":
            join(flights, "a", "c")
            granted(flights.revoke(a.id))
    join(flights, "a", "b's", (b.id,))


def test_a_lease_that_is_passed_on_takes_its_circles_along(flights: FlightTable) -> None:
    # 1. a's loader waits for b. 2. b's holder dies, so a's caller gets b's lease. 3. b's loader asks for a.
    a, b = load(flights, "a", "one"), load(flights, "b", "two")
    join(flights, "b", "one", (a.id,))
    again = granted(flights.lose("two"))
    asking = Waiter("one", (a.id, again.id))
    assert flights.ask("a", asking) == [Cycle(asking, ("a", "b"))]
    assert not b.live
    # 4. From another owner: c's loader waits for a, which waits for b's loader; that one asks for c.
    c = load(flights, "c", "three")
    join(flights, "a", "three", (c.id,))
    asking = Waiter("one", (a.id, again.id))
    assert flights.ask("c", asking) == [Cycle(asking, ("a", "b", "c"))]


def test_stale_leases_make_no_circle(flights: FlightTable) -> None:
    stale = load(flights, "a", "one")
    join(flights, "a", "two")
    granted(flights.revoke(stale.id))
    unknown = 1 << 62
    join(flights, "a", "one", (stale.id, unknown))  # the new holder will answer it


def test_who_waits_for_a_lease_that_was_taken_away_may_still_leave(flights: FlightTable) -> None:
    """1. A holds x, and waits for y. 2. x is taken from it, and B holds it: nobody waits through A. 3. A gives up."""
    x = load(flights, "x", "a")
    join(flights, "x", "b")
    load(flights, "y", "c")
    waiting = join(flights, "y", "a", (x.id,))
    assert list(x.asks) == [waiting]
    granted(flights.revoke(x.id))
    assert x.asks == {}
    assert flights.cancel(waiting) == []
    assert waiting.role == "nobody"
