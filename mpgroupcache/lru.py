"""A plain LRU cache for one thread of one process (Go: the package ``lru``).

Groups do not use it: their caches lie in shared memory, and count bytes. It is for the small things that an application
keeps for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, overload

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")


class Cache(Generic[K, V]):
    """A mapping that throws out the entry which was used least recently (Go: ``lru.Cache``). Not safe under threads.

    ``max_entries``: how many entries it holds; 0: any number, and whoever has it throws out what it will.
    ``on_evicted``: called as ``on_evicted(key, value)`` for each entry that leaves, removed and cleared ones included,
    when it has left. Raises ``ValueError`` for a negative number.
    """

    __slots__ = ("_entries", "max_entries", "on_evicted")

    def __init__(self, max_entries: int = 0, on_evicted: Callable[[K, V], object] | None = None) -> None:
        if max_entries < 0:
            raise ValueError(f"max_entries: got {max_entries}, expected at least 0, which is no limit")
        self.max_entries = max_entries
        self.on_evicted = on_evicted
        self._entries: OrderedDict[K, V] = OrderedDict()  # the one that was used last at the end

    def __repr__(self) -> str:
        return f"<lru.Cache: {len(self)} entries, at most {self.max_entries or 'any number'}>"

    def __len__(self) -> int:
        """How many entries there are (Go: ``Cache.Len``)."""
        return len(self._entries)

    def add(self, key: K, value: V) -> None:
        """Add an entry, or give a key another value; it counts as used (Go: ``Cache.Add``)."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if self.max_entries and len(self._entries) > self.max_entries:
            self.remove_oldest()

    @overload
    def get(self, key: K) -> V | None: ...

    @overload
    def get(self, key: K, default: D) -> V | D: ...

    def get(self, key: K, default: object = None) -> object:
        """Return a key's value, which is used by that, or ``default`` (Go: ``Cache.Get``, and its ``ok``)."""
        if key not in self._entries:
            return default
        self._entries.move_to_end(key)
        return self._entries[key]

    def remove(self, key: K) -> None:
        """Remove a key, if it is there (Go: ``Cache.Remove``)."""
        if key in self._entries:
            self._evicted(key, self._entries.pop(key))

    def remove_oldest(self) -> None:
        """Remove the entry that was used least recently, if there is any (Go: ``Cache.RemoveOldest``)."""
        if self._entries:
            self._evicted(*self._entries.popitem(last=False))

    def clear(self) -> None:
        """Remove all entries (Go: ``Cache.Clear``)."""
        entries, self._entries = self._entries, OrderedDict()
        for key, value in entries.items():
            self._evicted(key, value)

    def _evicted(self, key: K, value: V) -> None:
        if self.on_evicted is not None:
            self.on_evicted(key, value)
