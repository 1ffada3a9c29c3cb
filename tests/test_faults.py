"""Faults of processes, descriptors, directories, memory and clocks: no get fails, and all that was held comes back.

Those of peers are in net/, of segments in test_adoption.py, of leases in test_leases.py: docs/faults.md names them all.
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_memory import NoPrivateMount, mount_small
from tools import missing
from workers import (
    PATIENCE,
    Daemon,
    HandWorker,
    Worker,
    advance,
    descriptors_of,
    leave,
    segments_of,
    value_of,
    wait_until,
)

import mpgroupcache
from mpgroupcache.coordinator.main import ExitCode
from mpgroupcache.ipc import frame, messages
from mpgroupcache.shm.segment import room
from mpgroupcache.sizes import format_size
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT

if TYPE_CHECKING:
    from children import Child

Start = Callable[..., Daemon]
SpawnOn = Callable[..., Worker]


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """A process that cannot open another file."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


# ---- Workers


def test_a_stopped_worker_keeps_what_it_holds_and_nobody_waits_for_it(
    start_coordinator: Start, spawn_on: SpawnOn
) -> None:
    budget = 4 << 20
    daemon = start_coordinator()
    holder, other = (spawn_on(daemon.socket, cache_bytes=budget) for _ in range(2))
    held = [f"big:60000:{i}" for i in range(10)]
    for key in held:
        holder.do("hold_view", key)
    holder.send(signal.SIGSTOP)
    for i in range(200):  # three times the budget
        assert other.get(f"big:60000:other-{i}") == value_of(f"big:60000:other-{i}")
    holder.send(signal.SIGCONT)
    for key in held:
        assert holder.do("read_view", key) == value_of(key)
        holder.do("drop_view", key)
    assert other.do("stats")[1].bytes <= budget


def test_views_that_a_loader_leaks_cost_no_get(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    """Of more entries than a process has pins: those beyond are copies."""
    daemon = start_coordinator()
    worker, other = spawn_on(daemon.socket), spawn_on(daemon.socket)
    keys = [f"k{i}" for i in range(1500)]
    assert worker.do("leak", keys) == len(keys)
    assert worker.do("leak", keys) == len(keys)
    assert other.do("leak", keys[::-1]) == len(keys)
    assert worker.get("another") == value_of("another")
    worker.kill()
    assert other.get("and another") == value_of("and another")


def test_a_worker_killed_with_a_half_sent_frame(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    worker = spawn_on(daemon.socket)
    assert worker.get("k") == value_of("k")
    hands = [HandWorker(daemon.socket) for _ in range(3)]
    group = hands[0].declare()
    lease = hands[0].lease(group, b"half")
    waiting = worker.begin_waiting("half")
    whole = frame.encode(messages.Store(lease, value_of("half"), False, None, None, None, False), 9)
    hands[0].sock.sendall(whole[:-1])
    hands[1].sock.sendall(whole[:5])  # and stays, silent
    hands[0].close()
    assert waiting.result(PATIENCE) == value_of("half")
    assert worker.loads == ["k", "half"]
    hands[1].close()
    hands[2].close()


def test_a_worker_killed_while_its_threads_wait(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    """It dies with the reading of its channel in one thread's hands, a lease in another's, waits in a third's."""
    daemon = start_coordinator()
    victim, other = spawn_on(daemon.socket), spawn_on(daemon.socket)
    victim.begin_loading("hold:a")
    for _ in range(3):
        victim.begin_waiting("hold:a")
    waiting = other.begin_waiting("hold:a")
    other.release("a")
    victim.kill()
    assert waiting.result(PATIENCE) == value_of("hold:a")
    assert other.loads == ["hold:a"]


def test_a_worker_without_descriptors_loads_alone(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    worker, attached = spawn_on(daemon.socket), spawn_on(daemon.socket)
    assert attached.get("k") == value_of("k")
    worker.do("release", "warm")
    with without_descriptors(worker.pid), without_descriptors(attached.pid):
        for key in ("k", "a", "b"):
            assert worker.get(key) == attached.get(key) == value_of(key)
        assert attached.loads == ["k", "a", "b"]
    wait_until(lambda: worker.do("connect"), "a connection")
    assert worker.get("c") == attached.get("c") == value_of("c")
    assert (worker.loads + attached.loads).count("c") == 1


# ---- The coordinator


def test_a_coordinator_without_descriptors(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    attached, new = spawn_on(daemon.socket), spawn_on(daemon.socket)
    large = "big:300000:a"  # travels by descriptor
    assert attached.get("k") == value_of("k")
    with without_descriptors(daemon.process.pid):
        begin = time.monotonic()
        assert new.get("k") == value_of("k")
        assert time.monotonic() - begin < 2 * LIVENESS_TIMEOUT
        assert attached.get("new") == value_of("new")
        assert attached.get(large) == value_of(large)
        daemon.wait_says("expected a free file descriptor")
    wait_until(lambda: new.do("connect"), "a connection")
    later = (f"later-{i}" for i in itertools.count())

    def share() -> bool:
        """The attached one finds out by a get that its connection was closed, with a frame whose value was lost."""
        key = next(later)
        assert new.get(key) == attached.get(key) == value_of(key)
        return (new.loads + attached.loads).count(key) == 1

    wait_until(share, "a value that both share")


def test_the_sockets_directory_is_removed(tmp_path: Path, spawn_on: SpawnOn) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    path = str(directory / "s")
    daemon = Daemon(path).wait_serving()
    try:
        attached, new = spawn_on(path), spawn_on(path)
        assert attached.get("k") == value_of("k")
        shutil.rmtree(directory)
        assert attached.get("a") == value_of("a")
        wait_until(lambda: attached.do("lookup", "a"), "a value that is cached")
        assert new.get("k") == value_of("k")  # alone
        # Another on a path of the same name does not take the place of one that lives, and nothing is lost by it.
        directory.mkdir()
        second = Daemon(path)
        assert second.wait() == ExitCode.ALREADY_RUNNING
        assert attached.do("lookup", "k") == value_of("k")
        attached.close()
        new.close()
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == ExitCode.OK
        assert segments_of(path) == []
    finally:
        daemon.close()


class SmallHost:
    """Workers and a coordinator where shared memory is short."""

    def __init__(self, path: str, size: int, *options: str) -> None:
        try:
            mount_small(size)
        except NoPrivateMount as error:
            self.refused: str | None = str(error)
            return
        self.refused = None
        self.daemon = Daemon(path, *options).wait_serving()
        mpgroupcache.configure(socket=path)

    def fill(self) -> tuple[int, int, str]:
        """Get more than there is room for; how much of it is cached in the end, what memory is left, and the log."""
        loads = []

        def load(ctx: object, key: str, dest: mpgroupcache.Sink) -> None:
            loads.append(key)
            dest.set_bytes(value_of(key))

        group = mpgroupcache.new_group("group", "64MiB", load)
        keys = [f"big:30000:{i}" for i in range(300)]
        for key in keys * 2:
            assert group.get(key) == value_of(key)
        self.daemon.wait_says("no more shared memory in /dev/shm")
        cached = group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).bytes
        memory = room()
        assert memory is not None
        leave()
        self.daemon.close()
        return cached, memory.free, "".join(self.daemon.log)


@pytest.mark.parametrize(
    ("options", "reserve"), [((), 256 << 10), (("--reserve", "1MiB"), 1 << 20), (("--reserve", "0"), 0)]
)
def test_where_shared_memory_runs_out_the_cache_is_smaller(
    tmp_path: Path, child: Callable[..., Child], options: tuple[str, ...], reserve: int
) -> None:
    """Its reserve is left: regions of workers come out of it, and one step of an arena's may not have fitted."""
    size = 4 << 20
    host = child(SmallHost, str(tmp_path / "s"), size, *options)
    if (refused := host.call("__getattribute__", "refused")) is not None:
        missing(f"no mounts of one's own here: {refused}")
    cached, free, log = host.call("fill")
    assert (size - reserve) // 2 < cached < size - reserve
    assert reserve <= free < reserve + (128 << 10)
    assert log.count("no more shared memory") == 1
    assert f"of which --reserve leaves {format_size(reserve)} free" in log
    assert "docker run --shm-size" in log


# ---- Many at once

CROWD = """
import os, sys, time, mpgroupcache

count, told = int(sys.argv[1]), sys.argv[2]
log = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def load(ctx, key, dest):
    os.write(log, f"load {key}\\n".encode())
    dest.set_string("value of " + key)


def get(key):
    os.write(log, b"got\\n" if group.get(key) == "value of " + key else b"wrong\\n")


def wait(condition):
    while not condition():
        time.sleep(0.05)  # the pace of looking: a thousand look


group = mpgroupcache.new_group("crowd", "1MiB", load)
begin, go = os.pipe()
joined, tell_joined = os.pipe()
proceed, go_on = os.pipe()
for _ in range(count):
    if os.fork() == 0:
        os.close(go)
        os.close(go_on)
        os.read(begin, 1)
        get("a")
        get("b")
        wait(mpgroupcache.connect)
        os.write(log, b"reads\\n" if group.readable else b"cannot read\\n")
        os.write(tell_joined, b".")
        os.read(proceed, 1)
        get("c")
        os._exit(0)
os.close(go)
for _ in range(count):
    os.read(joined, 1)
get("c")
wait(lambda: group.lookup("c") is not None)
os.close(go_on)
sys.exit(any([os.wait()[1] for _ in range(count)]))
"""


def test_a_thousand_workers_connect_at_once(start_coordinator: Start, tmp_path: Path) -> None:
    """No get fails. Those that the coordinator did not get to in time load alone, and join later; then all share."""
    count = 1000
    told = tmp_path / "told"
    daemon = start_coordinator()
    before = descriptors_of(daemon.process.pid)
    done = subprocess.run(
        [sys.executable, "-c", CROWD, str(count), str(told)],
        env=dict(os.environ, MPGROUPCACHE_SOCKET=daemon.socket),
        capture_output=True,
        text=True,
        timeout=20 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = Counter(told.read_text().splitlines())
    assert lines["got"] == 3 * count + 1
    assert lines["wrong"] == 0
    assert lines["reads"] == count
    assert lines["load c"] == 1
    an_arena = 3
    wait_until(lambda: descriptors_of(daemon.process.pid) <= before + an_arena, "descriptors that are closed")


# ---- Clocks


def wall_clock(clock: Path) -> dict[str, str]:
    """The variables of a process whose wall clock is off by what this file says."""
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
    if library is None:
        missing("no libfaketime here (apt-get install libfaketime)")
    clock.write_text("+0")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }


def test_wall_clock_jumps(spawn_on: SpawnOn, tmp_path: Path, socket_path: str) -> None:
    clock = tmp_path / "clock"
    fake = wall_clock(clock)
    daemon = Daemon(socket_path, "--lease-timeout", "5", env=dict(os.environ, **fake)).wait_serving()
    try:
        worker, other = spawn_on(socket_path), spawn_on(socket_path)
        loading = worker.begin_loading("hold:a")
        waiting = other.begin_waiting("hold:a")
        for jump in ("+3650d", "-3650d", "+0"):
            clock.write_text(jump)
            for key in ("k", f"after {jump}"):
                assert worker.get(key) == other.get(key) == value_of(key)
        assert other.loads == []  # the lease was not taken away
        worker.release("a")
        assert loading.result(PATIENCE) == waiting.result(PATIENCE) == value_of("hold:a")
        assert other.loads == []
    finally:
        worker.close()
        other.close()
        daemon.close()


def test_values_age_by_no_wall_clock(
    spawn_on: SpawnOn, tmp_path: Path, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator's and a worker's jump by years, both ways: nothing dies of that, and nothing lives longer."""
    clock = tmp_path / "clock"
    fake = wall_clock(clock)
    daemon = Daemon(socket_path, env=dict(os.environ, **fake)).wait_serving()
    try:
        with monkeypatch.context() as patch:
            for name, value in fake.items():
                patch.setenv(name, value)
            worker = spawn_on(socket_path, ttl=600, stale=600)
            assert worker.do("connect")
        for jump in (3650, -3650, 0):
            worker.do("call", "set", "lasting", b"before")
            worker.do("call", "set", "brief", b"before", ttl=60, stale=0)
            clock.write_text(f"{jump:+}d")
            assert abs(worker.do("wall_clock") - time.time() - jump * 86400) < 86400
            assert worker.get("lasting") == worker.get("brief") == b"before"
            worker.do("call", "set", "brief after", b"after", ttl=60, stale=0)
            advance(socket_path, 30)
            for key, value in (("lasting", b"before"), ("brief", b"before"), ("brief after", b"after")):
                assert worker.do("lookup", key) == value
            advance(socket_path, 40)
            assert worker.do("lookup", "lasting") == b"before"
            assert worker.do("lookup", "brief") is worker.do("lookup", "brief after") is None
        assert worker.loads == []
        assert worker.do("stats")[0].stale_hits == 0
    finally:
        worker.close()
        daemon.close()
