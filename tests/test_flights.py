"""Flights and leases: each row of the table, the interleavings that it is there for, and a naive model of it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mpgroupcache.ipc.flights import (
    PICKED,
    TRANSITIONS,
    Action,
    Cycle,
    Deliver,
    Event,
    Fail,
    Fetch,
    Flight,
    FlightTable,
    Grant,
    Lease,
    Role,
    Seek,
    State,
    Waiter,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

K = (1, b"cat.jpg")


@pytest.fixture
def table() -> Iterator[FlightTable]:
    table = FlightTable()
    yield table
    assert table.check() == []


def granted(actions: Sequence[Action]) -> Lease:
    """The lease of the one action that there must be."""
    [action] = actions
    assert isinstance(action, Grant)
    assert action.lease.holder is action.waiter
    return action.lease


def load(table: FlightTable, key: Hashable, owner: Hashable = "worker", held: tuple[int, ...] = ()) -> Lease:
    """Ask for a key that nobody loads."""
    return granted(table.ask(key, Waiter(owner, held)))


def join(table: FlightTable, key: Hashable, owner: Hashable = "worker", held: tuple[int, ...] = ()) -> Waiter:
    """Ask for a key that somebody loads."""
    waiter = Waiter(owner, held)
    assert table.ask(key, waiter) == []
    return waiter


def fetch(table: FlightTable, key: Hashable, owner: Hashable = "worker", held: tuple[int, ...] = ()) -> Flight:
    """Ask for a key of a peer's that nobody fetches."""
    [action] = table.ask(key, Waiter(owner, held), "peer")
    assert isinstance(action, Fetch)
    assert action.flight.peer == "peer"
    return action.flight


def seek(table: FlightTable, key: Hashable, owner: Hashable = "guest") -> Flight:
    """Ask as a guest for a key that nobody loads."""
    [action] = table.ask(key, Waiter(owner, guest=True))
    assert isinstance(action, Seek)
    return action.flight


def assert_nothing_left(table: FlightTable) -> None:
    assert table.check() == []  # which tells of leases and owners that no flight knows
    assert repr(table) == "<FlightTable: 0 flights, 0 callers>"
    assert len(table) == 0
    assert table.live_leases() == []


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
            Role.NOBODY: self.newcomer,
            Role.WAITER: self.first,
            Role.GUEST: self.guest,
            Role.HOLDER: self.holder,
            Role.REVOKED: self.revoked,
        }[role]
        assert waiter.role is role
        match event:
            case Event.ASK:
                return self.table.ask(K, waiter)
            case Event.VISIT:
                return self.table.ask(K, self.visitor, "peer")
            case Event.VALUE:
                return self.table.value(self.lease_of(waiter).id, "value")
            case Event.ERROR:
                return self.table.error(self.lease_of(waiter).id, "error")
            case Event.RETURN:
                return self.table.give_back(self.lease_of(waiter).id)
            case Event.REVOKE:
                return self.table.revoke(self.lease_of(waiter).id)
            case Event.CANCEL:
                return self.table.cancel(waiter)
            case Event.LOSE:
                return self.table.lose(waiter.owner)
        raise AssertionError(event)


@dataclass
class Row:
    """What a row of ``TRANSITIONS[LEASED]`` does to the scene, by the names of its waiters."""

    holder: str | None = "holder"
    waiters: list[str] = field(default_factory=lambda: ["first", "second", "guest"])
    revoked: list[str] = field(default_factory=lambda: ["revoked"])
    tells: type[Deliver | Fail] | None = None  # whoever waits


PASSED_ON = Row(holder="first", waiters=["second", "guest"])
ENDED: dict[str, Any] = {"holder": None, "waiters": [], "revoked": []}

ROWS = {
    (Event.ASK, Role.NOBODY): Row(waiters=["first", "second", "guest", "newcomer"]),
    (Event.VISIT, Role.NOBODY): Row(waiters=["first", "second", "guest", "visitor"]),
    (Event.CANCEL, Role.WAITER): Row(waiters=["second", "guest"]),
    (Event.LOSE, Role.WAITER): Row(waiters=["second", "guest"]),
    (Event.CANCEL, Role.GUEST): Row(waiters=["first", "second"]),
    (Event.LOSE, Role.GUEST): Row(waiters=["first", "second"]),
    (Event.VALUE, Role.HOLDER): Row(tells=Deliver, **ENDED),
    (Event.ERROR, Role.HOLDER): Row(tells=Fail, **ENDED),
    (Event.RETURN, Role.HOLDER): PASSED_ON,
    (Event.REVOKE, Role.HOLDER): Row(holder="first", waiters=["second", "guest"], revoked=["revoked", "holder"]),
    (Event.CANCEL, Role.HOLDER): PASSED_ON,
    (Event.LOSE, Role.HOLDER): PASSED_ON,
    (Event.VALUE, Role.REVOKED): Row(tells=Deliver, **ENDED),
    (Event.ERROR, Role.REVOKED): Row(revoked=[]),
    (Event.RETURN, Role.REVOKED): Row(revoked=[]),
    (Event.REVOKE, Role.REVOKED): Row(),
    (Event.CANCEL, Role.REVOKED): Row(revoked=[]),
    (Event.LOSE, Role.REVOKED): Row(revoked=[]),
}


@pytest.mark.parametrize(("event", "role"), TRANSITIONS[State.LEASED], ids=lambda v: v.name)
def test_rows_of_a_leased_flight(event: Event, role: Role) -> None:
    scene, row = Scene(), ROWS[event, role]
    flight = scene.table.flight(K)
    assert flight is not None
    actions = scene.fire(event, role)
    assert scene.table.check() == []
    if row.tells is not None:
        assert actions == [row.tells(K, (scene.first, scene.second, scene.guest), event.name.lower())]
    elif row.holder == "first":
        assert granted(actions).holder is scene.first
    else:
        assert actions == []
    assert flight.state is (State.ENDED if row.holder is None else State.LEASED)
    assert (flight.lease.holder if flight.lease else None) is (getattr(scene, row.holder) if row.holder else None)
    assert list(flight.waiters) == [getattr(scene, name) for name in row.waiters]
    assert list(flight.revoked) == [getattr(scene, name) for name in row.revoked]
    assert (scene.table.lease(scene.holder_lease.id) is not None) == ("holder" in [row.holder, *row.revoked])
    assert (scene.table.lease(scene.revoked_lease.id) is not None) == ("revoked" in row.revoked)
    assert scene.table.flight(K) is (None if row.holder is None else flight)


def test_rows_of_a_flight_without_a_lease(table: FlightTable) -> None:
    assert list(TRANSITIONS[State.UNLEASED]) == [
        (Event.ASK, Role.NOBODY),  # who opens a flight gets its lease,
        (Event.VISIT, Role.NOBODY),  # or waits for a loader
        (Event.NEXT, Role.WAITER),
        (Event.NEXT, Role.GUEST),
        (Event.NEXT, Role.NOBODY),
    ]
    lease = load(table, K)
    assert table.live_leases() == [lease]
    assert table.give_back(lease.id) == []
    assert not lease.live
    assert_nothing_left(table)


def test_nothing_happens_to_an_ended_flight(table: FlightTable) -> None:
    assert TRANSITIONS[State.ENDED] == {}
    lease = load(table, K, "a")
    waiter = join(table, K, "b")
    assert table.value(lease.id, "value") == [Deliver(K, (waiter,), "value")]
    for late in (table.give_back, table.revoke):
        assert late(lease.id) == []
    assert table.value(lease.id, "other") == []
    assert table.error(lease.id, "late") == []
    assert table.cancel(waiter) == []
    assert table.cancel(lease.holder) == []
    assert table.lose("a") == table.lose("b") == []
    assert_nothing_left(table)


@pytest.mark.parametrize("event", ["value", "error"])
def test_a_load_that_nobody_waits_for_still_has_its_outcome(table: FlightTable, event: str) -> None:
    lease = load(table, K)
    [action] = getattr(table, event)(lease.id, "outcome")
    assert action in (Deliver(K, (), "outcome"), Fail(K, (), "outcome"))
    assert_nothing_left(table)


def test_unknown_leases_are_ignored(table: FlightTable) -> None:
    lease = load(table, K)
    for unknown in (0, lease.id + 1, 1 << 62):
        assert table.value(unknown, "v") == table.error(unknown, "e") == []
        assert table.give_back(unknown) == table.revoke(unknown) == []
    assert table.live_leases() == [lease]


def test_lease_ids_are_never_used_twice(table: FlightTable) -> None:
    ids = []
    for _ in range(3):
        lease = load(table, K, "a")
        join(table, K, "b")
        ids += [lease.id, granted(table.give_back(lease.id)).id]
        table.lose("b")
    assert ids == sorted(set(ids))


def test_an_ask_needs_a_waiter_of_its_own(table: FlightTable) -> None:
    lease = load(table, K)
    with pytest.raises(ValueError, match="expected a new one for each ask"):
        table.ask((1, b"other"), lease.holder)


# Interleavings


def test_the_holder_dies(table: FlightTable) -> None:
    lease = load(table, K, "a")
    b, c = join(table, K, "b"), join(table, K, "c")
    second = granted(table.lose("a"))
    assert second.holder is b
    assert table.value(lease.id, "from the dead") == []
    assert table.value(second.id, "value") == [Deliver(K, (c,), "value")]
    assert_nothing_left(table)


def test_a_lost_lease_does_not_pass_to_another_waiter_of_the_lost_owner(table: FlightTable) -> None:
    load(table, K, "a")
    join(table, K, "a")
    b = join(table, K, "b")
    join(table, K, "a")
    assert granted(table.lose("a")).holder is b
    assert table.lose("b") == []
    assert_nothing_left(table)


def test_losing_an_owner_touches_all_of_its_flights_and_no_others(table: FlightTable) -> None:
    first = load(table, "x", "a")
    second = load(table, "y", "b")
    load(table, "z", "a")
    x, y = join(table, "x", "b"), join(table, "y", "a")
    assert granted(table.lose("a")).holder is x
    assert y.role is Role.NOBODY
    assert [lease.flight.key for lease in table.live_leases()] == ["x", "y"]
    assert table.value(first.id, "late") == []
    assert table.value(second.id, "value") == [Deliver("y", (), "value")]


def test_the_holder_goes_silent_then_sends_the_value(table: FlightTable) -> None:
    silent = load(table, K, "a")
    b, c = join(table, K, "b"), join(table, K, "c")
    second = granted(table.revoke(silent.id))
    assert second.holder is b
    assert not silent.live
    assert table.lease(silent.id) is silent
    # The first value wins. Neither holder is answered: both have their own.
    assert table.value(silent.id, "late but first") == [Deliver(K, (c,), "late but first")]
    assert table.value(second.id, "second") == []
    assert_nothing_left(table)


def test_the_late_value_of_a_revoked_lease_comes_second(table: FlightTable) -> None:
    silent = load(table, K, "a")
    join(table, K, "b")
    second = granted(table.revoke(silent.id))
    assert table.value(second.id, "first") == [Deliver(K, (), "first")]
    assert table.value(silent.id, "late") == []
    assert_nothing_left(table)


@pytest.mark.parametrize("event", ["error", "give_back"])
def test_a_late_error_or_return_does_not_end_another_load(table: FlightTable, event: str) -> None:
    silent = load(table, K, "a")
    b, c = join(table, K, "b"), join(table, K, "c")
    second = granted(table.revoke(silent.id))
    assert getattr(table, event)(silent.id, *(["boom"] if event == "error" else [])) == []
    assert table.lease(silent.id) is None  # it had its say
    assert b.role is Role.HOLDER
    assert table.value(second.id, "value") == [Deliver(K, (c,), "value")]


def test_revoking_the_lease_of_the_only_caller_ends_the_flight(table: FlightTable) -> None:
    lease = load(table, K)
    assert table.revoke(lease.id) == []
    assert_nothing_left(table)
    assert load(table, K).id > lease.id


def test_a_cancellation_crosses_the_grant(table: FlightTable) -> None:
    lease = load(table, K, "a")
    b, c = join(table, K, "b"), join(table, K, "c")
    crossing = granted(table.give_back(lease.id))
    assert crossing.holder is b
    passed_on = granted(table.cancel(b))  # b gave up before it heard of its lease
    assert passed_on.holder is c
    assert table.give_back(crossing.id) == []  # and says so when it does
    assert table.cancel(b) == []
    assert table.value(passed_on.id, "value") == [Deliver(K, (), "value")]
    assert_nothing_left(table)


def test_a_waiter_that_gave_up_is_not_answered(table: FlightTable) -> None:
    lease = load(table, K, "a")
    b, c = join(table, K, "b"), join(table, K, "c")
    assert table.cancel(b) == []
    assert table.value(lease.id, "value") == [Deliver(K, (c,), "value")]


def test_error_then_retry(table: FlightTable) -> None:
    lease = load(table, K, "a")
    b = join(table, K, "b")
    error = ValueError("no pixels")
    assert table.error(lease.id, error) == [Fail(K, (b,), error)]
    assert_nothing_left(table)
    again = load(table, K, "b")
    assert table.value(again.id, "value") == [Deliver(K, (), "value")]


# Peers


def test_a_fetch_brings_the_value(table: FlightTable) -> None:
    flight = fetch(table, K, "a")
    [a] = flight.waiters
    b = Waiter("b")
    assert table.ask(K, b, "peer") == []
    c = Waiter("c")
    assert table.ask(K, c) == []  # the ring has changed meanwhile: somebody is fetching it all the same
    assert table.cancel(b) == []
    assert (len(table), table.live_leases(), table.fetch(K)) == (1, [], flight)
    assert table.fetched(flight, "value") == [Deliver(K, (a, c), "value")]
    assert_nothing_left(table)


def test_a_fetch_goes_on_without_waiters(table: FlightTable) -> None:
    flight = fetch(table, K, "a")
    assert table.lose("a") == []
    assert table.fetch(K) is flight
    assert table.fetched(flight, "for the hot cache") == [Deliver(K, (), "for the hot cache")]
    assert_nothing_left(table)


def test_an_unreached_peer_with_nobody_waiting_is_nothing(table: FlightTable) -> None:
    flight = fetch(table, K, "a")
    table.lose("a")
    assert table.unreached(flight) == []
    assert_nothing_left(table)


def test_the_peers_loader_raised(table: FlightTable) -> None:
    flight = fetch(table, K)
    [waiter] = flight.waiters
    assert table.refused(flight, "error") == [Fail(K, (waiter,), "error")]
    assert_nothing_left(table)


def test_the_waiters_of_an_unreached_peer_load_here(table: FlightTable) -> None:
    flight = fetch(table, K, "a")
    [a] = flight.waiters
    b = Waiter("b")
    assert table.ask(K, b, "peer") == []
    lease = granted(table.unreached(flight))
    assert lease.holder is a
    assert table.fetch(K) is None
    assert table.value(lease.id, "value") == [Deliver(K, (b,), "value")]
    assert_nothing_left(table)


def test_a_guest_does_not_wait_for_a_fetch(table: FlightTable) -> None:
    fetching = fetch(table, K, "a")
    [caller] = fetching.waiters
    loading = seek(table, K)
    [guest] = loading.waiters
    lease = granted(table.enlist(loading, Waiter("loader")))
    assert (table.fetch(K), table.flight(K)) == (fetching, loading)
    joined = join(table, K, "b")  # whoever comes now waits for the load: it is here
    assert table.value(lease.id, "value") == [Deliver(K, (guest, joined), "value")]
    assert table.fetched(fetching, "value") == [Deliver(K, (caller,), "value")]
    assert_nothing_left(table)


def test_the_waiters_of_an_unreached_peer_join_a_load_for_a_guest(table: FlightTable) -> None:
    fetching = fetch(table, K, "a")
    [a] = fetching.waiters
    loading = seek(table, K)
    [guest] = loading.waiters
    lease = granted(table.enlist(loading, Waiter("loader")))
    assert table.unreached(fetching) == []
    assert table.value(lease.id, "value") == [Deliver(K, (guest, a), "value")]
    assert_nothing_left(table)


def test_an_unreached_peer_can_close_a_circle(table: FlightTable) -> None:
    # 1. a, a loader of K, waits for "far", which a peer owns. 2. The peer asks here for "far"; its loader here asks for
    # K. 3. The fetch fails, and K's loader would wait for "far", which waits for K.
    k = load(table, K, "a")
    fetching = fetch(table, "far", "a", (k.id,))
    [waiting] = fetching.waiters
    far = granted(table.enlist(seek(table, "far"), Waiter("loader")))
    join(table, K, "loader", (far.id,))
    assert table.unreached(fetching) == [Cycle(waiting, (K, "far"))]


def test_nobody_here_waits_for_a_holder_that_asks_a_peer(table: FlightTable) -> None:
    # 1. a asks a peer that it has picked. 2. The peer takes this host for the owner, and asks here: by a guest, or by a
    # worker that serves it. 3. Both ends would wait for each other.
    asking = granted(table.ask(K, Waiter("a"), PICKED))
    waiting = Waiter("b")
    assert table.ask(K, waiter=waiting, peer=PICKED) == []
    guest = Waiter("peer", guest=True)
    [sought] = table.ask(K, guest, PICKED)
    assert isinstance(sought, Seek)
    here = Waiter("c")
    loading = granted(table.ask(K, here, PICKED, here=True))
    assert table.live_leases() == [loading, asking]
    assert table.value(loading.id, "value") == [Deliver(K, (guest,), "value")]
    assert table.value(asking.id, "peer's") == [Deliver(K, (waiting,), "peer's")]
    assert_nothing_left(table)


def test_a_holder_that_asks_a_peer_can_be_lost(table: FlightTable) -> None:
    asking = granted(table.ask(K, Waiter("a"), PICKED))
    waiting, last = Waiter("b"), Waiter("c")
    assert table.ask(K, waiting, PICKED) == table.ask(K, last, PICKED) == []
    again = granted(table.lose("a"))
    assert again.holder is waiting
    assert table.lease(asking.id) is None
    assert granted(table.revoke(again.id)).holder is last
    assert table.value(again.id, "late") == [Deliver(K, (), "late")]
    assert_nothing_left(table)


def test_who_picks_a_peer_joins_a_load_here(table: FlightTable) -> None:
    lease = load(table, K, "a")
    waiting = Waiter("b")
    assert table.ask(K, waiting, PICKED) == []
    assert table.value(lease.id, "value") == [Deliver(K, (waiting,), "value")]


def test_a_circle_through_a_peer_that_was_picked(table: FlightTable) -> None:
    asking = granted(table.ask(K, Waiter("a"), PICKED))
    inner = load(table, "inner", "a", (asking.id,))
    again = Waiter("a", (asking.id, inner.id))
    assert table.ask(K, again, PICKED) == [Cycle(again, (K, "inner"))]


def test_no_loader_for_guests(table: FlightTable) -> None:
    flight = seek(table, K)
    [guest] = flight.waiters
    assert table.no_loader(flight, "nobody") == [Fail(K, (guest,), "nobody")]
    assert table.no_loader(flight, "nobody") == table.enlist(flight, Waiter("late")) == []
    assert_nothing_left(table)


def test_a_lease_passes_by_guests(table: FlightTable) -> None:
    flight = seek(table, K)
    granted(table.enlist(flight, Waiter("loader")))
    assert table.ask(K, Waiter("another guest", guest=True)) == []
    caller = join(table, K, "caller")
    assert granted(table.lose("loader")).holder is caller
    [action] = table.lose("caller")
    assert isinstance(action, Seek)
    assert action.flight is flight
    first, second = flight.waiters
    assert table.cancel(first) == []
    came = granted(table.ask(K, Waiter("came meanwhile")))
    assert table.enlist(flight, Waiter("late")) == []
    assert table.error(came.id, "error") == [Fail(K, (second,), "error")]
    assert_nothing_left(table)


# Cycles


def test_a_loader_asks_for_its_own_key(table: FlightTable) -> None:
    lease = load(table, K)
    asking = Waiter("worker", (lease.id,))
    assert table.ask(K, asking) == [Cycle(asking, (K,))]
    assert asking.role is Role.NOBODY
    assert table.live_leases() == [lease]


def test_loaders_inside_each_other(table: FlightTable) -> None:
    a = load(table, "a")
    b = load(table, "b", held=(a.id,))
    c = load(table, "c", held=(a.id, b.id))
    for key, keys in (("a", ("a", "b", "c")), ("b", ("b", "c")), ("c", ("c",))):
        asking = Waiter("worker", (a.id, b.id, c.id))
        assert table.ask(key, asking) == [Cycle(asking, keys)]


def test_three_owners_wait_for_each_other(table: FlightTable) -> None:
    a, b, c = (load(table, key, f"owner of {key}") for key in "abc")
    join(table, "b", "owner of a", (a.id,))
    waiting = join(table, "c", "owner of b", (b.id,))
    asking = Waiter("owner of c", (c.id,))
    assert table.ask("a", asking) == [Cycle(asking, ("c", "a", "b"))]
    # Nothing else has changed: c's loader may go on without a, and then everybody has what they wait for.
    assert table.value(c.id, "c") == [Deliver("c", (waiting,), "c")]
    assert [len(table.value(lease.id, lease.flight.key)) for lease in (b, a)] == [1, 1]
    assert_nothing_left(table)


def test_a_circle_through_loaders_inside_each_other(table: FlightTable) -> None:
    a = load(table, "a", "one")
    b = load(table, "b", "one", (a.id,))
    c = load(table, "c", "two")
    join(table, "a", "two", (c.id,))
    asking = Waiter("one", (a.id, b.id))
    assert table.ask("c", asking) == [Cycle(asking, ("a", "b", "c"))]


def test_leases_that_are_not_inside_each_other(table: FlightTable) -> None:
    # A caller that loads for two others: both wait for what it asks, but neither waits for the other.
    a, b = load(table, "a"), load(table, "b")
    c = load(table, "c", held=(a.id, b.id))
    for key in "ab":
        asking = Waiter("worker", (c.id,))
        assert table.ask(key, asking) == [Cycle(asking, ("c", key))]
        asking = Waiter("worker", (a.id, b.id, c.id))
        assert table.ask(key, asking) == [Cycle(asking, (key, "c"))]


def test_the_search_visits_each_flight_once(table: FlightTable) -> None:
    layers = [[load(table, (layer, side)) for side in range(2)] for layer in range(40)]  # with 2**40 ways through them
    for upper, lower in pairwise(layers):
        for above in upper:
            for below in lower:
                join(table, below.flight.key, held=(above.id,))
    join(table, (0, 0), held=(load(table, "other").id,))
    asking = Waiter("worker", (layers[-1][0].id,))
    [cycle] = table.ask((0, 1), asking)
    assert isinstance(cycle, Cycle)
    assert len(cycle.keys) == 40


@pytest.mark.parametrize("how", ["answered", "failed", "cancelled", "lost", "holder lost", "revoked"])
def test_edges_vanish_with_what_they_were_for(table: FlightTable, how: str) -> None:
    a, b = load(table, "a", "a's"), load(table, "b", "b's")
    waiting = join(table, "b", "a's second connection", (a.id,))
    asking = Waiter("b's", (b.id,))
    assert table.ask("a", asking) == [Cycle(asking, ("b", "a"))]
    match how:
        case "answered":
            table.value(b.id, "b")
        case "failed":
            table.error(b.id, "boom")
        case "cancelled":
            table.cancel(waiting)
        case "lost":
            table.lose("a's second connection")
        case "holder lost":
            join(table, "a", "c")
            granted(table.lose("a's"))
        case "revoked":
            join(table, "a", "c")
            granted(table.revoke(a.id))
    join(table, "a", "b's", (b.id,))


def test_a_lease_that_is_passed_on_takes_its_circles_along(table: FlightTable) -> None:
    # 1. a's loader waits for b. 2. b's holder dies, so a's caller gets b's lease. 3. b's loader asks for a.
    a, b = load(table, "a", "one"), load(table, "b", "two")
    join(table, "b", "one", (a.id,))
    again = granted(table.lose("two"))
    asking = Waiter("one", (a.id, again.id))
    assert table.ask("a", asking) == [Cycle(asking, ("a", "b"))]
    assert not b.live
    # 4. From another owner: c's loader waits for a, which waits for b's loader; that one asks for c.
    c = load(table, "c", "three")
    join(table, "a", "three", (c.id,))
    asking = Waiter("one", (a.id, again.id))
    assert table.ask("c", asking) == [Cycle(asking, ("a", "b", "c"))]


def test_stale_leases_make_no_circle(table: FlightTable) -> None:
    stale = load(table, "a", "one")
    join(table, "a", "two")
    granted(table.revoke(stale.id))
    unknown = 1 << 62
    join(table, "a", "one", (stale.id, unknown))  # the new holder will answer it


# A naive model


@dataclass
class ModelFlight:
    live: Waiter | None  # None: a loader is sought
    revoked: list[Waiter]
    queue: list[Waiter]


class Model(RuleBasedStateMachine):
    """The table against lists that are searched. A waiter's outcomes are counted: it gets one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FlightTable()
        self.flights: dict[str, ModelFlight] = {}
        self.fetches: dict[str, list[Waiter]] = {}
        self.waiters: list[Waiter] = []
        self.leases: list[tuple[int, Waiter]] = []  # of all times
        self.outcomes: dict[Waiter, list[str]] = {}
        self.held: dict[Waiter, tuple[int, ...]] = {}  # what was known of a waiter's leases when it asked

    # What is the case

    def lease_of(self, waiter: Waiter) -> int:
        return next((lease_id for lease_id, holder in self.leases if holder is waiter), 0)  # 0: not granted yet

    def holder(self, lease_id: int) -> tuple[str, Waiter, bool] | None:
        """The key, the holder, and whether it is live, of a lease that counts."""
        for key, flight in self.flights.items():
            for waiter in (flight.live, *flight.revoked):
                if waiter is not None and self.lease_of(waiter) == lease_id:
                    return key, waiter, waiter is flight.live
        return None

    def edges(self) -> set[tuple[str, str]]:
        return {
            (waiting, key)
            for key, flight in self.flights.items()
            for waiter in (flight.live, *flight.queue)
            for waiting, other in self.flights.items()
            if waiter is not None and other.live is not None and self.lease_of(other.live) in self.held[waiter]
        }

    def reachable(self, start: str) -> set[str]:
        edges, reached = self.edges(), {start}
        while more := {b for a, b in edges if a in reached} - reached:
            reached |= more
        return reached

    # What must follow

    def perform(self, actions: Sequence[Action], expected: list[tuple[Any, ...]]) -> None:
        got: list[tuple[Any, ...]] = []
        for action in actions:
            match action:
                case Grant(waiter=waiter, lease=lease):
                    got.append(("grant", waiter))
                    assert all(lease.id > earlier for earlier, _ in self.leases)
                    self.leases.append((lease.id, waiter))
                    self.outcomes[waiter].append("grant")
                case Deliver(key=key, waiters=waiters, value=outcome) | Fail(key=key, waiters=waiters, error=outcome):
                    got.append((type(action).__name__, key, waiters, outcome))
                    for waiter in waiters:
                        self.outcomes[waiter].append(type(action).__name__)
                case Fetch(flight=flight):
                    got.append(("fetch", flight.key))
                case Seek(flight=flight):
                    got.append(("seek", flight.key))
                case Cycle(waiter=waiter):
                    got.append(("cycle", waiter))
                    self.outcomes[waiter].append("cycle")
        assert got == expected

    def pass_on(self, key: str) -> list[tuple[Any, ...]]:
        flight = self.flights[key]
        if not flight.queue:
            del self.flights[key]
            return []
        flight.live = next((waiter for waiter in flight.queue if not waiter.guest), None)
        if flight.live is None:
            return [("seek", key)]
        flight.queue.remove(flight.live)
        return [("grant", flight.live)]

    def enter(self, key: str, waiter: Waiter, peer: bool = False) -> list[tuple[Any, ...]]:
        flight = self.flights.get(key)
        held = self.held[waiter]
        named = {k for k, f in self.flights.items() if f.live is not None and self.lease_of(f.live) in held}
        if flight is not None:
            if named & self.reachable(key):
                return [("cycle", waiter)]
            if flight.live is None and not waiter.guest:
                flight.live = waiter
                return [("grant", waiter)]
            flight.queue.append(waiter)
            return []
        if waiter.guest:
            self.flights[key] = ModelFlight(None, [], [waiter])
            return [("seek", key)]
        if key in self.fetches:
            self.fetches[key].append(waiter)
            return []
        if peer:
            self.fetches[key] = [waiter]
            return [("fetch", key)]
        self.flights[key] = ModelFlight(waiter, [], [])
        return [("grant", waiter)]

    def leave(self, waiter: Waiter) -> list[tuple[Any, ...]]:
        for queue in self.fetches.values():
            if waiter in queue:
                queue.remove(waiter)
                self.outcomes[waiter].append("left")
        for key, flight in list(self.flights.items()):
            if waiter in flight.queue:
                flight.queue.remove(waiter)
                self.outcomes[waiter].append("left")
            elif waiter in flight.revoked:
                flight.revoked.remove(waiter)
            elif waiter is flight.live:
                return self.pass_on(key)
        return []

    # What happens

    @rule(key=st.sampled_from("abcd"), owner=st.integers(4, 5))
    def visit(self, key: str, owner: int) -> None:
        waiter = self.newcomer(Waiter(owner, guest=True))
        expected = self.enter(key, waiter)
        self.perform(self.table.ask(key, waiter, "peer"), expected)

    @precondition(lambda self: any(flight.live is None for flight in self.flights.values()))
    @rule(owner=st.integers(1, 3), found=st.booleans(), data=st.data())
    def answer_a_seek(self, owner: int, found: bool, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, flight in self.flights.items() if flight.live is None]))
        flight, model = self.table.flight(key), self.flights[key]
        assert flight is not None
        if found:
            model.live = self.newcomer(Waiter(owner))
            self.perform(self.table.enlist(flight, model.live), [("grant", model.live)])
        else:
            del self.flights[key]
            self.perform(self.table.no_loader(flight, "none"), [("Fail", key, tuple(model.queue), "none")])

    @precondition(lambda self: self.fetches)
    @rule(event=st.sampled_from(["fetched", "refused", "unreached"]), data=st.data())
    def end_a_fetch(self, event: str, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.fetches)))
        flight, queue = self.table.fetch(key), self.fetches.pop(key)
        assert flight is not None
        if event == "unreached":
            expected = []
            for waiter in queue:  # which asks again
                self.waiters.remove(waiter)
                self.waiters.append(waiter)
                self.held[waiter] = tuple(lease_id for lease_id in self.held[waiter] if self.holder(lease_id))
                expected += self.enter(key, waiter)
            # Grants number leases as they come: the model learns of them before it is asked for cycles by them.
            self.perform(self.table.unreached(flight), expected)
        else:
            kind = "Deliver" if event == "fetched" else "Fail"
            self.perform(getattr(self.table, event)(flight, event), [(kind, key, tuple(queue), event)])

    def newcomer(self, waiter: Waiter) -> Waiter:
        self.waiters.append(waiter)
        self.outcomes[waiter] = []
        self.held[waiter] = ()
        return waiter

    @rule(key=st.sampled_from("abcd"), owner=st.integers(1, 3), peer=st.booleans(), data=st.data())
    def ask(self, key: str, owner: int, peer: bool, data: st.DataObject) -> None:
        held: tuple[int, ...] = ()
        # Mostly inside the loaders of live leases, and now and then with any: stale, unknown, not inside each other.
        live = [self.lease_of(flight.live) for flight in self.flights.values() if flight.live is not None]
        for lease_id in data.draw(st.lists(st.sampled_from(live or [1]), max_size=2), "inside loaders of"):
            held += (*next((self.held[holder] for at, holder in self.leases if at == lease_id), ()), lease_id)
        held += tuple(data.draw(st.lists(st.integers(1, len(self.leases) + 1), max_size=1), "and of any"))
        waiter = self.newcomer(Waiter(owner, held))
        self.held[waiter] = tuple(lease_id for lease_id in held if self.holder(lease_id) is not None)
        named = {k for k, f in self.flights.items() if f.live is not None and self.lease_of(f.live) in held}
        expected = self.enter(key, waiter, peer)
        actions = self.table.ask(key, waiter, "peer" if peer else None)
        self.perform(actions, expected)
        if expected == [("cycle", waiter)]:
            [cycle] = actions
            assert isinstance(cycle, Cycle)
            assert len(set(cycle.keys)) == len(cycle.keys)
            assert key in cycle.keys
            round_it = zip(cycle.keys, cycle.keys[1:] + cycle.keys[:1], strict=True)
            assert set(round_it) <= self.edges() | {(k, key) for k in named}

    @precondition(lambda self: self.leases)
    @rule(event=st.sampled_from(["value", "error", "give_back", "revoke"]), data=st.data())
    def lease_event(self, event: str, data: st.DataObject) -> None:
        # Mostly one that counts, or the model would see little but messages that are ignored.
        counting = [lease_id for lease_id, _ in self.leases if self.holder(lease_id)]
        lease_id = data.draw(st.sampled_from(counting or [0]) | st.integers(1, len(self.leases) + 1))
        expected: list[tuple[Any, ...]] = []
        if (found := self.holder(lease_id)) is not None:
            key, holder, live = found
            flight = self.flights[key]
            match event, live:
                case "value", _:
                    expected = [("Deliver", key, tuple(flight.queue), lease_id)]
                    del self.flights[key]
                case "error", True:
                    expected = [("Fail", key, tuple(flight.queue), lease_id)]
                    del self.flights[key]
                case "give_back", True:
                    expected = self.pass_on(key)
                case "revoke", True:
                    flight.revoked.append(holder)
                    expected = self.pass_on(key)
                case (("error" | "give_back"), False):
                    flight.revoked.remove(holder)
        arguments = [lease_id, lease_id] if event in ("value", "error") else [lease_id]
        self.perform(getattr(self.table, event)(*arguments), expected)

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiters[-12:]))
        expected = self.leave(waiter)
        self.perform(self.table.cancel(waiter), expected)

    @rule(owner=st.integers(1, 5))
    def lose(self, owner: int) -> None:
        queues = [*self.fetches.values(), *(flight.queue for flight in self.flights.values())]
        members = [w for f in self.flights.values() for w in (*f.revoked, f.live) if w is not None]
        inside = [w for w in (*members, *(w for queue in queues for w in queue)) if w.owner == owner]
        lost = [w for w in self.waiters if w in inside]  # in order of arrival
        waiting = [w for w in lost if any(w in queue for queue in queues)]
        expected: list[tuple[Any, ...]] = []
        for waiter in [*waiting, *(w for w in lost if w not in waiting)]:
            expected += self.leave(waiter)
        assert {waiter.owner for kind, waiter in expected if kind == "grant"}.isdisjoint({owner})
        self.perform(self.table.lose(owner), expected)

    # What always holds

    @invariant()
    def the_table_agrees(self) -> None:
        assert self.table.check() == []
        assert len(self.table) == len(self.flights) + len(self.fetches)
        for key, queue in self.fetches.items():
            fetch = self.table.fetch(key)
            assert fetch is not None
            assert list(fetch.waiters) == queue
        for key, model in self.flights.items():
            flight = self.table.flight(key)
            assert flight is not None
            assert (None if flight.lease is None else flight.lease.holder) is model.live
            assert list(flight.waiters) == model.queue
            assert list(flight.revoked) == model.revoked

    @invariant()
    def nobody_waits_for_themselves(self) -> None:
        """So some live lease waits for nothing, and all others for such a one in the end."""
        edges = self.edges()
        for key in self.flights:
            assert not any((reached, key) in edges for reached in self.reachable(key))

    @invariant()
    def waiters_have_one_outcome(self) -> None:
        waiting = {waiter for flight in self.flights.values() for waiter in flight.queue}
        waiting.update(waiter for queue in self.fetches.values() for waiter in queue)
        for waiter, outcomes in self.outcomes.items():
            assert len(outcomes) == (0 if waiter in waiting else 1)

    def teardown(self) -> None:
        for key, queue in list(self.fetches.items()):
            fetch = self.table.fetch(key)
            assert fetch is not None
            self.perform(self.table.fetched(fetch, 0), [("Deliver", key, tuple(queue), 0)])
        for key, flight in list(self.flights.items()):
            if flight.live is None:
                sought = self.table.flight(key)
                assert sought is not None
                self.perform(self.table.no_loader(sought, 0), [("Fail", key, tuple(flight.queue), 0)])
                continue
            lease_id = self.lease_of(flight.live)
            self.perform(self.table.value(lease_id, 0), [("Deliver", key, tuple(flight.queue), 0)])
        assert_nothing_left(self.table)
        assert all(len(outcomes) == 1 for outcomes in self.outcomes.values())


TestModel = Model.TestCase
