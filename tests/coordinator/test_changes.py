"""Changes as the coordinator does them, spoken by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
from workers import Daemon, HandWorker

from mpgroupcache.ages import AGELESS
from mpgroupcache.coordinator.changes import Changes
from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.flights import FlightTable
from mpgroupcache.coordinator.hostgroups import Groups, HostGroup
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.coordinator.stores import Stores
from mpgroupcache.ipc.messages import Change, Changed, Store
from mpgroupcache.shm._control import Control
from mpgroupcache.worker.changes import FOREVER_NS

WHATS: list[Literal["remove", "clear"]] = ["remove", "clear"]


@pytest.mark.parametrize("what", WHATS)
def test_it_is_no_news_of_nothing_where_a_value_has_just_come(
    start_coordinator: Callable[..., Daemon], what: Literal["remove", "clear"]
) -> None:
    """1. A value that nobody waits for comes; it is not stored yet. 2. The change comes in the same read."""
    with contextlib.closing(HandWorker(start_coordinator().socket)) as worker:
        group = worker.declare()
        change = Change(group, what, (b"k",) if what == "remove" else (), (), None, None, None, 0, None, FOREVER_NS)
        store = Store(worker.lease(group, b"k"), b"v", False, 0.0, None, None, False)
        worker.send_together(store, change)
        assert worker.receive() == Changed(int(what == "remove"), (), (), False)
        assert worker.ask(change) == Changed(0, (), (), True)


class Noting:
    """A group with an arena, the control segment and a connection: in which order a change comes to them."""

    id, name, loads, items, cache_bytes = 1, "g", False, 1, 1 << 20
    ages = AGELESS
    life = HostGroup.life

    def __init__(self) -> None:
        self.clears = 0
        self.noted: list[str] = []
        self.arena = self

    def raise_changes(self, _group: int) -> None:
        self.noted.append("count")

    def count(self, *_counted: int) -> None:
        """One of its counters."""

    def find(self, _key: bytes) -> None:
        """Nothing is there."""

    def put(self, *_value: Any) -> bool:
        self.noted.append("arena")
        return True

    def remove(self, _key: bytes) -> bool:
        self.noted.append("arena")
        return True

    def clear(self) -> None:
        self.noted.append("arena")

    def send(self, *_answer: Any) -> None:
        self.noted.append("answer")


def changes_of(noting: Noting) -> Changes:
    flights = FlightTable()
    return Changes(
        cast("Groups", {1: noting}),
        cast("Control", noting),
        cast("Peering", None),
        cast("Roster", [noting]),
        flights,
        Stores(flights, lambda actions: None),
    )


@pytest.mark.parametrize("what", ["remove", "set", "add", "incr", "clear"])
def test_who_sees_a_change_sees_its_count(what: Any) -> None:
    """Else one who finds the old value gone would find the old count still, and share a load from before."""
    noting = Noting()
    keys = () if what == "clear" else (b"k",)
    values = (b"v",) if what in ("set", "add") else ()
    change = Change(1, what, keys, values, None, None, None, 1, 1, FOREVER_NS)
    changes_of(noting).hear(cast("Connection", noting), 1, change)
    assert noting.noted == ["count", "arena", "answer"]


def test_who_asks_after_a_refresh_has_begun_shares_no_load_from_before() -> None:
    noting = Noting()
    changes_of(noting).begin_refresh(cast("HostGroup", noting), b"k")
    assert noting.noted == ["count"]
