"""A flight that seeks a loader for its guest, and knows a lease that was taken away: each row of the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from flying import K, granted, seek

from mpgroupcache.coordinator.flights import Action, Deliver, Fail, FlightTable, Seek, Waiter
from mpgroupcache.coordinator.transitions import TRANSITIONS, Event, Role


class Scene:
    """``guest`` waits, and ``revoked`` was its loader. The driver is about to say who loads now."""

    def __init__(self) -> None:
        self.table = FlightTable()
        self.flight = seek(self.table, K, "g")
        (self.guest,) = self.flight.waiters
        self.revoked, self.newcomer = Waiter("r"), Waiter("n")
        self.visitor = Waiter("v", guest=True)
        self.lease = granted(self.table.enlist(self.flight, self.revoked)).id
        assert self.table.revoke(self.lease) == [Seek(self.flight)]
        assert (self.flight.state, self.revoked.role) == ("seeking", "revoked")

    def change(self) -> list[Action]:
        self.table.change(K)
        return []

    def replace(self) -> list[Action]:
        self.table.refresh(K, Waiter("another"))
        return []


class Row(NamedTuple):
    """What is told, and how the flight is then, by the names of its waiters."""

    fire: Callable[[Scene], list[Action]]
    tells: type[Deliver | Fail] | None = None
    holder: str = ""
    waiters: tuple[str, ...] = ("guest",)
    revoked: tuple[str, ...] = ("revoked",)
    overtaken: bool = False
    replaced: bool = False


ROWS: dict[tuple[Event, Role], Row] = {
    ("ask", "nobody"): Row(lambda scene: scene.table.ask(K, scene.newcomer), holder="newcomer"),
    ("visit", "nobody"): Row(lambda scene: scene.table.ask(K, scene.visitor), waiters=("guest", "visitor")),
    ("change", "nobody"): Row(Scene.change, overtaken=True),
    ("replace", "nobody"): Row(Scene.replace, replaced=True),
    ("cancel", "guest"): Row(lambda scene: scene.table.cancel(scene.guest), waiters=()),
    ("lose", "guest"): Row(lambda scene: scene.table.lose("g"), waiters=()),
    ("enlist", "nobody"): Row(lambda scene: scene.table.enlist(scene.flight, scene.newcomer), holder="newcomer"),
    ("no_loader", "nobody"): Row(lambda scene: scene.table.no_loader(scene.flight, "outcome"), Fail),
    ("value", "revoked"): Row(lambda scene: scene.table.value(scene.lease, "outcome"), Deliver),
    ("error", "revoked"): Row(lambda scene: scene.table.error(scene.lease, "outcome"), revoked=()),
    ("return", "revoked"): Row(lambda scene: scene.table.give_back(scene.lease), revoked=()),
    ("revoke", "revoked"): Row(lambda scene: scene.table.revoke(scene.lease)),
    ("cancel", "revoked"): Row(lambda scene: scene.table.cancel(scene.revoked), revoked=()),
    ("lose", "revoked"): Row(lambda scene: scene.table.lose("r"), revoked=()),
}


def test_each_row_is_tested() -> None:
    assert ROWS.keys() == TRANSITIONS["seeking"].keys()


@pytest.mark.parametrize("row", ROWS.values(), ids=list(map(" ".join, ROWS)))
def test_rows(row: Row) -> None:
    scene = Scene()
    actions = row.fire(scene)
    flight, table = scene.flight, scene.table
    assert table.check() == []
    if row.tells is not None:
        assert actions == [row.tells(K, (scene.guest,), "outcome")]
        assert (flight.state, list(flight.waiters), list(flight.revoked)) == ("ended", [], [])
        assert (table.flight(K), table.lease(scene.lease)) == (None, None)
        return
    if row.holder:
        assert granted(actions).holder is getattr(scene, row.holder)
    else:
        assert actions == []
    assert flight.state == ("leased" if row.holder else "seeking")
    assert list(flight.waiters) == [getattr(scene, name) for name in row.waiters]
    assert list(flight.revoked) == [getattr(scene, name) for name in row.revoked]
    assert (table.lease(scene.lease) is not None) == ("revoked" in row.revoked)
    assert flight.overtaken == row.overtaken
    assert flight.replaced == row.replaced
    assert (table.flight(K) is flight) == (not row.overtaken and not row.replaced)


def test_a_loader_that_is_lost_with_a_lease_that_was_taken_from_it() -> None:
    """One owner has both: the flight seeks again when the second one is lost."""
    scene = Scene()
    granted(scene.table.enlist(scene.flight, Waiter("r")))
    assert scene.table.lose("r") == [Seek(scene.flight)]
    assert list(scene.flight.revoked) == []
    assert scene.table.check() == []
