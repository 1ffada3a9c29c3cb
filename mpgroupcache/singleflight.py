"""One call of a function per key, however many threads ask at once (Go: the package ``singleflight``).

For the threads and greenlets of one process: what a group does over all processes, for results that are no bytes. The
flights are those that groups have while there is no coordinator, so cycles through both are found.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from mpgroupcache.errors import LoadError, describe_error
from mpgroupcache.shm._hold import Flights, Hold
from mpgroupcache.worker import drivers
from mpgroupcache.worker.nesting import begin_load, end_load, held
from mpgroupcache.worker.port import check_circle
from mpgroupcache.worker.process import current
from mpgroupcache.worker.waits import Blocking, Steps

T = TypeVar("T")


class Group:
    """A namespace of keys (Go: ``singleflight.Group``)."""

    __slots__ = ("__weakref__",)

    def __repr__(self) -> str:
        return f"<singleflight.Group at {id(self):#x}>"

    def do(self, key: Hashable, fn: Callable[[], T]) -> T:
        """Return what ``fn`` returns, called in one of the threads that ask for ``key`` now (Go: ``Group.Do``).

        All of them get the same object. What ``fn`` raises reaches the thread that called it; the others get a
        ``LoadError`` with that as its cause. Where it is left by what is no ``Exception`` (``SystemExit``,
        ``GreenletExit``), the next of them calls its own ``fn``: in Go they would wait for ever. Nothing is kept: who
        asks later calls again. ``LoadCycleError``: ``fn`` asks for its own key, which in Go never ends.
        """
        value: T = drivers.run(_share, current().flights, (self, key), fn)
        return value


def _share(hold: Hold, flights: Flights, place: Hashable, fn: Callable[[], T]) -> Steps[T]:
    seat = hold.board(flights, place, 0, held())
    if not seat.leads:
        check_circle(seat)
        yield seat
    if not seat.leads:
        shared, failure = seat.outcome
        if failure is not None:
            raise LoadError(*describe_error(failure)) from failure
        return cast(T, shared)
    try:
        token = begin_load(seat)
        try:
            value: T = yield Blocking(fn, ())
        finally:
            end_load(token)
    except Exception as error:
        seat.settle((None, error))
        raise
    seat.settle((value, None))
    return value
