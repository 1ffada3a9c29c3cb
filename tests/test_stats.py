"""What a group counts, and ``AtomicInt``."""

from __future__ import annotations

import ast
import asyncio
import copy
import inspect
import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
from children import Child
from workers import PATIENCE, Daemon, leave, wait_until, waiting_here

import mpgroupcache
from mpgroupcache import AtomicInt, CacheStats, CacheType, DeadlineExceeded, LoadCycleError, LoadError, Sink, Stats
from mpgroupcache.worker import config, embedded, process
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT

COUNTING = 4  # processes, and threads of a process, that count at once
EACH = 20_000

# ---- What they count


@pytest.mark.parametrize("kind", [Stats, CacheStats])
def test_every_field_is_defined_and_compared_with_gos(kind: type) -> None:
    [body] = [node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef)]
    texts = {
        field.target.id: doc.value.value
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    }  # fmt: skip
    assert list(texts) == [field.name for field in fields(kind)]
    # All but `gets`, which is Go's: what is more is in its text.
    assert [name for name, text in texts.items() if "Go" not in str(text)] == (["gets"] if kind is Stats else [])


class Getting:
    """A worker."""

    def __init__(self, socket: str, cache_bytes: int | str) -> None:
        mpgroupcache.configure(socket=socket)
        self.group = mpgroupcache.new_group("g", cache_bytes, lambda ctx, key, dest: dest.set_string("value"))

    def get(self, key: str, times: int = 1) -> None:
        for _ in range(times):
            self.group.get(key)

    def cached(self, key: str) -> bool:
        return self.group.lookup(key) is not None

    def stats(self) -> tuple[Stats, CacheStats]:
        return self.group.stats, self.group.cache_stats(CacheType.MAIN_CACHE)


def test_a_worker_that_has_had_no_get_reads_what_the_host_counts(here: Daemon, child: Callable[..., Child]) -> None:
    other = child(Getting, here.socket, "1MiB")
    other.call("get", "k", 5)
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: pytest.fail("a load"))
    wait_until(lambda: group.stats.gets == 5, "the host's counts")  # 50 ms may be too short, on a busy machine
    assert group.cache_stats(CacheType.MAIN_CACHE).items == 1
    assert group.lookup("k") == "value"


def test_to_read_counts_waits_for_nobody(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    here.send(signal.SIGSTOP)
    began = time.monotonic()
    assert group.stats == Stats()
    assert group.cache_stats(CacheType.MAIN_CACHE) == CacheStats()
    assert time.monotonic() - began < LIVENESS_TIMEOUT / 2


def test_to_read_counts_starts_no_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.urandom(8).hex()
    monkeypatch.delenv("MPGROUPCACHE_SOCKET", raising=False)
    monkeypatch.setenv("MPGROUPCACHE_APPLICATION", name)
    monkeypatch.setattr(embedded, "ensure_running", lambda _: pytest.fail("a start"))
    mpgroupcache.configure(socket=None)
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("value"))
    assert group.stats == Stats()
    attempt = process.current()._attempt
    assert attempt is not None
    wait_until(lambda: attempt.over)
    assert process.current()._failures == 0  # a get tries at once
    leave()
    assert not os.path.exists(config.private_socket(name))


def test_they_are_read_without_a_message_and_the_dead_stay_counted(here: Daemon, child: Callable[..., Child]) -> None:
    dying, living = child(Getting, here.socket, "1MiB"), child(Getting, here.socket, "1MiB")
    dying.call("get", "k")
    wait_until(lambda: dying.call("cached", "k"), "the entry")
    living.call("get", "k")
    before, cache_before = living.call("stats")
    here.send(signal.SIGSTOP)  # there is nobody to ask
    dying.call("get", "k", 100)
    stats, cache = living.call("stats")
    assert (stats.cache_hits, stats.gets) == (before.cache_hits + 100, before.gets + 100)
    assert (cache.hits, cache.gets, cache.items) == (cache_before.hits + 100, cache_before.gets + 100, 1)
    dying.kill()
    assert living.call("stats") == (stats, cache)
    here.send(signal.SIGCONT)
    heir = child(Getting, here.socket, "1MiB")  # may be given the dead one's region, whose counts are elsewhere by then
    heir.call("get", "k")
    assert living.call("stats")[0].cache_hits == stats.cache_hits + 1
    assert living.call("stats")[0].local_loads == 1


def test_a_group_that_caches_nothing_looks_nowhere(here: Daemon, child: Callable[..., Child]) -> None:
    worker = child(Getting, here.socket, 0)
    worker.call("get", "k", 3)
    stats, cache = worker.call("stats")
    assert (stats.gets, stats.loads, stats.cache_hits, stats.local_loads) == (3, 3, 0, 3)
    assert cache == CacheStats()


class Held:
    """A getter that is held, and that does what the key says."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()

    def get(self, ctx: Any, key: str, dest: Sink) -> None:
        if key == "cycle":
            group = mpgroupcache.get_group("g")
            assert group is not None
            group.get(key)
        self.begun.set()
        assert self.released.wait(PATIENCE)
        if key == "bad":
            raise ValueError("boom")
        dest.set_string("value")


@pytest.fixture(params=["with a coordinator", "alone"])
def held(request: pytest.FixtureRequest, here: Daemon, tmp_path: Any) -> tuple[mpgroupcache.Group, Held]:
    if request.param == "alone":
        mpgroupcache.configure(socket=str(tmp_path / "nobody"))
    getter = Held()
    return mpgroupcache.new_group("g", "1MiB", getter), getter


def test_a_get_that_fails_is_a_get(held: tuple[mpgroupcache.Group, Held]) -> None:
    group, getter = held
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(group.get, "bad")
        assert getter.begun.wait(PATIENCE)
        with pytest.raises(DeadlineExceeded):
            group.get("bad", timeout=0.0)
        follower = pool.submit(group.get, "bad")
        wait_until(lambda: waiting_here() == 1, "a get that waits")
        getter.released.set()
        errors = [type(get.exception(PATIENCE)) for get in (leader, follower)]
    assert errors == [ValueError, LoadError]
    stats = group.stats
    assert (stats.gets, stats.loads, stats.cache_hits, stats.loads_deduped) == (3, 3, 0, 0)
    assert (stats.local_loads, stats.local_load_errs) == (0, 1)
    with pytest.raises(LoadCycleError):
        group.get("cycle")
    stats = group.stats
    assert (stats.gets, stats.loads, stats.local_load_errs) == (5, 5, 2)  # the loader's own get is one, too
    with pytest.raises(ValueError, match="key: got"):
        group.get("\ud800")
    assert group.stats == stats


def test_a_get_that_is_cancelled_is_a_get(held: tuple[mpgroupcache.Group, Held]) -> None:
    group, getter = held

    async def run() -> None:
        leader = asyncio.create_task(group.aget("k"))
        await asyncio.to_thread(getter.begun.wait, PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await group.aget("k", timeout=0.0)
        follower = asyncio.create_task(group.aget("k"))
        await asyncio.to_thread(wait_until, lambda: waiting_here() == 1, "a get that waits")
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
        getter.released.set()
        assert await leader == "value"

    asyncio.run(run())
    stats = group.stats
    assert (stats.gets, stats.loads, stats.loads_deduped, stats.local_loads) == (3, 3, 0, 1)


# ---- AtomicInt


def count(counter: AtomicInt, n: int) -> None:
    for _ in range(EACH):
        counter.add(n)


def test_threads_count_together() -> None:
    up, down = AtomicInt(), AtomicInt()
    together = threading.Barrier(2 * COUNTING)

    def run(counter: AtomicInt, n: int) -> None:
        together.wait(PATIENCE)
        count(counter, n)

    with ThreadPoolExecutor(2 * COUNTING) as pool:
        runs = [pool.submit(run, *of) for of in [(up, 3), (down, -1)] * COUNTING]
        for future in runs:
            future.result(PATIENCE)
    assert (up.get(), down.get()) == (3 * COUNTING * EACH, -COUNTING * EACH)


def test_processes_that_inherited_it_count_together() -> None:
    counter, other = AtomicInt(), AtomicInt()
    counter.add(5)
    waiting, go = os.pipe()  # the end of the file lets all of them go at once
    pids = []
    for _ in range(COUNTING):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.close(go)
                os.read(waiting, 1)
                if counter.get() >= 5:
                    count(counter, 1)
                    AtomicInt().add(100)  # its own: nobody else's
                    code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(go)
    os.close(waiting)
    count(counter, 1)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * COUNTING
    assert counter.get() == 5 + (COUNTING + 1) * EACH  # what the dead have counted stays
    assert other.get() == 0


def test_it_is_gos_int64() -> None:
    counter = AtomicInt()
    assert (counter.get(), str(counter), repr(counter)) == (0, "0", "AtomicInt(0)")
    counter.add(-7)
    assert (counter.get(), str(counter), repr(counter)) == (-7, "-7", "AtomicInt(-7)")
    counter.add(7)
    counter.add(2**63 - 1)
    counter.add(1)  # Go's wraps around, too
    assert counter.get() == -(2**63)
    for n in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError):
            counter.add(n)
    with pytest.raises(TypeError):
        counter.add("1")  # type: ignore[arg-type]
    assert counter.get() == -(2**63)


@pytest.mark.parametrize("make", [pickle.dumps, copy.deepcopy])
def test_it_cannot_be_copied(make: Callable[[AtomicInt], object]) -> None:
    """A copy would count alone, and look as if it counted along."""
    with pytest.raises(TypeError):
        make(AtomicInt())
