"""Loads of a process without a coordinator."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from workers import PATIENCE, leave, wait_until

import mpgroupcache
from mpgroupcache import singleflight
from mpgroupcache.errors import describe_error
from mpgroupcache.worker import process
from mpgroupcache.worker.link import Link


def test_texts_of_errors_are_plain() -> None:
    class Markup(str):
        """As template engines have it: ``str()`` of one is one."""

        def __str__(self) -> str:
            return self

    name, text = describe_error(ValueError(Markup("boom")))
    assert (name, text, type(text)) == ("ValueError", "boom", str)


def test_a_process_that_can_start_no_thread(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert group.get("key") == "value"
    wait_until(mpgroupcache.connect)
    assert process.current().working_link is not None


def test_threads_that_come_first_at_once_share_what_a_process_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each would have a link of its own, and know nothing of the others' flights."""
    monkeypatch.setattr(process, "_process", {})
    together = threading.Barrier(4)

    class Slow(process.Process):
        def __init__(self) -> None:
            together.wait(PATIENCE)
            super().__init__()

    monkeypatch.setattr(process, "Process", Slow)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: process.current(), range(4)))
    assert all(one is made[0] for one in made)


@pytest.mark.parametrize("private", [None, "/run/private.sock"])
def test_tries_to_reach_a_coordinator_become_rare_and_are_not_in_step(
    monkeypatch: pytest.MonkeyPatch, private: str | None
) -> None:
    """Rarer still where each is the start of an interpreter."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    processes = [process.Process() for _ in range(20)]
    for worker in processes:
        worker._private = private
    most = process.RETRY_MOST if private is None else process.RETRY_START
    for failures in range(30):
        expected = min(most, process.RETRY_FIRST * 2**failures)
        delays = []
        for worker in processes:
            worker._retry_at = 0.0  # it is over
            worker._report(OSError("none"))
            delays.append(worker._retry_at - 1000.0)
            assert worker.attach() is None  # before that it is not tried
        assert all(0.5 * expected <= delay + 1e-9 <= 1.5 * expected + 1e-6 for delay in delays)
        assert max(delays) - min(delays) > 0.1 * expected


def test_a_link_that_breaks_at_once_is_no_success(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the coordinator can take one of its two connections: tries become rare, and one thread makes them."""
    made = process.current()
    waits: list[int] = []
    monkeypatch.setattr(made, "_wait", waits.append)
    for _ in range(6):
        link = made._connect(starts=False)
        assert link is not None
        link.channel.close("as if the coordinator had")
    assert waits == [3, 4, 5]
    made._retry_at = time.monotonic() + 10 * PATIENCE  # the thread waits for that
    for _ in range(3):
        assert made._begin_reattaching()
        assert [thread.name for thread in threading.enumerate()].count(process.ATTACHING) == 1


@pytest.mark.parametrize("moment", ["before", "connecting", "connected"])
def test_a_process_that_has_left_makes_no_link(here: Any, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Nobody would end its service thread; ``close()`` comes before the try, or while another thread connects."""
    made = process.current()
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    links: list[Link] = []

    def close_at(now: str) -> None:
        if now == moment:
            made.close()

    class Closing(Link):
        def open(self, *arguments: Any) -> None:
            links.append(self)
            close_at("connecting")
            super().open(*arguments)
            close_at("connected")

    monkeypatch.setattr(process, "Link", Closing)
    close_at("before")
    assert not mpgroupcache.connect()
    assert group.get("key") == "value"
    assert [link.broken for link in links] == [True] * (moment != "before")


def test_a_child_that_is_forked_inside_a_load_has_no_lease_of_its_parents() -> None:
    """Its first own lease had the number of the one that it inherited: waiting for it was taken for a cycle."""
    group = singleflight.Group()

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                begun = threading.Event()
                released = threading.Event()

                def slow() -> str:
                    begun.set()
                    released.wait(PATIENCE)
                    return "slow"

                with ThreadPoolExecutor(1) as pool:
                    loading = pool.submit(group.do, "x", slow)
                    begun.wait(PATIENCE)
                    threading.Timer(0.05, released.set).start()
                    ok = group.do("x", lambda: "mine") in ("slow", "mine") and loading.result(PATIENCE) == "slow"
                os._exit(0 if ok else 1)
            except BaseException:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert group.do("outer", fork) == 0


def test_a_signals_handler_that_gets_waits_for_nobody_it_has_interrupted(tmp_path: Path) -> None:
    """1. A get begins an attempt, or keeps its value, and has a lock for that. 2. A handler in its thread gets, too."""
    made = process.current()
    mpgroupcache.configure(socket=tmp_path / "nobody")
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    assert group.get("k") == "value"
    for lock in (made._reattach_lock, made.alone._kept["g"]._lock):
        for made._slow in (False, True):
            made._retry_at = 0.0
            with lock, ThreadPoolExecutor(1) as pool:
                assert pool.submit(group.get, f"{lock}, {made._slow}").result(PATIENCE) == "value"
    leave()
