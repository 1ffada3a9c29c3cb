"""``find_many``: what gets of one key each would find, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from arenas import Instance, OpenArena
from poked import NotingLookup as Lookup
from poked import Poked

from mpgroupcache.shm._reader import PINS


def test_many_are_found_in_their_order(opened: OpenArena, group: Lookup) -> None:
    keys: list[str | bytes] = [f"key-{number}" for number in range(1000)]
    for key in keys[::3]:
        opened.arena.put(str(key).encode(), str(key).encode(), hot=key == "key-0")
    found, missing, absent = group.find_many(iter(keys))
    assert list(found) == keys[::3]
    assert all(view == key for key, view in found.items())
    assert missing == [key for key in keys if key not in found]
    assert absent == {}
    assert group.reader.live_pins == len(found)
    assert group.counted() == {"MAIN_HITS": len(found) - 1, "HOT_HITS": 1}
    assert opened.arena.check() == []
    del found
    assert group.reader.live_pins == 0
    assert group.find_many([]) == ({}, [], {})


def test_many_are_touched(opened: OpenArena, instance: Instance, group: Lookup) -> None:
    """As by gets of one: and what was touched is not what is evicted."""
    kept = [b"kept-%d" % number for number in range(200)]
    for key in kept:
        opened.arena.put(key, b"x" * 1000)
    number = 0
    while opened.evictions() < 500:
        assert len(group.find_many(kept)[0]) == len(kept)
        assert instance.control.drain() == len(kept)
        for _ in range(50):
            opened.arena.put(b"other-%d" % number, b"x" * 1000)
            number += 1


def test_a_key_that_comes_twice_is_there_once(poked: Poked, group: Lookup) -> None:
    poked.put(b"key", b"value")
    poked.put(b"absent", b"text", absent=True)
    found, missing, absent = group.find_many(["key", b"key", "no", "absent", "key", "no", b"no", "absent"])
    assert list(found) == ["key", b"key"]
    assert missing == ["no", b"no"]
    assert absent == {"absent": "text"}
    assert group.reader.live_pins == 2
    assert group.counted() == {"MAIN_HITS": 5, "ABSENT_HITS": 2}


def test_many_have_ages(poked: Poked, group: Lookup) -> None:
    poked.put(b"stale", b"1", fresh=-1, dead=1000)
    poked.put(b"under way", b"2", fresh=-1, dead=1000, refresh=1000)
    poked.put(b"dead", b"3", fresh=-10, dead=-1)
    poked.put(b"absent", "Schlüssel".encode(), fresh=10, dead=10, absent=True)
    poked.put(b"fresh", b"4", fresh=10_000, dead=90_000, copy=7)
    keys = [b"fresh", b"dead", b"absent", b"under way", b"stale", b"none"]
    for _ in range(2):
        found, missing, absent = group.find_many(keys)
        assert list(found) == [b"fresh", b"under way", b"stale"]
        assert (missing, absent) == ([b"dead", b"none"], {b"absent": "Schlüssel"})
        assert group.said() == [b"stale"]
        assert (found[b"fresh"].version, found[b"fresh"], found[b"stale"]) == (7, b"4", b"1")
        assert group.reader.live_pins == 3
    assert group.counted() == {"MAIN_HITS": 8, "STALE_HITS": 4, "ABSENT_HITS": 2}
    poked.clear()
    assert group.find_many(keys) == ({}, keys, {})


def test_many_without_pins_are_copied(poked: Poked, group: Lookup, opened: OpenArena) -> None:
    for number in range(1500):
        opened.arena.put(b"%d" % number, b"%d" % number)
    poked.put(b"absent", b"text", absent=True)
    poked.put(b"stale", b"old", fresh=-1, dead=1000)
    keys = [b"%d" % number for number in range(1500)] + [b"absent", b"none", b"stale"]
    found, missing, absent = group.find_many(keys)
    assert group.reader.live_pins == PINS - 1
    assert list(found.items()) == [*((key, key) for key in keys[:1500]), (b"stale", b"old")]
    assert (missing, absent, group.said()) == ([b"none"], {b"absent": "text"}, [b"stale"])
    views = list(found.values())
    del found
    del views[::2]
    assert group.reader.live_pins == (PINS - 1) // 2
    assert len(group.find_many(keys)[0]) == 1501


@pytest.mark.parametrize("wrong", [5, None, "\ud800", "k" * 65_537, b"k" * 65_537, bytearray(b"k")])
@pytest.mark.parametrize("before", [1, 300])
def test_what_is_no_key_is_told(opened: OpenArena, group: Lookup, wrong: Any, before: int) -> None:
    opened.arena.put(b"key", b"value")
    reader = group.reader
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match="^key: got"):
            group.find_many(["key"] * before + [wrong])
        assert reader.live_pins == 0
        group.detach()  # without an arena, too


class Sly(str):
    """A key whose hash runs other code."""

    __slots__ = ()
    run: Callable[[], object]

    def __hash__(self) -> int:
        Sly.run()
        return str.__hash__(self)


def test_code_that_runs_in_between_takes_no_pin_and_leaves_none(opened: OpenArena, group: Lookup) -> None:
    for number in range(10):
        opened.arena.put(b"%d" % number, b"%d" % number)
    held = []
    Sly.run = lambda: held.append(group.get("3"))
    found, _, _ = group.find_many(["1", Sly("2"), "3", "4", "none"])
    assert found == {"1": b"1", "2": b"2", "3": b"3", "4": b"4"}
    assert held
    assert all(view == b"3" for view in held)

    def fail() -> None:
        raise OSError("in a hash")

    Sly.run = fail
    before = group.reader.live_pins
    with pytest.raises(OSError, match="in a hash"):
        group.find_many(["1", Sly("2"), "3", "4"])
    assert group.reader.live_pins == before
    Sly.run = group.detach
    found, missing, _ = group.find_many(["1", Sly("2"), *(["3"] * 200), "4"])
    assert (list(found), missing) == (["1", "2", "3"], ["4"])  # which is in the second half
