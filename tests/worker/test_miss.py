"""What the callers of one process share of a miss."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from workers import PATIENCE, Daemon, Worker, count_asks, value_of, wait_until, waiting_here

import mpgroupcache
from mpgroupcache import LoadCycleError, LoadError, Sink
from mpgroupcache.worker.miss import changes_of

TASKS = 2000


def test_many_tasks_that_want_one_key_send_one_ask_and_share_one_value(
    here: Daemon, spawn_on: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answered one by one they would pass the connection's backlog, and the load would begin again."""
    other = spawn_on(here.socket, cache_bytes=0)
    group = mpgroupcache.new_group("group", 0, lambda ctx, key, dest: pytest.fail("a second load"))
    asked = count_asks(monkeypatch.setattr)
    loading = other.begin_loading("hold:shared")

    async def run() -> list[mpgroupcache.ByteView]:
        tasks = [asyncio.create_task(group.aget("hold:shared")) for _ in range(TASKS)]
        while waiting_here() < TASKS - 1:
            await asyncio.sleep(0.001)
        other.release("shared")
        return list(await asyncio.gather(*tasks))

    views = asyncio.run(run())
    assert loading.result(PATIENCE) == value_of("hold:shared")
    assert len({id(view) for view in views}) == TASKS  # each may release its own
    assert all(view == value_of("hold:shared") for view in views)
    assert asked() == 1
    assert other.loads == ["hold:shared"]


def test_who_holds_a_lease_asks_for_himself(here: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator finds a cycle by the leases that are named to it: one that it is not told of would not end."""
    asked = count_asks(monkeypatch.setattr)
    inside, go = threading.Event(), threading.Event()

    def load(ctx: Any, key: str, dest: Sink) -> None:
        if key == "outer":
            dest.set_bytes(group.get("inner"))
        else:
            inside.set()
            assert go.wait(PATIENCE)
            dest.set_string("value")

    group = mpgroupcache.new_group("g", 0, load)
    with ThreadPoolExecutor(3) as pool:
        inner = pool.submit(group.get, "inner")
        assert inside.wait(PATIENCE)
        follower = pool.submit(group.get, "inner")
        wait_until(lambda: waiting_here() == 1, "one that joins")
        outer = pool.submit(group.get, "outer")
        wait_until(lambda: asked() == 3, "the ASKs of two leaders, and of one inside a load")
        go.set()
        assert [get.result(PATIENCE) for get in (inner, follower, outer)] == ["value"] * 3


@pytest.mark.parametrize("there", [True, False])
def test_threads_that_wait_for_each_other_in_a_circle(here: Daemon, tmp_path: Any, there: bool) -> None:
    if not there:
        mpgroupcache.configure(socket=str(tmp_path / "nobody"))
    both = threading.Barrier(2)

    def load(ctx: Any, key: str, dest: Sink) -> None:
        both.wait(PATIENCE)
        dest.set_bytes(group.get({"a": "b", "b": "a"}[key]))

    group = mpgroupcache.new_group("g", "1MiB", load)
    with ThreadPoolExecutor(2) as pool:
        errors = [get.exception(PATIENCE) for get in (pool.submit(group.get, "a"), pool.submit(group.get, "b"))]
    assert all(isinstance(error, (LoadCycleError, LoadError)) for error in errors)
    assert any(isinstance(error, LoadCycleError) for error in errors)
    assert "g/b'a' -> g/b'b'" in str(errors) or "g/b'b' -> g/b'a'" in str(errors)


@pytest.mark.parametrize("there", [True, False])
def test_an_error_keeps_no_frames(here: Daemon, tmp_path: Any, there: bool) -> None:
    """With frames it would keep the link, the region and whatever else was in them, until the collector comes."""
    if not there:
        mpgroupcache.configure(socket=str(tmp_path / "nobody"))

    def load(ctx: Any, key: str, dest: Sink) -> None:
        raise ValueError(key)

    group = mpgroupcache.new_group("g", "1MiB", load)

    def fail() -> None:
        with pytest.raises(ValueError, match="key"):
            group.get("key")

    fail()
    gc.collect()
    flags = gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        fail()
        gc.collect()
        left = [thing for thing in gc.garbage if type(thing).__module__.startswith("mpgroupcache")]
    finally:
        gc.set_debug(flags)
        gc.garbage.clear()
    assert left == []


def test_where_the_change_count_cannot_be_seen_nobody_shares_anything() -> None:
    """A change may have come in between, of which this process has not heard."""
    away: Any = SimpleNamespace(is_served=lambda: False)
    served: Any = SimpleNamespace(is_served=lambda: True)
    seen: Any = SimpleNamespace(changes=5)
    assert changes_of(served, seen) == changes_of(away, seen) == 5
    never_met: Any = SimpleNamespace(changes=0)
    assert changes_of(away, never_met) == 0
    unseen: Any = SimpleNamespace(changes=-1)
    for process, group in ((away, unseen), (served, unseen), (served, never_met)):
        assert len({changes_of(process, group) for _ in range(10)} - {0, 5}) == 10
