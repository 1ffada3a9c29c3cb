"""The host's workers: how each is reached while its threads load, and who loads for guests."""

from __future__ import annotations

import logging
from collections import OrderedDict

from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.hostgroups import HostGroup

logger = logging.getLogger(__name__)

TELL_INTERVAL = 10.0  # s between two lines on who came and left: a server's start is one, and not one for each worker


class Roster:
    """What is known of them beside their flights. A worker is known by its call connection."""

    def __init__(self) -> None:
        self._workers: set[Connection] = set()
        self._came = self._left = 0  # since it was told
        self._told_at = -TELL_INTERVAL
        self._services: dict[bytes, Connection] = {}  # by worker
        self._loaders: dict[HostGroup, OrderedDict[Connection, None]] = {}  # by group: who declared it, in turn

    def __len__(self) -> int:
        """How many there are."""
        return len(self._workers)

    def add(self, connection: Connection) -> None:
        """A worker has come."""
        self._workers.add(connection)
        self._came += 1

    def tell(self, now: float) -> None:
        """Say in the log who came and left."""
        if (self._came or self._left) and now - self._told_at >= TELL_INTERVAL:
            logger.info("workers: %d are here, %d came and %d left", len(self), self._came, self._left)
            self._came = self._left = 0
            self._told_at = now

    def add_service(self, service: Connection) -> None:
        """A worker's service connection: its pings are answered while its other threads load."""
        self._services[service.worker] = service

    def service(self, worker: bytes) -> Connection | None:
        """The service connection of the worker with that token."""
        return self._services.get(worker)

    def add_loader(self, group: HostGroup, connection: Connection) -> None:
        """A worker declared the group: it can load its keys."""
        self._loaders.setdefault(group, OrderedDict())[connection] = None

    def loaders(self, group: HostGroup) -> int:
        """How many workers declared the group."""
        return len(self._loaders.get(group, ()))

    def next_loader(self, group: HostGroup) -> Connection | None:
        """One of those that can be told to load, each in its turn."""
        loaders = self._loaders.get(group, OrderedDict())
        for connection in list(loaders):
            if connection.worker in self._services and not connection.closed:
                loaders.move_to_end(connection)
                return connection
        return None

    def lose(self, connection: Connection) -> None:
        """A connection of either kind is closed."""
        if connection in self._workers:
            self._workers.remove(connection)
            self._left += 1
        if self._services.get(connection.worker) is connection:
            del self._services[connection.worker]
        for loaders in self._loaders.values():
            loaders.pop(connection, None)
