"""Loads that nobody here asked for: for peers' requests, and in the place of stale values.

They run in threads of their own, since a sync worker's main thread is busy with a request. An async getter's run on the
loop on which the stale value was met, where there is one: to that its clients belong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from mpgroupcache.ipc.frame import encode
from mpgroupcache.ipc.messages import Load, Return
from mpgroupcache.shm._hold import Flights, Hold
from mpgroupcache.shm._view import ByteView
from mpgroupcache.threads import Threads
from mpgroupcache.worker import drivers
from mpgroupcache.worker.config import load_context
from mpgroupcache.worker.miss import LocalGroup, load_for_peer
from mpgroupcache.worker.waits import Steps

if TYPE_CHECKING:
    import asyncio

    from mpgroupcache.worker.link import Link

logger = logging.getLogger(__name__)

# Of one process: loads that wait for a database run side by side, those that compute share the GIL.
MAX_THREADS: Final = 4

_start: Callable[..., object] | None = None


def start_with(start: Callable[..., object]) -> None:
    """How a program is started on the running loop: loops.py says so, which is there where a loop has met a value."""
    global _start
    _start = start


class PeerLoads:
    """The loads that coordinators hand to this process."""

    def __init__(self, groups: Mapping[str, LocalGroup], flights: Flights) -> None:
        self._groups = groups
        self._flights = flights
        self._threads = Threads(MAX_THREADS, "mpgroupcache-load")

    def submit(self, link: Link, load: Load) -> None:
        """Run a load soon."""
        undo = encode(Return(load.lease))
        group = self._groups.get(load.group)
        loop = None if _start is None or group is None else group.take_loop(load.key)
        if loop is not None and loop.is_running():  # one that is not may never run again, and others wait for this load
            hold = Hold()  # which returns the lease if the loop ends before it comes to this
            request = hold.owe(link.channel, undo)
            try:
                loop.call_soon_threadsafe(_start, hold, load_for_peer, self._flights, group, link, load, request)
                return
            except RuntimeError:  # it is closed
                request.settle()
        self._threads.submit(lambda runner: self._load(link, load, undo, runner), lambda: link.channel.post(undo))

    def close(self) -> None:
        """Let the threads end, each after the load it is at."""
        self._threads.close()

    def _load(self, link: Link, load: Load, undo: bytes, runner: asyncio.Runner) -> None:
        if (group := self._groups.get(load.group)) is None:
            link.channel.post(undo)
            return
        try:
            with load_context():
                drivers.run_with(runner, _load_owed, self._flights, group, link, load, undo)
        except BaseException:  # its peer and whoever waits have been told; and a SystemExit is not this thread's end
            logger.debug("group %r: a load for a peer failed", load.group, exc_info=True)


def _load_owed(hold: Hold, flights: Flights, group: LocalGroup, link: Link, load: Load, undo: bytes) -> Steps[ByteView]:
    request = hold.owe(link.channel, undo)
    return (yield from load_for_peer(hold, flights, group, link, load, request))
