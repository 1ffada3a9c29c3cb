"""Values that loaders made, from their STORE until they are in the arena and their flight can end.

A change overtakes what was under way: nothing that began before it is published after it. So that is looked at in the
very step in which a value is published, small ones and large.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from msgspec import Struct

from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.flights import Action, FlightTable, Lease
from mpgroupcache.coordinator.hostgroups import HostGroup, Life
from mpgroupcache.errors import ProtocolError
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.messages import Changed, Store

logger = logging.getLogger(__name__)


class Delivery(Struct, frozen=True):
    """What waiters are sent: a value's bytes, or its size in a memfd that is open while it is delivered."""

    carried: bytes | int
    fd: int = -1
    fetched: bool = False
    version: int | None = None
    life: Life | None = None  # None: it is not kept
    absent: bool = False  # the bytes are what its loader says of that


class Stored(Struct, frozen=True):
    """A STORE, and whom it came from: a request, where an answer is waited for."""

    lease: Lease
    message: Store
    connection: Connection
    request_id: int

    @property
    def owners(self) -> int:
        """Its version with the peer that has it; 0: it has none, or nobody says."""
        said = self.message.said
        return 0 if said is None else said.version or 0

    @property
    def version(self) -> int:
        """What those who wait are told of it."""
        return self.owners or self.lease.version

    def life(self, group: HostGroup) -> Life | None:
        """How long it lives here."""
        message = self.message
        return group.owned_life(message.said, absent=message.absent) if message.picked else group.life(message)

    def answer(self) -> None:
        """Say that all see it."""
        if self.request_id:
            self.connection.send(Changed(1, (), (), False), self.request_id)


class Stores:
    """Puts values into arenas, and tells their flights."""

    def __init__(self, flights: FlightTable, carry_out: Callable[[list[Action]], None]) -> None:
        self._flights = flights
        self._carry_out = carry_out
        self.unsettled: dict[tuple[HostGroup, bytes], Stored] = {}
        """By key: a value, which nobody waits for."""
        self.arriving: dict[int, Delivery] = {}
        """What is being copied, by lease."""
        self._copying: set[asyncio.Task[None]] = set()

    @property
    def copying(self) -> bool:
        """Whether a large value is on its way."""
        return bool(self._copying)

    # ---- Small ones

    def add(self, stored: Stored) -> None:
        """A value that came in a frame."""
        key = stored.lease.flight.key
        if key in self.unsettled:  # its other flight's, one of which asks a peer: neither takes the other's place
            self.settle()
        self.unsettled[key] = stored
        if stored.lease.flight.waiters or stored.request_id:
            self.settle()

    def settle(self) -> None:
        """Store the values that nobody waits for.

        A worker's next miss often comes with its last one's value, in one read; it is answered first, and loads while
        its predecessor is stored.
        """
        unsettled, self.unsettled = self.unsettled, {}
        for (group, key), stored in unsettled.items():
            message, lease = stored.message, stored.lease
            value = message.value
            assert isinstance(value, bytes)
            life = stored.life(group)
            if lease.flight.overtaken:
                pass  # it is for those who asked before the change
            elif message.picked and not message.absent:
                rate = None if message.said is None else message.said.minute_qps
                group.promote(key, value, rate, life, version=lease.version, owners=stored.owners)
            else:
                copy = stored.owners if message.picked else None
                group.put(key, value, life, version=lease.version, absent=message.absent, copy=copy)
            delivery = Delivery(value, version=stored.version, life=life, absent=message.absent)
            self._carry_out(self._flights.value(lease.id, delivery))
            stored.answer()

    # ---- Large ones

    def add_large(self, stored: Stored, fd: int) -> None:
        """A value that came in a memfd, which stays the caller's. Raises ``ProtocolError``."""
        lease, message = stored.lease, stored.message
        group, key = lease.flight.key
        if lease.id in self.arriving:
            raise ProtocolError(f"lease {lease.id}: got a second value, expected one")
        size = message.value
        assert isinstance(size, int)
        memfd.check(fd, size)
        life = stored.life(group)
        rate = None if message.said is None else message.said.minute_qps
        if life is None or (message.picked and not group.admits(len(key) + size, rate)):
            if not lease.flight.overtaken:
                group.drop(key)
            self._carry_out(self._flights.value(lease.id, Delivery(size, fd, version=stored.version, life=life)))
            stored.answer()
            return
        delivery = self.arriving[lease.id] = Delivery(size, os.dup(fd), version=stored.version, life=life)
        task = asyncio.get_running_loop().create_task(self._copy(group, key, stored, delivery, life))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)

    async def _copy(self, group: HostGroup, key: bytes, stored: Stored, delivery: Delivery, life: Life) -> None:
        """Copy a value into the arena, then end its flight: a get in between joins it, and loads nothing."""
        lease, size = stored.lease, delivery.carried
        flight = lease.flight
        assert isinstance(size, int)
        try:
            kept = await group.put_from(
                key,
                delivery.fd,
                size,
                life,
                lambda: not flight.overtaken,
                version=lease.version,
                owners=stored.owners if stored.message.picked else None,
            )
            if not kept and not flight.overtaken:
                group.drop(key)
        except (OSError, BufferError) as error:  # a BufferError: the coordinator ended meanwhile
            logger.error("group %r: a value of %d bytes was not cached: %s", group.name, size, error)
        finally:
            del self.arriving[lease.id]
            try:
                self._carry_out(self._flights.value(lease.id, delivery))
                stored.answer()
            finally:
                os.close(delivery.fd)
