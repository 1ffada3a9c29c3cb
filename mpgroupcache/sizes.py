"""Byte sizes as people write them: ``64 << 20`` or ``"64MiB"``."""

from __future__ import annotations

import re

MAX_SIZE = (1 << 63) - 1  # bytes; what a file's length can be

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# The digits are bounded because Python refuses to read very long integers, in words that name no option.
_SIZE = re.compile(r"\s*(\d{1,30})(?:\.(\d{1,30}))?\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(size: int | str, option: str = "cache_bytes") -> int:
    """Return ``size`` in bytes; ``option`` is the name that an error gives it.

    A fraction of a byte counts as one, so that only 0 is 0. Raises ``TypeError`` for another type, ``ValueError`` for a
    size that is negative, beyond ``MAX_SIZE`` or cannot be read. Decimal units (``MB``) are refused, not guessed at.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f'{option}: got {type(size).__name__}, expected an int (bytes) or a string such as "64MiB"')
    if isinstance(size, int):
        number = int(size)
    else:
        match = _SIZE.fullmatch(size)
        if match is None or match[3] not in _UNITS:
            raise ValueError(
                f'{option}: got {size!r}, expected bytes with one of B, KiB, MiB, GiB, TiB, such as "64MiB"'
            )
        whole, decimals = match[1], match[2] or ""
        number = -(-int(whole + decimals) * _UNITS[match[3]] // 10 ** len(decimals))  # upwards
    if 0 <= number <= MAX_SIZE:
        return number
    # Python refuses to print very long integers, too.
    got = repr(size) if isinstance(size, str) or number.bit_length() <= 128 else f"an int of {number.bit_length()} bits"
    if number < 0:
        raise ValueError(f"{option}: got {got}, expected 0 (caching off) or more bytes")
    raise ValueError(f"{option}: got {got}, expected at most {MAX_SIZE} bytes")


def format_size(size: int) -> str:
    """Return ``size`` bytes to four digits, in the largest unit that shows it as a whole number or as 4 and more.

    So limits read as they were written (``"64 MiB"``) and small sizes stay exact (``"3912 B"``).
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= 4 * _UNITS[unit] or (size >= _UNITS[unit] and size % _UNITS[unit] == 0):
            number = size / _UNITS[unit]
            return f"{number:.4g} {unit}" if number < 1000 else f"{number:.0f} {unit}"
    return f"{size} B"
