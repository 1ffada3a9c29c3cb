"""A worker's link to one instance: its two connections, its region, and the groups it has declared there."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeVar

from mpgroupcache.errors import CacheError, CoordinatorUnavailable, ProtocolError, describe_error
from mpgroupcache.ipc.fields import INLINE_BYTES, MAX_HELD, TOKEN_BYTES, Loads, Mode, Role
from mpgroupcache.ipc.frame import Decoder, encode
from mpgroupcache.ipc.messages import (
    HIGHEST_VERSION,
    LOWEST_VERSION,
    NO_LAYOUT,
    Ask,
    AskMany,
    Change,
    Declare,
    Declared,
    Fail,
    Failed,
    Hello,
    Load,
    Message,
    PeersSet,
    Ping,
    Pong,
    Refresh,
    Return,
    Served,
    SetPeers,
    Store,
    StoreMany,
    Waiting,
    Welcome,
)
from mpgroupcache.product import Product
from mpgroupcache.shm._exchange import Descriptor, Request, sealed
from mpgroupcache.shm._hold import Hold, Seat
from mpgroupcache.shm._reader import LAYOUT_VERSION, Reader
from mpgroupcache.shm.segment import segment_path
from mpgroupcache.worker.asked import Asked
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT, Channel
from mpgroupcache.worker.port import check_circle

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

CLAIM_INTERVAL = 1.0  # s between two looks for a region where none was free

ABILITIES: Final = ()  # what this worker can do beside what its versions of the conversation say


def connect(path: str) -> socket.socket:
    """Connect to a coordinator's socket. Raises ``CoordinatorUnavailable``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(LIVENESS_TIMEOUT)
        sock.connect(path)
    except OSError as error:  # also EAGAIN: the backlog is full
        sock.close()
        hint = _who_may(path) if isinstance(error, PermissionError) else ""
        raise CoordinatorUnavailable(f"no coordinator on {path}: {error}{hint}") from error
    return sock


def _who_may(path: str) -> str:
    """What helps a process that may not connect."""
    user = os.geteuid()
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return f"; user {user} may not enter its directory"
    return (
        f"; it is for user {owner}, and this process is user {user}'s: start the coordinator with --group of a group "
        "that this process is in"
    )


class Link:
    """A link, which is the port of a coordinator. ``broken`` until it is open, and once either connection is; it is
    then left for a new one.
    """

    channel: Channel  # once it is open

    def __init__(
        self,
        socket_path: str,
        on_load: Callable[[Link, Load], None],
        on_broken: Callable[[], object] | None = None,
        on_region: Callable[[], object] | None = None,
        waiting_here: Callable[[], Loads] = tuple,
    ) -> None:
        """``on_load`` is called with what the coordinator hands over to be loaded, ``on_broken`` when the link breaks,
        not when it is closed, and ``on_region`` when a region comes later than the link. ``waiting_here``: how many
        callers of this process wait for each of its leases' loads.
        """
        self._path = socket_path
        self._on_load = on_load
        self._on_broken = on_broken
        self._on_region = on_region
        self._waiting_here = waiting_here
        self._closing = False
        self._service: _Service | None = None
        self._declared: dict[str, Declared] = {}
        self._said: dict[str, Declare] = {}
        self.instance = ""
        self.abilities: frozenset[str] = frozenset()
        """What the coordinator can do beside what the conversation's version says."""
        self.reader: Reader | None = None  # of the instance's memory; None: it has a layout that is unknown here
        self._is_open = False

    def open(self, previous: Reader | None, claimed: Callable[[Reader], object]) -> None:
        """Connect, claim a region, and start the service thread. Raises ``CoordinatorUnavailable`` or ``CacheError``.

        ``previous`` is the reader of an earlier link, kept where the instance is still the same. ``claimed`` is called
        with the reader before anybody looks up through it.
        """
        token = os.urandom(TOKEN_BYTES)
        self.channel = Channel(connect(self._path))
        try:
            welcome = _expect(Welcome, self.channel.request(_hello("call", token)))
            if not LOWEST_VERSION <= welcome.version <= HIGHEST_VERSION:
                spoken = f"{LOWEST_VERSION} to {HIGHEST_VERSION}"
                raise ProtocolError(f"WELCOME: got version {welcome.version}, expected one of the offered {spoken}")
            self.instance = welcome.instance
            self.abilities = frozenset(welcome.abilities)
            if welcome.layout == LAYOUT_VERSION:
                path = segment_path(welcome.control)
                self.reader = previous if previous is not None and previous.reads(path) else Reader(path)
                claimed(self.reader)
            self._service = _Service(
                connect(self._path),
                token,
                self.channel,
                functools.partial(self._on_load, self),
                self._end,
                self.claim_region,
                self._waiting_here,
            )
            self._service.start()
        except BaseException as error:
            self.close(str(error))
            raise
        self._is_open = True
        if self.reader is None:
            why = f"has layout {welcome.layout}, and this process knows {LAYOUT_VERSION}: hits are copied"
            if welcome.layout == NO_LAYOUT:
                why = "has no room in shared memory: nothing is cached until there is some"
            logger.warning("instance %s %s", welcome.instance, why)
        elif self.reader.number < 0:
            copied = "hits are copied by the coordinator until there is one"
            logger.warning("%s in instance %s: %s", self.reader.refusal, welcome.instance, copied)

    def claim_region(self) -> bool:
        """Whether this process has a region where it may have one; where it has none yet, it is looked for."""
        reader = self.reader
        if reader is None or reader.number >= 0:
            return True
        if not reader.claim():
            return False
        if self._on_region is not None:
            self._on_region()
        logger.warning("instance %s: a region was claimed, and hits are no longer copied", self.instance)
        return True

    def _end(self, reason: str) -> None:
        """The service connection has ended."""
        if hasattr(self, "channel"):
            self.channel.close(reason)
        if self._on_broken is not None and not self._closing:
            self._on_broken()

    @property
    def broken(self) -> bool:
        """Whether the coordinator is gone, as far as this link knows."""
        return not self._is_open or self.channel.broken is not None

    def declare(self, said: Declare) -> Declared:
        """Announce a group, and return what the instance has made of it."""
        if self._said.get(said.name) != said:
            self._declared[said.name] = _expect(Declared, self.channel.request(said))
            self._said[said.name] = said
        return self._declared[said.name]

    def set_peers(self, **ring: Any) -> None:
        """Name the ring (SET_PEERS). Raises ``CoordinatorError`` where the coordinator has it from its own options."""
        _expect(PeersSet, self.channel.request(SetPeers(**ring)))

    def tell_served(self, group: str) -> None:
        """A peer's request reached this process itself."""
        self.channel.post(encode(Served(self._declared[group].group)))

    # ---- The port

    def place(self, group: str, key: bytes, here: bool, picked: bool, held: tuple[Seat, ...]) -> Hashable:
        # The coordinator finds cycles by the leases that an ASK names: who holds others asks for himself.
        return (group, key, here, *[seat.lease for seat in held if seat.lease]) if held else (group, key, here)

    def join(self, seat: Seat) -> None:
        check_circle(seat)  # through singleflight, of which the coordinator knows nothing

    def ask(
        self, hold: Hold, group: str, seat: Seat | None, key: bytes, copy: bool, here: bool, mode: Mode = "get"
    ) -> Request:
        # The id as this link has it: another thread may be attaching the group to the next instance, or still to the
        # last one, where the same id is another group's. Of a deeper nest the innermost leases will do: each of them
        # waits for the next, so that the way round a cycle leads through them.
        held: tuple[int, ...] = ()
        if seat is not None and seat.held:
            held = tuple([outer.lease for outer in seat.held[-MAX_HELD:] if outer.lease])
        return self.channel.ask(hold, Ask(self._declared[group].group, key, held, copy, here, mode))

    def ask_many(
        self, hold: Hold, group: str, seats: Sequence[Seat], keys: tuple[bytes, ...], copy: bool, every: bool
    ) -> list[Request]:
        """Ask for many keys: what answers that, and then what answers each. ``every``: leases for all, else for one."""
        outer = seats[0].held
        held = tuple([seat.lease for seat in outer[-MAX_HELD:] if seat.lease]) if outer else ()
        return self.channel.ask_many(hold, AskMany(self._declared[group].group, keys, held, copy, False, every))

    def end_many(self, loads: Sequence[tuple[Request, Seat, Product | Exception]]) -> None:
        """End leases with what was loaded for each: small values go together."""
        stores: list[tuple[int, bytes, float | None, float | None, bool]] = []
        size = 0
        for request, seat, result in loads:
            if isinstance(result, Product) and len(result.value) <= INLINE_BYTES:
                stores.append((seat.lease, result.value, result.ttl, result.stale, result.absent))
                size += len(result.value)
                if size > INLINE_BYTES:
                    self.channel.post(encode(StoreMany(tuple(stores))))
                    stores, size = [], 0
            else:
                self.end(request, seat, result)
        if stores:
            self.channel.post(encode(StoreMany(tuple(stores))))
        for request, _, _ in loads:
            request.settle()  # what has come of it was said

    def end(self, request: Request | None, seat: Seat, result: Product | Exception | None) -> None:
        assert request is not None
        lease = seat.lease
        descriptor = None
        message: Message
        if isinstance(result, Product):
            try:
                message, descriptor = _store(lease, result)
            except OSError:  # out of descriptors or memory: the next waiter may do better
                message = Return(lease)
        elif result is not None:
            message = Fail(lease, *describe_error(result))
        else:
            message = Return(lease)
        request.settle(encode(message), descriptor)

    def store(self, hold: Hold, seat: Seat, product: Product) -> Request:
        """End a seat's lease with what was loaded, and hear when all see it. Raises ``OSError``: out of descriptors."""
        return self.channel.ask(hold, *_store(seat.lease, product))

    def refresh(self, group: str, key: bytes, picked: bool) -> None:
        """A stale value was met; ``picked``: of a peer that this process has picked."""
        self.channel.post(encode(Refresh(self._declared[group].group, key, picked)))

    def change(self, hold: Hold, group: str, asked: Asked, deadline: int) -> Request:
        """Ask for a change, which is answered by CHANGED. Raises ``OSError``: out of descriptors or memory.

        ``deadline``: of the host's clock, in ns; the coordinator does nothing after it.
        """
        values: tuple[bytes | int, ...] = asked.values
        descriptor = None
        if len(values) == 1 and len(value := asked.values[0]) > INLINE_BYTES:
            values, descriptor = (len(value),), sealed(value)
        group_id = self._declared[group].group
        message = Change(
            group_id,
            asked.what,
            asked.keys,
            values,
            asked.ttl,
            asked.stale,
            asked.version,
            asked.amount,
            asked.initial,
            deadline,
        )
        return self.channel.ask(hold, message, descriptor)

    # ---- Ends

    def abandon(self) -> None:
        """In a forked child: close the descriptors alone, and leave the parent's connections as they are.

        Kept, they would keep the connections open when the parent dies, and its leases with them.
        """
        if hasattr(self, "channel"):
            self.channel.abandon(CoordinatorUnavailable("the channel is the parent process's"))
        if self._service is not None:
            self._service.abandon()

    def close(self, reason: str = "the link was closed") -> None:
        """Close both connections. Views keep the region."""
        self._closing = True
        if hasattr(self, "channel"):
            self.channel.close(reason)
        if self._service is not None:
            self._service.close()


def _hello(role: Role, token: bytes) -> Hello:
    clock = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Hello(role, os.getpid(), token, LOWEST_VERSION, HIGHEST_VERSION, ABILITIES, clock)


def _store(lease: int, product: Product) -> tuple[Message, Descriptor | None]:
    value: bytes | int = product.value
    descriptor = None
    if len(product.value) > INLINE_BYTES:
        descriptor = sealed(product.value)
        value = len(product.value)
    picked, said = product.picked, product.said
    return Store(lease, value, picked, said, product.ttl, product.stale, product.absent), descriptor


def _expect(kind: type[M], message: Message) -> M:
    if isinstance(message, kind):
        return message
    if isinstance(message, Failed):
        raise message.exception()
    raise ProtocolError(f"answer: got {type(message).__name__}, expected {kind.__name__}")


class _Service:
    """Answers the coordinator's pings while other threads load: a slow loader is not a dead worker. Hands loads on.

    It has a thread and is none: gevent's patching puts another class in the place of ``threading.Thread``, and one that
    was derived from the first before that is never seen to end.
    """

    def __init__(
        self,
        sock: socket.socket,
        token: bytes,
        channel: Channel,
        on_load: Callable[[Load], None],
        on_end: Callable[[str], None],
        claim_region: Callable[[], bool],
        waiting_here: Callable[[], Loads],
    ) -> None:
        self._sock = sock
        self._token = token
        self._channel = channel
        self._on_load = on_load
        self._on_end = on_end
        self._claim_region = claim_region
        self._waiting_here = waiting_here
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="mpgroupcache-service", daemon=True)

    def start(self) -> None:
        """Raises ``CoordinatorUnavailable``, and ``RuntimeError`` where the process may have no further thread.

        HELLO goes out from here: a group that is declared behind it can be loaded for peers at once, however late the
        thread comes to run.
        """
        try:
            self._sock.sendall(encode(_hello("service", self._token), 1))
            self._thread.start()
        except BaseException as error:
            self._sock.close()  # else the thread does, at its end
            if isinstance(error, OSError):
                raise CoordinatorUnavailable(f"service connection: {error}") from None
            raise

    def abandon(self) -> None:
        """In a forked child, in which the thread is not: close its copy of the descriptor."""
        self._abandoned = True
        with contextlib.suppress(OSError):
            os.close(self._sock.detach())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(LIVENESS_TIMEOUT)

    def _run(self) -> None:
        reason = "the coordinator closed the service connection"
        try:
            self._sock.settimeout(None)
            decoder = Decoder()
            while data := self._receive():
                decoder.feed(data)
                for request_id, message in decoder:
                    if isinstance(message, Ping):
                        self._sock.sendall(encode(Pong(), request_id) + encode(Waiting(self._waiting_here())))
                        self._channel.flush()  # what was given back, and its socket did not take
                    elif isinstance(message, Load):
                        self._on_load(message)
                    elif not isinstance(message, Welcome):
                        raise ProtocolError(f"service connection: got {message}, expected PING or LOAD")
        except (OSError, CacheError) as error:
            reason = f"the service connection broke: {error}"
        finally:
            if self._abandoned:  # gevent's child has this greenlet too; threading forgot it, and fails when it ends
                threading.Event().wait()
            with contextlib.suppress(Exception):
                self._on_end(reason)
            # All of them refer to the link, which refers to this, and to a region.
            del self._on_end, self._on_load, self._claim_region, self._waiting_here
            self._sock.close()

    def _receive(self) -> bytes:
        """What the coordinator says next; while this process has no region, it looks for one now and then."""
        while not self._claim_region():
            self._sock.settimeout(CLAIM_INTERVAL)
            try:
                return self._sock.recv(4096)
            except TimeoutError:
                continue
            finally:
                self._sock.settimeout(None)
        return self._sock.recv(4096)
