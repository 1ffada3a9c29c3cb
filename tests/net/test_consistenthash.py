"""The ring: Go's own tests expressed anew, what must hold of every ring, and points that fall together."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.net.consistenthash import HASHES, Map, fnv1a

PEERS = st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=8)
KEYS = st.lists(st.binary(max_size=12), min_size=1, max_size=30)


class PlainMap:
    """Go's algorithm line by line: a sorted slice that keeps duplicates, a map of owners, a search for the first."""

    def __init__(self, replicas: int, hash_fn) -> None:  # type: ignore[no-untyped-def]
        self.replicas, self.hash = replicas, hash_fn
        self.keys: list[int] = []
        self.owners: dict[int, str] = {}

    def add(self, *keys: str) -> None:
        for key in keys:
            for i in range(self.replicas):
                point = self.hash(str(i).encode() + key.encode())
                self.keys.append(point)
                self.owners[point] = key
        self.keys.sort()

    def get(self, key: bytes) -> str:
        if not self.keys:
            return ""
        at = next((point for point in self.keys if point >= self.hash(key)), self.keys[0])
        return self.owners[at]


def few_points(data: bytes) -> int:
    """A hash with many collisions."""
    return crc32(data) % 50


# ---- Go's TestHashing and TestConsistency


def test_hashing() -> None:
    ring = Map(3, lambda key: int(key))  # points that can be read off the page
    ring.add("6", "4", "2")  # 2, 4, 6, 12, 14, 16, 22, 24, 26
    owners = {"2": "2", "11": "2", "23": "4", "27": "2"}
    assert {key: ring.get(key) for key in owners} == owners
    ring.add("8")  # 8, 18, 28
    owners["27"] = "8"
    assert {key: ring.get(key) for key in owners} == owners


def test_consistency() -> None:
    one, other = Map(1), Map(1)
    one.add("Bill", "Bob", "Bonny")
    other.add("Bob", "Bonny", "Bill")
    assert one.get("Ben") == other.get("Ben")
    other.add("Becky", "Ben", "Bobby")
    # Direct matches always return the same entry.
    assert [one.get(key) for key in ("Ben", "Bob", "Bonny")] == [other.get(key) for key in ("Ben", "Bob", "Bonny")]


# ---- Points


@pytest.mark.parametrize("hash_fn", [crc32, fnv1a, few_points])
@given(added=st.lists(PEERS, max_size=3), replicas=st.integers(1, 20), keys=KEYS)
def test_owners_are_those_of_the_plain_algorithm(hash_fn, added, replicas, keys) -> None:  # type: ignore[no-untyped-def]
    ring, plain = Map(replicas, hash_fn), PlainMap(replicas, hash_fn)
    for peers in added:
        ring.add(*peers)
        plain.add(*peers)
    assert [ring.get(key) for key in keys] == [plain.get(key) for key in keys]
    assert ring.is_empty() == (not plain.keys)


@pytest.mark.parametrize("hash_fn", [crc32, few_points])
@given(peers=PEERS, new=st.text(st.characters(codec="utf-8"), max_size=12), keys=KEYS)
def test_a_new_peer_takes_keys_and_moves_none_between_others(hash_fn, peers, new, keys) -> None:  # type: ignore[no-untyped-def]
    ring = Map(10, hash_fn)
    ring.add(*peers)
    before = {key: ring.get(key) for key in keys}
    ring.add(new)
    after = {key: ring.get(key) for key in keys}
    assert {after[key] for key in keys if after[key] != before[key]} <= {new}


def test_a_new_peer_takes_about_its_share() -> None:
    ring = Map(50)
    ring.add(*(f"http://10.0.0.{i}:8080" for i in range(1, 10)))
    keys = [f"key-{i}" for i in range(10_000)]
    before = [ring.get(key) for key in keys]
    ring.add("http://10.0.0.10:8080")
    moved = sum(old != ring.get(key) for old, key in zip(before, keys, strict=True))
    assert 500 < moved < 2000  # a tenth, but for the luck of 50 points


def test_of_points_that_fall_together_the_later_added_has_them() -> None:
    ring = Map(1, lambda key: 7)
    ring.add("a", "b")
    assert ring.get("k") == "b"
    ring.add("a")
    assert ring.get("k") == "a"


def test_a_key_on_a_point_is_that_points_and_behind_the_last_comes_the_first() -> None:
    ring = Map(1, lambda key: int(key.rpartition(b"@")[2]))
    ring.add("x@10", f"y@{(1 << 32) - 1}")
    assert [ring.get(f"{at}") for at in (0, 10, 11, (1 << 32) - 1)] == ["x@10", "x@10", "y@4294967295", "y@4294967295"]
    small = Map(1, lambda key: int(key.rpartition(b"@")[2]))
    small.add("x@10", "y@20")
    assert small.get("21") == "x@10"


def test_text_and_its_bytes_are_one_key() -> None:
    ring = Map(50)
    ring.add(*"abcdefgh")
    assert ring.get("chat \N{CAT}") == ring.get("chat \N{CAT}".encode())
    assert ring.get(b"\xff\x00") in set("abcdefgh")


def test_the_empty_ring() -> None:
    ring = Map(50)
    assert ring.is_empty()
    assert ring.get("key") == ""
    ring.add()
    assert ring.is_empty()
    assert ring.get("key") == ""
    ring.add("peer")
    assert not ring.is_empty()
    assert repr(ring) == "<Map: 1 peers, 50 points>"


# ---- Hashes


def test_named_hashes() -> None:
    assert HASHES["crc32"](b"123456789") == 0xCBF43926
    assert [HASHES["fnv1a"](data) for data in (b"", b"a", b"foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


def test_a_hash_beyond_32_bits_is_refused_and_nothing_added() -> None:
    ring = Map(2, lambda key: 1 << 32 if key == b"1wide" else 0)
    with pytest.raises(ValueError, match="hash_fn: got 4294967296, expected 0 to 4294967295; mask it"):
        ring.add("good", "wide")
    assert ring.is_empty()


@pytest.mark.parametrize("replicas", [0, -1])
def test_a_peer_without_points_is_refused(replicas: int) -> None:
    with pytest.raises(ValueError, match=f"replicas: got {replicas}, expected at least 1"):
        Map(replicas)
