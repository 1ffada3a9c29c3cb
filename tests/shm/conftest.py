"""The compiler of those tests that bring native code of their own."""

from __future__ import annotations

import os
import shlex
import shutil

import pytest


@pytest.fixture(scope="session")
def compiler() -> list[str]:
    if os.environ.get("MPGROUPCACHE_TEST_NATIVE") == "0":
        pytest.skip("MPGROUPCACHE_TEST_NATIVE=0")
    command = shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, ("gcc", "cc", "clang")), "")]
    if not shutil.which(command[0]):
        pytest.fail(
            f"no C compiler: got CC={os.environ.get('CC')!r} and no gcc, cc or clang on PATH; install gcc, or set "
            "MPGROUPCACHE_TEST_NATIVE=0 to leave these tests out"
        )
    return command
