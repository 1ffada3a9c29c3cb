"""The coordinator's own loader processes: a host without web workers is a full peer with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sys

from mpgroupcache.limits import SOCKET_VARIABLE

logger = logging.getLogger(__name__)

RESTART_FIRST = 0.25  # s until a loader that died is started again
RESTART_MOST = 30.0  # s; the delay doubles with each start that ends early
LIVED = 60.0  # s after which an end says nothing about the next start
END_TIMEOUT = 5.0  # s that the end of the coordinator leaves a load under way


class Loaders:
    """``count`` processes that import ``app`` and load for it."""

    def __init__(self, app: str, count: int, socket: str) -> None:
        self._app = app
        self._socket = socket
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ending = False
        self._tasks = [asyncio.create_task(self._keep(number)) for number in range(count)]

    async def close(self) -> None:
        """End them all: now those that wait, soon those that load."""
        self._ending = True
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        _, late = await asyncio.wait(self._tasks, timeout=END_TIMEOUT if self._processes else 0)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                process.kill()
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        """Run one, and start it again whenever it ends."""
        loop = asyncio.get_running_loop()
        delay = RESTART_FIRST
        while not self._is_ending():
            started = loop.time()
            reason = await self._run(number)
            if loop.time() - started > LIVED:
                delay = RESTART_FIRST
            if self._is_ending():
                return
            logger.error("loader %d of --app %s %s; it is started again in %.2f s", number, self._app, reason, delay)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, RESTART_MOST)

    def _is_ending(self) -> bool:
        return self._ending

    async def _run(self, number: int) -> str:
        """Run one to its end, and say what that was."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mpgroupcache.coordinator.loader",
                self._app,
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the coordinator's: it ends them in order
                env={**os.environ, SOCKET_VARIABLE: self._socket},
            )
        except OSError as error:
            return f"could not be started: {error}"
        self._processes[number] = process
        try:
            code = await process.wait()
        finally:
            del self._processes[number]
        return f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"
