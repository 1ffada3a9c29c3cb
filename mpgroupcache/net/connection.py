"""One client of the peers' server: its requests, in order, and their answers.

httptools parses what has come, a slice at a time. A peer says the same in each request but for the target: what follows
that is not parsed again if it is what it was before.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from httptools import HttpParserError, HttpRequestParser

from mpgroupcache.net import peerwire
from mpgroupcache.net.addresses import format_address
from mpgroupcache.net.hooks import PeerRequest
from mpgroupcache.net.outbox import Outbox
from mpgroupcache.net.source import NoSuchGroup

if TYPE_CHECKING:
    from mpgroupcache.net.server import PeerServer

logger = logging.getLogger(__name__)

# Bytes that are parsed at once; then the other connections get a turn. Some 400 of the shortest requests fit, which
# take 5 ms.
SLICE: Final = 16 << 10
LINGER: Final = 1.0  # s that a client has to read its last answer and close; closing first could destroy that answer
MAX_USUAL: Final = 1024  # bytes of a target, or of all headers, that are kept to know them again
PROGRESS: Final = 64 << 10  # bytes that a slow client has to take in each stall timeout

# Names of headers in lower case
INSTANCE_HEADER: Final = peerwire.INSTANCE.lower()
SECRET_HEADER: Final = peerwire.SECRET.lower()
_TIMEOUT: Final = peerwire.TIMEOUT.lower()
_FRAMING: Final = frozenset((b"connection", b"content-length", b"transfer-encoding"))

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


def _unparsed(status: int, detail: str = "") -> peerwire.ErrorResponse:
    """What net/http answers where it does not call a handler."""
    body = f"{status} {_REASONS[status]}{detail}".encode()
    return peerwire.ErrorResponse(status, body, peerwire.MALFORMED.headers, closes=True)


_NO_HOST: Final = _unparsed(400, ": missing required Host header")
_HEAD_TOO_LARGE: Final = _unparsed(431)
_TARGET_TOO_LONG: Final = _unparsed(414)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take, and all together."""

    connections: int = 1024  # more than peers with pools of their own open; fewer than the usual limit of descriptors
    headers: int = 100  # of a request; proxies in between add some
    header_bytes: int = 64 << 10  # of all of them, beside the target
    request_timeout: float = 10.0  # s from a request's first byte to the end of its headers; also for a TLS handshake
    idle_timeout: float = 120.0  # s; longer than Go's clients keep theirs (90), so that they close and not we
    stall_timeout: float = 30.0  # s in which a client has to read some of what it asked for
    value_bytes: int = peerwire.MAX_VALUE_BYTES  # of one; a client of ours takes no more
    unread_bytes: int = 256 << 20  # of answers that all clients together have not read; more is refused with 503


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

    __slots__ = ("_connection", "_manner", "ctx", "timer")

    def __init__(self, connection: Connection, manner: _Manner, ctx: bytes) -> None:
        self._connection: Connection | None = connection
        self._manner = manner
        self.ctx = ctx
        self.timer: asyncio.TimerHandle | None = None

    def deliver(self, value: bytes, minute_qps: float) -> None:
        """Answer with the value, unless it is too late."""
        connection = self.end()
        if connection is not None:
            connection.send_value(self._manner, value, minute_qps)
            connection.settle()

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the loader's error, unless it is too late."""
        self.answer(peerwire.load_failed(type_name, text))

    def refuse(self, text: str) -> None:
        """Answer that this peer cannot load, unless it is too late."""
        self.answer(peerwire.error_response(503, text))

    def answer(self, response: peerwire.ErrorResponse) -> None:
        """Answer with an error, unless it is too late."""
        connection = self.end()
        if connection is not None:
            connection.send_error(response, self._manner)
            connection.settle()

    def end(self) -> Connection | None:
        """Let the connection go on; None if it does already."""
        connection, self._connection = self._connection, None
        if self.timer is not None:
            self.timer.cancel()
        if connection is not None:
            connection.visit = None
        return connection


class Connection(asyncio.Protocol):
    """One client: its requests are answered in their order, and no faster than it reads.

    A request is complete with its headers. Nobody needs one with a body: the answer to it ends the connection, and the
    body is not read. (Go does so with large bodies, and reads small ones for nothing.)
    """

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None  # none before the TLS handshake
        self._outbox: Outbox | None = None  # of a TLS client; other transports count what they hold
        # Out of bytes:
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = self._header_bytes = 0  # of this request, while its head comes
        self._head_bytes = 0  # that came since the last complete request, if none was complete in them
        self._completed: list[_Request] = []  # in the bytes that came last
        self._at_begin = True  # of a request
        self._in_head = False
        self._ended = False  # nothing is parsed any more
        # What follows the target in this client's requests, and what it says. None unless the parser is at the
        # begin of a request and nothing waits: then a request that goes on like this need not be parsed.
        self._usual: bytes | None = None
        self._usual_headers: dict[bytes, bytes] = {}
        # What waits:
        self._unread = memoryview(b"")  # bytes
        self._queue: deque[_Request | peerwire.ErrorResponse] = deque()  # requests, and a last refusal
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
        if transport.get_extra_info("ssl_object") is not None:
            self._outbox = Outbox(self._transport)
        if self._server.draining:
            transport.close()

    def data_received(self, data: bytes) -> None:
        usual = self._usual
        if usual is not None and data.endswith(usual) and data.startswith(b"GET "):
            target = data[4 : -len(usual)]
            # A space: there are several requests. What is not ASCII the parser refuses, and so must this.
            if b" " not in target and target.isascii():
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
            self._refuse(peerwire.MALFORMED)
        self._at_begin = bool(self._completed) and data[-4:] == b"\r\n\r\n"
        if self._completed and self._in_head:  # a head has begun behind the last one
            self._head_bytes = 1
            self._watch_head(1)
        elif self._head_bytes:
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
        limit = peerwire.MAX_TARGET_BYTES + self._server.limits.header_bytes
        if self._head_bytes > limit:
            self._refuse(_TARGET_TOO_LONG if len(self._target) > peerwire.MAX_TARGET_BYTES else _HEAD_TOO_LARGE)

    def _refuse(self, response: peerwire.ErrorResponse) -> None:
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

    def on_message_begin(self) -> None:
        self._in_head = True

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1  # each, since of one name a single one is kept
        self._header_bytes += len(name) + len(value)
        limits = self._server.limits
        if self._header_count > limits.headers or self._header_bytes > limits.header_bytes:
            self._refuse(_HEAD_TOO_LARGE)
            raise _Ended
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        target, headers, parser = self._target, self._headers, self._parser
        self._target, self._headers, self._head_bytes = b"", {}, 0
        self._header_count = self._header_bytes = 0
        self._in_head = False
        self._active = True
        if (
            parser.get_method() == b"GET"
            and b"host" in headers
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
                if isinstance(request, peerwire.ErrorResponse):
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
            if server.secret is not None or INSTANCE_HEADER in headers:
                server.check(headers, self)
            group, key = server.locate(target) if len(target) <= MAX_USUAL else locate(server.base_path, target)
            found = server.source.find(group, key)
            if found is None:
                self._visit(group, key, headers, manner)
            else:
                self.send_value(manner, *found)
        except peerwire.RequestError as error:
            self.send_error(error.response, manner)
        except NoSuchGroup:
            self.send_error(peerwire.no_such_group(group.encode()), manner)
        except Exception:  # a defect of the source's: this client is not to wait, and the others are not to suffer
            logger.exception("%r: a request failed", self)
            self.send_error(peerwire.error_response(500, "internal error; see this peer's log"), manner)

    def _visit(self, group: str, key: bytes, headers: dict[bytes, bytes], manner: _Manner) -> None:
        """Wait for a value; the request's errors are raised, and then nobody waits."""
        timeout = None
        if (header := headers.get(_TIMEOUT)) is not None:
            timeout = peerwire.decode_timeout(header)
        visit = self.visit = _Visit(self, manner, self._context(group, key, headers))
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

    def _context(self, group: str, key: bytes, headers: dict[bytes, bytes]) -> bytes:
        """What the application makes of the request; what that raises is answered."""
        if self._server.context is None:
            return b""
        texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        assert self._transport is not None
        peer = self._transport.get_extra_info("peername")
        try:
            return self._server.context(PeerRequest(group, key, texts, peer[0] if peer else ""))
        except Exception as error:
            self._server.report("context", "%r: the HTTPPool's context raised %r", self, error)
            raise peerwire.RequestError(str(error), peerwire.error_response(500, f"context: {error}")) from error

    def _give_up(self, visit: _Visit, timeout: float) -> None:
        text = f"deadline exceeded: no value within the {timeout:g} s of {peerwire.TIMEOUT.decode()}"
        visit.answer(peerwire.error_response(504, text))
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
        if size > server.limits.value_bytes:
            text = f"value: got {size} bytes, expected at most {server.limits.value_bytes}; load it where it is needed"
            self.send_error(peerwire.error_response(503, text), manner)
            return
        if size > PROGRESS and 0 < server.unread_bytes > server.limits.unread_bytes - size:
            text = f"busy: clients have {server.unread_bytes} bytes of answers to read; ask again later"
            self.send_error(peerwire.error_response(503, text), manner)
            return
        rate = minute_qps if minute_qps > 0.0 else None
        if manner is _PLAIN and not server.draining:
            before, behind = _frame(size, rate)
            self._write(b"".join((server.value_head, before, value, behind)))
        else:
            before, behind = peerwire.response_head(size, rate)
            self._send(manner, server.value_head, (before, value, behind), len(before) + size + len(behind))

    def send_error(self, response: peerwire.ErrorResponse, manner: _Manner) -> None:
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
        if transport.is_closing():
            return
        if self._outbox is None:
            transport.write(data)
            return
        self._outbox.write(data)
        if not self._outbox.empty:
            self._stall()

    def _unsent(self) -> int:
        """Bytes of answers that wait for the client."""
        assert self._transport is not None
        return self._outbox.size if self._outbox is not None else self._transport.get_write_buffer_size()

    def _stall(self) -> None:
        self._usual = None
        self._set_stalled(max(self._unsent(), 1))
        self.settle()

    # ---- What the transport says

    def pause_writing(self) -> None:
        if self._outbox is not None:
            self._outbox.pause()
        self._stall()

    def resume_writing(self) -> None:
        self._active = True
        if self._outbox is not None:
            self._outbox.resume()
            if not self._outbox.empty:
                self._set_stalled(max(self._unsent(), 1))
                return
        self._set_stalled(0)
        if self._ending:
            self._close_written()
        self.settle()
        if self._server.draining:
            self.drain()

    def _set_stalled(self, size: int) -> None:
        self._server.unread_bytes += size - self._stalled
        self._stalled = size

    def eof_received(self) -> None:
        self._leave()  # then the transport sends what is left, and closes

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = self._ended = True
        self._leave()
        self._set_stalled(0)
        self._outbox = None  # with whatever is in it
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
        elif not self._stalled:
            self._close_written()

    def _close_written(self) -> None:
        """All answers are with the TLS layer, which says goodbye behind them."""
        assert self._transport is not None
        if self._outbox is not None and not self._transport.is_closing():
            self._transport.close()

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
            size = self._unsent()
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


def locate(base_path: str, target: bytes) -> tuple[str, bytes]:
    """The group and key that a target names. Raises ``RequestError``."""
    group, key = peerwire.parse_target(base_path, target)
    try:
        return group.decode(), key
    except UnicodeDecodeError:
        raise peerwire.RequestError(f"group: got {group!r}, expected UTF-8", peerwire.no_such_group(group)) from None


@functools.lru_cache(1024)
def _frame(size: int, minute_qps: float | None) -> tuple[bytes, bytes]:
    """What goes before a value of that size, from the number behind ``Content-Length`` on, and what goes behind it."""
    before, behind = peerwire.response_head(size, minute_qps)
    return b"%d\r\n\r\n%s" % (len(before) + size + len(behind), before), behind
