"""The command ``mpgroupcache-coordinator``: one host's shared cache as a process of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from enum import IntEnum

import uvloop

from mpgroupcache.errors import AlreadyRunning, ArenaError
from mpgroupcache.ipc import options as options_module
from mpgroupcache.ipc import private
from mpgroupcache.ipc.options import Options
from mpgroupcache.ipc.peering import Peering
from mpgroupcache.ipc.server import Coordinator

logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """From 10 on: gunicorn before 26.1 stops its server when any child of its own ends with 3 or 4."""

    OK = 0
    ALREADY_RUNNING = 10
    NO_SHARED_MEMORY = 11
    NO_SOCKET = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a coordinator until SIGTERM or SIGINT; returns the exit code."""
    options = options_module.parse(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s mpgroupcache[%(process)d] %(levelname)s: %(message)s"
    )
    writer = private.detach() if options.detach else -1
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(options, writer))
    except AlreadyRunning as error:
        logger.error("--socket %s: %s; stop it first, or choose another path", options.socket, error)
        return ExitCode.ALREADY_RUNNING
    except ArenaError as error:
        logger.error("%s", error)
        return ExitCode.NO_SHARED_MEMORY
    except (OSError, ValueError) as error:  # which names its option
        logger.error("%s", error)
        return ExitCode.NO_SOCKET
    return ExitCode.OK


async def _run(options: Options, writer: int) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)  # before there is a segment that a signal's default would leave
    peering = Peering(options)
    loop.add_signal_handler(signal.SIGHUP, peering.refresh)
    coordinator = Coordinator(options, stopping, peering)
    await coordinator.open()
    if writer >= 0:
        private.report_ready(options.socket, writer)
    logger.info("serving on %s, instance %s", options.socket, coordinator.instance)
    await coordinator.serve()
    logger.info("ended")


if __name__ == "__main__":
    sys.exit(main())
