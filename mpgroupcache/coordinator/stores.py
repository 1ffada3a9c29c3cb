"""Values that loaders made, from their STORE until they are in the arena and their flight can end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from msgspec import Struct

from mpgroupcache.coordinator.flights import Action, FlightTable, Lease
from mpgroupcache.coordinator.hostgroups import HostGroup
from mpgroupcache.errors import ProtocolError
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.messages import Store

logger = logging.getLogger(__name__)


class Delivery(Struct, frozen=True):
    """What waiters are sent: a value's bytes, or its size in a memfd that is open while it is delivered."""

    carried: bytes | int
    fd: int = -1
    fetched: bool = False


class Stores:
    """Puts values into arenas, and tells their flights."""

    def __init__(self, flights: FlightTable, carry_out: Callable[[list[Action]], None]) -> None:
        self._flights = flights
        self._carry_out = carry_out
        self.unsettled: dict[tuple[HostGroup, bytes], tuple[int, Store]] = {}
        """By key: a lease and its value, which nobody waits for."""
        self.arriving: dict[int, Delivery] = {}
        """What is being copied, by lease."""
        self._copying: set[asyncio.Task[None]] = set()

    @property
    def copying(self) -> bool:
        """Whether a large value is on its way."""
        return bool(self._copying)

    # ---- Small ones

    def add(self, lease: Lease, message: Store) -> None:
        """A value that came in a frame."""
        key = lease.flight.key
        if key in self.unsettled:  # its other flight's, one of which asks a peer: neither takes the other's place
            self.settle()
        self.unsettled[key] = lease.id, message
        if lease.flight.waiters:
            self.settle()

    def settle(self) -> None:
        """Store the values that nobody waits for.

        A worker's next miss often comes with its last one's value, in one read; it is answered first, and loads while
        its predecessor is stored.
        """
        unsettled, self.unsettled = self.unsettled, {}
        for (group, key), (lease_id, message) in unsettled.items():
            value = message.value
            assert isinstance(value, bytes)
            if message.picked:
                group.promote(key, value, message.minute_qps)
            else:
                group.put(key, value)
            self._carry_out(self._flights.value(lease_id, Delivery(value)))

    # ---- Large ones

    def add_large(self, lease: Lease, message: Store, fd: int) -> None:
        """A value that came in a memfd, which stays the caller's. Raises ``ProtocolError``."""
        group, key = lease.flight.key
        if lease.id in self.arriving:
            raise ProtocolError(f"lease {lease.id}: got a second value, expected one")
        size = message.value
        assert isinstance(size, int)
        memfd.check(fd, size)
        if message.picked and not group.admits(len(key) + size, message.minute_qps):
            self._carry_out(self._flights.value(lease.id, Delivery(size, fd)))
            return
        delivery = self.arriving[lease.id] = Delivery(size, os.dup(fd))
        task = asyncio.get_running_loop().create_task(self._copy(group, lease.id, key, delivery, size, message.picked))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)

    async def _copy(
        self, group: HostGroup, lease_id: int, key: bytes, delivery: Delivery, size: int, hot: bool
    ) -> None:
        """Copy a value into the arena, then end its flight: a get in between joins it, and loads nothing."""
        try:
            await group.put_from(key, delivery.fd, size, hot)
        except (OSError, BufferError) as error:  # a BufferError: the coordinator ended meanwhile
            logger.error("group %r: a value of %d bytes was not cached: %s", group.name, size, error)
        finally:
            del self.arriving[lease_id]
            try:
                self._carry_out(self._flights.value(lease_id, delivery))
            finally:
                os.close(delivery.fd)
