"""Loads in the place of stale values, and loads that failed: who is to try again, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.flights import PICKED, Action, FlightTable
from mpgroupcache.coordinator.hostgroups import Groups, HostGroup, Life
from mpgroupcache.coordinator.liveness import Liveness
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.coordinator.stores import Delivery
from mpgroupcache.coordinator.waiters import Flight, Waiter
from mpgroupcache.counters import Counter
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.fields import INLINE_BYTES
from mpgroupcache.ipc.messages import Refresh
from mpgroupcache.shm._control import Control
from mpgroupcache.shm._writer import Found

logger = logging.getLogger(__name__)

FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0  # s between two tries to refresh what fails ...
PAUSE_SHARE = 0.5  # ... and in between, of the time for which it is stale: so pauses grow, and nobody has to count


class Refreshes:
    """Begins them, and puts them off."""

    def __init__(
        self,
        groups: Groups,
        control: Control,
        peering: Peering,
        workers: Roster,
        liveness: Liveness,
        flights: FlightTable,
        carry_out: Callable[[list[Action]], None],
    ) -> None:
        self._groups = groups
        self._control = control
        self._peering = peering
        self._workers = workers
        self._liveness = liveness
        self._flights = flights
        self._carry_out = carry_out
        self._draining = False

    def drain(self) -> None:
        """Begin none any more: what is stale stays so until the next coordinator."""
        self._draining = True

    def hear(self, connection: Connection, _: int, message: Refresh) -> None:
        """A worker had a stale value: it is to load it anew, but not in the request that had it."""
        group = self._groups.get(message.group)
        if self._draining or group is None or group.arena is None:
            return
        if self._workers.service(connection.worker) is None:
            return
        found = group.arena.find(message.key)
        if found is not None and found.refresh_due:  # else another process was faster
            peer: object = None
            if group.picks:
                peer = PICKED if message.picked else None
            elif (ring := self._peering.ring) is not None:
                peer = ring.owner(message.key)
            self._carry_out(self.begin(group, message.key, Waiter(connection), peer))

    def begin(self, group: HostGroup, key: bytes, waiter: Waiter, peer: object = None) -> list[Action]:
        """Have a waiter load a value anew, itself or by its ``PICKED`` peer, or the key's owner; []: one is at it."""
        assert group.arena is not None
        # Until then no stale hit asks again. A time, and not a mark, which the death of who loads would leave for ever.
        group.arena.put_off(key, int(self._liveness.lease_timeout * 1e9))
        for flight in (self._flights.flight((group, key)), self._flights.fetch((group, key))):
            if flight is not None and flight.lease is not None and not flight.waiters:
                # The last one's time has passed, and nobody waits, so that nobody looks whether it lives. Its value is
                # not waited for any more.
                self._carry_out(self._flights.revoke(flight.lease.id))
        actions = self._flights.begin((group, key), waiter, peer)
        if actions:
            self._control.count(group.id, Counter.REFRESHES)
        return actions

    def begin_now(self, group: HostGroup, key: bytes, waiter: Waiter) -> list[Action]:
        """Have a waiter load a value anew, whatever there is."""
        actions = self._flights.refresh((group, key), waiter)
        if waiter.lease is not None:  # else it would wait for itself
            self._control.count(group.id, Counter.REFRESHES)
        return actions

    def fail(self, flight: Flight) -> Delivery | None:
        """A load failed. What its waiters are given in the place of its error: the old value, where that may be."""
        group, key = flight.key
        if (kept := _kept(flight)) is None:
            return None
        pause = self._note_failure(group, kept)
        delivery = _delivery_of(kept) if flight.waiters else None
        group.arena.revive(key, pause)
        return delivery

    def put_off(self, flight: Flight) -> None:
        """A fetch failed. What is dead stays so: no copy is to outlive its time, and its owner has no better one."""
        group, key = flight.key
        if (kept := _kept(flight)) is not None and (kept.dead is None or kept.dead > 0):
            group.arena.put_off(key, self._note_failure(group, kept))

    def _note_failure(self, group: HostGroup, kept: Found) -> int:
        """Count it; for how many ns the next try is put off."""
        self._control.count(group.id, Counter.REFRESH_ERRORS)
        stale_for = 0.0 if kept.fresh is None else -kept.fresh / 1e9
        return int(min(max(stale_for * PAUSE_SHARE, FIRST_PAUSE), LAST_PAUSE) * 1e9)


def _kept(flight: Flight) -> Found | None:
    """The value in whose place a flight was to bring another one; it is good until the arena's next call."""
    group, key = flight.key
    if flight.overtaken or group.arena is None or (kept := group.arena.find_kept(key)) is None or kept.absent:
        return None
    found: Found = kept
    return found


def _delivery_of(kept: Found) -> Delivery | None:
    """The old value, as it is sent; its descriptor is the caller's. None: it cannot be sent."""
    size, life = len(kept.value), Life(kept.fresh, kept.dead)
    if size <= INLINE_BYTES:
        return Delivery(bytes(kept.value), version=kept.version, life=life)
    try:
        return Delivery(size, memfd.make(kept.value), version=kept.version, life=life)
    except OSError as error:
        logger.error("an old value of %d bytes cannot be sent, and its load has failed: %s", size, error)
        return None
