"""The peers' server: HTTP/1.1 requests in, values of a `Source` out, as peerwire.py has them.

One thread and one event loop, uvloop's. What happens to a request:

1. A `Connection` finds it in what has come.
2. It answers it. A value that is cached is copied once, into its answer, before the source is called again: its memory
   may be another value's then.
3. A value that is not cached has to be loaded: a visitor waits for it, and the requests behind it wait, too.

Guarantees: a client that sends endlessly, slowly, garbage, or nothing, that does not read, or goes away, costs a
bounded amount of memory and gets a bounded share of the loop's time. Every visitor is answered or leaves, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import time
from collections import Counter
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from mpgroupcache.net import peerwire
from mpgroupcache.net.addresses import format_address, listen
from mpgroupcache.net.connection import INSTANCE_HEADER, SECRET_HEADER, Connection, Limits, locate

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from mpgroupcache.net.hooks import PeerRequest
    from mpgroupcache.net.source import Source

logger = logging.getLogger(__name__)

ACCEPTS: Final = 64  # connections accepted at once; then the others get a turn
LOCATED: Final = 2048  # targets that are kept; hot keys are asked for again and again
REPORT_INTERVAL: Final = 10.0  # s between two log messages of one kind
DRAIN_TIMEOUT: Final = 5.0  # s that `close` leaves to requests under way


class PeerServer:
    """Listens for peers; make one with ``await PeerServer.start(...)``."""

    def __init__(
        self,
        source: Source,
        *,
        instance: bytes,
        base_path: str = peerwire.DEFAULT_BASE_PATH,
        secret: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        context: Callable[[PeerRequest], bytes] | None = None,
    ) -> None:
        self.source = source
        self.base_path = peerwire.check_base_path(base_path)
        self.limits = limits or Limits()
        self.context = context
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
        self.locate = functools.lru_cache(LOCATED)(functools.partial(locate, self.base_path))
        """Group and key of a target."""
        self._instance = instance.hex().encode()
        self.secret = peerwire.encode_secret(secret) if secret is not None else None
        self._ssl_context = ssl_context
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
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
        base_path: str = peerwire.DEFAULT_BASE_PATH,
        secret: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        context: Callable[[PeerRequest], bytes] | None = None,
    ) -> PeerServer:
        """Listen on every address of ``host`` ("": loopback), and ``port`` (0: a free one).

        ``instance``: random bytes that no other peer has. ``secret``: what peers have to know. ``context``: makes what
        the loader of a request is told. Raises ``OSError`` that
        names ``--listen``, and ``ValueError`` for a base path or secret that cannot be.
        """
        server = cls(
            source,
            instance=instance,
            base_path=base_path,
            secret=secret,
            ssl_context=ssl_context,
            limits=limits,
            context=context,
        )
        server._listeners = await listen(server.loop, host, port)
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

    def check(self, headers: dict[bytes, bytes], connection: Connection) -> None:
        """Raise ``RequestError`` for a request that is not to be answered here."""
        try:
            if self.secret is not None:
                peerwire.check_secret(self.secret, headers.get(SECRET_HEADER))
            if headers.get(INSTANCE_HEADER) == self._instance:
                raise peerwire.RequestError(
                    "this peer asks itself; its --self is not in its peers", peerwire.ASKED_ITSELF
                )
        except peerwire.RequestError as error:
            self.report("request", "%r: %s", connection, error)
            raise

    def report(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning, but not for each of many."""
        now = time.monotonic()
        if now - self._reported.get(kind, -REPORT_INTERVAL) >= REPORT_INTERVAL:
            self._reported[kind] = now
            logger.warning(message, *arguments)

    def forget(self, connection: Connection) -> None:
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
        self.common_headers = b"%s: %s\r\nDate: %s\r\nContent-Length: " % (peerwire.INSTANCE, self._instance, date)
        self.value_head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s" % (peerwire.CONTENT_TYPE, self.common_headers)
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
                self.refused += 1  # before anybody can know
                sock.close()
                self.report(
                    "refused", "peers: got more than %d connections; new ones are closed", self.limits.connections
                )
                continue
            connection = Connection(self)
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

    async def _enter(self, sock: socket.socket, connection: Connection) -> None:
        """Make a connection of an accepted socket: with TLS that takes a handshake."""
        tls = self._ssl_context
        peer: object = "a peer"

        def make() -> Connection:
            return connection

        try:
            peer = sock.getpeername()
            if tls is None:
                await self.loop.connect_accepted_socket(make, sock)
            else:
                timeout = self.limits.request_timeout
                await self.loop.connect_accepted_socket(
                    make,
                    sock,
                    ssl=tls,
                    ssl_handshake_timeout=timeout,
                    ssl_shutdown_timeout=self.limits.stall_timeout,  # the last of an answer may still be under way
                )
        except OSError as error:
            self.report("handshake", "%s: no connection: %s", peer, error)
            sock.close()
            self.forget(connection)
        except asyncio.CancelledError:
            sock.close()
            self.forget(connection)
            raise
