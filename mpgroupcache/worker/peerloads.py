"""Loads for peers' requests: in threads of their own, since a sync worker's main thread is busy with a request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol

from mpgroupcache.ipc.messages import Load, unpack_context
from mpgroupcache.threads import Threads
from mpgroupcache.worker.channel import Channel
from mpgroupcache.worker.leases import HeldLease, SharedLease

logger = logging.getLogger(__name__)

# Of one process: loads that wait for a database run side by side, those that compute share the GIL.
MAX_THREADS: Final = 4


class LoadForPeer(Protocol):
    """A group's own way to load: it ends the lease. An ``async`` getter runs on the thread's ``runner``."""

    def __call__(self, lease: HeldLease, key: bytes, ctx: Any, runner: asyncio.Runner) -> None: ...


class PeerLoads:
    """The loads that the coordinator hands to one link."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._groups: dict[str, LoadForPeer] = {}
        self._threads = Threads(MAX_THREADS, "mpgroupcache-load")

    def declare(self, group: str, load: LoadForPeer) -> None:
        """Have loads of ``group`` done by ``load``."""
        self._groups[group] = load

    def submit(self, load: Load) -> None:
        """Run a load soon."""
        lease = SharedLease(self._channel, load.lease)
        self._threads.submit(lambda runner: self._load(lease, load, runner), lease.give_back)

    def close(self) -> None:
        """Let the threads end, each after the load it is at."""
        self._threads.close()

    def _load(self, lease: SharedLease, load: Load, runner: asyncio.Runner) -> None:
        if (load_for_peer := self._groups.get(load.group)) is None:
            lease.give_back()
            return
        try:
            load_for_peer(lease, load.key, unpack_context(load.ctx), runner)
        except BaseException:  # its peer and whoever waits have been told; and a SystemExit is not this thread's end
            logger.debug("group %r: a load for a peer failed", load.group, exc_info=True)
