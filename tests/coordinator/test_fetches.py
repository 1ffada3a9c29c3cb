"""Many flights whose keys peers own: each peer is asked once for what it owns of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mpgroupcache.ages import Ages
from mpgroupcache.coordinator.fetches import Fetches
from mpgroupcache.coordinator.flights import Fetch, FlightTable, Waiter
from mpgroupcache.coordinator.hostgroups import HostGroup, Life
from mpgroupcache.counters import Counter
from mpgroupcache.net.outcomes import Absent, Fetched, OwnerError, Unreached
from mpgroupcache.shm._control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpgroupcache.coordinator.flights import Action
    from mpgroupcache.net.outcomes import Outcome


class FakeGroup:
    ages = Ages(negative_ttl=5.0)
    life, copy_life = HostGroup.life, HostGroup.copy_life

    def __init__(self, name: str, number: int) -> None:
        self.name, self.id = name, number
        self.promoted: list[tuple[bytes, bytes, int, int]] = []
        self.absent: list[tuple[bytes, bytes]] = []

    def new_version(self) -> int:
        return 7

    def promote(
        self, key: bytes, value: bytes, minute_qps: float | None, life: Life | None, *, version: int, owners: int
    ) -> None:
        self.promoted.append((key, value, version, owners))

    def put(self, key: bytes, value: bytes, life: Life | None, *, absent: bool, copy: int) -> None:
        assert absent
        assert copy == 0
        self.absent.append((key, value))


class FakePeer:
    def __init__(self, url: str) -> None:
        self.url = url
        self.available = True
        self.asked: list[tuple[str, Sequence[bytes], Callable[[bytes, Outcome], None]]] = []

    def fetch_many(self, group: str, keys: Sequence[bytes], done: Callable[[bytes, Outcome], None]) -> None:
        self.asked.append((group, keys, done))


class FakeControl:
    def __init__(self) -> None:
        self.counted: list[tuple[int, Counter]] = []

    def count(self, group: int, counter: Counter) -> None:
        self.counted.append((group, counter))


def test_each_peer_is_asked_once_for_a_group() -> None:
    table, control = FlightTable(), FakeControl()
    ended: list[Action] = []
    fetches = Fetches(cast("Control", control), table, ended.extend)
    groups = [FakeGroup("one", 1), FakeGroup("two", 2)]
    peers = [FakePeer("http://a"), FakePeer("http://b")]

    def flight(group: int, key: bytes, peer: int) -> Fetch:
        [action] = table.ask((cast("HostGroup", groups[group]), key), Waiter(object()), peers[peer])
        assert isinstance(action, Fetch)
        return action

    actions = [flight(0, b"1", 0), flight(0, b"2", 1), flight(1, b"1", 0), flight(0, b"3", 0), flight(0, b"4", 0)]
    fetches.begin_many(actions)
    assert [(group, keys) for group, keys, _ in peers[0].asked] == [("one", [b"1", b"3", b"4"]), ("two", [b"1"])]
    assert [(group, keys) for group, keys, _ in peers[1].asked] == [("one", [b"2"])]
    [(_, _, done), _] = peers[0].asked
    outcomes: list[Outcome] = [Fetched(b"V", None, version=9), Absent("none", None), Unreached("http://a: gone")]
    for key, outcome in zip((b"4", b"1", b"3"), outcomes, strict=True):
        done(key, outcome)
    assert groups[0].promoted == [(b"4", b"V", 7, 9)]
    assert groups[0].absent == [(b"1", b"none")]
    assert [counter for _, counter in control.counted] == [Counter.PEER_LOADS, Counter.PEER_LOADS, Counter.PEER_ERRORS]
    peers[1].asked[0][2](b"2", OwnerError("E", "boom"))
    assert [type(action).__name__ for action in ended] == ["Deliver", "Deliver", "Grant", "Fail"]
    assert len(table) == 2  # of the other group, and of what is loaded here


def test_what_a_change_overtook_is_not_kept() -> None:
    """A peer's answer, value or absence, is its waiters' all the same: they asked before."""
    table = FlightTable()
    ended: list[Action] = []
    fetches = Fetches(cast("Control", FakeControl()), table, ended.extend)
    group, peer = FakeGroup("one", 1), FakePeer("http://a")
    named = cast("HostGroup", group)
    actions = [action for key in (b"1", b"2") for action in table.ask((named, key), Waiter(object()), peer)]
    fetches.begin_many([action for action in actions if isinstance(action, Fetch)])
    [(_, keys, done)] = peer.asked
    assert keys == [b"1", b"2"]
    for key in keys:
        table.change((named, key))
    done(b"1", Fetched(b"V", None, version=9))
    done(b"2", Absent("none", None))
    assert group.promoted == []
    assert group.absent == []
    assert [type(action).__name__ for action in ended] == ["Deliver", "Deliver"]
    assert table.check() == []
