"""Values that begin at a cache line: for who takes them for arrays of numbers where they lie."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from adopted import Adopted
from arenas import Instance, Lookup, OpenArena

LINE = 64
AGES: list[dict[str, Any]] = [{}, {"fresh": 10**12}, {"fresh": -1, "dead": 10**12}, {"copy": 7, "fresh": 10**12}]


def place_of(data: Any) -> int:
    """Where in a cache line a buffer begins."""
    return int(numpy.frombuffer(data, dtype="u1").ctypes.data) % LINE


@pytest.fixture
def lookup(opened: OpenArena) -> Lookup:
    return Lookup(*opened.address)


@pytest.mark.parametrize("traits", AGES, ids=lambda traits: " ".join(traits) or "none")
def test_it_begins_at_a_line_wherever_its_block_does(opened: OpenArena, lookup: Lookup, traits: dict[str, Any]) -> None:
    """In the reader's mapping as in the coordinator's."""
    places = set()
    for length in range(1, 100):
        key, plain = b"k" * length, b"p" * length
        assert opened.arena.put(key, b"%d" % length, aligned=True, **traits)
        assert opened.arena.put(plain, b"%d" % length, **traits)
        for name, view in ((key, lookup.find(key)), (plain, lookup.find(plain))):
            found = opened.arena.find(name)
            assert view is not None
            assert found is not None
            assert bytes(view) == bytes(found.value) == b"%d" % length
            assert found.aligned is (name == key)
            assert place_of(view) == place_of(found.value)
            if name == key:
                assert place_of(view) == 0
            else:
                places.add(place_of(view))
    assert len(places) > 1  # the others do not by themselves
    assert opened.arena.check() == []


def test_it_stays_there_when_it_is_given_an_age(opened: OpenArena, lookup: Lookup) -> None:
    for length in range(1, 20):
        key = b"k" * length
        assert opened.arena.put(key, b"value", aligned=True)
        assert opened.arena.touch(key, 10**12, 10**12)
        view = lookup.find(key)
        assert view == b"value"
        assert place_of(view) == 0


def test_a_reservation_of_it(opened: OpenArena, lookup: Lookup) -> None:
    reservation = opened.arena.reserve(b"key", 8, aligned=True)
    assert reservation is not None
    with memoryview(reservation) as room:
        assert place_of(room) == 0
        room[:] = b"contents"
    assert reservation.publish()
    assert lookup.find(b"key") == b"contents"


@pytest.mark.parametrize("checksums", [False, True])
def test_the_next_coordinator_takes_it_over(instance_path: str, checksums: bool) -> None:
    adopted = Adopted(instance_path, checksums=checksums)
    keys = [b"k" * length for length in range(1, 40)]
    for key in keys:
        assert adopted.opened.arena.put(key, key, aligned=True)
    arena = adopted.next()
    assert arena.taken_over == (len(keys), 0)
    for key in keys:
        found = arena.find(key)
        view = adopted.lookup.find(key)
        assert found is not None
        assert view is not None
        assert found.aligned
        assert bytes(view) == key
        assert place_of(view) == 0
    assert arena.check() == []
    del view
    adopted.instance.close()


def test_its_padding_is_of_its_block(instance_path: str) -> None:
    """Small blocks side by side, whose neighbours stay what they are."""
    instance = Instance(instance_path)
    opened = OpenArena(instance, 1 << 20)
    values = {b"%d" % i: b"%d" % i * (i % 50) for i in range(3000)}
    for key, value in values.items():
        assert opened.arena.put(key, value, aligned=len(value) % 2 == 0)
    assert opened.arena.check() == []
    lookup = Lookup(*opened.address)
    assert {key: lookup.copy(key) for key in values} == values
    del lookup
    instance.close()
