"""What a process keeps while there is no coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workers import Daemon, leave, wait_until

import mpgroupcache
from mpgroupcache.ages import FOREVER
from mpgroupcache.worker import config, kept, process
from mpgroupcache.worker.kept import Kept


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(kept, "time", clock)
    return clock


def test_for_so_long(clock: Clock) -> None:
    store = Kept(100, 5.0)
    store.keep(b"k", b"value", 0, FOREVER)
    clock.now += 4.9
    assert store.find(b"k", 0) == (b"value", FOREVER)
    clock.now += 0.1
    assert store.find(b"k", 0) is None
    store.keep(b"k", b"again", 0, FOREVER)
    assert store.find(b"k", 0) == (b"again", FOREVER)
    store.keep(b"k", b"short", 0, 0.5)  # its own ttl, which is less
    clock.now += 0.4
    assert store.find(b"k", 0) == (b"short", pytest.approx(0.1))
    clock.now += 0.1
    assert store.find(b"k", 0) is None


def test_within_its_bytes_the_oldest_goes_first(clock: Clock) -> None:
    store = Kept(100, 5.0)
    for number in range(10):
        store.keep(b"%d" % number, bytes(24), 0, FOREVER)
    assert [number for number in range(10) if store.find(b"%d" % number, 0)] == [6, 7, 8, 9]
    store.keep(b"k", bytes(100), 0, FOREVER)  # more than there may be at all
    assert store.find(b"k", 0) is None
    assert store.find(b"9", 0) is not None
    store.keep(b"9", bytes(75), 0, FOREVER)  # the same key anew
    assert [number for number in range(10) if store.find(b"%d" % number, 0)] == [9]
    clock.now += 6
    store.keep(b"k", b"v", 0, FOREVER)
    assert store._entries.keys() == {b"k"}  # what is over goes
    assert store._bytes == 2
    store.clear()
    assert store.find(b"k", 0) is None
    assert store._bytes == 0


def test_not_across_a_change() -> None:
    store = Kept(100, 5.0)
    store.keep(b"k", b"value", 1, FOREVER)
    assert store.find(b"k", 1) is not None
    assert store.find(b"k", 2) is None


class Loads(list[str]):
    """A getter that notes what it loads."""

    def get(self, ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        self.append(key)
        dest.set_string(key)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """This process is a worker of nobody: ``alone(...)`` as ``configure`` has it."""
    yield lambda **options: mpgroupcache.configure(socket=tmp_path / "nobody", **options)
    leave()


def test_without_a_coordinator_a_process_loads_once(alone: Callable[..., None]) -> None:
    alone(keep_alone=60.0)
    loads = Loads()
    group = mpgroupcache.new_group("g", "1MiB", loads)
    for _ in range(3):
        assert group.get("k") == "k"
        assert group.get("l", mpgroupcache.StringSink()) is None
    assert loads == ["k", "l"]
    assert (group.stats.gets, group.stats.cache_hits, group.stats.local_loads) == (6, 4, 2)


def test_what_is_kept_says_for_how_long_it_is_fresh(alone: Callable[..., None]) -> None:
    alone(keep_alone=60.0)
    for name, ages in (("aged", {"ttl": 1000.0}), ("ageless", {})):
        group = mpgroupcache.new_group(name, "1MiB", (loads := Loads()), **ages)
        for _ in range(2):
            view = group.get("k")
            assert view.version is None
            assert view.ttl is None if name == "ageless" else 900 < view.ttl <= 1001  # type: ignore[operator]
        assert loads == ["k"]


@pytest.mark.parametrize("cache_bytes", [0, 64 * 5])
def test_a_share_of_the_groups_bytes(alone: Callable[..., None], cache_bytes: int) -> None:
    alone(keep_alone=60.0)
    loads = Loads()
    group = mpgroupcache.new_group("g", cache_bytes, loads)
    for key in ("abc", "ab", "abc", "ab"):
        assert group.get(key) == key
    assert loads == (["abc", "ab"] * 2 if cache_bytes == 0 else ["abc", "ab", "abc"])


def test_nothing_where_that_is_said(alone: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPGROUPCACHE_KEEP_ALONE", "60")
    alone(keep_alone=0)
    loads = Loads()
    group = mpgroupcache.new_group("g", "1MiB", loads)
    for _ in range(2):
        assert group.get("k") == "k"
    assert loads == ["k", "k"]


def test_seconds(alone: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert config.keep_alone() == 5.0
    monkeypatch.setenv("MPGROUPCACHE_KEEP_ALONE", "1.5")
    assert config.keep_alone() == 1.5
    monkeypatch.setenv("MPGROUPCACHE_KEEP_ALONE", "long")
    assert config.keep_alone() == 5.0
    assert "MPGROUPCACHE_KEEP_ALONE: got 'long', expected seconds" in caplog.text
    with pytest.raises(ValueError, match=r"configure\(keep_alone=...\): got -1, expected seconds from 0"):
        alone(keep_alone=-1)
    with pytest.raises(ValueError, match="keep_alone"):
        alone(keep_alone="nan")


def test_nothing_beside_a_coordinator(
    alone: Callable[..., None], here: Daemon, start_coordinator: Callable[..., Daemon]
) -> None:
    """What was kept before it came is not looked at behind it."""
    alone(keep_alone=60.0)
    loads = Loads()
    group = mpgroupcache.new_group("g", "1MiB", loads)
    assert group.get("k") == "k"
    mpgroupcache.configure(socket=here.socket)
    wait_until(mpgroupcache.connect)
    assert group.get("k") == "k"
    assert loads == ["k", "k"]
    wait_until(lambda: group.lookup("k"), "a value in the arena")
    here.process.kill()
    here.wait()
    assert group.get("m") == "m"
    assert group.get("m") == "m"
    assert loads == ["k", "k", "m"]
    start_coordinator()
    wait_until(mpgroupcache.connect)
    assert process.current().alone.find("g", b"m", 0) is None
    assert group.get("m") == "m"
    assert loads == ["k", "k", "m", "m"]
    assert group.get("k") == "k"  # the next coordinator has it
    assert loads == ["k", "k", "m", "m"]
