"""Who waits for what: the records of flights.py, and the search for circles of those who wait for each other."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field  # a record made in C: a dataclass takes five times as long, at several per miss

from mpgroupcache.coordinator.transitions import Role, State


class Waiter(Struct, eq=False):
    """One caller's request for one key. The table sets ``flight`` and ``lease``."""

    owner: Any  # hashable; whose loss is this waiter's loss: a connection, or a token of this process
    held: tuple[int, ...] = ()  # ids of the leases that its caller holds, outermost first; an ask drops stale ones
    request: Any = None  # the driver's own
    guest: bool = False  # cannot load
    many: bool = False  # the driver's own: its caller asks for other keys, too
    flight: Flight | None = None
    lease: Lease | None = None

    @property
    def role(self) -> Role:
        if self.flight is None:
            return "nobody"
        if self.lease is None:
            return "guest" if self.guest else "waiter"
        return "holder" if self.flight.lease is self.lease else "revoked"

    def __repr__(self) -> str:
        return f"Waiter(owner={self.owner!r}, held={self.held!r}, request={self.request!r})"


class Lease(Struct, eq=False):
    id: int  # increasing, never used twice in the life of a table
    flight: Flight
    holder: Waiter
    granted: Any = None  # the driver's own, such as the time of the grant
    version: int = 0  # the driver's own: the number that its value will have
    beside: int = 0  # the driver's own: callers that wait for the holder, and have not asked
    told: Any = None  # the driver's own: when it was said last that it takes long
    asks: dict[Waiter, None] = field(default_factory=dict)  # waiters whose caller holds it

    @property
    def live(self) -> bool:
        return self.flight.lease is self

    def __repr__(self) -> str:
        return f"Lease(id={self.id}, flight={self.flight!r}, holder={self.holder!r})"


class Flight(Struct, eq=False):
    key: Any  # hashable
    state: State = "unleased"
    peer: Any = None  # the driver's own: who is asked for the value, of a fetch; or PICKED
    lease: Lease | None = None
    # In order of arrival. Not a dict, in which finding the first gets slow after many firsts were removed.
    waiters: OrderedDict[Waiter, None] = field(default_factory=OrderedDict)
    revoked: dict[Waiter, None] = field(default_factory=dict)  # their values are still welcome
    sought: int = 0  # the driver's own: how often it has looked for a loader
    replaced: int = 0  # by which refresh: under its key nobody finds it any more; 0: by none
    overtaken: bool = False  # by a change of its key: its value is for its waiters, and is not published

    def __repr__(self) -> str:
        return f"Flight(key={self.key!r}, state={self.state!r})"

    def waits_for(self) -> Iterator[Flight]:
        """Yield the flights that this one's loader, or a loader inside it, waits for."""
        if self.lease is not None:
            yield from (waiter.flight for waiter in self.lease.asks if waiter.flight is not None)


def find_circle(flight: Flight, held: list[Lease]) -> tuple[Hashable, ...] | None:
    """Return the keys round the circle that would close if a caller that holds leases waited for ``flight``, or None.

    1. A's loader asks for B: A waits for B. 2. B's loader, elsewhere, asks for C. 3. C's loader asks for A, which waits
    for B, which waits for C. Nobody is silent, nobody is dead, and none of them would ever end.
    """
    if not held:
        return None
    before: dict[Flight, Flight | None] = {flight: None}  # breadth first, so that the shortest circle is named
    queue = deque(before)
    while queue:
        reached = queue.popleft()
        for at, lease in enumerate(held):
            if lease.flight is reached:
                return (*_nest(held[at:]), *_trail(before, before[reached]))
        for other in reached.waits_for():
            if other not in before:
                before[other] = reached
                queue.append(other)
    return None


def _nest(held: list[Lease]) -> Iterator[Hashable]:
    """Yield the keys of the first of these leases and of those that were taken inside it, one inside the other."""
    last = None
    for lease in held:
        if last is None or last.id in lease.holder.held:
            yield lease.flight.key
            last = lease


def _trail(before: Mapping[Flight, Flight | None], flight: Flight | None) -> list[Hashable]:
    """Return the keys of the flights on the way to ``flight``, and its own."""
    keys = []
    while flight is not None:
        keys.append(flight.key)
        flight = before[flight]
    return keys[::-1]
