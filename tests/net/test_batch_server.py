"""Requests for many keys over real sockets: answers in the keys' order, bounded, and whatever their clients do."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from peerserver import (
    CLOSE,
    COMMON,
    INSTANCE,
    MALFORMED,
    REFUSED,
    SHORT,
    Answer,
    Limits,
    Running,
    found,
    get,
    many,
    of,
    served,
    text,
    unparsed,
)
from workers import PATIENCE, wait_until

from mpgroupcache.net import batches, peerwire
from mpgroupcache.net.batches import Absence, Alone, Failure, Refusal, Value

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = b"Mpgroupcache-Timeout: 20"


def value(data: bytes, *args: float | None) -> Value:
    return Value(data, *(args or (None, None, None, None)))  # type: ignore[arg-type]


def answers_in(answer: Answer, count: int) -> list[batches.Answer]:
    assert answer.line == b"HTTP/1.1 200 OK"
    assert answer.headers[b"Content-Type"] == batches.ANSWERS_TYPE
    return batches.decode_answers(answer.body, count)


# ---- Answers


def test_an_answer_to_the_byte(shared_server: Running) -> None:
    body = (
        bytes.fromhex("93" + "9600c407563a68656c6c6fc0c0c0c0" + "9301a46e6f6e65cd1388" + "9302a8") + b"app.Boom\xa4boom"
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-mpgroupcache-answers\r\n" + COMMON
    answer = shared_server.exchange(many([b"hello", b"absent", b"fail:boom"], CLOSE))
    assert answer == head + b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)


def test_every_key_is_answered_in_its_place(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(many([b"wait:1", b"hello", b"fail:boom", b"aged", b"wait:2", b"absent", b"now:x", b"wait:1"]))
        wait_until(lambda: len(running.backend.visitors) == 3)
        running.deliver(b"wait:2", b"two", 1.5, None, 60.0, 9)
        running.deliver(b"wait:1", b"one")  # the later of its two visitors: the other waits on
        assert running.server.handler.unread_bytes > 0
        running.call(running.backend.visitors[0].deliver, served(b"", absent=True))
        assert answers_in(client.answer(), 8) == [
            Absence("", None),
            value(b"V:hello"),
            Failure("app.Boom", "boom"),
            value(b"v", None, -250, 60_000, 7),
            value(b"two", 1.5, None, 60_000, 9),
            Absence("none", 5000),
            value(b"x"),
            value(b"one"),
        ]
        assert running.server.handler.unread_bytes == 0
        client.send(of(b"hello"))
        assert client.answer().body == b"\x0a\x07V:hello"
    assert running.backend.left == []


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_requests_may_come_in_any_pieces_and_behind_each_other(shared_server: Running, size: int) -> None:
    keys = [b"hello", b"", b"now:\r\n\r\n"]
    data = many(keys) + of(b"hello") + many(keys[::-1]) + many(keys, CLOSE)
    with shared_server.connect() as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
        expected = [value(b"V:hello"), value(b""), value(b"\r\n\r\n")]
        assert answers_in(client.answer(), 3) == expected
        assert client.answer().body == b"\x0a\x07V:hello"
        assert answers_in(client.answer(), 3) == expected[::-1]
        assert answers_in(client.answer(), 3) == expected
        assert client.rest() == b""


def test_requests_behind_one_that_waits_wait_too(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(many([b"wait:1", b"hello"]) + many([b"hello"]) + of(b"hello"))
        wait_until(lambda: running.backend.finds == 2)
        running.deliver(b"wait:1", b"one")
        assert answers_in(client.answer(), 2) == [value(b"one"), value(b"V:hello")]
        assert answers_in(client.answer(), 1) == [value(b"V:hello")]
        assert client.answer().body == b"\x0a\x07V:hello"


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (many([b"k"], CLOSE, group=b"n"), text(b"404 Not Found", b"no such group: n\n")),
        (many([b"hello", b"k"], CLOSE, group=b"late"), text(b"404 Not Found", b"no such group: late\n")),
        (many([b"k"], CLOSE, group=b"g/k"), text(b"400 Bad Request", b"bad request\n")),
        (many([b"k"], group=b"%zz"), MALFORMED),
        (many([b"k"], CLOSE, group=b""), text(b"400 Bad Request", b"bad request\n")),
        (
            many([], CLOSE, body=b"\x90"),
            text(
                b"400 Bad Request",
                b"keys: Expected `array` of length >= 1, expected 1 to 256 keys, each of at most 65536 bytes\n",
            ),
        ),
        (
            many([b"wait:1"], CLOSE, b"Mpgroupcache-Timeout: x"),
            text(
                b"400 Bad Request",
                b"Mpgroupcache-Timeout: got b'x', expected milliseconds, at most 999999999999\n",
            ),
        ),
        (
            many([b"hello"], CLOSE, peerwire.INSTANCE + b": " + INSTANCE.hex().encode()),
            text(b"421 Misdirected Request", peerwire.ASKED_ITSELF.body),
        ),
        (
            many([b"hello", b"wait:1", b"bug"], CLOSE),
            text(b"500 Internal Server Error", b"internal error; see this peer's log\n"),
        ),
        (many([b"hello"], CLOSE).replace(b"POST", b"PUT"), text(*REFUSED)),
        (many([b"hello"], CLOSE).replace(batches.KEYS_TYPE, b"text/plain"), text(*REFUSED)),
        (many([b"hello"]).replace(b"Content-Length: 8", b"Transfer-Encoding: chunked"), text(*REFUSED)),
        (many([b"hello"], b"Transfer-Encoding: chunked"), MALFORMED),
        (
            many([b"hello"]).replace(b"Content-Length: 8", b"Content-Length: 262145"),
            unparsed(b"413 Request Entity Too Large"),
        ),
    ],
)
def test_what_is_refused(run_server: Callable[..., Running], request_: bytes, answer: bytes) -> None:
    running = run_server()
    assert running.exchange(request_) == answer
    assert running.server.handler.unread_bytes == 0
    assert set(running.backend.visitors) <= set(running.backend.left)


def test_secrets(run_server: Callable[..., Running]) -> None:
    running = run_server(secret="s3cret")
    assert running.exchange(many([b"hello"], CLOSE)) == text(b"403 Forbidden", peerwire.WRONG_SECRET.body)
    assert running.backend.finds == 0
    with running.connect() as client:
        client.send(many([b"hello"], b"Mpgroupcache-Secret: s3cret"))
        assert answers_in(client.answer(), 1) == [value(b"V:hello")]


def test_each_key_has_its_context(run_server: Callable[..., Running]) -> None:
    running = run_server(context=lambda request: b"%s/%s" % (request.group.encode(), request.key))
    with running.connect() as client:
        client.send(many([b"wait:1", b"wait:2"]))
        wait_until(lambda: len(running.backend.waiting) == 2)
        assert {key: visitor.ctx for key, visitor in running.backend.waiting.items()} == {
            b"wait:1": b"g/wait:1",
            b"wait:2": b"g/wait:2",
        }


# ---- Bounds


def test_as_many_keys_as_there_may_be(shared_server: Running) -> None:
    keys = [b"now:%d" % i for i in range(batches.MAX_KEYS)]
    with shared_server.connect() as client:
        client.send(many(keys))
        assert answers_in(client.answer(), len(keys)) == [value(key[4:]) for key in keys]
        longest = [b"now:" + b"x" * (65_536 - 4)] * 3
        client.send(many(longest))
        assert answers_in(client.answer(), 3) == [value(longest[0][4:])] * 3


def test_large_values_are_asked_for_alone(run_server: Callable[..., Running]) -> None:
    running = run_server()
    most = batches.MAX_VALUE_BYTES
    values = {b"fits": served(bytes(most)), b"large": served(bytes(most + 1))}
    running.call(running.backend.values.update, values)
    with running.connect() as client:
        client.send(many([b"large", b"fits", b"wait:1"]))
        running.deliver(b"wait:1", bytes(most + 1))
        assert answers_in(client.answer(), 3) == [Alone(), value(bytes(most)), Alone()]
        client.send(of(b"large"))
        assert len(client.answer().body) > most


def test_what_is_too_much_together_is_asked_for_alone(run_server: Callable[..., Running]) -> None:
    running = run_server()
    running.call(running.backend.values.update, {b"fits": served(bytes(batches.MAX_VALUE_BYTES))})
    with running.connect() as client:
        client.send(many([b"fits"] * 20 + [b"hello"]))
        answer = client.answer()
        assert len(answer.body) <= batches.MAX_ANSWER_BYTES
        answers = answers_in(answer, 21)
        assert [type(one) for one in answers] == [Value] * 15 + [Alone] * 5 + [Value]


def test_what_all_clients_are_kept_waiting_with_is_limited(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=Limits(unread_bytes=1 << 20))
    running.call(running.backend.values.update, {b"fits": served(bytes(batches.MAX_VALUE_BYTES))})
    with running.connect() as waiting, running.connect() as other:
        waiting.send(many([b"fits"] * 3 + [b"wait:1"]))
        wait_until(lambda: running.backend.waiting)
        assert running.server.handler.unread_bytes > 3 * batches.MAX_VALUE_BYTES
        other.send(many([b"fits"] * 2 + [b"hello"]))
        assert answers_in(other.answer(), 3) == [Alone(), Alone(), value(b"V:hello")]
        running.deliver(b"wait:1", b"one")
        assert len(answers_in(waiting.answer(), 4)) == 4
        assert running.server.handler.unread_bytes == 0
        other.send(many([b"fits"]))
        assert answers_in(other.answer(), 1) == [value(bytes(batches.MAX_VALUE_BYTES))]


# ---- Clients that are slow, or go


def test_what_is_there_is_answered_in_time(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(many([b"wait:1", b"hello", b"wait:2"], TIMEOUT))
        late = Refusal("deadline exceeded: no value within the 0.02 s of Mpgroupcache-Timeout")
        assert answers_in(client.answer(), 3) == [late, value(b"V:hello"), late]
        wait_until(lambda: set(running.backend.left) == set(running.backend.visitors))
        running.deliver(b"wait:1", b"too late")
        client.send(of(b"hello"))
        assert client.answer().body == b"\x0a\x07V:hello"
    assert running.server.handler.errors == {}


def test_visitors_leave_with_their_client(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(many([b"wait:1", b"hello", b"wait:2"]))
        wait_until(lambda: len(running.backend.waiting) == 2)
        running.deliver(b"wait:2", b"two")
    wait_until(lambda: running.backend.left == [running.backend.waiting[b"wait:1"]])
    running.deliver(b"wait:1", b"late")
    assert running.server.handler.unread_bytes == 0


def test_slow_keys_are_let_go_however_busy_they_are(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=replace(SHORT, idle_timeout=1000.0))
    data = many([b"k" * 60_000])
    head = data.index(b"\r\n\r\n") + 4
    with running.connect() as client:
        client.send(data[:head])
        client.sock.settimeout(0.01)
        with contextlib.suppress(ConnectionError):
            for at in range(head, len(data)):
                client.send(data[at : at + 1])
                with contextlib.suppress(TimeoutError):
                    assert client.sock.recv(1) == b""
                    break
    assert running.backend.finds == 0


@pytest.mark.parametrize("before", [b"", of(b"hello")])
def test_keys_that_never_come_are_let_go(run_server: Callable[..., Running], before: bytes) -> None:
    """Also where a whole request came with their head."""
    running = run_server(limits=replace(SHORT, idle_timeout=1000.0))
    data = many([b"\r\n\r\n" * 100])
    for end in (data.index(b"\r\n\r\n") + 4, len(data) - 1):
        with running.connect() as client:
            client.send(before + data[:end])
            assert client.rest() == (found(b"\x0a\x07V:hello") if before else b"")
    assert running.backend.finds == (2 if before else 0)


def test_a_request_under_way_ends_when_the_server_does(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as waiting, running.connect() as slow:
        waiting.send(many([b"wait:1", b"hello"]))
        data = many([b"hello"])
        slow.send(data[:-1])
        wait_until(lambda: running.backend.waiting and len(running.server._connections) == 2)
        wait_until(lambda: any(connection._parser.head_bytes for connection in running.server._connections))
        closing = running.begin_close()
        running.deliver(b"wait:1", b"one")
        slow.send(data[-1:])
        for client, count in ((waiting, 2), (slow, 1)):
            answer = client.answer()
            assert answer.headers[b"Connection"] == b"close"
            assert len(answers_in(answer, count)) == count
            assert client.rest() == b""
    closing.result(PATIENCE)


def test_other_bodies_are_still_not_read(shared_server: Running) -> None:
    request = get(b"/_groupcache/g", b"Content-Type: text/plain", b"Content-Length: 5", method=b"POST")
    assert shared_server.exchange(request + b"abcde" + of(b"hello")) == text(*REFUSED)
