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

from mpgroupcache import BytesSink, TruncatingSink
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
    assert hot == first.call("stats", "cached").cache_hits - 49 + (sum(hits) + hot - 151)
    stats = first.call("stats", "cached")
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


def test_allocating_byte_slice_target(here: Daemon, tmp_path: Path) -> None:
    """No shared memory between what is set, what a caller gets, and what the cache has."""
    given = bytearray(b"some bytes")
    sink, captured = BytesSink(), LoadSink()
    sink.set_bytes(given)
    captured.set_bytes(given)
    given[:4] = b"XXXX"
    assert sink.value == captured.take() == b"some bytes"
    # The same on the way through the cache: the loader's buffer changes afterwards, and a caller's copy does.
    groups = Groups(str(tmp_path))
    groups.string_group.get("k", sink)
    wait_until(lambda: groups.string_group.lookup("k") is not None)
    buffer = bytearray(6)
    groups.string_group.get("k", TruncatingSink(buffer))
    buffer[:] = b"XXXXXX"
    assert groups.string_group.get("k") == sink.value == b"ECHO:k"


def test_no_dedup(callers: Callers) -> None:
    """Both see an empty cache, and then ask one after the other, so that singleflight cannot join them."""
    numbers = [caller.call("begin", "get_no_dedup") for caller in callers]
    wait_until(lambda: sum(caller.call("entered") for caller in set(callers)) == 2, "two that saw nothing")
    callers[0].call("turn")
    if callers[0] is not callers[1]:
        assert callers[0].call("result", numbers[0]) == "testval"
    else:
        wait_until(lambda: callers[0].call("held")[0] == 1)
    callers[1].call("turn")
    results = [caller.call("result", number) for caller, number in zip(callers, numbers, strict=True)]
    assert results == ["testval", "testval"]
    wait_until(lambda: callers[0].call("held")[0])
    assert callers[0].call("held") == (1, len("testkey") + len("testval"))
