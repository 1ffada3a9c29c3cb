"""Workers that find no region free: the coordinator copies their hits until they find one, and no count is lost."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from children import Child
from workers import Daemon, Worker, value_of, wait_until

import mpgroupcache
from mpgroupcache.shm.segment import control_name, instance_name, segment_path
from mpgroupcache.worker import process

GETS = 1000
KEYS = [f"key-{i}" for i in range(10)]


@contextlib.contextmanager
def regions_taken(socket: str, first: int = 0) -> Iterator[None]:
    """Let nobody claim a region of that number, or above, by holding their locks."""
    fd = os.open(segment_path(control_name(instance_name(socket))), os.O_RDWR)
    try:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 1 + first, 0, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        yield
    finally:
        os.close(fd)


def gets(worker: Worker) -> int:
    return int(worker.do("stats")[0].gets)


@pytest.fixture
def first(start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str) -> Worker:
    """A worker with region 0, and values that are in the arena."""
    start_coordinator()
    worker = spawn_on(socket_path)
    worker.do("get_many", KEYS)
    wait_until(lambda: worker.do("stats")[1].items == len(KEYS), "values that are in the arena")
    return worker


def test_a_region_is_claimed_as_soon_as_one_is_free_and_no_count_is_lost(
    first: Worker, spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    with regions_taken(socket_path, 1):
        second = spawn_on(socket_path)
        for worker in (first, second):
            assert worker.do("get_many", KEYS * (GETS // len(KEYS)))[-10:] == [value_of(key) for key in KEYS]
        assert second.do("lookup", KEYS[0]) is None
        assert (gets(first), gets(second)) == (len(KEYS) + GETS, len(KEYS) + 2 * GETS)
    wait_until(lambda: gets(first) == len(KEYS) + 2 * GETS, "what was counted without a region")
    assert second.do("lookup", KEYS[0]) == value_of(KEYS[0])  # a get that hits
    assert gets(second) == len(KEYS) + 2 * GETS + 1
    second.kill()
    assert second.loads == []
    assert gets(first) == len(KEYS) + 2 * GETS + 1


def test_who_ends_without_a_region_leaves_what_it_counted(
    first: Worker, spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    with regions_taken(socket_path, 1):
        second = spawn_on(socket_path)
        second.do("claim_every", 3600.0)
        second.do("get_many", KEYS)
        assert gets(first) == len(KEYS)  # before a region is free: a ping would have it claimed
    second.close()
    assert gets(first) == 2 * len(KEYS)


class Forking:
    """A worker whose child finds no region."""

    def __init__(self, socket: str) -> None:
        mpgroupcache.configure(socket=socket)
        self.group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
        self.group.get("key")
        wait_until(lambda: self.group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).items, "a value in the arena")

    def fork(self) -> Any:
        """Have a child do its gets; whether it found its value in shared memory then."""
        self._pipe, theirs = multiprocessing.Pipe()
        if os.fork() == 0:
            try:
                for _ in range(10):
                    self.group.get("key")
                theirs.send(self.group.lookup("key") is not None)
                wait_until(lambda: self.group.lookup("key"), "a region")
                theirs.send(True)
                process.current().close()
            finally:
                os._exit(0)
        return self._pipe.recv()

    def join(self) -> Any:
        """Whether its child came to find it there."""
        return self._pipe.recv()

    def gets(self) -> int:
        return self.group.stats.gets


def test_a_forked_child_claims_one_later_too(
    start_coordinator: Callable[..., Daemon], child: Callable[..., Child], socket_path: str
) -> None:
    start_coordinator()
    worker = child(Forking, socket_path)
    with regions_taken(socket_path, 1):
        assert worker.call("fork") is False
        assert worker.call("gets") == 1
    assert worker.call("join") is True
    wait_until(lambda: worker.call("gets") == 1 + 10 + 1, "what it counted, with the get that found the region")


def test_the_log_says_why_there_is_none_and_when_there_is_one(here: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    with regions_taken(here.socket):
        assert group.get("key") == "value"
        assert "no free region in instance mpgroupcache-" in caplog.text
    wait_until(lambda: "a region was claimed, and hits are no longer copied" in caplog.text, "a region")
    assert group.lookup("key") == "value"
