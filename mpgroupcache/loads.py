"""Loads for peers' requests: in threads of their own, since a sync worker's main thread is busy with a request.

Threads are started when loads come and none is free, and end with the link. They are daemons: a loader that hangs does
not keep its process from exiting, and the coordinator passes its lease on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from queue import SimpleQueue
from typing import Any, Protocol

from mpgroupcache.ipc.channel import Channel
from mpgroupcache.ipc.wire import Load, unpack_context
from mpgroupcache.leases import HeldLease, SharedLease

logger = logging.getLogger(__name__)

MAX_THREADS = 4  # of one process: loads that wait for a database run side by side, those that compute share the GIL


class LoadForPeer(Protocol):
    """A group's own way to load: it ends the lease. An ``async`` getter runs on the thread's ``runner``."""

    def __call__(self, lease: HeldLease, key: bytes, ctx: Any, runner: asyncio.Runner) -> None: ...


class PeerLoads:
    """The loads that the coordinator hands to one link."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._groups: dict[str, LoadForPeer] = {}
        self._queue: SimpleQueue[Load | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the counts
        self._threads = 0
        self._free = 0  # threads that wait, less the loads that wait for them

    def declare(self, group: str, load: LoadForPeer) -> None:
        """Have loads of ``group`` done by ``load``."""
        self._groups[group] = load

    def submit(self, load: Load) -> None:
        """Run a load soon."""
        with self._lock:
            self._free -= 1
            start = self._free < 0 and self._threads < MAX_THREADS
            if start:
                self._threads += 1
                self._free += 1
        self._queue.put(load)
        if start:
            try:
                threading.Thread(target=self._run, name="mpgroupcache-load", daemon=True).start()
            except RuntimeError as error:  # out of threads: those that there are, or another worker, will do it
                with self._lock:
                    self._threads -= 1
                    self._free -= 1
                    alone = self._threads == 0
                logger.warning("no thread for a peer's load: %s", error)
                if alone:
                    self._give_back_all()

    def close(self) -> None:
        """Let the threads end, each after the load it is at."""
        with self._lock:
            threads = self._threads
        for _ in range(threads):
            self._queue.put(None)

    def _give_back_all(self) -> None:
        while not self._queue.empty():
            load = self._queue.get()
            if load is not None:
                with self._lock:
                    self._free += 1
                SharedLease(self._channel, load.lease).give_back()

    def _run(self) -> None:
        runner = asyncio.Runner()
        try:
            while (load := self._queue.get()) is not None:
                self._load(load, runner)
                with self._lock:
                    self._free += 1
        finally:
            with self._lock:
                self._threads -= 1
            runner.close()

    def _load(self, load: Load, runner: asyncio.Runner) -> None:
        lease = SharedLease(self._channel, load.lease)
        if (load_for_peer := self._groups.get(load.group)) is None:
            lease.give_back()
            return
        try:
            load_for_peer(lease, load.key, unpack_context(load.ctx), runner)
        except Exception:  # its peer and whoever waits have been told
            logger.debug("group %r: a load for a peer failed", load.group, exc_info=True)
