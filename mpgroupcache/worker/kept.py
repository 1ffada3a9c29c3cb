"""What a process keeps of what it loads, while it has no coordinator: little, and for seconds.

Where none can start, as in some containers, each request would load anew otherwise. With a coordinator all is cached
there, and nothing here.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from msgspec import Struct

SHARE: Final = 64  # of a group's bytes that may be kept here: its host has some ten such processes
MOST: Final = 16 << 20  # bytes of each group, however large it is


class _Entry(Struct, frozen=True, gc=False):
    value: bytes
    until: float  # of ``time.monotonic()``, as is ...
    fresh_until: float  # ... until when it is fresh
    changes: int  # of the group, before it was loaded: of no use to whoever has seen another


class Kept:
    """One group's values, of at most ``most`` bytes with their keys, each for ``seconds``."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._entries: dict[bytes, _Entry] = {}  # the oldest first: it ends first, but for those with a short ttl
        self._bytes = 0  # too many, where a signal's handler raised: then less is kept, until nothing is left
        self._lock = threading.Lock()

    def find(self, key: bytes, changes: int) -> tuple[bytes, float] | None:
        """The value, and for how many seconds it is fresh, if it may still be used."""
        entry, now = self._entries.get(key), time.monotonic()
        if entry is None or entry.changes != changes or entry.until <= now:
            return None
        return entry.value, entry.fresh_until - now

    def keep(self, key: bytes, value: bytes, changes: int, fresh: float) -> None:
        """Keep a value, which is fresh for so many seconds; the oldest make room for it."""
        # Not waited for: a signal's handler that gets may have interrupted the one who holds it. Where one raises as it
        # is taken, nothing more is kept until there is a coordinator.
        lock = self._lock
        if not lock.acquire(blocking=False):
            return
        try:
            self._keep(key, value, changes, fresh)
        finally:
            lock.release()

    def _keep(self, key: bytes, value: bytes, changes: int, fresh: float) -> None:
        size = len(key) + len(value)
        self._drop(key)
        if size > self._most:
            return
        now = time.monotonic()
        while self._entries:
            oldest = next(iter(self._entries))
            if self._bytes + size <= self._most and self._entries[oldest].until > now:
                break
            self._drop(oldest)
        if not self._entries:
            self._bytes = 0
        self._bytes += size
        self._entries[key] = _Entry(value, now + min(fresh, self._seconds), now + fresh, changes)

    def _drop(self, key: bytes) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._bytes -= len(key) + len(entry.value)

    def clear(self) -> None:
        """Forget everything."""
        self._entries = {}
        self._bytes = 0
        self._lock = threading.Lock()
