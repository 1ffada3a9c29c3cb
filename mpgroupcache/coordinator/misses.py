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
from mpgroupcache.coordinator.batches import Batch
from mpgroupcache.coordinator.changes import Changes
from mpgroupcache.coordinator.connection import Connection, Handler
from mpgroupcache.coordinator.fetches import Fetches
from mpgroupcache.coordinator.guests import Guests
from mpgroupcache.coordinator.hostgroups import Groups, HostGroup
from mpgroupcache.coordinator.liveness import Liveness, report_slow
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.refreshes import Refreshes
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.coordinator.stores import Delivery, Stored, Stores
from mpgroupcache.coordinator.waiters import Lease, Waiter
from mpgroupcache.errors import ProtocolError, describe_cycle
from mpgroupcache.ipc import fields, memfd, messages
from mpgroupcache.ipc.frame import MAX_REQUEST
from mpgroupcache.shm._control import Control
from mpgroupcache.shm._writer import Found

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
        self.guests: Final = Guests(groups, control, self._flights, workers, self._carry_out)
        self._changes = Changes(groups, control, peering, workers, self._flights, self._stores)
        self._refreshes = Refreshes(groups, control, peering, workers, liveness, self._flights, self._carry_out)
        self._fetches = Fetches(control, self._flights, self._refreshes, self._carry_out)
        self.settle: Final = self._stores.settle
        self._draining = False
        self.handlers: Final[Mapping[type[messages.Message], Handler]] = {
            messages.Ask: self._ask,
            messages.AskMany: self._ask_many,
            messages.Cancel: self._cancel,
            messages.Store: self._store,
            messages.StoreMany: self._store_many,
            messages.Fail: self._fail,
            messages.Return: self._give_back,
            messages.Change: self._changes.hear,
            messages.Refresh: self._refreshes.hear,
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
        return bool(self._flights.waiters_of(connection)) or self._stores.copying or self._changes.copying

    def drain(self) -> None:
        """Let what is under way end, and begin nothing: busy workers, which always ask, would have it never end."""
        self._draining = True
        self._refreshes.drain()

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
        if (
            group.arena is not None
            and message.mode != "refresh"
            and (found := group.arena.find(message.key)) is not None
            and not (message.mode == "renew" and found.refresh_due)
        ):
            self._send_found(connection, request_id, found, message.copy)
            return
        if message.mode == "look":
            connection.send(messages.Failed(messages.FailureCode.NOT_FOUND, "", ""), request_id)
            return
        if self._draining and (message.mode in ("refresh", "renew") or self._flights.flight(key) is None):
            connection.refuse(request_id, "the coordinator is about to end, and has no load begun")
            return
        waiter = Waiter(connection, message.held, request_id)
        if message.mode in ("refresh", "renew"):
            self._load_anew(group, waiter, message)
            return
        peer: object = None
        if group.picks:
            peer = flights.PICKED
        elif (ring := self._peering.ring) is not None:
            peer = ring.owner(message.key)
        self._carry_out(self._flights.ask(key, waiter, peer, here=message.here))

    def _load_anew(self, group: HostGroup, waiter: Waiter, message: messages.Ask) -> None:
        """Grant the caller a lease, whatever there is; of "renew", if nobody else is at it."""
        if message.mode == "refresh":
            if (unreached := self._changes.refusal(group)) is not None:
                waiter.owner.send(messages.Changed(0, (), unreached, False), waiter.request)
                return
            self._changes.begin_refresh(group, message.key)
            self._carry_out(self._refreshes.begin_now(group, message.key, waiter))
        elif group.arena is not None and (actions := self._refreshes.begin(group, message.key, waiter)):
            self._carry_out(actions)
        else:
            waiter.owner.send(messages.Hit(), waiter.request)

    def _send_found(self, connection: Connection, request_id: int, found: Found, copy: bool) -> None:
        """Answer with a cached value. ``found`` is good until the arena's next call."""
        value, size = found.value, len(found.value)
        version, fresh = found.version, None if found.fresh is None else found.fresh / 1e9
        if found.absent:
            self._tell_absent(connection, request_id, bytes(value))
        elif size <= fields.INLINE_BYTES:
            connection.send(messages.Value(bytes(value), messages.Origin.CACHE, version, fresh), request_id)
        elif not copy:
            connection.send(messages.Hit(), request_id)
        else:
            try:
                fd = memfd.make(value)
            except OSError as error:
                connection.refuse(request_id, f"a value of {size} bytes cannot be sent: {error}")
                return
            connection.send(messages.Value(size, messages.Origin.CACHE, version, fresh), request_id, fd)
            os.close(fd)

    def _tell_absent(self, connection: Connection, request_id: int, text: bytes) -> None:
        failed = messages.Failed(messages.FailureCode.NOT_FOUND, "", text.decode(errors="replace"))
        connection.send(failed, request_id)

    def _ask_many(self, connection: Connection, request_id: int, message: messages.AskMany) -> None:
        """As many ASKs, of which one answer has all that can be said at once."""
        group = self._groups.get(message.group)
        if group is None:
            connection.refuse(request_id, f"group {message.group}: no such group; DECLARE it first")
            return
        if request_id + len(message.keys) > MAX_REQUEST:  # else its answers would fail, in the steps of others
            raise ProtocolError(
                f"ASK_MANY: got id {request_id} of {len(message.keys)} keys, expected room for their ids"
            )
        batch = Batch(connection, request_id + 1)
        arena, ring = group.arena, self._peering.ring
        for place, key in enumerate(message.keys):
            named = (group, key)
            if named in self._stores.unsettled:
                self.settle()
            if arena is not None and (found := arena.find(key)) is not None:
                if not batch.add(place, found):
                    self._send_found(connection, batch.first_id + place, found, message.copy)
                continue
            is_loaded = self._flights.flight(named) is not None or self._flights.fetch(named) is not None
            peer = None if ring is None else ring.owner(key)
            if not is_loaded and peer is None and (self._draining or (batch.leases and not message.all)):
                batch.free.append(place)
                continue
            waiter = Waiter(connection, message.held, batch.first_id + place, many=True)
            actions = self._flights.ask(named, waiter, peer, here=message.here)
            if waiter.lease is not None:
                batch.leases.append((place, waiter.lease.id, self._start(waiter.lease)))
            else:
                batch.actions += actions
        connection.send(batch.answers(), request_id)
        fetches = [action for action in batch.actions if type(action) is flights.Fetch]
        self._carry_out([action for action in batch.actions if type(action) is not flights.Fetch])
        self._fetches.begin_many(fetches)

    def _cancel(self, connection: Connection, request_id: int, _: messages.Cancel) -> None:
        for waiter in self._flights.waiters_of(connection):
            if waiter.request == request_id:
                self._carry_out(self._flights.cancel(waiter))
                break

    def _store(self, connection: Connection, request_id: int, message: messages.Store) -> None:
        lease = self._lease_of(connection, message.lease)
        if lease is None and request_id:  # it was taken away, and what has come of it all see
            connection.send(messages.Changed(0, (), (), False), request_id)
        if type(message.value) is bytes:
            if lease is not None:
                self._stores.add(Stored(lease, message, connection, request_id))
            return
        fd = connection.claim(message)
        try:
            if lease is not None:
                self._stores.add_large(Stored(lease, message, connection, request_id), fd)
        finally:
            os.close(fd)

    def _store_many(self, connection: Connection, _: int, message: messages.StoreMany) -> None:
        for lease_id, value, ttl, stale, absent in message.stores:
            if (lease := self._lease_of(connection, lease_id)) is not None:
                store = messages.Store(lease_id, value, False, None, ttl, stale, absent)
                self._stores.add(Stored(lease, store, connection, 0))

    def _fail(self, connection: Connection, _: int, message: messages.Fail) -> None:
        if (lease := self._lease_of(connection, message.lease)) is None:
            return
        if (kept := self._refreshes.fail(lease.flight)) is not None:
            self._carry_out(self._flights.value(lease.id, kept))
            if kept.fd >= 0:
                os.close(kept.fd)
        else:
            self._carry_out(self._flights.error(lease.id, (message.type_name, message.message)))

    def _give_back(self, connection: Connection, _: int, message: messages.Return) -> None:
        if self._lease_of(connection, message.lease) is not None:
            self._carry_out(self._flights.give_back(message.lease))

    def _lease_of(self, connection: Connection, lease_id: int) -> Lease | None:
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
        # A lease that comes to who waits for many keys would lie there while he loads or waits for others, and a get
        # inside his load, which cannot name it, would wait for it for ever. He asks for the key when he comes to it.
        while action.waiter.many:
            action.waiter.owner.send(messages.Hit(), action.waiter.request)
            following = self._flights.give_back(action.lease.id)
            if not following or type(following[0]) is not flights.Grant:
                self._carry_out(following)
                return
            action = following[0]
        waiter, lease = action.waiter, action.lease
        version = self._start(lease)
        if waiter.request is not None:
            waiter.owner.send(messages.Lease(lease.id, version), waiter.request)
        else:
            self.guests.delegate(lease)

    def _start(self, lease: Lease) -> int:
        """Its load begins; the number of what it will bring."""
        lease.granted = time.monotonic()
        version: int = lease.flight.key[0].new_version()
        lease.version = version
        return version

    def _answer(self, action: flights.Deliver) -> None:
        """Send everybody a flight's value."""
        if not action.waiters:
            return
        value: Delivery = action.value
        origin = messages.Origin.PEER if value.fetched else messages.Origin.FLIGHT
        fresh = 0.0 if value.life is None else value.life.seconds[0]
        for waiter in action.waiters:
            if waiter.guest:
                continue
            if value.absent:
                assert isinstance(value.carried, bytes)
                self._tell_absent(waiter.owner, waiter.request, value.carried)
            else:
                answer = messages.Value(value.carried, origin, value.version, fresh)
                waiter.owner.send(answer, waiter.request, value.fd)
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
