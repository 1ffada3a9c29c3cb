"""The coordinator's end of one worker connection: frames and descriptors in and out, never blocking.

Raw sockets, since asyncio's transports drop descriptors that come with later messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from mpgroupcache.errors import ProtocolError
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.fields import Role
from mpgroupcache.ipc.frame import Decoder, Frame, encode
from mpgroupcache.ipc.messages import Failed, FailureCode, Message

logger = logging.getLogger(__name__)

READ_BYTES = 128 << 10  # a frame with an inline value fits
MAX_BACKLOG = 64 << 20  # bytes that wait for a worker to read them: one that does not is stopped, and is let go of
MAX_WAITING_FDS = 64  # descriptors that came before their frame; a frame brings one
CORKED_BYTES = 16 << 10  # that are kept to be sent together: copying more would cost what it saves

_buffer = memoryview(bytearray(READ_BYTES))  # of the one thread; a decoder copies what it keeps


class Cork:
    """While it is in, connections keep what they send; when it is pulled, each sends its part of it in one go.

    It is in while the messages of one read are handled: a worker whose threads ask together is woken once.
    """

    __slots__ = ("corked", "is_in")

    def __init__(self) -> None:
        self.is_in = False
        self.corked: list[Connection] = []

    def __enter__(self) -> None:
        self.is_in = True

    def __exit__(self, *_: object) -> None:
        self.is_in = False
        for connection in self.corked:
            connection.uncork()
        self.corked.clear()


Handler: TypeAlias = "Callable[[Connection, int, Any], None]"
"""Called with the connection, the request's id, and the message."""


class Handlers(dict[type[Message], Handler]):
    """Who hears which message on connections of one kind. Raises ``ProtocolError`` for one that nobody does."""

    def __init__(self, kind: str, handlers: Mapping[type[Message], Handler]) -> None:
        super().__init__(handlers)
        self._kind = kind

    def __missing__(self, message: type[Message]) -> Handler:
        names = ", ".join(sorted(kind.__name__ for kind in self))
        expected = f"one of {names}" if names else "none"
        raise ProtocolError(f"got {message.__name__} on a {self._kind} connection, expected {expected}")


class Connection:
    """One connection. ``handlers`` hear its messages; ``role`` and what follows it are what its HELLO said."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, cork: Cork, handlers: Handlers) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._cork = cork
        self._corked = bytearray()
        self._decoder = Decoder()
        self._fds = memfd.Received()
        self._backlog: deque[tuple[memoryview, int]] = deque()
        self._backlog_bytes = 0
        self._ending = False
        self.handlers = handlers
        self.role: Role | None = None
        self.worker = b""
        self.pid = 0
        self.abilities: frozenset[str] = frozenset()
        self.closed = False

    def __repr__(self) -> str:
        return f"<{self.role or 'new'} connection of process {self.pid}>"

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    # ---- In

    def receive(self) -> Iterable[Frame]:
        """Read what has come, and return the frames that are whole now, for all of them to be taken out.

        Raises ``EOFError`` at the end of the stream, ``ProtocolError`` (so does the iteration), or ``OSError``.
        """
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into([_buffer], memfd.ANCILLARY_BYTES, memfd.RECEIVE_FLAGS)
        except BlockingIOError:
            return ()
        if ancillary:
            self._fds.add(ancillary)
        if flags & memfd.TRUNCATED or len(self._fds) > MAX_WAITING_FDS:
            raise ProtocolError("descriptors: got more than can be taken, expected one with each frame that says so")
        if count == 0:
            raise EOFError
        self._decoder.feed(_buffer[:count])
        return self._decoder

    def claim(self, message: Message) -> int:
        """Return a received message's descriptor, the caller's from now on, or -1. Raises ``ProtocolError``."""
        return self._fds.claim(message)

    # ---- Out

    def send(self, message: Message, request_id: int = 0, fd: int = -1) -> None:
        """Send a frame: now, when the cork is pulled, or when the worker reads again. ``fd`` stays the caller's.

        It raises nothing: of many that a value is sent to, one that cannot be served is let go of, and asks again.
        """
        if self.closed:
            return
        frame = encode(message, request_id)
        if not self._cork.is_in:
            self._put_out(frame, fd)
        elif fd < 0 and len(self._corked) + len(frame) <= CORKED_BYTES:
            if not self._corked:
                self._cork.corked.append(self)
            self._corked += frame
        else:
            self.uncork()
            self._put_out(frame, fd)

    def refuse(self, request_id: int, text: str) -> None:
        """Answer that the coordinator does not do that, and why."""
        self.send(Failed(FailureCode.REFUSED, "CoordinatorError", text), request_id)

    def uncork(self) -> None:
        """Send what was kept."""
        if self._corked:
            frames, self._corked = self._corked, bytearray()
            self._put_out(frames, -1)

    def _put_out(self, frames: bytes | bytearray, fd: int) -> None:
        sent = 0
        if not self._backlog:
            try:
                sent = self._send_part(frames, fd)
            except BlockingIOError:
                pass
            except OSError:
                self._abort()
                return
            if sent == len(frames):
                return
        self._backlog_bytes += len(frames) - sent
        if self._backlog_bytes > MAX_BACKLOG:
            self._abort()
            return
        try:
            kept = os.dup(fd) if fd >= 0 and not sent else -1
        except OSError as error:
            logger.error("%r: %s; expected a free file descriptor, raise the limit (ulimit -n)", self, error)
            self._abort()
            return
        if not self._backlog:
            self._loop.add_writer(self.fileno(), self._flush)
        self._backlog.append((memoryview(frames)[sent:], kept))

    def _send_part(self, data: bytes | bytearray | memoryview, fd: int) -> int:
        return self._sock.sendmsg([data], memfd.passed(fd)) if fd >= 0 else self._sock.send(data)

    def end(self) -> None:
        """Close it once everything was sent: the reading end finds it closed then."""
        self.uncork()
        self._ending = True
        if self.flushed:
            self._abort()

    def _flush(self) -> None:
        try:
            while self._backlog:
                data, fd = self._backlog[0]
                sent = self._send_part(data, fd)
                self._backlog_bytes -= sent
                if fd >= 0:
                    os.close(fd)
                if sent < len(data):
                    self._backlog[0] = data[sent:], -1
                else:
                    self._backlog.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._abort()
            return
        self._loop.remove_writer(self.fileno())
        if self._ending:
            self._abort()

    def _abort(self) -> None:
        """Have the reading end find the connection closed, and clean up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    @property
    def flushed(self) -> bool:
        """Whether everything was sent."""
        return not self._backlog

    def close(self) -> None:
        """Close the socket and every descriptor that is on its way."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.fileno())
        self._loop.remove_writer(self.fileno())
        self._sock.close()
        self._fds.close()
        self._corked.clear()
        for _, fd in self._backlog:
            if fd >= 0:
                os.close(fd)
        self._backlog.clear()
