"""``aget``: coroutines, loops, cancellation."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from workers import PATIENCE, Daemon, advance, flush, value_of, wait_until, waiting_here

import mpgroupcache
from mpgroupcache import BytesSink, DeadlineExceeded, LoadCycleError, LoadError, Sink
from mpgroupcache.ipc.fields import MAX_HELD
from mpgroupcache.worker import process


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


class Loader:
    """An ``async`` getter that can be held."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.go = asyncio.Event()

    async def get(self, ctx: Any, key: str, dest: Sink) -> None:
        self.loads.append(key)
        if "hold" in key:
            await self.go.wait()
        if key == "raise":
            raise ValueError(ctx)
        if key == "self":
            await group_of(self).aget("self")
        dest.set_bytes(value_of(key))


def group_of(loader: Loader) -> mpgroupcache.Group:
    group = mpgroupcache.get_group("async")
    assert group is not None
    return group


def declare(loader: Any) -> mpgroupcache.Group:
    return mpgroupcache.new_group("async", "1MiB", loader)


def test_a_hit_does_not_suspend(here: Daemon, runner: asyncio.Runner) -> None:
    group = declare(Loader())

    async def run() -> None:
        assert bytes(await group.aget("k")) == value_of("k")
        while group.lookup("k") is None:
            await asyncio.sleep(0)
        with pytest.raises(StopIteration) as stopped:
            group.aget("k").send(None)
        assert stopped.value.value == value_of("k")
        sink = BytesSink()
        assert await group.aget("k", sink) is None
        assert sink.value == value_of("k")

    runner.run(run())


@pytest.mark.parametrize(("size", "tasks"), [(100, 50), (100_000, 50), (60_000, 2000)])
def test_many_tasks_load_once(here: Daemon, runner: asyncio.Runner, size: int, tasks: int) -> None:
    loader = Loader()
    group = declare(loader)

    async def run() -> None:
        key = f"big:{size}:hold"
        gets = [asyncio.create_task(group.aget(key)) for _ in range(tasks)]
        while waiting_here() < tasks - 1:  # one that comes after the load has a hit
            await asyncio.sleep(0.001)
        loader.go.set()
        views = await asyncio.gather(*gets)
        assert all(view == value_of(key) for view in views)
        assert loader.loads == [key]

    runner.run(run())
    assert (group.stats.loads, group.stats.loads_deduped) == (tasks, tasks - 1)


def test_cancelling_stops_the_waiting_and_not_the_load(here: Daemon, runner: asyncio.Runner) -> None:
    loader = Loader()
    group = declare(loader)

    async def run() -> None:
        first = asyncio.create_task(group.aget("hold"))
        while not loader.loads:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(group.aget("hold"))
        third = asyncio.create_task(group.aget("hold"))
        with pytest.raises(DeadlineExceeded):
            await group.aget("hold", timeout=0.05)
        first.cancel()
        second.cancel()
        loader.go.set()
        assert await third == value_of("hold")
        assert first.cancelled()
        assert second.cancelled()
        assert loader.loads == ["hold"]

    runner.run(run())


def test_errors(here: Daemon, runner: asyncio.Runner) -> None:
    loader = Loader()
    group = declare(loader)

    async def run() -> None:
        results = await asyncio.gather(*(group.aget("raise", ctx=n) for n in range(5)), return_exceptions=True)
        # A caller that comes when the flight has failed opens another one: nothing failed is kept.
        kinds = [type(result) for result in results]
        assert kinds.count(ValueError) == len(loader.loads) >= 1
        assert set(kinds) <= {ValueError, LoadError}
        with pytest.raises((LoadCycleError, LoadError)):
            await group.aget("self")

    runner.run(run())
    with pytest.raises(TypeError, match="aget"):
        group.get("k")


def test_a_plain_getter_runs_in_the_executor(here: Daemon, runner: asyncio.Runner) -> None:
    threads: list[int] = []

    def load(ctx: Any, key: str, dest: Sink) -> None:
        threads.append(threading.get_ident())
        if key == "nest":
            dest.set_bytes(group.get("inner"))
        elif key == "cycle":
            group.get("cycle")
        else:
            dest.set_bytes(value_of(key))

    group = declare(load)

    async def run() -> None:
        assert await group.aget("nest") == value_of("inner")
        assert threading.get_ident() not in threads
        with pytest.raises(LoadCycleError):
            await group.aget("cycle")

    runner.run(run())


def test_threads_and_tasks_share_a_channel(here: Daemon, runner: asyncio.Runner) -> None:
    group = declare(lambda ctx, key, dest: dest.set_bytes(value_of(key)))
    results: list[bytes] = []

    def work(number: int) -> None:
        results.extend(bytes(group.get(f"t-{number}-{i}")) for i in range(100))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]

    async def run() -> None:
        for i in range(50):
            keys = [f"a-{i}-{n}" for n in range(4)]
            assert [bytes(view) for view in await asyncio.gather(*map(group.aget, keys))] == [*map(value_of, keys)]

    for thread in threads:
        thread.start()
    runner.run(run())
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(value_of(f"t-{n}-{i}") for n in range(4) for i in range(100))


def test_a_load_that_waits_for_one_behind_it(
    here: Daemon, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Loads take all threads. 2. One more has its lease, and no thread. 3. They ask for its key, and wait for it."""
    monkeypatch.setattr(process, "LOADS", 2)
    begun, go = threading.Semaphore(0), threading.Event()

    def load(ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        if key != "part":
            begun.release()
            assert go.wait(PATIENCE)
            group.get("part")
        dest.set_string(key)

    group = declare(load)

    async def run() -> None:
        pages = [asyncio.create_task(group.aget(f"page-{i}")) for i in range(2)]
        for _ in pages:
            assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
        part = asyncio.create_task(group.aget("part"))
        await asyncio.to_thread(wait_until, lambda: process.current().threads._free < 0, "a load that is queued")
        go.set()
        async with asyncio.timeout(PATIENCE):
            assert await part == "part"
            assert [await page for page in pages] == ["page-0", "page-1"]

    runner.run(run())


def test_without_a_coordinator(here: Daemon, runner: asyncio.Runner) -> None:
    loader = Loader()
    group = declare(loader)
    here.close()

    async def run() -> None:
        tasks = [asyncio.create_task(group.aget("hold")) for _ in range(10)]
        while waiting_here() < 9:  # one that asks after the load would load again
            await asyncio.sleep(0.001)
        loader.go.set()
        assert all(view == value_of("hold") for view in await asyncio.gather(*tasks))
        assert loader.loads == ["hold"]
        with pytest.raises((LoadCycleError, LoadError)):
            await group.aget("self")

    runner.run(run())


def test_a_coordinator_that_dies_while_tasks_wait(
    here: Daemon, start_coordinator: Callable[..., Daemon], runner: asyncio.Runner
) -> None:
    loader = Loader()
    group = declare(loader)

    async def run() -> None:
        first = asyncio.create_task(group.aget("hold"))
        while not loader.loads:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(group.aget("hold"))
        await asyncio.sleep(0)
        here.process.kill()
        loader.go.set()
        assert await first == await second == value_of("hold")

    runner.run(run())
    here.wait()
    start_coordinator()  # to remove at its end what the dead one left


def test_a_getter_that_raises_stop_iteration(here: Daemon, runner: asyncio.Runner) -> None:
    group = declare(lambda ctx, key, dest: next(iter(())))

    async def run() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(group.aget("k"), 10)

    runner.run(run())


def test_a_load_that_is_cancelled_before_its_first_step(
    here: Daemon, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that ends cancels tasks that it has not begun to run: their leases must not be lost with them."""
    loader = Loader()
    group = declare(loader)
    create_task = asyncio.create_task

    def create_cancelled(run: Any) -> asyncio.Task[Any]:
        task = create_task(run)
        task.cancel()
        return task

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "create_task", create_cancelled)
            with pytest.raises(asyncio.CancelledError):
                await group.aget("k")
        assert loader.loads == []
        assert await group.aget("k", timeout=10) == value_of("k")

    runner.run(run())


def test_a_deep_nest_of_loads(here: Daemon, runner: asyncio.Runner) -> None:
    """An ASK names a limited number of leases; coroutines nest deeper than threads do."""

    async def load(ctx: Any, key: str, dest: Sink) -> None:
        depth = int(key)
        dest.set_bytes(await group.aget(str(depth - 1)) if depth else b"bottom")

    async def load_cycle(ctx: Any, key: str, dest: Sink) -> None:
        depth = int(key)
        dest.set_bytes(await circle.aget(str(depth - 1 if depth else MAX_HELD + 50)))

    group = declare(load)
    circle = mpgroupcache.new_group("circle", "1MiB", load_cycle)

    async def run() -> None:
        assert await group.aget(str(MAX_HELD + 100)) == b"bottom"
        with pytest.raises((LoadCycleError, LoadError)):
            await circle.aget(str(MAX_HELD + 50), timeout=30)

    runner.run(run())


# ---- Stale values


class Aging:
    """An ``async`` getter that notes where it runs."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.threads: list[str] = []

    async def get(self, ctx: Any, key: str, dest: Sink) -> None:
        self.loops.append(asyncio.get_running_loop())
        self.tasks.append(asyncio.current_task())
        self.threads.append(threading.current_thread().name)
        dest.set_string(str(len(self.loops)))


def declare_aging(getter: Aging) -> mpgroupcache.Group:
    group = mpgroupcache.new_group("async", "1MiB", getter, ttl=60, stale=600)
    assert mpgroupcache.connect()
    return group


def become_stale(here: Daemon, group: mpgroupcache.Group, key: str) -> None:
    flush()
    wait_until(lambda: group.lookup(key) is not None, f"{key} in shared memory")
    advance(here.socket, 61)


def test_a_stale_value_is_refreshed_on_the_loop_that_met_it(here: Daemon, runner: asyncio.Runner) -> None:
    getter = Aging()
    group = declare_aging(getter)

    async def run() -> None:
        assert await group.aget("k") == "1"
        become_stale(here, group, "k")
        for _ in range(100):
            with pytest.raises(StopIteration) as stopped:
                group.aget("k").send(None)  # it waits for nothing
            assert stopped.value.value == "1"
        async with asyncio.timeout(PATIENCE):
            while await group.aget("k") != "2":
                await asyncio.sleep(0.001)
        assert getter.loops == [asyncio.get_running_loop()] * 2
        assert getter.tasks[1] is not asyncio.current_task()

    runner.run(run())


@pytest.mark.parametrize("many", [False, True], ids=["get", "get_many"])
def test_a_stale_value_that_no_loop_met_is_refreshed_in_a_thread_of_ours(
    here: Daemon, runner: asyncio.Runner, many: bool
) -> None:
    getter = Aging()
    group = declare_aging(getter)
    assert runner.run(group.aget("k")) == "1"
    become_stale(here, group, "k")
    assert (group.get_many(["k"])["k"] if many else group.get("k")) == "1"
    wait_until(lambda: group.get("k") == "2", "a refresh")
    assert getter.loops[1] is not runner.get_loop()
    assert getter.threads[1].startswith("mpgroupcache-load")


def test_a_loop_that_asked_in_vain_is_not_taken_for_a_later_refresh(here: Daemon, runner: asyncio.Runner) -> None:
    """1. A value is set anew. 2. Meanwhile a loop meets the stale one, and asks; it comes too late, and ends. 3. Then a
    thread meets the value, stale again: the loop that stands still is none to load it on."""
    getter = Aging()
    group = declare_aging(getter)
    assert runner.run(group.aget("k")) == "1"
    become_stale(here, group, "k")
    link = process.current().working_link
    assert link is not None
    here.send(signal.SIGSTOP)
    setting = threading.Thread(target=group.set, args=("k", b"set"), kwargs={"timeout": PATIENCE})
    setting.start()
    wait_until(lambda: len(link.channel), "a CHANGE that is sent")
    assert runner.run(group.aget("k")) == "1"
    here.send(signal.SIGCONT)
    setting.join()
    become_stale(here, group, "k")
    assert group.get("k") == "set"
    wait_until(lambda: group.get("k") == "2", "a refresh")
    assert getter.threads[1].startswith("mpgroupcache-load")


def test_a_refresh_for_a_loop_that_is_closed_runs_in_a_thread_of_ours(here: Daemon) -> None:
    getter = Aging()
    group = declare_aging(getter)
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(group.aget("k")) == "1"
        become_stale(here, group, "k")
        here.send(signal.SIGSTOP)
        assert loop.run_until_complete(group.aget("k")) == "1"
    finally:
        loop.close()
        here.send(signal.SIGCONT)
    wait_until(lambda: group.get("k") == "2", "a refresh")
    assert getter.threads[1].startswith("mpgroupcache-load")
