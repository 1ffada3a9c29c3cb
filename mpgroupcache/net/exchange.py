"""One connection to a peer, and the exchange that is under way on it: a request goes out, a response is read.

Which connection an exchange gets, and what becomes of it, is client.py's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from mpgroupcache.net.batches import MAX_ANSWER_BYTES
from mpgroupcache.net.outcomes import Reply
from mpgroupcache.net.peerwire import MAX_ERROR_BYTES
from mpgroupcache.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpgroupcache.net.outcomes import Outcome, Unreached

# Bytes of a response that are not its body: status line, headers, 1xx answers before it, chunk sizes, trailers. A head
# of Go's has some 150. The second for each byte of the body: chunks of one byte each have five.
MAX_FRAMING_BYTES: Final = 64 << 10
MAX_FRAMING_PER_BYTE: Final = 8


class Exchange:
    """One request, from when it was asked for until its one outcome."""

    __slots__ = ("began", "connection", "deadline", "done", "is_probe", "keys", "over", "retried", "target")

    def __init__(
        self,
        target: bytes,
        began: float,
        timeout: float,
        done: Callable[[Outcome], None] | Callable[[Reply | Unreached], None] | None,
        keys: bytes | None = None,
    ) -> None:
        """``done``: None for a probe. ``keys``: that the request carries; then ``done`` is called with its reply."""
        self.target = target
        self.began = began
        self.deadline = began + timeout
        self.done: Callable[[Any], None] | None = done
        self.keys = keys
        self.is_probe = done is None
        self.connection: ClientConnection | None = None  # that the request went out on
        self.retried = False
        self.over = False


class ConnectionPool(Protocol):
    """Whom a connection tells. The exchange that was under way is handed over with the news of its end."""

    def connected(self, connection: ClientConnection) -> None:
        """It is open, and free."""

    def replied(self, connection: ClientConnection, exchange: Exchange, reply: Reply, free: bool) -> None:
        """A response is complete; ``free``: the connection can carry another exchange."""

    def broke(self, exchange: Exchange, reason: str, alive: bool) -> None:
        """There is no response to be had; ``alive``: it was HTTP all the same. The connection is closed."""

    def lost(self, connection: ClientConnection, exchange: Exchange | None, error: Exception | None) -> None:
        """The connection is closed, by whomever."""


class ClientConnection(asyncio.Protocol):
    """One connection. It closes itself when something comes that was not asked for: an answer to nothing would be taken
    for the answer to the next request."""

    def __init__(self, pool: ConnectionPool, max_bytes: int, reserved: Exchange | None = None) -> None:
        """``reserved``: the exchange that this connection is made for, if it is for that one alone."""
        self._pool = pool
        self._most = self._max_bytes = max_bytes  # of any response; of the one under way
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        self._exchange: Exchange | None = None
        self.reserved = reserved
        self.opening: asyncio.Task[None] | None = None
        self.given_up = False
        self._closed = False
        self.replies = 0
        self.idle_since = 0.0
        self._body: list[bytes] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._begin()

    @property
    def is_open(self) -> bool:
        """Whether it is, or once was."""
        return self._transport is not None

    @property
    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def received(self) -> int:
        """Bytes that came for the exchange under way, or for the last one."""
        return self._received

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Begin an exchange. The connection has to be open and free."""
        assert self._transport is not None
        self._exchange = exchange
        self._max_bytes = self._most if exchange.keys is None else min(self._most, MAX_ANSWER_BYTES)
        exchange.connection = self
        self._begin()
        self._transport.write(request)

    def give_up(self) -> None:
        """Close it, if it is not open yet."""
        if not self.is_open:
            self.given_up = True
            self.close()

    def close(self) -> None:
        """Close it at once. An exchange that is under way is forgotten.

        Of one that is not open yet the pool hears no more.
        """
        self._closed = True
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()  # nothing is left to be sent, and a TLS peer may not say goodbye for a long time
        elif self.opening is not None:
            self.opening.cancel()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._closed:  # just before; and its opening, being cancelled, may close the transport without a word
            transport.abort()  # type: ignore[attr-defined]
            return
        self._transport = transport  # type: ignore[assignment]
        self._parser = HttpResponseParser(self)
        self._pool.connected(self)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # nobody asked
            self.close()
            return
        assert self._parser is not None
        self._received += len(data)
        garbage = ""
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            garbage = f"got what is not HTTP/1.1 ({error}) at {data[:40]!r}"
        if self._fault or (garbage and not self._complete):
            self.close()
            self._pool.broke(exchange, self._fault or garbage, alive=bool(self._fault))
        elif self._complete:
            self._exchange = None
            self.replies += 1
            reply = Reply(self._status, self._headers, b"".join(self._body))
            self._body = []
            self._pool.replied(self, exchange, reply, self._keeps and not garbage and not self._too_much)
        elif self._received > MAX_FRAMING_BYTES + MAX_FRAMING_PER_BYTE * self._length:
            self.close()
            got = f"got {self._received} bytes with a body of {self._length} in them"
            self._pool.broke(exchange, f"{got}, expected headers of at most {MAX_FRAMING_BYTES}", alive=False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        exchange, self._exchange = self._exchange, None
        self._parser = None  # it refers to this object
        self._pool.lost(self, exchange, exc)

    # ---- httptools' callbacks. What they find is acted on when the parser is done with what came.

    def _begin(self) -> None:
        self._received = 0
        self._length = 0
        self._complete = False
        self._too_much = False
        self._fault = ""
        self._begin_head()

    def _begin_head(self) -> None:
        self._status = 0
        self._headers = []
        self._in_head = True
        self._keeps = True
        self._body = []

    def on_message_begin(self) -> None:
        if self._complete:
            self._too_much = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head and not self._complete:  # else a trailer's
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        assert self._parser is not None
        self._in_head = False
        self._status = status = self._parser.get_status_code()
        self._keeps = self._parser.should_keep_alive()
        length = None
        framed = status in (204, 304) or status < 200
        for name, value in self._headers:
            match name.lower():
                case b"content-length":
                    framed = True
                    length = int(value)  # the parser has read it as a number, too
                case b"transfer-encoding":
                    framed = framed or value.lower().endswith(b"chunked")
        if not framed:  # its end would be the connection's, and a value that was cut off would look whole
            self._fault = f"answered {status} with neither Content-Length nor chunks"
        elif status == 200 and length is not None and length > self._max_bytes:
            self._fault = self._too_large(format_size(length))

    def on_body(self, body: bytes) -> None:
        if self._complete or self._fault:
            return
        self._length += len(body)
        if self._status != 200:
            self._body.append(body)
            if self._length > MAX_ERROR_BYTES:  # enough for any text: the rest, which may be endless, is not read
                self._complete = True
                self._keeps = False
        elif self._length <= self._max_bytes:
            self._body.append(body)
            if len(self._body) > 64 + (self._length >> 10):  # chunks so small that they take more than what is in them
                self._body = [b"".join(self._body)]
        else:
            self._body = []
            self._fault = self._too_large("more")

    def on_message_complete(self) -> None:
        if 100 <= self._status < 200:
            self._begin_head()  # the answer itself is still to come
        else:
            self._complete = True

    def _too_large(self, got: str) -> str:
        return f"answered with {got}, expected at most {format_size(self._max_bytes)} (max_response_bytes)"
