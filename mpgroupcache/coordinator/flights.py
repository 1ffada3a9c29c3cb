"""Flights and leases: one load per key, any number of callers that wait for it. No sockets, no clock, no threads.

What an event leads to is data, in transitions.py; the steps are done here. A driver (the coordinator for its host, a
worker without coordinator for its own threads) tells a ``FlightTable`` what happened, and carries out the actions that
it returns.

A *flight* is one load of one key. Its *waiters* are the callers that asked for the key, in order of arrival. One of
them, the *holder*, has the flight's *lease*: the right and the duty to load. It gets no answer, since it has its own
value; all others get that value. A lease that ends without one is passed on to the next waiter.

A key whose owner is a remote peer has a flight that asks the peer, a *fetch*. When the peer fails, its waiters ask
again as if the key were this host's own. The peers' requests are waiters too, *guests*: they cannot load, so a flight
that has none but guests seeks a loader. A guest never waits for a fetch, or two hosts that each take the other for the
owner would wait for each other: beside the fetch there may be one flight of the same key that loads here.

A change of a key *overtakes* its flights. They go on for their waiters, who asked before it, but they are out of reach:
who asks afterwards opens a new flight, and the driver publishes nothing of theirs. A refresh *replaces* them: they are
out of reach, too, but what they bring is as good as any, until a later one of them has brought something.

Guarantees:

- A flight that loads here has one live lease between any two calls, but for the moment in which the driver seeks its
  loader; so it never hangs, as long as the driver tells of lost or silent holders, and of what became of each fetch. It
  ends when it has its value, its error, or nobody who wants one.
- Each waiter gets one outcome: Deliver, Fail, Cycle, or, by its own doing, none (it held the lease, left or was lost).
- A lease that was taken away from a silent holder stays known while its flight lasts: the first value wins, whoever
  sends it. Messages about any other lease are ignored.
- No lease waits for itself. A waiter names the leases that its caller holds, outermost first. Each of their flights
  then waits for the flight that was asked for, as long as that waiter waits in it or holds its lease. An ask that would
  close a circle ends at once, and changes nothing.
- A flight that is not overtaken has a value whose load began after the last change of its key: each of its leases was
  granted, and its peer asked, when it could be found under the key, or has been replaced since. And no later flight of
  the key has brought a value before it.
- Nothing of an ended flight is kept.

This code assumes that its calls come one at a time, and that each ask brings a waiter of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import chain
from typing import Any, Final

from mpgroupcache.coordinator.actions import Action, Cycle, Deliver, Fail, Fetch, Grant, Seek
from mpgroupcache.coordinator.transitions import TRANSITIONS, Event, Role, Step
from mpgroupcache.coordinator.waiters import Flight, Lease, Waiter, find_circle

_NOBODY: Final = Waiter(owner=None)

PICKED: Final = object()
"""The peer of a flight whose holder asks one of its own choice before it loads; guests do not wait for that, either."""


class FlightTable:
    """All flights of one driver.

    An event costs the same however many flights there are, but for an ask by a caller that holds leases, which walks
    the flights that wait for each other, and for ``clear``.
    """

    __slots__ = ("_apart", "_fetches", "_flights", "_last_id", "_leases", "_owners", "_refreshes", "_replaced")

    def __init__(self, last_id: int = 0) -> None:
        """``last_id``: leases are numbered from the next on."""
        self._flights: dict[Hashable, Flight] = {}  # those that load here
        self._fetches: dict[Hashable, Flight] = {}  # those that ask a peer, or whose holder does
        self._apart: dict[Flight, None] = {}  # those of either kind that are under their keys no more
        self._replaced: dict[Hashable, list[Flight]] = {}  # of these, by key, those not overtaken
        self._refreshes = 0  # that there were
        self._leases: dict[int, Lease] = {}  # the live ones, and the revoked ones of flights that last
        self._owners: dict[Hashable, dict[Waiter, None]] = {}  # all waiters that are in a flight
        self._last_id = last_id

    def __repr__(self) -> str:
        return f"<FlightTable: {len(self)} flights, {sum(map(len, self._owners.values()))} callers>"

    def __len__(self) -> int:
        """How many flights there are."""
        return len(self._flights) + len(self._fetches) + len(self._apart)

    def flight(self, key: Hashable) -> Flight | None:
        """Return the flight that loads ``key`` here, and that an ask would join."""
        return self._flights.get(key)

    def fetch(self, key: Hashable) -> Flight | None:
        """Return the flight that asks a peer for ``key``, likewise."""
        return self._fetches.get(key)

    def lease(self, lease_id: int) -> Lease | None:
        """Return a lease whose value would count: a live one, or one that was revoked and whose flight lasts."""
        return self._leases.get(lease_id)

    def live_leases(self) -> list[Lease]:
        """Return each flight's lease: whose holders to ping, whose age to check."""
        flights = chain(self._flights.values(), self._fetches.values(), self._apart)
        return [flight.lease for flight in flights if flight.lease is not None]

    def waiters_of(self, owner: Hashable) -> list[Waiter]:
        """Return an owner's waiters that are in a flight, those that hold leases too."""
        return list(self._owners.get(owner, ()))

    def ask(self, key: Hashable, waiter: Waiter, peer: Any = None, *, here: bool = False) -> list[Action]:
        """A caller wants ``key``: it joins a flight of that key, or opens one.

        ``peer``: who owns the key, where that is another host; a new flight asks there. Otherwise, and if it is
        ``PICKED``, whoever opens a flight is granted its lease, or, as a guest, has the driver seek a loader. ``here``:
        it waits for no fetch, as a guest does not; but it can load.
        """
        if waiter.flight is not None:
            raise ValueError(f"waiter: got {waiter} that waits already, expected a new one for each ask")
        here = here or waiter.guest
        held = self._still_held(waiter) if waiter.held else []
        flight = self._flights.get(key)
        if flight is None and self._fetches and not here:
            flight = self._fetches.get(key)
        if flight is None:  # its loader has asked for nothing yet, so that it closes no circle
            flight = self._open(key, None if here else peer)
        elif circle := find_circle(flight, held):
            return [Cycle(waiter, circle)]
        return self._fire(("visit", "nobody") if waiter.guest else ("ask", "nobody"), flight, waiter)

    def refresh(self, key: Hashable, waiter: Waiter) -> list[Action]:
        """A caller wants a load of ``key`` that begins now: it replaces what is under way, and is granted a new lease.

        An ask that would close a circle closes it here, too, and changes nothing: a loader that refreshes its own key
        would never end.
        """
        held = self._still_held(waiter)
        for flight in (self._flights.get(key), self._fetches.get(key)):
            if flight is not None and (circle := find_circle(flight, held)):
                return [Cycle(waiter, circle)]
        self._refreshes += 1
        for flights in (self._flights, self._fetches):
            if (flight := flights.get(key)) is not None:
                self._fire(("replace", "nobody"), flight, _NOBODY)
        return self.ask(key, waiter)

    def begin(self, key: Hashable, waiter: Waiter, peer: Any = None) -> list[Action]:
        """Load ``key`` though nobody asks for it. Nothing happens if it is under way.

        ``peer`` as for an ask: where one is asked, ``waiter`` has nothing to do. A lease that ends without a value ends
        the flight, if nobody has joined it.
        """
        if key in self._flights or key in self._fetches:
            return []
        return self._fire(("begin", "nobody"), self._open(key, peer), waiter)

    def change(self, key: Hashable) -> None:
        """``key`` is about to name another value, or none: what is under way of it is overtaken."""
        for flight in (self._flights.get(key), self._fetches.get(key), *self._replaced.get(key, ())):
            if flight is not None:
                self._fire(("change", "nobody"), flight, _NOBODY)

    def clear(self, group: Hashable) -> None:
        """All keys of a group are about to: keys are pairs of it and what is inside. Looks at each flight."""
        for flight in (*self._flights.values(), *self._fetches.values(), *chain(*self._replaced.values())):
            if flight.key[0] == group:
                self._fire(("change", "nobody"), flight, _NOBODY)

    def enlist(self, flight: Flight, waiter: Waiter) -> list[Action]:
        """Answers ``Seek``: this waiter loads."""
        return self._fire(("enlist", "nobody"), flight, waiter) if flight.state == "seeking" else []

    def no_loader(self, flight: Flight, error: Any) -> list[Action]:
        """Answers ``Seek``: nobody can load."""
        return self._fire(("no_loader", "nobody"), flight, _NOBODY, error) if flight.state == "seeking" else []

    def fetched(self, flight: Flight, value: Any) -> list[Action]:
        """The peer sent the value."""
        return self._fire(("fetched", "nobody"), flight, _NOBODY, value)

    def refused(self, flight: Flight, error: Any) -> list[Action]:
        """The peer's loader raised: loading again here would have no better outcome."""
        return self._fire(("refused", "nobody"), flight, _NOBODY, error)

    def unreached(self, flight: Flight) -> list[Action]:
        """The peer failed: whoever waits asks again, as for a key of this host's own.

        That the flight was overtaken counts no more: what they are given then is a load that begins now, after the
        change, or one that they join, and whoever asks now would.
        """
        waiters = list(flight.waiters)
        actions = self._fire(("unreached", "nobody"), flight, _NOBODY)
        for waiter in waiters:
            actions += self.ask(flight.key, waiter)
        return actions

    def value(self, lease_id: int, value: Any) -> list[Action]:
        """The holder of a lease, or of a revoked one, sent the value."""
        return self._from_lease("value", lease_id, value)

    def error(self, lease_id: int, error: Any) -> list[Action]:
        """The loader of a lease raised."""
        return self._from_lease("error", lease_id, error)

    def give_back(self, lease_id: int) -> list[Action]:
        """The loader of a lease was left without a value or an error."""
        return self._from_lease("return", lease_id)

    def revoke(self, lease_id: int) -> list[Action]:
        """Take a lease away from a holder that is silent, or over its time. If nobody waits, the flight ends."""
        return self._from_lease("revoke", lease_id)

    def cancel(self, waiter: Waiter) -> list[Action]:
        """A caller gave up. Nothing happens if it had its outcome already."""
        return [] if waiter.flight is None else self._fire(("cancel", waiter.role), waiter.flight, waiter)

    def lose(self, owner: Any) -> list[Action]:
        """An owner is gone, with all that its waiters waited for and held."""
        # Those without a lease first. Otherwise a lost lease could be passed on to a waiter that is lost as well.
        lost = sorted(self._owners.get(owner, ()), key=lambda waiter: waiter.lease is not None)
        actions: list[Action] = []
        for waiter in lost:
            if waiter.flight is not None:  # it may have ended with a waiter before this one
                actions += self._fire(("lose", waiter.role), waiter.flight, waiter)
        return actions

    def check(self) -> list[str]:
        """List what is inconsistent. For tests and post-mortems."""
        faults: list[str] = []
        inside: set[Waiter] = set()
        reached = [*self._flights.items(), *self._fetches.items()]
        faults += [f"{flight} is overtaken, and in reach" for _, flight in reached if flight.overtaken]
        replaced = {flight for flights in self._replaced.values() for flight in flights}
        if replaced != {flight for flight in self._apart if not flight.overtaken} or not all(self._replaced.values()):
            faults.append(f"flights out of reach: got {len(replaced)} that are replaced, expected those not overtaken")
        for key, flight in (*reached, *((flight.key, flight) for flight in self._apart)):
            holders = [flight.lease.holder] if flight.lease is not None else []
            leases_of = {"leased": 1}
            if flight.peer is not PICKED:
                leases_of = leases_of | {"seeking": 0} if flight.peer is None else {"fetching": 0}
            if flight.key != key or leases_of.get(flight.state) != len(holders):
                faults.append(f"{flight} under {key!r} has {len(holders)} live leases, expected {leases_of}")
            members = [*flight.waiters, *flight.revoked, *holders]
            faults += [f"{waiter} is not of {flight}" for waiter in members if waiter.flight is not flight]
            inside.update(members)
        leases = {waiter.lease.id: waiter.lease for waiter in inside if waiter.lease is not None}
        if leases != self._leases:
            faults.append(f"known leases: got {sorted(self._leases)}, expected {sorted(leases)}")
        if (owned := {waiter for waiters in self._owners.values() for waiter in waiters}) != inside:
            faults.append(f"owned waiters: got {len(owned)}, expected {len(inside)}, those in flights")
        if not all(self._owners.values()):
            faults.append("an owner without waiters is kept")
        for lease in leases.values():
            asks = {w for w in inside if lease.live and lease.id in w.held and w.role != "revoked"}
            if set(lease.asks) != asks:
                faults.append(f"{lease}: got {len(lease.asks)} asks, expected {len(asks)}")
        return faults

    def _still_held(self, waiter: Waiter) -> list[Lease]:
        """Return the live leases that a waiter names, and have it name no others."""
        known = map(self._leases.get, dict.fromkeys(waiter.held))
        held = [lease for lease in known if lease is not None and lease.live]
        waiter.held = tuple([lease.id for lease in held])
        return held

    def _open(self, key: Hashable, peer: Any) -> Flight:
        if peer is None:
            flight = self._flights[key] = Flight(key)
        else:
            flight = self._fetches[key] = Flight(key, "unleased" if peer is PICKED else "away", peer)
        return flight

    def _from_lease(self, event: Event, lease_id: int, outcome: Any = None) -> list[Action]:
        lease = self._leases.get(lease_id)
        if lease is None:
            return []
        flight = lease.flight
        return self._fire((event, "holder" if flight.lease is lease else "revoked"), flight, lease.holder, outcome)

    def _fire(self, cause: tuple[Event, Role], flight: Flight, waiter: Waiter, outcome: Any = None) -> list[Action]:
        step, state = TRANSITIONS[flight.state][cause]
        flight.state = state
        actions = _STEPS[step](self, flight, waiter, outcome)
        if state == "ended":
            self._end(flight)
        elif state == "unleased":
            following = _next_of(flight)
            actions += self._fire(("next", following.role), flight, following)
        return actions

    # ---- Steps

    def _lead(self, flight: Flight, waiter: Waiter, _: Any) -> list[Action]:
        self._enter(flight, waiter)
        return [self._lease_to(flight, waiter)]

    def _join(self, flight: Flight, waiter: Waiter, _: Any) -> list[Action]:
        self._enter(flight, waiter)
        flight.waiters[waiter] = None
        return []

    def _fetch(self, flight: Flight, waiter: Waiter, _: Any) -> list[Action]:
        return [*self._join(flight, waiter, _), Fetch(flight)]

    def _fetch_alone(self, flight: Flight, _: Waiter, __: Any) -> list[Action]:
        return [Fetch(flight)]

    def _grant(self, flight: Flight, waiter: Waiter, _: Any) -> list[Action]:
        del flight.waiters[waiter]
        return [self._lease_to(flight, waiter)]

    def _seek(self, flight: Flight, _: Waiter, __: Any) -> list[Action]:
        return [Seek(flight)]

    def _deliver(self, flight: Flight, _: Waiter, value: Any) -> list[Action]:
        overtaken = flight.overtaken
        if self._replaced and not overtaken:
            self._outdo(flight)
        return [Deliver(flight.key, tuple(flight.waiters), value, overtaken)]

    def _fail(self, flight: Flight, _: Waiter, error: Any) -> list[Action]:
        return [Fail(flight.key, tuple(flight.waiters), error, flight.overtaken)]

    def _overtake(self, flight: Flight, _: Waiter, __: Any) -> list[Action]:
        if flight.replaced:
            self._drop_replaced(flight)
        else:
            self._leave_place(flight)
        flight.overtaken = True
        return []

    def _replace(self, flight: Flight, _: Waiter, __: Any) -> list[Action]:
        self._leave_place(flight)
        flight.replaced = self._refreshes
        self._replaced.setdefault(flight.key, []).append(flight)
        return []

    def _remember(self, flight: Flight, holder: Waiter, _: Any) -> list[Action]:
        flight.lease = None
        flight.revoked[holder] = None
        self._untie(holder)
        return []

    def _remove(self, flight: Flight, waiter: Waiter, _: Any) -> list[Action]:
        match waiter.role:
            case "holder":
                flight.lease = None
            case "revoked":
                del flight.revoked[waiter]
            case _:
                del flight.waiters[waiter]
        self._forget(waiter)
        return []

    def _none(self, _: Flight, __: Waiter, ___: Any) -> list[Action]:
        return []

    # ---- What they have in common

    def _enter(self, flight: Flight, waiter: Waiter) -> None:
        waiter.flight = flight
        if (siblings := self._owners.get(waiter.owner)) is None:
            self._owners[waiter.owner] = {waiter: None}
        else:
            siblings[waiter] = None
        for lease_id in waiter.held:
            self._leases[lease_id].asks[waiter] = None

    def _lease_to(self, flight: Flight, waiter: Waiter) -> Grant:
        self._last_id += 1
        lease = Lease(self._last_id, flight, waiter)
        self._leases[lease.id] = flight.lease = waiter.lease = lease
        return Grant(waiter, lease)

    def _place(self, flight: Flight) -> dict[Hashable, Flight]:
        return self._flights if flight.peer is None else self._fetches

    def _leave_place(self, flight: Flight) -> None:
        del self._place(flight)[flight.key]
        self._apart[flight] = None

    def _drop_replaced(self, flight: Flight) -> None:
        replaced = self._replaced[flight.key]
        replaced.remove(flight)
        if not replaced:
            del self._replaced[flight.key]

    def _outdo(self, flight: Flight) -> None:
        """Its value is there: what those bring that were replaced before it began is older.

        Of a load and a fetch that one refresh has replaced neither is the later one.
        """
        for other in list(self._replaced.get(flight.key, ())):
            if not flight.replaced or other.replaced < flight.replaced:
                self._fire(("change", "nobody"), other, _NOBODY)

    def _end(self, flight: Flight) -> None:
        if flight in self._apart:  # under its key may be its successor
            del self._apart[flight]
            if flight.replaced and not flight.overtaken:
                self._drop_replaced(flight)
        else:
            del self._place(flight)[flight.key]
        if flight.lease is not None:
            self._forget(flight.lease.holder)
            flight.lease = None
        if flight.waiters or flight.revoked:
            for waiter in (*flight.waiters, *flight.revoked):
                self._forget(waiter)
            flight.waiters.clear()
            flight.revoked.clear()

    def _forget(self, waiter: Waiter) -> None:
        if waiter.held or (waiter.lease is not None and waiter.lease.asks):
            self._untie(waiter)
        siblings = self._owners[waiter.owner]
        del siblings[waiter]
        if not siblings:
            del self._owners[waiter.owner]
        if waiter.lease is not None:
            del self._leases[waiter.lease.id]
        waiter.flight = waiter.lease = None

    def _untie(self, waiter: Waiter) -> None:
        """Nobody waits for this waiter's flight through it any more, and its own lease's flight for nobody."""
        for lease_id in waiter.held:
            if (lease := self._leases.get(lease_id)) is not None:
                lease.asks.pop(waiter, None)
        if waiter.lease is not None:
            waiter.lease.asks.clear()


_STEPS: Final[Mapping[Step, Callable[[FlightTable, Flight, Waiter, Any], list[Action]]]] = {
    "lead": FlightTable._lead,
    "join": FlightTable._join,
    "fetch": FlightTable._fetch,
    "fetch_alone": FlightTable._fetch_alone,
    "grant": FlightTable._grant,
    "seek": FlightTable._seek,
    "deliver": FlightTable._deliver,
    "fail": FlightTable._fail,
    "overtake": FlightTable._overtake,
    "replace": FlightTable._replace,
    "remember": FlightTable._remember,
    "remove": FlightTable._remove,
    "none": FlightTable._none,
}


def _next_of(flight: Flight) -> Waiter:
    """Return the waiter to whom a free lease goes: the first that can load, else a guest, else nobody."""
    first = next(iter(flight.waiters), _NOBODY)
    if not first.guest:
        return first
    return next((waiter for waiter in flight.waiters if not waiter.guest), first)


__all__ = [
    "PICKED",
    "Action",
    "Cycle",
    "Deliver",
    "Fail",
    "Fetch",
    "Flight",
    "FlightTable",
    "Grant",
    "Lease",
    "Seek",
    "Waiter",
]
