"""Large values on their way: sealed memfds.

A seal is what makes a foreign memfd safe to read and to map: its sender can neither shrink it (a SIGBUS) nor rewrite it
while it is read. It is looked at before anything else is done with one.
"""

from __future__ import annotations

import fcntl
import os
import socket
from array import array
from collections import deque
from collections.abc import Iterable

from mpgroupcache.errors import ProtocolError
from mpgroupcache.ipc.messages import Message
from mpgroupcache.shm._exchange import Descriptor, sealed
from mpgroupcache.shm._reader import Mapping
from mpgroupcache.shm._view import ByteView

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
ANCILLARY_BYTES = socket.CMSG_SPACE(16 * 4)  # descriptors that one recvmsg may bring
RECEIVE_FLAGS = int(socket.MSG_CMSG_CLOEXEC)  # plain integers: an enum's operators cost more than the system call
TRUNCATED = int(socket.MSG_CTRUNC)


def make(value: bytes | memoryview) -> int:
    """Return the descriptor of a sealed memfd that holds ``value``; it is the caller's to close."""
    return sealed(value).detach()


def check(fd: int, size: int) -> None:
    """Raise ``ProtocolError`` unless ``fd`` is a memfd of ``size`` bytes that nobody can change any more."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise ProtocolError("descriptor: got one that is no sealed memfd, expected seals against all changes")
    if (got := os.fstat(fd).st_size) != size:
        raise ProtocolError(f"memfd: got {got} bytes, expected the {size} that its message says")


def map(memfd: Descriptor, size: int) -> Mapping:  # noqa: A001 - as in mmap
    """Map a received memfd, and close it. Raises ``ProtocolError`` and ``OSError``."""
    check(memfd.fileno(), size)
    mapping = Mapping(memfd.fileno(), size)
    memfd.close()
    return mapping


def read(fd: int, size: int) -> bytes:
    """Return the contents of a sealed memfd; the descriptor stays open."""
    with ByteView(Mapping(fd, size)) as contents:
        return bytes(contents)


class Received:
    """Descriptors that have come and wait for their messages to claim them, in order."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._fds)

    def add(self, ancillary: Iterable[tuple[int, int, bytes]]) -> None:
        """Take the descriptors in what ``recvmsg`` returned."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds.extend(memoryview(data[: len(data) // 4 * 4]).cast("i"))

    def claim(self, message: Message) -> int:
        """Return the message's descriptor, the caller's from now on, or -1 where it brings none."""
        if not message.passes_descriptor:
            return -1
        if not self._fds:
            raise ProtocolError(f"{type(message).__name__}: its descriptor did not come")
        return self._fds.popleft()

    def close(self) -> None:
        """Close those that nobody claimed."""
        while self._fds:
            os.close(self._fds.popleft())


def passed(fd: int) -> list[tuple[int, int, bytes]]:
    """What ``sendmsg`` takes to pass ``fd`` along."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]).tobytes())]
