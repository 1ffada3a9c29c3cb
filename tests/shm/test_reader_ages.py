"""What a hit makes of ages, eras, and what is noted to be absent."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
from arenas import Instance, OpenArena, churn, hold
from arenas import Lookup as PlainLookup
from children import Child
from poked import NotingLookup as Lookup
from poked import Poked

from mpgroupcache.errors import NotFound
from mpgroupcache.shm._reader import PINS, renew_epoch
from mpgroupcache.shm._view import ByteView, dead_in, loaded_view

MakeArena = Callable[..., OpenArena]
Get = Callable[["Lookup", "str | bytes"], Any]


@pytest.fixture(params=["find", "get", "get with options", "get without pins", "get of text"])
def get(request: pytest.FixtureRequest, opened: OpenArena) -> Get:
    """Each way to what ``get`` finds."""
    if request.param == "get without pins":

        def get_copy(group: Lookup, key: str | bytes) -> Any:
            opened.arena.put(b"of all pins", b"")
            held = [hold(group, b"of all pins") for _ in range(PINS - 1)]
            before = group.reader.live_pins
            try:
                return group.get(key)
            finally:
                assert group.reader.live_pins == before == PINS - 1
                del held

        return get_copy
    ways: dict[str, Get] = {
        "find": lambda group, key: group.find(key),
        "get": lambda group, key: group.get(key),
        "get with options": lambda group, key: group.get(key, ctx=1),
        "get of text": lambda group, key: group.get(key.decode() if isinstance(key, bytes) else key),
    }
    return ways[request.param]


def test_a_value_is_fresh_then_stale_then_dead(poked: Poked, group: Lookup, get: Get) -> None:
    poked.put(b"key", b"value", fresh=100, dead=1000)
    assert get(group, b"key") == b"value"
    assert group.said() == []
    poked.advance(200)
    assert get(group, b"key") == b"value"
    assert group.said() in ([b"key"], ["key"])
    poked.advance(900)
    assert get(group, b"key") is None
    assert group.lookup(b"key") is None
    assert group.said() == []
    assert group.reader.live_pins == 0
    counted = group.counted()
    assert counted.pop("MAIN_HITS") in (2, 2 + 3 * (PINS - 1))  # those that used up the pins
    assert counted == {"STALE_HITS": 1}


def test_what_has_no_end_has_none(poked: Poked, group: Lookup) -> None:
    poked.put(b"fresh", b"1", fresh=None, dead=1000)
    poked.put(b"stale", b"2", fresh=-1, dead=None)
    poked.put(b"copy", b"3", copy=7)
    poked.advance(2**62 / 1e9)
    assert group.find(b"fresh") == b"1"  # what is fresh is not dead
    assert group.find(b"stale") == b"2"
    assert group.find(b"copy") == b"3"
    assert group.said() == [b"stale"]


@pytest.mark.parametrize("copy", [None, 0, 7])
@pytest.mark.parametrize("length", range(1, 10))
def test_the_value_lies_behind_what_the_flags_say(poked: Poked, group: Lookup, copy: int | None, length: int) -> None:
    key = b"k" * length
    poked.put(key, b"value", fresh=100, dead=100, copy=copy)
    assert group.find(key) == b"value"
    poked.put(key, b"other", copy=copy)
    assert group.find(key) == b"other"


def test_a_refresh_is_asked_for_when_it_is_due(poked: Poked, group: Lookup) -> None:
    """And not while one is under way, or soon after one has failed."""
    poked.put(b"key", b"value", fresh=-1, dead=1000, refresh=30)
    assert group.find(b"key") == b"value"
    assert group.said() == []
    assert group.lookup(b"key") == b"value"
    poked.advance(31)
    assert group.lookup(b"key") == b"value"
    assert group.said() == []  # a look is no get
    assert group.find("key") == b"value"
    assert group.said() == ["key"]
    assert group.counted() == {"MAIN_HITS": 4, "STALE_HITS": 4}


@pytest.mark.parametrize("copy", [None, 0, 7])
def test_who_is_to_ask_for_a_refresh_is_told_of_which_value(
    poked: Poked, group: Lookup, get: Get, copy: int | None
) -> None:
    """Of a copy its owner's number, if that gave one."""
    seen: list[int | None] = []
    for key in (b"one", b"two"):
        poked.put(key, b"value", fresh=-1, dead=1000, copy=copy)
        get(group, key)
        found, _, _ = group.find_many([key])
        seen += [found[key].version] * 2
    assert group.versions == seen
    assert len(set(seen)) == (1 if copy else 2)


def test_a_refresh_that_cannot_be_asked_for_costs_no_hit(
    poked: Poked, group: Lookup, caplog: pytest.LogCaptureFixture
) -> None:
    poked.put(b"key", b"value", fresh=-1, dead=1000)
    group.trouble = OSError("no link")
    with caplog.at_level(logging.ERROR):
        assert group.get(b"key") == b"value"
    (record,) = caplog.records
    assert record.getMessage() == "the refresh of a stale value could not be asked for"
    caplog.clear()
    group.trouble = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        group.get(b"key")
    group.trouble = None
    assert group.reader.live_pins == 0


def test_what_is_absent_is_not_found(poked: Poked, group: Lookup, get: Get) -> None:
    poked.put(b"key", "kein Schlüssel".encode(), fresh=10, dead=10, absent=True)
    poked.put(b"for ever", b"\xff", absent=True)
    with pytest.raises(NotFound, match=r"^kein Schlüssel$"):
        get(group, b"key")
    with pytest.raises(LookupError, match="^\ufffd$"):
        get(group, b"for ever")
    assert group.reader.live_pins == 0
    counted = group.counted()
    assert counted.pop("MAIN_HITS") in (2, 2 + 2 * (PINS - 1))
    assert counted == {"ABSENT_HITS": 2}
    assert group.lookup(b"key") is None
    assert group.counted()["ABSENT_HITS"] == 3
    poked.advance(11)
    assert get(group, b"key") is None
    assert group.counted()["ABSENT_HITS"] == 3


def test_nothing_of_what_was_found_is_pinned(poked: Poked, group: Lookup, opened: OpenArena) -> None:
    poked.put(b"absent", b"text", absent=True)
    poked.put(b"dead", b"value", fresh=-10, dead=-1)
    for _ in range(2):
        with pytest.raises(NotFound):
            group.get(b"absent")
        assert group.lookup(b"absent") is None
        assert group.get(b"dead") is None  # type: ignore[comparison-overlap]
        assert group.find_kept(b"dead") is None
    poked.undo()
    opened.arena.remove(b"absent")
    opened.arena.remove(b"dead")
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0


def test_what_was_cleared_is_a_miss(poked: Poked, group: Lookup, get: Get) -> None:
    poked.put(b"plain", b"value")
    poked.put(b"aged", b"value", fresh=10, dead=10)
    poked.put(b"absent", b"text", absent=True)
    view = group.find(b"plain")
    poked.clear()
    group.stale_if_error = 1000
    for key in (b"plain", b"aged", b"absent"):
        assert get(group, key) is None
        assert group.find_kept(key) is None
    assert view == b"value"
    poked.put(b"plain", b"new")
    assert get(group, b"plain") == b"new"


def test_what_is_dead_is_kept_for_a_load_that_fails(poked: Poked, group: Lookup) -> None:
    poked.put(b"key", b"value", fresh=-50, dead=-10)
    assert group.stale_if_error == 0
    assert group.find_kept(b"key") is None
    group.stale_if_error = 100
    assert group.stale_if_error == 100
    assert group.find_kept(b"key") == group.find_kept("key") == b"value"
    assert group.find(b"key") is None
    held = [group.find_kept(b"key") for _ in range(PINS)]
    assert held.count(None) == 0
    assert held[-1] == b"value"
    del held
    poked.advance(51)
    assert group.find_kept(b"key") is None
    group.stale_if_error = float("inf")
    assert group.stale_if_error == float("inf")
    assert group.find_kept(b"key") == b"value"
    assert group.find_kept(b"none") is None
    assert group.find_kept(5) is None  # type: ignore[arg-type]
    poked.put(b"absent", b"text", fresh=-50, dead=-10, absent=True)
    assert group.find_kept(b"absent") is None  # an absence is no value
    assert group.counted() == {}
    assert group.said() == []


def test_for_how_long_it_is_noted_that_there_is_none(poked: Poked, group: Lookup) -> None:
    poked.put(b"absent", b"text", fresh=10_000, dead=10_000, absent=True)
    poked.put(b"never there", b"text", absent=True)
    poked.put(b"there", b"value", fresh=10_000, dead=10_000)
    assert 9000 < group.absent_for(b"absent") < 10_001  # type: ignore[operator]
    assert group.absent_for("never there") is None
    assert group.absent_for(b"there") == group.absent_for(b"nowhere") == group.absent_for(5) == 0  # type: ignore[arg-type]
    held = [hold(group, b"there") for _ in range(PINS - 1)]
    assert 9000 < group.absent_for(b"absent") < 10_001  # type: ignore[operator]
    del held
    assert group.reader.live_pins == 0
    poked.advance(10_001)
    assert group.absent_for(b"absent") == 0
    assert group.counted() == {"MAIN_HITS": PINS - 1}


def test_a_view_stays_what_it_is(poked: Poked, group: Lookup, opened: OpenArena) -> None:
    poked.put(b"key", b"value", fresh=10, dead=100)
    view = group.find(b"key")
    poked.advance(1000)
    poked.undo()
    opened.arena.remove(b"key")
    churn(opened)
    assert view == b"value"


# ---- What a view says


def test_a_view_has_a_version(poked: Poked, group: Lookup) -> None:
    poked.put(b"own", b"1")
    poked.put(b"copy", b"2", copy=7)
    poked.put(b"of whom", b"3", copy=0)  # its owner gave no version
    poked.put(b"none", b"", fresh=10, dead=20, copy=8)
    assert group.lookup(b"own").version == poked.version(b"own")  # type: ignore[union-attr]
    assert group.lookup(b"copy").version == 7  # type: ignore[union-attr]
    assert group.lookup(b"of whom").version == poked.version(b"of whom")  # type: ignore[union-attr]
    assert group.lookup(b"none").version == 8  # type: ignore[union-attr]
    assert group.reader.live_pins == 0
    assert ByteView(b"value").version is None


def test_a_view_says_for_how_long_it_is_fresh(poked: Poked, group: Lookup) -> None:
    poked.put(b"key", b"value", fresh=10_000, dead=90_000)
    poked.put(b"for ever", b"value")
    poked.put(b"alive for ever", b"value", fresh=None, dead=None, copy=1)
    view = hold(group, b"key")
    assert 9000 < view.ttl < 10_001  # type: ignore[operator]
    poked.set_ages(b"key", 50_000, 90_000)  # a touch
    assert 49_000 < view.ttl < 50_001  # type: ignore[operator]
    poked.advance(60_000)
    assert -11_000 < view.ttl < -9_999  # type: ignore[operator]
    assert hold(group, b"for ever").ttl is None
    assert hold(group, b"alive for ever").ttl is None
    assert ByteView(b"value").ttl is None


def test_when_a_value_is_dead(poked: Poked, group: Lookup) -> None:
    poked.put(b"key", b"value", fresh=10_000, dead=90_000)
    poked.put(b"for ever", b"value")
    view = hold(group, b"key")
    assert 89_000 < dead_in(view) < 90_001  # type: ignore[operator]
    assert dead_in(view[1:]) <= dead_in(view)  # type: ignore[operator]
    assert dead_in(hold(group, b"for ever")) is None
    poked.advance(90_001)
    assert dead_in(view) == 0
    assert dead_in(ByteView(b"value")) is None  # and of what was loaded, when it is stale:
    assert 9000 < dead_in(loaded_view(b"value", 5, 10_000)) < 10_001  # type: ignore[operator]
    assert dead_in(loaded_view(b"value", 5, -1.0)) == 0
    view.release()
    with pytest.raises(ValueError, match="was released"):
        dead_in(view)


def test_slices_say_what_their_view_does(poked: Poked, group: Lookup) -> None:
    poked.put(b"key", b"value", fresh=10_000, dead=90_000)
    view = hold(group, b"key")
    version, part = view.version, view[1:3][1:]
    with part:
        view.release()
        assert part == b"l"
        assert part.version == version is not None
        assert 9000 < part.ttl < 10_001  # type: ignore[operator]
    for released in (view, part):
        with pytest.raises(ValueError, match="was released"):
            released.version  # noqa: B018
        with pytest.raises(ValueError, match="was released"):
            released.ttl  # noqa: B018


def test_a_view_of_an_older_value_says_what_it_said(poked: Poked, group: Lookup, opened: OpenArena) -> None:
    poked.put(b"key", b"value", fresh=10_000, dead=90_000)
    view = hold(group, b"key")
    version = view.version
    poked.put(b"key", b"other", fresh=1, dead=1)
    assert hold(group, b"key").version not in (None, version)
    poked.undo()
    opened.arena.remove(b"key")
    churn(opened)
    assert view.version == version


def test_a_view_of_one_of_two_arenas(instance: Instance, arena: MakeArena) -> None:
    """Which lie beside each other; and the value of no bytes may lie where one ends."""
    reader = None
    for _ in range(3):
        opened = arena(100_000)
        group = Lookup(*opened.address)
        if reader is not None:
            group.attach(reader, opened.group, opened.path)
        reader = reader or group.reader
        poked = Poked(instance, opened)
        for number in range(300):
            poked.put(b"key-%d" % number, b"", copy=1000 * opened.group + number + 1)
            assert hold(group, b"key-%d" % number).version == 1000 * opened.group + number + 1
        poked.undo()


def test_a_copied_value_says_the_same(poked: Poked, group: Lookup) -> None:
    """Where there is no pin for it; but a touch does not show."""
    poked.put(b"key", b"value", fresh=10_000, dead=90_000, copy=7)
    poked.put(b"for ever", b"value")
    held = [hold(group, b"for ever") for _ in range(PINS - 1)]
    view = hold(group, b"key")
    assert (view, view.version) == (b"value", 7)
    assert 9000 < view.ttl < 10_001  # type: ignore[operator]
    assert hold(group, b"for ever").ttl is None
    assert hold(group, b"for ever").version == held[0].version
    poked.set_ages(b"key", -20_000, 90_000)
    assert 9000 < view.ttl < 10_001  # type: ignore[operator]
    assert -21_000 < hold(group, b"key").ttl < -19_000  # type: ignore[operator]


def test_what_was_loaded_says_what_is_known_of_it() -> None:
    view = loaded_view(b"value", 5, 10_000)
    assert (view, view.version) == (b"value", 5)
    assert 9000 < view.ttl < 10_001  # type: ignore[operator]
    assert view[1:].version == 5
    assert -10_001 < loaded_view("text", None, -9999.5).ttl < -9000  # type: ignore[operator]
    for fresh in (None, float("inf"), 1e300):
        view = loaded_view(b"value", None, fresh)
        assert (view.version, view.ttl) == (None, None)
    assert loaded_view(b"value", 2**64 - 1, -1e300).ttl < -1e8  # type: ignore[operator]


@pytest.mark.parametrize("with_hooks", [True, False])
def test_a_view_that_came_through_a_fork(poked: Poked, group: Lookup, with_hooks: bool) -> None:
    poked.put(b"key", b"value", copy=7)
    view = hold(group, b"key")
    reading, writing = os.pipe()
    if with_hooks:
        group.reader.before_fork(1)
    if (pid := os.fork()) == 0:
        try:
            renew_epoch()
            if with_hooks:
                group.reader.after_fork_in_child(1)
            os.write(writing, b"%d" % (view.version or 0))
        except ValueError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    if with_hooks:
        group.reader.after_fork_in_parent(1)
    os.waitpid(pid, 0)
    said = os.read(reading, 100)
    os.close(reading)
    os.close(writing)
    assert said == b"7" if with_hooks else said.startswith(b"the ByteView came through a fork")
    assert view.version == 7


# ---- Changes


def test_the_change_count(poked: Poked, instance: Instance, opened: OpenArena, child: Callable[..., Child]) -> None:
    group, other = Lookup(*opened.address), Lookup.__new__(Lookup)
    before = group.changes
    assert before >= 0
    assert other.changes == 0  # it never met a coordinator
    poked.raise_changes()
    assert group.changes == before + 1
    group.detach()
    assert group.changes == -1
    other.detach()  # it has met one whose memory it cannot read
    assert other.changes == -1
    group.attach(group.reader or PlainLookup(*opened.address).reader, opened.group, opened.path)
    assert group.changes == before + 1
    instance.control.retire()
    assert group.changes == -1
