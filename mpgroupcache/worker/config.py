"""Where the coordinator is: what ``configure`` said, else the environment, else a private one for this application."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from mpgroupcache.errors import CoordinatorError
from mpgroupcache.limits import SOCKET_VARIABLE, check_socket_path

APPLICATION_VARIABLE = "MPGROUPCACHE_APPLICATION"  # names an application; its processes share one private coordinator


class Location(NamedTuple):
    """A coordinator's socket, and whether this application starts it on its own."""

    path: str
    private: bool


_configured: str | None = None


def configure(*, socket: str | os.PathLike[str] | None = None) -> None:
    """Use the coordinator on ``socket``; None: as the environment says (``MPGROUPCACHE_SOCKET``), else a private one.

    It counts for connections that are made later: call it before the first ``get``. Raises ``ValueError`` for a path
    that is no socket's address.
    """
    global _configured
    _configured = None if socket is None else check_socket_path(os.fspath(socket), "configure(socket=...)")


def location() -> Location:
    """Where this process finds its coordinator."""
    if _configured is not None:
        return Location(_configured, private=False)
    if path := os.environ.get(SOCKET_VARIABLE):
        return Location(check_socket_path(path, SOCKET_VARIABLE), private=False)
    return Location(_private_path(), private=True)


def _private_path() -> str:
    """One socket for what unrelated workers of one application share.

    That is a name they inherited, else user, process group and working directory. It is handed on in the environment,
    so that a worker's own children, whatever their process group, come to the same one.
    """
    app = os.environ.setdefault(APPLICATION_VARIABLE, f"{os.getpgrp()}:{os.getcwd()}")
    digest = hashlib.blake2b(f"{os.getuid()}:{app}".encode(), digest_size=8).hexdigest()
    return check_socket_path(str(_private_directory() / f"{digest}.sock"), "the private coordinator's socket")


def _private_directory() -> Path:
    """A directory of this user's alone. Raises ``CoordinatorError`` where somebody else owns that name."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    directory = Path(base) / f"mpgroupcache-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise CoordinatorError(
            f"{directory}: expected a directory of user {os.getuid()} with mode 0700; remove it, or set "
            f"{SOCKET_VARIABLE}"
        )
    return directory
