"""One client's connection: its requests are answered in their order, and no faster than it reads."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from mpgroupcache.net.addresses import format_address
from mpgroupcache.net.outbox import Outbox
from mpgroupcache.net.peerwire import ErrorResponse
from mpgroupcache.net.requests import RequestParser
from mpgroupcache.net.responses import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpgroupcache.net.handler import Handler
    from mpgroupcache.net.requests import Request
    from mpgroupcache.net.visits import Waiting

# Bytes that are parsed at once; then the other connections get a turn. Some 400 of the shortest requests fit, which
# take 5 ms.
SLICE: Final = 16 << 10
LINGER: Final = 1.0  # s that a client has to read its last answer and close; closing first could destroy that answer
PROGRESS: Final = 64 << 10  # bytes that a slow client has to take in each stall timeout


class ServerConnection(asyncio.Protocol):
    """The requests of one client are read and answered here; what the answers are is the handler's."""

    def __init__(self, handler: Handler, closed: Callable[[ServerConnection], object]) -> None:
        """``closed`` is called when it is."""
        self._handler = handler
        self._closed = closed
        self._transport: asyncio.Transport | None = None  # none before the TLS handshake
        self._outbox: Outbox | None = None  # of a TLS client; other transports count what they hold
        self._parser = RequestParser(handler.limits)
        # What follows the target in this client's requests, and what it says. None unless the parser is at the
        # begin of a request and nothing waits: then a request that goes on like this need not be parsed.
        self._usual: bytes | None = None
        self._usual_headers: dict[bytes, bytes] = {}
        # What waits:
        self._unread = memoryview(b"")  # bytes
        self._queue: deque[Request | ErrorResponse] = deque()  # requests, and a last refusal
        # Why they do:
        self.visit: Waiting | None = None
        self._stalled = 0  # bytes of answers that the client has not read, if they are so many that it is stopped
        self._ending = False  # the last answer was sent
        self._serving = False
        self._scheduled = False
        self._listening = True
        # Since when the client is waited for:
        self._active = True
        self._since = 0.0

    def __repr__(self) -> str:
        peer = self._peer_name()
        return f"<connection of {format_address(*peer[:2]) if peer else 'a peer'}>"

    @property
    def remote(self) -> str:
        """The client's address, or "" where it is not known."""
        peer = self._peer_name()
        return peer[0] if peer else ""

    def _peer_name(self) -> tuple[str, int] | None:
        return self._transport.get_extra_info("peername") if self._transport is not None else None

    # ---- In

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's have that face, but no base class
        self._active = True
        if transport.get_extra_info("ssl_object") is not None:
            self._outbox = Outbox(self._transport)
        if self._handler.draining:
            transport.close()

    def data_received(self, data: bytes) -> None:
        usual = self._usual
        if usual is not None and data.endswith(usual) and data.startswith(b"GET "):
            target = data[4 : -len(usual)]
            # A space: there are several requests. What is not ASCII the parser refuses, and so must this.
            if b" " not in target and target.isascii():
                self._handler.answer(self, target, self._usual_headers, PLAIN)
                return
        if len(data) <= SLICE and not self._unread:
            was_at_begin = self._parser.at_begin
            self._read(data)
            if was_at_begin and not self._is_blocked() and (found := self._parser.usual(data)) is not None:
                self._usual, self._usual_headers = found
        elif not self._ending:
            self._unread = memoryview(bytes(self._unread) + data)
            self.settle()

    def _read(self, data: bytes | memoryview) -> None:
        self._usual = None
        parser = self._parser
        begins = not parser.head_bytes
        requests = parser.parse(data)
        if requests or (begins and parser.head_bytes):
            self._active = True
        for request in requests:
            if self._ending:  # with the answer to the one before
                break
            if self._is_blocked():
                self._queue.append(request)
            else:
                self._answer(request)
        if self._queue or self._stalled:
            self.settle()

    def _answer(self, request: Request | ErrorResponse) -> None:
        if isinstance(request, ErrorResponse):
            self._handler.send_error(self, PLAIN, request)
        else:
            self._handler.answer(self, *request)

    # ---- What waits

    def wait(self, visit: Waiting) -> None:
        """A request waits for a value, and those behind it for that."""
        self.visit = visit
        self._usual = None

    def _is_blocked(self) -> bool:
        return bool(self.visit is not None or self._stalled or self._ending or self._queue)

    def settle(self) -> None:
        """Go on with what waits, at the loop's next turn; listen only if nothing does."""
        if self._serving or self._transport is None:
            return
        waiting = bool(self._unread or self._queue)
        if waiting and not self._scheduled and self.visit is None and not self._stalled:
            self._scheduled = True
            self._handler.loop.call_soon(self._go_on)
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
                self._answer(queue.popleft())
            self._serving = False
        elif not self._is_blocked():
            data, self._unread = self._unread[:SLICE], self._unread[SLICE:]
            self._read(data)
        self.settle()

    # ---- Out

    def write(self, data: bytes) -> None:
        """Send an answer."""
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
        if self._handler.draining:
            self.drain()

    def _stall(self) -> None:
        self._usual = None
        self._set_stalled(max(self._unsent(), 1))
        self.settle()

    def _set_stalled(self, size: int) -> None:
        self._handler.unread_bytes += size - self._stalled
        self._stalled = size

    def _unsent(self) -> int:
        """Bytes of answers that wait for the client."""
        assert self._transport is not None
        return self._outbox.size if self._outbox is not None else self._transport.get_write_buffer_size()

    # ---- The end

    def end(self) -> None:
        """Nothing more is read or answered; the client closes when it has read its answers, or the server does."""
        self._ending = True
        self._parser.end()
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

    def eof_received(self) -> None:
        self._leave()  # then the transport sends what is left, and closes

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = True
        self._parser.end()
        self._leave()
        self._set_stalled(0)
        self._outbox = None  # with whatever is in it
        self._closed(self)

    def _leave(self) -> None:
        if self.visit is not None:
            self.visit.leave()

    def drain(self) -> None:
        """Close the connection if nothing is under way on it; otherwise the next answer does."""
        if self._transport is not None and not (self._is_blocked() or self._unread or self._parser.head_bytes):
            self._transport.close()

    def abort(self) -> None:
        """Close it, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def watch(self, now: float) -> None:
        """Let go of a client that was waited for too long."""
        transport, limits = self._transport, self._handler.limits
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
        elif self.visit is None:
            limit = limits.request_timeout if self._parser.head_bytes else limits.idle_timeout
            if waited > limit:
                transport.close()
