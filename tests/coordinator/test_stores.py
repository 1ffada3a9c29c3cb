"""Large values on their way into an arena, and what overtakes them there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from mpgroupcache.ages import AGELESS
from mpgroupcache.coordinator.flights import Deliver, FlightTable, Grant, Waiter
from mpgroupcache.coordinator.hostgroups import COPY_STEP, HostGroup
from mpgroupcache.coordinator.stores import Stored, Stores
from mpgroupcache.ipc.messages import Store
from mpgroupcache.shm._exchange import sealed

if TYPE_CHECKING:
    from mpgroupcache.coordinator.connection import Connection
    from mpgroupcache.coordinator.flights import Action

VALUE = bytes(range(256)) * (3 * COPY_STEP // 256)


class Room(bytearray):
    """A reservation."""

    outcome = ""

    def publish(self) -> bool:
        self.outcome = "published"
        return True

    def abandon(self) -> None:
        self.outcome = "abandoned"


class Group:
    """One whose arena is such a reservation."""

    name, ages = "g", AGELESS
    life, put_from = HostGroup.life, HostGroup.put_from

    def __init__(self) -> None:
        self.arena = self
        self.room = Room()

    def reserve(self, _key: bytes, size: int, **_options: object) -> Room:
        self.room = Room(size)
        return self.room


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_large_value_that_a_change_overtakes_while_it_is_copied_is_not_published(
    overtaken: bool, flights: FlightTable
) -> None:
    """Its waiters have it all the same: they asked before."""
    group = Group()
    named = cast("HostGroup", group), b"k"
    ended: list[Action] = []
    stores = Stores(flights, ended.extend)

    async def copy() -> None:
        [grant] = flights.ask(named, Waiter(object()))
        assert isinstance(grant, Grant)
        fd = sealed(VALUE)
        message = Store(grant.lease.id, len(VALUE), False, None, None, None, False)
        stores.add_large(Stored(grant.lease, message, cast("Connection", None), 0), fd.fileno())
        await asyncio.sleep(0)
        assert stores.copying
        assert not group.room.outcome
        if overtaken:
            flights.change(named)
        while stores.copying:
            await asyncio.sleep(0)

    asyncio.run(copy())
    assert group.room == VALUE
    assert group.room.outcome == ("abandoned" if overtaken else "published")
    assert [type(action) for action in ended] == [Deliver]
