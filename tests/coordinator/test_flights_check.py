"""What ``check`` tells of a table of flights: each kind of damage, and no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flying import fetch, join, load, seek

from mpgroupcache.coordinator.flights import PICKED, Flight, FlightTable, Lease, Waiter


class Scene:
    """A flight that loads, inside another one; one that seeks a loader; one that asks a peer; one whose holder does.

    And one that a change has overtaken.
    """

    def __init__(self) -> None:
        self.table = FlightTable()
        self.outer = load(self.table, "outer", "a")
        self.lease = load(self.table, "k", "a", (self.outer.id,))
        self.waiter = join(self.table, "k", "b")
        self.seeking = seek(self.table, "sought")
        self.fetching = fetch(self.table, "far", "c")
        self.table.ask("picked", Waiter("d"), PICKED)
        self.overtaken = seek(self.table, "changed", "e")
        self.table.change("changed")
        self.spare = Lease(99, self.lease.flight, self.lease.holder)

    def move(self) -> None:
        flights = self.table._flights
        flights["elsewhere"] = flights.pop("sought")

    def own_nothing(self) -> None:
        self.table._owners["nobody"] = {}


def unlease(flight: Flight) -> None:
    flight.lease = None


def leases_of(flight: str, key: str, count: int, expected: dict[str, int]) -> str:
    return f"{flight} under {key!r} has {count} live leases, expected {expected}"


K = "Flight(key='k', state='leased')"
SOUGHT = "Flight(key='sought', state='seeking')"
CHANGED = "Flight(key='changed', state='seeking')"
FAR = "Flight(key='far', state='fetching')"
HERE, THERE = {"leased": 1, "seeking": 0}, {"fetching": 0}
HOLDER = "Waiter(owner='a', held=(1,), request=None)"
OUTER = "Lease(id=1, flight=Flight(key='outer', state='leased'), holder=Waiter(owner='a', held=(), request=None))"

DAMAGE: dict[str, tuple[Callable[[Scene], object], list[str]]] = {
    "none": (lambda scene: None, []),
    "a flight under another key": (Scene.move, [leases_of(SOUGHT, "elsewhere", 0, HERE)]),
    "overtaken in reach": (
        lambda scene: setattr(scene.seeking, "overtaken", True),
        [f"{SOUGHT} is overtaken, and in reach"],
    ),
    "out of reach, and not overtaken": (
        lambda scene: setattr(scene.overtaken, "overtaken", False),
        ["flights out of reach: got 0 that are replaced, expected those not overtaken"],
    ),
    "an overtaken one's waiter of another flight": (
        lambda scene: setattr(next(iter(scene.overtaken.waiters)), "flight", scene.seeking),
        [f"Waiter(owner='e', held=(), request=None) is not of {CHANGED}"],
    ),
    "no lease": (
        lambda scene: unlease(scene.lease.flight),
        [
            leases_of(K, "k", 0, HERE),
            "known leases: got [1, 2, 3], expected [1, 3]",
            "owned waiters: got 7, expected 6, those in flights",
            f"{OUTER}: got 1 asks, expected 0",
        ],
    ),
    "a lease of one that seeks": (
        lambda scene: setattr(scene.seeking, "lease", scene.spare),
        [leases_of(SOUGHT, "sought", 1, HERE), f"{HOLDER} is not of {SOUGHT}"],
    ),
    "a lease of one that asks a peer": (
        lambda scene: setattr(scene.fetching, "lease", scene.spare),
        [leases_of(FAR, "far", 1, THERE), f"{HOLDER} is not of {FAR}"],
    ),
    "a waiter of another flight": (
        lambda scene: setattr(scene.waiter, "flight", scene.seeking),
        [f"Waiter(owner='b', held=(), request=None) is not of {K}"],
    ),
    "a lease that nobody has": (
        lambda scene: scene.table._leases.update({99: scene.spare}),
        ["known leases: got [1, 2, 3, 99], expected [1, 2, 3]"],
    ),
    "a waiter that nobody owns": (
        lambda scene: scene.table._owners.pop("b"),
        ["owned waiters: got 6, expected 7, those in flights"],
    ),
    "an owner of nothing": (Scene.own_nothing, ["an owner without waiters is kept"]),
    "a lease that nobody waits through": (
        lambda scene: scene.outer.asks.clear(),
        [f"{OUTER}: got 0 asks, expected 1"],
    ),
}


@pytest.mark.parametrize(("damage", "faults"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_told(damage: Callable[[Scene], object], faults: list[str]) -> None:
    scene = Scene()
    damage(scene)
    assert scene.table.check() == faults


def test_who_lost_a_lease_waits_through_none() -> None:
    """And its own flight does not hang on it: a revoked lease has no asks, and is in none."""
    scene = Scene()
    scene.table.revoke(scene.lease.id)
    assert (scene.lease.holder.role, scene.waiter.role) == ("revoked", "holder")
    assert scene.outer.asks == {}
    assert scene.table.check() == []
    scene.table.revoke(scene.outer.id)
    assert scene.table.check() == []
