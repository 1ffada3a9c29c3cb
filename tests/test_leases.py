"""One load for all: singleflight, leases and offers over real processes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from workers import (
    BUDGET,
    GROUP,
    PATIENCE,
    Daemon,
    HandWorker,
    Worker,
    count_asks,
    flush,
    unversioned,
    value_of,
    wait_until,
)

import mpgroupcache
from mpgroupcache import DeadlineExceeded, LoadCycleError, LoadError
from mpgroupcache.ipc import fields, memfd, messages
from mpgroupcache.worker import link

Spawn = Callable[..., Worker]


def test_a_miss_is_loaded_once_and_everybody_gets_it(spawn: Spawn) -> None:
    loader, *others = (spawn() for _ in range(3))
    loading = loader.begin_loading("hold:a")
    waiting = [worker.begin_waiting("hold:a") for worker in others]
    loader.release("a")
    assert {future.result(10) for future in (loading, *waiting)} == {value_of("hold:a")}
    assert [worker.loads for worker in others] == [[], []]
    stats, cache = others[0].do("stats")
    assert (stats.gets, stats.loads, stats.loads_deduped, stats.local_loads) == (3, 3, 2, 1)
    assert (cache.items, cache.bytes) == (1, len("hold:a") + len(value_of("hold:a")))


def test_a_hit_of_another_workers_value(spawn: Spawn) -> None:
    first, second = spawn(), spawn()
    assert first.get("k") == value_of("k")
    assert second.get("k") == value_of("k")
    wait_until(lambda: second.do("lookup", "k"))
    assert second.loads == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_waiter_loads_when_the_holder_dies(spawn: Spawn, number: signal.Signals) -> None:
    holder, waiter = spawn(), spawn()
    holder.begin_loading("hold:a")
    waiting = waiter.begin_waiting("hold:a")
    waiter.release("a")
    holder.send(number)
    assert waiting.result(10) == value_of("hold:a")
    assert waiter.loads == ["hold:a"]


def test_the_next_waiter_loads_when_the_holder_is_silent(start_coordinator: Callable[..., Daemon]) -> None:
    daemon = start_coordinator("--lease-timeout", "1.5")
    holder, waiter = Worker(daemon.socket), Worker(daemon.socket)
    try:
        loading = holder.begin_loading("hold:a")
        waiting = waiter.begin_waiting("hold:a")
        waiter.release("a")
        holder.send(signal.SIGSTOP)
        assert waiting.result(20) == value_of("hold:a")
        holder.send(signal.SIGCONT)
        holder.release("a")
        assert loading.result(10) == value_of("hold:a")  # its own, though nobody needs it any more
        assert holder.get("after") == value_of("after")
    finally:
        holder.close()
        waiter.close()


def test_a_slow_loader_keeps_its_lease(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker]
) -> None:
    daemon = start_coordinator("--lease-timeout", "1.2")
    holder, waiter = spawn_on(daemon.socket), spawn_on(daemon.socket)
    loading = holder.begin_loading("hold:a")
    waiting = waiter.begin_waiting("hold:a")
    with pytest.raises(DeadlineExceeded):
        waiter.get("hold:a", timeout=4.0)
    assert waiter.loads == []
    holder.release("a")
    assert loading.result(10) == waiting.result(10) == value_of("hold:a")


def test_load_timeout_gives_the_load_to_the_next_waiter(spawn: Spawn) -> None:
    holder, waiter = spawn(load_timeout=0.5), spawn(load_timeout=0.5)
    loading = holder.begin_loading("hold:a")
    waiting = waiter.begin_waiting("hold:a")
    waiter.wait_load("hold:a")
    holder.release("a")  # the first value wins, though its lease is over
    assert loading.result(10) == value_of("hold:a")
    waiter.release("a")
    assert waiting.result(10) == value_of("hold:a")


def test_a_loader_that_raises(spawn: Spawn) -> None:
    loader, waiter = spawn(), spawn()
    loading = loader.begin_loading("raise:boom")
    waiting = waiter.begin_waiting("raise:boom")
    loader.release("boom")
    with pytest.raises(ValueError, match="boom"):
        loading.result(10)
    with pytest.raises(LoadError) as caught:
        waiting.result(10)
    assert (caught.value.type_name, caught.value.message) == ("ValueError", "boom")
    waiter.release("boom")
    with pytest.raises(ValueError, match="boom"):  # nothing failed is kept: the next get loads
        waiter.get("raise:boom")


def test_a_lease_says_the_version_that_its_value_will_have(start_coordinator: Callable[..., Daemon]) -> None:
    """To those who wait, and to later gets, small and large; the next lease's is another."""
    daemon = start_coordinator()
    with (
        contextlib.closing(HandWorker(daemon.socket)) as holder,
        contextlib.closing(HandWorker(daemon.socket)) as waiter,
    ):
        group = holder.declare()
        versions = []
        for key, size in ((b"small", 10), (b"large", 100_000)):
            asking = messages.Ask(group, key, (), True, False, "get")
            lease = holder.ask(asking)
            assert isinstance(lease, messages.Lease)
            versions.append(lease.version)
            waiter.send(asking)
            assert waiter.ask(messages.Ping()) == messages.Pong()
            if size > fields.INLINE_BYTES:
                fd = memfd.make(bytes(size))
                holder.send(messages.Store(lease.lease, size, False, None, None, None, False), fd)
                os.close(fd)
            else:
                holder.send(messages.Store(lease.lease, bytes(size), False, None, None, None, False))
            for answer in (waiter.receive(), waiter.ask(asking), holder.ask(asking)):
                assert isinstance(answer, messages.Value)
                assert answer.version == lease.version
        assert len(set(versions)) == 2


def test_a_value_and_the_next_miss_that_come_together(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker]
) -> None:
    """The miss is answered first, and finds the value where it is the one that it asks for."""
    daemon = start_coordinator()
    reader = spawn_on(daemon.socket)
    assert reader.do("connect")
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        group = worker.declare()

        def ask(key: bytes) -> messages.Ask:
            return messages.Ask(group, key, (), True, False, "get")

        lease = worker.lease(group, b"a")
        worker.send_together(messages.Store(lease, b"A", False, None, None, None, False), ask(b"b"))
        answer = worker.receive()
        assert isinstance(answer, messages.Lease)
        wait_until(lambda: reader.do("lookup", "a") == b"A", "a value that is stored")
        worker.send_together(messages.Store(answer.lease, b"B", False, None, None, None, False), ask(b"b"))
        assert unversioned(worker.receive()) == messages.Value(b"B", messages.Origin.CACHE, None, None)

        # Whoever waits has it at once.
        lease = worker.lease(group, b"c")
        worker.send_together(ask(b"c"), messages.Store(lease, b"C", False, None, None, None, False), ask(b"c"))
        assert unversioned(worker.receive()) == messages.Value(b"C", messages.Origin.FLIGHT, None, None)
        assert unversioned(worker.receive()) == messages.Value(b"C", messages.Origin.CACHE, None, None)
        lease = worker.lease(group, b"d")
        worker.send_together(ask(b"d"), messages.Store(lease, b"D", False, None, None, None, False), ask(b"e"))
        assert unversioned(worker.receive()) == messages.Value(b"D", messages.Origin.FLIGHT, None, None)
        assert isinstance(worker.receive(), messages.Lease)

        # A value that came is kept, whatever comes after it.
        lease = worker.lease(group, b"f")
        worker.send_together(messages.Store(lease, b"F", False, None, None, None, False), then=b"no frame of ours")
        with pytest.raises(EOFError):
            worker.receive()
        wait_until(lambda: reader.do("lookup", "f") == b"F", "a value that is stored")


def test_two_values_of_one_key_that_come_together(start_coordinator: Callable[..., Daemon]) -> None:
    """Of the flight that asks a peer, and of the one for whom no peer is to be asked: both end."""
    daemon = start_coordinator("--lease-timeout", "600")  # else a flight that never ends is ended by that
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        group = worker.declare(cache_bytes=0, picks=True)
        for _ in range(2):
            leases = []
            for here in (False, True):
                answer = worker.ask(messages.Ask(group, b"k", (), False, here, "get"))
                assert isinstance(answer, messages.Lease)  # not the end of a wait for the last one
                leases.append(answer.lease)
            worker.send_together(
                messages.Store(leases[0], b"v", True, None, None, None, False),
                messages.Store(leases[1], b"v", False, None, None, None, False),
            )


def test_a_signal_handler_that_raises_while_a_value_is_stored(
    here: Daemon, spawn_on: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load is over for its worker, and is another's: nobody waits for a lease that nobody holds."""

    def interrupted(_value: bytes) -> int:
        raise KeyboardInterrupt

    group = mpgroupcache.new_group(GROUP, BUDGET, lambda ctx, key, dest: dest.set_bytes(value_of(key)))
    other = spawn_on(here.socket)
    key = "big:300000:x"
    with monkeypatch.context() as patch:
        patch.setattr(link, "sealed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            group.get(key)
    assert other.get(key) == value_of(key)
    assert other.loads == [key]


def out_of_files(*_arguments: object) -> Any:
    raise OSError(errno.EMFILE, "Too many open files", "memfd")


def test_a_value_for_which_there_is_no_memfd_is_its_loaders_alone(
    here: Daemon, spawn_on: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease goes to the next waiter, who may do better."""
    begun, go = threading.Event(), threading.Event()

    def load(ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        begun.set()
        assert go.wait(PATIENCE)
        dest.set_bytes(value_of(key))

    group = mpgroupcache.new_group(GROUP, BUDGET, load)
    other = spawn_on(here.socket)
    key = "big:300000:x"
    monkeypatch.setattr(link, "sealed", out_of_files)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(group.get, key)
        assert begun.wait(PATIENCE)
        waiting = other.begin_waiting(key)
        go.set()
        assert loading.result(PATIENCE) == value_of(key)
        assert waiting.result(PATIENCE) == value_of(key)
    assert other.loads == [key]


def test_a_value_that_cannot_be_mapped_is_loaded_here(here: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load(ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        loads.append(key)
        dest.set_string("mine")

    group = mpgroupcache.new_group(GROUP, 0, load)
    asked = count_asks(monkeypatch.setattr)
    size = 100_000
    monkeypatch.setattr(memfd, "map", out_of_files)
    with contextlib.closing(HandWorker(here.socket)) as other, ThreadPoolExecutor(1) as pool:
        lease = other.lease(other.declare(0), b"k")
        waiting = pool.submit(group.get, "k")
        wait_until(asked, "an ASK")
        flush()
        fd = memfd.make(bytes(size))
        other.send(messages.Store(lease, size, False, None, None, None, False), fd)
        os.close(fd)
        assert waiting.result(PATIENCE) == "mine"
    assert loads == ["k"]


def test_of_a_group_that_caches_nothing_a_value_ends_its_flight(start_coordinator: Callable[..., Daemon]) -> None:
    daemon = start_coordinator()
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        group = worker.declare(cache_bytes=0)
        lease = worker.lease(group, b"a")
        worker.send_together(
            messages.Store(lease, b"A", False, None, None, None, False),
            messages.Ask(group, b"a", (), True, False, "get"),
        )
        assert isinstance(worker.receive(), messages.Lease)


def test_a_lease_that_is_returned_goes_to_the_next_waiter(spawn: Spawn) -> None:
    holder, second, third = spawn(), spawn(), spawn()
    loading = holder.begin_loading("exit:x")
    waiting = [second.begin_waiting("exit:x"), third.begin_waiting("exit:x")]
    for worker in (holder, second, third):
        worker.release("x")
    for future in (loading, *waiting):  # each in turn is given the lease, and leaves its loader the same way
        with pytest.raises(SystemExit):
            future.result(10)


def test_a_timeout_ends_the_waiting_and_not_the_load(spawn: Spawn) -> None:
    loader, waiter = spawn(), spawn()
    loading = loader.begin_loading("hold:a")
    other = waiter.begin_waiting("hold:a")
    with pytest.raises(DeadlineExceeded):
        waiter.get("hold:a", timeout=0.1)
    loader.release("a")
    assert loading.result(10) == other.result(10) == value_of("hold:a")
    assert waiter.loads == []


@pytest.mark.parametrize("cache_bytes", [0, BUDGET])
@pytest.mark.parametrize("size", [0, 100, 64 << 10, (64 << 10) + 1, BUDGET // 2])
def test_waiters_get_values_that_are_not_cached(spawn: Spawn, cache_bytes: int, size: int) -> None:
    key = f"big:{size}:{cache_bytes}"
    workers = [spawn(cache_bytes=cache_bytes) for _ in range(2)]
    storms = [worker.begin("storm", [key] * 3, 4) for worker in workers]
    for storm in storms:
        for values in storm.result(30):
            assert values == [value_of(key)] * 3


def test_a_loader_that_gets_its_own_key(spawn: Spawn) -> None:
    with pytest.raises(LoadCycleError, match="self:"):
        spawn().get("self:")


def test_a_cycle_over_two_workers(spawn: Spawn) -> None:
    one, two = spawn(), spawn()
    futures = [one.begin_loading("cross:1:2"), two.begin_loading("cross:2:1")]
    one.release("cross")
    two.release("cross")
    errors: list[Any] = [future.exception(10) for future in futures]
    # Whoever closed the cycle is told so; the other one's load failed with that.
    assert {type(error) for error in errors} == {LoadCycleError, LoadError}
    assert {error.type_name for error in errors if isinstance(error, LoadError)} == {
        "mpgroupcache.errors.LoadCycleError"
    }


def test_storms(spawn: Spawn) -> None:
    rounds, threads = 40, 6
    workers = [spawn() for _ in range(3)]
    keys = [f"storm-{number}" for number in range(rounds)]
    storms = [worker.begin("storm", keys, threads) for worker in workers]
    for storm in storms:
        assert storm.result(30) == [[value_of(key) for key in keys]] * threads
    loads = sorted(key for worker in workers for key in worker.loads)
    assert loads == sorted(keys)
