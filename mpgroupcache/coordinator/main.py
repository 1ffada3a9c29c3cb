"""The command ``mpgroupcache-coordinator``: one host's shared cache as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvloop

from mpgroupcache.coordinator import options as options_module
from mpgroupcache.coordinator.instance import MAX_CONNECTIONS, Coordinator
from mpgroupcache.coordinator.options import ExitCode, Options
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.errors import AlreadyRunning, ArenaError
from mpgroupcache.limits import SOCKET_VARIABLE
from mpgroupcache.shm import remains
from mpgroupcache.shm.segment import control_name, instance_name, private_files, segment_path

if TYPE_CHECKING:
    from mpgroupcache.net.hooks import NamedRing

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
MOST_DESCRIPTORS = 2 * MAX_CONNECTIONS  # for workers, and as many for peers, segments and values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a coordinator until SIGTERM or SIGINT; returns the exit code. SIGUSR2 begins it anew, with its cache."""
    # Until there are handlers, and while one becomes the next: their default is the process's end.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    options = options_module.parse(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s mpgroupcache[%(process)d] %(levelname)s: %(message)s"
    )
    for variable, known in options_module.misspelt():
        logger.warning("%s: got a variable that means nothing here; is it %s?", variable, known)
    if options.clean:
        return _clean(options.socket)
    writer = _detach() if options.detach else -1
    _raise_descriptor_limit()
    try:
        pool = None if options.app is None else _import_pool(options.app, options.socket)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            restarts = runner.run(_run(options, writer, pool))
    except AlreadyRunning as error:
        logger.error("--socket %s: %s; stop it first, or choose another path", options.socket, error)
        return ExitCode.ALREADY_RUNNING
    except ArenaError as error:
        logger.error("%s", error)
        return ExitCode.NO_SHARED_MEMORY
    except (OSError, ValueError) as error:  # which names its option
        logger.error("%s", error)
        return ExitCode.BAD_OPTION
    if restarts:
        _restart()
    return ExitCode.OK


def _clean(socket: str) -> ExitCode:
    """Remove what dead coordinators have left, and say what that was."""
    if not socket:
        removed = remains.remove_dead(silent=0.0)
    else:
        instance = instance_name(socket)
        gone = remains.remove_if_dead(instance)
        if gone is None and os.path.exists(segment_path(control_name(instance))):
            logger.error(
                "--socket %s: its coordinator or a worker lives, or it is another user's; end it first", socket
            )
            return ExitCode.ALREADY_RUNNING
        removed = [] if gone is None else [gone]
    for gone in removed:
        print(f"{gone.instance}: {gone}")
    if not removed:
        print("nothing was left")
    return ExitCode.OK


def _raise_descriptor_limit() -> None:
    """The usual soft limit of 1024 is for those who ``select()``. No higher than is of use: loaders inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MOST_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _restart() -> None:
    """Become the next coordinator, as it is installed now: the same process, with the same arguments."""
    # It has left its starter already.
    arguments = [argument for argument in sys.orig_argv[1:] if argument != "--detach"]
    os.execv(sys.executable, [sys.executable, *arguments])


def _import_pool(app: str, socket: str) -> NamedRing | None:
    """Import the application's module, for the sake of an ``HTTPPool`` with functions of its own."""
    from mpgroupcache.coordinator.application import import_app  # few coordinators have one

    os.environ[SOCKET_VARIABLE] = socket  # what it gets while it is imported is no reason to start another coordinator
    import_app(app)
    pool = sys.modules.get("mpgroupcache.pool")  # imported by whoever made one
    return None if pool is None else pool.made()


async def _run(options: Options, writer: int, pool: NamedRing | None) -> bool:
    """Serve until it is to end; returns whether it is to begin again."""
    loop = asyncio.get_running_loop()
    stopping, restarting = asyncio.Event(), asyncio.Event()

    def restart() -> None:
        if not stopping.is_set():
            restarting.set()
            stopping.set()

    def end() -> None:
        restarting.clear()  # whoever wants it ended wants no other, also while it drains for the next one
        stopping.set()

    loop.add_signal_handler(signal.SIGUSR2, restart)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)  # before there is a segment that a signal's default would leave
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    peering = Peering(options, pool)
    loop.add_signal_handler(signal.SIGHUP, peering.refresh)
    coordinator = Coordinator(options, stopping, restarting, peering)
    loop.add_signal_handler(signal.SIGUSR1, coordinator.report)
    await coordinator.open()
    try:
        if writer >= 0:
            _report_ready(options.socket, writer)
        logger.info("serving on %s, instance %s", options.socket, coordinator.instance)
        await coordinator.serve()
        await _leave_signals()
    finally:
        coordinator.close()
    logger.info("ended")
    return restarting.is_set()


async def _leave_signals() -> None:
    """Leave signals to the next coordinator, until it has handlers; the loop takes those of this one with it.

    1. ``restarting`` is looked at. 2. SIGTERM comes. 3. The loop ends without a look at its pipe: nobody has been told.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for _ in range(3):  # what came before is read in one turn of the loop, and its handler called in the next
        await asyncio.sleep(0)


def _detach() -> int:
    """Leave the process that started this one; returns a descriptor that ``_report_ready`` takes.

    The first process stays until then, so that its exit code says whether the second one serves.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) != 0:
        os.close(writer)
        if os.read(reader, 1):
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF or 1)
    os.close(reader)
    return writer


def _report_ready(path: str, writer: int) -> None:
    """Tell the first process that this one serves, and write to a log file beside the socket from now on.

    The streams that were inherited belong to the application: kept open, they would keep its pipes open.
    """
    log = os.open(private_files(path)[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    with contextlib.suppress(OSError):
        os.write(writer, b"1")
    os.close(writer)
