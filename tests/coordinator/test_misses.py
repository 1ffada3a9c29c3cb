"""The driver of the host's flights, with workers and a group that the test plays."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from mpgroupcache.ages import AGELESS
from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.hostgroups import HostGroup, Life
from mpgroupcache.coordinator.liveness import Liveness
from mpgroupcache.coordinator.misses import Misses
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.messages import Ask, Lease, Message, Origin, Store, Value
from mpgroupcache.shm._control import Control

SIZE = 100_000


class Worker:
    """A worker's connection, which keeps what is sent on it."""

    def __init__(self, misses: Misses, name: bytes) -> None:
        self.worker = name
        self.pid = 1
        self.sent: list[tuple[int, Message]] = []
        self._misses = misses
        self._fd = -1

    def send(self, message: Message, request_id: int = 0, fd: int = -1) -> None:
        self.sent.append((request_id, message))

    def claim(self, _: Message) -> int:
        return os.dup(self._fd)

    def say(self, request_id: int, message: Message, fd: int = -1) -> None:
        self._fd = fd
        self._misses.handlers[type(message)](cast(Connection, self), request_id, message)


class Group:
    """A group whose arena takes its time for a large value."""

    name = "group"
    picks = False
    arena = None
    load_timeout = 1.0
    life = HostGroup.life
    ages = AGELESS

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.versions = itertools.count(1)

    def new_version(self) -> int:
        return next(self.versions)

    async def put_from(
        self, key: bytes, fd: int, size: int, life: Life, may_publish: Callable[[], bool], *, version: int, hot: bool
    ) -> bool:
        await self.go.wait()
        return may_publish()


def drive(group: Group) -> tuple[Misses, Worker, Worker, int]:
    """A driver, two workers of which the first has the lease of a key and the other waits, and that lease."""
    groups: Any = {0: group}
    workers = Roster()
    peering: Any = SimpleNamespace(ring=None)
    misses = Misses(groups, cast(Control, None), peering, workers, Liveness(workers, 60.0))
    a, b = Worker(misses, b"a"), Worker(misses, b"b")
    a.say(1, Ask(0, b"k", (), True, False, "get"))
    ((_, lease),) = a.sent
    assert isinstance(lease, Lease)
    b.say(2, Ask(0, b"k", (), True, False, "get"))
    assert b.sent == []
    return misses, a, b, lease.lease


def test_a_lease_that_is_over_its_time_goes_to_the_next_waiter() -> None:
    misses, _, b, lease = drive(Group())
    misses.watch_leases(time.monotonic())
    assert b.sent == []
    misses.watch_leases(time.monotonic() + 10.0)
    assert b.sent == [(2, Lease(lease + 1, 2))]


def test_a_lease_whose_value_is_being_copied_is_not_taken_away() -> None:
    """1. A stores a large value. 2. While it is copied, A's time is over. 3. Nobody loads again: B has it."""

    async def run() -> None:
        group = Group()
        misses, a, b, lease = drive(group)
        fd = memfd.make(bytes(SIZE))
        a.say(0, Store(lease, SIZE, False, None, None, None, False), fd)
        os.close(fd)
        misses.watch_leases(time.monotonic() + 10.0)
        assert b.sent == []
        group.go.set()
        while misses.under_way:
            await asyncio.sleep(0)
        assert b.sent == [(2, Value(SIZE, Origin.FLIGHT, 1, None))]

    asyncio.run(run())
