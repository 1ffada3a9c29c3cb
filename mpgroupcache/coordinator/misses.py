"""What the coordinator does for a get that missed: messages become events of flights.py, its actions messages.

What is more than that has a file of its own: values on their way into the arena (stores.py), owners that are asked
(fetches.py), peers that ask (guests.py), and whether those who load are alive (liveness.py).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from mpgroupcache.coordinator import flights
from mpgroupcache.coordinator.connection import Connection, Handler
from mpgroupcache.coordinator.fetches import Fetches
from mpgroupcache.coordinator.guests import Guests
from mpgroupcache.coordinator.hostgroups import Groups
from mpgroupcache.coordinator.liveness import Liveness, report_slow
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.coordinator.stores import Delivery, Stores
from mpgroupcache.errors import ProtocolError, describe_cycle
from mpgroupcache.ipc import memfd, messages
from mpgroupcache.shm._writer import Control

logger = logging.getLogger(__name__)


class Misses:
    """The driver of the host's flights."""

    def __init__(self, groups: Groups, control: Control, peering: Peering, workers: Roster, liveness: Liveness) -> None:
        self._groups = groups
        self._peering = peering
        self._liveness = liveness
        # A loader that outlives an instance names its lease to the next one: there it must not be somebody else's.
        self._flights = flights.FlightTable(int.from_bytes(os.urandom(8)) >> 2)
        self._stores = Stores(self._flights, self._carry_out)
        self._fetches = Fetches(control, self._flights, self._carry_out)
        self.guests: Final = Guests(groups, control, self._flights, workers, self._carry_out)
        self.settle: Final = self._stores.settle
        self._draining = False
        self.handlers: Final[Mapping[type[messages.Message], Handler]] = {
            messages.Ask: self._ask,
            messages.Cancel: self._cancel,
            messages.Store: self._store,
            messages.Fail: self._fail,
            messages.Return: self._give_back,
        }
        """Of a call connection's messages. ``settle`` follows them, before anything else is told of the connection."""
        self._carriers: Final[Mapping[type[flights.Action], Callable[[Any], None]]] = {
            flights.Grant: self._grant,
            flights.Deliver: self._answer,
            flights.Fail: self._tell_failure,
            flights.Cycle: self._tell_cycle,
            flights.Fetch: self._fetches.begin,
            flights.Seek: self.guests.seek,
        }

    @property
    def under_way(self) -> int:
        """Flights that have not ended."""
        return len(self._flights)

    def serves(self, connection: Connection) -> bool:
        """Whether something is under way for this worker."""
        return bool(self._flights.waiters_of(connection)) or self._stores.copying

    def drain(self) -> None:
        """Let what is under way end, and begin nothing: busy workers, which always ask, would have it never end."""
        self._draining = True

    # ---- Messages become events

    def _ask(self, connection: Connection, request_id: int, message: messages.Ask) -> None:
        group = self._groups.get(message.group)
        if group is None:
            connection.refuse(request_id, f"group {message.group}: no such group; DECLARE it first")
            return
        key = (group, message.key)
        if key in self._stores.unsettled:
            self.settle()
        # Another flight may have ended since the worker looked.
        if group.arena is not None and (found := group.arena.find(message.key)) is not None:
            self._send_found(connection, request_id, found, message.copy)
            return
        if self._draining and self._flights.flight(key) is None:
            connection.refuse(request_id, "the coordinator is about to end, and has no load begun")
            return
        waiter = flights.Waiter(connection, message.held, request_id)
        peer: object = None
        if group.picks:
            peer = flights.PICKED
        elif (ring := self._peering.ring) is not None:
            peer = ring.owner(message.key)
        self._carry_out(self._flights.ask(key, waiter, peer, here=message.here))

    def _send_found(self, connection: Connection, request_id: int, found: memoryview, copy: bool) -> None:
        """Answer with a cached value. ``found`` is good until the arena's next call."""
        if len(found) <= messages.INLINE_BYTES:
            connection.send(messages.Value(bytes(found), messages.Origin.CACHE), request_id)
        elif not copy:
            connection.send(messages.Hit(), request_id)
        else:
            try:
                fd = memfd.make(found)
            except OSError as error:
                connection.refuse(request_id, f"a value of {len(found)} bytes cannot be sent: {error}")
                return
            connection.send(messages.Value(len(found), messages.Origin.CACHE), request_id, fd)
            os.close(fd)

    def _cancel(self, connection: Connection, request_id: int, _: messages.Cancel) -> None:
        for waiter in self._flights.waiters_of(connection):
            if waiter.request == request_id:
                self._carry_out(self._flights.cancel(waiter))
                break

    def _store(self, connection: Connection, _: int, message: messages.Store) -> None:
        lease = self._lease_of(connection, message.lease)
        if type(message.value) is bytes:
            if lease is not None:
                self._stores.add(lease, message)
            return
        fd = connection.claim(message)
        try:
            if lease is not None:
                self._stores.add_large(lease, message, fd)
        finally:
            os.close(fd)

    def _fail(self, connection: Connection, _: int, message: messages.Fail) -> None:
        if self._lease_of(connection, message.lease) is not None:
            self._carry_out(self._flights.error(message.lease, (message.type_name, message.message)))

    def _give_back(self, connection: Connection, _: int, message: messages.Return) -> None:
        if self._lease_of(connection, message.lease) is not None:
            self._carry_out(self._flights.give_back(message.lease))

    def _lease_of(self, connection: Connection, lease_id: int) -> flights.Lease | None:
        """The lease, if it still counts; a late message of an ended flight is nothing. Only its holder may end it."""
        lease = self._flights.lease(lease_id)
        if lease is not None and lease.holder.owner is not connection:
            raise ProtocolError(f"lease {lease_id}: got a message of {connection}, expected one of its holder")
        return lease

    def lose(self, connection: Connection) -> None:
        """A connection is closed: its waiters leave, its leases are passed on."""
        if self._stores.arriving:  # a worker that stored a value and went has not lost it: nobody is to load it again
            for waiter in self._flights.waiters_of(connection):
                if waiter.lease is not None and (value := self._stores.arriving.get(waiter.lease.id)) is not None:
                    self._carry_out(self._flights.value(waiter.lease.id, value))
        self._carry_out(self._flights.lose(connection))

    def hear_waiting(self, service: Connection, _: int, message: messages.Waiting) -> None:
        """A worker says how many of its own callers wait for its loads: they have not asked."""
        for lease_id, waiting in message.loads:
            lease = self._flights.lease(lease_id)
            if lease is not None and lease.holder.owner.worker == service.worker:
                lease.beside = waiting

    def watch_leases(self, now: float) -> None:
        """Take leases away from silent workers, and from loads that are over their group's time; name slow ones."""
        loading = [lease for lease in self._flights.live_leases() if lease.id not in self._stores.arriving]
        report_slow(loading, now)
        for lease, reason in self._liveness.overdue(loading, now):
            logger.warning("%r %s: its load goes to the next waiter", lease.holder.owner, reason)
            self._carry_out(self._flights.revoke(lease.id))

    # ---- Actions become messages

    def _carry_out(self, actions: Iterable[flights.Action]) -> None:
        for action in actions:
            self._carriers[type(action)](action)

    def _grant(self, action: flights.Grant) -> None:
        waiter, lease = action.waiter, action.lease
        lease.granted = time.monotonic()
        if waiter.request is not None:
            waiter.owner.send(messages.Lease(lease.id), waiter.request)
        else:
            self.guests.delegate(lease)

    def _answer(self, action: flights.Deliver) -> None:
        """Send everybody a flight's value."""
        if not action.waiters:
            return
        value: Delivery = action.value
        origin = messages.Origin.PEER if value.fetched else messages.Origin.FLIGHT
        for waiter in action.waiters:
            if not waiter.guest:
                waiter.owner.send(messages.Value(value.carried, origin), waiter.request, value.fd)
                origin = messages.Origin.FLIGHT  # the first one's ask had opened the flight
        if guests := [waiter for waiter in action.waiters if waiter.guest]:
            group, key = action.key
            self.guests.answer(group, key, guests, value)

    def _tell_failure(self, action: flights.Fail) -> None:
        if action.error is None:  # no loader was found: all of them are guests
            self.guests.turn_away(action.key[0], action.waiters)
            return
        type_name, text = action.error
        for waiter in action.waiters:
            if waiter.guest:
                waiter.owner.fail(type_name, text)
            else:
                failed = messages.Failed(messages.FailureCode.LOAD_ERROR, type_name, text)
                waiter.owner.send(failed, waiter.request)

    def _tell_cycle(self, action: flights.Cycle) -> None:
        text = describe_cycle([(group.name, key) for group, key in action.keys])
        failed = messages.Failed(messages.FailureCode.LOAD_CYCLE, "LoadCycleError", text)
        action.waiter.owner.send(failed, action.waiter.request)
