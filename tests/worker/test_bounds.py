"""A get's timeout bounds its waiting, whatever the coordinator does; and no loop stands still meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from workers import PATIENCE, Daemon, leave, wait_until

import mpgroupcache
from mpgroupcache import DeadlineExceeded, Sink
from mpgroupcache.ipc.fields import INLINE_BYTES
from mpgroupcache.ipc.frame import encode
from mpgroupcache.ipc.messages import Store
from mpgroupcache.worker import process
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT

TIMEOUT = 0.2  # s; all that could be waited for takes ten times as long

Get = Callable[..., Any]


def get(group: mpgroupcache.Group, key: str, timeout: float | None) -> Any:
    return group.get(key, timeout=timeout)


def aget(group: mpgroupcache.Group, key: str, timeout: float | None) -> Any:
    """On a loop that has to go on meanwhile."""

    async def run() -> Any:
        longest, last = 0.0, time.monotonic()
        waiting = asyncio.create_task(group.aget(key, timeout=timeout))
        while not waiting.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert longest < LIVENESS_TIMEOUT / 2
        return await waiting

    return asyncio.run(run())


either = pytest.mark.parametrize("get", [get, aget])


def load(ctx: Any, key: str, dest: Sink) -> None:
    dest.set_string(f"value of {key}")


def exceeds(get: Get, group: mpgroupcache.Group, key: str) -> None:
    """A get ends by its timeout, and about when that is."""
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        get(group, key, TIMEOUT)
    assert TIMEOUT <= time.monotonic() - began < LIVENESS_TIMEOUT / 2


@either
def test_a_coordinator_that_is_stopped_while_a_process_connects(here: Daemon, get: Get) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    here.send(signal.SIGSTOP)
    exceeds(get, group, "k")
    attempt = process.current()._attempt
    assert attempt is not None
    wait_until(lambda: attempt.over)
    assert get(group, "k", TIMEOUT) == "value of k"  # nobody waits for that again


@either
def test_a_coordinator_that_is_stopped_while_a_group_is_declared(here: Daemon, get: Get) -> None:
    first = mpgroupcache.new_group("first", "1MiB", load)
    second = mpgroupcache.new_group("second", "1MiB", load)
    first.get("k")
    here.send(signal.SIGSTOP)
    exceeds(get, second, "k")


@either
@pytest.mark.parametrize("full", [False, True])
def test_a_silent_coordinator(here: Daemon, get: Get, full: bool) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    group.get("k")
    here.send(signal.SIGSTOP)
    if full:
        fill()
    exceeds(get, group, "l")


@either
def test_a_value_that_a_silent_coordinator_does_not_take(here: Daemon, get: Get) -> None:
    """Its load is over: whoever has the value is not kept, and the rest of it is sent when the socket takes it."""

    def stop_and_load(ctx: Any, key: str, dest: Sink) -> None:
        if key == "l":
            here.send(signal.SIGSTOP)
            fill()
        load(ctx, key, dest)

    group = mpgroupcache.new_group("g", "1MiB", stop_and_load)
    group.get("k")
    began = time.monotonic()
    assert get(group, "l", TIMEOUT) == "value of l"
    assert time.monotonic() - began < LIVENESS_TIMEOUT / 2


def fill() -> None:
    """Send until the socket takes no more."""
    link = process.current().working_link
    assert link is not None
    while not link.channel.waiting:
        link.channel.post(encode(Store(1, bytes(INLINE_BYTES), False, None, None, None, False)))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Path]:
    """This process is a worker of nobody."""
    mpgroupcache.configure(socket=tmp_path / "nobody")
    yield tmp_path
    leave()


@either
def test_an_absent_coordinator(alone: Path, get: Get) -> None:
    """The loader's own time does not count; waiting for another caller's does."""
    begun, go = threading.Event(), threading.Event()

    def hold(ctx: Any, key: str, dest: Sink) -> None:
        begun.set()
        assert go.wait(PATIENCE)
        load(ctx, key, dest)

    group = mpgroupcache.new_group("g", "1MiB", hold)
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(group.get, "k", timeout=TIMEOUT)
        assert begun.wait(PATIENCE)
        exceeds(get, group, "k")
        go.set()
        assert holder.result(PATIENCE) == "value of k"


# ---- A private coordinator that starts slowly, or not


@pytest.fixture
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process starts a coordinator that never serves; each try leaves a line in a file."""
    tries = tmp_path / "tries"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ >> {tries}\nexec sleep 300\n")
    program.chmod(0o700)
    monkeypatch.delenv("MPGROUPCACHE_SOCKET", raising=False)
    monkeypatch.setenv("MPGROUPCACHE_APPLICATION", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(program))
    mpgroupcache.configure(socket=None)
    yield tries
    for pid in tries.read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    leave()


@either
def test_a_coordinator_that_starts_slowly(starting: Path, get: Get) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    exceeds(get, group, "k")


def test_one_that_starts_slowly_costs_one_caller_once_and_the_others_nothing(starting: Path) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(group.get, "first")
        wait_until(starting.exists, "a start")
        others = [pool.submit(group.get, f"other-{number}") for number in range(4)]
        for number, other in enumerate(others):
            assert other.result(PATIENCE) == f"value of other-{number}"
        began = time.monotonic()
        for number in range(100):
            assert group.get(f"later-{number}") == f"value of later-{number}"
        assert time.monotonic() - began < 100 * process.COMPANY / 2
        assert not first.done()  # who began it waits
        os.kill(int(starting.read_text()), signal.SIGKILL)
        assert first.result(PATIENCE) == "value of first"

        def tried_again() -> bool:
            began = time.monotonic()
            assert group.get(f"again-{time.monotonic()}")
            assert time.monotonic() - began < process.COMPANY
            return len(starting.read_text().split()) > 1

        wait_until(tried_again, "another start, which nobody waits for")
