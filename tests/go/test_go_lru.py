"""Go's ``lru_test.go``, and what Python's face of it adds."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mpgroupcache.lru import Cache


class Simple(NamedTuple):
    number: int
    text: str


class Complex(NamedTuple):
    number: int
    simple: Simple


@pytest.mark.parametrize(
    ("added", "got", "hit"),
    [
        ("myKey", "myKey", True),
        ("myKey", "nonsense", False),
        (Simple(1, "two"), Simple(1, "two"), True),
        (Simple(1, "two"), Simple(0, "noway"), False),
        (Complex(1, Simple(2, "three")), Complex(1, Simple(2, "three")), True),
    ],
)
def test_get(added: object, got: object, hit: bool) -> None:
    lru: Cache[object, int] = Cache()
    lru.add(added, 1234)
    assert lru.get(got) == (1234 if hit else None)


def test_remove() -> None:
    lru: Cache[str, int] = Cache()
    lru.add("myKey", 1234)
    assert lru.get("myKey") == 1234
    lru.remove("myKey")
    assert lru.get("myKey") is None
    lru.remove("myKey")


def test_evict() -> None:
    evicted: list[str] = []
    lru: Cache[str, int] = Cache(20, lambda key, value: evicted.append(key))
    for i in range(22):
        lru.add(f"myKey{i}", 1234)
    assert evicted == ["myKey0", "myKey1"]


def test_what_was_used_stays() -> None:
    evicted: list[tuple[str, object]] = []
    lru: Cache[str, object] = Cache(2, lambda key, value: evicted.append((key, value)))
    lru.add("a", 1)
    lru.add("b", None)
    assert lru.get("b", "missing") is None  # a value, and no miss
    assert lru.get("a") == 1
    lru.add("c", 3)
    assert evicted == [("b", None)]
    lru.add("a", 4)
    lru.add("d", 5)
    assert evicted == [("b", None), ("c", 3)]
    assert len(lru) == 2
    assert repr(lru) == "<lru.Cache: 2 entries, at most 2>"
    lru.remove_oldest()
    assert evicted[-1] == ("a", 4)
    lru.clear()
    assert evicted[-1] == ("d", 5)
    lru.remove_oldest()
    assert len(lru) == 0
    with pytest.raises(ValueError, match="max_entries: got -1"):
        Cache(-1)
