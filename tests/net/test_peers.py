"""All peers: the ring and its changes, and who is asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from fakepeers import INSTANCE, FakePeer, Request, fake_peer, fetch, on_each_loop, until, value_of, well

from mpgroupcache.net.consistenthash import Map
from mpgroupcache.net.options import parse_url
from mpgroupcache.net.outcomes import Fetched, Unreached
from mpgroupcache.net.ring import PeerOptions, Peers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SELF = "http://10.0.0.1:8080"
OTHERS = ["http://10.0.0.2:8080", "http://10.0.0.3:8080"]
KEYS = [b"key-%d" % i for i in range(300)]


@contextlib.asynccontextmanager
async def peers(**changes: Any) -> AsyncIterator[Peers]:
    made = Peers(PeerOptions(**{"self_url": SELF, "instance": INSTANCE, **changes}))
    try:
        yield made
    finally:
        await made.close()


def owners(peers: Peers) -> list[str | None]:
    return [None if (owner := peers.owner(key)) is None else owner.url for key in KEYS]


@on_each_loop
async def test_owners_are_gos() -> None:
    async with peers() as some:
        assert owners(some) == [None] * len(KEYS)  # no ring yet
        some.set([SELF, *OTHERS])
        ring = Map(50)
        ring.add(SELF, *OTHERS)
        assert owners(some) == [None if (url := ring.get(key)) == SELF else url for key in KEYS]
        assert set(owners(some)) == {None, *OTHERS}
        some.set([])
        assert owners(some) == [None] * len(KEYS)
        assert some.clients == []


@on_each_loop
async def test_the_order_given_counts_where_points_fall_together() -> None:
    async with peers(hash_fn=lambda data: sum(data) % 7) as some:
        some.set([SELF, OTHERS[0]])
        one = owners(some)
        some.set([OTHERS[0], SELF])
        assert owners(some) != one
        assert some.urls == (OTHERS[0], SELF)


@on_each_loop
async def test_peers_that_stay_keep_their_clients() -> None:
    async with peers() as some:
        some.set([SELF, *OTHERS])
        before = {client.url: client for client in some.clients}
        some.set([OTHERS[1], "http://10.0.0.4:8080", SELF])
        after = {client.url: client for client in some.clients}
        assert set(after) == {OTHERS[1], "http://10.0.0.4:8080"}
        assert after[OTHERS[1]] is before[OTHERS[1]]


@on_each_loop
async def test_a_ring_that_spells_this_host_otherwise_changes_nothing() -> None:
    async with peers() as some:
        some.set([SELF, *OTHERS])
        with pytest.raises(ValueError, match="--self: got http://10.0.0.1:8080, expected http://10.0.0.1:08080"):
            some.set([*OTHERS, "http://10.0.0.1:08080"])
        assert some.urls == (SELF, *OTHERS)


@on_each_loop
async def test_a_ring_without_this_host_is_only_asked(caplog: pytest.LogCaptureFixture) -> None:
    async with peers() as some:
        some.set(OTHERS)
        assert "which is not in the ring of" in caplog.text
        assert all(some.owner(b"%d" % i) is not None for i in range(100))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.2:8080",
        "ftp://a",
        "http://",
        "http://a/",
        "http://a//b",
        "http://a/b/",
        "http://a/../b",
        "http://a?b",
        "http://a#b",
        "http://u:p@a",
        "http://a:0",
        "http://a:65536",
        "http://a:",
        "http://[::1",
        "http://[1::2::3]",
        "http://[::1%25eth0]",
        "http://a b",
        "http://a\n",
        "http://\N{SNOWMAN}",
        "HTTP://a",
    ],
)
def test_what_is_no_peers_url(url: str) -> None:
    with pytest.raises(ValueError, match="--peer: got .*, expected http:// or https://"):
        parse_url(url)


def test_urls_in_parts() -> None:
    assert parse_url("http://a") == ("http://a", False, "a", 80, "a", "")
    assert parse_url("https://a_b.c-d/x/y") == ("https://a_b.c-d/x/y", True, "a_b.c-d", 443, "a_b.c-d", "/x/y")
    assert parse_url("http://[fd00:0::1]:81") == ("http://[fd00:0::1]:81", False, "fd00::1", 81, "[fd00:0::1]:81", "")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"self_url": "nowhere"}, "--self: got 'nowhere'"),
        ({"base_path": "cache"}, "base path: got 'cache'"),
        ({"secret": "a b"}, "secret: got 3 characters"),
        ({"request_timeout": 0}, "request_timeout: got 0, expected a number above 0"),
        ({"max_connections": -1}, "max_connections: got -1"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PeerOptions(**{"self_url": SELF, "instance": INSTANCE, **change})


def test_the_secret_is_not_shown() -> None:
    assert "s3cret" not in repr(PeerOptions(self_url=SELF, instance=INSTANCE, secret="s3cret"))


@on_each_loop
async def test_asks_the_owner() -> None:
    async with fake_peer() as one, fake_peer() as other, peers() as some:
        urls = [f"http://127.0.0.1:{peer.port}" for peer in (one, other)]
        some.set([SELF, *urls])
        for key in KEYS:
            if (owner := some.owner(key)) is not None:
                assert await fetch(owner, key) == Fetched(value_of(key), None)
        asked = [len(one.requests), len(other.requests)]
        assert asked == [owners(some).count(url) for url in urls]


@on_each_loop
async def test_a_change_drops_no_request_in_flight() -> None:
    free = asyncio.Event()

    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        await free.wait()
        await well(request, writer)

    async with fake_peer(held) as peer, peers(max_connections=2) as some:
        some.set([SELF, f"http://127.0.0.1:{peer.port}"])
        (client,) = some.clients
        fetches = [asyncio.create_task(fetch(client, b"%d" % i)) for i in range(6)]
        await until(lambda: len(peer.requests) == 2)
        some.set([SELF])
        some.set([SELF, *OTHERS])
        free.set()
        assert await asyncio.gather(*fetches) == [Fetched(b"V:%d" % i, None) for i in range(6)]
        await until(lambda: not peer.writers)


@on_each_loop
async def test_close_ends_what_removed_peers_still_do() -> None:
    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        pass

    async with fake_peer(held) as peer, peers() as some:
        some.set([SELF, f"http://127.0.0.1:{peer.port}"])
        (client,) = some.clients
        waiting = asyncio.create_task(fetch(client))
        await until(lambda: peer.requests)
        some.set([SELF])
        await some.close()
        assert isinstance(await waiting, Unreached)


@on_each_loop
async def test_repr() -> None:
    peer = FakePeer()
    await peer.start()
    await peer.stop()
    async with peers() as some:
        some.set([SELF, f"http://127.0.0.1:{peer.port}"])
        assert repr(some) == "<Peers: 2 in the ring, 1 others, 0 of them failing>"
        await fetch(some.clients[0])
        assert repr(some) == "<Peers: 2 in the ring, 1 others, 1 of them failing>"
