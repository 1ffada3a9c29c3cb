"""Loads for peers' requests: in threads of their own, since a sync worker's main thread is busy with a request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from mpgroupcache.ipc.frame import encode
from mpgroupcache.ipc.messages import Load, Return
from mpgroupcache.shm._hold import Flights
from mpgroupcache.threads import Threads
from mpgroupcache.worker import drivers
from mpgroupcache.worker.miss import LocalGroup, load_for_peer

if TYPE_CHECKING:
    import asyncio

    from mpgroupcache.worker.link import Link

logger = logging.getLogger(__name__)

# Of one process: loads that wait for a database run side by side, those that compute share the GIL.
MAX_THREADS: Final = 4


class PeerLoads:
    """The loads that coordinators hand to this process."""

    def __init__(self, groups: Mapping[str, LocalGroup], flights: Flights) -> None:
        self._groups = groups
        self._flights = flights
        self._threads = Threads(MAX_THREADS, "mpgroupcache-load")

    def submit(self, link: Link, load: Load) -> None:
        """Run a load soon."""
        undo = encode(Return(load.lease))
        self._threads.submit(lambda runner: self._load(link, load, undo, runner), lambda: link.channel.post(undo))

    def close(self) -> None:
        """Let the threads end, each after the load it is at."""
        self._threads.close()

    def _load(self, link: Link, load: Load, undo: bytes, runner: asyncio.Runner) -> None:
        if (group := self._groups.get(load.group)) is None:
            link.channel.post(undo)
            return
        try:
            drivers.run_with(runner, load_for_peer, self._flights, group, link, load, undo)
        except BaseException:  # its peer and whoever waits have been told; and a SystemExit is not this thread's end
            logger.debug("group %r: a load for a peer failed", load.group, exc_info=True)
