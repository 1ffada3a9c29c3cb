"""The coordinator's life: its instance, its socket, its connections, and what it does from time to time.

One thread and one event loop. What workers say is heard in conversations.py, and for a get that missed in misses.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import stat
import time
from typing import TYPE_CHECKING

from mpgroupcache.coordinator.access import Access
from mpgroupcache.coordinator.connection import Connection, Cork
from mpgroupcache.coordinator.conversations import SPARE_REGIONS, Conversations
from mpgroupcache.coordinator.hostgroups import MEMORY_RETRY, Groups
from mpgroupcache.coordinator.liveness import Liveness
from mpgroupcache.coordinator.misses import Misses
from mpgroupcache.coordinator.options import Options
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.errors import ProtocolError
from mpgroupcache.ipc.messages import NO_LAYOUT
from mpgroupcache.shm import remains
from mpgroupcache.shm._reader import LAYOUT_VERSION
from mpgroupcache.shm.ownership import open_instance
from mpgroupcache.shm.segment import DIRECTORY, control_name, instance_name, remove_private_files, room
from mpgroupcache.sizes import format_size

if TYPE_CHECKING:
    from mpgroupcache.coordinator.spawner import Loaders

logger = logging.getLogger(__name__)

TICK = 0.25  # s between drains of the touch rings while workers hit; a busy worker fills its ring faster, an idle never
IDLE_TICK = 1.0  # s between looks when nothing was touched; each costs some 50 us
RECLAIM_ROUNDS = 4096  # between two ticks, at most: some million dead entries a second
DRAIN_TIMEOUT = 5.0  # s that SIGTERM leaves to loads under way; their workers need no coordinator to finish
BACKLOG = 4096  # connections in one burst that wait to be accepted; the kernel caps it at somaxconn
# Workers' connections. Each of them has two, and there are regions for 4096 of them at a time.
MAX_CONNECTIONS = 2 * 4096
SPARE_DESCRIPTORS = 64  # that connections leave to segments, large values and peers
REPORT_INTERVAL = 10.0  # s between two log messages on connections beyond that


class Coordinator:
    """One instance, from its socket to its segments."""

    def __init__(self, options: Options, stopping: asyncio.Event, restarting: asyncio.Event, peering: Peering) -> None:
        """Take the instance over, with what a dead coordinator has left of it. ``stopping`` is to end it.

        ``restarting``: set first where the next one is about to begin, and is to find the cache warm.

        Raises ``AlreadyRunning``, ``ArenaError``, ``OSError`` for the socket, or ``ValueError`` for the group.
        """
        self._options = options
        self._access = Access(options.group)
        self.instance = instance_name(options.socket)
        self._loop = asyncio.get_running_loop()
        for gone in remains.remove_dead(but=self.instance):  # first, since it may be what fills the memory
            logger.info("instance %s: its coordinator and its workers are dead; %s", gone.instance, gone)
        # Before the socket: binding would take a live one.
        self._segment, self._control = open_instance(self.instance, self._access.gid)
        self._restarting = restarting
        self._control.reap()  # so that what dead workers had pinned is free
        self._groups = Groups(
            self.instance,
            self._control,
            options.max_bytes,
            options.reserve,
            options.max_value_share,
            options.checksums,
            self._access.gid,
        )
        self._groups.take_over()
        self._workers = workers = Roster()
        liveness = Liveness(workers, options.lease_timeout)
        self._misses = Misses(self._groups, self._control, peering, workers, liveness)
        layout = LAYOUT_VERSION if self._segment.memfd < 0 else NO_LAYOUT
        self._conversations = Conversations(
            self.instance, self._groups, self._control, layout, peering, workers, liveness, self._misses
        )
        self._peering = peering
        self._loaders: Loaders | None = None
        self._cork = Cork()
        self._connections: set[Connection] = set()
        self._most_connections = _most_connections()
        self._reported_most = -REPORT_INTERVAL
        self._idle_since = time.monotonic()
        self._retry_memory_at = time.monotonic() + MEMORY_RETRY
        self._stopping = stopping
        try:
            self._listener = _bind(options.socket, self._access.gid)
        except BaseException:
            self.close()
            raise

    # ---- Life

    async def open(self) -> None:
        """Serve peers and start loaders, as far as the options say so, and let workers connect: all is ready then.

        Raises ``OSError`` or ``ValueError`` that name the option; then nothing is left.
        """
        try:
            await self._peering.open(self._misses.guests)
            self._listener.listen(BACKLOG)
        except BaseException:
            self.close()
            raise
        if self._options.app is not None:
            from mpgroupcache.coordinator.spawner import Loaders  # few coordinators start any

            self._loaders = Loaders(self._options.app, self._options.loaders, self._options.socket)

    async def serve(self) -> None:
        """Serve until ``stopping`` is set, or the linger time is over. Then drain: workers finish without it.

        ``close`` follows, however this ends.
        """
        self._loop.add_reader(self._listener.fileno(), self._accept)
        ticking = asyncio.create_task(self._tick())
        try:
            # The tick never ends by itself: if it fails, so does the coordinator, for another to take its place.
            stopped = asyncio.create_task(self._stopping.wait())
            await asyncio.wait((stopped, ticking), return_when=asyncio.FIRST_COMPLETED)
            if ticking.done():
                ticking.result()
            await self._drain()
        finally:
            ticking.cancel()

    async def _drain(self) -> None:
        """No new connections, no new loads; what is under way may end.

        A connection without any is closed. Its worker, and whoever asks for something new, loads alone.
        """
        self._close_listener()
        self._misses.drain()
        deadline = time.monotonic() + DRAIN_TIMEOUT
        await self._peering.close()  # first: peers' requests need the workers' connections
        if self._loaders is not None:
            await self._loaders.close()
        while self._connections and time.monotonic() < deadline:
            for connection in list(self._connections):
                if not self._is_busy(connection):
                    self._close(connection)
            if self._connections:
                await asyncio.sleep(0.02)

    def _is_busy(self, connection: Connection) -> bool:
        if connection.role == "service":  # closed with its worker's other one
            return any(other.worker == connection.worker and other.role == "call" for other in self._connections)
        return not connection.flushed or self._misses.serves(connection)

    def _close_listener(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._options.socket)
        self._listener.close()

    def close(self) -> None:
        """Give everything back, but for the segments where the next coordinator is to find them."""
        if hasattr(self, "_listener") and self._listener.fileno() >= 0:
            self._close_listener()
        for connection in list(self._connections):
            connection.close()
        keep = self._is_kept()
        self._groups.close(keep)
        if not keep:
            self._control.retire()
            # While this holds the writer's lock: the next one's have the same names.
            if self._options.embedded and not self._restarting.is_set():
                remove_private_files(self._options.socket)
        self._control.close()
        if not keep:
            self._segment.unlink()
        self._segment.close()
        if keep and not self._restarting.is_set():
            remains.leave(control_name(self.instance))  # its workers may have ended meanwhile

    def _is_kept(self) -> bool:
        """Whether the cache is left for the next coordinator: while there are workers, which go on with it meanwhile.

        Its own loaders have ended before. A private one that is told to end is not followed by another.
        """
        if self._segment.memfd >= 0:
            return False
        if self._restarting.is_set():
            return True
        self._control.reap()
        return not self._options.private and self._control.attached > 0

    async def _tick(self) -> None:
        while True:
            self._control.stamp()
            touches = self._control.drain()
            now = time.monotonic()
            self._control.reap()
            self._control.spare_regions(SPARE_REGIONS)
            self._groups.tend(now)
            self._peering.tick(now)
            self._misses.watch_leases(now)
            self._retry_memory(now)
            self._workers.tell(now)
            if self._connections:
                self._idle_since = now
            elif self._options.linger is not None and now - self._idle_since >= self._options.linger:
                logger.info("no clients for %g s", self._options.linger)
                self._stopping.set()
            for _ in range(RECLAIM_ROUNDS):
                if not self._groups.reclaim():
                    break
                await asyncio.sleep(0)  # others are served in between
            await asyncio.sleep(TICK if touches or self._misses.under_way else IDLE_TICK)

    def report(self) -> None:
        """Say in the log how it is."""
        ring, memory = self._peering.ring, room()
        parts = [
            f"{len(self._workers)} workers",
            f"{self._groups.count} groups that hold {format_size(self._groups.committed)} of memory",
            f"{self._misses.under_way} loads under way",
        ]
        if ring is not None:
            parts.append(
                f"{len(ring.urls)} peers in the ring, {sum(not peer.available for peer in ring.peers)} failing"
            )
        if memory is not None:
            parts.append(f"{format_size(memory.free)} of {format_size(memory.size)} free in {DIRECTORY}")
        logger.info("state: %s", ", ".join(parts))

    def _retry_memory(self, now: float) -> None:
        """Begin anew once there is room for what found none: workers were told that there is nothing to attach."""
        if self._stopping.is_set():
            return  # whoever wants it ended wants no other
        if now < self._retry_memory_at or (self._segment.memfd < 0 and not self._groups.short_of_arenas):
            return
        self._retry_memory_at = now + MEMORY_RETRY
        if self._groups.has_room:
            logger.warning("there is room in %s again: the coordinator begins anew, as on SIGUSR2", DIRECTORY)
            self._restarting.set()
            self._stopping.set()

    # ---- Connections

    def _accept(self) -> None:
        for _ in range(64):  # then the others get a turn
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.error("accept: %s; expected a free file descriptor, raise the limit (ulimit -n)", error)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(1.0, self._resume_accepting)
                return
            if len(self._connections) >= self._most_connections:
                sock.close()
                self._report_most()
                continue
            if (refusal := self._access.refusal(sock)) is not None:
                logger.warning("%s; its connection is refused", refusal)
                sock.close()
                continue
            connection = Connection(sock, self._loop, self._cork, self._conversations.new)
            self._connections.add(connection)
            self._loop.add_reader(connection.fileno(), self._receive, connection)

    def _report_most(self) -> None:
        now = time.monotonic()
        if now - self._reported_most >= REPORT_INTERVAL:
            self._reported_most = now
            logger.warning(
                "workers: got more than %d connections; new ones are closed. Each worker has two; the limit of "
                "descriptors (ulimit -H -n) bounds them up to %d",
                self._most_connections,
                MAX_CONNECTIONS,
            )

    def _resume_accepting(self) -> None:
        if self._listener.fileno() >= 0:  # else it was closed meanwhile, and its number may be another file's
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _receive(self, connection: Connection) -> None:
        try:
            try:
                with self._cork:
                    for request_id, message in connection.receive():
                        if connection.closed:  # by what came before
                            break
                        connection.handlers[type(message)](connection, request_id, message)
            finally:
                self._misses.settle()
        except EOFError:
            self._close(connection)
        except (ProtocolError, OSError) as error:
            logger.warning("%r: %s; its connection is closed", connection, error)
            self._close(connection)
        except Exception:  # a defect of ours: its worker is not to wait for an answer that will not come
            logger.exception("%r: its connection is closed", connection)
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.close()
        self._connections.discard(connection)
        self._conversations.lose(connection)
        self._idle_since = time.monotonic()


def _most_connections() -> int:
    """How many connections workers may have: without the last descriptors, large values could not be sent."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(limit - SPARE_DESCRIPTORS, limit // 2))


def _bind(path: str, gid: int | None) -> socket.socket:
    """Take ``path``; nobody else does, since this process holds the instance's writer lock.

    It is 0600 from the first moment; for a group, 0660: nobody connects before it listens, and then it is the group's.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(f"--socket: {path} exists and is no socket; remove it, or choose another path")
        os.unlink(path)  # a dead instance's
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        umask = os.umask(0o177 if gid is None else 0o117)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
    except OSError as error:
        listener.close()
        raise OSError(f"--socket: {path} cannot be served: {error}") from error
    return listener
