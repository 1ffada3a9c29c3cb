"""Asks of a table of flights, each with the one outcome that a test begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpgroupcache.coordinator.flights import Action, Fetch, Flight, FlightTable, Grant, Lease, Seek, Waiter

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

K = (1, b"cat.jpg")


def granted(actions: Sequence[Action]) -> Lease:
    """The lease of the one action that there must be."""
    [action] = actions
    assert isinstance(action, Grant)
    assert action.lease.holder is action.waiter
    return action.lease


def load(table: FlightTable, key: Hashable, owner: Hashable = "worker", held: tuple[int, ...] = ()) -> Lease:
    """Ask for a key that nobody loads."""
    return granted(table.ask(key, Waiter(owner, held)))


def join(table: FlightTable, key: Hashable, owner: Hashable = "worker", held: tuple[int, ...] = ()) -> Waiter:
    """Ask for a key that somebody loads."""
    waiter = Waiter(owner, held)
    assert table.ask(key, waiter) == []
    return waiter


def fetch(table: FlightTable, key: Hashable, owner: Hashable = "worker", held: tuple[int, ...] = ()) -> Flight:
    """Ask for a key of a peer's that nobody fetches."""
    [action] = table.ask(key, Waiter(owner, held), "peer")
    assert isinstance(action, Fetch)
    assert action.flight.peer == "peer"
    return action.flight


def seek(table: FlightTable, key: Hashable, owner: Hashable = "guest") -> Flight:
    """Ask as a guest for a key that nobody loads."""
    [action] = table.ask(key, Waiter(owner, guest=True))
    assert isinstance(action, Seek)
    return action.flight


def assert_nothing_left(table: FlightTable) -> None:
    assert table.check() == []  # which tells of leases and owners that no flight knows
    assert repr(table) == "<FlightTable: 0 flights, 0 callers>"
    assert len(table) == 0
    assert table.live_leases() == []
