"""Where Go groupcache has a known defect: what is right instead. Each test names the defect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from arenas import OpenArena
from children import Child
from groups import CACHE_BYTES, Groups
from workers import PATIENCE, Daemon, Worker, wait_until, waiting_here

import mpgroupcache
from mpgroupcache import Sink
from mpgroupcache.net import peerwire


@pytest.mark.parametrize("key", [b"a b", b"a+b", b"a%20b", b"a%2Bb", b" ", b"+"])
def test_a_space_is_no_plus(key: bytes) -> None:
    """Go's client writes a space as a plus, which its server reads as a plus: the value of another key."""
    target = peerwire.request_target("/_groupcache/", "g", key)
    assert peerwire.parse_target("/_groupcache/", target) == (b"g", key)
    assert b"+" not in target  # so that Go's server reads it right, too


def test_a_key_that_is_added_again_counts_once(arena: Callable[..., OpenArena]) -> None:
    """Go's cache adds the bytes of the new value, and never takes off the old one's."""
    opened = arena(1 << 20)
    for size in (10, 5000, 10):
        assert opened.arena.put(b"key", bytes(size))
    assert opened.arena.list_stats(0)[:2] == (len(b"key") + 10, 1)


def test_a_value_that_cannot_fit_evicts_nothing(here: Daemon) -> None:
    """Go adds it first, and then evicts all others, and it as well."""
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_bytes(bytes(int(key))))
    for size in range(20):
        group.get(str(size))
    wait_until(lambda: group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).items == 20)
    assert len(group.get(str(2 << 20))) == 2 << 20
    assert len(group.get("20")) == 20
    wait_until(lambda: group.lookup("20") is not None)  # so that what came before it was dealt with
    stats = group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE)
    assert (stats.items, stats.evictions) == (21, 0)


def test_a_loader_that_is_left_strands_nobody(spawn: Callable[..., Worker]) -> None:
    """Go's waiters of a loader that panics wait for ever."""
    leaving, waiting = spawn(), spawn()
    key = "exit:now"
    first = leaving.begin_loading(key)
    second = waiting.begin_waiting(key)
    waiting.release("now")  # its own loader will not be held, and ends with a SystemExit as well
    leaving.release("now")
    for future in (first, second):
        assert isinstance(future.exception(PATIENCE), BaseException)
    assert leaving.loads == waiting.loads == [key]  # the next in line was asked to load, and told its own caller


def test_a_leader_that_is_cancelled_fails_only_itself(here: Daemon) -> None:
    """In Go, whose context is cancelled while it loads fails all who wait for that load."""
    released = threading.Event()

    def load(ctx: Any, key: str, dest: Sink) -> None:
        assert released.wait(PATIENCE)
        dest.set_string("value")

    group = mpgroupcache.new_group("g", "1MiB", load)

    async def run() -> tuple[Any, str]:
        leader = asyncio.create_task(group.aget("k"))
        await asyncio.to_thread(wait_until, lambda: group.stats.loads == 1)
        follower = asyncio.create_task(group.aget("k"))
        await asyncio.sleep(0)
        leader.cancel()
        released.set()
        results = await asyncio.gather(leader, return_exceptions=True)
        return results[0], str(await follower)

    error, value = asyncio.run(run())
    assert isinstance(error, asyncio.CancelledError)
    assert value == "value"
    assert group.stats.local_loads == 1


def test_a_leader_that_is_cancelled_fails_no_other_process(
    here: Daemon, child: Callable[..., Child], tmp_path: Path
) -> None:
    """The same in Go. Here the load itself ends with the leader's loop, and whoever waits loads instead."""
    loading = asyncio.Event()

    async def load(ctx: Any, key: str, dest: Sink) -> None:
        loading.set()
        await asyncio.Event().wait()  # for ever

    group = mpgroupcache.new_group("string-group", CACHE_BYTES, load)
    follower = child(Groups, str(tmp_path), here.socket)

    async def run() -> int:
        leader = asyncio.create_task(group.aget("k"))
        await loading.wait()
        number = await asyncio.to_thread(follower.call, "begin", "get_string", "k")
        await asyncio.to_thread(wait_until, lambda: follower.call("asking") == 1, "a get that waits")
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        return number  # and with that the loop ends

    assert follower.call("result", asyncio.run(run())) == "ECHO:k"
    assert group.stats.local_loads == 1


def test_stats_count_what_their_names_say(here: Daemon) -> None:
    """Go's ``LoadsDeduped`` counts the loads that were not, and its ``Loads`` those that a second look found cached."""
    released = threading.Event()

    def load(ctx: Any, key: str, dest: Sink) -> None:
        assert released.wait(PATIENCE)
        if key == "bad":
            raise ValueError("boom")
        dest.set_string("value")

    group = mpgroupcache.new_group("g", "1MiB", load)
    with ThreadPoolExecutor(3) as pool:
        gets = [pool.submit(group.get, "k") for _ in range(3)]
        wait_until(lambda: waiting_here() == 2, "gets that wait for the first")
        released.set()
        assert [get.result(PATIENCE) for get in gets] == ["value"] * 3
    wait_until(lambda: group.lookup("k") is not None)
    before = group.stats.cache_hits
    group.get("k")
    with pytest.raises(ValueError, match="boom"):
        group.get("bad")
    stats = group.stats
    assert stats.cache_hits - before == 1
    assert (stats.loads, stats.loads_deduped) == (4, 2)  # three at once, of which two waited; and one that failed
    assert (stats.local_loads, stats.local_load_errs) == (1, 1)
    assert stats.gets == stats.cache_hits + stats.loads
    assert (stats.peer_loads, stats.peer_errors, stats.server_requests) == (0, 0, 0)


def test_a_loader_that_sets_nothing_is_an_error(here: Daemon) -> None:
    """Go's TODO: such a loader caches an empty value."""
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: None)
    with pytest.raises(RuntimeError, match="set nothing on its sink"):
        group.get("k")
    assert group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).items == 0


def test_of_two_sets_the_last_counts(here: Daemon) -> None:
    def load(ctx: Any, key: str, dest: Sink) -> None:
        dest.set_string("first")
        dest.set_bytes(b"last")

    assert mpgroupcache.new_group("g", "1MiB", load).get("k") == "last"
