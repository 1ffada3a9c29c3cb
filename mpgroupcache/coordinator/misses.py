"""What the coordinator does for a get that missed: messages become events of flights.py, its actions messages."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.groups import Groups, HostGroup
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.counters import Counter
from mpgroupcache.errors import ArenaError, ProtocolError
from mpgroupcache.ipc import flights, memfd, messages
from mpgroupcache.ipc.flights import describe_cycle
from mpgroupcache.net.backend import NoSuchGroup, Visitor
from mpgroupcache.shm._writer import Control

if TYPE_CHECKING:
    from mpgroupcache.net.outcomes import Outcome
    from mpgroupcache.net.peer import Peer

logger = logging.getLogger(__name__)

REPORT_INTERVAL, REPORT_AGAIN = 10.0, 600.0  # s between two log messages on one peer; with the same text
PING_INTERVAL = 1.0  # s between pings to a worker that holds a lease for longer than that


class _Value(Struct, frozen=True):
    """A flight's value: its bytes, or its size in a memfd that is open while the value is delivered."""

    carried: bytes | int
    fd: int = -1
    fetched: bool = False


class Misses:
    """The driver of the host's flights."""

    def __init__(self, groups: Groups, control: Control, lease_timeout: float, peering: Peering) -> None:
        self._groups = groups
        self._control = control
        self._lease_timeout = lease_timeout
        self._peering = peering
        # A loader that outlives an instance names its lease to the next one: there it must not be somebody else's.
        self._flights = flights.FlightTable(int.from_bytes(os.urandom(8)) >> 2)
        self._services: dict[bytes, Connection] = {}  # by worker
        self._loaders: dict[int, OrderedDict[Connection, None]] = {}  # by group: who declared it, in turn
        self._heard: dict[bytes, float] = {}  # last sign of life, of workers that are being pinged
        self._copying: set[asyncio.Task[None]] = set()
        self._arriving: dict[int, _Value] = {}  # what is being copied, by lease
        self._unsettled: dict[tuple[int, bytes], tuple[int, messages.Store]] = {}  # by key: a lease and its value
        self._useless: dict[str, tuple[str, float]] = {}  # by peer: what was said last of its answers, and when
        self._draining = False

    @property
    def under_way(self) -> int:
        """Flights that have not ended."""
        return len(self._flights)

    def serves(self, connection: Connection) -> bool:
        """Whether something is under way for this worker."""
        return bool(self._flights.waiters_of(connection)) or bool(self._copying)

    def drain(self) -> None:
        """Let what is under way end, and begin nothing: busy workers, which always ask, would have it never end."""
        self._draining = True

    # ---- Messages

    def handle(self, connection: Connection, request_id: int, message: messages.Message, fd: int) -> None:
        """Act on a message of a call connection. ``fd`` came with it, and stays the caller's.

        ``settle`` follows, before anything else is told of the connection.
        """
        match message:
            case messages.Ask():
                self._ask(connection, request_id, message)
            case messages.Store(lease=lease_id):
                if (lease := self._lease_of(connection, lease_id)) is not None:
                    self._store(lease, message, fd)
            case messages.Fail(lease=lease_id, type_name=type_name, message=text):
                if self._lease_of(connection, lease_id) is not None:
                    self._carry_out(self._flights.error(lease_id, (type_name, text)))
            case messages.Return(lease=lease_id):
                if self._lease_of(connection, lease_id) is not None:
                    self._carry_out(self._flights.give_back(lease_id))
            case messages.Cancel():
                for waiter in self._flights.waiters_of(connection):
                    if waiter.request == request_id:
                        self._carry_out(self._flights.cancel(waiter))
                        break
            case messages.Served(group=group_id):
                if self._groups.get(group_id) is not None:
                    self._control.count_request(group_id)
            case messages.SetPeers():
                self._set_peers(connection, request_id, message)
            case messages.Declare():
                self._declare(connection, request_id, message)
            case _:
                raise ProtocolError(f"got {type(message).__name__}, which a worker does not send")

    def _declare(self, connection: Connection, request_id: int, message: messages.Declare) -> None:
        try:
            group = self._groups.declare(message.name, message.cache_bytes, message.load_timeout, message.picks)
        except ArenaError as error:
            connection.send(_refused(str(error)), request_id)
            return
        self._loaders.setdefault(group.id, OrderedDict())[connection] = None
        segment = group.segment.name if group.segment is not None else None
        budget = group.arena.budget if group.arena is not None else 0
        connection.send(messages.Declared(group.id, segment, budget, group.incarnation), request_id)

    def _set_peers(self, connection: Connection, request_id: int, message: messages.SetPeers) -> None:
        try:
            self._peering.set_peers(message)
        except ValueError as error:
            connection.send(_refused(str(error)), request_id)
        else:
            connection.send(messages.PeersSet(), request_id)

    def _ask(self, connection: Connection, request_id: int, message: messages.Ask) -> None:
        group = self._groups.get(message.group)
        if group is None:
            connection.send(_refused(f"group {message.group}: no such group; DECLARE it first"), request_id)
            return
        key = (group.id, message.key)
        if key in self._unsettled:
            self.settle()
        # Another flight may have ended since the worker looked.
        if group.arena is not None and (found := group.arena.find(message.key)) is not None:
            self._send_found(connection, request_id, found, message.copy)
            return
        if self._draining and self._flights.flight(key) is None:
            connection.send(_refused("the coordinator is about to end, and has no load begun"), request_id)
            return
        waiter = flights.Waiter(owner=connection, held=message.held, request=request_id)
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
                connection.send(_refused(f"a value of {len(found)} bytes cannot be sent: {error}"), request_id)
                return
            connection.send(messages.Value(len(found), messages.Origin.CACHE), request_id, fd)
            os.close(fd)

    def _lease_of(self, connection: Connection, lease_id: int) -> flights.Lease | None:
        """The lease, if it still counts; a late message of an ended flight is nothing. Only its holder may end it."""
        lease = self._flights.lease(lease_id)
        if lease is not None and lease.holder.owner is not connection:
            raise ProtocolError(f"lease {lease_id}: got a message of {connection}, expected one of its holder")
        return lease

    # ---- Values

    def _store(self, lease: flights.Lease, message: messages.Store, fd: int) -> None:
        if isinstance(message.value, bytes):
            # A key may have two flights, one of which asks a peer: neither value takes the other's place.
            if lease.flight.key in self._unsettled:
                self.settle()
            self._unsettled[lease.flight.key] = lease.id, message
            if lease.flight.waiters:
                self.settle()
            return
        group = self._groups.get(lease.flight.key[0])
        assert group is not None  # groups are never taken away
        key = lease.flight.key[1]
        if lease.id in self._arriving:
            raise ProtocolError(f"lease {lease.id}: got a second value, expected one")
        size = message.value
        memfd.check(fd, size)
        if message.picked and not group.admits(len(key) + size, message.minute_qps):
            self._deliver(lease.id, _Value(size, fd))
            return
        value = self._arriving[lease.id] = _Value(size, os.dup(fd))
        copy = self._store_from(group, lease.id, key, value, size, hot=message.picked)
        task = asyncio.get_running_loop().create_task(copy)
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)

    def settle(self) -> None:
        """Store the values that nobody waits for.

        A worker's next miss often comes with its last one's value, in one read; it is answered first, and loads while
        its predecessor is stored.
        """
        while self._unsettled:
            group_id, key = next(iter(self._unsettled))
            lease_id, message = self._unsettled.pop((group_id, key))
            assert isinstance(message.value, bytes)
            group = self._groups.get(group_id)
            assert group is not None
            if message.picked:
                group.promote(key, message.value, message.minute_qps)
            else:
                group.put(key, message.value)
            self._deliver(lease_id, _Value(message.value))

    async def _store_from(
        self, group: HostGroup, lease_id: int, key: bytes, value: _Value, size: int, hot: bool
    ) -> None:
        """Copy a large value into the arena, then end its flight: a get in between joins it, and loads nothing."""
        try:
            await group.put_from(key, value.fd, size, hot)
        except (OSError, BufferError) as error:  # a BufferError: the coordinator ended meanwhile
            logger.error("group %r: a value of %d bytes was not cached: %s", group.name, size, error)
        finally:
            del self._arriving[lease_id]
            try:
                self._deliver(lease_id, value)
            finally:
                os.close(value.fd)

    def _deliver(self, lease_id: int, value: _Value) -> None:
        self._carry_out(self._flights.value(lease_id, value))

    # ---- Peers

    def find(self, name: str, key: bytes) -> tuple[memoryview, float] | None:
        """A peer's get, as far as the cache has it: the value, good until the arena's next call, and its minute_qps.

        Raises ``NoSuchGroup``.
        """
        if (group := self._groups.named(name)) is None:
            raise NoSuchGroup(name)
        if group.arena is not None and (found := group.arena.serve(key)) is not None:
            return found
        self._control.count_request(group.id)
        self._control.count(group.id, Counter.LOADS)
        return None

    def visit(self, name: str, key: bytes, visitor: Visitor) -> None:
        """A peer's get of what ``find`` did not find. It is loaded here, and never asked of another peer."""
        if (group := self._groups.named(name)) is None:
            raise NoSuchGroup(name)
        joins = self._flights.flight((group.id, key)) is not None
        self._carry_out(self._flights.ask((group.id, key), flights.Waiter(owner=visitor, guest=True, request=joins)))

    def leave(self, visitor: Visitor) -> None:
        """A peer's request has ended, or will not wait any longer."""
        self._carry_out(self._flights.lose(visitor))

    def _seek(self, flight: flights.Flight) -> list[flights.Action]:
        """Find a worker to load for guests: each in its turn."""
        loaders = self._loaders.get(flight.key[0], OrderedDict())
        flight.sought += 1
        if flight.sought > len(loaders):  # each had its turn, and has left the load or gone
            return self._flights.no_loader(flight, None)
        for connection in list(loaders):
            if connection.worker in self._services and not connection.closed:
                loaders.move_to_end(connection)
                return self._flights.enlist(flight, flights.Waiter(owner=connection))
        return self._flights.no_loader(flight, None)

    def _fetch(self, flight: flights.Flight) -> None:
        group_id, key = flight.key
        group = self._groups.get(group_id)
        assert group is not None
        flight.peer.fetch(group.name, key, functools.partial(self._fetched, group, flight))

    def _fetched(self, group: HostGroup, flight: flights.Flight, outcome: Outcome) -> None:
        from mpgroupcache.net.outcomes import Fetched, OwnerError, Unreached  # as peering.py does: only with peers

        match outcome:
            case Fetched(value=value):
                self._control.count(group.id, Counter.PEER_LOADS)
                group.promote(flight.key[1], value, outcome.minute_qps)
                if len(value) <= messages.INLINE_BYTES:
                    self._carry_out(self._flights.fetched(flight, _Value(value, fetched=True)))
                    return
                try:
                    fd = memfd.make(value)
                except OSError as error:
                    logger.error("group %r: a peer's value of %d bytes: %s", group.name, len(value), error)
                    self._carry_out(self._flights.unreached(flight))
                    return
                self._carry_out(self._flights.fetched(flight, _Value(len(value), fd, fetched=True)))
                os.close(fd)
            case OwnerError(type_name=type_name, text=text):
                self._control.count(group.id, Counter.PEER_ERRORS)
                self._carry_out(self._flights.refused(flight, (type_name, text)))
            case Unreached(reason=reason):
                self._control.count(group.id, Counter.PEER_ERRORS)
                self._report_useless(flight.peer, reason)
                self._carry_out(self._flights.unreached(flight))

    def _report_useless(self, peer: Peer, reason: str) -> None:
        """Say once what is wrong with the answers of a peer that lives, such as one of another base path.

        Of one that fails its client has said so.
        """
        now = time.monotonic()
        last, at = self._useless.get(peer.url, ("", -REPORT_AGAIN))
        if peer.available and now - at >= (REPORT_AGAIN if reason == last else REPORT_INTERVAL):
            self._useless[peer.url] = reason, now
            logger.warning("a peer's answer is of no use, and its key is loaded here: %s", reason)

    # ---- Actions

    def _carry_out(self, actions: Iterable[flights.Action]) -> None:
        for action in actions:
            match action:
                case flights.Grant(waiter=waiter, lease=lease):
                    lease.granted = time.monotonic()
                    if waiter.request is not None:
                        waiter.owner.send(messages.Lease(lease.id), waiter.request)
                    else:
                        self._delegate(lease)
                case flights.Deliver(key=key, waiters=waiters, value=value):
                    if waiters:
                        self._answer(key, waiters, value)
                case flights.Fail(key=(group_id, _), waiters=waiters, error=None):  # all of them are guests
                    name = getattr(self._groups.get(group_id), "name", "")
                    for waiter in waiters:
                        waiter.owner.refuse(f"group {name}: no worker or loader process of this host can load now")
                case flights.Fail(waiters=waiters, error=(type_name, text)):
                    for waiter in waiters:
                        if waiter.guest:
                            waiter.owner.fail(type_name, text)
                            continue
                        failed = messages.Failed(messages.FailureCode.LOAD_ERROR, type_name, text)
                        waiter.owner.send(failed, waiter.request)
                case flights.Fetch(flight=flight):
                    self._fetch(flight)
                case flights.Seek(flight=flight):
                    self._carry_out(self._seek(flight))
                case flights.Cycle(waiter=waiter, keys=keys):
                    names = [(getattr(self._groups.get(group), "name", group), key) for group, key in keys]
                    failed = messages.Failed(messages.FailureCode.LOAD_CYCLE, "LoadCycleError", describe_cycle(names))
                    waiter.owner.send(failed, waiter.request)

    def _delegate(self, lease: flights.Lease) -> None:
        """Have the worker that was found for guests load."""
        group_id, key = lease.flight.key
        group = self._groups.get(group_id)
        assert group is not None
        packed = next((waiter.owner.ctx for waiter in lease.flight.waiters if waiter.guest), b"")
        ctx = packed or messages.NO_CONTEXT
        self._services[lease.holder.owner.worker].send(messages.Load(lease.id, group.name, key, ctx))

    def _answer(self, key: tuple[int, bytes], waiters: tuple[flights.Waiter, ...], value: _Value) -> None:
        """Send everybody a flight's value."""
        origin = messages.Origin.PEER if value.fetched else messages.Origin.FLIGHT
        for waiter in waiters:
            if not waiter.guest:
                waiter.owner.send(messages.Value(value.carried, origin), waiter.request, value.fd)
                origin = messages.Origin.FLIGHT  # the first one's ask had opened the flight
        guests = [waiter for waiter in waiters if waiter.guest]
        if guests:
            self._answer_guests(key, guests, value)

    def _answer_guests(self, key: tuple[int, bytes], guests: list[flights.Waiter], value: _Value) -> None:
        group = self._groups.get(key[0])
        assert group is not None
        from mpgroupcache.net.peerwire import MAX_VALUE_BYTES  # as above

        if isinstance(value.carried, bytes):
            carried = value.carried
        elif value.carried > MAX_VALUE_BYTES:  # looked at before it is read: it may be of any size
            text = f"value: got {value.carried} bytes, expected at most {MAX_VALUE_BYTES}; load it where it is needed"
            for waiter in guests:
                waiter.owner.refuse(text)
            return
        else:
            carried = memfd.read(value.fd, value.carried)
        rate = 0.0 if group.arena is None else group.arena.minute_qps(key[1])
        for waiter in guests:
            if waiter.request:  # it joined a flight
                self._control.count(group.id, Counter.LOADS_DEDUPED)
            waiter.owner.deliver(carried, rate)

    # ---- Workers

    def add_service(self, connection: Connection) -> None:
        """A worker's service connection: its pings are answered while its other threads load."""
        self._services[connection.worker] = connection

    def heard(self, connection: Connection) -> None:
        """A worker gave a sign of life."""
        if connection.worker in self._heard:
            self._heard[connection.worker] = time.monotonic()

    def lose(self, connection: Connection) -> None:
        """A connection is closed: its waiters leave, its leases are passed on."""
        if self._services.get(connection.worker) is connection:
            del self._services[connection.worker]
        for loaders in self._loaders.values():
            loaders.pop(connection, None)
        if self._arriving:  # a worker that stored a value and went has not lost it: nobody is to load it again
            for waiter in self._flights.waiters_of(connection):
                if waiter.lease is not None and (value := self._arriving.get(waiter.lease.id)) is not None:
                    self._deliver(waiter.lease.id, value)
        self._carry_out(self._flights.lose(connection))

    def watch_leases(self, now: float) -> None:
        """Take leases away from silent workers, and from loads that are over their group's time."""
        pinged = set()
        for lease in self._flights.live_leases():
            if lease.id in self._arriving:
                continue
            age = now - lease.granted
            worker = lease.holder.owner.worker
            if age > PING_INTERVAL and worker not in pinged:
                pinged.add(worker)
                self._heard.setdefault(worker, now)
                if (service := self._services.get(worker)) is not None:
                    service.send(messages.Ping())
            if not lease.flight.waiters:
                continue  # nobody to pass it on to: its value is welcome whenever it comes
            group = self._groups.get(lease.flight.key[0])
            timeout = group.load_timeout if group is not None else None
            if timeout is not None and age > timeout:
                self._revoke(lease, f"is over its load_timeout of {timeout:g} s")
            elif now - self._heard.get(worker, now) > self._lease_timeout:
                self._revoke(lease, f"is silent for more than {self._lease_timeout:g} s")
        for worker in self._heard.keys() - pinged:
            del self._heard[worker]

    def _revoke(self, lease: flights.Lease, reason: str) -> None:
        logger.warning("%r %s: its load goes to the next waiter", lease.holder.owner, reason)
        self._carry_out(self._flights.revoke(lease.id))


def _refused(text: str) -> messages.Failed:
    return messages.Failed(messages.FailureCode.REFUSED, "CoordinatorError", text)
