"""Peers' requests: answered from the cache, or guests of the flight in which a worker of this host loads their key."""

from __future__ import annotations

from collections.abc import Callable

from mpgroupcache.coordinator.flights import PICKED, Action, FlightTable, Lease, Seek, Waiter
from mpgroupcache.coordinator.hostgroups import Groups, HostGroup
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.coordinator.stores import Delivery
from mpgroupcache.counters import Counter
from mpgroupcache.ipc import memfd, messages
from mpgroupcache.ipc.contexts import NO_CONTEXT
from mpgroupcache.net.backend import NoSuchGroup, Served, Visitor
from mpgroupcache.shm._control import Control


class Guests:
    """The peers' server's ``Backend``, and what flights do for it."""

    def __init__(
        self,
        groups: Groups,
        control: Control,
        flights: FlightTable,
        workers: Roster,
        carry_out: Callable[[list[Action]], None],
    ) -> None:
        self._groups = groups
        self._control = control
        self._flights = flights
        self._workers = workers
        self._carry_out = carry_out

    # ---- Requests become events

    def find(self, name: str, key: bytes) -> Served | None:
        """A peer's get, as far as the cache has it; its value is good until the arena's next call.

        Raises ``NoSuchGroup``.
        """
        if (group := self._groups.named(name)) is None:
            raise NoSuchGroup(name)
        if group.arena is not None and (found := group.arena.serve(key)) is not None:
            entry, rate = found
            fresh, dead = (None if left is None else left / 1e9 for left in (entry.fresh, entry.dead))
            return Served(entry.value, rate, fresh, dead, entry.version, entry.absent)
        self._control.count_request(group.id)
        self._control.count(group.id, Counter.LOADS)
        return None

    def visit(self, name: str, key: bytes, visitor: Visitor) -> None:
        """A peer's get of what ``find`` did not find. It is loaded here, and never asked of another peer."""
        if (group := self._groups.named(name)) is None:
            raise NoSuchGroup(name)
        joins = self._flights.flight((group, key)) is not None
        self._carry_out(self._flights.ask((group, key), Waiter(owner=visitor, guest=True, request=joins)))

    def leave(self, visitor: Visitor) -> None:
        """A peer's request has ended, or will not wait any longer."""
        self._carry_out(self._flights.lose(visitor))

    # ---- Actions become loads and answers

    def seek(self, action: Seek) -> None:
        """Find a worker to load for guests: each in its turn."""
        flight = action.flight
        group, _ = flight.key
        flight.sought += 1
        # Beyond their number each had its turn, and has left the load or gone.
        loader = self._workers.next_loader(group) if flight.sought <= self._workers.loaders(group) else None
        if loader is None:
            self._carry_out(self._flights.no_loader(flight, None))
        else:
            self._carry_out(self._flights.enlist(flight, Waiter(owner=loader)))

    def delegate(self, lease: Lease) -> None:
        """Have the worker that was found load."""
        group, key = lease.flight.key
        service = self._workers.service(lease.holder.owner.worker)
        assert service is not None  # looked at when it was found
        packed = next(
            (waiter.owner.ctx for waiter in lease.flight.waiters if waiter.guest), b""
        )  # else it is a refresh
        picks = lease.flight.peer is PICKED
        service.send(messages.Load(lease.id, group.name, key, packed or NO_CONTEXT, picks))

    def answer(self, group: HostGroup, key: bytes, guests: list[Waiter], value: Delivery) -> None:
        """Send them a flight's value."""
        from mpgroupcache.net.peerwire import MAX_VALUE_BYTES  # as peering.py does: only with peers

        if isinstance(value.carried, bytes):
            carried = value.carried
        elif value.carried > MAX_VALUE_BYTES:  # looked at before it is read: it may be of any size
            text = f"value: got {value.carried} bytes, expected at most {MAX_VALUE_BYTES}; load it where it is needed"
            for waiter in guests:
                waiter.owner.refuse(text)
            return
        else:
            carried = memfd.read(value.fd, value.carried)
        rate = 0.0 if group.arena is None else group.arena.minute_qps(key)
        fresh, dead = (0.0, 0.0) if value.life is None else value.life.seconds
        served = Served(carried, rate, fresh, dead, value.version, value.absent)
        for waiter in guests:
            if waiter.request:  # it joined a flight
                self._control.count(group.id, Counter.LOADS_DEDUPED)
            waiter.owner.deliver(served)

    def turn_away(self, group: HostGroup, guests: tuple[Waiter, ...]) -> None:
        """Tell them that nobody can load here."""
        for waiter in guests:
            waiter.owner.refuse(f"group {group.name}: no worker or loader process of this host can load now")
