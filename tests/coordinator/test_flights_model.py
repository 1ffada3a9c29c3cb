"""Flights and leases against a naive model of them all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flying import assert_nothing_left
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpgroupcache.coordinator.flights import (
    Action,
    Cycle,
    Deliver,
    Fail,
    Fetch,
    Flight,
    FlightTable,
    Grant,
    Seek,
    Waiter,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = st.sampled_from(["a1", "a2", "b1", "b2"])  # of two groups


@dataclass(eq=False)
class ModelFlight:
    key: str
    fetches: bool = False
    live: Waiter | None = None  # None, of one that loads here: a loader is sought
    revoked: list[Waiter] = field(default_factory=list)
    queue: list[Waiter] = field(default_factory=list)
    replaced: int = 0  # by how manieth refresh; 0: by none
    overtaken: bool = False
    flight: Flight | None = None  # the table's, once it was told


class Model(RuleBasedStateMachine):
    """The table against lists that are searched. A waiter's outcomes are counted: it gets one.

    Each value is known by its lease or its fetch, and each of these by how many changes there were when it began: what
    is published is never older than its key's last change.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = FlightTable()
        self.flights: list[ModelFlight] = []
        self.waiters: list[Waiter] = []
        self.leases: list[tuple[int, Waiter]] = []  # of all times
        self.outcomes: dict[Waiter, list[str]] = {}
        self.held: dict[Waiter, tuple[int, ...]] = {}  # what was known of a waiter's leases when it asked
        self.changes = self.refreshes = 0
        self.changed: dict[str, int] = {}  # by key: which change was its last one
        self.began: dict[int | Flight, int] = {}  # by lease or fetch: how many changes there had been

    # What is the case

    def found(self, key: str, fetches: bool = False) -> ModelFlight | None:
        """The one that an ask would join."""
        within = [f for f in self.flights if (f.key, f.fetches) == (key, fetches) and self.in_reach(f)]
        assert len(within) <= 1
        return within[0] if within else None

    def in_reach(self, flight: ModelFlight) -> bool:
        return not flight.overtaken and not flight.replaced

    def lease_of(self, waiter: Waiter | None) -> int:
        return next((lease_id for lease_id, holder in self.leases if holder is waiter), 0)  # 0: not granted yet

    def holder(self, lease_id: int) -> tuple[ModelFlight, Waiter] | None:
        """The flight and the holder of a lease that counts."""
        for flight in self.flights:
            for waiter in (flight.live, *flight.revoked):
                if waiter is not None and self.lease_of(waiter) == lease_id:
                    return flight, waiter
        return None

    def loading_in(self, held: tuple[int, ...]) -> set[ModelFlight]:
        return {flight for flight in self.flights if flight.live is not None and self.lease_of(flight.live) in held}

    def edges(self) -> set[tuple[ModelFlight, ModelFlight]]:
        return {
            (waiting, flight)
            for flight in self.flights
            for waiter in (flight.live, *flight.queue)
            if waiter is not None
            for waiting in self.loading_in(self.held[waiter])
        }

    def reachable(self, start: ModelFlight) -> set[ModelFlight]:
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
                    self.began[lease.id] = self.changes
                case Deliver(key, waiters, outcome, overtaken) | Fail(key, waiters, outcome, overtaken):
                    got.append((type(action).__name__, key, waiters, outcome, overtaken))
                    for waiter in waiters:
                        self.outcomes[waiter].append(type(action).__name__)
                    if isinstance(action, Deliver) and not overtaken:
                        assert self.began[outcome] >= self.changed.get(key, 0)
                case Fetch(flight=flight):
                    got.append(("fetch", flight.key))
                    self.began[flight] = self.changes
                case Seek(flight=flight):
                    got.append(("seek", flight.key))
                case Cycle(waiter=waiter):
                    got.append(("cycle", waiter))
                    self.outcomes[waiter].append("cycle")
        assert got == expected
        for model in self.flights:
            if model.flight is None:
                model.flight = self.table.fetch(model.key) if model.fetches else self.table.flight(model.key)

    def ends(self, kind: str, flight: ModelFlight, outcome: object) -> list[tuple[Any, ...]]:
        self.flights.remove(flight)
        if kind == "Deliver" and not flight.overtaken:  # what it has replaced would bring something older
            for other in self.flights:
                if other.key == flight.key and other.replaced:
                    earlier = not flight.replaced or other.replaced < flight.replaced
                    other.overtaken = other.overtaken or earlier
        return [(kind, flight.key, tuple(flight.queue), outcome, flight.overtaken)]

    def pass_on(self, flight: ModelFlight) -> list[tuple[Any, ...]]:
        if not flight.queue:
            self.flights.remove(flight)
            return []
        flight.live = next((waiter for waiter in flight.queue if not waiter.guest), None)
        if flight.live is None:
            return [("seek", flight.key)]
        flight.queue.remove(flight.live)
        return [("grant", flight.live)]

    def enter(self, key: str, waiter: Waiter, peer: bool = False) -> list[tuple[Any, ...]]:
        if (flight := self.found(key)) is not None:
            if self.loading_in(self.held[waiter]) & self.reachable(flight):
                return [("cycle", waiter)]
            if flight.live is None and not waiter.guest:
                flight.live = waiter
                return [("grant", waiter)]
            flight.queue.append(waiter)
            return []
        if waiter.guest:
            self.flights.append(ModelFlight(key, queue=[waiter]))
            return [("seek", key)]
        if (fetch := self.found(key, fetches=True)) is not None:
            fetch.queue.append(waiter)
            return []
        if peer:
            self.flights.append(ModelFlight(key, fetches=True, queue=[waiter]))
            return [("fetch", key)]
        self.flights.append(ModelFlight(key, live=waiter))
        return [("grant", waiter)]

    def leave(self, waiter: Waiter) -> list[tuple[Any, ...]]:
        for flight in self.flights:
            if waiter in flight.queue:
                flight.queue.remove(waiter)
                self.outcomes[waiter].append("left")
                return []
            if waiter in flight.revoked:
                flight.revoked.remove(waiter)
                return []
            if waiter is flight.live:
                return self.pass_on(flight)
        return []

    def overtake(self, *keys: str) -> None:
        self.changes += 1
        for key in keys:
            self.changed[key] = self.changes
        for flight in self.flights:
            flight.overtaken = flight.overtaken or flight.key in keys

    # What happens

    @initialize()
    def begin_with_a_queue(self) -> None:
        """Flights with more than one waiter would be few otherwise, and holders whose lease was taken away fewer."""
        for owner in (1, 2, 3):
            waiter = self.newcomer(Waiter(owner))
            expected = self.enter("a1", waiter)
            self.perform(self.table.ask("a1", waiter), expected)

    @rule(key=KEYS, owner=st.integers(4, 5))
    def visit(self, key: str, owner: int) -> None:
        waiter = self.newcomer(Waiter(owner, guest=True))
        expected = self.enter(key, waiter)
        self.perform(self.table.ask(key, waiter, "peer"), expected)

    @precondition(lambda self: any(not flight.fetches and flight.live is None for flight in self.flights))
    @rule(owner=st.integers(1, 3), found=st.booleans(), data=st.data())
    def answer_a_seek(self, owner: int, found: bool, data: st.DataObject) -> None:
        sought = [flight for flight in self.flights if not flight.fetches and flight.live is None]
        model = data.draw(st.sampled_from(sought))
        assert model.flight is not None
        if found:
            model.live = self.newcomer(Waiter(owner))
            self.perform(self.table.enlist(model.flight, model.live), [("grant", model.live)])
        else:
            expected = self.ends("Fail", model, "none")
            self.perform(self.table.no_loader(model.flight, "none"), expected)

    @precondition(lambda self: any(flight.fetches for flight in self.flights))
    @rule(event=st.sampled_from(["fetched", "refused", "unreached"]), data=st.data())
    def end_a_fetch(self, event: str, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([flight for flight in self.flights if flight.fetches]))
        flight = model.flight
        assert flight is not None
        if event == "unreached":
            self.flights.remove(model)
            expected = []
            for waiter in model.queue:  # which asks again
                self.waiters.remove(waiter)
                self.waiters.append(waiter)
                self.held[waiter] = tuple(lease_id for lease_id in self.held[waiter] if self.holder(lease_id))
                expected += self.enter(model.key, waiter)
            # Grants number leases as they come: the model learns of them before it is asked for cycles by them.
            self.perform(self.table.unreached(flight), expected)
        else:
            expected = self.ends("Deliver" if event == "fetched" else "Fail", model, flight)
            self.perform(getattr(self.table, event)(flight, flight), expected)

    def newcomer(self, waiter: Waiter) -> Waiter:
        self.waiters.append(waiter)
        self.outcomes[waiter] = []
        self.held[waiter] = tuple(lease_id for lease_id in waiter.held if self.holder(lease_id) is not None)
        return waiter

    def caller(self, owner: int, data: st.DataObject) -> Waiter:
        held: tuple[int, ...] = ()
        # Mostly inside the loaders of live leases, and now and then with any: stale, unknown, not inside each other.
        live = [self.lease_of(flight.live) for flight in self.flights if flight.live is not None]
        for lease_id in data.draw(st.lists(st.sampled_from(live or [1]), max_size=2), "inside loaders of"):
            held += (*next((self.held[holder] for at, holder in self.leases if at == lease_id), ()), lease_id)
        held += tuple(data.draw(st.lists(st.integers(1, len(self.leases) + 1), max_size=1), "and of any"))
        return self.newcomer(Waiter(owner, held))

    def closes(self, key: str, named: set[ModelFlight], actions: list[Action]) -> None:
        """The circle that the caller is told is one, and passes through its key."""
        [cycle] = actions
        assert isinstance(cycle, Cycle)
        assert Counter(cycle.keys) <= Counter(flight.key for flight in self.flights)
        assert key in cycle.keys
        round_it = zip(cycle.keys, cycle.keys[1:] + cycle.keys[:1], strict=True)
        edges = {(waiting.key, flight.key) for waiting, flight in self.edges()}
        assert set(round_it) <= edges | {(flight.key, key) for flight in named}

    @rule(key=KEYS, owner=st.integers(1, 3), peer=st.booleans(), data=st.data())
    def ask(self, key: str, owner: int, peer: bool, data: st.DataObject) -> None:
        waiter = self.caller(owner, data)
        named = self.loading_in(waiter.held)
        expected = self.enter(key, waiter, peer)
        actions = self.table.ask(key, waiter, "peer" if peer else None)
        self.perform(actions, expected)
        if expected == [("cycle", waiter)]:
            self.closes(key, named, actions)

    @rule(key=KEYS, owner=st.integers(1, 3), data=st.data())
    def refresh(self, key: str, owner: int, data: st.DataObject) -> None:
        waiter = self.caller(owner, data)
        named, flight = self.loading_in(waiter.held), self.found(key)
        if flight is not None and named & self.reachable(flight):
            actions = self.table.refresh(key, waiter)
            self.perform(actions, [("cycle", waiter)])
            self.closes(key, named, actions)
        else:
            self.refreshes += 1
            for other in (self.found(key), self.found(key, fetches=True)):
                if other is not None:
                    other.replaced = self.refreshes
            expected = self.enter(key, waiter)
            self.perform(self.table.refresh(key, waiter), expected)

    @rule(key=KEYS, owner=st.integers(1, 3), peer=st.booleans())
    def begin(self, key: str, owner: int, peer: bool) -> None:
        waiter = Waiter(owner)
        expected: list[tuple[Any, ...]] = []
        if self.found(key) is None and self.found(key, fetches=True) is None:
            self.flights.append(ModelFlight(key, fetches=peer, live=None if peer else self.newcomer(waiter)))
            expected = [("fetch", key) if peer else ("grant", waiter)]
        self.perform(self.table.begin(key, waiter, "peer" if peer else None), expected)

    @rule(key=KEYS)
    def change(self, key: str) -> None:
        self.overtake(key)
        self.table.change(key)

    @rule(group=st.sampled_from("ab"))
    def clear(self, group: str) -> None:
        self.overtake(f"{group}1", f"{group}2")
        self.table.clear(group)

    @precondition(lambda self: self.leases)
    @rule(event=st.sampled_from(["value", "error", "give_back", "revoke"]), data=st.data())
    def lease_event(self, event: str, data: st.DataObject) -> None:
        # Mostly one that counts, or the model would see little but messages that are ignored.
        counting = [lease_id for lease_id, _ in self.leases if self.holder(lease_id)]
        self.tell(event, data.draw(st.sampled_from(counting or [0]) | st.integers(1, len(self.leases) + 1)))

    @precondition(lambda self: any(flight.revoked for flight in self.flights))
    @rule(data=st.data())
    def late_value(self, data: st.DataObject) -> None:
        """One by chance would seldom be of a holder whose lease was taken away, and its flight overtaken."""
        late = [waiter for flight in self.flights for waiter in flight.revoked]
        self.tell("value", self.lease_of(data.draw(st.sampled_from(late))))

    def tell(self, event: str, lease_id: int) -> None:
        expected: list[tuple[Any, ...]] = []
        if (found := self.holder(lease_id)) is not None:
            flight, holder = found
            match event, holder is flight.live:
                case "value", _:
                    expected = self.ends("Deliver", flight, lease_id)
                case "error", True:
                    expected = self.ends("Fail", flight, lease_id)
                case "give_back", True:
                    expected = self.pass_on(flight)
                case "revoke", True:
                    flight.revoked.append(holder)
                    expected = self.pass_on(flight)
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
        waiting = {waiter for flight in self.flights for waiter in flight.queue}
        inside = waiting | {w for f in self.flights for w in (*f.revoked, f.live) if w is not None}
        lost = [w for w in self.waiters if w in inside and w.owner == owner]  # in order of arrival
        expected: list[tuple[Any, ...]] = []
        for waiter in [*(w for w in lost if w in waiting), *(w for w in lost if w not in waiting)]:
            expected += self.leave(waiter)
        assert {waiter.owner for kind, waiter in expected if kind == "grant"}.isdisjoint({owner})
        self.perform(self.table.lose(owner), expected)

    # What always holds

    @invariant()
    def the_table_agrees(self) -> None:
        assert self.table.check() == []
        assert len(self.table) == len(self.flights)
        live = {self.lease_of(flight.live) for flight in self.flights if flight.live is not None}
        assert {lease.id for lease in self.table.live_leases()} == live
        for model in self.flights:
            flight = model.flight
            assert flight is not None
            assert (None if flight.lease is None else flight.lease.holder) is model.live
            assert list(flight.waiters) == model.queue
            assert list(flight.revoked) == model.revoked
            assert flight.overtaken == model.overtaken
            found = self.table.fetch(model.key) if model.fetches else self.table.flight(model.key)
            assert (found is flight) == self.in_reach(model)

    @invariant()
    def nobody_waits_for_themselves(self) -> None:
        """So some live lease waits for nothing, and all others for such a one in the end."""
        edges = self.edges()
        for flight in self.flights:
            assert not any((reached, flight) in edges for reached in self.reachable(flight))

    @invariant()
    def waiters_have_one_outcome(self) -> None:
        waiting = {waiter for flight in self.flights for waiter in flight.queue}
        for waiter, outcomes in self.outcomes.items():
            assert len(outcomes) == (0 if waiter in waiting else 1)

    def teardown(self) -> None:
        for model in list(self.flights):
            assert model.flight is not None
            if model.fetches:
                self.perform(self.table.fetched(model.flight, model.flight), self.ends("Deliver", model, model.flight))
            elif model.live is None:
                self.perform(self.table.no_loader(model.flight, 0), self.ends("Fail", model, 0))
            else:
                lease_id = self.lease_of(model.live)
                self.perform(self.table.value(lease_id, lease_id), self.ends("Deliver", model, lease_id))
        assert_nothing_left(self.table)
        assert all(len(outcomes) == 1 for outcomes in self.outcomes.values())


TestModel = Model.TestCase
