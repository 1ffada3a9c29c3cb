"""A hash of a ring's own."""

from __future__ import annotations

from zlib import crc32


def salted(data: bytes) -> int:
    """Not crc32's, which a ring has without being asked."""
    return crc32(b"salt" + data)
