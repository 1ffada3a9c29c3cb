"""Changes as the coordinator does them, spoken by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
from arenas import Instance, OpenArena
from workers import Daemon, HandWorker

from mpgroupcache.ages import AGELESS
from mpgroupcache.coordinator import hostgroups
from mpgroupcache.coordinator.changes import Changes
from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.flights import FlightTable
from mpgroupcache.coordinator.hostgroups import Groups, HostGroup
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.coordinator.stores import Stores
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.fields import INLINE_BYTES
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
        store = Store(worker.lease(group, b"k"), b"v", False, None, None, None, False)
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

    def note_clear(self, _group: int) -> None:
        """What is counted until then."""

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


class Answering:
    """A worker's connection, over which one large value has come."""

    def __init__(self, value: bytes) -> None:
        self._fd = memfd.make(value)
        self.answers: dict[int, Any] = {}

    def claim(self, _message: Change) -> int:
        return self._fd

    def send(self, answer: Any, request_id: int) -> None:
        self.answers[request_id] = answer


def change(what: Any, *values: bytes | int, version: int | None = None) -> Change:
    """One of ``k``, or of all keys."""
    keys = () if what == "clear" else (b"k",)
    return Change(0, what, keys, values, None, None, version, 1, 1, FOREVER_NS)


MEANWHILE: dict[str, tuple[Change, ...]] = {
    "nothing": (),
    "remove": (change("remove"),),
    "set": (change("set", b"other"),),
    "add": (change("add", b"other"),),
    "remove and add": (change("remove"), change("add", b"other")),
    "set and remove": (change("set", b"other"), change("remove")),
    "incr": (change("incr"),),
    "touch": (change("touch"),),
    "clear": (change("clear"),),
    "clear and set": (change("clear"), change("set", b"other")),
    "set and clear": (change("set", b"other"), change("clear")),
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "a value there"])
@pytest.mark.parametrize("what", ["add", "set", "set on a condition"])
def test_a_large_value_comes_after_all_that_was_changed_while_it_was_copied(
    instance: Instance,
    arena: Callable[..., OpenArena],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    there: bool,
    meanwhile: str,
) -> None:
    """Its condition is looked at then, too: what has returned true is there, and nothing that was there before it."""
    monkeypatch.setattr(hostgroups, "COPY_STEP", INLINE_BYTES)
    opened, value = arena(1 << 20), bytes(range(256)) * (2 * INLINE_BYTES // 256) + b"end"
    group = HostGroup(opened.group, "g", 1 << 20, None, False, loads=False, arena=opened.arena)
    flights = FlightTable()
    changes = Changes(
        cast("Groups", {0: group}),
        instance.control,
        cast("Peering", None),
        cast("Roster", ()),
        flights,
        Stores(flights, lambda actions: None),
    )
    version = None
    if there:
        opened.arena.put(b"k", b"1")
    if what == "set on a condition":
        version = opened.arena.find(b"k").version if there else 1  # type: ignore[union-attr]
    worker = Answering(value)

    async def run() -> bytes | None:
        changes.hear(cast("Connection", worker), 1, change(what[:3], len(value), version=version))
        await asyncio.sleep(0)
        assert changes.copying
        for number, other in enumerate(MEANWHILE[meanwhile], 2):
            changes.hear(cast("Connection", worker), number, other)
        before = opened.arena.find(b"k")
        left, number = (None, 0) if before is None else (bytes(before.value), before.version)
        while changes.copying:
            await asyncio.sleep(0)
        takes_effect = {"add": left is None, "set": True}.get(what, number == version)
        assert worker.answers[1] == Changed(int(takes_effect), (), (), False)
        return value if takes_effect else left

    expected = asyncio.run(run())
    assert opened.get(b"k") == expected
    assert opened.arena.check() == []
