"""The embedded default: a coordinator that an application starts for itself, and that ends a while after it.

It lives beside the application's server, not under it: a process of its own session whose parent has gone, so that it
is nobody's zombie, no arbiter's unknown child, and untouched by reloads. What keeps it alive is its clients.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time

from mpgroupcache.errors import CoordinatorUnavailable
from mpgroupcache.late import importing
from mpgroupcache.limits import SOCKET_VARIABLE
from mpgroupcache.shm.segment import give_start_lock, private_files, remove_private_files, try_start_lock
from mpgroupcache.worker import config
from mpgroupcache.worker.link import connect

logger = logging.getLogger(__name__)

_NEEDED = ("HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
LOCK_INTERVAL = 0.02  # s between two looks at the lock of whoever starts it
START_TIMEOUT = 20.0  # s for a new interpreter to serve, or for whoever starts it; it takes some 0.1


def ensure_running(path: str) -> None:
    """Return when a coordinator serves on ``path``, started here if none did. Raises ``CoordinatorUnavailable``.

    Of workers that come at once, one starts it: the others wait on a lock file beside the socket. The file only saves
    needless starts; that there is one coordinator is seen to by the lock on the control segment.
    """
    if answers(path):
        return
    deadline = time.monotonic() + START_TIMEOUT
    directory = os.path.dirname(path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    config.check_own(directory)
    lock = _acquire(path, deadline)
    try:
        if not answers(path):
            _start(path, deadline - time.monotonic())
    except CoordinatorUnavailable:
        if not answers(path):  # else another has started it, and these are its files
            remove_private_files(path)
        raise
    finally:
        give_start_lock(lock)


def _is_needed(variable: str) -> bool:
    """Whether a coordinator is to have it: what Python and our options read, and none of the application's secrets."""
    return variable in _NEEDED or variable.startswith(("LC_", "LD_", "MPGROUPCACHE_", "PYTHON", "SSL_CERT_"))


def _acquire(path: str, deadline: float) -> int:
    """Take the lock, or raise ``CoordinatorUnavailable``: whoever starts the coordinator may be stopped himself."""
    while (lock := try_start_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise CoordinatorUnavailable(
                f"another process holds {private_files(path)[0]} for more than {START_TIMEOUT:g} s and started no "
                "coordinator"
            )
        time.sleep(LOCK_INTERVAL)
    return lock


def answers(path: str) -> bool:
    """Whether a coordinator takes connections there."""
    try:
        connect(path).close()
    except CoordinatorUnavailable:
        return False
    return True


def _start(path: str, timeout: float) -> None:
    """Start it. The process that is started here ends, with exit code 0, when the one that it leaves behind serves."""
    if not sys.executable:  # as in a program that has Python within it, such as mod_wsgi's
        raise CoordinatorUnavailable(
            f"sys.executable: got {sys.executable!r}, expected the interpreter to run the private coordinator with; "
            f"start mpgroupcache-coordinator, and set {SOCKET_VARIABLE} to its --socket"
        )
    with importing:
        import subprocess  # only the first process of an application comes here

    # -P: a module of the application that is named like one of ours or of Python's is not to be taken for it.
    command = [sys.executable, "-P", "-m", "mpgroupcache.coordinator", "--socket", path, "--embedded", "--detach"]
    try:
        started = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
            start_new_session=True,
            check=False,
            env={name: value for name, value in os.environ.items() if _is_needed(name)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CoordinatorUnavailable(f"the private coordinator did not start: {error}") from error
    if started.returncode:
        reason = started.stderr.decode(errors="replace").strip() or f"exit code {started.returncode}"
        raise CoordinatorUnavailable(f"the private coordinator did not start: {reason}")
    said = started.stderr.decode(errors="replace").splitlines()
    for line in said:  # before it had a log of its own
        if " WARNING: " in line or " ERROR: " in line:
            logger.warning("the private coordinator says: %s", line)
    logger.info("started a private coordinator on %s; its log is %s", path, private_files(path)[1])
