"""What is left of a value's ages, and its version, as peers tell them in headers; peerwire.py says what each means."""

from __future__ import annotations

import re
from math import floor
from typing import TYPE_CHECKING, Final, NamedTuple

from mpgroupcache.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_MS: Final = 10**12 - 1  # of what is left of an age, or of a timeout; some 30 years
MAX_VERSION: Final = (1 << 63) - 1

FRESH: Final = b"Mpgroupcache-Fresh"
DEAD: Final = b"Mpgroupcache-Dead"
VERSION: Final = b"Mpgroupcache-Version"

_MAX_SECONDS: Final = MAX_MS / 1000
_NUMBER: Final = re.compile(rb"-?[0-9]{1,19}")
_LIMITS: Final = {
    FRESH.lower(): (-MAX_MS, MAX_MS),
    DEAD.lower(): (0, MAX_MS),
    VERSION.lower(): (1, MAX_VERSION),
}


class Ages(NamedTuple):
    """What is left of a value's ages, in seconds, and its number."""

    fresh: float | None
    """Until it is stale; below 0: since when. None: it never is."""
    dead: float | None
    """Until it is dead. None: it never is."""
    version: int | None
    """None: it has none, or nobody says."""


_AGELESS: Final = Ages(None, None, None)


def age_headers(fresh: float | None, dead: float | None, version: int | None) -> list[tuple[bytes, bytes]]:
    """Return the headers; none for a value without ages and version."""
    headers = []
    if version:
        headers.append((VERSION, b"%d" % version))
    if fresh is not None:
        headers.append((FRESH, b"%d" % milliseconds(fresh)))
    if dead is not None:
        headers.append((DEAD, b"%d" % milliseconds(max(dead, 0.0))))
    return headers


def encode_ages(fresh: float | None, dead: float | None, version: int | None) -> bytes:
    """Return the headers' lines."""
    return b"".join([b"%s: %s\r\n" % header for header in age_headers(fresh, dead, version)])


def milliseconds(seconds: float) -> int:
    """Return what is left of an age as it travels: never more than there is."""
    if -_MAX_SECONDS < seconds < _MAX_SECONDS:
        return floor(seconds * 1000)
    return MAX_MS if seconds > 0 else -MAX_MS


def read_ages(headers: Iterable[tuple[bytes, bytes]]) -> Ages:
    """Return what an answer's headers say. Raises ``ProtocolError`` for what cannot be."""
    said: dict[bytes, int] = {}
    for name, value in headers:
        if (limits := _LIMITS.get(lower := name.lower())) is not None:
            low, high = limits
            if not _NUMBER.fullmatch(value) or not low <= (number := int(value)) <= high:
                got = f"{name.decode(errors='replace')}: got {value[:40]!r}"
                raise ProtocolError(f"{got}, expected a number from {low} to {high}")
            said[lower] = number
    if not said:
        return _AGELESS
    return ages_of(*(said.get(name) for name in _LIMITS))


def ages_of(fresh_ms: int | None, dead_ms: int | None, version: int | None) -> Ages:
    """Return ages as they have travelled. Nothing is fresh that is dead, whatever its owner says."""
    fresh = None if fresh_ms is None else fresh_ms / 1000
    if dead_ms is None:
        return Ages(fresh, None, version)
    dead = dead_ms / 1000
    return Ages(dead if fresh is None else min(fresh, dead), dead, version)
