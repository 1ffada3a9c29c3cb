"""Segments as files: their names, their making, and what a dead instance left.

Made with ``multiprocessing.shared_memory`` under names of our own, and never known to its resource tracker, which would
unlink them when a creator is killed or a process that attached them exits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from mpgroupcache.errors import ArenaError
from mpgroupcache.shm._writer import CONTROL_SIZE, Control, lock_writer, retire_segment

DIRECTORY = Path("/dev/shm")
PREFIX = "mpgroupcache"
ATTEMPTS = 100  # to open and lock a control segment that others are making and removing at the same time


def instance_name(socket_path: str) -> str:
    """The name of the instance that serves on ``socket_path``: its segments' names begin with it."""
    path = os.path.join(os.path.realpath(os.path.dirname(socket_path)), os.path.basename(socket_path))
    return f"{PREFIX}-{hashlib.blake2b(path.encode(), digest_size=8).hexdigest()}"


def control_name(instance: str) -> str:
    """The name of an instance's control segment."""
    return f"{instance}-control"


def arena_name(instance: str, group: int, incarnation: int) -> str:
    """The name of a group's arena; an incarnation's name is never used again."""
    return f"{instance}-g{group}-{incarnation:x}"


def segment_path(name: str) -> str:
    """The file of a segment. Raises ``ArenaError`` for a name that is none of ours."""
    if not name.startswith(f"{PREFIX}-") or "/" in name:
        raise ArenaError(f"segment name: got {name!r}, expected one that begins with {PREFIX}-")
    return str(DIRECTORY / name)


def boot_id() -> bytes:
    """16 bytes that name the kernel's boot."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


class Segment:
    """A segment that this process made: its memory, and a descriptor to commit and lock it with."""

    def __init__(self, name: str, size: int) -> None:
        """Make it, sparse. Raises ``FileExistsError``, or ``ArenaError`` where there is no shared memory."""
        self.name = name
        try:
            self._memory = _create(name, size)
        except FileExistsError:
            raise
        except OSError as error:
            raise ArenaError(f"segment {name} of {size} bytes: {error}; is {DIRECTORY} a writable tmpfs?") from error
        self.fd = os.open(segment_path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    @property
    def buffer(self) -> memoryview:
        """The whole segment, writable; memory beyond what is committed must not be touched."""
        return self._memory.buf

    def unlink(self) -> None:
        """Remove the name. Attached workers keep their mappings."""
        unlink(self.name)

    def close(self) -> None:
        """Unmap. What was attached to the buffer is closed before."""
        self._memory.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _create(name: str, size: int) -> SharedMemory:
    if sys.version_info >= (3, 13):
        return SharedMemory(name, create=True, size=size, track=False)
    # Telling the tracker and taking it back would start its process, which stays, and keeps inherited pipes open. The
    # coordinator has one thread, so that nobody else meets the exchanged function.
    register = resource_tracker.register
    resource_tracker.register = lambda name, rtype: None
    try:
        return SharedMemory(name, create=True, size=size)
    finally:
        resource_tracker.register = register


def unlink(name: str) -> None:
    """Remove a segment's name if it is there; not by the class, which would tell the tracker of a name it never had."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(segment_path(name))


def open_instance(instance: str) -> tuple[Segment, Control]:
    """Become the coordinator of an instance: its control segment, locked and formatted, with nothing of a dead one left.

    Raises ``AlreadyRunning`` where a living coordinator holds it, ``ArenaError`` where there is no shared memory.
    """
    name = control_name(instance)
    for _ in range(ATTEMPTS):
        try:
            segment = Segment(name, CONTROL_SIZE)
        except FileExistsError:
            _clear_dead(instance)
            continue
        try:
            lock_writer(segment.fd)
            # Between the making and the lock somebody may have taken it for a dead instance's, and removed it.
            if not _is_named(segment.fd, name):
                raise FileNotFoundError
            return segment, Control(segment.buffer, segment.fd, boot_id())
        except FileNotFoundError:
            segment.close()
        except BaseException:
            segment.close()
            raise
    raise ArenaError(f"segment {name}: removed by others {ATTEMPTS} times while it was being made")


def _is_named(fd: int, name: str) -> bool:
    try:
        named = os.stat(segment_path(name))
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def _clear_dead(instance: str) -> None:
    """Retire and remove the segments of an instance whose coordinator is dead; ``AlreadyRunning`` if it is not."""
    name = control_name(instance)
    try:
        fd = os.open(segment_path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        lock_writer(fd)
        if not _is_named(fd, name):
            return
        for path in DIRECTORY.glob(f"{instance}-*"):
            retire_segment(str(path))
        # The control segment last: until it is gone, others find the lock on it taken.
        for path in sorted(DIRECTORY.glob(f"{instance}-*"), key=lambda path: path.name == name):
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)
