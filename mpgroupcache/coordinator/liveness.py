"""Slow loaders and dead ones told apart: a worker that holds a lease for long is pinged, and loses it when silent.

A slow one keeps its lease, and the log says who waits for whom.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.flights import Lease
from mpgroupcache.coordinator.hostgroups import HostGroup
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.ipc import messages

logger = logging.getLogger(__name__)

PING_INTERVAL = 1.0  # s between pings to a worker that holds a lease for longer than that
SLOW_LOAD = 10.0  # s; a load that others wait for so long is worth a line in the log ...
SLOW_LOAD_AGAIN = 60.0  # s; ... and another one after each of these


class Liveness:
    """Signs of life of the workers that hold leases."""

    def __init__(self, workers: Roster, lease_timeout: float) -> None:
        self._workers = workers
        self.lease_timeout = lease_timeout
        self._heard: dict[bytes, float] = {}  # last sign of life, of workers that are being pinged

    def heard(self, connection: Connection) -> None:
        """A worker gave a sign of life."""
        if connection.worker in self._heard:
            self._heard[connection.worker] = time.monotonic()

    def overdue(self, leases: Iterable[Lease], now: float) -> list[tuple[Lease, str]]:
        """Ping the holders of these leases; those whose load is to go to the next waiter, and why."""
        pinged: set[bytes] = set()
        overdue = []
        for lease in leases:
            worker, age = lease.holder.owner.worker, now - lease.granted
            if age > PING_INTERVAL and worker not in pinged:
                pinged.add(worker)
                self._heard.setdefault(worker, now)
                if (service := self._workers.service(worker)) is not None:
                    service.send(messages.Ping())
            if (reason := self._reason(lease, worker, age, now)) is not None:
                overdue.append((lease, reason))
        for worker in self._heard.keys() - pinged:
            del self._heard[worker]
        return overdue

    def _reason(self, lease: Lease, worker: bytes, age: float, now: float) -> str | None:
        """Why the lease is to be taken away; None if it is not."""
        if not lease.flight.waiters:
            return None  # nobody to pass it on to: its value is welcome whenever it comes
        timeout = lease.flight.key[0].load_timeout
        if timeout is not None and age > timeout:
            return f"is over its load_timeout of {timeout:g} s"
        if now - self._heard.get(worker, now) > self.lease_timeout:
            return f"is silent for more than {self.lease_timeout:g} s"
        return None


def report_slow(leases: Iterable[Lease], now: float) -> None:
    """Say which loads keep others waiting for long, a line for each group. Without the key: keys are users' data."""
    slow: dict[HostGroup, list[Lease]] = {}
    for lease in leases:
        due = lease.granted + SLOW_LOAD if lease.told is None else lease.told + SLOW_LOAD_AGAIN
        if now >= due and _waiting(lease):
            lease.told = now
            slow.setdefault(lease.flight.key[0], []).append(lease)
    for group, found in slow.items():
        oldest = min(found, key=lambda lease: lease.granted)
        others = f", and {len(found) - 1} more loads are as slow" if len(found) > 1 else ""
        logger.warning(
            "group %r: process %d loads a value for %.1f s now, and %d others wait for it%s; look at what its loader "
            "waits for, or give the group a load_timeout",
            group.name,
            oldest.holder.owner.pid,
            now - oldest.granted,
            _waiting(oldest),
            others,
        )


def _waiting(lease: Lease) -> int:
    """How many callers wait for a load beside the one who loads."""
    return len(lease.flight.waiters) + lease.beside
