"""The peers' server: HTTP/1.1 requests in, values of a `Source` out, as wire.py has them.

One thread and one event loop, uvloop's. What happens to a request:

1. httptools parses what has come, a slice at a time. A peer says the same in each request but for the target: what
   follows that is not parsed again if it is what it was before.
2. Its `_Connection` answers it. A value that is cached is copied once, into its answer, before the source is called
   again: its memory may be another value's then.
3. A value that is not cached has to be loaded: a `_Visit` waits for it, and the requests behind it wait, too.

Guarantees: a client that sends endlessly, slowly, garbage, or nothing, that does not read, or goes away, costs a
bounded amount of memory and gets a bounded share of the loop's time. Every visitor is answered or leaves, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from httptools import HttpParserError, HttpRequestParser

from mpgroupcache.net import wire

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger(__name__)

# Bytes that are parsed at once; then the other connections get a turn. Some 400 of the shortest requests fit, which
# take 5 ms.
SLICE: Final = 16 << 10
LINGER: Final = 1.0  # s that a client has to read its last answer and close; closing first could destroy that answer
BACKLOG: Final = 1024  # connections in one burst that wait to be accepted; the kernel caps it at somaxconn
ACCEPTS: Final = 64  # connections accepted at once; then the others get a turn
MAX_USUAL: Final = 1024  # bytes of a target, or of all headers, that are kept to know them again
LOCATED: Final = 2048  # targets that are kept; hot keys are asked for again and again
PROGRESS: Final = 64 << 10  # bytes that a slow client has to take in each stall timeout
REPORT_INTERVAL: Final = 10.0  # s between two log messages of one kind
DRAIN_TIMEOUT: Final = 5.0  # s that `close` leaves to requests under way

# Names of headers in lower case
_FRAMING: Final = frozenset((b"connection", b"content-length", b"transfer-encoding"))
_INSTANCE: Final = wire.INSTANCE.lower()
_TIMEOUT: Final = wire.TIMEOUT.lower()
_SECRET: Final = wire.SECRET.lower()

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
_TARGET_TOO_LONG: Final = _unparsed(414)


class NoSuchGroup(LookupError):
    """Nobody on this host declared the group."""


class Visitor(Protocol):
    """A peer's request that waits for a value. It is answered once, maybe before ``Source.visit`` returns."""

    def deliver(self, value: bytes, minute_qps: float) -> None:
        """Answer with the value."""

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the error that the loader raised."""

    def refuse(self, text: str) -> None:
        """Answer that this host cannot load: whoever asks is to load there."""


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


# ---- Connections


class _Manner(NamedTuple):
    """How a request is answered."""

    head: bool
    """Without the body. Any other method is answered as GET, since Go's handler does not look at it."""
    closes: bool
    """With the end of the connection."""
    old: bool
    """As HTTP/1.0 has it."""


_PLAIN: Final = _Manner(head=False, closes=False, old=False)

_Request = tuple[bytes, dict[bytes, bytes], _Manner]  # a target, headers with their names in lower case


class _Ended(Exception):
    """The parser is to stop."""


class _Visit:
    """A visitor: the request that its connection waits for."""

    __slots__ = ("_connection", "_manner", "timer")

    def __init__(self, connection: _Connection, manner: _Manner) -> None:
        self._connection: _Connection | None = connection
        self._manner = manner
        self.timer: asyncio.TimerHandle | None = None

    def deliver(self, value: bytes, minute_qps: float) -> None:
        """Answer with the value, unless it is too late."""
        connection = self.end()
        if connection is not None:
            connection.send_value(self._manner, value, minute_qps)
            connection.settle()

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the loader's error, unless it is too late."""
        self.answer(wire.load_failed(type_name, text))

    def refuse(self, text: str) -> None:
        """Answer that this peer cannot load, unless it is too late."""
        self.answer(wire.error_response(503, text))

    def answer(self, response: wire.ErrorResponse) -> None:
        """Answer with an error, unless it is too late."""
        connection = self.end()
        if connection is not None:
            connection.send_error(response, self._manner)
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
    """One client: its requests are answered in their order, and no faster than it reads.

    A request is complete with its headers. Nobody needs one with a body: the answer to it ends the connection, and the
    body is not read. (Go does so with large bodies, and reads small ones for nothing.)
    """

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None  # none before the TLS handshake
        # Out of bytes:
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0  # that came since the last complete request, if none was complete in them
        self._completed: list[_Request] = []  # in the bytes that came last
        self._at_begin = True  # of a request
        self._ended = False  # nothing is parsed any more
        # What follows the target in this client's requests, and what it says. None unless the parser is at the
        # begin of a request and nothing waits: then a request that goes on like this need not be parsed.
        self._usual: bytes | None = None
        self._usual_headers: dict[bytes, bytes] = {}
        # What waits:
        self._unread = memoryview(b"")  # bytes
        self._queue: deque[_Request | wire.ErrorResponse] = deque()  # requests, and a last refusal
        # Why they do:
        self.visit: _Visit | None = None
        self._stalled = 0  # bytes of answers that the client has not read, if they are so many that it is stopped
        self._ending = False  # the last answer was sent
        self._serving = False
        self._scheduled = False
        self._listening = True
        # Since when the client is waited for:
        self._active = True
        self._since = 0.0

    # ---- In

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's have that face, but no base class
        self._active = True
        if self._server.draining:
            transport.close()

    def data_received(self, data: bytes) -> None:
        usual = self._usual
        if usual is not None and data.endswith(usual) and data.startswith(b"GET "):
            target = data[4 : -len(usual)]
            if b" " not in target:  # else there are several requests
                self._answer(target, self._usual_headers, _PLAIN)
                return
        if len(data) <= SLICE and not self._unread:
            was_at_begin = self._at_begin
            self._read(data)
            if was_at_begin:
                self._learn(data)
        elif not self._ending:
            self._unread = memoryview(bytes(self._unread) + data)
            self.settle()

    def _read(self, data: bytes | memoryview) -> None:
        self._usual = None
        if self._ended:
            return
        self._head_bytes += len(data)
        self._completed.clear()
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._refuse(wire.MALFORMED)
        self._at_begin = bool(self._completed) and data[-4:] == b"\r\n\r\n"
        if self._head_bytes:
            self._watch_head(len(data))
        if self._queue or self._stalled:
            self.settle()

    def _learn(self, data: bytes) -> None:
        """See whether what came was one plain request, and the next may be like it."""
        if len(self._completed) == 1 and self._at_begin and not self._is_blocked():
            target, headers, manner = self._completed[0]
            usual = data[4 + len(target) :]
            line = b"GET %s HTTP/1.1\r\n" % target
            if manner is _PLAIN and data.startswith(line) and len(usual) <= MAX_USUAL:
                self._usual, self._usual_headers = usual, headers

    def _watch_head(self, new: int) -> None:
        """The head of a request has not come to its end."""
        if self._head_bytes == new:  # it has just begun
            self._active = True
        limit = wire.MAX_TARGET_BYTES + self._server.limits.header_bytes
        if self._head_bytes > limit:
            self._refuse(_TARGET_TOO_LONG if len(self._target) > wire.MAX_TARGET_BYTES else _HEAD_TOO_LARGE)

    def _refuse(self, response: wire.ErrorResponse) -> None:
        """Nothing that comes now is a request; this is answered behind those that came."""
        if self._ended:
            return
        self._ended = True
        if self._is_blocked():
            self._queue.append(response)
        else:
            self.send_error(response, _PLAIN)

    def _is_blocked(self) -> bool:
        return bool(self.visit is not None or self._stalled or self._ending or self._queue)

    # What the parser calls. It takes an exception for an error, and hides it behind its own.

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        target, headers, parser = self._target, self._headers, self._parser
        self._target, self._headers, self._head_bytes = b"", {}, 0
        self._active = True
        if (
            parser.get_method() == b"GET"
            and b"host" in headers
            and len(headers) <= self._server.limits.headers
            and _FRAMING.isdisjoint(headers)
            and parser.should_keep_alive()
        ):
            manner = _PLAIN
        else:
            manner = self._manner(headers)
        request = target, headers, manner
        self._completed.append(request)
        if self._is_blocked():
            self._queue.append(request)
        else:
            self._answer(*request)
        if manner.closes or self._ending:
            self._ended = True
            raise _Ended

    def _manner(self, headers: dict[bytes, bytes]) -> _Manner:
        parser = self._parser
        old = parser.get_http_version() < "1.1"
        if len(headers) > self._server.limits.headers:
            self._refuse(_HEAD_TOO_LARGE)
            raise _Ended
        if b"host" not in headers and not old:
            self._refuse(_NO_HOST)
            raise _Ended
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"").strip(b"0") != b""
        closes = has_body or not parser.should_keep_alive() or parser.should_upgrade()
        return _Manner(parser.get_method() == b"HEAD", closes, old)

    # ---- What waits

    def settle(self) -> None:
        """Go on with what waits, at the loop's next turn; listen only if nothing does."""
        if self._serving or self._transport is None:
            return
        waiting = bool(self._unread or self._queue)
        if waiting and not self._scheduled and self.visit is None and not self._stalled:
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
        queue = self._queue
        if queue:
            self._serving = True
            while queue and self.visit is None and not self._stalled and not self._ending:
                request = queue.popleft()
                if isinstance(request, wire.ErrorResponse):
                    self.send_error(request, _PLAIN)
                else:
                    self._answer(*request)
            self._serving = False
        elif not self._is_blocked():
            data, self._unread = self._unread[:SLICE], self._unread[SLICE:]
            self._read(data)
        self.settle()

    # ---- Answers

    def _answer(self, target: bytes, headers: dict[bytes, bytes], manner: _Manner) -> None:
        server = self._server
        group = ""
        try:
            if server.secret is not None or _INSTANCE in headers:
                server.check(headers, self)
            group, key = server.locate(target) if len(target) <= MAX_USUAL else _locate(server.base_path, target)
            found = server.source.find(group, key)
            if found is None:
                self._visit(group, key, headers, manner)
            else:
                self.send_value(manner, *found)
        except wire.RequestError as error:
            self.send_error(error.response, manner)
        except NoSuchGroup:
            self.send_error(wire.no_such_group(group.encode()), manner)
        except Exception:  # a defect of the source's: this client is not to wait, and the others are not to suffer
            logger.exception("%r: a request failed", self)
            self.send_error(wire.error_response(500, "internal error; see this peer's log"), manner)

    def _visit(self, group: str, key: bytes, headers: dict[bytes, bytes], manner: _Manner) -> None:
        """Wait for a value; the request's errors are raised, and then nobody waits."""
        timeout = None
        if (header := headers.get(_TIMEOUT)) is not None:
            timeout = wire.decode_timeout(header)
        visit = self.visit = _Visit(self, manner)
        self._usual = None
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
        visit.answer(wire.error_response(504, text))
        self._server.source.leave(visit)

    def _leave(self) -> None:
        visit = self.visit
        if visit is not None:
            visit.end()
            self._server.source.leave(visit)

    def send_value(self, manner: _Manner, value: bytes | memoryview, minute_qps: float) -> None:
        """Answer with a value; nothing refers to its memory after that."""
        size = len(value)
        server = self._server
        if size > PROGRESS and 0 < server.unread_bytes > server.limits.unread_bytes - size:
            text = f"busy: clients have {server.unread_bytes} bytes of answers to read; ask again later"
            self.send_error(wire.error_response(503, text), manner)
            return
        rate = minute_qps if minute_qps > 0.0 else None
        if manner is _PLAIN and not server.draining:
            before, behind = _frame(size, rate)
            self._write(b"".join((server.value_head, before, value, behind)))
        else:
            before, behind = wire.response_head(size, rate)
            self._send(manner, server.value_head, (before, value, behind), len(before) + size + len(behind))

    def send_error(self, response: wire.ErrorResponse, manner: _Manner) -> None:
        """Answer with an error."""
        server = self._server
        server.errors[response.status] += 1
        lines = [b"HTTP/1.1 %d %s\r\n" % (response.status, _REASONS[response.status].encode())]
        lines += [b"%s: %s\r\n" % header for header in response.headers]
        if response.closes:  # the body ends with the connection: neither a length nor a date, as from Go's net/http
            self._write(b"".join((*lines, b"\r\n", response.body)))
            self._end()
        else:
            self._send(manner, b"".join((*lines, server.common_headers)), (response.body,), len(response.body))

    def _send(self, manner: _Manner, head: bytes, body: tuple[bytes | memoryview, ...], length: int) -> None:
        """``head`` ends where the length begins."""
        closes = manner.closes or self._server.draining
        if manner.old:
            head = head.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        connection = b"Connection: %s\r\n" % (b"close" if closes else b"keep-alive") if closes != manner.old else b""
        self._write(b"".join((head, b"%d\r\n%s\r\n" % (length, connection), *(() if manner.head else body))))
        if closes:
            self._end()

    def _write(self, data: bytes) -> None:
        self._active = True
        transport = self._transport
        assert transport is not None
        if not transport.is_closing():
            transport.write(data)

    # ---- What the transport says

    def pause_writing(self) -> None:
        assert self._transport is not None
        self._usual = None
        self._set_stalled(max(self._transport.get_write_buffer_size(), 1))
        self.settle()

    def resume_writing(self) -> None:
        self._set_stalled(0)
        self._active = True
        self.settle()

    def _set_stalled(self, size: int) -> None:
        self._server.unread_bytes += size - self._stalled
        self._stalled = size

    def eof_received(self) -> None:
        self._leave()  # then the transport sends what is left, and closes

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = self._ended = True
        self._leave()
        self._set_stalled(0)
        self._server.forget(self)

    # ---- The end

    def _end(self) -> None:
        """Nothing more is read or answered; the client closes when it has read its answers, or the server does."""
        self._ending = self._ended = True
        self._usual = None
        self._queue.clear()
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
        if self._transport is not None and not (self._is_blocked() or self._unread or self._head_bytes):
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
        if self._active:
            self._active, self._since = False, now
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
        elif self.visit is None and waited > (limits.request_timeout if self._head_bytes else limits.idle_timeout):
            transport.close()

    def __repr__(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"<connection of {format_address(*peer[:2]) if peer else 'a peer'}>"


def _locate(base_path: str, target: bytes) -> tuple[str, bytes]:
    """The group and key that a target names. Raises ``RequestError``."""
    group, key = wire.parse_target(base_path, target)
    try:
        return group.decode(), key
    except UnicodeDecodeError:
        raise wire.RequestError(f"group: got {group!r}, expected UTF-8", wire.no_such_group(group)) from None


@functools.lru_cache(1024)
def _frame(size: int, minute_qps: float | None) -> tuple[bytes, bytes]:
    """What goes before a value of that size, from the number behind ``Content-Length`` on, and what goes behind it."""
    before, behind = wire.response_head(size, minute_qps)
    return b"%d\r\n\r\n%s" % (len(before) + size + len(behind), before), behind


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
        self.locate = functools.lru_cache(LOCATED)(functools.partial(_locate, self.base_path))
        """Group and key of a target."""
        self._instance = instance.hex().encode()
        self.secret = wire.encode_secret(secret) if secret is not None else None
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
            if self.secret is not None:
                wire.check_secret(self.secret, headers.get(_SECRET))
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
