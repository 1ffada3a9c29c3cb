"""The peers' client, asking peers that refuse, fail, hang and lie: one outcome each, within the deadline."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from fakepeers import (
    BAD_TIMEOUT,
    TYPE,
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
    well,
)

from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.exchange import ClientConnection
from mpgroupcache.net.outcomes import Fetched, OwnerError
from mpgroupcache.net.peerwire import MAX_ERROR_BYTES, load_failed

if TYPE_CHECKING:
    from fakepeers import Answer

VALUE = response(message(b"V"))


# ---- Answers that are no values


@on_each_loop
async def test_an_error_of_the_owners_loader() -> None:
    error = load_failed("app.BadImage", "no such plate\nat all")
    headers = b"".join(b"%s: %s\r\n" % header for header in error.headers)
    async with asking(saying(response(error.body, b"500 Internal Server Error", headers))) as fixture:
        assert await fixture.fetch() == OwnerError("app.BadImage", "no such plate\nat all")
        assert fixture.client.available


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (response(b"it broke\n", b"500 Internal Server Error", b""), "answered 500: it broke"),
        (response(b"no such group: g\n", b"404 Not Found", b""), "answered 404: no such group: g"),
        (response(b"", b"503 Service Unavailable", b""), "answered 503: "),
        (
            response(b"", b"301 Moved Permanently", b"Location: /_groupcache/g/b\r\n"),
            "301, a redirect to '/_groupcache/g/b'",
        ),
        (response(b"<html>"), "GetResponse"),
        (response(b"", headers=b"Content-Type: text/html\r\n"), "content type b'text/html'"),
        (response(b"", headers=b""), "content type b''"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "answered 204"),
        (b"HTTP/1.1 200 OK\r\n%s\r\n" % TYPE, "neither Content-Length nor chunks"),
        (b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: gzip\r\n\r\n" % TYPE, "neither Content-Length nor chunks"),
        (b"HTTP/1.1 200 OK\r\n%sContent-Length: 5000\r\n\r\n" % TYPE, "4.883 KiB, expected at most 4 KiB"),
        (chunked(b"x" * 5000, 1000), "more, expected at most 4 KiB"),
    ],
)
@on_each_loop
async def test_answers_of_a_live_peer_do_not_open_its_breaker(answer: bytes, text: str) -> None:
    async with asking(saying(answer), max_response_bytes=4096) as fixture:
        assert text in reason(await fixture.fetch())
        assert fixture.client.available
        fixture.peer.answer = well
        assert await fixture.fetch() == Fetched(b"V:k", None)


@on_each_loop
async def test_an_errors_endless_text_is_cut_off() -> None:
    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1000\r\n%s\r\n" % (b"x" * 4096))
            await writer.drain()

    async with asking(endless) as fixture:
        assert "answered 500: xxx" in reason(await fixture.fetch())
        await until(lambda: not fixture.peer.writers)
    assert MAX_ERROR_BYTES < 1 << 20


@pytest.mark.parametrize(("status", "option"), [(421, "--self: got http://self:1"), (403, "--secret-file")])
@on_each_loop
async def test_a_wrong_option_is_reported_once(status: int, option: str, caplog: pytest.LogCaptureFixture) -> None:
    async with asking(saying(response(b"text\n", b"%d No" % status, b""))) as fixture:
        for _ in range(3):
            assert reason(await fixture.fetch()) == f"{fixture.client.url}: answered {status}: text"
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert option in record.getMessage()
    caplog.clear()


@on_each_loop
async def test_a_group_that_no_peer_can_be_asked_for() -> None:
    async with asking() as fixture:
        assert "without a slash" in reason(await fixture.fetch(group="a/b"))
        assert not fixture.peer.requests


# ---- Peers that fail


async def trickle(request: Request, writer: asyncio.StreamWriter) -> None:
    """Answer a byte at a time, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: 100000\r\n\r\n" % TYPE)
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.005)


async def flood(request: Request, writer: asyncio.StreamWriter) -> None:
    """Send a header that does not end."""
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not writer.is_closing():
        writer.write(b"x" * 4096)
        await writer.drain()


async def flood_of_hints(request: Request, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        await writer.drain()


async def flood_of_chunk_extensions(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n1;" % TYPE)
    while not writer.is_closing():
        writer.write(b"x" * 4096)
        await writer.drain()


async def reset(request: Request, writer: asyncio.StreamWriter) -> None:
    """Break off in the middle of an answer, so that the kernel says so."""
    writer.write(VALUE[:-1])
    await writer.drain()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


FAILURES: dict[str, tuple[Answer, str]] = {
    "silent": (never, "no answer in 0.25 s"),
    "stops in the head": (saying(b"HTTP/1.1 200 OK\r\nConte"), "answer incomplete after 0.25 s, at 22 bytes"),
    "stops in the body": (saying(VALUE[:-1]), "answer incomplete after 0.25 s"),
    "slow": (trickle, "answer incomplete after 0.25 s"),
    "closes without an answer": (saying(b"", close=True), "connection closed without an answer"),
    "closes in the head": (saying(b"HTTP/1.1 200", close=True), "connection closed after 12 bytes of the answer"),
    "closes in the body": (saying(VALUE[:-1], close=True), "connection closed after"),
    "closes in a chunk": (saying(chunked(b"x" * 100, 100)[:-20], close=True), "connection closed after"),
    "resets the connection": (reset, "Connection reset by peer"),
    "other protocol": (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "not HTTP/1.1"),
    "garbage": (saying(bytes(range(256))), "not HTTP/1.1"),
    "two lengths": (saying(VALUE.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n")), "not HTTP/1.1"),
    "length and chunks": (saying(VALUE.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")), "not HTTP"),
    "length that is no number": (saying(VALUE.replace(b"Length: ", b"Length: -")), "not HTTP/1.1"),
    "switches protocols": (
        saying(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
        "not HTTP/1.1",
    ),
    "endless header": (flood, "expected headers of at most 65536"),
    "endless hints": (flood_of_hints, "expected headers of at most 65536"),
    "endless chunk header": (flood_of_chunk_extensions, "expected headers of at most 65536"),
}


@pytest.mark.parametrize("kind", FAILURES)
@on_each_loop
async def test_failures_have_one_outcome_and_open_the_breaker(kind: str) -> None:
    answer, text = FAILURES[kind]
    async with asking(answer, request_timeout=BAD_TIMEOUT) as fixture:
        assert text in reason(await fixture.fetch())
        assert not fixture.client.available
        before = len(fixture.peer.requests)
        assert "not asked again until" in reason(await fixture.fetch())
        assert len(fixture.peer.requests) == before
        fixture.peer.answer = well
        await until(lambda: fixture.client.available)  # a probe was answered
        assert await fixture.fetch() == Fetched(b"V:k", None)


@on_each_loop
async def test_nobody_listens() -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        client = PeerClient(f"http://127.0.0.1:{bound.getsockname()[1]}", options(), jitter=lambda: 0.0)
        outcomes = await asyncio.gather(*(fetch(client) for _ in range(40)))
        assert all("no connection: " in reason(outcome) for outcome in outcomes)
        assert not client.available
        await client.close()


@on_each_loop
async def test_a_connection_that_is_never_accepted_costs_the_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.socket() as first, socket.socket() as second:
            for filler in (first, second):  # a backlog of 0 takes one
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            client = PeerClient(f"http://127.0.0.1:{full.getsockname()[1]}", options(connect_timeout=BAD_TIMEOUT))
            assert "no connection in 0.25 s" in reason(await fetch(client))
            assert not client.available
            await client.close()


@on_each_loop
async def test_a_connection_that_is_open_just_before_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. It opens, and the request goes out. 2. The loop stalls. 3. It sees the timeout before the opening's end."""
    made = ClientConnection.connection_made

    def stall(connection: ClientConnection, transport: asyncio.BaseTransport) -> None:
        made(connection, transport)
        time.sleep(2 * BAD_TIMEOUT)

    async with asking(connect_timeout=BAD_TIMEOUT) as fixture:
        monkeypatch.setattr(ClientConnection, "connection_made", stall)
        for _ in range(3):
            assert await fixture.fetch() == Fetched(b"V:k", None)
        assert fixture.peer.connections == 1


@on_each_loop
async def test_a_connection_that_is_open_just_after_it_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ClientConnection.connection_made

    def late(connection: ClientConnection, transport: asyncio.BaseTransport) -> None:
        connection.give_up()
        made(connection, transport)

    async with asking() as fixture:
        with monkeypatch.context() as patch:
            patch.setattr(ClientConnection, "connection_made", late)
            assert "no connection in 1 s" in reason(await fixture.fetch())
        assert not fixture.client._connections
        await until(lambda: fixture.client.available)
        for _ in range(3):
            assert await fixture.fetch() == Fetched(b"V:k", None)


@on_each_loop
async def test_a_name_that_nobody_has() -> None:
    client = PeerClient("http://a..b:80", options())
    assert "no connection: " in reason(await fetch(client))
    await client.close()


@on_each_loop
async def test_a_dead_peer_costs_one_timeout_to_all_that_wait() -> None:
    async with asking(never, request_timeout=BAD_TIMEOUT, max_connections=2) as fixture:
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcomes = await asyncio.gather(*(fixture.fetch(b"%d" % i) for i in range(50)))
        assert all("no answer in" in reason(outcome) for outcome in outcomes)
        assert len([request for request in fixture.peer.requests if b"/g/" in request.target]) == 2
        assert loop.time() - began < 10 * BAD_TIMEOUT


@on_each_loop
async def test_one_slow_key_of_a_live_peer_does_not_open_its_breaker() -> None:
    async def slow_key(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.target.endswith(b"slow"):
            await never(request, writer)
        else:
            await well(request, writer)

    async with asking(slow_key, request_timeout=BAD_TIMEOUT) as fixture:
        slow = asyncio.create_task(fixture.fetch(b"slow"))
        while not slow.done():
            assert isinstance(await fixture.fetch(b"quick"), Fetched)
        assert "no answer in" in reason(slow.result())
        assert fixture.client.available


@on_each_loop
async def test_a_probe_that_fails_is_followed_by_another() -> None:
    async with asking(saying(b"", close=True)) as fixture:
        await fixture.fetch()
        await until(lambda: fixture.client._breaker.delay == 1.0)  # the second probe failed
        assert not fixture.client.available
        fixture.client._probe_timer.cancel()
        fixture.peer.answer = well
        fixture.client._send_probe()
        await until(lambda: fixture.client.available)


@on_each_loop
async def test_an_answer_to_nothing_closes_the_connection() -> None:
    async with asking(saying(VALUE + VALUE)) as fixture:
        for _ in range(3):
            assert await fixture.fetch() == Fetched(b"V", None)
        assert fixture.peer.connections == 3

        async def stutter(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(VALUE)
            await until(lambda: not fixture.client.under_way)
            writer.write(VALUE)

        fixture.peer.answer = stutter
        assert await fixture.fetch() == Fetched(b"V", None)
        await until(lambda: not fixture.client._connections)


@on_each_loop
async def test_a_length_that_is_too_short_leaves_nothing_for_the_next_request() -> None:
    async with asking(saying(VALUE + b"more")) as fixture:
        for _ in range(3):
            assert await fixture.fetch() == Fetched(b"V", None)
