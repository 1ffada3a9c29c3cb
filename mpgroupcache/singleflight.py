"""One call of a function per key, however many threads ask at once (Go: the package ``singleflight``).

For the threads and greenlets of one process: what a group does over all processes, for results that are no bytes. The
flights are those that groups have while there is no coordinator, so cycles through both are found.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from mpgroupcache.worker.alone import Delivered
from mpgroupcache.worker.leases import LocalLease
from mpgroupcache.worker.process import current

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
        flights = current().alone
        waiter, future = flights.ask((self, key))
        try:
            outcome = future.result()
        except BaseException:
            flights.cancel(waiter)
            raise
        if isinstance(outcome, Delivered):
            return cast(T, outcome.value)
        lease = LocalLease(flights, outcome)
        try:
            with lease.loading():
                value = fn()
        except BaseException as error:
            lease.end(error)
            raise
        flights.store(outcome, value)
        return value
