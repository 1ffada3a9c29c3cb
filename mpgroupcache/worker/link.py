"""A worker's link to one instance: its two connections, its region, and the groups it has declared there."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from mpgroupcache.errors import CacheError, CoordinatorUnavailable, ProtocolError
from mpgroupcache.ipc.frame import Decoder, encode
from mpgroupcache.ipc.messages import (
    Declare,
    Declared,
    Failed,
    Hello,
    Load,
    Message,
    PeersSet,
    Ping,
    Pong,
    Role,
    SetPeers,
    Welcome,
)
from mpgroupcache.shm._reader import Reader
from mpgroupcache.shm.segment import segment_path
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT, Channel
from mpgroupcache.worker.peerloads import LoadForPeer, PeerLoads

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


def connect(path: str) -> socket.socket:
    """Connect to a coordinator's socket. Raises ``CoordinatorUnavailable``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(LIVENESS_TIMEOUT)
        sock.connect(path)
    except OSError as error:  # also EAGAIN: the backlog is full
        sock.close()
        raise CoordinatorUnavailable(f"no coordinator on {path}: {error}") from error
    return sock


class Link:
    """An established link. ``broken`` once either connection is; it is then left for a new one."""

    def __init__(
        self, socket_path: str, previous: Reader | None = None, on_broken: Callable[[], object] | None = None
    ) -> None:
        """Connect, claim a region, and start the service thread. Raises ``CoordinatorUnavailable`` or ``CacheError``.

        ``previous`` is the reader of an earlier link, kept where the instance is still the same. ``on_broken`` is
        called when the link breaks, not when it is closed.
        """
        self._on_broken = on_broken
        self._closing = False
        token = os.urandom(16)
        self.channel = Channel(connect(socket_path))
        self._service: _Service | None = None
        self._declared: dict[str, Declared] = {}
        self._loads = PeerLoads(self.channel)
        try:
            welcome = _expect(Welcome, self.channel.request(_hello("call", token)).message)
            self.instance = welcome.instance
            path = segment_path(welcome.control)
            self.reader = previous if previous is not None and previous.reads(path) else Reader(path)
            self._service = _Service(connect(socket_path), token, self._loads.submit, self._end)
            self._service.start()
        except BaseException as error:
            self.close(str(error))
            raise
        if self.reader.number < 0:
            logger.warning("no free region in instance %s: hits are copied by the coordinator", welcome.instance)

    def _end(self, reason: str) -> None:
        """The service connection has ended."""
        self.channel.close(reason)
        if self._on_broken is not None and not self._closing:
            self._on_broken()

    @property
    def broken(self) -> bool:
        """Whether the coordinator is gone, as far as this link knows."""
        return self.channel.broken is not None

    def declare(
        self, name: str, cache_bytes: int, load_timeout: float | None, picks: bool, load: LoadForPeer
    ) -> Declared:
        """Announce a group and return what the instance has made of it. ``load`` is called for peers' requests."""
        self._loads.declare(name, load)
        if (declared := self._declared.get(name)) is None:
            answer = self.channel.request(Declare(name, cache_bytes, load_timeout, picks)).message
            declared = self._declared[name] = _expect(Declared, answer)
        return declared

    def set_peers(self, message: SetPeers) -> None:
        """Name the ring. Raises ``CoordinatorError`` where the coordinator has it from its own options."""
        _expect(PeersSet, self.channel.request(message).message)

    def group_id(self, name: str) -> int:
        """The id that the instance gave to a group which was declared on this link."""
        return self._declared[name].group

    def abandon(self) -> None:
        """In a forked child: close the descriptors alone, and leave the parent's connections as they are.

        Kept, they would keep the connections open when the parent dies, and its leases with them.
        """
        self.channel.abandon()
        if self._service is not None:
            self._service.abandon()

    def close(self, reason: str = "the link was closed") -> None:
        """Close both connections. Views keep the region."""
        self._closing = True
        self._loads.close()
        self.channel.close(reason)
        if self._service is not None:
            self._service.close()


def _hello(role: Role, token: bytes) -> Hello:
    return Hello(role, os.getpid(), token)


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
        self, sock: socket.socket, token: bytes, on_load: Callable[[Load], None], on_end: Callable[[str], None]
    ) -> None:
        self._sock = sock
        self._token = token
        self._on_load = on_load
        self._on_end = on_end
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="mpgroupcache-service", daemon=True)

    def start(self) -> None:
        """Raises ``RuntimeError`` where the process may have no further thread."""
        try:
            self._thread.start()
        except BaseException:
            self._sock.close()  # else the thread does, at its end
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
            self._sock.sendall(encode(_hello("service", self._token), 1))
            decoder = Decoder()
            while data := self._sock.recv(4096):
                decoder.feed(data)
                for request_id, message in decoder:
                    if isinstance(message, Ping):
                        self._sock.sendall(encode(Pong(), request_id))
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
            self._sock.close()
