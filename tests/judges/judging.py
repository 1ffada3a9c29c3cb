"""How the tests of others are counted: each passes, or there is a reason why it cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from workers import Daemon

ROOT = Path(__file__).parents[2]


def environment_of(daemon: Daemon) -> dict[str, str]:
    """Of a process that runs the tests of others."""
    return dict(os.environ, MPGROUPCACHE_SOCKET=daemon.socket, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")


def check(tests: set[str], failed: Mapping[str, str], reasons: Mapping[str, str]) -> None:
    """Fail where a test fails without a reason, has a reason and passes, or has one and is not there."""
    unexplained = "\n".join(f"{name}:\n{failed[name]}" for name in sorted(failed.keys() - reasons.keys()))
    assert not unexplained, unexplained
    assert reasons.keys() <= tests, f"no such tests: {reasons.keys() - tests}"
    assert reasons.keys() <= failed.keys(), f"they pass, and have a reason not to: {reasons.keys() - failed.keys()}"
