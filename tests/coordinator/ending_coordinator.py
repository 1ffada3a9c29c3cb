"""The coordinator, all of it, which gets SIGTERM at a moment of its end that ``ENDING`` names: a method of its own."""

from __future__ import annotations

import os
import signal
import sys

from mpgroupcache.coordinator import main
from mpgroupcache.coordinator.instance import Coordinator


class _Ending(Coordinator):
    async def serve(self) -> None:
        await super().serve()
        self._signal("serve")

    def close(self) -> None:
        self._signal("close")
        super().close()

    def _signal(self, moment: str) -> None:
        if os.environ["ENDING"] == moment:
            os.environ["ENDING"] = "over"  # for the next one too
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main.Coordinator = _Ending  # type: ignore[misc]
    sys.exit(main.main())
