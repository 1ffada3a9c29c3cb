"""What is left of an instance whose coordinator is dead, and who removes it.

The next coordinator on its socket goes on with it. Where none comes, the last of its workers to end removes it; what
was killed with all of them, the next coordinator of that user, whatever its socket.

Guarantees: nothing is removed while a coordinator lives, or a worker that stays. Of a coordinator and workers that end
in any order, the last one removes it. Things that don't work: to look, and then to leave. 1. A looks: B is there. 2. B
looks: A is there. 3. Both leave. So whoever leaves says so first, and looks then; and those who look go through the
gate one at a time, which is a lock on the control segment. A coordinator says so by giving up its own lock. One that
starts goes through the gate, too: or it would meet the lock of somebody who looks, and take him for a coordinator.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from mpgroupcache.errors import AlreadyRunning, ArenaError
from mpgroupcache.shm._reader import leave_gate, lock_writer, regions_held, try_gate, unlock
from mpgroupcache.shm.segment import (
    DIRECTORY,
    PREFIX,
    control_name,
    give_start_lock,
    instance_name,
    private_directory,
    remove_private_files,
    segment_path,
    try_start_lock,
)
from mpgroupcache.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

SILENT: Final = 600.0  # s since a dead coordinator's last tick, before others than its own remove what it has left
GATE_TIMEOUT: Final = 5.0  # s; whoever is in the gate is stopped there
GATE_INTERVAL: Final = 0.001  # s between two looks at it

OPEN: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW  # how a segment is opened, whose name anybody may make
_CONTROL: Final = re.compile(rf"({PREFIX}-[0-9a-f]{{16}})-control(-[0-9a-f]{{16}})?")


class Removed(Struct, frozen=True):
    """An instance that was removed."""

    instance: str
    segments: int
    bytes: int
    """That its segments held."""

    def __str__(self) -> str:
        return f"removed {self.segments} segments of {format_size(self.bytes)}"


# ---- Locks


def become_writer(fd: int) -> None:
    """Take the writer's lock of a control segment, through the gate.

    Raises ``AlreadyRunning`` where a living coordinator has it, ``ArenaError`` where it cannot be locked.
    """
    _enter_gate(fd)
    try:
        lock_writer(fd)
    finally:
        leave_gate(fd)


def _enter_gate(fd: int) -> None:
    deadline = time.monotonic() + GATE_TIMEOUT
    while not try_gate(fd):
        if time.monotonic() >= deadline:
            held = f"held for {GATE_TIMEOUT:g} s"
            raise AlreadyRunning(f"the control segment's gate is {held}, by a process that starts, ends, or is stopped")
        time.sleep(GATE_INTERVAL)


@contextlib.contextmanager
def locked(name: str) -> Iterator[int | None]:
    """Hold the gate and the writer's lock of a control segment. None where there is no such segment.

    Raises ``AlreadyRunning`` if a coordinator lives, ``ArenaError`` if it is another user's; root removes that.
    """
    try:
        if (owner := os.lstat(segment_path(name)).st_uid) != os.geteuid() != 0:
            raise foreign(name, owner)
        fd = os.open(segment_path(name), OPEN)
    except FileNotFoundError:
        yield None
        return
    try:
        _enter_gate(fd)
        lock_writer(fd)
        yield fd if is_named(fd, name) else None  # another may have removed it before this lock
    finally:
        unlock(fd)  # closing is not enough: a child that was forked meanwhile has it open, too
        os.close(fd)


def foreign(name: str, owner: int) -> ArenaError:
    """The error for a segment of another user."""
    return ArenaError(
        f"segment {name}: got one of user {owner}, expected one of user {os.geteuid()}; remove {segment_path(name)}, "
        "or choose another --socket"
    )


def is_named(fd: int, name: str) -> bool:
    """Whether the segment behind ``fd`` still has that name."""
    try:
        named = os.stat(segment_path(name))
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


# ---- Who removes


def leave(control: str, private_socket: str | None = None) -> bool:
    """Remove an instance if this process was the last that had to do with it; whether it was.

    Whoever calls this has given up the writer's lock, or said that his region is about to end. ``control``: the control
    segment's name; ``private_socket``: of a private coordinator, whose files go, too.
    """
    with contextlib.suppress(AlreadyRunning, ArenaError, OSError), locked(control) as fd:
        if fd is None or regions_held(fd, False):
            return False
        removed = remove(control)
        if private_socket is not None and control == control_name(instance_name(private_socket)):
            _remove_private_files(private_socket)
        logger.info("instance %s: its last process removed its %d segments", removed.instance, removed.segments)
        return True
    return False


def remove_dead(but: str | None = None, silent: float = SILENT) -> list[Removed]:
    """Remove all that is left of this user's instances whose coordinator and workers are dead, all of them.

    ``but``: one that is not looked at. ``silent``: seconds since its coordinator's last tick.
    """
    found = [match for name in named(PREFIX) if (match := _CONTROL.fullmatch(name)) and match[1] != but]
    removed = [_remove_if_dead(match[0], match[1], silent) for match in found]
    _remove_private_files_of_dead(but)
    return [gone for gone in removed if gone is not None]


def remove_if_dead(instance: str) -> Removed | None:
    """Remove one of them; None: it lives, or is another user's."""
    return _remove_if_dead(control_name(instance), instance, 0.0)


def _remove_if_dead(control: str, instance: str, silent: float) -> Removed | None:
    with contextlib.suppress(AlreadyRunning, ArenaError, OSError):
        status = os.lstat(segment_path(control))
        if (age := silent_for(control)) is None:  # killed before there was memory for that, or while it was made
            age = time.time() - status.st_mtime
        if status.st_uid != os.geteuid() or age < silent:
            return None
        with locked(control) as fd:
            if fd is not None and not regions_held(fd, True):
                return remove(control) if control == control_name(instance) else _remove(instance, [control])
    return None


def remove(control: str) -> Removed:
    """Retire and remove the segments of an instance. The caller holds its locks."""
    instance = control.removesuffix("-control")
    # The control segment last: until it is gone, others find the lock on it taken.
    return _remove(instance, [*named(f"{instance}-g"), control])


def _remove(instance: str, names: list[str]) -> Removed:
    size = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            size += os.stat(segment_path(name)).st_blocks * 512
        retire(name)
    for name in names:
        _unlink(name)
    return Removed(instance, len(names), size)


def named(beginning: str) -> list[str]:
    """The names of all segments that begin so."""
    try:
        return [name for name in os.listdir(DIRECTORY) if name.startswith(beginning)]
    except FileNotFoundError:  # there is no shared memory
        return []


def retire(name: str) -> None:
    """Tell workers to let go of a segment. Another user's is not touched: cut off meanwhile, it would be a SIGBUS."""
    from mpgroupcache.shm._control import retire_segment  # which a worker that ends seldom asks for

    with contextlib.suppress(FileNotFoundError):
        if os.lstat(segment_path(name)).st_uid == os.geteuid():
            retire_segment(segment_path(name))


def _unlink(name: str) -> None:
    """Another user's stays, unless this is root; it is nothing to us, since no segment of ours gets its name."""
    try:
        unlink(name)
    except PermissionError as error:
        logger.warning("segment %s: another user's file stays: %s", name, error)


def unlink(name: str) -> None:
    """Remove a segment's name if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(segment_path(name))


def clear(name: str) -> None:
    """Retire and remove a segment that nobody writes any more."""
    retire(name)
    _unlink(name)


# ---- Signs of life


def boot_id() -> bytes:
    """16 bytes that name the kernel's boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


def silent_for(name: str) -> float | None:
    """How long ago, in seconds, the coordinator of a control segment of any layout ticked last. Raises ``OSError``.

    Infinite where no coordinator of this boot can have said so; None where it is no control segment of ours.
    """
    from mpgroupcache.shm._control import sign_of_life

    sign = sign_of_life(segment_path(name))
    if sign is None:
        return None
    boot, alive = sign
    silence = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - alive) / 1e9
    return silence if boot == boot_id() and silence >= 0 else math.inf


def _remove_private_files_of_dead(but: str | None) -> None:
    """Remove the sockets of private coordinators that are dead, and what lies beside them, or is alone there."""
    sockets: set[str] = set()
    with contextlib.suppress(OSError):  # it is not there, or is somebody else's: everybody may make one of that name
        status = os.lstat(directory := private_directory())
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            sockets = {"".join(entry.path.partition(".sock")[:2]) for entry in os.scandir(directory)}
    for path in sockets:
        if instance_name(path) != but:
            _remove_private_files(path)


def _remove_private_files(socket_path: str) -> None:
    """Remove a private coordinator's files, if there is no instance of it any more, and nobody starts one."""
    with contextlib.suppress(OSError):
        if (lock := try_start_lock(socket_path)) is None:
            return
        try:
            if not os.path.exists(segment_path(control_name(instance_name(socket_path)))):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(socket_path)
                remove_private_files(socket_path)
        finally:
            give_start_lock(lock)
