"""Who hears which message of a worker, by the kind of its connection, which HELLO says. Misses hear most of them."""

from __future__ import annotations

import logging
import os
import time
from typing import Final

from mpgroupcache.coordinator.connection import Connection, Handler, Handlers
from mpgroupcache.coordinator.hostgroups import Groups
from mpgroupcache.coordinator.liveness import Liveness
from mpgroupcache.coordinator.misses import Misses
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.errors import ArenaError
from mpgroupcache.ipc import messages
from mpgroupcache.shm._control import Control
from mpgroupcache.shm.segment import control_name

logger = logging.getLogger(__name__)

ABILITIES: Final = ()  # what this coordinator can do beside what its versions of the conversation say
REPORT_INTERVAL = 10.0  # s between two log messages on what workers are refused
MAX_CLOCK_OFF = 10 * 10**9  # ns; more than a worker waits for WELCOME, so that it is no HELLO that was read late
SPARE_REGIONS = 8  # free at any time, beside one for each worker that is about to claim: for children of forks


class Conversations:
    """Those of one instance with its workers. ``layout``: of the shared memory, or ``NO_LAYOUT``."""

    def __init__(
        self,
        instance: str,
        groups: Groups,
        control: Control,
        layout: int,
        peering: Peering,
        workers: Roster,
        liveness: Liveness,
        misses: Misses,
    ) -> None:
        self._instance = instance
        self._groups = groups
        self._control = control
        self._layout = layout
        self._peering = peering
        self._workers = workers
        self._liveness = liveness
        self._misses = misses
        self._reported_refusal = -REPORT_INTERVAL
        self._joining: set[Connection] = set()  # welcomed, and not heard of since: each worker is to claim a region
        signs_of_life: dict[type[messages.Message], Handler] = {
            messages.Ping: self._answer_ping,
            messages.Pong: self._hear_pong,
        }
        self.new = Handlers("new", {messages.Hello: self._welcome, **signs_of_life})
        self._turned_away = Handlers("refused", {})
        self._service = Handlers("service", {messages.Waiting: misses.hear_waiting, **signs_of_life})
        self._call = Handlers(
            "call",
            {
                **misses.handlers,
                messages.Declare: self._declare,
                messages.SetPeers: self._set_peers,
                messages.Served: self._count_served,
                **signs_of_life,
            },
        )

    def lose(self, connection: Connection) -> None:
        """A connection is closed."""
        self._joining.discard(connection)
        self._workers.lose(connection)
        self._misses.lose(connection)

    def _welcome(self, connection: Connection, request_id: int, hello: messages.Hello) -> None:
        connection.role, connection.pid, connection.worker = hello.role, hello.pid, hello.worker
        connection.abilities = frozenset(hello.abilities)
        if (version := hello.version) is None:
            self._turn_away(connection, request_id, _versions(hello))
            return
        off = hello.clock - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if abs(off) > MAX_CLOCK_OFF:
            self._turn_away(connection, request_id, _clocks(off))
            return
        if hello.role == "service":
            connection.handlers = self._service
            self._workers.add_service(connection)
        else:  # a worker that finds no free region has its hits copied by the coordinator until it finds one
            connection.handlers = self._call
            self._workers.add(connection)
            self._joining.add(connection)
            self._control.spare_regions(SPARE_REGIONS + len(self._joining))
        control = control_name(self._instance)
        welcome = messages.Welcome(version, self._instance, control, os.getpid(), self._layout, ABILITIES)
        connection.send(welcome, request_id)

    def _turn_away(self, connection: Connection, request_id: int, text: str) -> None:
        """A worker with which this coordinator has no version of the conversation, or no time, in common."""
        logger.warning("%r: %s; its connection is closed", connection, text)
        connection.refuse(request_id, text)
        connection.handlers = self._turned_away
        connection.end()

    def _answer_ping(self, connection: Connection, request_id: int, _: messages.Ping) -> None:
        connection.send(messages.Pong(), request_id)

    def _hear_pong(self, connection: Connection, _: int, __: messages.Pong) -> None:
        self._liveness.heard(connection)

    def _declare(self, connection: Connection, request_id: int, message: messages.Declare) -> None:
        self._joining.discard(connection)
        try:
            group = self._groups.declare(message)
        except ArenaError as error:
            self._report_refusal(connection, str(error))
            connection.refuse(request_id, str(error))
            return
        self._workers.add_loader(group, connection)
        segment = group.segment.name if group.segment is not None else None
        budget = group.arena.budget if group.arena is not None else 0
        connection.send(messages.Declared(group.id, segment, budget, group.incarnation), request_id)

    def _report_refusal(self, connection: Connection, text: str) -> None:
        """Each worker that is refused tries again and again."""
        now = time.monotonic()
        if now - self._reported_refusal >= REPORT_INTERVAL:
            self._reported_refusal = now
            logger.warning("%r is refused: %s", connection, text)

    def _set_peers(self, connection: Connection, request_id: int, message: messages.SetPeers) -> None:
        self._joining.discard(connection)
        try:
            self._peering.set_peers(message)
        except ValueError as error:
            self._report_refusal(connection, str(error))
            connection.refuse(request_id, str(error))
        else:
            connection.send(messages.PeersSet(), request_id)

    def _count_served(self, _: Connection, __: int, message: messages.Served) -> None:
        if self._groups.get(message.group) is not None:
            self._control.count_request(message.group)


def _versions(hello: messages.Hello) -> str:
    return (
        f"versions of the conversation: got a worker with {hello.lowest} to {hello.highest}, expected some of "
        f"{messages.LOWEST_VERSION} to {messages.HIGHEST_VERSION}; upgrade what is older, worker or coordinator"
    )


def _clocks(off: int) -> str:
    return (
        f"clock: got a worker whose CLOCK_BOOTTIME is {off / 1e9:+.0f} s off, expected the coordinator's, by which "
        "values age; run both in one time namespace"
    )
