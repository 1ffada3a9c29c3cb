"""A process with a /dev/shm of its own, as small as a test wants it."""

from __future__ import annotations

import ctypes
import errno
import os

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MS_REMOUNT = 0x20

_libc = ctypes.CDLL(None, use_errno=True)


class NoPrivateMount(Exception):
    """The kernel lets this process have no mounts of its own."""


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount_small(size: int) -> None:
    """Give this process, and nobody else, a /dev/shm of ``size`` bytes. It must have one thread."""
    try:
        try:
            _check(_libc.unshare(_CLONE_NEWNS))
        except PermissionError:  # a user namespace of its own gives an ordinary user the right to mount in it
            _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
        _check(_libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None))
        _check(_libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=%d" % size))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ENOSPC):
            raise NoPrivateMount(str(error)) from None
        raise


def resize(size: int) -> None:
    _check(_libc.mount(None, b"/dev/shm", None, _MS_REMOUNT, b"size=%d" % size))
