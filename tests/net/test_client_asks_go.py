"""The peers' client asking real Go peers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from fakepeers import INSTANCE, fetch, on_each_loop, until
from peerkeys import ODD_KEYS, many_keys

from mpgroupcache.net.outcomes import Fetched, Unreached
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.net.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopeers import GoPeer

SELF = "http://10.0.0.1:8080"


def ring_of(*urls: str) -> Ring:
    ring = Ring(PeerOptions(self_url=SELF, instance=INSTANCE, request_timeout=30.0))
    ring.set([SELF, *urls])
    return ring


@pytest.fixture(scope="module")
def go_peers(start_go_peer: Callable[..., GoPeer]) -> list[GoPeer]:
    """Two that own all keys: one without Go's mux, and one with it."""
    return [start_go_peer(), start_go_peer("-mux")]


@on_each_loop
async def test_any_key_is_fetched(go_peers: list[GoPeer]) -> None:
    ring = ring_of(go_peers[0].url)
    (client,) = ring.peers
    keys = [*ODD_KEYS.values(), *many_keys(500)]
    values = await asyncio.gather(*(fetch(client, key) for key in keys))
    assert values == [Fetched(b"V:g:" + key, None) for key in keys]
    await ring.close()


@on_each_loop
async def test_keys_that_gos_mux_spoils_are_not_reached_and_never_another_keys_value(go_peers: list[GoPeer]) -> None:
    ring = ring_of(go_peers[1].url)
    (client,) = ring.peers
    redirected = 0
    for key in ODD_KEYS.values():
        outcome = await fetch(client, key)
        if isinstance(outcome, Unreached):
            redirected += 1
            assert "a redirect to" in outcome.reason
        else:
            assert outcome == Fetched(b"V:g:" + key, None)
    assert redirected > 3
    assert client.available
    await ring.close()


@pytest.mark.parametrize("size", [1, 2044, 2045, 100_000, 8 << 20])
@on_each_loop
async def test_values_of_all_sizes(go_peers: list[GoPeer], size: int) -> None:
    ring = ring_of(go_peers[0].url)
    assert await fetch(ring.peers[0], b"size:%d:" % size) == Fetched(b"x" * size, None)
    await ring.close()


@on_each_loop
async def test_a_loaders_error_is_an_answer(go_peers: list[GoPeer]) -> None:
    ring = ring_of(go_peers[0].url)
    (client,) = ring.peers
    for outcome in (await fetch(client, b"fail:boom"), await fetch(client, b"k", "nogroup")):
        assert isinstance(outcome, Unreached)
    assert outcome.reason == f"{client.url}: answered 404: no such group: nogroup"
    assert client.available
    await ring.close()


@on_each_loop
async def test_a_probe_is_answered(go_peers: list[GoPeer]) -> None:
    for go_peer in go_peers:
        ring = ring_of(go_peer.url)
        (client,) = ring.peers
        assert client._breaker.failed(0.0)
        client._send_probe()
        assert client.abilities is None
        await until(lambda client=client: client.available)
        assert client.abilities == set()
        assert isinstance(await fetch(client), Fetched)
        assert client.abilities == set()
        await ring.close()


@on_each_loop
async def test_all_name_the_same_owners(go_peers: list[GoPeer]) -> None:
    keys = many_keys(10_000)
    urls = [go_peers[1].url, SELF, go_peers[0].url, "http://10.0.0.9:8080"]
    ring = ring_of()
    ring.set(urls)
    for go_peer in go_peers:
        go_peer.set_peers(*urls)
        owners = [SELF if (client := ring.owner(key)) is None else client.url for key in keys]
        assert go_peer.owners(keys) == owners
        go_peer.set_peers(go_peer.url)
    await ring.close()
