"""Values that live for a time, in a ring: what crosses hosts, and what does not yet."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from children import Child, ChildError
from rings import Getting, Ring, value_of
from workers import advance, wait_until

import mpgroupcache

KEYS = [b"%d" % i for i in range(40)]


@pytest.fixture
def ring() -> Iterator[Ring]:
    with Ring(2) as ring:
        yield ring


class Failing(Getting):
    """One whose loader fails from some time on."""

    failing = False

    def fail(self) -> None:
        self.failing = True

    def has(self, key: bytes) -> bool:
        """Whether it is in shared memory."""
        return self.group.lookup(key) is not None

    def _load(self, ctx: Any, key: str | bytes, dest: mpgroupcache.Sink) -> None:
        if self.failing:
            raise ValueError("down")
        super()._load(ctx, key, dest)


def owner_of(key: bytes, workers: list[Child]) -> int:
    """Whose worker has loaded it."""
    (owner,) = [i for i, worker in enumerate(workers) if key in worker.call("loads")]
    return owner


def test_ages_and_versions_cross(ring: Ring) -> None:
    workers = [host.worker(ttl=60.0, stale=600.0) for host in ring.hosts]
    for key in KEYS:
        first, second = (worker.call("looks", key) for worker in workers)
        assert first.version == second.version is not None
        lives = sorted(look.ttl or 0.0 for look in (first, second))
        assert 4 < lives[0] < 5.1  # copy_ttl
        assert 50 < lives[1] < 60.1


def test_a_copy_lives_for_copy_ttl_at_most(ring: Ring) -> None:
    """It is asked for so often that it is kept; then its owner changes what it loads, and five seconds pass here."""
    workers = [host.worker(ttl=60.0) for host in ring.hosts]
    for _ in range(30):
        for worker in workers:
            assert worker.call("wrong", KEYS) == []
    assert workers[0].call("hot_items") + workers[1].call("hot_items") > 0
    asked = [worker.call("stats").server_requests for worker in workers]
    for host in ring.hosts:
        advance(host.socket, 6)
    wait_until(lambda: sum(worker.call("hot_items") for worker in workers) == 0, "the end of all copies")
    for worker in workers:
        assert worker.call("wrong", KEYS) == []
    assert sum(worker.call("stats").server_requests for worker in workers) > sum(asked)
    assert sum(sum(worker.call("loads").values()) for worker in workers) == len(KEYS)  # the owners' live on


@pytest.mark.parametrize("failure", ["unreached", "error"])
def test_a_copy_whose_owner_fails_is_refreshed_again_soon(ring: Ring, failure: str) -> None:
    """1. A copy is stale. 2. Its owner is gone, or its loader fails. 3. Another worker meets the copy some seconds
    later, and asks again: after half the time since it was fresh, and not after the time that a load may take."""
    ages = {"ttl": 60.0, "stale": 600.0, "copy_ttl": 60.0}
    owning, copying = ring.hosts
    owner, other, *others = (host.child(Failing, 64 << 20, None, ages) for host in (owning, *[copying] * 3))
    key = next(key for key in KEYS if owner.call("get", key) and key in owner.call("loads"))
    wait_until(lambda: owner.call("has", key), "its value")
    advance(owning.socket, 50)

    def copied() -> bool:
        other.call("get", key)
        return bool(other.call("hot_items"))

    def failed() -> int:
        errors: int = other.call("stats").refresh_errors
        return errors

    wait_until(copied, "a copy")
    if failure == "unreached":
        owning.daemon.send(signal.SIGKILL)
        owning.daemon.wait()
    else:
        owner.call("fail")
        advance(owning.socket, 1000)
    advance(copying.socket, 20)  # stale since 10 s
    for worker in others:
        before = failed()
        assert worker.call("get", key) == value_of(key)
        wait_until(lambda before=before: failed() > before, "a refresh that has failed")
        advance(copying.socket, 10)


def test_absence_crosses_and_is_loaded_once(ring: Ring) -> None:
    workers = [host.worker(negative_ttl=60.0) for host in ring.hosts]
    for key in (b"none:%d" % i for i in range(20)):
        for worker in workers:
            assert worker.call("error", key) == ("NotFound", f"no {key.decode()}")
    loads = [worker.call("loads") for worker in workers]
    assert sorted(n for some in loads for n in some.values()) == [1] * 20
    assert all(loads)


def test_many_keys_are_asked_of_each_owner_once(ring: Ring) -> None:
    workers = [host.worker() for host in ring.hosts]
    for worker in workers:
        worker.call("get", KEYS[0])  # now each knows what its peer can do
        worker.call("get", KEYS[1])
    assert workers[0].call("wrong_of_many", KEYS) == []
    assert workers[1].call("wrong_of_many", KEYS) == []
    loads = [worker.call("loads") for worker in workers]
    assert sorted(key for some in loads for key in some) == sorted(KEYS)


def test_a_change_does_not_cross_yet_and_says_so(ring: Ring) -> None:
    worker = ring.hosts[0].worker()
    key = KEYS[0]
    before = worker.call("get", key)
    for change in ("remove", "clear", "refresh", "set"):
        with pytest.raises(ChildError, match=r"ChangeError.*changes do not cross hosts yet"):
            worker.call("change", change, key)
    assert worker.call("get", key) == before


def test_a_group_without_a_loader_is_this_hosts_own(ring: Ring) -> None:
    first, second = (host.worker() for host in ring.hosts)
    assert first.call("plain", b"k", b"v") == b"v"
    assert second.call("plain", b"k", None) is None
