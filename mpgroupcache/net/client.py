"""The client half of one peer: fetches over pooled connections, each with one outcome within its deadline.

1. A fetch takes an idle connection, the one used last; else a new one, up to ``max_connections``; else it waits.
2. The request says how long this host still waits, so that the owner need not load for nobody.
3. The response ends it, or its deadline, or the connection's end. A kept-alive connection may turn out to have been
   closed meanwhile: if it is lost before any byte of the response came, the request goes out once more on a new one.
4. What speaks against the peer opens its breaker: what waits for a connection then fails at once, and so does every
   fetch until a probe is answered. A probe asks for the base path alone, which any peer refuses without a look at its
   cache.

Guarantees: ``done`` is called once for each fetch, by the event loop or before ``fetch`` returns. Redirects
are not followed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from functools import partial
from random import random
from typing import TYPE_CHECKING, Final

from mpgroupcache.net import batches, peerwire
from mpgroupcache.net.breaker import Breaker
from mpgroupcache.net.exchange import ClientConnection, Exchange
from mpgroupcache.net.outcomes import Outcome, Reply, Unreached, explain, outcome_of
from mpgroupcache.net.peer import SECRET_OPTION
from mpgroupcache.net.peerwire import Ability
from mpgroupcache.net.together import Together
from mpgroupcache.net.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpgroupcache.net.peer import PeerOptions

logger = logging.getLogger(__name__)

MAX_IDLE: Final = 60.0  # s; a firewall forgets idle connections after some minutes, and then a request is a timeout
_GRAIN: Final = 0.001  # s; the clock's
# Of the time for many keys: what the owner has by then is to arrive here in the rest.
_OWNERS_SHARE: Final = 0.9


class PeerClient:
    """One peer, as asked by this host."""

    def __init__(self, url: str, options: PeerOptions, jitter: Callable[[], float] = random) -> None:
        """Raises ``ValueError`` for what is no peer's URL. An https URL needs ``options.tls``."""
        self.url = url
        self._parts = parts = parse_url(url)
        if parts.tls and options.tls is None:
            raise ValueError(f"--peer: got {url} without a TLS context, expected one for https")
        self._options = options
        self._base = parts.path + options.base_path
        head = f" HTTP/1.1\r\nHost: {parts.place}\r\n".encode()
        head += b"%s: %s\r\n" % (peerwire.INSTANCE, options.instance.hex().encode())
        if options.secret is not None:
            head += b"%s: %s\r\n" % (peerwire.SECRET, peerwire.encode_secret(options.secret))
        self._head = head + peerwire.TIMEOUT + b": "
        self._whole_head = self._head + peerwire.encode_timeout(options.request_timeout) + b"\r\n\r\n"
        self._loop = asyncio.get_running_loop()
        self._connections: set[ClientConnection] = set()  # open ones, and those that are being opened
        self._idle: list[ClientConnection] = []  # the one used last at the end
        self._queue: deque[Exchange] = deque()  # that wait for a connection; ones that are over may be among them
        self._exchanges: OrderedDict[Exchange, None] = OrderedDict()  # under way, the first deadline first
        self._timer: asyncio.TimerHandle | None = None  # for the first of them, or for one before it
        self._breaker = Breaker(jitter)
        self._probe_timer: asyncio.TimerHandle | None = None
        self._probe: Exchange | None = None
        self._abilities: frozenset[Ability] | None = None
        self._why_open = ""
        self._reported: set[int] = set()  # statuses that tell of a wrong option
        self._retired = False
        self._closed = False
        self._empty: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "retired" if self._retired else "in use" if self.available else "failing"
        return (
            f"<PeerClient {self.url}: {state}, {len(self._exchanges)} requests under way, "
            f"{len(self._connections)} connections, abilities {peerwire.describe_abilities(self._abilities)}>"
        )

    @property
    def available(self) -> bool:
        """Whether a fetch would ask the peer; else it fails at once."""
        return self._breaker.closed and not self._closed

    @property
    def abilities(self) -> frozenset[Ability] | None:
        """What the peer can do beyond Go's protocol, as it said last; None: it has not answered yet."""
        return self._abilities

    @property
    def under_way(self) -> int:
        """Requests that have no outcome yet."""
        return len(self._exchanges)

    def fetch(self, group: str, key: bytes, done: Callable[[Outcome], None]) -> None:
        """Ask for a key. ``done`` is called once with the outcome, maybe before this returns."""
        if not self._breaker.closed or self._closed:
            done(Unreached(self._why_open))
            return
        try:
            target = peerwire.request_target(self._base, group, key)
        except ValueError as error:
            done(Unreached(f"{self.url} cannot be asked: {error}"))
            return
        self._ask(self._start(target, done))

    def fetch_many(self, group: str, keys: Sequence[bytes], done: Callable[[bytes, Outcome], None]) -> None:
        """Ask for many keys, each of them once: together if the peer has said that it can answer so, else each alone.

        ``done`` is called once for each, with the key and its outcome, maybe before this returns.
        """
        if len(keys) < 2 or not self.available or Ability.BATCH not in (self._abilities or ()):
            for key in keys:
                self.fetch(group, key, partial(done, key))
            return
        try:
            target = peerwire.group_target(self._base, group)
        except ValueError as error:
            for key in keys:
                done(key, Unreached(f"{self.url} cannot be asked: {error}"))
            return
        for part in batches.split(keys):
            together = Together(self, self._options.request_timeout, group, part, done)
            self._ask(self._start(target, together.take, batches.encode_keys(part)))

    def retire(self) -> None:
        """The peer left the ring: finish what is under way, then close the connections."""
        self._retired = True
        self._rest()

    async def close(self) -> None:
        """End what is under way as unreached, and wait until all connections are closed."""
        self._closed = True
        self._why_open = f"{self.url}: not asked any more, this host's client is closed"
        for exchange in list(self._exchanges):
            self._end(exchange, Unreached(self._why_open))
        for timer in (self._timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            self._empty = self._loop.create_future()
            await self._empty

    # ---- Exchanges

    def _start(
        self,
        target: bytes,
        done: Callable[[Outcome], None] | Callable[[Reply | Unreached], None] | None,
        keys: bytes | None = None,
    ) -> Exchange:
        exchange = Exchange(target, self._loop.time(), self._options.request_timeout, done, keys)
        self._exchanges[exchange] = None
        if self._timer is None:
            self._timer = self._loop.call_at(exchange.deadline, self._expire)
        return exchange

    def _ask(self, exchange: Exchange) -> None:
        """Send a request, or have it wait for a connection."""
        if connection := self._take_idle():
            if exchange.keys is None:
                connection.send(exchange, b"GET " + exchange.target + self._whole_head)
            else:
                self._send(connection, exchange)
            return
        self._queue.append(exchange)
        if len(self._connections) < self._options.max_connections:
            self._open()

    def _send(self, connection: ClientConnection, exchange: Exchange) -> None:
        """Send a request, and say how long its answer is still waited for."""
        left = max(exchange.deadline - self._loop.time(), _GRAIN)
        if (keys := exchange.keys) is None:
            head = b"GET " + exchange.target + self._head + peerwire.encode_timeout(left)
            connection.send(exchange, head + b"\r\n\r\n")
            return
        head = b"POST " + exchange.target + self._head + peerwire.encode_timeout(left * _OWNERS_SHARE)
        body = b"\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (batches.KEYS_TYPE, len(keys), keys)
        connection.send(exchange, head + body)

    def _end(self, exchange: Exchange, outcome: Outcome | Reply) -> None:
        """``outcome``: a probe's is of no interest; a reply for many keys."""
        if exchange.over:
            return
        exchange.over = True
        del self._exchanges[exchange]
        if exchange is self._probe:
            self._probe = None
        if exchange.done is not None:
            try:
                exchange.done(outcome)
            except Exception:  # a defect of ours: what else this connection brings is not to suffer from it
                logger.exception("%s: an outcome was not taken", self.url)
        if self._retired:
            self._rest()

    def _expire(self) -> None:
        """End what is over its time, and look again when the next one will be. Most are done long before that."""
        now = self._loop.time() + _GRAIN
        timeout = f"{self._options.request_timeout:g} s"
        while self._exchanges:
            exchange = next(iter(self._exchanges))
            if exchange.deadline > now:
                self._timer = self._loop.call_at(exchange.deadline, self._expire)
                return
            if connection := exchange.connection:
                got = connection.received
                reason = f"answer incomplete after {timeout}, at {got} bytes" if got else f"no answer in {timeout}"
                connection.close()
            else:
                reason = f"no connection was free for {timeout}"
            self._fail(exchange, reason)
        self._timer = None

    def _fail(self, exchange: Exchange, reason: str) -> None:
        """An exchange failed for a reason that speaks against the peer."""
        reason = f"{self.url}: {reason}"
        self._blame(exchange.began, reason, exchange.is_probe)
        self._end(exchange, Unreached(reason))

    def _report(self, status: int, text: str) -> None:
        if status not in self._reported:
            self._reported.add(status)
            logger.error("peer %s %s", self.url, text)

    # ---- The breaker

    def _answered(self, exchange: Exchange) -> None:
        if not self._breaker.answered(self._loop.time(), exchange.is_probe):
            return
        logger.warning("peer %s answers again", self.url)
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if self._probe is not None and self._probe is not exchange:
            if self._probe.connection is not None:
                self._probe.connection.close()
            self._end(self._probe, Unreached("given up"))

    def _blame(self, began: float, reason: str, is_probe: bool = False) -> None:
        """Something speaks against the peer."""
        if self._closed or not self._breaker.failed(began, is_probe):
            return
        self._why_open = f"{reason} (not asked again until it answers a probe)"
        self._probe_timer = self._loop.call_later(self._breaker.delay, self._send_probe)
        if is_probe:
            return
        logger.warning("peer failed, its keys are loaded here until it answers: %s", reason)
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        waiting = [exchange for exchange in self._queue if not exchange.over]
        self._queue.clear()
        for exchange in waiting:
            self._end(exchange, Unreached(reason))

    def _send_probe(self) -> None:
        self._breaker.probe()
        self._probe = self._start(self._base.encode(), None)
        self._open(self._probe)

    # ---- Connections

    def _open(self, reserved: Exchange | None = None) -> None:
        connection = ClientConnection(self, self._options.max_response_bytes, reserved)
        self._connections.add(connection)
        connection.opening = self._loop.create_task(self._connect(connection))
        late = self._loop.call_later(self._options.connect_timeout, connection.give_up)
        connection.opening.add_done_callback(partial(self._opened, connection, self._loop.time(), late))

    async def _connect(self, connection: ClientConnection) -> None:
        # Whose time is bounded by `give_up`, and not by a cancellation that may come when it is already open: uvloop
        # closes its transport then without telling the protocol, which would be idle, or wait for an answer, for ever.
        url, tls = self._parts, self._options.tls if self._parts.tls else None
        await self._loop.create_connection(
            lambda: connection, url.host, url.port, ssl=tls, server_hostname=url.host if tls else None
        )

    def _opened(
        self, connection: ClientConnection, began: float, late: asyncio.TimerHandle, opening: asyncio.Task[None]
    ) -> None:
        late.cancel()
        error = None if opening.cancelled() else opening.exception()
        if connection.is_open:
            if error or opening.cancelled():  # in the last moment: `lost` will have the last word
                connection.close()
            return
        self._discard(connection)
        if connection.given_up:
            reason = f"{self.url}: no connection in {self._options.connect_timeout:g} s"
        elif error is not None:
            reason = f"{self.url}: no connection: {explain(error)}"
        else:  # closed here
            return
        exchange = connection.reserved
        self._blame(began, reason, exchange is not None and exchange is self._probe)
        if exchange is not None:
            self._end(exchange, Unreached(reason))
        self._refill()

    def connected(self, connection: ClientConnection) -> None:
        exchange = connection.reserved
        connection.reserved = None
        if self._closed:
            connection.close()
        elif exchange is not None and not exchange.over:
            self._send(connection, exchange)
        else:
            self._release(connection)

    def replied(self, connection: ClientConnection, exchange: Exchange, reply: Reply, free: bool) -> None:
        self._answered(exchange)
        if (abilities := peerwire.read_abilities(reply.status, reply.headers)) is not None:
            self._abilities = abilities
        if reply.status == 421:
            self._report(421, f"is this host: it refused to ask itself; --self: got {self._options.self_url}")
        elif reply.status == 403:
            self._report(403, f"refused this host's secret; give all peers of a ring the same {SECRET_OPTION}")
        if free:
            self._release(connection)
        else:
            connection.close()
        self._end(exchange, outcome_of(self.url, reply, abilities) if exchange.keys is None else reply)

    def broke(self, exchange: Exchange, reason: str, alive: bool) -> None:
        if not alive:
            self._fail(exchange, reason)
            return
        self._answered(exchange)
        self._end(exchange, Unreached(f"{self.url}: {reason}"))

    def lost(self, connection: ClientConnection, exchange: Exchange | None, error: Exception | None) -> None:
        self._discard(connection)
        if exchange is not None:
            if connection.replies and not connection.received and not exchange.retried and self._breaker.closed:
                exchange.retried = True
                exchange.connection = None
                self._open(exchange)
                return
            what = f"after {connection.received} bytes of the answer" if connection.received else "without an answer"
            if error is not None:
                what += f": {explain(error)}"
            elif self._parts.tls and not connection.replies:  # with TLS 1.3 that is how some servers refuse a client
                what += "; if the peer asks for certificates, this host needs one of its CA"
            self._fail(exchange, f"connection closed {what}")
        self._refill()

    def _take_idle(self) -> ClientConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and self._loop.time() - connection.idle_since < MAX_IDLE:
                return connection
            connection.close()
        return None

    def _release(self, connection: ClientConnection) -> None:
        """Give a free connection to the next exchange, or keep it."""
        while self._queue:
            exchange = self._queue.popleft()
            if not exchange.over:
                self._send(connection, exchange)
                return
        now = connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if now - self._idle[0].idle_since > MAX_IDLE:
            self._idle.pop(0).close()

    def _refill(self) -> None:
        """A connection is gone: make another one, if there is an exchange that waits for it."""
        while self._queue and self._queue[0].over:
            self._queue.popleft()
        coming = sum(not connection.is_open and connection.reserved is None for connection in self._connections)
        if len(self._queue) > coming and len(self._connections) < self._options.max_connections:
            self._open()

    def _discard(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._empty is not None and not self._connections and not self._empty.done():
            self._empty.set_result(None)

    def _rest(self) -> None:
        """Close what nobody needs any more."""
        if self._exchanges:
            return
        for connection in list(self._connections):
            connection.close()
        self._idle.clear()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
