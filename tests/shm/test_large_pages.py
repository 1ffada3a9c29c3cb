"""Kernels with pages of 64 KiB (some of arm64 and ppc64): what they refuse to map is not asked of them."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from arenas import Instance
from workers import Daemon, Worker, value_of, wait_until

SOURCE = Path(__file__).parent / "native" / "large_pages.c"
PROBE = """
import mmap, sys
with open(sys.executable, "rb") as file:
    mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ, offset=4096)
"""


@pytest.fixture
def large_pages(compiler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes that start from here on be refused what such a kernel refuses."""
    library = tmp_path / "large_pages.so"
    command = [*compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", SOURCE, "-o", library]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert "Invalid argument" in probe.stderr


def test_workers_and_coordinators_map_what_they_need(
    large_pages: None,
    start_coordinator: Callable[..., Daemon],
    spawn_on: Callable[..., Worker],
    socket_path: str,
) -> None:
    daemon = start_coordinator()
    first, second = (spawn_on(socket_path) for _ in range(2))
    for key in ("a", "big:300000:x"):
        assert first.get(key) == value_of(key)
        wait_until(lambda key=key: first.do("lookup", key) == value_of(key), "a hit in a region of its own")
    assert second.get("a") == value_of("a")
    assert second.do("lookup", "a") == value_of("a")
    daemon.send(signal.SIGKILL)
    daemon.wait()
    start_coordinator().wait_says("took over 2 entries, dropped 0")
    wait_until(lambda: second.do("connect"), "a worker that is back")
    assert second.get("big:300000:x") == value_of("big:300000:x")
    assert second.loads == []
    assert not any("no free region" in line for line in daemon.log)


def test_padding_takes_no_memory(instance: Instance) -> None:
    """A region is mapped in whole large pages; where pages are small, it costs what it holds."""
    if mmap.PAGESIZE > 4096:
        pytest.skip("pages are large here")

    def memory() -> int:
        return os.stat(instance.segment.fd).st_blocks * 512

    assert memory() == 124 * 1024 + 16 * 60 * 1024
    assert instance.control.spare_regions(17) == 32
    assert memory() == 124 * 1024 + 32 * 60 * 1024
