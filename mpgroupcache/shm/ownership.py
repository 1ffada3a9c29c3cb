"""Segments in the hands of their coordinator: made, taken over from a dead one, and removed.

Made with ``multiprocessing.shared_memory`` under names of our own, and never known to its resource tracker, which would
unlink them when a creator is killed or a process that attached them exits.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING

from mpgroupcache.errors import AlreadyRunning, ArenaError
from mpgroupcache.shm._control import CONTROL_SIZE, Control
from mpgroupcache.shm._reader import lock_writer
from mpgroupcache.shm.remains import (
    OPEN,
    become_writer,
    boot_id,
    clear,
    foreign,
    is_named,
    locked,
    named,
    remove,
    unlink,
)
from mpgroupcache.shm.segment import DIRECTORY, ROOM_TO_BEGIN, control_name, room, segment_path

if TYPE_CHECKING:
    from collections.abc import Collection

logger = logging.getLogger(__name__)

CONTROL_MODE = 0o660  # with a group: its workers lock and write their regions
ARENA_MODE = 0o640  # with a group: its workers read
ATTEMPTS = 100  # to make a control segment while others make them, and die


class Segment:
    """A segment of this coordinator's: its memory, and a descriptor to commit and lock it with."""

    memfd = -1
    """Of memory of this process alone, which stands in for what there is no room for; -1: it is shared."""

    def __init__(self, name: str, size: int) -> None:
        """Make it, sparse. Raises ``ArenaError`` where there is no shared memory, ``FileExistsError``, and
        ``FileNotFoundError`` where it was removed at once.

        Nobody else may make one of the same name in the meantime, or memory and descriptor would be two files.
        """
        self.name = name
        self.fd = -1
        try:
            self._memory: SharedMemory | _Mapped = _create(name, size)
        except FileExistsError:
            raise
        except OSError as error:
            raise ArenaError(f"segment {name} of {size} bytes: {error}; is {DIRECTORY} a writable tmpfs?") from error
        try:
            self.fd = os.open(segment_path(name), OPEN)
        except BaseException:
            self._memory.close()
            raise

    @classmethod
    def attach(cls, name: str) -> Segment:
        """A segment that a dead coordinator has left.

        Raises ``OSError``, ``ValueError`` for an empty file, and ``ArenaError`` for another user's: names can be
        guessed, and everybody may make files there.
        """
        segment = cls.__new__(cls)
        segment.name = name
        segment.fd = os.open(segment_path(name), OPEN)
        try:
            if (owner := os.fstat(segment.fd).st_uid) != os.geteuid():
                raise foreign(name, owner)
            segment._memory = _Mapped(segment.fd)
        except BaseException:
            os.close(segment.fd)
            raise
        return segment

    @property
    def buffer(self) -> memoryview:
        """The whole segment, writable; memory beyond what is committed must not be touched."""
        buffer = self._memory.buf
        if buffer is None:
            raise ValueError(f"segment {self.name} is closed")
        return buffer

    def share(self, gid: int | None, mode: int) -> None:
        """Let the members of a group in, with ``mode``; None: nobody but this user.

        Raises ``ArenaError`` for a segment that has let others in: who has it open keeps it for as long as he likes.
        """
        status = os.fstat(self.fd)
        others = status.st_mode & 0o077
        if others and (gid is None or status.st_gid != gid or others & ~mode):
            raise ArenaError(
                f"segment {self.name}: got mode {status.st_mode & 0o777:04o} and group {status.st_gid}, expected "
                f"{'no group' if gid is None else f'group {gid}'}; --group has changed"
            )
        if gid is not None:
            os.fchown(self.fd, -1, gid)
            os.fchmod(self.fd, mode)

    def rename(self, name: str) -> None:
        """Give it another name, in one step. Raises ``FileExistsError`` where there is such a segment."""
        os.link(segment_path(self.name), segment_path(name))
        unlink(self.name)
        self.name = name

    def leave_shared_memory(self) -> None:
        """Go on in memory of this process alone, which nobody can attach (`memfd`).

        The file stays, without memory: its name and its lock keep others from becoming this instance's coordinator.
        """
        size = len(self.buffer)
        self._memory.close()
        self.memfd = os.memfd_create(self.name, os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, size)
        self._memory = _Mapped(self.memfd)

    def unlink(self) -> None:
        """Remove the name. Attached workers keep their mappings."""
        unlink(self.name)

    def close(self) -> None:
        """Unmap. What was attached to the buffer is closed before, or this is a ``BufferError``."""
        self._memory.close()
        for fd in (self.fd, self.memfd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.memfd = -1


class _Mapped:
    """What ``SharedMemory`` is to a segment that is there already: that class unlinks one which it fails to attach."""

    def __init__(self, fd: int) -> None:
        self._mapping = mmap.mmap(fd, 0)
        self.buf: memoryview | None = memoryview(self._mapping)

    def close(self) -> None:
        if self.buf is not None:
            self.buf.release()
            self.buf = None
        self._mapping.close()


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


def open_instance(instance: str, gid: int | None = None) -> tuple[Segment, Control]:
    """Become the coordinator of an instance: go on with what a dead one has left, or begin anew.

    ``gid``: the group whose members may be workers. Where shared memory is full, the segment's is this process's alone
    (``memfd``). Raises ``AlreadyRunning`` where a living coordinator holds it, ``ArenaError`` where there is no shared
    memory, or another user has taken its name.

    A new segment is locked and formatted under a name of its own, and only then gets the instance's. So under that name
    there is never one that workers cannot read yet, nor one that its maker has yet to lock, which others would take for
    a dead coordinator's and remove.
    """
    for _ in range(ATTEMPTS):
        # Others may have been faster: to take it over, to name theirs, or to clear ours away before it was locked.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            opened = _take_over(instance, gid) or _make_control(instance, gid)
            _clear_drafts(instance)
            return opened
    raise ArenaError(f"segment {control_name(instance)}: made and left by others {ATTEMPTS} times during this start")


def _take_over(instance: str, gid: int | None) -> tuple[Segment, Control] | None:
    """A dead coordinator's control segment; None where none is of use, and then nothing is left of the instance."""
    name = control_name(instance)
    try:
        segment = Segment.attach(name)
    except (FileNotFoundError, ValueError, PermissionError, ArenaError) as error:
        if isinstance(error, ArenaError):
            logger.warning("instance %s: %s; its cache begins anew", instance, error)
        _clear_dead(instance)
        return None
    try:
        become_writer(segment.fd)
        if not is_named(segment.fd, name):  # another has removed it before this lock
            raise FileNotFoundError(name)
        segment.share(gid, CONTROL_MODE)
        return segment, Control(segment.buffer, segment.fd, boot_id(), adopt=True)
    except BaseException as error:
        segment.close()
        if isinstance(error, (ArenaError, ValueError)):
            logger.warning("instance %s: %s; its cache begins anew", instance, error)
            _clear_dead(instance)
            return None
        raise


def left_arenas(instance: str, group: int) -> list[str]:
    """The names of a group's arenas that a dead coordinator has left."""
    return sorted(named(f"{instance}-g{group}-"))


def clear_arenas(instance: str, but: Collection[str]) -> None:
    """Retire and remove all arenas of an instance that are not among these."""
    for name in named(f"{instance}-g"):
        if name not in but:
            clear(name)


def _make_control(instance: str, gid: int | None) -> tuple[Segment, Control]:
    name = control_name(instance)
    segment = Segment(f"{name}-{os.urandom(8).hex()}", CONTROL_SIZE)
    control = None
    try:
        lock_writer(segment.fd)
        try:
            control = Control(segment.buffer, segment.fd, boot_id())
        except ArenaError as error:
            if (memory := room()) is None or memory.free >= ROOM_TO_BEGIN:
                raise
            logger.error(
                "instance %s: %s; until there is room, nothing is cached, and each miss loaded once", instance, error
            )
            segment.leave_shared_memory()
            control = Control(segment.buffer, segment.memfd, boot_id())
        segment.share(gid, CONTROL_MODE)
        segment.rename(name)
    except BaseException:
        if control is not None:
            control.close()
        segment.unlink()
        segment.close()
        raise
    return segment, control


def _clear_dead(instance: str) -> None:
    """Retire and remove the segments of an instance whose coordinator is dead; ``AlreadyRunning`` if it is not."""
    name = control_name(instance)
    with locked(name) as fd:
        if fd is not None:
            remove(name)


def _clear_drafts(instance: str) -> None:
    """Remove control segments that were never finished. Whoever has yet to lock his finds out, and that we live."""
    for name in named(f"{control_name(instance)}-"):
        with contextlib.suppress(AlreadyRunning, ArenaError), locked(name) as fd:
            if fd is not None:
                unlink(name)
