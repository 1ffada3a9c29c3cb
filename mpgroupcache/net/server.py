"""The peers' server: HTTP/1.1 requests in, values of a `Backend` out, as peerwire.py has them.

One thread and one event loop, uvloop's. What happens to a request:

1. A `ServerConnection` has it found in what has come.
2. Its `Handler` answers it. A value that is cached is copied once, into its answer, before the backend is called again:
   its memory may be another value's then.
3. A value that is not cached has to be loaded: a visitor waits for it, and the requests behind it wait, too.

Guarantees: a client that sends endlessly, slowly, garbage, or nothing, that does not read, or goes away, costs a
bounded amount of memory and gets a bounded share of the loop's time. Every visitor is answered or leaves, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

from mpgroupcache.net import peerwire
from mpgroupcache.net.addresses import format_address, listen
from mpgroupcache.net.handler import Handler
from mpgroupcache.net.serverconnection import ServerConnection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from mpgroupcache.net.backend import Backend
    from mpgroupcache.net.hooks import PeerRequest
    from mpgroupcache.net.serverlimits import Limits

ACCEPTS: Final = 64  # connections accepted at once; then the others get a turn
DRAIN_TIMEOUT: Final = 5.0  # s that `close` leaves to requests under way


class PeerServer:
    """Listens for peers; make one with ``await PeerServer.start(...)``."""

    def __init__(self, handler: Handler, listeners: list[socket.socket], ssl_context: ssl.SSLContext | None) -> None:
        self.handler = handler
        self.refused = 0
        """Connections that were closed at once, since there were too many."""
        self._loop = handler.loop
        self._ssl_context = ssl_context
        self._listeners = listeners
        self._connections: set[ServerConnection] = set()
        self._entering: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()

    @classmethod
    async def start(
        cls,
        backend: Backend,
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
        the loader of a request is told. Raises ``OSError`` that names ``--listen``, and ``ValueError`` for a base path
        or secret that cannot be.
        """
        handler = Handler(
            backend, instance=instance, base_path=base_path, secret=secret, limits=limits, context=context
        )
        server = cls(handler, await listen(handler.loop, host, port), ssl_context)
        for listener in server._listeners:
            server._loop.add_reader(listener.fileno(), server._accept, listener)
        return server

    async def close(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """Stop listening; requests under way have so many seconds, and their answers say ``Connection: close``."""
        self.handler.draining = True
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
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

    # ---- From time to time

    def _tick(self) -> None:
        """At each second's begin while there are connections: the Date header, and clients that keep us waiting."""
        self._ticking = None
        if not self._connections:
            return
        now = time.time()
        self._ticking = self._loop.call_later(1.0 - now % 1.0, self._tick)
        self.handler.heads.renew(now)
        instant = time.monotonic()
        for connection in list(self._connections):
            connection.watch(instant)

    def _forget(self, connection: ServerConnection) -> None:
        """The connection is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._gone.set()

    # ---- New connections

    def _accept(self, listener: socket.socket) -> None:
        handler = self.handler
        for _ in range(ACCEPTS):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                handler.report(
                    "accept", "accept: %s; expected a free file descriptor, raise the limit (ulimit -n)", error
                )
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(1.0, self._resume_accepting, listener)
                return
            if len(self._connections) >= handler.limits.connections:
                self.refused += 1  # before anybody can know
                sock.close()
                handler.report(
                    "refused", "peers: got more than %d connections; new ones are closed", handler.limits.connections
                )
                continue
            connection = ServerConnection(handler, self._forget)
            self._connections.add(connection)
            self._gone.clear()
            if self._ticking is None:
                self._tick()
            task = self._loop.create_task(self._enter(sock, connection))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    def _resume_accepting(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    async def _enter(self, sock: socket.socket, connection: ServerConnection) -> None:
        """Make a connection of an accepted socket: with TLS that takes a handshake."""
        tls, limits = self._ssl_context, self.handler.limits
        peer: object = "a peer"

        def make() -> ServerConnection:
            return connection

        try:
            peer = sock.getpeername()
            if tls is None:
                await self._loop.connect_accepted_socket(make, sock)
            else:
                await self._loop.connect_accepted_socket(
                    make,
                    sock,
                    ssl=tls,
                    ssl_handshake_timeout=limits.request_timeout,
                    ssl_shutdown_timeout=limits.stall_timeout,  # the last of an answer may still be under way
                )
        except OSError as error:
            self.handler.report("handshake", "%s: no connection: %s", peer, error)
            sock.close()
            self._forget(connection)
        except asyncio.CancelledError:
            sock.close()
            self._forget(connection)
            raise
