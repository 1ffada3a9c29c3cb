"""What a program may wait for. It yields one of these, and is sent what came of it, or has that thrown into it.

A program is a generator that is told of no thread and no loop: drivers.py waits in a thread or greenlet, loops.py on an
event loop. This list is closed. Beside what is here, a program yields

- a `Request`: it is sent the answer to it. Whoever gives up leaves the request, and that takes it back;
- a `Seat`: it goes on when the seat leads, or is over. Whoever gives up leaves the seat, and another one leads.

What strikes a wait (the caller's deadline, a cancellation, an exception of a signal's handler) is thrown into the
program at its ``yield``. What it has taken by then is in its hold, and ends with that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from mpgroupcache.product import Product
from mpgroupcache.shm._exchange import Request
from mpgroupcache.shm._hold import Hold, Seat

if TYPE_CHECKING:
    from mpgroupcache.worker.channel import Channel

T = TypeVar("T")


class Maker(Protocol):
    """What brings values: a getter, or a peer that was picked."""

    @property
    def is_async(self) -> bool:
        """Whether it is to be awaited: then a program in a thread without a loop cannot have it."""

    def load(self, ctx: Any, key: bytes) -> Product:
        """Bring the value, in this thread."""

    async def load_async(self, ctx: Any, key: bytes) -> Product:
        """Bring the value, on this loop."""


class Make(Struct, frozen=True):
    """Have a maker bring a value: in the thread that waits, on its loop, or from a loop in a thread of ours.

    Nobody gives up: the deadline is put off by the time that it takes.
    """

    maker: Maker
    ctx: Any
    key: bytes


class BatchMaker(Maker, Protocol):
    """Brings many values in one call: of each key a product, or why there is none."""

    def load_many(self, ctx: Any, keys: Sequence[bytes]) -> list[Product | Exception]:
        """In this thread."""

    async def load_many_async(self, ctx: Any, keys: Sequence[bytes]) -> list[Product | Exception]:
        """On this loop."""


class MakeMany(Struct, frozen=True):
    """As `Make`, for many keys."""

    maker: BatchMaker
    ctx: Any
    keys: tuple[bytes, ...]


class Blocking(Struct, frozen=True):
    """Call what blocks. A loop has a thread do it; whoever gives up leaves that to its end."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


CONNECTING: Final = "this process connects to its coordinator; that goes on"  # what a deadline may pass in


class Attempt:
    """A try to reach the coordinator, which one thread makes and any number of callers wait for, each as he will."""

    def __init__(self, began: float) -> None:
        """``began``: of ``time.monotonic()``."""
        self.began = began
        self.over = False
        self._wakes: list[Callable[[], object]] = []

    def wake_with(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called when it is over; maybe twice."""
        self._wakes.append(wake)
        if self.over:  # else `end` meets it in the list
            _rouse(wake)

    def end(self) -> None:
        """It is over, however it went: whoever waits looks for himself."""
        self.over = True
        for wake in self._wakes:
            _rouse(wake)


def _rouse(wake: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # a lock that was released already
        wake()


class Until(Struct, frozen=True):
    """Wait until an attempt is over, but not longer than to ``moment`` (of ``time.monotonic()``)."""

    attempt: Attempt
    moment: float | None


class Flush(Struct, frozen=True):
    """Wait until the channel's socket has taken what was sent. The deadline ends that, too, and raises nothing."""

    channel: Channel


class Apart(Struct, frozen=True):
    """Run another program, which goes on when this one's caller goes. It has what this one holds."""

    program: Callable[..., Generator[Any, Any, Any]]
    arguments: tuple[Any, ...]


Wait: TypeAlias = Request | Seat | Make | MakeMany | Blocking | Until | Flush | Apart

Steps: TypeAlias = Generator[Wait, Any, T]
"""A program under way. A program is a function of its `Hold`, and what it is about."""

__all__ = [
    "CONNECTING",
    "Apart",
    "Attempt",
    "BatchMaker",
    "Blocking",
    "Flush",
    "Hold",
    "Make",
    "MakeMany",
    "Maker",
    "Request",
    "Seat",
    "Steps",
    "Until",
    "Wait",
]
