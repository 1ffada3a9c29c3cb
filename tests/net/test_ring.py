"""The ring and its changes, and who is asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from fakepeers import INSTANCE, FakePeer, Request, fake_peer, fetch, on_each_loop, until, value_of, well

from mpgroupcache.net.consistenthash import Map
from mpgroupcache.net.outcomes import Fetched, Unreached
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.net.ring import Ring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SELF = "http://10.0.0.1:8080"
OTHERS = ["http://10.0.0.2:8080", "http://10.0.0.3:8080"]
KEYS = [b"key-%d" % i for i in range(300)]


@contextlib.asynccontextmanager
async def a_ring(**changes: Any) -> AsyncIterator[Ring]:
    made = Ring(PeerOptions(**{"self_url": SELF, "instance": INSTANCE, **changes}))
    try:
        yield made
    finally:
        await made.close()


def owners(ring: Ring) -> list[str | None]:
    return [None if (owner := ring.owner(key)) is None else owner.url for key in KEYS]


@on_each_loop
async def test_owners_are_gos() -> None:
    async with a_ring() as ring:
        assert owners(ring) == [None] * len(KEYS)  # no ring yet
        ring.set([SELF, *OTHERS])
        points = Map(50)
        points.add(SELF, *OTHERS)
        assert owners(ring) == [None if (url := points.get(key)) == SELF else url for key in KEYS]
        assert set(owners(ring)) == {None, *OTHERS}
        ring.set([])
        assert owners(ring) == [None] * len(KEYS)
        assert ring.peers == []


@on_each_loop
async def test_the_order_given_counts_where_points_fall_together() -> None:
    async with a_ring(hash_fn=lambda data: sum(data) % 7) as ring:
        ring.set([SELF, OTHERS[0]])
        one = owners(ring)
        ring.set([OTHERS[0], SELF])
        assert owners(ring) != one
        assert ring.urls == (OTHERS[0], SELF)


@on_each_loop
async def test_peers_that_stay_keep_their_connections() -> None:
    async with a_ring() as ring:
        ring.set([SELF, *OTHERS])
        before = {peer.url: peer for peer in ring.peers}
        ring.set([OTHERS[1], "http://10.0.0.4:8080", SELF])
        after = {peer.url: peer for peer in ring.peers}
        assert set(after) == {OTHERS[1], "http://10.0.0.4:8080"}
        assert after[OTHERS[1]] is before[OTHERS[1]]


@on_each_loop
async def test_a_ring_that_spells_this_host_otherwise_changes_nothing() -> None:
    async with a_ring() as ring:
        ring.set([SELF, *OTHERS])
        with pytest.raises(ValueError, match="--self: got http://10.0.0.1:8080, expected http://10.0.0.1:08080"):
            ring.set([*OTHERS, "http://10.0.0.1:08080"])
        assert ring.urls == (SELF, *OTHERS)


@on_each_loop
async def test_a_ring_without_this_host_is_only_asked(caplog: pytest.LogCaptureFixture) -> None:
    async with a_ring() as ring:
        ring.set(OTHERS)
        assert "which is not in the ring of" in caplog.text
        assert all(ring.owner(b"%d" % i) is not None for i in range(100))


@on_each_loop
async def test_asks_the_owner() -> None:
    async with fake_peer() as one, fake_peer() as other, a_ring() as ring:
        urls = [f"http://127.0.0.1:{peer.port}" for peer in (one, other)]
        ring.set([SELF, *urls])
        for key in KEYS:
            if (owner := ring.owner(key)) is not None:
                assert await fetch(owner, key) == Fetched(value_of(key), None)
        asked = [len(one.requests), len(other.requests)]
        assert asked == [owners(ring).count(url) for url in urls]


@on_each_loop
async def test_a_change_drops_no_request_in_flight() -> None:
    free = asyncio.Event()

    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        await free.wait()
        await well(request, writer)

    async with fake_peer(held) as peer, a_ring(max_connections=2) as ring:
        ring.set([SELF, f"http://127.0.0.1:{peer.port}"])
        (client,) = ring.peers
        fetches = [asyncio.create_task(fetch(client, b"%d" % i)) for i in range(6)]
        await until(lambda: len(peer.requests) == 2)
        ring.set([SELF])
        ring.set([SELF, *OTHERS])
        free.set()
        assert await asyncio.gather(*fetches) == [Fetched(b"V:%d" % i, None) for i in range(6)]
        await until(lambda: not peer.writers)


@on_each_loop
async def test_close_ends_what_removed_peers_still_do() -> None:
    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        pass

    async with fake_peer(held) as peer, a_ring() as ring:
        ring.set([SELF, f"http://127.0.0.1:{peer.port}"])
        (client,) = ring.peers
        waiting = asyncio.create_task(fetch(client))
        await until(lambda: peer.requests)
        ring.set([SELF])
        await ring.close()
        assert isinstance(await waiting, Unreached)


@on_each_loop
async def test_repr() -> None:
    peer = FakePeer()
    await peer.start()
    await peer.stop()
    async with a_ring() as ring:
        ring.set([SELF, f"http://127.0.0.1:{peer.port}"])
        assert repr(ring) == "<Ring: 2 members, 1 of them others, 0 of those failing>"
        await fetch(ring.peers[0])
        assert repr(ring) == "<Ring: 2 members, 1 of them others, 1 of those failing>"
