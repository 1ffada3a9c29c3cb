"""Where a miss asks for its key: one port, with the coordinator behind it, or nobody.

The callers of one process share their asks in any case (the seats of a flight, miss.py). Of them one asks the port:
the coordinator tells it what another process has, or grants it the lease. Where there is none, the lease is its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Protocol

from mpgroupcache.ages import FOREVER, fresh_here
from mpgroupcache.errors import LoadCycleError, describe_cycle
from mpgroupcache.product import Product
from mpgroupcache.shm._hold import Hold, Seat
from mpgroupcache.shm._view import ByteView, loaded_view
from mpgroupcache.worker import config
from mpgroupcache.worker.kept import MOST, SHARE, Kept
from mpgroupcache.worker.nesting import find_circle
from mpgroupcache.worker.waits import Request

if TYPE_CHECKING:
    from mpgroupcache.ages import Ages
    from mpgroupcache.worker.channel import Channel


class Port(Protocol):
    """What a miss asks. Every answer to `ask` is an ipc message: LEASE, VALUE, HIT or FAILED."""

    @property
    def channel(self) -> Channel | None:
        """Over which it is asked."""

    def place(self, group: str, key: bytes, here: bool, picked: bool, held: tuple[Seat, ...]) -> Hashable:
        """Which flight of this process a caller joins: those who may have each other's answers have one place."""

    def join(self, seat: Seat) -> None:
        """A caller is about to wait in its flight. Raises ``LoadCycleError``."""

    def ask(self, hold: Hold, group: str, seat: Seat, key: bytes, copy: bool, here: bool) -> Request | None:
        """Ask for a key. None: the caller has the lease. Dropping the request gives up, and a lease granted to it."""

    def end(self, request: Request | None, seat: Seat, result: Product | Exception | None) -> None:
        """End a seat's lease: with what was loaded, the error for its waiters, or nothing: the next one loads."""


class Sized(Protocol):
    """What is asked of a group here."""

    cache_bytes: int
    ages: Ages


class Alone:
    """No coordinator: whoever leads a flight of this process loads, and what was loaded is kept here for a while."""

    channel: Channel | None = None

    def __init__(self, groups: Mapping[str, Sized]) -> None:
        """``groups``: by name, those that may be asked for."""
        self._groups = groups
        self._kept: dict[str, Kept] = {}

    def find(self, group: str, key: bytes, changes: int) -> ByteView | None:
        """What is kept of a key, if it is of this count of changes."""
        if (kept := self._kept.get(group)) is None or (found := kept.find(key, changes)) is None:
            return None
        value, fresh = found
        return loaded_view(value, None, None if fresh == FOREVER else fresh)

    def clear(self) -> None:
        """There is a coordinator: nothing is kept here any more."""
        for kept in list(self._kept.values()):
            kept.clear()

    def place(self, group: str, key: bytes, here: bool, picked: bool, held: tuple[Seat, ...]) -> Hashable:
        # Who will not wait for a peer does not join whoever asks one.
        return group, key, not picked

    def join(self, seat: Seat) -> None:
        check_circle(seat)

    def ask(self, hold: Hold, group: str, seat: Seat, key: bytes, copy: bool, here: bool) -> None:
        return None

    def end(self, request: Request | None, seat: Seat, result: Product | Exception | None) -> None:
        """Nobody else is to be told."""
        if not isinstance(result, Product) or result.absent or seat.flight.changes < 0:
            return
        name, key, *_ = seat.flight.key
        if (fresh := fresh_here(self._groups[name].ages, result)) <= 0:
            return
        if (kept := self._kept.get(name)) is None:
            most = min(self._groups[name].cache_bytes // SHARE, MOST)
            kept = self._kept.setdefault(name, Kept(most, config.keep_alone()))
        kept.keep(key, result.value, seat.flight.changes, fresh)


def check_circle(seat: Seat) -> None:
    """Leave the seat with a ``LoadCycleError`` if its flight waits for a load that the caller is in."""
    if seat.held and not seat.leads and (circle := find_circle(seat)) is not None:
        seat.leave()
        raise LoadCycleError(describe_cycle([key[:2] for key in circle]))  # type: ignore[index]
