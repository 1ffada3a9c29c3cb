"""The ring: which peer owns a key. Go's ``consistenthash.Map``, equal to the last point.

Every member of a ring computes the owner for itself, so members agree only if they place every point alike. A peer has
``replicas`` points, at the hashes of ``str(i) + peer``; a key belongs to the first point at or after its own hash, and
behind the last point the ring begins again.

Guarantees:

- The same peers added in the same order give the owners that Go gives, for any key, hash and number of replicas.
- Adding a peer moves keys to that peer only.

Where two points fall together, the peer that was added later has them. With 32-bit hashes that is not rare in large
rings (some thirty times among 10 000 peers of 50 replicas), so members have to add peers in the same order. Go keeps
both points in its sorted slice, and its map knows one owner for them; one point is enough here.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, TypeAlias
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Hash: TypeAlias = Callable[[bytes], int]

_MAX_U32: Final = (1 << 32) - 1


def fnv1a(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash, Go's ``fnv.New32a``: what rings with a hash of their own often have.

    A loop in Python, some 60 ns for each byte of a key: use it to join such a ring, not to begin one.
    """
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & _MAX_U32
    return value


HASHES: Final[Mapping[str, Hash]] = {
    "crc32": crc32,  # IEEE; Go groupcache's default
    "fnv1a": fnv1a,
}
"""Hashes by the names that options know them by. All members of a ring have to use the same one."""


class Map:
    """A ring of peers (Go: ``consistenthash.Map``).

    Adding replaces the whole ring at once: a ``get`` in another thread sees the old or the new one.
    """

    __slots__ = ("_hash", "_owners", "_peers", "_replicas", "_ring")

    def __init__(self, replicas: int, hash_fn: Hash | None = None) -> None:
        """``replicas``: points of each peer, at least 1. ``hash_fn``: from bytes to 32 bits, ``crc32`` if not given."""
        if replicas < 1:
            raise ValueError(f"replicas: got {replicas}, expected at least 1 (Go's default is 50)")
        self._replicas = replicas
        self._hash: Hash = crc32 if hash_fn is None else hash_fn
        self._peers = 0
        self._owners: dict[int, str] = {}
        # The points in order, and their owners; behind the last one the first one's again, so that a look-up needs no
        # case for the end of the ring, and none for the empty ring. A list: an array makes an int at each comparison.
        self._ring: tuple[list[int], list[str]] = ([], [""])

    def __repr__(self) -> str:
        return f"<Map: {self._peers} peers, {len(self._ring[0])} points>"

    def is_empty(self) -> bool:
        """Whether there is no peer. Go's ``IsEmpty``."""
        return not self._ring[0]

    def add(self, *keys: str) -> None:
        """Add peers (Go: ``Add``). Raises ``ValueError``, and adds nothing, where ``hash_fn`` does not give 32 bits."""
        owners = self._owners.copy()
        for key in keys:
            name = key.encode()
            for i in range(self._replicas):
                point = self._hash(b"%d%s" % (i, name))
                if not 0 <= point <= _MAX_U32:
                    raise ValueError(f"hash_fn: got {point}, expected 0 to {_MAX_U32}; mask it to 32 bits")
                owners[point] = key
        points = sorted(owners)
        names = [owners[point] for point in points]
        self._owners = owners
        self._peers += len(keys)
        self._ring = (points, names + names[:1] if names else [""])

    def get(self, key: str | bytes) -> str:
        """Return the peer that owns ``key``, or "" if there is none (Go: ``Get``). Text counts as its UTF-8."""
        points, names = self._ring
        return names[bisect_left(points, self._hash(key.encode() if isinstance(key, str) else key))]
