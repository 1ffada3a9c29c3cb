"""The coordinator, all of it, to which something happens at a moment of its end, a method, that ``ENDING`` names.

It gets SIGTERM; or, where it is "kept", it waits with what it has decided until it has a SIGUSR1 more.
"""

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

    def _is_kept(self) -> bool:
        kept = super()._is_kept()
        if os.environ["ENDING"] == "kept":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            print("decided", file=sys.stderr, flush=True)
            signal.sigwait([signal.SIGUSR1])
        return kept

    def _signal(self, moment: str) -> None:
        if os.environ["ENDING"] == moment:
            os.environ["ENDING"] = "over"  # for the next one too
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main.Coordinator = _Ending  # type: ignore[misc]
    sys.exit(main.main())
