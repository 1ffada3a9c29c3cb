"""Flights and leases against a naive model of them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flying import assert_nothing_left
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mpgroupcache.coordinator.flights import Action, Cycle, Deliver, Fail, Fetch, FlightTable, Grant, Seek, Waiter

if TYPE_CHECKING:
    from collections.abc import Sequence


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
