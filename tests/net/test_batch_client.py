"""Many keys that one peer is asked for: together or alone, each with one outcome within one timeout."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from fakepeers import (
    BAD_TIMEOUT,
    INSTANCE,
    TYPE,
    Answer,
    Fixture,
    Request,
    asking,
    fetch,
    fetch_many,
    message,
    never,
    on_each_loop,
    options,
    reason,
    response,
    saying,
    until,
    value_of,
    well,
)
from peerserver import Running, served

from mpgroupcache.net import batches
from mpgroupcache.net.batches import ANSWERS_TYPE, Alone, Failure, Refusal, Value, encode_answer, encode_answers
from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.outcomes import Absent, Fetched, Outcome, OwnerError, Reply, Unreached
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.net.peerwire import Ability
from mpgroupcache.net.ring import Ring
from mpgroupcache.net.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopeers import GoPeer

    from mpgroupcache.net.peer import Peer

CAN = b"Mpgroupcache-Abilities: ages, batch\r\n"
KEYS = [b"a", b"b", b"c"]
VALUES: list[Outcome] = [Fetched(value_of(key), None, says_ages=True) for key in KEYS]
PLAIN_VALUES: list[Outcome] = [Fetched(value_of(key), None) for key in KEYS]


def said(value: bytes) -> Value:
    return Value(value, None, None, None, None)


def together(*answers: batches.Answer, headers: bytes = CAN) -> bytes:
    kind = b"Content-Type: %s\r\n" % ANSWERS_TYPE
    return response(encode_answers([encode_answer(answer) for answer in answers]), headers=kind + headers)


async def able(request: Request, writer: asyncio.StreamWriter) -> None:
    """Answer as a peer does that can answer for many keys."""
    if request.method == b"POST":
        writer.write(together(*(said(value_of(key)) for key in batches.decode_keys(request.body))))
    else:
        writer.write(response(message(value_of(request.target.rpartition(b"/")[2])), headers=TYPE + CAN))


def to_many(answer: Answer) -> Answer:
    """Answer requests for many keys so, and others as `able` does."""

    async def give(request: Request, writer: asyncio.StreamWriter) -> None:
        await (answer if request.method == b"POST" else able)(request, writer)

    return give


async def known(fixture: Fixture) -> None:
    """Let the client learn what the peer can do, and forget that it was asked."""
    await fixture.fetch()
    fixture.peer.requests.clear()


def methods(fixture: Fixture) -> list[bytes]:
    return [request.method for request in fixture.peer.requests]


# ---- Peers that behave


@on_each_loop
async def test_a_peer_that_can_is_asked_once() -> None:
    async with asking(able, secret="s3cret", request_timeout=10.0) as fixture:
        await known(fixture)
        assert await fetch_many(fixture.client, KEYS, "g h") == VALUES
        [request] = fixture.peer.requests
        assert (request.method, request.target, request.body.hex()) == (
            b"POST",
            b"/_groupcache/g%20h",
            "93c40161c40162c40163",
        )
        timeout = request.headers[b"mpgroupcache-timeout"]
        assert request.headers == {
            b"host": b"127.0.0.1:%d" % fixture.peer.port,
            b"mpgroupcache-instance": INSTANCE.hex().encode(),
            b"mpgroupcache-secret": b"s3cret",
            b"mpgroupcache-timeout": timeout,
            b"content-type": b"application/x-mpgroupcache-keys",
            b"content-length": b"10",
        }
        assert 8000 < int(timeout) <= 9000  # so that what it has by then arrives in time
        assert fixture.peer.connections == 1
        assert fixture.client.under_way == 0


@on_each_loop
async def test_who_has_not_said_that_it_can_is_asked_for_each() -> None:
    async with asking(well) as fixture:
        for _ in range(2):  # before its first answer, and after it
            assert await fetch_many(fixture.client, KEYS) == PLAIN_VALUES
        assert methods(fixture) == [b"GET"] * 6
        fixture.peer.answer = able
        await known(fixture)
        assert await fetch_many(fixture.client, KEYS[:1]) == VALUES[:1]
        assert methods(fixture) == [b"GET"]
        assert await fetch_many(fixture.client, KEYS) == VALUES
        assert methods(fixture) == [b"GET", b"POST"]
        fixture.client.fetch_many("g", [], lambda key, outcome: pytest.fail("nothing was asked for"))


@on_each_loop
async def test_more_than_a_request_takes_is_asked_in_several() -> None:
    async with asking(able, max_connections=2) as fixture:
        await known(fixture)
        keys = [b"%d" % i for i in range(3 * batches.MAX_KEYS + 1)]
        assert await fetch_many(fixture.client, keys) == [Fetched(value_of(key), None, says_ages=True) for key in keys]
        assert methods(fixture) == [b"POST"] * 4
        keys = [b"%d" % i + b"x" * 65_000 for i in range(5)]
        assert await fetch_many(fixture.client, keys) == [Fetched(value_of(key), None, says_ages=True) for key in keys]
        assert methods(fixture) == [b"POST"] * 6
        assert fixture.peer.connections <= 2


@on_each_loop
async def test_each_key_has_its_own_outcome() -> None:
    async with asking(to_many(saying(together(said(b"V"), Failure("app.Boom", "boom"), Refusal("no"))))) as fixture:
        await known(fixture)
        url = fixture.client.url
        assert await fetch_many(fixture.client, KEYS) == [
            Fetched(b"V", None, says_ages=True),
            OwnerError("app.Boom", "boom"),
            Unreached(f"{url}: no"),
        ]
        assert fixture.client.available


@on_each_loop
async def test_what_is_to_be_asked_alone_is() -> None:
    async with asking(to_many(saying(together(Alone(), said(b"V"), Alone())))) as fixture:
        await known(fixture)
        assert await fetch_many(fixture.client, KEYS) == [VALUES[0], Fetched(b"V", None, says_ages=True), VALUES[2]]
        assert methods(fixture) == [b"POST", b"GET", b"GET"]
        assert [request.target for request in fixture.peer.requests[1:]] == [b"/_groupcache/g/a", b"/_groupcache/g/c"]


@on_each_loop
async def test_our_peer(run_server: Callable[..., Running]) -> None:
    running = run_server()
    large = bytes(batches.MAX_VALUE_BYTES + 1)
    running.call(running.backend.values.update, {b"large": served(large, 0.0, 5.0, 60.0, 7)})
    client = PeerClient(f"http://127.0.0.1:{running.server.port}", replace(options(), instance=bytes(16)))
    assert isinstance(await fetch(client, b"hello"), Fetched)
    keys = [b"wait:1", b"hello", b"large", b"absent", b"fail:boom", b"aged"]
    waiting = asyncio.create_task(fetch_many(client, keys))
    await until(lambda: running.backend.finds == 1 + len(keys))
    await asyncio.to_thread(running.deliver, b"wait:1", b"one", 2.5)
    assert await waiting == [
        Fetched(b"one", 2.5, says_ages=True),
        Fetched(b"V:hello", None, says_ages=True),
        Fetched(large, None, 5.0, 60.0, 7, says_ages=True),
        Absent("none", 5.0),
        OwnerError("app.Boom", "boom"),
        Fetched(b"v", None, -0.25, 60.0, 7, says_ages=True),
    ]
    assert running.backend.finds == 2 + len(keys)
    [outcome, _] = await fetch_many(client, keys[:2], "nogroup")
    assert reason(outcome) == f"{client.url}: answered 404: no such group: nogroup"
    await client.close()


@on_each_loop
async def test_a_go_peer_is_never_asked_so(start_go_peer: Callable[..., GoPeer]) -> None:
    go = start_go_peer()
    ring = Ring(PeerOptions(self_url="http://10.0.0.1:1", instance=INSTANCE, request_timeout=30.0))
    ring.set([go.url])
    client = ring.owner(b"k")
    assert isinstance(client, PeerClient)
    for _ in range(2):
        assert await fetch_many(client, KEYS) == [Fetched(b"V:g:" + key, None) for key in KEYS]
    assert client.abilities == set()
    assert go.loads("g") == dict.fromkeys(KEYS, 1)
    # One that takes the place of a peer that could, and so is asked once: it loads nothing for that.
    client._abilities = frozenset([Ability.BATCH])
    keys = [b"d", b"e"]
    assert await fetch_many(client, keys) == [Fetched(b"V:g:" + key, None) for key in keys]
    assert client.abilities == set()
    assert go.loads("g") == dict.fromkeys([*KEYS, *keys], 1)
    await ring.close()


# ---- Peers that do not


@pytest.mark.parametrize(
    "headers",
    [b"", b"Mpgroupcache-Abilities: ages\r\n"],
    ids=["Go's", "an old one of ours"],
)
@on_each_loop
async def test_a_peer_that_cannot_any_more_is_asked_for_each(headers: bytes) -> None:
    async def older(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == b"POST":
            writer.write(response(b"Method Not Allowed\n", b"405 Method Not Allowed", headers))
        else:
            await well(request, writer)

    async with asking(able) as fixture:
        await known(fixture)
        fixture.peer.answer = older
        assert await fetch_many(fixture.client, KEYS) == PLAIN_VALUES
        assert methods(fixture) == [b"POST", b"GET", b"GET", b"GET"]
        assert await fetch_many(fixture.client, KEYS) == PLAIN_VALUES
        assert methods(fixture)[4:] == [b"GET"] * 3


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (together(said(b"V"), said(b"V")), "answer for 3 keys: got one for 2"),
        (together(*[said(b"V")] * 4), "answer for 3 keys: got one for 4"),
        (
            response(b"\x93\x91", headers=b"Content-Type: %s\r\n" % ANSWERS_TYPE + CAN),
            "answer for 3 keys: Input data was t",
        ),
        (response(message(b"V"), headers=TYPE + CAN), "got the content type b'application/x-protobuf', expected b'app"),
        (response(b"busy\n", b"503 Service Unavailable", CAN), "answered 503: busy"),
        (response(b"", b"504 Gateway Timeout", b""), "answered 504: "),  # somebody's in between
        (
            response(bytes(batches.MAX_ANSWER_BYTES + 1), headers=b"Content-Type: %s\r\n" % ANSWERS_TYPE + CAN),
            "answered with 4 MiB, expected at most 4 MiB (max_response_bytes)",
        ),
    ],
)
@on_each_loop
async def test_what_is_no_answer_is_loaded_here(answer: bytes, text: str) -> None:
    async with asking(to_many(saying(answer))) as fixture:
        await known(fixture)
        outcomes = await fetch_many(fixture.client, KEYS)
        assert all(reason(outcome).startswith(f"{fixture.client.url}: {text}") for outcome in outcomes)
        assert methods(fixture) == [b"POST"]
        assert fixture.client.available
        assert await fixture.fetch(b"a") == VALUES[0]


@on_each_loop
async def test_what_many_keys_may_bring_is_no_bound_of_what_one_does() -> None:
    async with asking(able) as fixture:
        await known(fixture)
        assert await fetch_many(fixture.client, KEYS) == VALUES
        large = bytes(batches.MAX_ANSWER_BYTES + 1)
        fixture.peer.answer = saying(response(message(large)))
        assert await fixture.fetch() == Fetched(large, None)
        assert fixture.peer.connections == 1


@on_each_loop
async def test_a_peer_that_never_answers_costs_one_timeout() -> None:
    async with asking(to_many(never), request_timeout=BAD_TIMEOUT) as fixture:
        await known(fixture)
        outcomes = await fetch_many(fixture.client, KEYS)
        assert {reason(outcome) for outcome in outcomes} == {f"{fixture.client.url}: no answer in {BAD_TIMEOUT} s"}
        assert not fixture.client.available
        assert {type(outcome) for outcome in await fetch_many(fixture.client, KEYS)} == {Unreached}
        assert methods(fixture)[0] == b"POST"
        assert b"POST" not in methods(fixture)[1:]


class FakePeer:
    """A peer that answers no key alone, until a test does."""

    url = "http://peer"
    abilities = frozenset([Ability.BATCH])

    def __init__(self) -> None:
        self.asked: dict[bytes, Callable[[Outcome], None]] = {}

    def fetch(self, group: str, key: bytes, done: Callable[[Outcome], None]) -> None:
        self.asked[key] = done


@on_each_loop
async def test_to_be_asked_alone_takes_no_longer_than_one_timeout() -> None:
    """However late the peer says so: what is asked alone has a later deadline of its own."""
    peer = FakePeer()
    outcomes: dict[bytes, Outcome] = {}

    def take(key: bytes, outcome: Outcome) -> None:
        assert key not in outcomes
        outcomes[key] = outcome

    body = encode_answers([encode_answer(answer) for answer in (Alone(), said(b"V"), Alone())])
    asked = Together(cast("Peer", peer), 0.02, "g", KEYS, take)
    asked.take(Reply(200, [(b"content-type", ANSWERS_TYPE)], body))
    assert outcomes == {b"b": Fetched(b"V", None, says_ages=True)}
    peer.asked[b"a"](VALUES[0])
    await until(lambda: len(outcomes) == 3)
    assert outcomes[b"a"] == VALUES[0]
    assert reason(outcomes[b"c"]) == "http://peer: no answer in time, alone or with other keys"
    peer.asked[b"c"](VALUES[2])  # which is too late


@on_each_loop
async def test_a_connection_that_was_closed_meanwhile_is_retried() -> None:
    async def closing_first(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.connection == 1:
            writer.close()
        else:
            await able(request, writer)

    async with asking(able) as fixture:
        await known(fixture)
        fixture.peer.answer = closing_first
        assert await fetch_many(fixture.client, KEYS) == VALUES
        assert methods(fixture) == [b"POST", b"POST"]
        assert fixture.peer.requests[0].body == fixture.peer.requests[1].body


@on_each_loop
async def test_what_is_under_way_ends_with_the_client() -> None:
    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == b"POST" and b"late" not in request.body:
            writer.write(together(Alone(), Alone(), Alone()))
        elif not request.target.endswith(b"/k"):
            await never(request, writer)
        else:
            await able(request, writer)

    async with asking(held) as fixture:
        await known(fixture)
        asked_together = asyncio.create_task(fetch_many(fixture.client, [b"late", b"later"]))
        asked_alone = asyncio.create_task(fetch_many(fixture.client, KEYS))
        await until(lambda: methods(fixture).count(b"GET") == 3)
        await fixture.client.close()
        outcomes = [*await asked_together, *await asked_alone]
        assert all("this host's client is closed" in reason(outcome) for outcome in outcomes)
        for outcome in await fetch_many(fixture.client, KEYS):
            assert "this host's client is closed" in reason(outcome)


@on_each_loop
async def test_a_client_that_left_the_ring_finishes_what_is_to_be_asked_alone() -> None:
    free = asyncio.Event()

    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == b"POST":
            await free.wait()
            writer.write(together(Alone(), said(b"V"), Alone()))
        else:
            await able(request, writer)

    async with asking(held) as fixture:
        await known(fixture)
        waiting = asyncio.create_task(fetch_many(fixture.client, KEYS))
        await until(lambda: fixture.peer.requests)
        fixture.client.retire()
        free.set()
        assert await waiting == [VALUES[0], Fetched(b"V", None, says_ages=True), VALUES[2]]
        await until(lambda: not fixture.client._connections)


@on_each_loop
async def test_an_outcome_that_is_not_taken_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async with asking(able) as fixture:
        await known(fixture)
        taken: list[bytes] = []

        def take(key: bytes, outcome: Outcome) -> None:
            taken.append(key)
            if key == b"a":
                raise RuntimeError("a defect")

        fixture.client.fetch_many("g", KEYS, take)
        await until(lambda: len(taken) == 3)
        assert caplog.text.count("an outcome was not taken") == 1


@on_each_loop
async def test_a_group_that_cannot_be_asked() -> None:
    async with asking(able) as fixture:
        await known(fixture)
        for outcome in await fetch_many(fixture.client, KEYS, "a/b"):
            assert "expected a name without a slash" in reason(outcome)
        assert fixture.peer.requests == []
