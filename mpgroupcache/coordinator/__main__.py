"""``python -m mpgroupcache.coordinator``: the command ``mpgroupcache-coordinator``."""

import sys

from mpgroupcache.coordinator.main import main

if __name__ == "__main__":
    sys.exit(main())
