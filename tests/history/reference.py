"""A cache that keeps the contract, in a hundred lines, and broken ones. What tells them apart is fit to judge another.

A store is a dict behind a lock: the coordinator and its memory. A cache is a process's part of it: it runs loaders, and
shares what they load among its own callers. Stores can be served to other processes.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future
from multiprocessing.managers import BaseManager
from typing import Any, NamedTuple

from record import Found, Load

PAUSE = 0.0002  # s; what lies between the two steps of who should take one


class Mark(NamedTuple):
    """When a load began."""

    changes: int
    """How often the key had been changed."""
    number: int


class Store:
    """Values, versions, and a count of changes for each key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Found] = {}
        self._changes: dict[str, int] = {}
        self._refreshed: dict[str, int] = {}
        self._clears = 0
        self._numbers = itertools.count(1)

    def find(self, key: str) -> tuple[Found | None, Mark]:
        """What is there, and the mark of a load that begins now."""
        with self._lock:
            return self._values.get(key), Mark(self._count(key), next(self._numbers))

    def _count(self, key: str) -> int:
        return self._changes.get(key, 0) + self._clears

    def _overtake(self, key: str) -> None:
        self._changes[key] = self._changes.get(key, 0) + 1

    def _put(self, key: str, value: int) -> Found:
        self._values[key] = found = Found(value, next(self._numbers))
        return found

    def publish(self, key: str, value: int, mark: Mark, refreshes: bool = False) -> Found:
        """Take in what was loaded, if no change has come since it began, nor the value of a younger refresh."""
        with self._lock:
            if mark.changes != self._count(key) or mark.number < self._refreshed.get(key, 0):
                return Found(value)
            if refreshes:
                self._refreshed[key] = mark.number
            return self._put(key, value)

    def _is_other(self, key: str, version: int | None) -> bool:
        there = self._values.get(key)
        return version is not None and (there is None or there.version != version)

    def set(self, key: str, value: int, version: int | None = None) -> bool:
        with self._lock:
            if self._is_other(key, version):
                return False
            self._overtake(key)
            self._put(key, value)
            return True

    def add(self, key: str, value: int) -> bool:
        with self._lock:
            if key in self._values:
                return False
            self._overtake(key)
            self._put(key, value)
            return True

    def incr(self, key: str, delta: int, initial: int | None = None) -> int | None:
        with self._lock:
            there = self._values.get(key)
            value = initial if there is None else there.value + delta
            if value is not None:
                self._overtake(key)
                self._put(key, value)
            return value

    def remove(self, key: str, version: int | None = None) -> bool:
        with self._lock:
            if self._is_other(key, version):
                return False
            self._overtake(key)
            return self._values.pop(key, None) is not None

    def touch(self, key: str) -> bool:
        with self._lock:
            return key in self._values

    def clear(self) -> None:
        with self._lock:
            self._clears += 1
            self._values.clear()


class SharedCache:
    """The part of one process."""

    def __init__(self, load: Load, store: Store) -> None:
        self._load, self._store = load, store
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, int], Future[Found]] = {}
        self.lookup = lambda key: store.find(key)[0]
        self.set, self.add, self.incr, self.remove = store.set, store.add, store.incr, store.remove
        self.touch, self.clear = store.touch, store.clear

    def get(self, key: str) -> Found | None:
        found, mark = self._store.find(key)
        return found or self._fly(key, mark)

    def get_many(self, keys: list[str]) -> dict[str, Found]:
        return {key: found for key in keys if (found := self.get(key))}

    def refresh(self, key: str) -> Found | None:
        mark = self._store.find(key)[1]
        return self._store.publish(key, self._load(key), mark, True)

    def _fly(self, key: str, mark: Mark) -> Found:
        """Load a key, or wait for who does: of those who have found the same count."""
        place = self._place(key, mark)
        with self._lock:
            flight = self._flights.get(place)
            leads = flight is None
            if flight is None:
                flight = self._flights[place] = Future()
        if leads:
            flight.set_result(self._store.publish(key, self._load(key), mark))
            with self._lock:
                del self._flights[place]
        return flight.result(30)

    def _place(self, key: str, mark: Mark) -> tuple[str, int]:
        return key, mark.changes


# ---- Broken stores


class PublishesLate(Store):
    """A load is published though the key was removed meanwhile."""

    def publish(self, key: str, value: int, mark: Mark, refreshes: bool = False) -> Found:
        with self._lock:
            return self._put(key, value)


class SetOvertakesNothing(Store):
    """A set leaves the loads under way in reach."""

    def set(self, key: str, value: int, version: int | None = None) -> bool:
        with self._lock:
            if self._is_other(key, version):
                return False
            self._put(key, value)
            return True


class CountsInTwoSteps(Store):
    """An increment is a get and a set."""

    def incr(self, key: str, delta: int, initial: int | None = None) -> int | None:
        there = self.find(key)[0]
        value = initial if there is None else there.value + delta
        if value is not None:
            time.sleep(PAUSE)
            self.set(key, value)
        return value


class AddsInTwoSteps(Store):
    """An add is a get and a set."""

    def add(self, key: str, value: int) -> bool:
        if self.find(key)[0] is not None:
            return False
        time.sleep(PAUSE)
        return self.set(key, value)


class ComparesInTwoSteps(Store):
    """A compare-and-set is a get and a set."""

    def set(self, key: str, value: int, version: int | None = None) -> bool:
        there = self.find(key)[0]
        if version is not None and (there is None or there.version != version):
            return False
        time.sleep(PAUSE)
        return super().set(key, value)


class ClearMissesOne(Store):
    """A clear leaves the key that was new last."""

    def clear(self) -> None:
        with self._lock:
            self._clears += 1
            for key in list(self._values)[:-1]:
                del self._values[key]


class RemovesLater(Store):
    """A remove returns before it is done: with the next operation that changes something."""

    _pending: str | None = None

    def remove(self, key: str, version: int | None = None) -> bool:
        if version is not None:
            return super().remove(key, version)
        last, self._pending = self._pending, key
        if last is not None:
            super().remove(last)
        return self.find(key)[0] is not None


class RepeatsChanges(Store):
    """A set whose answer is lost is done once more, when others have changed the key."""

    _last: tuple[str, int] | None = None

    def set(self, key: str, value: int, version: int | None = None) -> bool:
        if self._last is not None and self._last[1] % 7000 == 0:
            super().set(*self._last)
        self._last = (key, value)
        return super().set(key, value, version)


class RepeatsVersions(Store):
    """A version is the number of the key's changes, which begins anew."""

    def _put(self, key: str, value: int) -> Found:
        self._values[key] = found = Found(value, self._count(key))
        return found


# ---- Broken caches


class JoinsAcrossChanges(SharedCache):
    """Who misses joins whatever load of the key is under way."""

    def _place(self, key: str, mark: Mark) -> tuple[str, int]:
        return key, 0


class KeepsCopies(SharedCache):
    """A process keeps what it has read, and does not look at the change count."""

    def __init__(self, load: Load, store: Store) -> None:
        super().__init__(load, store)
        self._copies: dict[str, Found] = {}

    def get(self, key: str) -> Found | None:
        if key not in self._copies and (found := super().get(key)):
            self._copies[key] = found
        return self._copies.get(key)


class RefreshJoins(SharedCache):
    """A refresh is a get that does not look: it joins a load that began before it."""

    def refresh(self, key: str) -> Found | None:
        return self._fly(key, self._store.find(key)[1])


# ---- Stores for other processes


class Server(BaseManager):
    """A process with a store in it."""


Server.register("Store", Store)


def reach(load: Load, kind: type[SharedCache], proxy: Any) -> SharedCache:
    """A process's part of a store that is served: the factory for `drive`."""
    return kind(load, proxy)
