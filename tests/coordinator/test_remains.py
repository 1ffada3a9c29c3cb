"""What is left in shared memory: whoever was the last that had to do with it removes it."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import Child
from small_memory import NoPrivateMount, mount_small
from tools import missing
from workers import PATIENCE, Daemon, Worker, segments_of, value_of, wait_until

from mpgroupcache.coordinator.main import ExitCode
from mpgroupcache.shm import remains
from mpgroupcache.shm._reader import lock_writer, try_gate
from mpgroupcache.shm.remains import SILENT
from mpgroupcache.shm.segment import control_name, instance_name, private_directory, segment_path

ALIVE = 48  # the offset of the last tick's time in a control segment
Start = Callable[..., Daemon]
SpawnOn = Callable[..., Worker]
Spawn = Callable[..., list[Worker]]


@pytest.fixture
def spawn_many(spawn_on: SpawnOn, socket_path: str) -> Spawn:
    """Start so many workers, each with a value in the cache."""

    def spawn(count: int) -> list[Worker]:
        workers = [spawn_on(socket_path, cache_bytes=1 << 20) for _ in range(count)]
        for worker in workers:
            assert worker.get("k") == value_of("k")
        wait_until(lambda: workers[0].do("lookup", "k"))
        return workers

    return spawn


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_last_worker_removes_what_its_coordinator_left(
    start_coordinator: Start, spawn_many: Spawn, socket_path: str, how: signal.Signals
) -> None:
    daemon = start_coordinator()
    *others, last = spawn_many(3)
    daemon.send(how)
    daemon.wait()
    for worker in others:
        worker.close()
        assert len(segments_of(socket_path)) == 2
    assert last.do("lookup", "k") == value_of("k")
    last.close()
    assert segments_of(socket_path) == []


def test_a_worker_that_was_killed_is_nobody_to_wait_for(
    start_coordinator: Start, spawn_many: Spawn, socket_path: str
) -> None:
    daemon = start_coordinator()
    killed, last = spawn_many(2)
    daemon.send(signal.SIGKILL)
    daemon.wait()
    killed.process.kill()
    killed.process.join(PATIENCE)
    assert len(segments_of(socket_path)) == 2
    last.close()
    assert segments_of(socket_path) == []


def test_a_worker_with_views_removes_it_too(start_coordinator: Start, spawn_many: Spawn, socket_path: str) -> None:
    """Its region is its own until it has ended, and says nothing of others that stay."""
    daemon = start_coordinator()
    workers = spawn_many(2)
    for worker in workers:
        worker.do("hold_view", "k")
    daemon.send(signal.SIGTERM)
    daemon.wait()
    for worker in workers:
        worker.close()
    assert segments_of(socket_path) == []


@pytest.mark.parametrize("with_them", [False, True])
def test_all_that_end_at_once(start_coordinator: Start, spawn_many: Spawn, socket_path: str, with_them: bool) -> None:
    """In whatever order: each of them sees that others are there, and one of them is the last."""
    for _ in range(3):
        daemon = start_coordinator()
        workers = spawn_many(6)
        if not with_them:
            daemon.send(signal.SIGTERM)
            daemon.wait()
        ending = [threading.Thread(target=worker.close) for worker in workers]
        for thread in ending:
            thread.start()
        if with_them:
            daemon.send(signal.SIGTERM)
        for thread in ending:
            thread.join()
        daemon.wait() if not with_them else daemon.close()
        assert segments_of(socket_path) == []


class Ending(Daemon):
    program = (str(Path(__file__).with_name("ending_coordinator.py")),)


def test_a_worker_that_ends_while_its_coordinator_leaves_it_the_cache(socket_path: str, spawn_many: Spawn) -> None:
    """1. A coordinator that ends sees a worker, and keeps the cache. 2. The worker ends: it sees a coordinator."""
    daemon = Ending(socket_path, env=os.environ | {"ENDING": "kept"}).wait_serving()
    try:
        [worker] = spawn_many(1)
        daemon.send(signal.SIGTERM)
        daemon.wait_says("decided")
        worker.close()
        assert len(segments_of(socket_path)) == 2
        daemon.send(signal.SIGUSR1)
        assert daemon.wait() == ExitCode.OK
    finally:
        daemon.close()
    assert segments_of(socket_path) == []


FORKS = """
import multiprocessing, sys, mpgroupcache

def work(go):
    mpgroupcache.configure(socket=sys.argv[1])
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string(key))
    group.get("k")
    print("ready", flush=True)
    go.wait()

context = multiprocessing.get_context("fork")
go = context.Event()
child = context.Process(target=work, args=(go,))
child.start()
sys.stdin.readline()
go.set()
child.join()
print("ended", flush=True)
sys.stdin.readline()
"""


def test_a_child_of_multiprocessing_says_that_it_ends(start_coordinator: Start, socket_path: str) -> None:
    """Such children end without what atexit knows."""
    daemon = start_coordinator()
    command = [sys.executable, "-c", FORKS, socket_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        daemon.send(signal.SIGKILL)
        daemon.wait()
        assert segments_of(socket_path)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "ended\n"
        assert segments_of(socket_path) == []
        parent.communicate("\n", timeout=PATIENCE)


VIEWS = """
import os, sys, mpgroupcache
mpgroupcache.configure(socket=sys.argv[1])
group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string(key))
group.get("k")
while (view := group.lookup("k")) is None:
    pass
reader, writer = os.pipe()
if os.fork():
    print("ready", flush=True)
    sys.stdin.readline()
    del view, group
    sys.exit()
os.close(writer)
os.read(reader, 1)  # until the parent has ended
assert view == "k"
print("ended", flush=True)
"""


def test_a_child_that_has_its_parents_views_alone(start_coordinator: Start, socket_path: str) -> None:
    """It has never asked for anything, and is the last that has a region."""
    daemon = start_coordinator()
    command = [sys.executable, "-c", VIEWS, socket_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        daemon.send(signal.SIGKILL)
        daemon.wait()
        assert parent.communicate("\n", timeout=PATIENCE)[0] == "ended\n"  # its pipe ends with the child
    wait_until(lambda: segments_of(socket_path) == [], "the child's end")


def test_whoever_looks_whether_he_was_the_last_keeps_no_coordinator_from_starting(
    start_coordinator: Start, spawn_many: Spawn, socket_path: str
) -> None:
    """It waits at the gate, and goes on with what it finds."""
    daemon = start_coordinator()
    spawn_many(1)
    daemon.send(signal.SIGKILL)
    daemon.wait()
    fd = os.open(segment_path(control_name(instance_name(socket_path))), os.O_RDWR)
    assert try_gate(fd)
    lock_writer(fd)
    following = Daemon(socket_path)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            following.process.wait(1)
        os.close(fd)
        following.wait_serving()
        following.wait_says("took over 1 entries")
    finally:
        following.close()


# ---- What was killed, all of it


def silence(path: str, seconds: float) -> None:
    """Have a dead coordinator's last tick be so long ago."""
    with open(segment_path(control_name(instance_name(path))), "r+b") as control:
        control.seek(ALIVE)
        control.write(struct.pack("<Q", time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(seconds * 1e9)))


@pytest.fixture
def killed(start_coordinator: Start, spawn_many: Spawn) -> Callable[[], None]:
    """Kill a coordinator with its worker."""

    def kill() -> None:
        daemon = start_coordinator()
        [worker] = spawn_many(1)
        daemon.send(signal.SIGKILL)
        daemon.wait()
        worker.process.kill()
        worker.process.join(PATIENCE)

    return kill


class Apart:
    """A process with a shared memory of its own: coordinators of other tests remove what is old, too."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._refused = ""
        try:
            mount_small(64 << 20)
        except NoPrivateMount as error:
            self._refused = str(error)

    def refused(self) -> str:
        return self._refused

    def kill(self, name: str, silent: float) -> None:
        """Leave what a coordinator has that was killed so long ago."""
        path = f"{self._directory}/{name}"
        daemon = Daemon(path).wait_serving()
        daemon.send(signal.SIGKILL)
        daemon.wait()
        silence(path, silent)

    def take_private_name(self, kind: str) -> None:
        if kind == "a file":
            Path(private_directory()).touch()
        else:
            Path(private_directory()).symlink_to(self._directory)

    def make_private(self, name: str) -> None:
        directory = Path(private_directory())
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / name).touch()

    def make_empty(self, name: str, age: float) -> None:
        path = Path(segment_path(name))
        path.touch()
        os.utime(path, (time.time() - age,) * 2)

    def start(self) -> str:
        """Start one, and end it; returns its log."""
        daemon = Daemon(f"{self._directory}/socket").wait_serving()
        daemon.close()
        return "".join(daemon.log)

    def clean(self) -> str:
        return str(clean().stdout)

    def left(self) -> list[str]:
        return sorted(os.listdir("/dev/shm"))


@pytest.fixture
def apart(child: Callable[..., Child], tmp_path: Path) -> Child:
    apart = child(Apart, str(tmp_path))
    if refused := apart.call("refused"):
        missing(f"a mount of one's own: {refused}")
    return apart


def test_another_coordinator_removes_what_was_killed_long_ago(apart: Child, tmp_path: Path) -> None:
    apart.call("kill", "new", SILENT - 60)
    apart.call("kill", "old", SILENT + 1)  # the last to start before the one that is to see it
    old, new = (instance_name(f"{tmp_path}/{name}") for name in ("old", "new"))
    log = apart.call("start")
    assert f"{old}: its coordinator and its workers are dead; removed 1 segments of " in log
    assert new not in log
    assert apart.call("left") == [control_name(new)]


@pytest.mark.parametrize("kind", ["a file", "a link"])
def test_a_private_directorys_name_that_is_somebody_elses(apart: Child, tmp_path: Path, kind: str) -> None:
    """Everybody may make something of that name: it keeps no coordinator from starting, and nothing there goes."""
    precious = tmp_path / "precious.sock"
    precious.write_text("kept")
    apart.call("take_private_name", kind)
    assert "serving on" in apart.call("start")
    assert apart.call("clean") == "nothing was left\n"
    assert precious.read_text() == "kept"


def test_what_starters_that_were_killed_have_left(apart: Child) -> None:
    apart.call("make_private", "a.sock.lock")
    apart.call("make_private", "b.sock.log")
    apart.call("start")
    assert apart.call("left") == []


def test_what_was_killed_before_it_was_whole(apart: Child, tmp_path: Path) -> None:
    """A coordinator that had no memory, or that was making its control segment: by the file's age."""
    name = control_name(instance_name(f"{tmp_path}/any"))
    for segment in (name, f"{name}-{16 * 'a'}"):
        apart.call("make_empty", segment, SILENT - 60)
        apart.call("start")
        assert apart.call("left") == [segment]
        apart.call("make_empty", segment, SILENT + 1)
        apart.call("start")
        assert apart.call("left") == []


def test_cleaning_all(apart: Child) -> None:
    """Without a wait, and what others serve stays."""
    for name in "ab":
        apart.call("kill", name, 0)
    assert apart.call("clean").count(": removed 1 segments of ") == 2
    assert apart.call("left") == []
    assert apart.call("clean") == "nothing was left\n"


def test_nobody_removes_what_somebody_uses(
    start_coordinator: Start, spawn_many: Spawn, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_coordinator()
    [worker] = spawn_many(1)
    name = instance_name(socket_path)
    assert remains.remove_if_dead(name) is None  # its coordinator lives
    daemon.send(signal.SIGKILL)
    daemon.wait()
    assert remains.remove_if_dead(name) is None  # its worker does
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    worker.process.kill()
    worker.process.join(PATIENCE)
    assert remains.remove_if_dead(name) is None  # it is another user's
    monkeypatch.undo()
    removed = remains.remove_if_dead(name)
    assert removed is not None
    assert (removed.instance, removed.segments) == (name, 2)
    assert 100_000 < removed.bytes < 10 << 20
    assert segments_of(socket_path) == []


def clean(*options: str, **environment: str) -> Any:
    command = [sys.executable, "-m", "mpgroupcache.coordinator", "--clean", *options]
    own = {name: value for name, value in os.environ.items() if name != "MPGROUPCACHE_SOCKET"} | environment
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_cleaning_one(killed: Callable[[], None], start_coordinator: Start, socket_path: str) -> None:
    killed()
    start_coordinator(socket=f"{socket_path}-2")
    done = clean("--socket", f"{socket_path}-2")
    assert (done.returncode, done.stdout) == (ExitCode.ALREADY_RUNNING, "")
    assert "lives" in done.stderr
    done = clean("--socket", socket_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{instance_name(socket_path)}: removed 2 segments of " in done.stdout
    assert segments_of(socket_path) == []
    done = clean("--socket", socket_path)
    assert (done.returncode, done.stdout) == (0, "nothing was left\n")
