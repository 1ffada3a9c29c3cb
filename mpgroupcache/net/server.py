"""The peers' server: HTTP/1.1 requests in, values of a `Source` out, as wire.py has them.

One thread and one event loop, uvloop's. What happens to a request:

1. `_Reader` parses what has come (httptools does) into requests; it knows nothing of sockets and values.
2. `_Connection` answers them in their order. A value that is cached is copied once, into its answer, before the source
   is called again: its memory may be another value's then.
3. A value that is not cached has to be loaded: a `_Visit` waits for it, and the requests behind it wait, too.

Guarantees: a client that sends endlessly, slowly, garbage, or nothing, that does not read, or goes away, costs a
bounded amount of memory and gets a bounded share of the loop's time. Every visitor is answered or leaves, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, Protocol, cast

from httptools import HttpParserError, HttpRequestParser

from mpgroupcache.net import wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from typing_extensions import Buffer

logger = logging.getLogger(__name__)

# Bytes that are parsed at once; then the other connections get a turn. Some 400 of the shortest requests fit, which
# take 5 ms.
SLICE: Final = 16 << 10
LINGER: Final = 1.0  # s that a client has to read its last answer and close; closing first could destroy that answer
BACKLOG: Final = 1024  # connections in one burst that wait to be accepted; the kernel caps it at somaxconn
ACCEPTS: Final = 64  # connections accepted at once; then the others get a turn
PROGRESS: Final = 64 << 10  # bytes that a slow client has to take in each stall timeout
REPORT_INTERVAL: Final = 10.0  # s between two log messages of one kind
DRAIN_TIMEOUT: Final = 5.0  # s that `close` leaves to requests under way

# What is read of a request's headers, in lower case. All else is up to the parser.
_HOST: Final = b"host"
_CONNECTION: Final = b"connection"
_CONTENT_LENGTH: Final = b"content-length"
_TRANSFER_ENCODING: Final = b"transfer-encoding"
_INSTANCE: Final = wire.INSTANCE.lower()
_TIMEOUT: Final = wire.TIMEOUT.lower()
_SECRET: Final = wire.SECRET.lower()
_FRAMING: Final = frozenset((_CONNECTION, _CONTENT_LENGTH, _TRANSFER_ENCODING))
_WANTED: Final = _FRAMING | {_HOST, _INSTANCE, _TIMEOUT, _SECRET}

# As Go has them: Python's own differ in one, and between its versions.
_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    414: "Request URI Too Long",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def _unparsed(status: int, detail: str = "") -> wire.ErrorResponse:
    """What net/http answers where it does not call a handler."""
    body = f"{status} {_REASONS[status]}{detail}".encode()
    return wire.ErrorResponse(status, body, wire.MALFORMED.headers, closes=True)


_NO_HOST: Final = _unparsed(400, ": missing required Host header")
_HEAD_TOO_LARGE: Final = _unparsed(431)


class NoSuchGroup(LookupError):
    """Nobody on this host declared the group."""


class Visitor(Protocol):
    """A peer's request that waits for a value. It is answered once, maybe before ``Source.visit`` returns."""

    def deliver(self, value: bytes, minute_qps: float) -> None:
        """Answer with the value."""

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the error that the loader raised."""


class Source(Protocol):
    """Where values come from. It is called on the loop, and must not block."""

    def find(self, group: str, key: bytes) -> tuple[memoryview, float] | None:
        """The cached value, valid until the source's next call, and its requests per minute (0.0: unknown).

        None if it is not cached. Raises ``NoSuchGroup``.
        """

    def visit(self, group: str, key: bytes, visitor: Visitor) -> None:
        """Load a value that is not cached. Raises ``NoSuchGroup``."""

    def leave(self, visitor: Visitor) -> None:
        """The visitor does not wait any longer: its client is gone, or its time is up."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take, and all together."""

    connections: int = 1024  # more than peers with pools of their own open; fewer than the usual limit of descriptors
    headers: int = 100  # of a request; proxies in between add some
    header_bytes: int = 64 << 10  # of all of them, beside the target
    request_timeout: float = 10.0  # s from a request's first byte to the end of its headers; also for a TLS handshake
    idle_timeout: float = 120.0  # s; longer than Go's clients keep theirs (90), so that they close and not we
    stall_timeout: float = 30.0  # s in which a client has to read some of what it asked for
    unread_bytes: int = 256 << 20  # of answers that all clients together have not read; more is refused with 503


# ---- Requests


class _Request:
    """One request, read to the end of its headers."""

    __slots__ = ("closes", "head", "headers", "old", "target")

    def __init__(self, target: bytes, headers: dict[bytes, bytes], head: bool, closes: bool, old: bool) -> None:
        self.target = target
        self.headers = headers
        """Those that are wanted, with names in lower case."""
        self.head = head
        """Whether the answer has no body. Any other method is answered as GET: Go's handler does not look at it."""
        self.closes = closes
        """Whether the connection ends with the answer."""
        self.old = old
        """Whether it is of HTTP/1.0."""


class _Reader:
    """Requests from bytes.

    A request is complete with its headers. Nobody needs one with a body: the answer to it ends the connection, and the
    body is not read. (Go does so with large bodies, and reads small ones for nothing.)
    """

    __slots__ = (
        "_head_bytes",
        "_header_count",
        "_headers",
        "_limits",
        "_parser",
        "_target",
        "ended",
        "in_head",
        "requests",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._head_bytes = 0
        self.requests: deque[_Request | wire.ErrorResponse] = deque()
        """What has to be answered, in this order."""
        self.in_head = False
        """Whether a request has begun, and is not complete."""
        self.ended = False
        """Whether nothing is read any more; then the last one of ``requests`` ends the connection."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes, at most a slice, in."""
        if self.ended:
            return
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            if not self.ended:
                self._refuse(wire.MALFORMED)
            return
        if self.in_head:
            self._head_bytes += len(data)
            if self._head_bytes > wire.MAX_TARGET_BYTES + self._limits.header_bytes:
                if len(self._target) > wire.MAX_TARGET_BYTES:
                    self._complete(closes=True)  # to be refused for its target
                else:
                    self._refuse(_HEAD_TOO_LARGE)

    def _refuse(self, response: wire.ErrorResponse) -> None:
        self.requests.append(response)
        self.ended = True

    def _complete(self, *, closes: bool, old: bool = False) -> None:
        head = self._parser.get_method() == b"HEAD"
        self.requests.append(_Request(self._target, self._headers, head, closes, old))
        self.ended = closes

    # What the parser calls. It takes an exception for the end, and hides it behind its own.

    def on_message_begin(self) -> None:
        self.in_head = True
        self._target = b""
        self._headers = {}
        self._header_count = 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._header_count > self._limits.headers:
            self._refuse(_HEAD_TOO_LARGE)
            raise _Ended
        name = name.lower()
        if name in _WANTED:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        self.in_head = False
        self._head_bytes = 0
        headers = self._headers
        parser = self._parser
        ends = not parser.should_keep_alive() or parser.should_upgrade()
        if not ends and _HOST in headers and headers.keys().isdisjoint(_FRAMING):  # nearly all
            self._complete(closes=False)
            return
        old = parser.get_http_version() < "1.1"
        if _HOST not in headers and not old:
            self._refuse(_NO_HOST)
            raise _Ended
        has_body = _TRANSFER_ENCODING in headers or headers.get(_CONTENT_LENGTH, b"").strip(b"0") != b""
        self._complete(closes=ends or has_body, old=old)
        if self.ended:
            raise _Ended


class _Ended(Exception):
    """The parser is to stop."""


# ---- Connections


class _Visit:
    """A visitor: the request that its connection waits for."""

    __slots__ = ("_connection", "request", "timer")

    def __init__(self, connection: _Connection, request: _Request) -> None:
        self._connection: _Connection | None = connection
        self.request = request
        self.timer: asyncio.TimerHandle | None = None

    def deliver(self, value: bytes, minute_qps: float) -> None:
        """Answer with the value, unless it is too late."""
        connection = self.end()
        if connection is not None:
            connection.send_value(self.request, value, minute_qps)
            connection.settle()

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the loader's error, unless it is too late."""
        self.refuse(wire.load_failed(type_name, text))

    def refuse(self, response: wire.ErrorResponse) -> None:
        """Answer with an error, unless it is too late."""
        connection = self.end()
        if connection is not None:
            connection.send_error(response, self.request)
            connection.settle()

    def end(self) -> _Connection | None:
        """Let the connection go on; None if it does already."""
        connection, self._connection = self._connection, None
        if self.timer is not None:
            self.timer.cancel()
        if connection is not None:
            connection.visit = None
        return connection


class _Connection(asyncio.Protocol):
    """One client: its requests are answered in their order, and no faster than it reads."""

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._reader = _Reader(server.limits)
        self._transport: asyncio.Transport | None = None  # none before the TLS handshake
        self._unread = memoryview(b"")  # what has come, and is not parsed yet
        self._listening = True
        self._scheduled = False
        self._serving = False
        self._ending = False
        self._stalled = 0  # bytes of answers that the client has not read, if they are so many that it is stopped
        self._since = time.monotonic()  # when what the client is waited for began
        self.visit: _Visit | None = None

    # ---- In

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's have that face, but no base class
        self._since = time.monotonic()
        if self._server.draining:
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return  # to be lost
        if len(data) <= SLICE and not self._unread:
            self._read(data)
        else:
            self._unread = memoryview(bytes(self._unread) + data)
        if self._unread or self._reader.requests or self._stalled:
            self.settle()

    def _read(self, data: bytes | memoryview) -> None:
        reader = self._reader
        was_in_head = reader.in_head
        reader.feed(data)
        if reader.requests:
            self._serve()
        elif reader.in_head and not was_in_head:
            self._since = time.monotonic()

    def _serve(self) -> None:
        """Answer requests until there is none, one has to wait, or the client has to read first."""
        requests = self._reader.requests
        self._serving = True
        while requests and not self._blocked:
            request = requests.popleft()
            if isinstance(request, _Request):
                self._answer(request)
            else:
                self.send_error(request)
        self._serving = False

    @property
    def _blocked(self) -> bool:
        return self.visit is not None or self._stalled > 0 or self._ending

    def settle(self) -> None:
        """Go on with what has come, at the loop's next turn; listen only if there is nothing of it left."""
        if self._serving or self._transport is None:
            return
        waiting = bool(self._unread or self._reader.requests)
        if waiting and not self._blocked and not self._scheduled:
            self._scheduled = True
            self._server.loop.call_soon(self._go_on)
        listens = not waiting and not self._stalled
        if listens != self._listening and not self._transport.is_closing():
            self._listening = listens
            if listens:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _go_on(self) -> None:
        self._scheduled = False
        if self._reader.requests:
            self._serve()
        elif not self._blocked:
            data, self._unread = self._unread[:SLICE], self._unread[SLICE:]
            self._read(data)
        self.settle()

    # ---- Answers

    def _answer(self, request: _Request) -> None:
        server = self._server
        group = b""
        try:
            server.check(request.headers, self)
            group, key = wire.parse_target(server.base_path, request.target)
            name = _decode_group(group)
            found = server.source.find(name, key)
            if found is None:
                self._visit(request, name, key)
            else:
                self.send_value(request, *found)
        except wire.RequestError as error:
            self.send_error(error.response, request)
        except NoSuchGroup:
            self.send_error(wire.no_such_group(group), request)
        except Exception:  # a defect of the source's: this client is not to wait, and the others are not to suffer
            logger.exception("%r: a request failed", self)
            self.send_error(wire.error_response(500, "internal error; see this peer's log"), request)

    def _visit(self, request: _Request, group: str, key: bytes) -> None:
        """Wait for a value; the request's errors are raised, and then nobody waits."""
        timeout = None
        if (header := request.headers.get(_TIMEOUT)) is not None:
            timeout = wire.decode_timeout(header)
        visit = self.visit = _Visit(self, request)
        try:
            self._server.source.visit(group, key, visit)
        except BaseException:
            if visit.end() is None:
                logger.exception("%r: got an error from a source that had answered", self)
                return
            raise
        if timeout is not None and self.visit is visit:
            visit.timer = self._server.loop.call_later(timeout, self._give_up, visit, timeout)

    def _give_up(self, visit: _Visit, timeout: float) -> None:
        text = f"deadline exceeded: no value within the {timeout:g} s of {wire.TIMEOUT.decode()}"
        visit.refuse(wire.error_response(504, text))
        self._server.source.leave(visit)

    def _leave(self) -> None:
        visit = self.visit
        if visit is not None:
            visit.end()
            self._server.source.leave(visit)

    def send_value(self, request: _Request, value: Buffer, minute_qps: float) -> None:
        """Answer with a value; nothing refers to its memory after that."""
        size = len(memoryview(value))
        server = self._server
        try:
            before, behind = wire.response_head(size, minute_qps if minute_qps > 0.0 else None)
        except ValueError as error:
            self.send_error(wire.error_response(500, str(error)), request)
            return
        if size > PROGRESS and 0 < server.unread_bytes > server.limits.unread_bytes - size:
            text = f"busy: clients have {server.unread_bytes} bytes of answers to read; ask again later"
            self.send_error(wire.error_response(503, text), request)
            return
        length = len(before) + size + len(behind)
        self._send(request, server.value_head, length, (before, value, behind))

    def send_error(self, response: wire.ErrorResponse, request: _Request | None = None) -> None:
        """Answer with an error; ``request`` is None where it was none."""
        server = self._server
        server.errors[response.status] += 1
        lines = [b"HTTP/1.1 %d %s\r\n" % (response.status, _REASONS[response.status].encode())]
        lines += [b"%s: %s\r\n" % header for header in response.headers]
        if response.closes:  # the body ends with the connection: neither a length nor a date, as from Go's net/http
            self._write(b"".join((*lines, b"\r\n", response.body)))
            self._end()
        else:
            assert request is not None
            head = b"".join((*lines, server.common_headers))
            self._send(request, head, len(response.body), (response.body,))

    def _send(self, request: _Request, head: bytes, length: int, body: Iterable[Buffer]) -> None:
        """``head`` ends where the length begins."""
        if request.head:
            body = ()
        closes = request.closes or self._server.draining
        if not closes and not request.old:
            self._write(b"".join((head, b"%d\r\n\r\n" % length, *body)))
            return
        if request.old:
            head = head.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        connection = b"" if closes == request.old else b"Connection: %s\r\n" % (b"close" if closes else b"keep-alive")
        self._write(b"".join((head, b"%d\r\n%s\r\n" % (length, connection), *body)))
        if closes:
            self._end()

    def _write(self, data: bytes) -> None:
        transport = self._transport
        assert transport is not None
        if not transport.is_closing():
            transport.write(data)
            self._since = time.monotonic()

    # ---- What the transport says

    def pause_writing(self) -> None:
        assert self._transport is not None
        self._set_stalled(max(self._transport.get_write_buffer_size(), 1))
        self.settle()

    def resume_writing(self) -> None:
        self._set_stalled(0)
        self._since = time.monotonic()
        self.settle()

    def _set_stalled(self, size: int) -> None:
        self._server.unread_bytes += size - self._stalled
        self._stalled = size

    def eof_received(self) -> None:
        self._leave()  # then the transport sends what is left, and closes

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = True
        self._leave()
        self._set_stalled(0)
        self._server.forget(self)

    # ---- The end

    def _end(self) -> None:
        """Nothing more is read or answered; the client closes when it has read its answers, or the server does."""
        self._ending = True
        self._reader.requests.clear()
        self._unread = memoryview(b"")
        transport = self._transport
        assert transport is not None
        if transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
            self.settle()
        else:
            transport.close()

    def drain(self) -> None:
        """Close the connection if nothing is under way on it; otherwise the next answer does."""
        reader = self._reader
        if self._transport and not (self._blocked or self._unread or reader.requests or reader.in_head):
            self._transport.close()

    def abort(self) -> None:
        """Close it, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def watch(self, now: float) -> None:
        """Let go of a client that was waited for too long."""
        transport, limits = self._transport, self._server.limits
        if transport is None:
            return  # the handshake has a timeout of its own
        waited = now - self._since
        if self._stalled or transport.is_closing():
            size = transport.get_write_buffer_size()
            if self._stalled and size <= self._stalled - PROGRESS:
                self._set_stalled(max(size, 1))
                self._since = now
            elif waited > limits.stall_timeout:
                transport.abort()
        elif self._ending:
            if waited > LINGER:
                transport.close()
        elif self.visit is None and waited > (limits.request_timeout if self._reader.in_head else limits.idle_timeout):
            transport.close()

    def __repr__(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"<connection of {format_address(*peer[:2]) if peer else 'a peer'}>"


def _decode_group(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise NoSuchGroup from None


# ---- The server


class PeerServer:
    """Listens for peers; make one with ``await PeerServer.start(...)``."""

    def __init__(
        self,
        source: Source,
        *,
        instance: bytes,
        base_path: str = wire.DEFAULT_BASE_PATH,
        secret: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.source = source
        self.base_path = wire.check_base_path(base_path)
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self.errors: Counter[int] = Counter()
        """How many requests were answered with which status other than 200."""
        self.refused = 0
        """Connections that were closed at once, since there were too many."""
        self.unread_bytes = 0
        """Of answers to clients that were stopped for not reading."""
        self.value_head = self.common_headers = b""
        """What answers begin with; of a value up to its length, and of an error behind its own headers."""
        self._instance = instance.hex().encode()
        self._secret = wire.encode_secret(secret) if secret is not None else None
        self._ssl_context = ssl_context
        self._listeners: list[socket.socket] = []
        self._connections: set[_Connection] = set()
        self._entering: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._reported: dict[str, float] = {}
        self._gone = asyncio.Event()

    @classmethod
    async def start(
        cls,
        source: Source,
        host: str,
        port: int,
        *,
        instance: bytes,
        base_path: str = wire.DEFAULT_BASE_PATH,
        secret: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> PeerServer:
        """Listen on every address of ``host`` ("": all of this host), and ``port`` (0: a free one).

        ``instance``: random bytes that no other peer has. ``secret``: what peers have to know. Raises ``OSError`` that
        names ``--listen``, and ``ValueError`` for a base path or secret that cannot be.
        """
        server = cls(
            source, instance=instance, base_path=base_path, secret=secret, ssl_context=ssl_context, limits=limits
        )
        server._listeners = await _listen(server.loop, host, port)
        for listener in server._listeners:
            server.loop.add_reader(listener.fileno(), server._accept, listener)
        return server

    async def close(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """Stop listening; requests under way have so many seconds, and their answers say ``Connection: close``."""
        self.draining = True
        for listener in self._listeners:
            self.loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        for task in self._entering:
            task.cancel()
        for connection in list(self._connections):
            connection.drain()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), timeout)
        for connection in list(self._connections):
            connection.abort()
        if self._connections:
            await self._gone.wait()
        if self._ticking is not None:
            self._ticking.cancel()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of all that it listens on, numeric."""
        return [listener.getsockname()[:2] for listener in self._listeners]

    @property
    def port(self) -> int:
        """The port, which is the same on all addresses."""
        return self.addresses[0][1]

    def __repr__(self) -> str:
        addresses = ", ".join(format_address(*address) for address in self.addresses) or "nothing"
        return f"<peer server on {addresses}, {len(self._connections)} connections>"

    # ---- For connections

    def check(self, headers: dict[bytes, bytes], connection: _Connection) -> None:
        """Raise ``RequestError`` for a request that is not to be answered here."""
        try:
            if self._secret is not None:
                wire.check_secret(self._secret, headers.get(_SECRET))
            if headers.get(_INSTANCE) == self._instance:
                raise wire.RequestError("this peer asks itself; its --self is not in its peers", wire.ASKED_ITSELF)
        except wire.RequestError as error:
            self.report("request", "%r: %s", connection, error)
            raise

    def report(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning, but not for each of many."""
        now = time.monotonic()
        if now - self._reported.get(kind, -REPORT_INTERVAL) >= REPORT_INTERVAL:
            self._reported[kind] = now
            logger.warning(message, *arguments)

    def forget(self, connection: _Connection) -> None:
        """The connection is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._gone.set()

    # ---- From time to time

    def _tick(self) -> None:
        """At each second's begin while there are connections: the Date header, and clients that keep us waiting."""
        self._ticking = None
        if not self._connections:
            return
        now = time.time()
        self._ticking = self.loop.call_later(1.0 - now % 1.0, self._tick)
        date = formatdate(now, usegmt=True).encode()
        self.common_headers = b"%s: %s\r\nDate: %s\r\nContent-Length: " % (wire.INSTANCE, self._instance, date)
        self.value_head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s" % (wire.CONTENT_TYPE, self.common_headers)
        instant = time.monotonic()
        for connection in list(self._connections):
            connection.watch(instant)

    # ---- New connections

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self.report("accept", "accept: %s; expected a free file descriptor, raise the limit (ulimit -n)", error)
                self.loop.remove_reader(listener.fileno())
                self.loop.call_later(1.0, self._resume_accepting, listener)
                return
            if len(self._connections) >= self.limits.connections:
                sock.close()
                self.refused += 1
                self.report(
                    "refused", "peers: got more than %d connections; new ones are closed", self.limits.connections
                )
                continue
            connection = _Connection(self)
            self._connections.add(connection)
            self._gone.clear()
            if self._ticking is None:
                self._tick()
            task = self.loop.create_task(self._enter(sock, connection))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    def _resume_accepting(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.loop.add_reader(listener.fileno(), self._accept, listener)

    async def _enter(self, sock: socket.socket, connection: _Connection) -> None:
        """Make a connection of an accepted socket: with TLS that takes a handshake."""
        tls = self._ssl_context
        peer: object = "a peer"

        def make() -> _Connection:
            return connection

        try:
            peer = sock.getpeername()
            if tls is None:
                await self.loop.connect_accepted_socket(make, sock)
            else:
                timeout = self.limits.request_timeout
                await self.loop.connect_accepted_socket(
                    make, sock, ssl=tls, ssl_handshake_timeout=timeout, ssl_shutdown_timeout=LINGER
                )
        except OSError as error:
            self.report("handshake", "%s: no connection: %s", peer, error)
            sock.close()
            self.forget(connection)
        except asyncio.CancelledError:
            sock.close()
            self.forget(connection)
            raise


# ---- Addresses


def parse_address(text: str, option: str = "--listen") -> tuple[str, int]:
    """Read ``HOST:PORT``; an IPv6 host is in brackets, and no host is "". Raises ``ValueError``."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    if not colon or not 0 <= number <= 65535 or bracketed != (":" in host) or "[" in host or "]" in host:
        raise ValueError(f"{option}: got {text!r}, expected HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080")
    return host, number


def format_address(host: str, port: int) -> str:
    """The opposite of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _listen(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses of ``host``, with one port."""
    where = f"--listen {format_address(host, port)}"
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(error.errno, f"{where}: {error.strerror}") from None
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listeners.append(_bind(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # on a host without IPv6, names may still have such an address
            else:
                port = listeners[0].getsockname()[1]
        if missing is not None and not listeners:
            raise missing
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise OSError(error.errno, f"{where}: {error.strerror}") from None
    return listeners


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
