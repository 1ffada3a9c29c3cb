"""A soak: full load on a ring of hosts, while whatever can happen to their processes does, again and again.

Values carry their key, their length and a checksum. No get may fail, and no thread may wait for what is gone. What is a
host's own is changed meanwhile: no change is made twice, and none that returned is lost. In the end nothing has grown,
the sums are what they have to be, and when all have ended nothing is left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from census import Holdings, holdings
from churn import BRIEF_FAULTS, FAULTS, Churn
from soakhosts import SoakHost, StartGo
from soaking import BUDGET, THREADS
from workers import segments_of, wait_until

import mpgroupcache
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.shm.segment import segment_path
from mpgroupcache.worker.peerloads import MAX_THREADS

HOSTS, CYCLES = 2, 1  # beside the Go peer, and cycles of everything that can happen after a warm-up: some 20 s in all
LONG_HOSTS, LONG_CYCLES = 3, 20  # some five minutes
WARM_UP = 10_000  # gets, by which the caches are full
STEADY = 0  # the host whose coordinator lives on after the warm-up: what it leaks has time to add up
LAP, LAP_CHANGES = 500, 50  # gets and changes of each worker while nothing happens
# Bytes of its own by which a process may grow. Each thread has a heap, and what is under way at the same time cuts them
# up in another way each time: workers come to some 5 MiB more, and stay there. A leak at every miss goes on for long.
GROWTH = 8 << 20
ARENA_GROWTH = BUDGET // 4  # what is pinned comes on top of what is cached
CONTROL_GROWTH = 1 << 20  # more regions: a worker that comes back has a new one while views keep its old one
THREADS_OF_A_WORKER = ["MainThread", *["Thread"] * THREADS, "mpgroupcache-service"]


@pytest.fixture
def churn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Churn]:
    """A ring of so many hosts, and a Go peer where there is Go; where there has to be, as in CI, it fails without."""
    start_go: StartGo | None
    try:
        start_go = request.getfixturevalue("start_go_peer")
    except pytest.skip.Exception:
        start_go = None
    seed = int(os.environ.get("MPGROUPCACHE_SOAK_SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"MPGROUPCACHE_SOAK_SEED={seed}")
    churn = Churn(seed, request.param, start_go)
    monkeypatch.setenv("TMPDIR", str(churn.temporary))
    try:
        churn.start()
        yield churn
    finally:
        churn.close()


@pytest.mark.slow
@pytest.mark.parametrize("churn", [HOSTS], indirect=True)
def test_soak(churn: Churn) -> None:
    soak(churn, CYCLES)


@pytest.mark.long
@pytest.mark.parametrize("churn", [LONG_HOSTS], indirect=True)
def test_soak_for_long(churn: Churn) -> None:
    soak(churn, LONG_CYCLES)


def soak(churn: Churn, cycles: int) -> None:
    churn.go()
    churn.run(1, BRIEF_FAULTS)
    churn.wait_gets(WARM_UP)
    churn.rest()
    marks = [Mark.of(host) for host in churn.hosts]
    churn.go()
    churn.run(cycles, FAULTS, STEADY)
    churn.rest()
    print(f"{churn.gets()} gets, {churn.events}")
    for number, host in enumerate(churn.hosts):
        now = Mark.of(host)
        print(marks[number], now, sep="\n")
        require_counts(now.counts)
        require_counts(now.counts - marks[number].counts)
        require_no_growth(marks[number], now)
    run_lap(churn)
    churn.end()


class Counts(NamedTuple):
    """What a host's workers, living and dead, say that they have done, and what the host counted."""

    worker_kills: int
    coordinator_kills: int
    begun: int
    ended: int
    loads: int
    local_gets: int
    local_loads: int
    local_load_errs: int
    peer_loads: int
    peer_errors: int
    server_requests: int
    increments_begun: int
    increments_ended: int
    increments_lost: int
    number: int
    removals_begun: int
    removals_ended: int
    removals: int

    @classmethod
    def of(cls, host: SoakHost) -> Counts:
        tallies = host.tallies.values()
        stats: mpgroupcache.Stats = host.lasting.call("stats")
        assert stats.gets == stats.cache_hits + stats.loads
        return cls(
            worker_kills=host.worker_kills,
            coordinator_kills=host.coordinator_kills,
            begun=sum(tally.begun() for tally in tallies),
            ended=sum(sum(tally.ended()) for tally in tallies),
            loads=sum(tally.loads for tally in tallies),
            local_gets=stats.gets - stats.server_requests,
            local_loads=stats.local_loads,
            local_load_errs=stats.local_load_errs,
            peer_loads=stats.peer_loads,
            peer_errors=stats.peer_errors,
            server_requests=stats.server_requests,
            increments_begun=sum(tally.increments()[0] for tally in tallies),
            increments_ended=sum(tally.increments()[1] for tally in tallies),
            increments_lost=sum(tally.lost for tally in tallies),
            number=host.lasting.call("number"),
            removals_begun=sum(tally.removals()[0] for tally in tallies),
            removals_ended=sum(tally.removals()[1] for tally in tallies),
            removals=host.lasting.call("removals"),
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(mine - his for mine, his in zip(self, other, strict=True)))


def require_counts(counts: Counts) -> None:
    """What the host counted is what was done.

    Exact to the last get for all that lives. A worker that is killed may be anywhere in one get of each thread: it has
    begun it, and has counted it or not. In the same way it may die between a load and its count, in a thread that gets
    or one that loads for peers. A coordinator counts a peer's request, and that it was a get, one after the other, and
    may be killed in between. That it is killed while it adds up one of a dead worker's counters, and the next one adds
    that up again, is left out: it would have to be between two instructions.
    """
    assert counts.begun - counts.ended <= counts.worker_kills * THREADS
    assert counts.ended - counts.coordinator_kills <= counts.local_gets <= counts.begun + counts.coordinator_kills
    lost = counts.worker_kills * (THREADS + MAX_THREADS)
    assert counts.loads - lost <= counts.local_loads <= counts.loads
    assert counts.local_load_errs == 0
    # An increment that returned was made once; one whose thread or answer was lost, once or not at all.
    assert counts.increments_ended <= counts.number <= counts.increments_begun
    assert counts.increments_begun - counts.increments_ended - counts.increments_lost <= counts.worker_kills * THREADS
    # A removal whose answer was lost is asked for again, and finds nothing.
    assert counts.removals_ended - counts.coordinator_kills <= counts.removals <= counts.removals_begun


def run_lap(churn: Churn) -> None:
    """While nothing happens, all sums are exact, over the ring too: a value that a peer gave is one request to it."""
    before = [Counts.of(host) for host in churn.hosts]
    go_before = churn.go_host.peer.stats(churn.group) if churn.go_host is not None else {}
    workers = [worker for host in churn.hosts for worker in host.workers]
    for worker in workers:
        worker.send("lap", LAP, LAP_CHANGES)
    for worker in workers:
        worker.receive()
    churn.wait_rest()
    asked = served = failed = 0
    for host, then in zip(churn.hosts, before, strict=True):
        counts = Counts.of(host) - then
        require_counts(counts)
        assert counts.ended == LAP * len(host.workers)
        assert counts.number == counts.increments_ended == LAP_CHANGES * len(host.workers)
        assert counts.removals == counts.removals_ended == LAP_CHANGES * len(host.workers)
        asked += counts.peer_loads
        failed += counts.peer_errors  # on a machine that is slow: asked, served perhaps, and no longer waited for
        served += counts.server_requests
    if churn.go_host is not None:
        stats = churn.go_host.peer.stats(churn.group)
        served += stats["server_requests"] - go_before["server_requests"]
        asked += stats["peer_loads"] - go_before["peer_loads"]
    assert asked <= served <= asked + failed
    assert asked > 0


class Mark(NamedTuple):
    """What a host is at rest."""

    counts: Counts
    coordinator: Holdings
    tasks: int
    worker: Holdings
    segments: dict[str, int]
    """With the memory that they take."""

    @classmethod
    def of(cls, host: SoakHost) -> Mark:
        # Of the threads that load for peers there are as many as had something to load at the same time.
        wait_until(lambda: threads_but_loaders(host) == THREADS_OF_A_WORKER, "the end of all other threads")
        return cls(
            counts=Counts.of(host),
            coordinator=holdings(host.daemon.process.pid),
            tasks=min(host.check().tasks for _ in range(10)),  # there may just be one that looks at the file of peers
            worker=holdings(host.lasting.pid),
            segments={name: os.stat(segment_path(name)).st_blocks * 512 for name in segments_of(host.socket)},
        )


def threads_but_loaders(host: SoakHost) -> list[str]:
    return [name for name in host.lasting.call("threads") if name != "mpgroupcache-load"]


def require_no_growth(before: Mark, now: Mark) -> None:
    assert list(now.segments) == list(before.segments)  # the same, since every coordinator went on with the last one's
    for name, size in now.segments.items():
        assert size <= before.segments[name] + (CONTROL_GROWTH if name.endswith("-control") else ARENA_GROWTH)
    assert now.tasks == before.tasks
    assert now.coordinator.threads == before.coordinator.threads
    assert now.worker.threads <= len(THREADS_OF_A_WORKER) + MAX_THREADS
    for then, held in ((before.coordinator, now.coordinator), (before.worker, now.worker)):
        assert held.private <= then.private + GROWTH
        assert held.children == 0
        # Idle connections to peers, and from them, live on for a minute: as many as were busy at the same time.
        most = {"tcp": 1 + 2 * LONG_HOSTS * PeerOptions(self_url="http://localhost", instance=b"").max_connections}
        assert grown(then.descriptors, held.descriptors, most) == {}
        assert grown(then.mappings, held.mappings, {}) == {}


def grown(before: dict[str, int], now: dict[str, int], most: dict[str, int]) -> dict[str, int]:
    """How many there are of each kind that there are more of than before, or than the most that there may be."""
    return {kind: count for kind, count in now.items() if count > most.get(kind, before.get(kind, 0))}
