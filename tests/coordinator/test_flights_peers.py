"""Flights and peers: fetches from their owners, guests that they send, and holders that ask a peer that was picked."""

from __future__ import annotations

from flying import K, assert_nothing_left, fetch, granted, join, load, seek

from mpgroupcache.coordinator.flights import PICKED, Cycle, Deliver, Fail, FlightTable, Seek, Waiter


def test_a_fetch_brings_the_value(flights: FlightTable) -> None:
    flight = fetch(flights, K, "a")
    [a] = flight.waiters
    b = Waiter("b")
    assert flights.ask(K, b, "peer") == []
    c = Waiter("c")
    assert flights.ask(K, c) == []  # the ring has changed meanwhile: somebody is fetching it all the same
    assert flights.cancel(b) == []
    assert (len(flights), flights.live_leases(), flights.fetch(K)) == (1, [], flight)
    assert flights.fetched(flight, "value") == [Deliver(K, (a, c), "value")]
    assert_nothing_left(flights)


def test_a_fetch_goes_on_without_waiters(flights: FlightTable) -> None:
    flight = fetch(flights, K, "a")
    assert flights.lose("a") == []
    assert flights.fetch(K) is flight
    assert flights.fetched(flight, "for the hot cache") == [Deliver(K, (), "for the hot cache")]
    assert_nothing_left(flights)


def test_an_unreached_peer_with_nobody_waiting_is_nothing(flights: FlightTable) -> None:
    flight = fetch(flights, K, "a")
    flights.lose("a")
    assert flights.unreached(flight) == []
    assert_nothing_left(flights)


def test_the_peers_loader_raised(flights: FlightTable) -> None:
    flight = fetch(flights, K)
    [waiter] = flight.waiters
    assert flights.refused(flight, "error") == [Fail(K, (waiter,), "error")]
    assert_nothing_left(flights)


def test_the_waiters_of_an_unreached_peer_load_here(flights: FlightTable) -> None:
    flight = fetch(flights, K, "a")
    [a] = flight.waiters
    b = Waiter("b")
    assert flights.ask(K, b, "peer") == []
    lease = granted(flights.unreached(flight))
    assert lease.holder is a
    assert flights.fetch(K) is None
    assert flights.value(lease.id, "value") == [Deliver(K, (b,), "value")]
    assert_nothing_left(flights)


def test_a_guest_does_not_wait_for_a_fetch(flights: FlightTable) -> None:
    fetching = fetch(flights, K, "a")
    [caller] = fetching.waiters
    loading = seek(flights, K)
    [guest] = loading.waiters
    lease = granted(flights.enlist(loading, Waiter("loader")))
    assert (flights.fetch(K), flights.flight(K)) == (fetching, loading)
    joined = join(flights, K, "b")  # whoever comes now waits for the load: it is here
    assert flights.value(lease.id, "value") == [Deliver(K, (guest, joined), "value")]
    assert flights.fetched(fetching, "value") == [Deliver(K, (caller,), "value")]
    assert_nothing_left(flights)


def test_the_waiters_of_an_unreached_peer_join_a_load_for_a_guest(flights: FlightTable) -> None:
    fetching = fetch(flights, K, "a")
    [a] = fetching.waiters
    loading = seek(flights, K)
    [guest] = loading.waiters
    lease = granted(flights.enlist(loading, Waiter("loader")))
    assert flights.unreached(fetching) == []
    assert flights.value(lease.id, "value") == [Deliver(K, (guest, a), "value")]
    assert_nothing_left(flights)


def test_an_unreached_peer_can_close_a_circle(flights: FlightTable) -> None:
    # 1. a, a loader of K, waits for "far", which a peer owns. 2. The peer asks here for "far"; its loader here asks for
    # K. 3. The fetch fails, and K's loader would wait for "far", which waits for K.
    k = load(flights, K, "a")
    fetching = fetch(flights, "far", "a", (k.id,))
    [waiting] = fetching.waiters
    far = granted(flights.enlist(seek(flights, "far"), Waiter("loader")))
    join(flights, K, "loader", (far.id,))
    assert flights.unreached(fetching) == [Cycle(waiting, (K, "far"))]


def test_nobody_here_waits_for_a_holder_that_asks_a_peer(flights: FlightTable) -> None:
    # 1. a asks a peer that it has picked. 2. The peer takes this host for the owner, and asks here: by a guest, or by a
    # worker that serves it. 3. Both ends would wait for each other.
    asking = granted(flights.ask(K, Waiter("a"), PICKED))
    waiting = Waiter("b")
    assert flights.ask(K, waiter=waiting, peer=PICKED) == []
    guest = Waiter("peer", guest=True)
    [sought] = flights.ask(K, guest, PICKED)
    assert isinstance(sought, Seek)
    here = Waiter("c")
    loading = granted(flights.ask(K, here, PICKED, here=True))
    assert flights.live_leases() == [loading, asking]
    assert flights.value(loading.id, "value") == [Deliver(K, (guest,), "value")]
    assert flights.value(asking.id, "peer's") == [Deliver(K, (waiting,), "peer's")]
    assert_nothing_left(flights)


def test_a_holder_that_asks_a_peer_can_be_lost(flights: FlightTable) -> None:
    asking = granted(flights.ask(K, Waiter("a"), PICKED))
    waiting, last = Waiter("b"), Waiter("c")
    assert flights.ask(K, waiting, PICKED) == flights.ask(K, last, PICKED) == []
    again = granted(flights.lose("a"))
    assert again.holder is waiting
    assert flights.lease(asking.id) is None
    assert granted(flights.revoke(again.id)).holder is last
    assert flights.value(again.id, "late") == [Deliver(K, (), "late")]
    assert_nothing_left(flights)


def test_who_picks_a_peer_joins_a_load_here(flights: FlightTable) -> None:
    lease = load(flights, K, "a")
    waiting = Waiter("b")
    assert flights.ask(K, waiting, PICKED) == []
    assert flights.value(lease.id, "value") == [Deliver(K, (waiting,), "value")]


def test_a_circle_through_a_peer_that_was_picked(flights: FlightTable) -> None:
    asking = granted(flights.ask(K, Waiter("a"), PICKED))
    inner = load(flights, "inner", "a", (asking.id,))
    again = Waiter("a", (asking.id, inner.id))
    assert flights.ask(K, again, PICKED) == [Cycle(again, (K, "inner"))]


def test_no_loader_for_guests(flights: FlightTable) -> None:
    flight = seek(flights, K)
    [guest] = flight.waiters
    assert flights.no_loader(flight, "nobody") == [Fail(K, (guest,), "nobody")]
    assert flights.no_loader(flight, "nobody") == flights.enlist(flight, Waiter("late")) == []
    assert_nothing_left(flights)


def test_a_lease_passes_by_guests(flights: FlightTable) -> None:
    flight = seek(flights, K)
    granted(flights.enlist(flight, Waiter("loader")))
    assert flights.ask(K, Waiter("another guest", guest=True)) == []
    caller = join(flights, K, "caller")
    assert granted(flights.lose("loader")).holder is caller
    [action] = flights.lose("caller")
    assert isinstance(action, Seek)
    assert action.flight is flight
    first, second = flight.waiters
    assert flights.cancel(first) == []
    came = granted(flights.ask(K, Waiter("came meanwhile")))
    assert flights.enlist(flight, Waiter("late")) == []
    assert flights.error(came.id, "error") == [Fail(K, (second,), "error")]
    assert_nothing_left(flights)
