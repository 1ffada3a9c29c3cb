"""What everybody keeps to: the limits that more than one room knows, each said once, and what says that they hold."""

from __future__ import annotations

import os
from math import isfinite
from typing import Final

SOCKET_VARIABLE: Final = "MPGROUPCACHE_SOCKET"
APPLICATION_VARIABLE: Final = "MPGROUPCACHE_APPLICATION"  # its processes share one private coordinator
KEEP_VARIABLE: Final = "MPGROUPCACHE_KEEP_ALONE"  # s that a process keeps what it loads without a coordinator
MAX_SOCKET_PATH: Final = 107  # bytes; what sockaddr_un holds
MAX_NAME_BYTES: Final = 255  # UTF-8 bytes of a group's name; NAME_MAX, since segments are named after instances
MAX_TYPE_NAME: Final = 200  # characters of an exception type's name
MAX_TEXT: Final = 8000  # characters of an error's text: a traceback's worth, not a dump
MAX_ABSENT_TEXT: Final = 1000  # bytes of what a loader says of a value that is not there; they are kept in its place
MAX_SECONDS: Final = 1e9  # some 30 years: "no limit" is None, not a large number
MAX_RATE: Final = 1e12  # requests a minute; no host serves more
MAX_PEERS: Final = 4096  # that code may name; some 40 bytes each
MAX_PEERS_BYTES: Final = 240 << 10  # of their URLs together
MAX_REPLICAS: Final = 10_000  # points of each in the ring
MAX_URL: Final = 2000  # characters


def check_socket_path(path: str, option: str) -> str:
    """Return ``path`` made absolute; ``option`` is the name that an error gives it."""
    path = os.path.abspath(path)
    if not 0 < len(os.fsencode(path)) <= MAX_SOCKET_PATH or "\0" in path:
        raise ValueError(
            f"{option}: got a path of {len(os.fsencode(path))} bytes, expected 1 to {MAX_SOCKET_PATH} without NUL; "
            "choose a shorter directory, such as one in /run"
        )
    return path


def usable_rate(rate: float) -> float | None:
    """Return requests per minute as advice that can be followed: not below nothing, not infinite, a number."""
    return min(rate, MAX_RATE) if isfinite(rate) and rate >= 0 else None
