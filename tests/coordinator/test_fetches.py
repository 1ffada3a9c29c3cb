"""Many flights whose keys peers own: each peer is asked once for what it owns of a group."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from mpgroupcache.ages import AGELESS
from mpgroupcache.coordinator.fetches import Fetches
from mpgroupcache.coordinator.flights import Fetch, FlightTable, Waiter
from mpgroupcache.coordinator.hostgroups import HostGroup, Life
from mpgroupcache.coordinator.refreshes import Refreshes
from mpgroupcache.counters import Counter
from mpgroupcache.net.outcomes import Absent, Fetched, OwnerError, Unreached
from mpgroupcache.shm._control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpgroupcache.coordinator.flights import Action
    from mpgroupcache.net.outcomes import Outcome


SECOND = 10**9  # ns


class Arena:
    """One with a value that is stale since ``stale`` seconds, and dead in ``left``."""

    def __init__(self, stale: float, left: float) -> None:
        self._kept = SimpleNamespace(fresh=int(-stale * SECOND), dead=int(left * SECOND), absent=False)
        self.pauses: list[float] = []

    def find_kept(self, _key: bytes) -> Any:
        return self._kept

    def put_off(self, _key: bytes, pause: int) -> None:
        self.pauses.append(pause / SECOND)


class FakeGroup:
    ages = msgspec.structs.replace(AGELESS, negative_ttl=5.0)
    life, copy_life, owned_life = HostGroup.life, HostGroup.copy_life, HostGroup.owned_life
    arena: Arena | None = None

    def __init__(self, name: str, number: int) -> None:
        self.name, self.id = name, number
        self.promoted: list[tuple[bytes, bytes, int, int]] = []
        self.absent: list[tuple[bytes, bytes]] = []
        self.lives: list[Life | None] = []  # of what is absent; None: what was there goes

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
        self.lives.append(life)


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


def fetches_of(table: FlightTable, control: FakeControl, ended: list[Action]) -> Fetches:
    groups, peering, workers, liveness = (cast("Any", None) for _ in range(4))
    seen = cast("Control", control)
    refreshes = Refreshes(groups, seen, peering, workers, liveness, table, ended.extend)
    return Fetches(seen, table, refreshes, ended.extend)


def test_each_peer_is_asked_once_for_a_group() -> None:
    table, control = FlightTable(), FakeControl()
    ended: list[Action] = []
    fetches = fetches_of(table, control, ended)
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
    fetches = fetches_of(table, FakeControl(), ended)
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


@pytest.mark.parametrize("outcome", [OwnerError("E", "boom"), Unreached("http://a: gone")], ids=["error", "unreached"])
@pytest.mark.parametrize(("stale", "pause"), [(0.5, 1.0), (10.0, 5.0), (1000.0, 60.0)])
def test_a_refresh_that_its_owner_does_not_serve_is_tried_again_with_growing_pauses(
    outcome: Outcome, stale: float, pause: float
) -> None:
    table, control = FlightTable(), FakeControl()
    fetches = fetches_of(table, control, [])
    group, peer = FakeGroup("one", 1), FakePeer("http://a")
    arena = group.arena = Arena(stale, 1.0)
    fetches.begin_many([begun_alone(table, group, peer)])
    peer.asked[0][2](b"k", outcome)
    assert arena.pauses == [pause]
    assert [counter for _, counter in control.counted] == [Counter.PEER_ERRORS, Counter.REFRESH_ERRORS]


@pytest.mark.parametrize("outcome", [OwnerError("E", "boom"), Unreached("http://a: gone")], ids=["error", "unreached"])
def test_a_dead_copy_stays_dead_though_its_owner_fails(outcome: Outcome) -> None:
    """It is not to outlive ``copy_ttl``, whatever is kept for ``stale_if_error``."""
    table, control = FlightTable(), FakeControl()
    fetches = fetches_of(table, control, [])
    group, peer = FakeGroup("one", 1), FakePeer("http://a")
    arena = group.arena = Arena(10.0, -1.0)
    fetches.begin_many([begun_alone(table, group, peer)])
    peer.asked[0][2](b"k", outcome)
    assert arena.pauses == []
    assert [counter for _, counter in control.counted] == [Counter.PEER_ERRORS]


def test_who_waits_for_an_owner_that_is_not_reached_goes_on_in_its_place() -> None:
    """Then it is no failure yet, and none to wait after."""
    table, control = FlightTable(), FakeControl()
    ended: list[Action] = []
    fetches = fetches_of(table, control, ended)
    group, peer = FakeGroup("one", 1), FakePeer("http://a")
    arena = group.arena = Arena(10.0, 1.0)
    fetches.begin_many([begun_alone(table, group, peer)])
    assert table.ask((cast("HostGroup", group), b"k"), Waiter(object()), peer) == []
    peer.asked[0][2](b"k", Unreached("http://a: gone"))
    assert arena.pauses == []
    assert [type(action).__name__ for action in ended] == ["Grant"]


def begun_alone(table: FlightTable, group: FakeGroup, peer: FakePeer) -> Fetch:
    """A fetch that nobody waits for."""
    [action] = table.begin((cast("HostGroup", group), b"k"), Waiter(object()), peer)
    assert isinstance(action, Fetch)
    return action


@pytest.mark.parametrize("negative_ttl", [0.0, 60.0])
def test_absence_takes_the_place_of_what_was_there(negative_ttl: float) -> None:
    """Also where nobody notes it: a stale copy would be returned on and on."""
    fetches = fetches_of(table := FlightTable(), FakeControl(), [])
    group, peer = FakeGroup("one", 1), FakePeer("http://a")
    group.ages = msgspec.structs.replace(AGELESS, negative_ttl=negative_ttl)
    [action] = table.ask((cast("HostGroup", group), b"k"), Waiter(object()), peer)
    assert isinstance(action, Fetch)
    fetches.begin_many([action])
    peer.asked[0][2](b"k", Absent("none", 7.0))
    assert group.absent == [(b"k", b"none")]
    assert group.lives == [Life(7_000_000_000, 7_000_000_000) if negative_ttl else None]
