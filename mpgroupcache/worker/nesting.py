"""Which loads the running code is in, and whether one would wait for itself.

While there is a coordinator it looks for cycles: an ASK names the leases that its caller holds. Without one the cycle
is in this process, and is found here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar, Token

from mpgroupcache.shm._hold import Seat

_seats: ContextVar[tuple[Seat, ...]] = ContextVar("mpgroupcache_held", default=())


def held() -> tuple[Seat, ...]:
    """The seats whose loads the running code is in, outermost first."""
    seats = _seats.get()
    # One that was struck while it named its seat has left it named.
    return tuple([seat for seat in seats if seat.leads]) if seats else seats


def begin_load(seat: Seat) -> Token[tuple[Seat, ...]]:
    """The running code is in this seat's load, until ``end_load``."""
    return _seats.set((*seat.held, seat))


def begin_loads(seats: Sequence[Seat]) -> Token[tuple[Seat, ...]]:
    """The running code is in the loads of all of these, of one caller, until ``end_load``."""
    return _seats.set((*seats[0].held, *seats))


def end_load(token: Token[tuple[Seat, ...]]) -> None:
    """It has left it. One that is dropped half way, since its driver was struck, ends wherever that comes about."""
    try:  # noqa: SIM105 - suppress() costs as much as all the rest of this
        _seats.reset(token)
    except ValueError:
        pass


def find_circle(seat: Seat) -> list[object] | None:
    """The keys round the circle that closes if ``seat``'s caller waits in its flight; None: it closes none.

    1. A's loader asks for B: A waits for B. 2. B's loader asks for A, in another thread. Nobody would ever go on.
    The way is gone backwards, from the loads that the caller is in to those that wait for them: breadth first, so that
    the shortest circle is named.
    """
    leader = seat.flight.leader
    before: dict[Seat, Seat | None] = dict.fromkeys(seat.held)  # and which load each of them waits for
    queue = deque(before)
    while queue:
        reached = queue.popleft()
        if reached is leader:
            return _keys(seat, reached, before)
        for waiting in reached.flight.waiting:
            for waits in waiting.held:
                if waits not in before and waits.leads:
                    before[waits] = reached
                    queue.append(waits)
    return None


def _keys(seat: Seat, leader: Seat, before: dict[Seat, Seat | None]) -> list[object]:
    """From the load of the caller's that closes the circle, by those inside it, to the leader's, and back."""
    way = [leader]
    while (following := before[way[-1]]) is not None:
        way.append(following)
    closing = way.pop()
    inner = seat.held[seat.held.index(closing) :]
    return [member.flight.key for member in (*inner, *way)]
