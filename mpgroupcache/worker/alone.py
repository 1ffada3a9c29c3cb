"""Flights of one process: of its groups while there is no coordinator, uncached but each key once at a time, and those
of ``singleflight``.

The same state machine as the coordinator's, driven by this process's threads, greenlets and tasks.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TypeAlias

from mpgroupcache.errors import LoadCycleError, LoadError, describe_error
from mpgroupcache.ipc.flights import (
    PICKED,
    Action,
    Cycle,
    Deliver,
    Fail,
    FlightTable,
    Grant,
    Waiter,
    describe_cycle,
)

P = ParamSpec("P")

held_alone: ContextVar[tuple[int, ...]] = ContextVar("mpgroupcache_held_alone", default=())
"""The process's own leases that the running code loads for, outermost first."""


class Delivered(NamedTuple):
    """What another caller's load brought."""

    value: Any


Outcome: TypeAlias = int | Delivered
"""Of an ask: a lease, whose holder is to load, or the value."""


class LocalFlights:
    """The flights of one process. Keys are pairs of a group, or its name, and what it is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A child that is forked inside a loader goes on with its parent's `held_alone`: those are not its own leases.
        self._table = FlightTable(secrets.randbits(62))

    def ask(self, key: Hashable, *, away: bool = False) -> tuple[Waiter, Future[Outcome]]:
        """Join the flight of ``key``, or open one. The future raises ``LoadError`` or ``LoadCycleError``.

        ``away``: whoever gets the lease will ask a peer; others do not wait for such a flight.
        """
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # asyncio would cancel it, and whoever loads could not set its result
        waiter = Waiter(owner=self, held=held_alone.get(), request=future)
        self._drive(self._table.ask, key, waiter, PICKED if away else None, here=not away)
        return waiter, future

    def cancel(self, waiter: Waiter) -> None:
        """The caller gave up; a lease that it was given meanwhile goes to the next."""
        self._drive(self._table.cancel, waiter)

    def store(self, lease: int, value: Any) -> None:
        """The holder of a lease has the value."""
        self._drive(self._table.value, lease, value)

    def fail(self, lease: int, error: Exception) -> None:
        """The loader of a lease raised."""
        self._drive(self._table.error, lease, error)

    def give_back(self, lease: int) -> None:
        """The loader of a lease was left without a value or an error."""
        self._drive(self._table.give_back, lease)

    def _drive(self, event: Callable[P, list[Action]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Tell the table of an event and answer callers: not under the lock, since a future runs its callbacks here."""
        with self._lock:
            actions = event(*args, **kwargs)
        _carry_out(actions)


def _carry_out(actions: list[Action]) -> None:
    """Answer the callers."""
    for action in actions:
        match action:
            case Grant(waiter=waiter, lease=lease):
                waiter.request.set_result(lease.id)
            case Deliver(waiters=waiters, value=value):
                for waiter in waiters:
                    waiter.request.set_result(Delivered(value))
            case Fail(waiters=waiters, error=error):
                for waiter in waiters:  # each its own: raising one object in many threads mixes up its tracebacks
                    failed = LoadError(*describe_error(error))
                    failed.__cause__ = error
                    waiter.request.set_exception(failed)
            case Cycle(waiter=waiter, keys=keys):
                waiter.request.set_exception(LoadCycleError(describe_cycle(keys)))
