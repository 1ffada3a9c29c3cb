"""Tools that some tests need, and that a developer may do without."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test for want of a tool; with ``MPGROUPCACHE_CI=1``, as CI has it, fail it."""
    if os.environ.get("MPGROUPCACHE_CI") == "1":
        pytest.fail(f"{what} (fails since MPGROUPCACHE_CI=1)")
    pytest.skip(what)
