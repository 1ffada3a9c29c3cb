"""The coordinator, all of it, for which moments are what minutes are to the real one."""

from __future__ import annotations

import sys

from mpgroupcache.coordinator import liveness, main

liveness.SLOW_LOAD = 0.5
liveness.SLOW_LOAD_AGAIN = 0.5

if __name__ == "__main__":
    sys.exit(main.main())
