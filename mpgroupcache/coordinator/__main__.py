"""``python -m mpgroupcache.coordinator``: the command ``mpgroupcache-coordinator``."""

import gc
import sys

if __name__ == "__main__":
    # An application's first get waits for this, and nothing that comes with a module's import is garbage.
    gc.disable()
    from mpgroupcache.coordinator.main import main

    gc.enable()
    sys.exit(main())
