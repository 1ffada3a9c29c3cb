"""What ``configure`` said; of the coordinator's place, else the environment, else a private one for this process."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mpgroupcache.ages import UNSET
from mpgroupcache.errors import CoordinatorError, NotFound
from mpgroupcache.late import importing
from mpgroupcache.limits import APPLICATION_VARIABLE, KEEP_VARIABLE, MAX_SECONDS, SOCKET_VARIABLE, check_socket_path
from mpgroupcache.shm.segment import private_directory

if TYPE_CHECKING:
    from mpgroupcache.ages import Unset

logger = logging.getLogger(__name__)

KEEP_ALONE = 5.0  # s; a burst of requests is spared, and what is too old is too old for no longer than a page's cache


class Location(NamedTuple):
    """A coordinator's socket, and whether this application starts it on its own."""

    path: str
    private: bool


_configured: str | None = None
_keep_alone: float | None = None
_load_context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
_not_found: tuple[type[Exception], ...] = (NotFound,)


def configure(
    *,
    socket: str | os.PathLike[str] | Unset | None = UNSET,
    keep_alone: float | Unset | None = UNSET,
    load_context: Callable[[], contextlib.AbstractContextManager[Any]] | Unset | None = UNSET,
    not_found: tuple[type[Exception], ...] | Unset = UNSET,
) -> None:
    """Say how this process uses the cache. What is left out stays as it was. Call it before the first ``get``.

    ``socket``: of the coordinator; None: as the environment says (``MPGROUPCACHE_SOCKET``), else a private one.
    ``keep_alone``: seconds for which each process keeps what it loads while there is no coordinator; 0: it keeps
    nothing; None: as the environment says (``MPGROUPCACHE_KEEP_ALONE``), else 5. ``load_context``: a function that
    returns a context manager, which is entered around each load that runs in a thread of ours (for a peer, or in the
    place of a stale value, or of a plain getter for ``aget``): an application context of Flask; None: none.
    ``not_found``: errors by which loaders say that there is no such value, beside ``NotFound``: they reach the caller
    who loads as they are, and all others as ``NotFound``.

    Raises ``ValueError`` for a path that is no socket's address and other seconds, and ``TypeError``; then nothing is
    changed.
    """
    global _configured, _keep_alone, _load_context, _not_found
    path, seconds, context, errors = _configured, _keep_alone, _load_context, _not_found
    if socket is not UNSET:
        path = None if socket is None else check_socket_path(os.fspath(socket), "configure(socket=...)")
    if keep_alone is not UNSET:
        seconds = None if keep_alone is None else _seconds(keep_alone, "configure(keep_alone=...)")
    if load_context is not UNSET:
        context = contextlib.nullcontext if load_context is None else load_context
        _check(callable(context), "load_context", context, "a function that returns a context manager")
    if not_found is not UNSET:
        given: tuple[object, ...] = tuple(not_found)
        are_errors = all(isinstance(error, type) and issubclass(error, Exception) for error in given)
        _check(are_errors, "not_found", not_found, "a tuple of exception classes")
        errors = (NotFound, *not_found)
    _configured, _keep_alone, _load_context, _not_found = path, seconds, context, errors


def _check(holds: bool, option: str, got: object, expected: str) -> None:
    if not holds:
        raise TypeError(f"configure({option}=...): got {got!r}, expected {expected}")


def load_context() -> contextlib.AbstractContextManager[Any]:
    """What a load is to run in that runs in a thread of ours."""
    return _load_context()


def says_not_found(error: Exception) -> bool:
    """Whether a loader says by this error that there is no such value."""
    return isinstance(error, _not_found)


def keep_alone() -> float:
    """How long this process keeps what it loads without a coordinator, in seconds."""
    if _keep_alone is not None:
        return _keep_alone
    try:
        return _seconds(os.environ.get(KEEP_VARIABLE, KEEP_ALONE), KEEP_VARIABLE)
    except ValueError as error:  # no get fails because of it
        logger.warning("%s; it is %g", error, KEEP_ALONE)
        return KEEP_ALONE


def _seconds(value: float | str, option: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{option}: got {value!r}, expected seconds from 0 to {MAX_SECONDS:g}")
    return seconds


def is_private() -> bool:
    """Whether this application starts its coordinator on its own."""
    return _configured is None and not os.environ.get(SOCKET_VARIABLE)


def location() -> Location:
    """Where this process finds its coordinator."""
    if _configured is not None:
        return Location(_configured, private=False)
    if path := os.environ.get(SOCKET_VARIABLE):
        return Location(check_socket_path(path, SOCKET_VARIABLE), private=False)
    return Location(_private_path(), private=True)


def _private_path() -> str:
    """One socket for what unrelated workers of one application share.

    That is a name they inherited, else user, process group and working directory, and directories that somebody gave
    them to be apart. It is handed on in the environment, so that a worker's own children, whatever their process group,
    come to the same one.
    """
    if not (application := os.environ.get(APPLICATION_VARIABLE)):
        apart = [os.environ.get(name, "") for name in ("XDG_RUNTIME_DIR", "TMPDIR")]
        process_group = f"{os.stat('/proc/self/ns/pid').st_ino}:{os.getpgrp()}"  # each namespace counts from 1
        application = os.environ.setdefault(APPLICATION_VARIABLE, ":".join([process_group, os.getcwd(), *apart]))
    path = private_socket(application)
    check_own(os.path.dirname(path))
    return path


def private_socket(application: str) -> str:
    """The socket of an application's private coordinator.

    It lies where its segments lie: who shares the one has to share the other, whatever else a login shell, a service or
    a container has of its own.
    """
    with importing:
        import hashlib  # which brings OpenSSL along, and is not for those who say where their coordinator is

    digest = hashlib.blake2b(application.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"{private_directory()}/{digest}.sock"


def check_own(directory: str) -> None:
    """Raise ``CoordinatorError`` where somebody else owns a directory's name, or others may enter it."""
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise CoordinatorError(
            f"{directory}: expected a directory of user {os.getuid()} with mode 0700; remove it, or set "
            f"{SOCKET_VARIABLE}"
        )
