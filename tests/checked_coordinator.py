"""The coordinator, all of it, which at SIGUSR1 writes to standard output how it finds itself: see checked.py."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from mpgroupcache.coordinator import main
from mpgroupcache.coordinator.instance import Coordinator


class _Checked(Coordinator):
    async def open(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._report)
        await super().open()

    def _report(self) -> None:
        self._control.reap()
        faults, limbo = [], 0
        for group in self._groups:
            if group.arena is not None:
                group.arena.sweep()
                faults += group.arena.check()
                limbo += group.arena.limbo_bytes
        ring = self._peering.ring
        report = {
            "faults": faults,
            "limbo": limbo,
            "flights": self._misses.under_way,
            "connections": len(self._connections),
            "ring": 0 if ring is None else len(ring.urls),
            "failing": 0 if ring is None else sum(not peer.available for peer in ring.peers),
            "tasks": len(asyncio.all_tasks()),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main.Coordinator = _Checked  # type: ignore[misc]
    sys.exit(main.main())
