"""A loader process: a worker without requests of its own, that loads for peers what an application declares.

The coordinator starts it (``--app``, ``--loaders``), and it ends when its standard input does: with the coordinator,
however that ended.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Sequence

from mpgroupcache import registry
from mpgroupcache.coordinator.application import import_app

logger = logging.getLogger(__name__)

LOOK_INTERVAL = 1.0  # s between two looks whether every group is still attached


def main(arguments: Sequence[str]) -> int:
    """Import the module of groups and serve their loads until standard input ends; returns the exit code."""
    (app,) = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s mpgroupcache[%(process)d] %(levelname)s: %(message)s")
    import_app(app)
    if not registry.declared():
        logger.error("--app: got %r, which declares no group, expected a module that calls new_group or cached", app)
        return 1
    while True:
        registry.connect()  # nothing to do for groups that are attached
        ready, _, _ = select.select([0], [], [], LOOK_INTERVAL)
        if ready and not os.read(0, 4096):
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
