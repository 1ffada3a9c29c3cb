"""The compiler of those tests that bring native code of their own, and an arena to write over."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator

import pytest
from arenas import Instance, OpenArena
from poked import NotingLookup, Poked


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


@pytest.fixture
def opened(arena: Callable[..., OpenArena]) -> OpenArena:
    """An arena of 1 MiB."""
    return arena(1 << 20)


@pytest.fixture
def poked(instance: Instance, opened: OpenArena) -> Iterator[Poked]:
    """Its memory."""
    poked = Poked(instance, opened)
    yield poked
    poked.undo()


@pytest.fixture
def group(opened: OpenArena) -> NotingLookup:
    """A reader of it."""
    return NotingLookup(*opened.address)
