"""Values that live for a time, are absent, or are put there: in one process, with a real coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from workers import GROUP, PATIENCE, Daemon, HandWorker, advance, flush, leave, wait_until

import mpgroupcache
from mpgroupcache import ByteView, ChangeError, Group, NotFound, Sink
from mpgroupcache.errors import LoadCycleError, LoadError
from mpgroupcache.worker import many, process
from mpgroupcache.worker.link import Link


class Source:
    """A database: what loaders load, and how often they did."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.loads: list[str] = []
        self.threads: list[str] = []
        self.lives: dict[str, Any] = {}
        self.failing: Exception | None = None
        self.held: dict[str, threading.Event] = {}

    def load(self, ctx: Any, key: str, dest: Sink) -> None:
        self.loads.append(key)
        self.threads.append(threading.current_thread().name)
        row = self.rows.get(key)
        if key in self.held:
            assert self.held[key].wait(PATIENCE)
        if self.failing is not None:
            raise type(self.failing)(*self.failing.args)  # a new one, whose frames end with it
        if row is None:
            raise NotFound(f"no row {key}")
        dest.set_string(row, **self.lives)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def declare(here: Daemon, source: Source) -> Callable[..., Group]:
    """Declare the group, attached: ``declare(ttl=...)``."""

    def make(*loader: Any, **options: Any) -> Group:
        group = mpgroupcache.new_group("g", "1MiB", *(loader or (source.load,)), **options)
        assert mpgroupcache.connect()
        return group

    return make


def in_arena(group: Group, key: str) -> ByteView:
    """A view of what is in shared memory; it is stored when that has arrived."""
    flush()
    wait_until(lambda: group.lookup(key) is not None, f"{key} in shared memory")
    view = group.lookup(key)
    assert view is not None
    return view


# ---- Ages


def test_a_value_is_fresh_then_dead(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60)
    source.rows["k"] = "first"
    assert group.get("k") == "first"
    view = in_arena(group, "k")
    assert view.ttl is not None
    assert 30 < view.ttl < 60.1  # the clock that readers ask is some ms late
    source.rows["k"] = "second"
    advance(here.socket, 30)
    assert group.get("k") == "first"
    advance(here.socket, 31)
    assert group.lookup("k") is None
    assert group.get("k") == "second"
    assert view == "first"  # a view stays what it is


@pytest.mark.parametrize("stopped", [False, True])
def test_a_short_life_in_real_time(here: Daemon, declare: Callable[..., Group], stopped: bool) -> None:
    """By the clock as it runs, which nobody moves, whether or not somebody takes away what is dead."""
    group = declare(ttl=0.05)
    began = time.monotonic()
    group.set("k", b"v")
    if stopped:
        here.send(signal.SIGSTOP)
    assert group.lookup("k") == b"v" or time.monotonic() - began > 0.04  # a reader's clock is some ms off
    wait_until(lambda: group.lookup("k") is None, "its death")
    assert time.monotonic() - began > 0.04
    here.send(signal.SIGCONT)


def test_what_a_process_kept_is_of_no_use_once_there_is_a_coordinator(
    socket_path: str, start_coordinator: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    """Though it has not met it yet: others have, and change values."""
    mpgroupcache.configure(socket=socket_path)
    try:
        group = mpgroupcache.new_group(GROUP, "1MiB", source.load)
        source.rows["k"] = "before"
        assert group.get("k") == group.get("k") == "before"
        assert source.loads == ["k"]
        monkeypatch.setattr(process.current(), "_retry_at", float("inf"))
        start_coordinator()
        source.rows["k"] = "after"  # and somebody tells the coordinator that
        assert group.get("k") == "after"
        assert group.lookup("k") is None
        assert not group.attached
    finally:
        leave()


def test_a_group_without_ages_keeps_its_values_for_ever(
    here: Daemon, declare: Callable[..., Group], source: Source
) -> None:
    group = declare()
    source.rows["k"] = "v"
    group.get("k")
    assert in_arena(group, "k").ttl is None
    advance(here.socket, 1e9)
    assert group.get("k") == "v"
    assert source.loads == ["k"]


def test_a_loader_says_how_long_its_value_lives(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60)
    source.rows |= {"short": "1", "ever": "2", "never": "3", "delta": "4"}
    for key, ttl in {"short": 5, "ever": None, "never": 0, "delta": timedelta(minutes=2)}.items():
        source.lives = {"ttl": ttl}
        group.get(key)
    flush()
    wait_until(lambda: group.lookup("delta"), "the last one in shared memory")
    assert group.lookup("never") is None
    assert in_arena(group, "ever").ttl is None
    advance(here.socket, 6)
    assert group.lookup("short") is None
    advance(here.socket, 55)
    assert group.lookup("delta") is not None
    advance(here.socket, 100)
    assert group.lookup("delta") is None
    assert group.lookup("ever") is not None


def test_jitter_takes_some_of_each_ttl(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=100, jitter=0.5)
    for i in range(50):
        group.set(f"k{i}", b"v")
    left = [in_arena(group, f"k{i}").ttl or 0.0 for i in range(50)]
    assert all(49 < ttl <= 100 for ttl in left)
    assert max(left) - min(left) > 10


def test_a_stale_value_is_returned_and_loaded_anew_once(
    here: Daemon, declare: Callable[..., Group], source: Source
) -> None:
    group = declare(ttl=60, stale=600)
    source.rows["k"] = "old"
    group.get("k")
    in_arena(group, "k")
    source.rows["k"] = "new"
    source.held["k"] = threading.Event()
    advance(here.socket, 61)
    for _ in range(100):
        view = group.get("k")
        assert view == "old"
        assert view.ttl is not None
        assert view.ttl < 0
    wait_until(lambda: len(source.loads) == 2, "a refresh")
    source.held["k"].set()
    wait_until(lambda: group.get("k") == "new", "the new value")
    assert source.loads == ["k", "k"]
    assert source.threads[1].startswith("mpgroupcache")  # none of the application's
    stats = group.stats
    assert stats.refreshes == 1
    assert stats.stale_hits >= 100


def test_who_meets_a_value_that_is_being_refreshed_does_not_ask(
    here: Daemon, declare: Callable[..., Group], source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is seen in shared memory, by all processes; until whoever loads it must be taken for dead."""
    group = declare(ttl=60, stale=600)
    source.rows["k"] = "old"
    group.get("k")
    in_arena(group, "k")
    source.held["k"] = threading.Event()
    advance(here.socket, 61)
    assert group.get("k") == "old"
    wait_until(lambda: len(source.loads) == 2, "a refresh")
    asked: list[bytes] = []
    with monkeypatch.context() as patch:
        patch.setattr(Link, "refresh", lambda _link, _group, key, _picked: asked.append(key))
        group._asked.clear()  # what this process remembers itself
        assert group.get("k") == "old"
        assert asked == []
        advance(here.socket, 60)
        assert group.get("k") == "old"
        assert asked == [b"k"]
    source.held["k"].set()


def test_a_value_that_is_stale_again_soon_is_loaded_anew_again(
    here: Daemon, declare: Callable[..., Group], source: Source
) -> None:
    """1. A process has asked for a refresh. 2. It is done. 3. At once the new value is stale, too."""
    group = declare(ttl=1, stale=600)
    source.rows["k"] = "0"
    group.get("k")
    in_arena(group, "k")
    for turn in range(1, 5):
        source.rows["k"] = str(turn)
        advance(here.socket, 2)
        assert group.get("k") == str(turn - 1)
        wait_until(lambda turn=turn: group.lookup("k") == str(turn), "the new value")
    assert source.loads == ["k"] * 5
    assert len(group._asked) == 4


def test_a_refresh_does_not_wait_for_a_loop_that_stands_still(here: Daemon) -> None:
    loads: list[str] = []

    async def load(ctx: Any, key: str, dest: Sink) -> None:
        loads.append(key)
        dest.set_string(f"load {len(loads)}")

    group = mpgroupcache.new_group("g", "1MiB", load, ttl=10, stale=100)
    assert mpgroupcache.connect()
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(group.aget("k"))
        in_arena(group, "k")
        advance(here.socket, 20)
        here.send(signal.SIGSTOP)  # so that it hands the load over when the loop has stopped
        assert loop.run_until_complete(group.aget("k")) == "load 1"
        here.send(signal.SIGCONT)
        wait_until(lambda: group.lookup("k") == "load 2", "the new value")


def test_a_refresh_that_fails_keeps_the_old_value_and_is_tried_again_later(
    here: Daemon, declare: Callable[..., Group], source: Source
) -> None:
    group = declare(ttl=60, stale=600)
    source.rows["k"] = "old"
    group.get("k")
    in_arena(group, "k")
    source.failing = ValueError("down")
    advance(here.socket, 61)
    assert group.get("k") == "old"
    wait_until(lambda: group.stats.refresh_errors == 1, "a refresh that has failed")
    tries = len(source.loads)
    for _ in range(100):
        assert group.get("k") == "old"
    assert len(source.loads) == tries
    source.failing = None
    source.rows["k"] = "new"
    advance(here.socket, 60)
    group._asked.clear()  # of which this process would be reminded for 2 s of real time
    assert group.get("k") == "old"
    wait_until(lambda: group.get("k") == "new", "the new value")


def test_a_dead_value_is_returned_where_its_load_fails(
    here: Daemon, declare: Callable[..., Group], source: Source
) -> None:
    group = declare(ttl=60, stale_if_error=600)
    source.rows["k"] = "old"
    group.get("k")
    in_arena(group, "k")
    advance(here.socket, 61)
    assert group.lookup("k") is None
    source.failing = ValueError("down")
    assert group.get("k") == "old"  # to who ran the loader
    flush()
    tries = len(source.loads)
    for _ in range(100):
        assert group.get("k") == "old"  # at once
    assert len(source.loads) == tries
    advance(here.socket, 600)
    with pytest.raises(ValueError, match="down"):
        group.get("k")


def test_the_end_of_what_is_stale(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60, stale=10)
    source.rows["k"] = "old"
    group.get("k")
    in_arena(group, "k")
    source.rows["k"] = "new"
    advance(here.socket, 71)
    assert group.get("k") == "new"


def test_what_is_dead_is_reclaimed(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60)
    group.set_many({f"k{i}": b"v" * 100 for i in range(1000)})
    group.set("ever", b"v", ttl=None)
    assert group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).items == 1001
    advance(here.socket, 61)
    wait_until(lambda: group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).items == 1, "the end of what is dead")
    assert group.stats.expired == 1000
    assert group.get("ever") == "v"


# ---- Absence


def test_not_found_reaches_who_asks_and_is_not_kept(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    for _ in range(2):
        with pytest.raises(NotFound, match="no row k"):
            group.get("k")
        flush()
    assert source.loads == ["k", "k"]
    assert group.stats.local_load_errs == 0
    source.rows["k"] = "v"
    assert group.get("k") == "v"


def test_absence_is_kept_for_negative_ttl(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(negative_ttl=5)
    for _ in range(3):
        with pytest.raises(NotFound, match="no row k"):
            group.get("k")
        flush()
    assert source.loads == ["k"]
    assert group.lookup("k") is None
    assert group.stats.absent_hits >= 1
    group.set("k", "v")
    assert group.get("k") == "v"
    assert group.remove("k")
    with pytest.raises(NotFound):
        group.get("k")
    assert source.loads == ["k", "k"]
    flush()
    assert not group.remove("k")  # there was none
    source.rows["k"] = "row"
    assert group.get("k") == "row"


def test_absence_ends(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(negative_ttl=5)
    with pytest.raises(NotFound):
        group.get("k")
    flush()
    source.rows["k"] = "v"
    with pytest.raises(NotFound):
        group.get("k")
    advance(here.socket, 6)
    assert group.get("k") == "v"


def test_no_other_error_is_kept(declare: Callable[..., Group], source: Source) -> None:
    group = declare(negative_ttl=5)
    source.failing = LookupError("not this")
    for _ in range(2):
        with pytest.raises(LookupError, match="not this"):
            group.get("k")
    assert source.loads == ["k", "k"]


# ---- Changes


def test_remove(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    source.rows["k"] = "first"
    group.get("k")
    assert group.remove("k")
    source.rows["k"] = "second"
    assert group.get("k") == "second"
    flush()
    assert group.remove("k")
    assert not group.remove("k")
    assert group.stats.removals == 2
    group.set_many({"a": b"1", "b": b"2"})
    assert group.remove_many(["a", "b", "c", "a"]) == 2
    assert group.remove_many([]) == 0


def test_set(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    assert group.set("k", b"bytes")
    assert group.get("k") == b"bytes"
    assert group.set("k", "text")
    assert group.get("k") == "text"
    assert group.set("k", memoryview(b"view"))
    assert group.get("k") == b"view"
    assert source.loads == []


def test_set_of_what_is_over_its_share_ends_the_old_value(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    group.set("k", b"old")
    with pytest.raises(ValueError, match=r"got a key and value of 524289 bytes, expected at most 262144"):
        group.set("k", b"x" * (512 << 10))
    assert group.lookup("k") is None


@pytest.mark.parametrize("size", [64 << 10, (64 << 10) + 1, 200 << 10])
def test_set_of_a_large_value(declare: Callable[..., Group], source: Source, size: int) -> None:
    group = declare(ttl=60)
    value = bytes(range(256)) * (size // 256 + 1)
    assert group.set("k", value[:size])
    view = group.get("k")
    assert view == value[:size]
    assert view.ttl is not None
    assert group.set("k", b"other" + value[:size], if_version=view.version)
    assert not group.set("k", value[:size], if_version=view.version)
    assert not group.add("k", value[:size])
    assert group.get("k") == b"other" + value[:size]


def test_add(declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60)
    assert group.add("k", b"first")
    assert not group.add("k", b"second")
    assert group.get("k") == b"first"
    group.remove("k")
    assert group.add("k", b"third")


def test_compare_and_set(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    group.set("k", b"1")
    first = group.get("k").version
    assert first is not None
    assert group.set("k", b"2", if_version=first)
    assert not group.set("k", b"3", if_version=first)
    assert group.get("k") == b"2"
    assert not group.remove("k", if_version=first)
    assert group.remove("k", if_version=group.get("k").version)
    assert not group.set("k", b"4", if_version=first)
    assert group.lookup("k") is None


def test_versions_are_never_used_again(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    source.rows["k"] = "v"
    seen: set[int | None] = set()
    for _ in range(10):
        loaded = group.get("k")
        assert in_arena(group, "k").version == loaded.version
        seen.add(loaded.version)
        group.set("k", b"set")
        seen.add(group.get("k").version)
        group.remove("k")
    assert len(seen) == 20
    assert None not in seen


def test_touch(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60)
    group.set("k", b"v")
    version = group.get("k").version
    advance(here.socket, 50)
    assert group.touch("k")
    advance(here.socket, 50)
    assert group.get("k") == b"v"
    assert group.touch("k", ttl=1000)
    advance(here.socket, 900)
    assert group.get("k") == b"v"
    assert group.touch("k", ttl=None)
    advance(here.socket, 1e6)
    view = group.get("k")
    assert (view.version, view.ttl) == (version, None)
    assert not group.touch("none")
    group.set("ever", b"v", ttl=None)
    version = group.get("ever").version
    assert group.touch("ever", 5)
    assert group.get("ever").version == version
    advance(here.socket, 6)
    assert group.lookup("ever") is None


def test_incr(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60)
    with pytest.raises(NotFound):
        group.incr("n")
    assert group.incr("n", initial=5) == 5
    advance(here.socket, 50)
    assert group.incr("n") == 6
    assert group.incr("n", -10) == -4
    assert group.get("n") == b"-4"
    advance(here.socket, 11)  # it kept its age
    assert group.incr("n", initial=1) == 1
    group.set("text", b"1.5")
    with pytest.raises(TypeError, match="no number"):
        group.incr("text")
    assert group.get("text") == b"1.5"
    group.set("most", b"%d" % (2**63 - 1))
    with pytest.raises(OverflowError):
        group.incr("most")
    with pytest.raises(OverflowError, match="amount"):
        group.incr("n", 2**63)
    assert group.get("most") == b"%d" % (2**63 - 1)


def test_clear(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    group.set_many({f"k{i}": b"v" for i in range(100)})
    view = group.get("k7")
    group.clear()
    assert all(group.lookup(f"k{i}") is None for i in range(100))
    assert view == b"v"
    assert group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).items == 0
    assert group.stats.removals == 100
    group.set("k7", b"new")
    assert group.get("k7") == b"new"
    source.rows["k8"] = "row"
    assert group.get("k8") == "row"


def test_refresh(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    source.rows["k"] = "old"
    group.get("k")
    in_arena(group, "k")
    source.rows["k"] = "new"
    assert group.refresh("k") == "new"
    assert group.get("k") == "new"
    assert source.loads == ["k", "k"]
    assert source.threads[1] == threading.current_thread().name
    assert group.stats.refreshes == 1


def test_a_refresh_that_would_wait_for_itself_is_none(here: Daemon) -> None:
    def load(_ctx: Any, key: str, dest: Sink) -> None:
        with pytest.raises(LoadCycleError):
            group.refresh(key)
        dest.set_string("v")

    group = mpgroupcache.new_group("g", "1MiB", load)
    assert mpgroupcache.connect()
    assert group.get("k") == "v"
    assert group.stats.refreshes == 0


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_refresh_whose_value_is_not_kept_ends_the_old_one(
    declare: Callable[..., Group], source: Source, size: int
) -> None:
    group = declare()
    group.set("k", "old")
    source.rows["k"], source.lives = "x" * size, {"ttl": 0}
    assert group.refresh("k") == "x" * size
    assert group.lookup("k") is None


def test_a_refresh_that_finds_nothing_ends_the_old_value(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    for _ in range(20):
        group.set("k", "old")
        with pytest.raises(NotFound):
            group.refresh("k")
        assert group.lookup("k") is None


@pytest.mark.parametrize("condition", ["add", "set"])
def test_of_large_changes_with_a_condition_that_come_together_one_is_done(here: Daemon, condition: str) -> None:
    """1. The first is being copied. 2. The other one comes, and is copied sooner."""
    group = mpgroupcache.new_group("g", "512MiB")
    large, small = bytes(40_000_000), b"1" * 100_000
    assert mpgroupcache.connect()

    async def change(key: str) -> list[bool]:
        if condition == "add":
            return await asyncio.gather(group.aadd(key, large), group.aadd(key, small))
        group.set(key, "old")
        version = group.get(key).version
        changes = [group.aset(key, value, if_version=version) for value in (large, small)]
        return await asyncio.gather(*changes)

    for turn in range(5):
        done = asyncio.run(change(f"k{turn}"))
        assert sorted(done) == [False, True]
        assert len(group.get(f"k{turn}")) == len((large, small)[done.index(True)])


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize(
    "error", [mpgroupcache.DeadlineExceeded("within"), mpgroupcache.CoordinatorUnavailable("within")]
)
def test_a_refresh_raises_what_a_get_within_its_load_did(
    declare: Callable[..., Group], source: Source, error: Exception, timeout: float | None
) -> None:
    """And takes it for no timeout of its own, nor for the loss of its coordinator, after which it would load again."""
    group = declare()
    source.failing = error
    with pytest.raises(type(error), match="within"):
        group.refresh("k", timeout=timeout)
    assert source.loads == ["k"]


def test_a_refresh_that_fails_raises_what_its_loader_did(
    here: Daemon, declare: Callable[..., Group], source: Source
) -> None:
    """Though a get would return the old value then."""
    group = declare(ttl=60, stale_if_error=600)
    group.set("k", b"old")
    source.failing = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        group.refresh("k")
    assert group.get("k") == b"old"


def test_a_change_of_a_process_that_has_left_fails_at_once(declare: Callable[..., Group]) -> None:
    group = declare()
    process.current().close()
    with pytest.raises(ChangeError, match="no coordinator has answered"):
        group.set("k", b"v", timeout=None)


def test_many_keys_in_many_frames(declare: Callable[..., Group], source: Source) -> None:
    group = mpgroupcache.new_group("many", "64MiB")
    values = {f"k{i}": b"v" * (i * 37 % 5000) for i in range(5000)} | {"large": b"x" * 100_000, "last": b"y"}
    group.set_many(values)
    assert {key: bytes(group.get(key)) for key in values} == values
    assert group.remove_many([*values, "none"]) == len(values)


def test_long_keys_of_many_frames(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    """More than a frame has room for: they go in several, and the coordinator finds nothing wrong with one."""
    keys = [f"{i:04}" + "k" * 1500 for i in range(300)]
    source.rows = {key: key[:4] for key in keys}
    group = declare()
    for _ in range(2):
        assert group.get_many(keys) == source.rows
        assert sorted(source.loads) == keys
    assert not any("Error" in line or "got a payload" in line for line in here.log)


@pytest.mark.parametrize("keys", [["killer", "b", "c", "d"], ["loaded", "killer"]])
def test_many_keys_of_a_link_that_breaks(here: Daemon, monkeypatch: pytest.MonkeyPatch, keys: list[str]) -> None:
    """The others are asked for anew, and loaded: this caller does not wait for itself."""
    monkeypatch.setattr(many, "MAX_BATCH", 2)

    def load(_ctx: Any, key: str, dest: Sink) -> None:
        if key == "killer":
            link = process.current().working_link
            assert link is not None
            other.close()  # the coordinator has nobody who loads "loaded"
            link.close("the test cut it")
            wait_until(mpgroupcache.connect, "the next link")
        dest.set_string(key)

    with contextlib.closing(HandWorker(here.socket)) as other:
        group = mpgroupcache.new_group(GROUP, "1MiB", load)
        assert mpgroupcache.connect()
        other.lease(other.declare(), b"loaded")
        assert group.get_many(keys, timeout=PATIENCE) == {key: key for key in keys}


def test_many_values_that_cannot_be_kept(here: Daemon, source: Source) -> None:
    """The answer fits into a frame, however often it says why."""
    group = mpgroupcache.new_group("\x01" * 255, 0, source.load)
    assert mpgroupcache.connect()
    with pytest.raises(ValueError, match=r"expected at most 0; .* \(and 1023 more\)$"):
        group.set_many({str(i): "v" for i in range(1024)})
    assert group.remove("0") is False
    assert not any("got a payload" in line for line in here.log)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda group: group.set("k", 5), TypeError),
        (lambda group: group.set("k", b"v", ttl=0), ValueError),
        (lambda group: group.set("k", b"v", ttl=-1), ValueError),
        (lambda group: group.set("k", b"v", ttl=True), TypeError),
        (lambda group: group.set("k", b"v", stale=-1), ValueError),
        (lambda group: group.touch("k", "5"), TypeError),
        (lambda group: group.remove(5), TypeError),
        (lambda group: group.set("k" * 70000, b"v"), ValueError),
    ],
)
def test_what_cannot_be(declare: Callable[..., Group], change: Callable[[Group], Any], error: type[Exception]) -> None:
    group = declare()
    with pytest.raises(error):
        change(group)


@pytest.mark.parametrize("option", ["ttl", "copy_ttl", "negative_ttl"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "5"])
def test_ages_that_cannot_be(option: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=option):
        mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: None, **{option: value})


# ---- Without a loader


def test_a_group_without_a_loader(declare: Callable[..., Group], source: Source) -> None:
    group = mpgroupcache.new_group("plain", "1MiB")
    with pytest.raises(NotFound, match="group 'plain' has no value of b'k', and no loader"):
        group.get("k")
    assert group.lookup("k") is None
    group.set("k", b"v")
    assert group.get("k") == b"v"
    with pytest.raises(TypeError, match="has no loader"):
        group.refresh("k")


def test_get_or_load(declare: Callable[..., Group], source: Source) -> None:
    group = mpgroupcache.new_group("plain", "1MiB")
    calls: list[str] = []

    def fn(key: str) -> str:
        calls.append(key)
        return f"loaded {key}"

    assert group.get_or_load("k", fn) == "loaded k"
    in_arena(group, "k")
    assert group.get_or_load("k", fn) == "loaded k"
    assert group.get("k") == "loaded k"
    assert calls == ["k"]
    with pytest.raises(ZeroDivisionError):
        group.get_or_load("fails", lambda key: 1 // 0)
    with pytest.raises(NotFound):
        group.get("fails")
    with pytest.raises(TypeError, match="fn"):
        group.get_or_load("k2", 5)


def test_get_or_load_of_a_stale_value(here: Daemon, declare: Callable[..., Group], source: Source) -> None:
    """What only the caller can load is loaded anew by the first caller, while the others get the old one."""
    group = mpgroupcache.new_group("plain", "1MiB", ttl=60, stale=600)
    group.get_or_load("k", lambda key: "old")
    in_arena(group, "k")
    advance(here.socket, 61)
    began, end = threading.Event(), threading.Event()

    def slow(key: str) -> str:
        began.set()
        assert end.wait(PATIENCE)
        return "new"

    first: list[ByteView] = []
    thread = threading.Thread(target=lambda: first.append(group.get_or_load("k", slow)))
    thread.start()
    assert began.wait(PATIENCE)
    assert group.get_or_load("k", lambda key: "other") == "old"
    end.set()
    thread.join(PATIENCE)
    assert first[0] == "new"
    assert in_arena(group, "k") == "new"


def test_get_or_load_of_a_value_that_is_stale_again_soon(here: Daemon, declare: Callable[..., Group]) -> None:
    declare()
    group = mpgroupcache.new_group("plain", "1MiB", ttl=1, stale=600)
    for turn in range(3):
        assert group.get_or_load("k", lambda key, turn=turn: str(turn)) == str(turn)
        assert in_arena(group, "k") == str(turn)
        advance(here.socket, 2)


def test_none_is_no_getter() -> None:
    with pytest.raises(TypeError, match="getter: got None"):
        mpgroupcache.new_group("g", "1MiB", None)  # type: ignore[arg-type]


# ---- Coroutines


def test_twins(declare: Callable[..., Group], source: Source) -> None:
    group = declare(ttl=60)
    source.rows["k"] = "row"

    async def main() -> None:
        assert await group.aset("k", b"1")
        assert await group.aincr("k") == 2
        assert not await group.aadd("k", b"3")
        assert await group.atouch("k", 5)
        assert await group.aget("k") == b"2"
        assert await group.arefresh("k") == "row"
        assert await group.aremove("k")
        await group.aset_many({"a": b"1", "b": b"2"})
        assert await group.aremove_many(["a", "b"]) == 2
        assert await group.aget_or_load("m", lambda key: b"moment") == b"moment"

        async def fn(key: str) -> bytes:
            return b"awaited"

        assert await group.aget_or_load("n", fn) == b"awaited"
        await group.aclear()
        assert group.lookup("n") is None

    asyncio.run(main())


# ---- Fences


def test_what_was_loaded_before_a_change_is_not_kept(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    source.rows["k"] = "before"
    source.held["k"] = threading.Event()
    loaded: list[ByteView] = []
    thread = threading.Thread(target=lambda: loaded.append(group.get("k")))
    thread.start()
    wait_until(lambda: source.loads == ["k"], "a load")
    assert not group.remove("k")
    source.rows["k"] = "after"
    source.held.pop("k").set()
    thread.join(PATIENCE)
    flush()
    assert loaded[0] == "before"
    assert group.lookup("k") is None
    assert group.get("k") == "after"


def test_who_asks_after_a_change_does_not_join_a_load_from_before(
    declare: Callable[..., Group], source: Source
) -> None:
    group = declare()
    source.rows["k"] = "before"
    held = source.held["k"] = threading.Event()
    loaded: list[ByteView] = []
    thread = threading.Thread(target=lambda: loaded.append(group.get("k")))
    thread.start()
    wait_until(lambda: source.loads == ["k"], "a load")
    source.rows["k"] = "after"
    del source.held["k"]
    group.clear()
    assert group.get("k") == "after"
    held.set()
    thread.join(PATIENCE)
    flush()
    assert group.get("k") == "after"
    assert loaded[0] == "before"


def test_a_change_of_other_keys_ends_no_load(declare: Callable[..., Group], source: Source) -> None:
    group = declare()
    source.rows["k"] = "row"
    held = source.held["k"] = threading.Event()
    loaded: list[ByteView] = []
    thread = threading.Thread(target=lambda: loaded.append(group.get("k")))
    thread.start()
    wait_until(lambda: source.loads == ["k"], "a load")
    group.set("other", b"v")
    held.set()
    thread.join(PATIENCE)
    assert in_arena(group, "k") == "row"


# ---- Without a coordinator


def test_a_change_without_a_coordinator(socket_path: str) -> None:
    mpgroupcache.configure(socket=socket_path)
    group = mpgroupcache.new_group("alone", "1MiB", lambda ctx, key, dest: dest.set_string("v"))
    with _left():
        with pytest.raises(ChangeError, match="no coordinator has answered within the timeout, nothing was changed"):
            group.set("k", b"v", timeout=0.2)
        with pytest.raises(ChangeError, match="no coordinator has answered for"):
            group.set("k", b"v", timeout=0.1)


@contextlib.contextmanager
def _left() -> Iterator[None]:
    from workers import leave

    try:
        yield
    finally:
        leave()


def test_load_errors_of_others_are_no_absence(declare: Callable[..., Group]) -> None:
    assert not issubclass(LoadError, LookupError)
    assert issubclass(NotFound, LookupError)
