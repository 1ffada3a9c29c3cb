"""The peers' client: what it sends, which connections it uses, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from fakepeers import (
    BAD_TIMEOUT,
    INSTANCE,
    TYPE,
    FakePeer,
    Request,
    asking,
    chunked,
    fetch,
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
from peerkeys import ODD_KEYS
from peerserver import Running, served

from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.outcomes import Absent, Fetched, Outcome
from mpgroupcache.net.peerwire import ABILITIES, Ability, parse_target, response_head

VALUE = response(message(b"V"))


# ---- Peers that behave


@on_each_loop
async def test_fetches_over_one_connection() -> None:
    async with asking() as fixture:
        for key in (b"hello", b"", b"x" * 1000):
            assert await fixture.fetch(key) == Fetched(value_of(key), None)
        assert fixture.peer.connections == 1
        assert fixture.client.under_way == 0


@on_each_loop
async def test_a_request_says_who_asks_how_long_and_the_secret() -> None:
    async with asking(secret="s3cret", request_timeout=7.5) as fixture:
        await fixture.fetch(b"a b/..", "g")
        (request,) = fixture.peer.requests
        assert request.target == b"/_groupcache/g/a%20b%2F.."
        timeout = request.headers[b"mpgroupcache-timeout"]
        assert request.headers == {
            b"host": b"127.0.0.1:%d" % fixture.peer.port,
            b"mpgroupcache-instance": INSTANCE.hex().encode(),
            b"mpgroupcache-secret": b"s3cret",
            b"mpgroupcache-timeout": timeout,
        }
        assert 7000 < int(timeout) <= 7500


@on_each_loop
async def test_any_key_arrives() -> None:
    async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(message(parse_target("/_groupcache/", request.target).key)))

    async with asking(echo) as fixture:
        for key in ODD_KEYS.values():
            assert await fixture.fetch(key) == Fetched(key, None)


@on_each_loop
async def test_a_path_in_the_url_comes_before_the_base_path() -> None:
    async with asking(base_path="/cache/") as fixture:
        client = PeerClient(f"{fixture.client.url}/site", options(base_path="/cache/"))
        assert isinstance(await fetch(client), Fetched)
        assert fixture.peer.requests[-1].target == b"/site/cache/g/k"
        await client.close()


@on_each_loop
async def test_a_rate_comes_with_the_value() -> None:
    before, behind = response_head(1, 12.5)
    async with asking(saying(response(before + b"V" + behind))) as fixture:
        assert await fixture.fetch() == Fetched(b"V", 12.5)


AGES = b"Mpgroupcache-Fresh: -250\r\nMpgroupcache-Dead: 60000\r\nMpgroupcache-Version: 7\r\n"
SAYS_AGES = b"Mpgroupcache-Abilities: ages\r\n"


@on_each_loop
async def test_ages_come_with_the_value() -> None:
    value = message(b"V")
    async with asking(saying(response(value, headers=TYPE + SAYS_AGES + AGES))) as fixture:
        assert await fixture.fetch() == Fetched(b"V", None, -0.25, 60.0, 7, says_ages=True)
        fixture.peer.answer = saying(response(value, headers=TYPE + SAYS_AGES))
        assert await fixture.fetch() == Fetched(b"V", None, says_ages=True)
        fixture.peer.answer = saying(response(value))
        assert await fixture.fetch() == Fetched(b"V", None, says_ages=False)


@on_each_loop
async def test_a_value_of_ages_that_cannot_be_is_loaded_here() -> None:
    absent = b"Mpgroupcache-Absent: true\r\n"
    async with asking() as fixture:
        for line in (b"Fresh: soon", b"Dead: -1", b"Version: 0", b"Dead: 1000000000000"):
            for status, headers in ((b"200 OK", TYPE), (b"404 Not Found", absent)):
                fixture.peer.answer = saying(response(message(b"V"), status, headers + b"Mpgroupcache-%s\r\n" % line))
                assert f"Mpgroupcache-{line.partition(b':')[0].decode()}: got b" in reason(await fixture.fetch())
        assert fixture.client.available
        assert fixture.peer.connections == 1


@on_each_loop
async def test_an_absence_is_no_unknown_group() -> None:
    absent = b"Mpgroupcache-Absent: true\r\n"
    async with asking(saying(response(b"no such plate\n", b"404 Not Found", absent))) as fixture:
        assert await fixture.fetch() == Absent("no such plate", None)
        absent += b"Mpgroupcache-Dead: 5000\r\n"
        fixture.peer.answer = saying(response(b"no such plate\n", b"404 Not Found", absent))
        assert await fixture.fetch() == Absent("no such plate", 5.0)
        fixture.peer.answer = saying(response(b"no such group: g\n", b"404 Not Found", b""))
        assert reason(await fixture.fetch()).endswith("answered 404: no such group: g")


@on_each_loop
async def test_ages_and_absences_of_our_peer(run_server: Callable[..., Running]) -> None:
    running = run_server()
    values = {b"aged": served(b"V", 1.5, -0.25, 60.0, 7), b"absent": served(b"none", 0.0, 5.0, 5.0, absent=True)}
    running.call(running.backend.values.update, values)
    client = PeerClient(f"http://127.0.0.1:{running.server.port}", replace(options(), instance=bytes(16)))
    assert await fetch(client, b"aged") == Fetched(b"V", 1.5, -0.25, 60.0, 7, says_ages=True)
    assert await fetch(client, b"hello") == Fetched(b"V:hello", None, says_ages=True)
    assert await fetch(client, b"absent") == Absent("none", 5.0)
    waiting = asyncio.create_task(fetch(client, b"wait:1"))
    await asyncio.to_thread(running.deliver, b"wait:1", b"gone", 0.0, None, 0.0, None, True)
    assert await waiting == Absent("gone", 0.0)
    await client.close()


@on_each_loop
async def test_large_values_whole_and_in_chunks() -> None:
    value = bytes(range(256)) * 4096
    async with asking(saying(response(message(value)))) as fixture:
        assert await fixture.fetch() == Fetched(value, None)
        fixture.peer.answer = saying(chunked(message(value), 4096))
        assert await fixture.fetch() == Fetched(value, None)
        assert fixture.peer.connections == 1


@on_each_loop
async def test_requests_beyond_the_connections_wait_and_say_how_long_they_still_do() -> None:
    free = asyncio.Event()

    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        await free.wait()
        await well(request, writer)

    async with asking(held, max_connections=3, request_timeout=20.0) as fixture:
        fetches = [asyncio.create_task(fixture.fetch(b"%d" % i)) for i in range(10)]
        await until(lambda: len(fixture.peer.requests) == 3)
        await asyncio.sleep(0.01)  # so that the clock moves
        free.set()
        assert await asyncio.gather(*fetches) == [Fetched(b"V:%d" % i, None) for i in range(10)]
        assert fixture.peer.connections == 3
        timeouts = [int(request.headers[b"mpgroupcache-timeout"]) for request in fixture.peer.requests]
        assert max(timeouts) <= 20_000
        assert 19_000 < timeouts[-1] < 20_000


@on_each_loop
async def test_a_connection_that_says_close_is_not_used_again() -> None:
    async with asking(saying(response(message(b"V"), headers=TYPE + b"Connection: close\r\n"))) as fixture:
        assert await fixture.fetch() == await fixture.fetch() == Fetched(b"V", None)
        assert fixture.peer.connections == 2


@on_each_loop
async def test_early_hints_come_before_the_answer() -> None:
    async with asking(saying(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * 2 + VALUE)) as fixture:
        assert await fixture.fetch() == await fixture.fetch() == Fetched(b"V", None)
        assert fixture.peer.connections == 1


# ---- What a peer can do


@on_each_loop
async def test_what_a_peer_can_do_is_what_it_said_last() -> None:
    said = TYPE + b"%s: fly, RATE\r\n" % ABILITIES
    async with asking() as fixture:
        assert fixture.client.abilities is None
        for headers, status, abilities in (
            (said, b"200 OK", {Ability.RATE}),
            (TYPE, b"502 Bad Gateway", {Ability.RATE}),  # somebody's in between
            (TYPE, b"200 OK", set()),
            (said + b"%s: timeout\r\n" % ABILITIES, b"500 Internal Server Error", {Ability.RATE, Ability.TIMEOUT}),
            (TYPE + ABILITIES + b": \xff,,;\r\n", b"404 Not Found", set()),
        ):
            fixture.peer.answer = saying(response(message(b"V"), status, headers))
            await fixture.fetch()
            assert fixture.client.abilities == abilities
        assert fixture.peer.connections == 1


@on_each_loop
async def test_what_a_peer_can_do_is_unknown_without_an_answer() -> None:
    async with asking(saying(b"", close=True)) as fixture:
        await fixture.fetch()
        assert fixture.client.abilities is None
        assert "abilities unknown" in repr(fixture.client)


@on_each_loop
async def test_what_our_peer_can_do(shared_server: Running) -> None:
    url, mine = f"http://127.0.0.1:{shared_server.server.port}", replace(options(), instance=bytes(16))
    client = PeerClient(url, mine)
    assert isinstance(await fetch(client, b"hello"), Fetched)
    assert client.abilities == set(Ability)
    assert "abilities absence, ages, batch, load-error, rate, timeout" in repr(client)
    await client.close()
    finds = shared_server.backend.finds
    client = PeerClient(url, mine)
    assert client._breaker.failed(0.0)
    client._send_probe()  # which looks nothing up
    await until(lambda: client.available)
    assert client.abilities == set(Ability)
    assert shared_server.backend.finds == finds
    await client.close()


# ---- Kept-alive connections


@on_each_loop
async def test_a_connection_that_was_closed_meanwhile_is_retried_on_a_new_one() -> None:
    async with asking() as fixture:
        await fixture.fetch()

        async def closing_first(request: Request, writer: asyncio.StreamWriter) -> None:
            if request.connection == 1:
                writer.close()
            else:
                await well(request, writer)

        fixture.peer.answer = closing_first
        assert await fixture.fetch(b"again") == Fetched(b"V:again", None)
        assert fixture.peer.connections == 2
        assert fixture.client.available


@on_each_loop
async def test_it_is_retried_once() -> None:
    async with asking() as fixture:
        await fixture.fetch()
        fixture.peer.answer = saying(b"", close=True)
        assert "closed without an answer" in reason(await fixture.fetch())
        assert [request.target for request in fixture.peer.requests] == [b"/_groupcache/g/k"] * 3


@on_each_loop
async def test_no_retry_once_a_byte_of_the_answer_came() -> None:
    async with asking() as fixture:
        await fixture.fetch()
        fixture.peer.answer = saying(b"H", close=True)
        assert "closed after 1 bytes" in reason(await fixture.fetch())
        assert len(fixture.peer.requests) == 2


@on_each_loop
async def test_a_peer_that_restarts_is_asked_again() -> None:
    async with asking() as fixture:
        await asyncio.gather(*(fixture.fetch(b"%d" % i) for i in range(8)))
        await fixture.peer.stop()
        await fixture.peer.start()
        assert await fixture.fetch() == Fetched(b"V:k", None)


@on_each_loop
async def test_old_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking() as fixture:
        await asyncio.gather(*(fixture.fetch(b"%d" % i) for i in range(8)))
        monkeypatch.setattr("mpgroupcache.net.client.MAX_IDLE", -1.0)
        opened = fixture.peer.connections
        assert isinstance(await fixture.fetch(), Fetched)
        assert fixture.peer.connections == opened + 1
        await until(lambda: not fixture.peer.writers)


# ---- Ends


@on_each_loop
async def test_close_ends_what_is_under_way() -> None:
    async with asking(never, max_connections=2) as fixture:
        fetches = [asyncio.create_task(fixture.fetch(b"%d" % i)) for i in range(5)]
        await until(lambda: len(fixture.peer.requests) == 2)
        await fixture.client.close()
        for outcome in await asyncio.gather(*fetches):
            assert "this host's client is closed" in reason(outcome)
        assert "this host's client is closed" in reason(await fixture.fetch())


@on_each_loop
async def test_close_while_connecting() -> None:
    async with asking() as fixture:
        outcomes: list[Outcome] = []
        fixture.client.fetch("g", b"k", outcomes.append)
        await fixture.client.close()
        assert len(outcomes) == 1
    peer = FakePeer()
    await peer.start()
    await peer.stop()


@on_each_loop
async def test_retiring_finishes_what_is_under_way() -> None:
    free = asyncio.Event()

    async def held(request: Request, writer: asyncio.StreamWriter) -> None:
        await free.wait()
        await well(request, writer)

    async with asking(held, max_connections=2) as fixture:
        fetches = [asyncio.create_task(fixture.fetch(b"%d" % i)) for i in range(5)]
        await until(lambda: len(fixture.peer.requests) == 2)
        fixture.client.retire()
        free.set()
        assert await asyncio.gather(*fetches) == [Fetched(b"V:%d" % i, None) for i in range(5)]
        await until(lambda: not fixture.client._connections)


@on_each_loop
async def test_a_callback_that_raises_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def raising(outcome: Outcome) -> None:
        raise RuntimeError("a defect")

    async with asking() as fixture:
        fixture.client.fetch("g", b"k", raising)
        await until(lambda: not fixture.client.under_way)
        assert "an outcome was not taken" in caplog.text
        assert isinstance(await fixture.fetch(), Fetched)
        assert fixture.peer.connections == 1
    caplog.clear()


@on_each_loop
async def test_a_callback_may_fetch_again() -> None:
    async with asking(never, request_timeout=BAD_TIMEOUT) as fixture:
        outcomes: list[Outcome] = []

        def take(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) < 3:
                fixture.client.fetch("g", b"k", take)

        fixture.client.fetch("g", b"k", take)
        await until(lambda: len(outcomes) == 3)


@on_each_loop
async def test_repr() -> None:
    async with asking() as fixture:
        await fixture.fetch()
        state = "in use, 0 requests under way, 1 connections, abilities none"
        assert repr(fixture.client) == f"<PeerClient {fixture.client.url}: {state}>"
