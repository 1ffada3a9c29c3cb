"""The coordinator, all of it, for which moments are what minutes are to the real one: see impatient.py."""

from __future__ import annotations

import sys

from mpgroupcache.coordinator import instance, liveness, main, roster

liveness.SLOW_LOAD = 0.5
liveness.SLOW_LOAD_AGAIN = 0.5
instance.MEMORY_RETRY = 0.5
roster.TELL_INTERVAL = 1.0

if __name__ == "__main__":
    sys.exit(main.main())
