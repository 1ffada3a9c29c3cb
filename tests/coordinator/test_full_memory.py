"""A /dev/shm that is full: the coordinator serves without a cache, and has one when there is room."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Child
from impatient import Impatient
from small_memory import NoPrivateMount, mount_small
from tools import missing
from workers import Daemon, HandWorker, hello, leave, segments_of, unversioned, value_of, wait_until

import mpgroupcache
from mpgroupcache.ages import AGELESS
from mpgroupcache.coordinator.main import ExitCode
from mpgroupcache.ipc.messages import (
    NO_LAYOUT,
    Ask,
    Declare,
    Declared,
    Lease,
    Origin,
    Ping,
    Pong,
    Store,
    Value,
    Welcome,
)
from mpgroupcache.shm.segment import private_files
from mpgroupcache.worker.config import private_socket
from mpgroupcache.worker.link import connect

FILLER = "/dev/shm/filler"


class Host:
    """A coordinator and its workers with a /dev/shm of their own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loads: list[str] = []
        self.refused = ""
        try:
            mount_small(8 << 20)
        except NoPrivateMount as error:
            self.refused = str(error)

    def why_not(self) -> str:
        return self.refused

    def fill(self) -> None:
        with open(FILLER, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        os.unlink(FILLER)

    def begin(self) -> str:
        self.daemon = Impatient(self.path)
        self.daemon.wait_serving()
        return "".join(self.daemon.log)

    def begin_another(self) -> int:
        return Daemon(self.path).wait()

    def wait_anew(self) -> str:
        """Return when the coordinator has begun anew."""
        self.daemon.wait_says("serving on", 2)
        return "".join(self.daemon.log)

    def begin_embedded_anew(self) -> None:
        """Have an application start its own coordinator, which begins anew, and ends after it."""
        os.environ.pop("MPGROUPCACHE_SOCKET", None)
        os.environ |= {"MPGROUPCACHE_APPLICATION": "full", "MPGROUPCACHE_LINGER": "3"}
        mpgroupcache.configure(socket=None)
        assert mpgroupcache.connect()
        path = private_socket("full")
        with connect(path) as sock:
            pid, _, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        log = Path(private_files(path)[1])
        os.truncate(FILLER, 0)
        os.kill(pid, signal.SIGUSR2)  # as it does itself when it sees that there is room
        wait_until(lambda: "serving on" in log.read_text().partition("ended")[2], "the next one")
        assert mpgroupcache.connect()
        leave()
        wait_until(lambda: not log.exists(), "its end")

    def declare(self) -> tuple[int, str | None]:
        """The layout that a worker is told, and the arena that a group has."""
        with contextlib.closing(HandWorker.__new__(HandWorker)) as worker:
            worker.open(self.path)
            welcome = worker.ask(hello("call"))
            declared = worker.ask(Declare("declared", 1 << 20, None, False, "", "", True, AGELESS))
            assert isinstance(welcome, Welcome)
            assert isinstance(declared, Declared)
            return welcome.layout, declared.segment

    def share_a_load(self) -> None:
        with contextlib.closing(HandWorker(self.path)) as holder, contextlib.closing(HandWorker(self.path)) as waiter:
            group = holder.declare()
            answer = holder.ask(Ask(group, b"shared", (), True, False, "get"))
            assert isinstance(answer, Lease)
            waiter.send(Ask(group, b"shared", (), True, False, "get"))
            assert waiter.ask(Ping()) == Pong()
            holder.send(Store(answer.lease, b"value", False, None, None, None, False))
            assert unversioned(waiter.receive()) == Value(b"value", Origin.FLIGHT, None, None)

    def _load(self, ctx: object, key: str, dest: mpgroupcache.Sink) -> None:
        self.loads.append(key)
        dest.set_bytes(value_of(key))

    def work(self) -> None:
        mpgroupcache.configure(socket=self.path)
        self.group = mpgroupcache.new_group("group", "1MiB", self._load)

    def get(self, key: str) -> list[str]:
        """Get it, and return what was loaded so far."""
        assert self.group.get(key) == value_of(key)
        return self.loads

    def caches(self, key: str) -> bool:
        self.get(key)
        return self.group.lookup(key) is not None

    def end(self) -> tuple[int, list[str]]:
        leave()
        self.daemon.close()
        return self.daemon.wait(), segments_of(self.path)


@pytest.fixture
def host(tmp_path: Path, child: Callable[..., Child]) -> Child:
    host = child(Host, str(tmp_path / "s"))
    if reason := host.call("why_not"):
        missing(f"no mounts of our own here: {reason}")
    return host


def test_a_coordinator_that_starts_with_full_memory_serves_and_caches_when_there_is_room(host: Child) -> None:
    host.call("fill")
    log = host.call("begin")
    assert "no shared memory for the control segment: No space left on device" in log
    assert "nothing is cached, and each miss loaded once" in log
    assert host.call("begin_another") == ExitCode.ALREADY_RUNNING
    assert host.call("declare") == (NO_LAYOUT, None)
    host.call("share_a_load")
    host.call("work")
    assert host.call("get", "k") == ["k"]
    assert host.call("get", "k") == ["k", "k"]
    host.call("make_room")
    log = host.call("wait_anew")
    assert "there is room in /dev/shm again: the coordinator begins anew" in log
    assert "its cache begins anew" not in log  # nothing was left that could not be taken over
    wait_until(lambda: host.call("caches", "k"), "a value that is cached")
    assert host.call("end") == (0, [])


def test_a_group_for_which_there_is_no_room_has_an_arena_when_there_is(host: Child) -> None:
    host.call("begin")
    host.call("work")
    wait_until(lambda: host.call("caches", "kept"), "a value that is cached")
    host.call("fill")
    layout, segment = host.call("declare")
    assert layout != NO_LAYOUT
    assert segment is None
    host.call("make_room")
    log = host.call("wait_anew")
    assert "group 'declared' is served without a cache until there is room: no shared memory for an arena" in log
    layout, segment = host.call("declare")
    assert segment is not None
    loads = host.call("get", "kept")
    assert loads.count("kept") == 1  # of the other group nothing is lost
    assert host.call("end") == (0, [])


def test_an_embedded_one_that_begins_anew_has_its_files_still(host: Child) -> None:
    host.call("fill")
    host.call("begin_embedded_anew")
