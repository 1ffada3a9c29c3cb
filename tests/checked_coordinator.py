"""A coordinator that, at SIGUSR1, writes what ``Arena.check()`` says of its arenas to standard output."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import uvloop

from mpgroupcache.ipc import options
from mpgroupcache.ipc.peering import Peering
from mpgroupcache.ipc.server import Coordinator


async def run() -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    parsed = options.parse(sys.argv[1:])
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    coordinator = Coordinator(parsed, stopping, Peering(parsed))

    def check() -> None:
        coordinator._control.reap()
        report = []
        for group in coordinator._groups:
            assert group.arena is not None
            group.arena.sweep()
            report.append({"faults": group.arena.check(), "limbo": group.arena.limbo_bytes})
        print(json.dumps(report), flush=True)

    loop.add_signal_handler(signal.SIGUSR1, check)
    await coordinator.open()
    await coordinator.serve()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
