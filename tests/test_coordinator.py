"""The coordinator's life and death, and what its workers notice of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workers import Daemon, Worker, segments_of, value_of, wait_until

from mpgroupcache.ipc.channel import LIVENESS_TIMEOUT
from mpgroupcache.ipc.coordinator import ExitCode

Start = Callable[..., Daemon]
SpawnOn = Callable[..., Worker]


def test_sigterm_drains_and_exits_0(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    worker, other = spawn_on(daemon.socket), spawn_on(daemon.socket)
    assert worker.get("k") == value_of("k")
    loading = worker.begin_loading("hold:a")
    waiting = other.begin_waiting("hold:a")
    daemon.send(signal.SIGTERM)
    wait_until(lambda: not os.path.exists(daemon.socket))
    worker.release("a")
    assert loading.result(10) == waiting.result(10) == value_of("hold:a")
    assert other.loads == []  # it was given the value: the flight ended before the coordinator did
    assert daemon.wait() == ExitCode.OK
    assert segments_of(daemon.socket) == []
    assert worker.get("k") == value_of("k")  # loaded again, here


def test_a_second_instance_is_refused(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    worker = spawn_on(daemon.socket)
    worker.get("k")
    second = Daemon(daemon.socket)
    assert second.wait() == ExitCode.ALREADY_RUNNING
    assert daemon.socket in "".join(second.log)
    assert "living coordinator" in "".join(second.log)
    assert worker.do("lookup", "k") == value_of("k")
    assert worker.get("more") == value_of("more")


def test_a_dead_instance_is_cleared(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    dead = start_coordinator()
    worker = spawn_on(dead.socket)
    worker.get("k")
    worker.do("hold_view", "k")
    dead.send(signal.SIGKILL)
    dead.wait()
    left = segments_of(dead.socket)
    assert left
    assert os.path.exists(dead.socket)
    daemon = start_coordinator(socket=dead.socket)
    assert [name for name in segments_of(daemon.socket) if name in left and not name.endswith("-control")] == []
    wait_until(lambda: worker.do("connect"))
    assert worker.do("read_view", "k") == value_of("k")  # views outlive the instance
    assert worker.get("new") == value_of("new")
    wait_until(lambda: worker.do("lookup", "new"))


def test_without_a_coordinator_workers_load(tmp_path: Path, spawn_on: SpawnOn) -> None:
    worker = spawn_on(str(tmp_path / "none.sock"))
    assert worker.get("k") == value_of("k")
    assert worker.get("k") == value_of("k")
    assert worker.loads == ["k", "k"]
    threads = worker.do("storm", ["a", "b", "hold:c"][:2], 8)
    assert threads == [[value_of("a"), value_of("b")]] * 8
    stats, _ = worker.do("stats")
    assert stats.local_loads + stats.loads_deduped == stats.loads == stats.gets == 2 + 16
    with pytest.raises(Exception, match="self:"):
        worker.get("self:")


def test_a_dead_coordinator_fails_no_get(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    worker, waiter = spawn_on(daemon.socket), spawn_on(daemon.socket)
    worker.get("hit")
    wait_until(lambda: waiter.do("connect") and waiter.do("lookup", "hit"))
    loading = worker.begin_loading("hold:a")
    waiting = waiter.begin_waiting("hold:a")
    waiter.release("a")
    daemon.send(signal.SIGKILL)
    assert waiting.result(10) == value_of("hold:a")
    assert worker.do("lookup", "hit") == waiter.do("lookup", "hit") == value_of("hit")
    assert waiter.get("miss") == value_of("miss")
    worker.release("a")
    assert loading.result(10) == value_of("hold:a")
    daemon.wait()
    start_coordinator(socket=daemon.socket)
    wait_until(lambda: worker.do("connect") and waiter.do("connect"))
    assert worker.get("shared") == value_of("shared")
    assert waiter.get("shared") == value_of("shared")
    assert "shared" not in waiter.loads


def test_a_stopped_coordinator_delays_no_get_for_longer_than_its_liveness(
    start_coordinator: Start, spawn_on: SpawnOn
) -> None:
    daemon = start_coordinator()
    worker = spawn_on(daemon.socket)
    worker.get("hit")
    wait_until(lambda: worker.do("lookup", "hit"))
    daemon.send(signal.SIGSTOP)
    begin = time.monotonic()
    assert worker.do("lookup", "hit") == value_of("hit")
    assert worker.get("miss") == value_of("miss")
    assert time.monotonic() - begin < 2 * LIVENESS_TIMEOUT
    daemon.send(signal.SIGCONT)
    wait_until(lambda: worker.do("connect"))
    assert worker.get("again") == value_of("again")
    wait_until(lambda: worker.do("lookup", "again"))


def test_lingering(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator("--linger", "0.5")
    worker = spawn_on(daemon.socket)
    worker.get("k")
    worker.close()
    assert daemon.wait() == ExitCode.OK
    assert segments_of(daemon.socket) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-bytes", "12 MB"], "--max-bytes"),
        (["--max-value-share", "2"], "--max-value-share"),
        (["--lease-timeout", "soon"], "--lease-timeout"),
        (["--log-level", "loud"], "--log-level"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_bad_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    daemon = Daemon(str(tmp_path / "s"), *arguments)
    assert daemon.wait() == 2
    assert message in "".join(daemon.log)


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    daemon = Daemon(str(path))
    assert daemon.wait() == ExitCode.NO_SOCKET
    assert path.read_text() == "data"
    assert "is no socket" in "".join(daemon.log)


def test_the_first_declaration_fixes_the_budget(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    spawn_on(daemon.socket, cache_bytes=1 << 20).get("a")
    spawn_on(daemon.socket, cache_bytes=2 << 20).get("a")
    wait_until(lambda: any("2 MiB" in line and "1 MiB" in line for line in daemon.log))


def test_max_bytes(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator("--max-bytes", "1MiB")
    worker = spawn_on(daemon.socket, cache_bytes=64 << 20)
    worker.do("get_many", [f"big:10000:{number}" for number in range(200)])
    wait_until(lambda: any("--max-bytes leaves 1 MiB" in line for line in daemon.log))
    _, cache = worker.do("stats")
    assert cache.bytes <= 1 << 20
    assert cache.evictions > 0
