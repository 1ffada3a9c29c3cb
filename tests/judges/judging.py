"""How the tests of others are counted: each passes, or there is a reason why it cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path

from workers import Daemon

ROOT = Path(__file__).parents[2]


def environment_of(daemon: Daemon, *paths: Path) -> dict[str, str]:
    """Of a process that runs the tests of others, with modules from ``paths``."""
    path = os.pathsep.join(map(str, (ROOT, *paths)))
    return dict(os.environ, MPGROUPCACHE_SOCKET=daemon.socket, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")


def check(
    tests: Set[str], failed: Mapping[str, str], reasons: Mapping[str, str], sometimes: Mapping[str, str] | None = None
) -> None:
    """Fail where a test fails without a reason, has a reason and passes, or has one and is not there.

    ``sometimes``: reasons of those that pass or fail as time has it.
    """
    explained = reasons.keys() | (sometimes or {}).keys()
    unexplained = "\n".join(f"{name}:\n{failed[name]}" for name in sorted(failed.keys() - explained))
    assert not unexplained, unexplained
    assert explained <= tests, f"no such tests: {explained - tests}"
    assert reasons.keys() <= failed.keys(), f"they pass, and have a reason not to: {reasons.keys() - failed.keys()}"
