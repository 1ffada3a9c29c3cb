"""The coordinator's life and death, and what its workers notice of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil
import pytest
from workers import Daemon, HandWorker, Worker, advance, segments_of, unversioned, value_of, wait_until

from mpgroupcache.coordinator.instance import SPARE_DESCRIPTORS
from mpgroupcache.coordinator.main import ExitCode
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.messages import Ask, Failed, FailureCode, Origin, Ping, Pong, Store, Value
from mpgroupcache.shm._control import sign_of_life
from mpgroupcache.shm.segment import control_name, instance_name, segment_path
from mpgroupcache.worker import process
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT
from mpgroupcache.worker.link import connect

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
    assert worker.get("k") == value_of("k")
    assert other.get("new") == value_of("new")  # loaded there
    assert worker.loads == ["k", "hold:a"]  # what is cached is so, without a coordinator
    start_coordinator()  # to go on with the segments, and to end after its workers


def test_a_coordinator_that_is_about_to_end_begins_no_loads(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    """Of busy workers one load or another is always under way: it would never end before its time is over."""
    daemon = start_coordinator()
    worker, other = spawn_on(daemon.socket), spawn_on(daemon.socket)
    loading = worker.begin_loading("hold:a")
    waiting = other.begin_waiting("hold:a")
    daemon.send(signal.SIGTERM)
    wait_until(lambda: not os.path.exists(daemon.socket))
    alone = other.begin_loading("hold:b")
    assert other.get("c") == worker.get("c") == value_of("c")
    assert worker.loads == ["hold:a", "c"]
    joining = worker.begin_waiting("hold:a")
    worker.release("a")
    assert loading.result(10) == waiting.result(10) == joining.result(10) == value_of("hold:a")
    assert daemon.wait() == ExitCode.OK
    other.release("b")
    assert alone.result(10) == value_of("hold:b")
    start_coordinator()
    wait_until(lambda: worker.do("connect"))
    assert worker.get("hold:a") == value_of("hold:a")
    assert worker.loads == ["hold:a", "c"]


def test_a_coordinator_that_is_about_to_end_begins_no_refreshes(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    worker, other = (spawn_on(daemon.socket, ttl=60, stale=600) for _ in range(2))
    assert worker.get("k") == value_of("k")
    worker.do("flush")
    advance(daemon.socket, 61)
    loading = worker.begin_loading("hold:a")
    waiting = other.begin_waiting("hold:a")
    daemon.send(signal.SIGTERM)
    wait_until(lambda: not os.path.exists(daemon.socket))
    assert worker.get("k") == other.get("k") == value_of("k")
    worker.do("flush")
    other.do("flush")
    worker.release("a")
    assert loading.result(10) == waiting.result(10) == value_of("hold:a")
    assert daemon.wait() == ExitCode.OK
    assert (worker.loads, other.loads) == (["k", "hold:a"], [])
    start_coordinator()  # to go on with the segments


@pytest.mark.parametrize("mode", ["refresh", "renew"])
def test_a_coordinator_that_is_about_to_end_grants_no_lease_for_what_is_under_way(
    start_coordinator: Start, mode: Literal["refresh", "renew"]
) -> None:
    """An ASK joins a load of its key; these begin one."""
    daemon = start_coordinator()
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        group = worker.declare()
        worker.send(Store(worker.lease(group, b"stale"), b"v", False, None, 1e-9, 1e6, False))
        worker.lease(group, b"loaded")
        daemon.send(signal.SIGTERM)
        wait_until(lambda: not os.path.exists(daemon.socket))
        for key in (b"stale", b"loaded"):
            answer = worker.ask(Ask(group, key, (), False, False, mode))
            assert isinstance(answer, Failed)
            assert answer.code is FailureCode.REFUSED
    assert daemon.wait() == ExitCode.OK


def test_sigterm_while_it_starts(socket_path: str) -> None:
    daemon = Daemon(socket_path)
    wait_until(lambda: segments_of(socket_path))
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == ExitCode.OK
    assert segments_of(socket_path) == []


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


def test_a_dead_instance_is_taken_over(start_coordinator: Start, spawn_on: SpawnOn) -> None:
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
    assert segments_of(daemon.socket) == left
    wait_until(lambda: worker.do("connect"))
    assert worker.do("read_view", "k") == value_of("k")
    assert worker.get("new") == value_of("new")
    wait_until(lambda: worker.do("lookup", "new"))
    assert worker.get("k") == value_of("k")
    assert worker.loads == ["k", "new"]


def test_without_a_coordinator_workers_load(tmp_path: Path, spawn_on: SpawnOn) -> None:
    worker = spawn_on(str(tmp_path / "none.sock"))
    for key in ("k", "l", "k"):
        assert worker.get(key) == value_of(key)
    assert worker.loads == ["k", "l"]  # it keeps them for a while
    threads = worker.do("storm", ["a", "b", "hold:c"][:2], 8)
    assert threads == [[value_of("a"), value_of("b")]] * 8
    stats, _ = worker.do("stats")
    assert (stats.gets, stats.local_loads) == (3 + 16, 4)
    assert stats.gets == stats.local_loads + stats.loads_deduped + stats.cache_hits
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


@pytest.mark.parametrize("met", [True, False])
def test_a_coordinator_that_stays_silent_is_waited_for_once(
    start_coordinator: Start, spawn_on: SpawnOn, met: bool
) -> None:
    """Whoever tries again waits beside the gets, which used to wait with it, each time."""
    daemon = start_coordinator()
    worker = spawn_on(daemon.socket)
    if met:
        worker.get("before")
    daemon.send(signal.SIGSTOP)
    worker.get("first")
    worker.do("watch_links")
    number = itertools.count()

    def gets_and_tries() -> int:
        worker.get(f"later-{next(number)}")
        return len(worker.do("linkers"))

    wait_until(lambda: gets_and_tries() >= 2, "tries to come back")
    assert set(worker.do("linkers")) == {process.ATTACHING}
    daemon.send(signal.SIGCONT)
    wait_until(lambda: worker.do("has_link") and worker.do("attached"))  # without a get


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
    assert daemon.wait() == ExitCode.BAD_OPTION
    [line] = daemon.log
    assert message in line


def test_each_tick_is_a_sign_of_life(start_coordinator: Start, socket_path: str) -> None:
    start_coordinator()
    path = segment_path(control_name(instance_name(socket_path)))

    def alive() -> int:
        sign = sign_of_life(path)
        assert sign is not None
        return sign[1]

    first = alive()
    wait_until(lambda: alive() > first, "the next tick")


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    daemon = Daemon(str(path))
    assert daemon.wait() == ExitCode.BAD_OPTION
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


def test_a_large_value_survives_the_worker_that_stored_it(start_coordinator: Start) -> None:
    """1. A stores a value. 2. A is gone while the value is copied. 3. Nobody loads it again: B gets it."""
    daemon = start_coordinator()
    size = 64 << 20
    with contextlib.closing(HandWorker(daemon.socket)) as a, contextlib.closing(HandWorker(daemon.socket)) as b:
        group = a.declare(4 * size + (1 << 20))
        lease = a.lease(group, b"k")
        b.send(Ask(group, b"k", (), True, False, "get"))
        assert b.ask(Ping()) == Pong()  # its ASK has been read
        fd = memfd.make(bytes(size))
        a.send(Store(lease, size, False, None, None, None, False), fd)
        os.close(fd)
        a.close()
        assert unversioned(b.receive()) == Value(size, Origin.FLIGHT, None, None)


def test_a_lease_of_a_former_instance_is_nobodys(start_coordinator: Start) -> None:
    """A loader that outlives its instance names its lease in what it asks of the next one, where others hold leases."""
    daemon = start_coordinator()
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        old = worker.lease(worker.declare(), b"outer")
    daemon.close()
    daemon = start_coordinator()
    with (
        contextlib.closing(HandWorker(daemon.socket)) as holder,
        contextlib.closing(HandWorker(daemon.socket)) as worker,
    ):
        group = holder.declare()
        lease = holder.lease(group, b"inner")
        worker.send(Ask(group, b"inner", (old,), True, False, "get"))  # waits, and closes no circle
        assert worker.ask(Ping()) == Pong()
        holder.send(Store(lease, b"value", False, None, None, None, False))
        assert unversioned(worker.receive()) == Value(b"value", Origin.FLIGHT, None, None)


def test_a_waiter_that_cannot_be_sent_a_descriptor_costs_the_others_nothing(start_coordinator: Start) -> None:
    """1. A does not read: its answers are kept. 2. There is no descriptor left to keep. 3. B has its value."""
    daemon = start_coordinator()
    size = 100_000
    with (
        contextlib.closing(HandWorker(daemon.socket)) as holder,
        contextlib.closing(HandWorker(daemon.socket)) as a,
        contextlib.closing(HandWorker(daemon.socket)) as b,
    ):
        group = holder.declare(0)
        lease = holder.lease(group, b"k")
        filler = holder.lease(group, b"filler")
        for _ in range(64):
            a.send(Ask(group, b"filler", (), True, False, "get"))
        for _ in range(2):
            a.send(Ask(group, b"k", (), True, False, "get"))
        assert a.ask(Ping()) == Pong()
        b.send(Ask(group, b"k", (), True, False, "get"))
        assert b.ask(Ping()) == Pong()
        holder.send(Store(filler, bytes(60_000), False, None, None, None, False))  # more than a socket holds
        assert holder.ask(Ping()) == Pong()
        used = {int(name) for name in os.listdir(f"/proc/{daemon.process.pid}/fd")}
        limit = [number for number in range(len(used) + 2) if number not in used][1] + 1  # two: the value's, and a copy
        _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (limit, hard))
        fd = memfd.make(bytes(size))
        holder.send(Store(lease, size, False, None, None, None, False), fd)
        os.close(fd)
        assert unversioned(b.receive()) == Value(size, Origin.FLIGHT, None, None)
        assert holder.ask(Ping()) == Pong()


def test_connections_are_limited(socket_path: str) -> None:
    """Those beyond the hard limit are closed; who is there is served on, large values too, which take descriptors."""
    limit = 160
    most = limit - SPARE_DESCRIPTORS
    limited = f'ulimit -n {limit} && ulimit -S -n 40 && exec "$@"'
    daemon = Daemon(socket_path, prefix=("sh", "-c", limited, "sh")).wait_serving()
    with contextlib.ExitStack() as stack:
        stack.callback(daemon.close)
        holder, waiter = (stack.enter_context(contextlib.closing(HandWorker(daemon.socket))) for _ in range(2))
        crowd = [stack.enter_context(connect(daemon.socket)) for _ in range(2 * limit)]
        for sock in crowd[most:]:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        daemon.wait_says(f"got more than {most} connections; new ones are closed")
        size = 100_000
        group = holder.declare()
        lease = holder.lease(group, b"k")
        waiter.send(Ask(group, b"k", (), True, False, "get"))
        assert waiter.ask(Ping()) == Pong()
        fd = memfd.make(bytes(size))
        holder.send(Store(lease, size, False, None, None, None, False), fd)
        os.close(fd)
        assert unversioned(waiter.receive()) == Value(size, Origin.FLIGHT, None, None)


def test_a_link_that_is_left_leaves_nothing(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    """A link that broke by silence still has its service connection: that has to be closed, and its thread to end."""
    daemon = start_coordinator()
    worker = spawn_on(daemon.socket)
    worker.get("before")
    threads, descriptors = worker.do("census")
    connections = len(psutil.Process(daemon.process.pid).net_connections("unix"))
    daemon.send(signal.SIGSTOP)
    worker.get("meanwhile")
    daemon.send(signal.SIGCONT)
    wait_until(lambda: worker.do("connect"))
    wait_until(lambda: worker.do("census") == (threads, descriptors), "the end of the first link")
    wait_until(lambda: len(psutil.Process(daemon.process.pid).net_connections("unix")) == connections)
