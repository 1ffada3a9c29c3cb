"""What a table of flights (flights.py) has its driver do."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

from mpgroupcache.coordinator.waiters import Flight, Lease, Waiter


class Fetch(Struct, frozen=True):
    """Ask the flight's peer, and tell how that ended: ``fetched``, ``refused`` or ``unreached``."""

    flight: Flight


class Seek(Struct, frozen=True):
    """Find a loader for the flight, and tell at once: ``enlist`` or ``no_loader``."""

    flight: Flight


class Grant(Struct, frozen=True):
    """Tell the waiter to load."""

    waiter: Waiter
    lease: Lease


class Deliver(Struct, frozen=True):
    """Publish the value, but of an overtaken flight, and answer the waiters (there may be none) with it."""

    key: Any
    waiters: tuple[Waiter, ...]
    value: Any
    overtaken: bool = False


class Fail(Struct, frozen=True):
    """Answer the waiters (there may be none) with the error."""

    key: Any
    waiters: tuple[Waiter, ...]
    error: Any
    overtaken: bool = False


class Cycle(Struct, frozen=True):
    """Tell the waiter that each key's load waits for the next one's, and the last one's for the first's."""

    waiter: Waiter
    keys: tuple[Any, ...]


Action: TypeAlias = Fetch | Seek | Grant | Deliver | Fail | Cycle
