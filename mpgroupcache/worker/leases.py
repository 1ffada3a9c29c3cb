"""The leases that this process holds: from the coordinator, or from its own flights while there is none.

However a load ends, ``store`` or ``end`` is called, and with it the lease is over: what is called later is nothing.
"""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from typing import Protocol

from mpgroupcache.errors import CoordinatorUnavailable, describe_error
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.messages import INLINE_BYTES, Fail, Fetched, Message, Return, Store
from mpgroupcache.pickers import PeerAnswer
from mpgroupcache.shm._view import ByteView
from mpgroupcache.worker.alone import LocalFlights, held_alone
from mpgroupcache.worker.channel import Channel

held_leases: ContextVar[tuple[int, ...]] = ContextVar("mpgroupcache_held_leases", default=())
"""The coordinator's leases that the running code loads for, outermost first: an ASK names them, so cycles are found."""


class HeldLease(Protocol):
    """A lease that somebody in this process is to load for."""

    def store(self, value: bytes, answer: PeerAnswer | None = None) -> ByteView:
        """End the lease with its value, and return the holder's own view of it. ``answer``: which the value is from."""

    def end(self, error: BaseException) -> None:
        """End the lease without a value.

        An ``Exception`` is the key's own failure, and every waiter's. Anything else (``SystemExit``, ``GreenletExit``,
        a cancellation) says nothing about the key: the next waiter loads.
        """

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """Name this lease in what the loader asks for."""


class SharedLease:
    """A lease of the coordinator's."""

    __slots__ = ("_channel", "_id")

    def __init__(self, channel: Channel, lease: int) -> None:
        self._channel = channel
        self._id = lease

    def store(self, value: bytes, answer: PeerAnswer | None = None) -> ByteView:
        if len(value) <= INLINE_BYTES:
            self._tell(self._message(value, answer))
            return ByteView(value)
        try:
            fd = memfd.make(value)
        except OSError:  # out of descriptors or memory: the next waiter may do better
            self.give_back()
            return ByteView(value)
        try:
            self._tell(self._message(len(value), answer), fd)
        finally:
            os.close(fd)
        return ByteView(value)

    def _message(self, value: bytes | int, answer: PeerAnswer | None) -> Message:
        return Store(self._id, value) if answer is None else Fetched(self._id, value, answer.minute_qps)

    def end(self, error: BaseException) -> None:
        self._tell(Fail(self._id, *describe_error(error)) if isinstance(error, Exception) else Return(self._id))

    def give_back(self) -> None:
        """End the lease without a load."""
        self._tell(Return(self._id))

    def loading(self) -> contextlib.AbstractContextManager[None]:
        return _Named(held_leases, self._id)

    def _tell(self, message: Message, fd: int = -1) -> None:
        # A coordinator that is gone has lost the lease with the connection, and passed it on.
        try:  # noqa: SIM105 - suppress() costs as much as the frame
            self._channel.send(message, fd=fd)
        except CoordinatorUnavailable:
            pass


class LocalLease:
    """A lease of this process's own flights."""

    __slots__ = ("_flights", "_id")

    def __init__(self, flights: LocalFlights, lease: int) -> None:
        self._flights = flights
        self._id = lease

    def store(self, value: bytes, answer: PeerAnswer | None = None) -> ByteView:
        self._flights.store(self._id, value)
        return ByteView(value)

    def end(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self._flights.fail(self._id, error)
        else:
            self._flights.give_back(self._id)

    def loading(self) -> contextlib.AbstractContextManager[None]:
        return _Named(held_alone, self._id)


class _Named:
    """Names a lease while its loader runs. A class, since a generator's context costs four times as much."""

    __slots__ = ("_lease", "_token", "_variable")

    def __init__(self, variable: ContextVar[tuple[int, ...]], lease: int) -> None:
        self._variable = variable
        self._lease = lease

    def __enter__(self) -> None:
        self._token = self._variable.set((*self._variable.get(), self._lease))

    def __exit__(self, *_exc_info: object) -> None:
        self._variable.reset(self._token)
