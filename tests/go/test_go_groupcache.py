"""Go's ``groupcache_test.go``, test for test: in one process, and across two of them.

``TestGroupStatsAlignment`` has nothing to test here: counters are aligned by the layout's static asserts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import Child
from groups import CACHE_BYTES, FROM_CHAN, Caller, Groups, count_fills
from peers import PeersTest
from workers import Daemon, wait_until

import mpgroupcache
from mpgroupcache import BytesSink, ByteView, Sink, TruncatingSink
from mpgroupcache.sinks import LoadSink

Callers = tuple[Caller, Caller]


@pytest.fixture(params=["one process", "two processes"])
def callers(request: pytest.FixtureRequest, here: Daemon, child: Callable[..., Child], tmp_path: Path) -> Callers:
    """Two that get: threads of this process, or two others."""
    if request.param == "one process":
        groups = Groups(str(tmp_path))
        return groups, groups
    first, second = (child(Groups, str(tmp_path), here.socket) for _ in range(2))
    return first, second


def suppressed(callers: Callers, method: str, text: str) -> list[Any]:
    """Two get what is loaded once the channel brings ``text``."""
    numbers = [caller.call("begin", method, FROM_CHAN) for caller in callers]
    # One is told to load, the other waits for it.
    wait_until(lambda: sum(caller.call("asking") for caller in set(callers)) == 1, "a get that waits")
    callers[0].call("send", text)
    return [caller.call("result", number) for caller, number in zip(callers, numbers, strict=True)]


def test_get_dup_suppress_string(callers: Callers) -> None:
    assert suppressed(callers, "get_string", "foo") == ["ECHO:foo"] * 2
    assert callers[0].call("fills") == 1


def test_get_dup_suppress_proto(callers: Callers) -> None:
    assert suppressed(callers, "get_proto", "Fluffy") == [("ECHO:Fluffy", "SOME-CITY")] * 2
    assert callers[0].call("fills") == 1


def test_caching(callers: Callers) -> None:
    def get() -> None:
        for i in range(10):
            assert callers[i % 2].call("get_string", "TestCaching-key") == "ECHO:TestCaching-key"

    assert count_fills(callers[0], get) == 1


def test_cache_eviction(callers: Callers) -> None:
    def get() -> None:
        for i in range(10):
            callers[i % 2].call("get_string", "TestCacheEviction-key")

    first, second = callers
    assert count_fills(first, get) == 1
    evictions = first.call("evictions")
    second.call("flood", CACHE_BYTES + 1024)
    assert first.call("evictions") > evictions
    assert count_fills(first, get) == 1  # the key is gone


@pytest.fixture(params=["one process", "two processes"])
def peers(request: pytest.FixtureRequest, here: Daemon, child: Callable[..., Child]) -> Callers:
    """Two that get from fake peers, each with its own."""
    if request.param == "one process":
        test = PeersTest()
        return test, test
    first, second = (child(PeersTest, here.socket) for _ in range(2))
    return first, second


def test_peers(peers: Callers) -> None:
    first, second = peers
    assert first.call("run", "cached") == (49, [51, 49, 51])
    # The cache is hit: nothing is loaded, and of what peers gave, some is hot.
    local, hits = second.call("run", "cached")
    assert local == 0
    assert all(now <= before for now, before in zip(hits, [51, 49, 51], strict=True))
    main, hot = first.call("items")
    assert main == 49
    assert hot >= 151 - sum(hits)  # whom the peers were not asked for again; and more may be hot by now
    stats = first.call("stats", "cached")
    assert (stats.gets, stats.cache_hits) == (400, 49 + 151 - sum(hits))
    assert (stats.local_loads, stats.peer_loads, stats.peer_errors) == (49, 151 + sum(hits), 0)

    assert first.call("run", "uncached") == (49, [51, 49, 51])
    for caller in {first, second}:
        caller.call("take_down", 0)
    assert second.call("run", "uncached") == (100, [0, 49, 51])
    for caller in {first, second}:
        caller.call("bring_back_failing", 0)
    assert second.call("run", "uncached") == (100, [51, 49, 51])
    assert second.call("stats", "uncached").peer_errors == 51


@pytest.mark.parametrize(("size", "key", "value"), [(100, "short", "ECHO:short"), (6, "truncated", "ECHO:t")])
def test_truncating_byte_slice_target(here: Daemon, tmp_path: Path, size: int, key: str, value: str) -> None:
    groups = Groups(str(tmp_path))
    buffer = bytearray(size)
    sink = TruncatingSink(buffer)
    groups.string_group.get(key, sink)
    assert buffer[: sink.n] == value.encode()


def test_allocating_byte_slice_target() -> None:
    """No shared memory between what is set, what a caller gets, and what the cache has."""
    given = bytearray(b"some bytes")
    sink, captured = BytesSink(), LoadSink()
    sink.set_bytes(given)
    captured.set_bytes(given)
    given[:4] = b"XXXX"
    assert sink.value == captured.take().value == b"some bytes"


@pytest.mark.parametrize("size", [10, 200_000], ids=["in the message", "by descriptor"])
def test_what_a_loader_and_a_caller_write_reaches_no_other(here: Daemon, size: int) -> None:
    """The same on the way through the cache: the loader's buffer changes before and after, and a caller's does."""
    given, value = bytearray(b"v" * size), b"v" * size

    def load(ctx: Any, key: str, dest: Sink) -> None:
        dest.set_bytes(given)
        given[:4] = b"XXXX"

    group = mpgroupcache.new_group("g", "4MiB", load)
    loaded, hit = BytesSink(), BytesSink()
    group.get("k", loaded)
    given[:] = b"Y" * size
    wait_until(lambda: group.lookup("k") is not None)
    buffer = bytearray(size)
    group.get("k", TruncatingSink(buffer))
    assert buffer == value
    buffer[:] = b"Z" * size
    group.get("k", hit)
    view = group.get("k")
    assert view == loaded.value == hit.value == value
    with pytest.raises(TypeError, match="read-only"):
        memoryview(view)[0] = 0


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("StringSink", "ECHO:some key"),
        ("BytesSink", b"ECHO:some key"),
        ("ByteViewSink", ByteView("ECHO:some key")),
        ("TruncatingSink", b"ECHO:some ke"),
        ("ProtoSink", ("ECHO:some key", "SOME-CITY")),
    ],
)
def test_every_sink(callers: Callers, kind: str, value: object) -> None:
    """Whoever loads, and whoever finds it cached or asks for it meanwhile, has it alike."""
    for caller in (*callers, *callers):
        assert caller.call("get_into", kind, "some key") == value
    assert callers[0].call("fills") == 1


def test_no_dedup(callers: Callers) -> None:
    """Both see an empty cache, and then ask one after the other, so that singleflight cannot join them."""
    for caller in callers:
        caller.call("connect")  # or the second would look once more, when it attaches
    numbers = [caller.call("begin", "get_no_dedup") for caller in callers]
    wait_until(lambda: sum(caller.call("entered") for caller in set(callers)) == 2, "two that saw nothing")
    callers[0].call("turn")
    wait_until(lambda: callers[0].call("held")[0] == 1)
    callers[1].call("turn")
    results = [caller.call("result", number) for caller, number in zip(callers, numbers, strict=True)]
    assert results == ["testval", "testval"]
    assert callers[0].call("held") == (1, len("testkey") + len("testval"))
    stats = callers[0].call("no_dedup_stats")  # who came second found it at the coordinator's second look
    assert (stats.gets, stats.local_loads, stats.loads, stats.cache_hits) == (2, 1, 1, 1)
