"""Real coordinators go on with what killed ones, and those that ended, have left."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workers import PATIENCE, Daemon, Worker, segments_of, value_of, wait_until

from mpgroupcache.coordinator.main import ExitCode


def load_all(worker: Worker, keys: list[str]) -> None:
    for key in keys:
        assert worker.get(key) == value_of(key)


def entries(worker: Worker) -> int:
    return int(worker.do("stats")[1].items)


def test_a_killed_coordinators_cache_is_the_next_ones(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    daemon = start_coordinator()
    first, second = (spawn_on(socket_path) for _ in range(2))
    keys = [f"key-{i}" for i in range(500)] + ["big:300000:x"]
    load_all(first, keys)
    wait_until(lambda: entries(first) == len(keys))
    load_all(second, keys[:1])  # it is attached
    first.do("hold_view", keys[3])
    for _ in range(3):
        daemon.send(signal.SIGKILL)
        daemon.wait()
        load_all(second, keys)  # hits go on
        daemon = start_coordinator()
        daemon.wait_says("took over 501 entries, dropped 0")
        wait_until(lambda: first.do("connect") and second.do("connect"), "workers that are back")
    for worker in (first, second):
        load_all(worker, keys)
    assert len(first.loads) == len(keys)
    assert second.loads == []
    assert first.do("read_view", keys[3]) == value_of(keys[3])
    third = spawn_on(socket_path)
    load_all(third, keys)
    assert third.loads == []
    assert first.do("stats")[0].local_loads == len(keys)  # counters go on, too


def test_a_restart_is_warm(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    daemon = start_coordinator()
    worker = spawn_on(socket_path)
    load_all(worker, ["a", "b"])
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == ExitCode.OK
    assert len(segments_of(socket_path)) == 2  # for the next one, since a worker is there
    daemon = start_coordinator()
    wait_until(lambda: worker.do("connect"))
    load_all(worker, ["a", "b", "c"])
    assert worker.loads == ["a", "b", "c"]
    pid = daemon.process.pid
    daemon.send(signal.SIGUSR2)
    daemon.wait_says("took over 3 entries")  # the same process, anew
    wait_until(lambda: worker.do("connect"))
    load_all(worker, ["a", "b", "c", "d"])
    assert worker.loads == ["a", "b", "c", "d"]
    assert (daemon.process.pid, daemon.process.poll()) == (pid, None)
    worker.close()
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == ExitCode.OK
    assert segments_of(socket_path) == []  # nobody is there


def test_whoever_wants_it_ended_while_it_drains_for_the_next_one_has_it_ended(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    daemon = start_coordinator()
    worker = spawn_on(socket_path)
    loading = worker.begin_loading("hold:a")
    daemon.send(signal.SIGUSR2)
    wait_until(lambda: not Path(socket_path).exists(), "a coordinator that drains")
    daemon.send(signal.SIGTERM)
    worker.release("a")
    assert loading.result(PATIENCE) == value_of("hold:a")
    assert daemon.wait() == ExitCode.OK
    assert "".join(daemon.log).count("serving on") == 1
    start_coordinator()


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_while_one_becomes_the_next_ends_neither(
    start_coordinator: Callable[..., Daemon], number: signal.Signals
) -> None:
    daemon = start_coordinator()
    daemon.send(signal.SIGUSR2)

    def ended_or_restarted() -> bool:
        daemon.send(number)  # all the way through
        return daemon.process.poll() is not None or "".join(daemon.log).count("serving on") > 1

    wait_until(ended_or_restarted, "the next one")
    assert daemon.process.poll() is None


class Ending(Daemon):
    program = (str(Path(__file__).with_name("ending_coordinator.py")),)


@pytest.mark.parametrize(("moment", "lives"), [("serve", 1), ("close", 2)])
def test_whoever_wants_it_ended_while_one_becomes_the_next_has_it_ended(
    socket_path: str, moment: str, lives: int
) -> None:
    """By this one before it gives way, or by the next one, as soon as that serves."""
    daemon = Ending(socket_path, env=os.environ | {"ENDING": moment}).wait_serving()
    try:
        daemon.send(signal.SIGUSR2)
        assert daemon.wait() == ExitCode.OK
    finally:
        daemon.close()
    assert "".join(daemon.log).count("serving on") == lives


def test_restarts_under_load_fail_no_get(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    daemon = start_coordinator()
    workers = [spawn_on(socket_path, cache_bytes=1 << 20) for _ in range(2)]
    keys = [f"key-{i}" for i in range(2000)] + [f"big:70000:{i}" for i in range(4)]
    stop = threading.Event()
    failures: list[Any] = []

    def work(worker: Worker, seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            key = chance.choice(keys)
            try:
                assert worker.get(key) == value_of(key)
            except BaseException as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=work, args=(worker, seed)) for seed, worker in enumerate(workers)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(6):
            loads = len(workers[0].loads)
            wait_until(lambda loads=loads: len(workers[0].loads) > loads + 50)
            if round_ % 3 == 2:
                before = "".join(daemon.log).count("serving on")
                daemon.send(signal.SIGUSR2)
                daemon.wait_says("serving on", before + 1)
            else:
                daemon.send(signal.SIGKILL if round_ % 3 == 0 else signal.SIGTERM)
                daemon.wait()
                daemon = start_coordinator()
            daemon.wait_says("took over")
            daemon.wait_says("dropped 0")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_another_budget_begins_anew(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    daemon = start_coordinator()
    worker = spawn_on(socket_path, cache_bytes=1 << 20)
    load_all(worker, ["a"])
    wait_until(lambda: entries(worker) == 1)
    daemon.send(signal.SIGKILL)
    daemon.wait()
    worker.process.kill()  # one that ends would remove what it was the last to use
    daemon = start_coordinator()
    daemon.wait_says("took over 1 entries")
    other = spawn_on(socket_path, cache_bytes=2 << 20)
    load_all(other, ["a"])
    assert other.loads == ["a"]
    daemon.wait_says("cache_bytes was 1 MiB and is 2 MiB; its cache begins anew")


def test_less_room_for_all(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    daemon = start_coordinator()
    worker = spawn_on(socket_path, cache_bytes=4 << 20)
    load_all(worker, ["a"])
    wait_until(lambda: entries(worker) == 1)
    daemon.send(signal.SIGKILL)
    daemon.wait()
    daemon = start_coordinator("--max-bytes", "2MiB")
    daemon.wait_says("--max-bytes leaves no room for its arena")
    wait_until(lambda: worker.do("connect"))
    load_all(worker, ["a"])
    assert worker.loads == ["a", "a"]


def test_a_layout_of_another_version(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker], socket_path: str
) -> None:
    daemon = start_coordinator()
    worker = spawn_on(socket_path)
    load_all(worker, ["a"])
    daemon.send(signal.SIGKILL)
    daemon.wait()
    [control] = [name for name in segments_of(socket_path) if name.endswith("-control")]
    with Path(f"/dev/shm/{control}").open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 99))
    daemon = start_coordinator()
    daemon.wait_says("another layout, of another version of mpgroupcache; its cache begins anew")
    wait_until(lambda: worker.do("connect"))
    load_all(worker, ["a", "b"])
    assert worker.loads == ["a", "a", "b"]
