"""Byte sizes as people write them: ``64 << 20`` or ``"64MiB"``."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(size: int | str, option: str = "cache_bytes") -> int:
    """Return ``size`` in bytes; ``option`` is the name that an error gives it.

    Raises ``TypeError`` for another type, ``ValueError`` for a negative size or one that cannot be read. Decimal units
    (``MB``) are refused, not guessed at.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f'{option}: got {type(size).__name__}, expected an int (bytes) or a string such as "64MiB"')
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"{option}: got {size}, expected 0 (caching off) or more bytes")
        return size
    match = _SIZE.fullmatch(size)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f'{option}: got {size!r}, expected bytes with one of B, KiB, MiB, GiB, TiB, such as "64MiB"')
    return int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """Return ``size`` bytes in the largest unit that keeps it above 1: ``"64 MiB"``, ``"3912 B"``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= 4 * _UNITS[unit] or (size >= _UNITS[unit] and size % _UNITS[unit] == 0):
            return f"{size / _UNITS[unit]:.4g} {unit}"
    return f"{size} B"
