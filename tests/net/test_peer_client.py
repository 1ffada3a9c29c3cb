"""The peers' client, asking servers that behave well, and in each way that they should not."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

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
    response,
    saying,
    until,
    value_of,
    well,
)
from hypothesis import given
from hypothesis import strategies as st
from peerkeys import ODD_KEYS

from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.exchange import Connection, Exchange
from mpgroupcache.net.outcomes import Fetched, Outcome, OwnerError, Reply, Unreached
from mpgroupcache.net.wire import MAX_ERROR_BYTES, load_failed, parse_target, response_head

if TYPE_CHECKING:
    from fakepeers import Answer

VALUE = response(message(b"V"))


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome, Unreached)
    return outcome.reason


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


class Wire:
    """A connection without a socket: its transport and its pool, which keeps what it is told."""

    def __init__(self) -> None:
        self.news: list[object] = []
        self.closed = False
        self.connection = Connection(self, 1 << 20)
        self.connection.connection_made(self)  # type: ignore[arg-type]

    def receive(self, data: bytes, cuts: list[int]) -> None:
        """Send a request; then ``data`` comes in pieces, and the end of the connection."""
        self.connection.send(Exchange(b"/", 0.0, 1.0, None), b"")
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < end and not self.closed:
                self.connection.data_received(data[start:end])

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def connected(self, connection: Connection) -> None:
        pass

    def replied(self, connection: Connection, exchange: Exchange, reply: Reply, free: bool) -> None:
        self.news.append((reply.status, reply.body, free))

    def broke(self, exchange: Exchange, reason: str, alive: bool) -> None:
        self.news.append(reason)

    def lost(self, connection: Connection, exchange: Exchange | None, error: Exception | None) -> None:
        if exchange is not None:
            self.news.append("lost")


@st.composite
def cut_up(draw: st.DrawFn, data: bytes) -> list[int]:
    return sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))


RESPONSES = st.one_of(
    st.binary(max_size=300).map(lambda body: (response(body), body)),
    st.tuples(st.binary(max_size=300), st.integers(1, 300)).map(lambda given: (chunked(*given), given[0])),
)


@given(st.data(), st.lists(RESPONSES, min_size=1, max_size=3))
def test_responses_may_come_in_any_pieces(data: st.DataObject, responses: list[tuple[bytes, bytes]]) -> None:
    wire = Wire()
    for raw, _ in responses:
        wire.receive(raw, data.draw(cut_up(raw)))
    assert wire.news == [(200, body, True) for _, body in responses]
    wire.connection.connection_lost(None)
    assert len(wire.news) == len(responses)


@given(st.data(), RESPONSES, st.binary(max_size=40), st.integers(0, 400))
def test_spoilt_responses_have_one_outcome(
    data: st.DataObject, given_response: tuple[bytes, bytes], junk: bytes, at: int
) -> None:
    raw, _ = given_response
    raw = raw[:at] + junk + raw[at + data.draw(st.integers(0, 9)) :]
    wire = Wire()
    wire.receive(raw, data.draw(cut_up(raw)))
    wire.connection.connection_lost(None)
    assert len(wire.news) == 1


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


FAILURES: dict[str, tuple[Answer, str]] = {
    "silent": (never, "no answer in 0.25 s"),
    "stops in the head": (saying(b"HTTP/1.1 200 OK\r\nConte"), "answer incomplete after 0.25 s, at 22 bytes"),
    "stops in the body": (saying(VALUE[:-1]), "answer incomplete after 0.25 s"),
    "slow": (trickle, "answer incomplete after 0.25 s"),
    "closes without an answer": (saying(b"", close=True), "connection closed without an answer"),
    "closes in the head": (saying(b"HTTP/1.1 200", close=True), "connection closed after 12 bytes of the answer"),
    "closes in the body": (saying(VALUE[:-1], close=True), "connection closed after"),
    "closes in a chunk": (saying(chunked(b"x" * 100, 100)[:-20], close=True), "connection closed after"),
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
        assert repr(fixture.client) == f"<PeerClient {fixture.client.url}: in use, 0 requests under way, 1 connections>"
