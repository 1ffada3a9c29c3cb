"""Values that change, across processes: several workers of one coordinator, which may be stopped or killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from workers import Daemon, Worker, advance, value_of, wait_until

from mpgroupcache import ChangeError, NotFound

Start = Callable[..., Daemon]
SpawnOn = Callable[..., Worker]


@pytest.fixture
def daemon(start_coordinator: Start) -> Daemon:
    return start_coordinator()


def workers_of(spawn_on: SpawnOn, daemon: Daemon, count: int = 2, **options: Any) -> list[Worker]:
    """Attached workers."""
    workers = [spawn_on(daemon.socket, **options) for _ in range(count)]
    for worker in workers:
        assert worker.do("connect")
    return workers


def test_all_workers_see_a_change(daemon: Daemon, spawn_on: SpawnOn) -> None:
    first, second = workers_of(spawn_on, daemon)
    assert first.get("k") == value_of("k")
    assert second.do("call", "set", "k", b"set")
    assert first.get("k") == b"set"
    assert first.do("call", "remove", "k")
    assert second.do("lookup", "k") is None
    assert second.do("call", "incr", "n", initial=1) == 1
    assert first.do("call", "incr", "n") == 2
    assert [worker.do("call", "add", "lock", b"1") for worker in (first, second)] == [True, False]
    second.do("call", "clear")
    assert first.do("lookup", "lock") is None


def test_a_load_of_another_worker_is_overtaken(daemon: Daemon, spawn_on: SpawnOn) -> None:
    first, second = workers_of(spawn_on, daemon)
    loading = first.begin_loading("hold:a:k")
    waiting = second.begin_waiting("hold:a:k")
    assert second.do("call", "set", "hold:a:k", b"set")
    assert second.get("hold:a:k") == b"set"
    first.release("a")
    assert loading.result(30) == waiting.result(30) == value_of("hold:a:k")  # they asked before
    first.do("flush")
    assert second.get("hold:a:k") == first.get("hold:a:k") == b"set"


def test_a_large_load_is_overtaken(daemon: Daemon, spawn_on: SpawnOn) -> None:
    first, second = workers_of(spawn_on, daemon)
    key = "big:1000000:k"
    for _ in range(20):
        loading = first.begin("get", key)
        second.do("call", "remove", key)
        loading.result(30)
        first.do("flush")
        second.do("call", "set", key, b"set")
        assert first.get(key) == b"set"
        first.do("call", "clear")


def test_a_stale_value_under_many_threads_is_loaded_once(daemon: Daemon, spawn_on: SpawnOn) -> None:
    workers = workers_of(spawn_on, daemon, 4, ttl=60, stale=600)
    workers[0].get("k")
    workers[0].do("flush")
    advance(daemon.socket, 61)
    storms = [worker.begin("storm", ["k"] * 20, 16) for worker in workers]
    for storm in storms:
        assert {value for values in storm.result(60) for value in values} == {value_of("k")}

    def refreshed() -> bool:
        stats, _ = workers[0].do("stats")
        return bool(stats.local_loads == 2)

    wait_until(refreshed, "a refresh")
    assert sum(len(worker.loads) for worker in workers) == 2
    assert workers[0].do("stats")[0].refreshes == 1


def test_a_refresh_goes_on_when_its_worker_dies(daemon: Daemon, spawn_on: SpawnOn) -> None:
    first, second = workers_of(spawn_on, daemon, ttl=60, stale=600)
    key = "hold:a:k"
    second.release("a")
    second.get(key)
    second.do("flush")
    advance(daemon.socket, 61)
    assert first.get(key) == value_of(key)
    first.wait_load(key)
    first.kill()
    loads = len(second.loads)
    advance(daemon.socket, 100)  # more than the time for which a refresh is taken to be under way
    assert second.get(key) == value_of(key)
    wait_until(lambda: len(second.loads) == loads + 1, "the next refresh")


def test_a_refresh_does_not_wait_for_a_worker_that_is_stopped(daemon: Daemon, spawn_on: SpawnOn) -> None:
    first, second = workers_of(spawn_on, daemon, ttl=60, stale=600)
    key = "hold:a:k"
    second.release("a")
    second.get(key)
    second.do("flush")
    advance(daemon.socket, 61)
    assert first.get(key) == value_of(key)
    first.wait_load(key)
    first.send(signal.SIGSTOP)
    loads = len(second.loads)
    advance(daemon.socket, 100)
    assert second.get(key) == value_of(key)
    wait_until(lambda: len(second.loads) == loads + 1, "the next refresh")


def test_a_dead_coordinator_serves_nothing_that_is_dead(daemon: Daemon, spawn_on: SpawnOn) -> None:
    (worker,) = workers_of(spawn_on, daemon, 1, ttl=60)
    worker.do("call", "set", "k", b"set")
    assert worker.get("k") == b"set"
    daemon.send(signal.SIGSTOP)
    advance(daemon.socket, 61)
    assert worker.do("lookup", "k") is None
    daemon.send(signal.SIGCONT)


@pytest.mark.parametrize("change", ["remove", "clear"])
def test_what_was_removed_does_not_come_back_with_the_next_coordinator(
    start_coordinator: Start, spawn_on: SpawnOn, change: str
) -> None:
    daemon = start_coordinator()
    (worker,) = workers_of(spawn_on, daemon, 1)
    worker.do("call", "set_many", {f"k{i}": b"set" for i in range(100)})
    worker.do("call", change, *(["k7"] if change == "remove" else []))
    daemon.send(signal.SIGKILL)
    daemon.wait()
    start_coordinator()
    wait_until(lambda: worker.do("connect"), "a worker that is back")
    assert worker.do("lookup", "k7") is None
    assert worker.do("lookup", "k8") == (b"set" if change == "remove" else None)


def test_a_next_coordinator_goes_on_with_ages_and_versions(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    (worker,) = workers_of(spawn_on, daemon, 1, ttl=60, stale=100, stale_if_error=1000)
    worker.do("call", "set", "k", b"set")
    version = worker.do("version", "k")
    worker.do("call", "set", "gone", b"set")
    last = worker.do("version", "gone")
    worker.do("call", "remove", "gone")
    daemon.send(signal.SIGKILL)
    daemon.wait()
    daemon = start_coordinator()
    wait_until(lambda: worker.do("connect"), "a worker that is back")
    assert worker.do("version", "k") == version
    worker.do("call", "set", "gone", b"anew")
    assert worker.do("version", "gone") > last
    advance(daemon.socket, 161)
    assert worker.do("lookup", "k") is None


def test_changes_wait_for_the_next_coordinator(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    (worker,) = workers_of(spawn_on, daemon, 1)
    worker.do("call", "set", "k", b"set")
    daemon.send(signal.SIGKILL)
    daemon.wait()
    removing = worker.begin("call", "remove", "k", timeout=30)
    start_coordinator()
    assert removing.result(30) is True
    assert worker.do("lookup", "k") is None


def test_a_change_of_which_the_answer_is_lost_says_so(start_coordinator: Start, spawn_on: SpawnOn) -> None:
    daemon = start_coordinator()
    (worker,) = workers_of(spawn_on, daemon, 1)
    daemon.send(signal.SIGSTOP)
    adding = worker.begin("call", "add", "k", b"v", timeout=0.5)
    error = adding.exception(30)
    daemon.send(signal.SIGCONT)
    assert isinstance(error, ChangeError)
    assert error.unknown


def test_a_process_does_not_use_what_it_kept_before_a_change_that_others_made(
    start_coordinator: Start, spawn_on: SpawnOn
) -> None:
    """It is cut off from its coordinator, which serves others, and still sees the change count."""
    daemon = start_coordinator()
    first, second = workers_of(spawn_on, daemon)
    first.do("go_alone")
    assert first.get("k") == value_of("k")
    assert first.get("k") == value_of("k")
    assert first.loads == ["k"]
    assert not second.do("call", "remove", "k")
    first.get("k")
    assert first.loads == ["k", "k"]


def test_a_group_without_a_loader_is_shared(daemon: Daemon, spawn_on: SpawnOn) -> None:
    first, second = workers_of(spawn_on, daemon)
    first.do("plain", "set", "k", b"v")
    assert second.do("plain", "get", "k") == b"v"
    with pytest.raises(NotFound):
        second.do("plain", "get", "none")


def test_of_large_values_that_are_set_together_each_is_seen_when_it_is_set(daemon: Daemon, spawn_on: SpawnOn) -> None:
    """The first one is not given up for the second, which may not come to anything."""
    first, second = workers_of(spawn_on, daemon, cache_bytes=256 << 20)
    for round_ in range(10):
        value, other = b"%d" % round_ * (30 << 20), b"other" * (6 << 20)
        setting = first.begin("call", "set", "k", value)
        second.begin("call", "set", "k", other, if_version=1)
        assert setting.result(30)
        assert first.do("length", "k") == len(value)


def test_a_large_old_value_is_given_to_all_who_wait_for_a_load_that_fails(daemon: Daemon, spawn_on: SpawnOn) -> None:
    first, second = workers_of(spawn_on, daemon, ttl=10, stale_if_error=100)
    key, old = "raise:a:k", bytes(100_000)
    first.do("call", "set", key, old)
    advance(daemon.socket, 20)
    loading = first.begin_loading(key)
    waiting = second.begin_waiting(key)
    first.release("a")
    assert loading.result(30) == waiting.result(30) == old
