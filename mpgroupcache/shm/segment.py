"""Names of segments, and of private coordinators' files: what the coordinator and its workers agree on."""

from __future__ import annotations

import contextlib
import os
from typing import Final, NamedTuple

from mpgroupcache.errors import ArenaError

DIRECTORY: Final = "/dev/shm"
PREFIX: Final = "mpgroupcache"
ROOM_TO_BEGIN: Final = 1280 << 10  # bytes that an instance takes before it caches anything, and a little more


class Room(NamedTuple):
    """Bytes of shared memory: all of it, and what of it nobody has."""

    size: int
    free: int


def room() -> Room | None:
    """The room in shared memory; None: it has no bound of its own."""
    status = os.statvfs(DIRECTORY)
    if status.f_blocks == 0:
        return None
    return Room(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)


def instance_name(socket_path: str) -> str:
    """The name of the instance that serves on ``socket_path``: its segments' names begin with it."""
    import hashlib  # which brings OpenSSL along; a worker asks for this where it finds no coordinator

    path = os.path.join(os.path.realpath(os.path.dirname(socket_path)), os.path.basename(socket_path))
    return f"{PREFIX}-{hashlib.blake2b(path.encode(), digest_size=8).hexdigest()}"


def control_name(instance: str) -> str:
    """The name of an instance's control segment."""
    return f"{instance}-control"


def arena_name(instance: str, group: int, incarnation: int) -> str:
    """The name of a group's arena; an incarnation's name is never used again."""
    return f"{instance}-g{group}-{incarnation:x}"


def private_directory() -> str:
    """Where the sockets of this user's private coordinators lie, with their logs."""
    return f"{DIRECTORY}/{PREFIX}-user-{os.getuid()}"


def private_files(socket_path: str) -> tuple[str, str]:
    """The lock of whoever starts a private coordinator, and the coordinator's log."""
    return f"{socket_path}.lock", f"{socket_path}.log"


def try_start_lock(socket_path: str) -> int | None:
    """Take the lock of whoever starts a private coordinator, or removes what a dead one has left.

    Returns a descriptor for `give_start_lock`; None where somebody has it. Raises ``OSError``.
    """
    import fcntl  # few processes come here

    path = private_files(socket_path)[0]
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # to wait in it would stop gevent's other greenlets
        if os.path.samestat(os.fstat(lock), os.stat(path)):  # else it was removed, and others lock another one
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def give_start_lock(lock: int) -> None:
    """Give it back. Closing is not enough: a child that was forked meanwhile has the file open, too."""
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def remove_private_files(socket_path: str) -> None:
    """Remove these, and the directory if nothing else is in there."""
    for path in private_files(socket_path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(private_directory())


def segment_path(name: str) -> str:
    """The file of a segment. Raises ``ArenaError`` for a name that is none of ours."""
    if not name.startswith(f"{PREFIX}-") or "/" in name:
        raise ArenaError(f"segment name: got {name!r}, expected one that begins with {PREFIX}-")
    return f"{DIRECTORY}/{name}"
