"""Many keys that a real host is asked for: each is loaded once there, whoever asks for it, and how."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakepeers import fetch, fetch_many, options
from gopeers import exchange
from rings import GROUP, Ring, value_of

from mpgroupcache.net import batches, peerwire
from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.outcomes import Fetched, OwnerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopeers import GoPeer

COUNT = 2 * batches.MAX_KEYS + 50
LARGE = b"size:%d" % (batches.MAX_VALUE_BYTES + 1)


def test_each_key_is_loaded_once() -> None:
    keys = [b"key-%d" % i for i in range(COUNT)] + [LARGE, b"empty:", b"fail:boom"]

    async def ask(url: str) -> None:
        clients = [PeerClient(url, options()) for _ in range(2)]
        for client in clients:
            assert isinstance(await fetch(client, b"before", GROUP), Fetched)
        asked = await asyncio.gather(
            *(fetch_many(client, keys, GROUP) for client in clients),
            asyncio.gather(*(fetch(clients[0], key, GROUP) for key in keys)),
        )
        for outcomes in asked:
            for key, outcome in zip(keys[:-1], outcomes[:-1], strict=True):
                assert isinstance(outcome, Fetched)
                assert outcome.value == value_of(key)
            assert outcomes[-1] == OwnerError("ValueError", "boom")
        again = await fetch_many(clients[0], keys[:-1], GROUP)  # now from its memory
        assert [outcome.value for outcome in again if isinstance(outcome, Fetched)] == [
            value_of(key) for key in keys[:-1]
        ]
        for client in clients:
            await client.close()

    with Ring(1) as ring:
        [host] = ring.hosts
        worker = host.worker()
        asyncio.run(ask(host.url))
        loads = worker.call("loads")
        failed = loads.pop(b"fail:boom")
        assert loads == dict.fromkeys([b"before", *keys[:-1]], 1)
        assert 1 <= failed <= 3


def test_our_host_and_a_go_peer_are_asked_as_each_can(start_go_peer: Callable[..., GoPeer]) -> None:
    go = start_go_peer()
    keys = [b"key-%d" % i for i in range(50)]

    async def ask(*urls: str) -> None:
        clients = [PeerClient(url, options()) for url in urls]
        for client in clients:
            await fetch(client, b"before", GROUP)
        for client, can in zip(clients, (True, False), strict=True):
            assert (peerwire.Ability.BATCH in (client.abilities or ())) == can
            for outcome, key in zip(await fetch_many(client, keys, GROUP), keys, strict=True):
                assert isinstance(outcome, Fetched)
                assert outcome.value == value_of(key)
                assert outcome.says_ages == can
            await client.close()

    with Ring(1) as ring:
        [host] = ring.hosts
        host.worker()
        asyncio.run(ask(host.url, go.url))
    assert go.loads(GROUP) == dict.fromkeys([b"before", *keys], 1)


def test_a_go_peer_loads_nothing_for_such_a_request(start_go_peer: Callable[..., GoPeer]) -> None:
    for options_ in ((), ("-mux",)):
        go = start_go_peer(*options_)
        body = batches.encode_keys([b"k"])
        headers = (b"Content-Type: " + batches.KEYS_TYPE, b"Content-Length: %d" % len(body))
        answer = exchange(
            go.url, peerwire.group_target(peerwire.DEFAULT_BASE_PATH, GROUP), b"POST", *headers, body=body
        )
        assert answer is not None
        assert (answer.status, answer.body) == (400, b"bad request\n")
        assert go.loads(GROUP) == {}
