"""The peers' server over real sockets: answers as Go's to the byte, in the order of the requests, however cut."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from peerkeys import ODD_KEYS
from peerserver import (
    ABILITIES,
    CLOSE,
    INSTANCE,
    MALFORMED,
    REFUSED,
    FakeBackend,
    Running,
    found,
    get,
    many,
    of,
    served,
    text,
)
from workers import wait_until

from mpgroupcache.net import batches, peerwire
from mpgroupcache.net.ages import read_ages
from mpgroupcache.net.handler import Handler
from mpgroupcache.net.serverconnection import ServerConnection

if TYPE_CHECKING:
    from collections.abc import Callable

# ---- Answers


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (of(b"hello", CLOSE), found(bytes.fromhex("0a07563a68656c6c6f"), b"Connection: close\r\n")),
        (of(b"", CLOSE), found(bytes.fromhex("0a00"), b"Connection: close\r\n")),
        (of(b"now:v", CLOSE), found(b"\x0a\x01v", b"Connection: close\r\n")),
        (of(b"hello", b"connection: foo, Close"), found(b"\x0a\x07V:hello", b"Connection: close\r\n")),
        (of(b"hello", CLOSE, method=b"HEAD"), found(b"\x0a\x07V:hello", b"Connection: close\r\n")[:-9]),
        (of(b"hello", CLOSE, method=b"DELETE"), text(*REFUSED)),
        (of(b"hello", version=b"1.0", method=b"POST"), text(*REFUSED, more=b"").replace(b"HTTP/1.1", b"HTTP/1.0")),
        (of(b"hello", version=b"1.0"), found(b"\x0a\x07V:hello").replace(b"HTTP/1.1", b"HTTP/1.0")),
        (get(b"/_groupcache/g", CLOSE), text(b"400 Bad Request", b"bad request\n")),
        (get(b"/other", CLOSE), text(b"404 Not Found", b"404 page not found\n")),
        (get(b"/other", CLOSE, method=b"PUT"), text(*REFUSED)),
        (get(b"*", CLOSE, method=b"OPTIONS"), text(*REFUSED)),
        (get(b"peer:80", method=b"CONNECT"), text(*REFUSED)),
        (of(b"hello", CLOSE, method=b"BREW"), MALFORMED),  # which the parser does not know
        (of(b"hello", CLOSE, method=b"get"), MALFORMED),
        (b"DELETE /_groupcache/g/hello HTTP/1.1\r\n\r\n", MALFORMED + b": missing required Host header"),
        (get(b"/_groupcache/a%20b/k", CLOSE), text(b"404 Not Found", b"no such group: a b\n")),
        (get(b"/_groupcache/%FF/k", CLOSE), text(b"404 Not Found", b"no such group: \xff\n")),
        (get(b"/_groupcache/late/k", CLOSE), text(b"404 Not Found", b"no such group: late\n")),
        (
            of(b"fail:boom", CLOSE),
            text(b"500 Internal Server Error", b"boom\n", b"Mpgroupcache-Load-Error: app.Boom\r\n"),
        ),
        (
            of(b"aged", CLOSE),
            found(b"\x0a\x01v", b"Connection: close\r\n").replace(
                b"Content-Length",
                b"Mpgroupcache-Version: 7\r\nMpgroupcache-Fresh: -250\r\nMpgroupcache-Dead: 60000\r\nContent-Length",
            ),
        ),
        (
            of(b"absent", CLOSE),
            text(b"404 Not Found", b"none\n", b"Mpgroupcache-Absent: true\r\nMpgroupcache-Dead: 5000\r\n"),
        ),
        (
            of(b"hello", CLOSE, peerwire.INSTANCE + b": " + INSTANCE.hex().encode()),
            text(b"421 Misdirected Request", peerwire.ASKED_ITSELF.body),
        ),
        (
            get(b"/_groupcache/g/" + b"k" * 65_537, CLOSE),
            text(b"414 Request URI Too Long", b"key: got 65537 bytes, expected at most 65536\n"),
        ),
        (get(b"/_groupcache/g/%zz"), MALFORMED),
        (b"GET /_groupcache/g/hello HTTP/9.9\r\n\r\n", MALFORMED),
        (b"nonsense\r\n\r\n", MALFORMED),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", MALFORMED),
        (b"GET /_groupcache/g/hello HTTP/1.1\r\n\r\n", MALFORMED + b": missing required Host header"),
        (
            of(b"hello", b"Mpgroupcache-Timeout: 999999999999", CLOSE),
            found(b"\x0a\x07V:hello", b"Connection: close\r\n"),
        ),
    ],
)
def test_answers(shared_server: Running, request_: bytes, answer: bytes) -> None:
    assert shared_server.exchange(request_) == answer


def test_a_malformed_timeout_is_refused_where_it_counts(shared_server: Running) -> None:
    answer = shared_server.exchange(of(b"wait:never", b"Mpgroupcache-Timeout: 1.5", CLOSE))
    body = b"Mpgroupcache-Timeout: got b'1.5', expected milliseconds, at most 999999999999\n"
    assert answer == text(b"400 Bad Request", body)


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=list(ODD_KEYS))
def test_odd_keys(shared_server: Running, key: bytes) -> None:
    shared_server.call(shared_server.backend.values.update, {key: served(b"odd")})
    with shared_server.connect() as client:
        for _ in range(3):  # the later ones are known
            client.send(of(key))
            assert client.answer().body == b"\x0a\x03odd"
    if key not in (b"hello", b""):
        shared_server.call(shared_server.backend.values.pop, key)
    else:
        shared_server.call(shared_server.backend.values.update, FakeBackend().values)


def test_the_rate_is_the_only_difference(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        for rate, more in [(0.0, b""), (1.5, bytes.fromhex("11000000000000f83f")), (-1.0, b""), (float("nan"), b"")]:
            running.call(running.backend.values.update, {b"k": served(b"v", rate)})
            for request in (of(b"k"), of(b"k", b"Connection: keep-alive")):
                client.send(request)
                answer = client.answer()
                assert answer.body == b"\x0a\x01v" + more
                assert list(answer.headers) == [
                    b"Content-Type",
                    b"Mpgroupcache-Instance",
                    b"Mpgroupcache-Abilities",
                    b"Date",
                    b"Content-Length",
                ]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_what_a_peer_can_do_is_asked_without_a_load(run_server: Callable[..., Running], method: bytes) -> None:
    for options, status in (({}, b"400 Bad Request"), ({"secret": "s3cret"}, b"403 Forbidden")):
        running = run_server(**options)
        answer = running.exchange(get(b"/_groupcache/", CLOSE, method=method))
        assert answer.startswith(b"HTTP/1.1 %s\r\n" % status)
        assert ABILITIES in answer
        assert running.backend.finds == 0


def test_what_a_peer_says_it_can_do_it_does(run_server: Callable[..., Running]) -> None:
    running = run_server()
    running.call(running.backend.values.update, {b"k": served(b"v", 1.5, 5.0), b"no": served(b"none", absent=True)})
    does: dict[peerwire.Ability, bool] = {}
    with running.connect() as client:
        client.send(of(b"k") + of(b"no") + of(b"fail:boom") + of(b"wait:1", b"Mpgroupcache-Timeout: 20"))
        found, absent, failed, late = (client.answer() for _ in range(4))
        does[peerwire.Ability.RATE] = peerwire.decode_response(found.body).minute_qps == 1.5
        client.send(many([b"k", b"no"]))
        together = client.answer()
        does[peerwire.Ability.BATCH] = len(batches.decode_answers(together.body, 2)) == 2
        does[peerwire.Ability.AGES] = read_ages(found.headers.items()).fresh == 5.0
        does[peerwire.Ability.ABSENCE] = peerwire.absence(404, absent.headers.items(), absent.body) == "none"
        does[peerwire.Ability.LOAD_ERROR] = peerwire.loader_error(500, failed.headers.items(), failed.body) is not None
        does[peerwire.Ability.TIMEOUT] = late.line == b"HTTP/1.1 504 Gateway Timeout"
    for answer in (found, absent, failed, late, together):
        said = peerwire.read_abilities(int(answer.line.split()[1]), answer.headers.items())
        assert said == {ability for ability, is_done in does.items() if is_done} == set(peerwire.Ability)


def test_old_clients_may_keep_their_connection(shared_server: Running) -> None:
    with shared_server.connect() as client:
        for body in (b"\x0a\x07V:hello", b"\x0a\x07V:hello"):
            client.send(of(b"hello", b"Connection: keep-alive", version=b"1.0"))
            answer = client.answer()
            assert (answer.line, answer.body) == (b"HTTP/1.0 200 OK", body)
            assert answer.headers[b"Connection"] == b"keep-alive"


@pytest.mark.parametrize("method", [b"DELETE", b"PATCH", b"POST", b"PROPFIND", b"PUT", b"TRACE"])
def test_other_methods_load_nothing(run_server: Callable[..., Running], method: bytes) -> None:
    """Cached or not; and what comes behind them is answered, at once or when its turn has come."""
    running = run_server()
    with running.connect() as client:
        requests = [of(b"hello"), of(b"hello", method=method), of(b"now:1"), of(b"now:2", method=method), of(b"hello")]
        for cut in (False, True):
            if not cut:
                client.send(b"".join(requests))
            answers = []
            for request in requests:
                if cut:
                    client.send(request)
                answers.append(client.answer())
            assert [answer.line for answer in answers if answer.body == b"Method Not Allowed\n"] == [
                b"HTTP/1.1 405 Method Not Allowed"
            ] * 2
            assert [answer.body for answer in answers[::2]] == [b"\x0a\x07V:hello", b"\x0a\x011", b"\x0a\x07V:hello"]
            assert {answer.headers.get(b"Allow") for answer in answers[1::2]} == {b"GET, HEAD"}
        client.send(of(b"wait:1") + of(b"wait:2", method=method) + of(b"hello"))
        running.deliver(b"wait:1", b"one")
        assert [client.answer().body for _ in range(3)] == [b"\x0a\x03one", b"Method Not Allowed\n", b"\x0a\x07V:hello"]
    assert b"now:2" not in running.backend.found_at
    assert b"wait:2" not in running.backend.waiting
    assert running.backend.finds == 8
    assert running.server.handler.errors == {405: 5}


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
@pytest.mark.parametrize(
    "body",
    [
        (b"Content-Length: 5", b"abcde"),
        (b"Content-Length: 500000", b"abcde"),
        (b"Transfer-Encoding: chunked", b"5\r\nabcde\r\n0\r\n\r\n"),
        (b"Content-Length: 5\r\nExpect: 100-continue", b""),
        (b"Connection: upgrade\r\nUpgrade: h2c", b"PRI"),
    ],
)
def test_a_body_is_not_read(shared_server: Running, body: tuple[bytes, bytes], method: bytes) -> None:
    answer = shared_server.exchange(of(b"hello", body[0], method=method) + body[1] + of(b"hello"))
    whole = found(b"\x0a\x07V:hello", b"Connection: close\r\n")
    assert answer == {b"GET": whole, b"HEAD": whole[:-9], b"POST": text(*REFUSED)}[method]


def test_no_body_may_be_said(shared_server: Running) -> None:
    last = found(b"\x0a\x07V:hello", b"Connection: close\r\n")
    for method, first in ((b"GET", found(b"\x0a\x07V:hello")), (b"POST", text(*REFUSED, more=b""))):
        answer = shared_server.exchange(of(b"hello", b"Content-Length: 0", method=method) + of(b"hello", CLOSE))
        assert answer == first + last


def test_a_defect_of_the_source_is_one_client_s(shared_server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with shared_server.connect() as client:
        client.send(of(b"bug:"))
        answer = client.answer()
        assert (answer.line, answer.body) == (
            b"HTTP/1.1 500 Internal Server Error",
            b"internal error; see this peer's log\n",
        )
        client.send(of(b"hello"))
        assert client.answer().body == b"\x0a\x07V:hello"
    assert "a defect" in caplog.text
    assert not any(name == peerwire.LOAD_ERROR for name in answer.headers)


def test_another_base_path(run_server: Callable[..., Running]) -> None:
    running = run_server(base_path="/a/b/")
    assert running.exchange(get(b"/a/b/g/hello", CLOSE)).endswith(b"V:hello")
    assert b"404 page not found" in running.exchange(of(b"hello", CLOSE))


def test_secrets(run_server: Callable[..., Running], caplog: pytest.LogCaptureFixture) -> None:
    running = run_server(secret="s3cret")
    for headers in ((), (b"Mpgroupcache-Secret: other",)):
        assert running.exchange(of(b"hello", *headers, CLOSE)) == text(b"403 Forbidden", peerwire.WRONG_SECRET.body)
    with running.connect() as client:
        for _ in range(3):
            client.send(of(b"hello", b"mpgroupcache-secret: s3cret"))
            assert client.answer().body == b"\x0a\x07V:hello"
        client.send(of(b"hello", b"mpgroupcache-secret: s3cret", method=b"PUT"))
        assert client.answer().line == b"HTTP/1.1 405 Method Not Allowed"
        for method in (b"GET", b"PUT"):  # who does not know it is not told more
            client.send(of(b"hello", method=method))
            assert client.answer().line == b"HTTP/1.1 403 Forbidden"
    assert running.server.handler.errors == {403: 4, 405: 1}
    assert caplog.text.count("Mpgroupcache-Secret: got no header, expected this ring's secret") == 1  # not for each


# ---- Order


def test_answers_are_in_order(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(
            b"".join(map(of, (b"hello", b"wait:1", b"now:2", b"wait:3", b"fail:4", b"hello"))) + b"nonsense\r\n"
        )
        assert client.answer().body == b"\x0a\x07V:hello"
        running.deliver(b"wait:1", b"one", 2.0)
        assert client.answer().body == b"\x0a\x03one\x11" + bytes.fromhex("0000000000000040")
        assert client.answer().body == b"\x0a\x012"
        running.deliver(b"wait:3", b"three")
        assert [client.answer().body for _ in range(3)] == [b"\x0a\x05three", b"4\n", b"\x0a\x07V:hello"]
        assert client.rest() == MALFORMED
    assert running.backend.left == []


def test_a_visitor_is_answered_once(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(of(b"wait:1"))
        wait_until(lambda: running.backend.waiting)
        visitor = running.backend.waiting.pop(b"wait:1")
        running.call(visitor.deliver, served(b"one"))
        running.call(visitor.deliver, served(b"two"))
        running.call(visitor.fail, "E", "three")
        client.send(of(b"hello"))
        assert [client.answer().body for _ in range(2)] == [b"\x0a\x03one", b"\x0a\x07V:hello"]


class FakeTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None


REQUESTS = st.sampled_from(
    [
        of(b"hello"),
        of(b""),
        of(b"now:x"),
        of(b"fail:x"),
        of(b"hello", b"Accept-Encoding: gzip"),
        of(b"hello", method=b"HEAD"),
        of(b"now:x", method=b"DELETE"),
        of(b"hello", b"Connection: keep-alive", version=b"1.0"),
        of(b"k" * 20_000),
        get(b"/_groupcache/n/k"),
        get(b"/_groupcache/g/%zz"),
        get(b"/_groupcache/g/hello world"),
        b"\r\n" + of(b"hello"),
        b"GET /_groupcache/g/hello HTTP/1.1\nHost: a HTTP/1.1\r\nHost: peer\r\n\r\n",
        of(b"hello", CLOSE),
        of(b"hello", b"Content-Length: 3") + b"abc",
        many([b"hello", b"now:x", b"fail:x"]),
        many([b"now:\r\n\r\n"]),
        many([b"hello"], CLOSE),
        many([b"hello"], group=b"n"),
        many([b"hello"])[:-1],
        b"nonsense",
        b"GET ",
    ]
)


def answers_to(pieces: list[bytes]) -> tuple[bytes, bool]:
    """What a connection writes if these pieces come, one at a time, and whether it closes."""

    async def serve() -> tuple[bytes, bool]:
        handler = Handler(FakeBackend(), instance=INSTANCE)
        handler.heads.renew(0.0)
        connection, transport = ServerConnection(handler, lambda _: None), FakeTransport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        for piece in pieces:
            if not transport.closed:
                connection.data_received(piece)
                while connection._scheduled:
                    await asyncio.sleep(0)
        return transport.written, transport.closed

    return uvloop.run(serve())


@settings(max_examples=150, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=6), data=st.data())
def test_answers_do_not_depend_on_how_requests_are_cut(requests: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    assert answers_to(pieces) == answers_to([stream]) == answers_to(requests)


def test_answers_do_not_depend_on_single_bytes() -> None:
    stream = of(b"hello") + of(b"now:x") + of(b"hello") + of(b"hello", CLOSE)
    assert answers_to([stream[at : at + 1] for at in range(len(stream))]) == answers_to([stream])
