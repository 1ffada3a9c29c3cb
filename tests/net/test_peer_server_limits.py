"""The peers' server under clients that wait, leave or misbehave: what is limited, and how it ends."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from children import PATIENCE
from peerserver import CLOSE, SHORT, Client, Running, found, get, of, served, text, unparsed
from workers import wait_until

from mpgroupcache.net import peerwire
from mpgroupcache.net.serverlimits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable


# ---- Waiting, and leaving


def test_a_visitor_leaves_in_time(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(of(b"wait:1", b"Mpgroupcache-Timeout: 20") + of(b"hello"))
        answer = client.answer()
        assert answer.line == b"HTTP/1.1 504 Gateway Timeout"
        assert answer.body == b"deadline exceeded: no value within the 0.02 s of Mpgroupcache-Timeout\n"
        assert client.answer().body == b"\x0a\x07V:hello"
        visitor = running.backend.waiting.pop(b"wait:1")
        assert running.backend.left == [visitor]
        running.call(visitor.deliver, served(b"late"))
        client.send(of(b"hello", b"Mpgroupcache-Timeout: 20"))
        assert client.answer().body == b"\x0a\x07V:hello"


def test_a_visitor_that_is_answered_does_not_leave(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(of(b"wait:1", b"Mpgroupcache-Timeout: 999999999999"))
        running.deliver(b"wait:1", b"one")
        assert client.answer().body == b"\x0a\x03one"
    assert running.backend.left == []


@pytest.mark.parametrize("rudely", [False, True])
def test_a_visitor_leaves_with_its_client(run_server: Callable[..., Running], rudely: bool) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(of(b"wait:1"))
        wait_until(lambda: running.backend.waiting)
        if rudely:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor = running.backend.waiting.pop(b"wait:1")
    wait_until(lambda: running.backend.left == [visitor])
    running.call(visitor.deliver, served(b"late"))


def test_a_client_that_only_stops_sending_has_its_answers(shared_server: Running) -> None:
    with shared_server.connect() as client:
        client.send(of(b"hello") * 3)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == found(b"\x0a\x07V:hello") * 3


# ---- Limits


def test_headers_are_limited(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=Limits(headers=5, header_bytes=1000))
    too_large = unparsed(b"431 Request Header Fields Too Large")
    assert running.exchange(of(b"hello", b"A: 1", b"B: 2", b"C: 3", CLOSE)).endswith(b"V:hello")
    assert running.exchange(of(b"hello", b"A: 1", b"B: 2", b"C: 3", b"D: 4", b"E: 5")) == too_large
    assert running.exchange(of(b"hello", *[b"A: 1"] * 5)) == too_large  # of one name, too
    assert running.exchange(of(b"hello", b"A: " + b"x" * 600, b"B: " + b"x" * 600)) == too_large
    with running.connect() as client:  # before the head has come to its end
        client.send(b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 7)
        assert client.rest() == too_large
    assert running.exchange(b"GET / HTTP/1.1\r\nX: " + b"x" * 400_000) == too_large
    assert running.exchange(b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 60_000) == too_large


def test_targets_are_limited(shared_server: Running) -> None:
    longest = get(b"/_groupcache/g/" + b"k" * (peerwire.MAX_TARGET_BYTES - 14), CLOSE)
    expected = b"target: got %d bytes, expected at most %d\n" % (
        peerwire.MAX_TARGET_BYTES + 1,
        peerwire.MAX_TARGET_BYTES,
    )
    assert shared_server.exchange(longest) == text(b"414 Request URI Too Long", expected)
    assert shared_server.exchange(b"GET /" + b"k" * 400_000) == unparsed(b"414 Request URI Too Long")


def test_connections_are_limited(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=Limits(connections=2))
    with running.connect() as one:
        with running.connect() as two:
            for client in (one, two):
                client.send(of(b"hello"))
                assert client.answer().body == b"\x0a\x07V:hello"
            with running.connect() as three:
                assert three.rest() == b""
            assert running.server.refused == 1
        wait_until(lambda: len(running.server._connections) == 1)
        assert running.exchange(of(b"hello", CLOSE)).endswith(b"V:hello")


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nHost: p", of(b"hello")])
def test_silent_clients_are_let_go(run_server: Callable[..., Running], begun: bytes) -> None:
    running = run_server(limits=SHORT)
    with running.connect() as client:
        client.send(begun)
        answers = client.rest()
        assert answers == (found(b"\x0a\x07V:hello") if begun == of(b"hello") else b"")


def test_a_slow_request_is_let_go_however_busy_it_is(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=replace(SHORT, idle_timeout=1000.0, headers=1 << 20))
    with running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\n")
        client.sock.settimeout(0.01)
        with contextlib.suppress(ConnectionError):
            while True:
                client.send(b"X: y\r\n")
                with contextlib.suppress(TimeoutError):
                    assert client.sock.recv(1) == b""
                    break


def test_a_head_behind_a_request_is_let_go_as_soon(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=replace(SHORT, idle_timeout=1000.0))
    with running.connect() as client:
        client.send(of(b"hello") + b"GET / HT")
        assert client.rest().endswith(b"V:hello")


def test_a_body_without_end_is_let_go(run_server: Callable[..., Running]) -> None:
    """However fast it comes: it is not read, and shows no life."""
    running = run_server()
    with running.connect() as client:
        client.send(of(b"hello", b"Content-Length: 1000000000"))
        assert client.rest().endswith(b"V:hello")
        with contextlib.suppress(ConnectionError):
            wait_until(lambda: client.send(b"body") or not running.server._connections, "the end of the connection")
        wait_until(lambda: not running.server._connections)


def test_a_visitor_may_wait_longer_than_an_idle_client(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=SHORT)
    with running.connect() as waiting, running.connect() as idle:
        waiting.send(of(b"wait:1"))
        assert idle.rest() == b""
        wait_until(lambda: len(running.server._connections) == 1)
        running.deliver(b"wait:1", b"one")
        assert waiting.answer().body == b"\x0a\x03one"


def test_a_client_that_does_not_read_is_not_served_on(run_server: Callable[..., Running]) -> None:
    running = run_server()
    value = random.Random(1).randbytes(1 << 20)
    running.call(running.backend.values.update, {b"big": served(value)})
    count = 100
    with running.connect() as client:
        client.send(of(b"big") * count)
        wait_until(lambda: running.server.handler.unread_bytes)
        before = running.backend.finds
        with running.connect() as other:
            other.send(of(b"hello"))
            assert other.answer().body == b"\x0a\x07V:hello"
        assert running.backend.finds == before + 1
        assert before < count / 2  # what the sockets' buffers take
        assert running.server.handler.unread_bytes < 2 << 20
        for _ in range(count):
            assert client.answer().body[4:] == value
    assert running.backend.finds == count + 1


@pytest.mark.parametrize("closing", [b"", CLOSE])
def test_a_client_that_never_reads_is_let_go(run_server: Callable[..., Running], closing: bytes) -> None:
    running = run_server(limits=SHORT)
    running.call(running.backend.values.update, {b"big": served(bytes(4 << 20))})
    with running.connect() as client:
        client.send(of(b"big", closing or b"X: y") * 10)
        wait_until(lambda: running.server.handler.unread_bytes)
        wait_until(lambda: not running.server._connections)
        with contextlib.suppress(ConnectionError):
            client.rest()


def test_values_are_limited(run_server: Callable[..., Running]) -> None:
    """Cached ones, and those that are loaded; the connection goes on."""
    running = run_server(limits=Limits(value_bytes=10))
    running.call(running.backend.values.update, {b"fits": served(bytes(10)), b"large": served(bytes(11))})
    for key in (b"large", b"now:" + b"x" * 11):
        answers = running.exchange(of(key) + of(b"fits", CLOSE))
        assert answers.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"value: got 11 bytes, expected at most 10; load it where it is needed\n" in answers
        assert answers.endswith(b"\x0a\x0a" + bytes(10))


def test_what_all_clients_have_not_read_is_limited(run_server: Callable[..., Running]) -> None:
    running = run_server(limits=Limits(unread_bytes=1 << 20))
    running.call(running.backend.values.update, {b"big": served(bytes(4 << 20))})
    with running.connect() as lazy, running.connect() as client:
        lazy.send(of(b"big") * 10)
        wait_until(lambda: running.server.handler.unread_bytes)
        client.send(of(b"big"))
        answer = client.answer()
        assert answer.line == b"HTTP/1.1 503 Service Unavailable"
        assert answer.body.startswith(b"busy: clients have ")
        client.send(of(b"hello"))
        assert client.answer().body == b"\x0a\x07V:hello"


def test_endless_requests_leave_others_their_turn(run_server: Callable[..., Running]) -> None:
    running = run_server()
    running.call(running.backend.values.update, {b"mine": served(b"V:mine")})
    stopping = threading.Event()

    def send_all(client: Client) -> None:
        with contextlib.suppress(OSError):
            while not stopping.is_set():
                client.send(of(b"hello") * 1000)

    def read_all(client: Client) -> None:
        with contextlib.suppress(OSError):
            while client.sock.recv(1 << 16):
                pass

    with running.connect() as flood:
        threads = [threading.Thread(target=target, args=(flood,)) for target in (send_all, read_all)]
        for thread in threads:
            thread.start()
        wait_until(lambda: running.backend.finds > 5000)
        with running.connect() as client:
            for _ in range(20):
                before = running.backend.finds
                client.send(of(b"mine"))
                assert client.answer().body == b"\x0a\x06V:mine"
                assert running.backend.found_at[b"mine"] - before < 20_000  # when this thread sees it says nothing
        stopping.set()
        flood.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)


def test_random_bytes_never_stop_the_server(shared_server: Running) -> None:
    chance = random.Random(7)
    for _ in range(150):
        with shared_server.connect() as client, contextlib.suppress(ConnectionError):
            whole = of(b"hello", b"Accept: */*") + of(b"now:x")
            noise = bytearray(whole if chance.random() < 0.7 else chance.randbytes(200))
            for _ in range(chance.randrange(1, 6)):
                noise[chance.randrange(len(noise))] = chance.randrange(256)
            client.send(bytes(noise))
            client.sock.shutdown(socket.SHUT_WR)
            client.rest()
    assert shared_server.exchange(of(b"hello", CLOSE)).endswith(b"V:hello")


# ---- The end


def test_requests_under_way_end_in_order(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as idle, running.connect() as waiting, running.connect() as slow:
        waiting.send(of(b"wait:1") + of(b"hello"))
        slow.send(of(b"hello")[:-1])
        wait_until(lambda: running.backend.waiting and len(running.server._connections) == 3)
        closing = running.begin_close()
        assert idle.rest() == b""
        with pytest.raises(ConnectionError):
            socket.create_connection(waiting.sock.getpeername())
        running.deliver(b"wait:1", b"one")
        assert waiting.rest() == found(b"\x0a\x03one", b"Connection: close\r\n")
        slow.send(b"\n")
        assert slow.rest() == found(b"\x0a\x07V:hello", b"Connection: close\r\n")
    closing.result(PATIENCE)


def test_requests_under_way_have_so_much_time(run_server: Callable[..., Running]) -> None:
    running = run_server()
    with running.connect() as client:
        client.send(of(b"wait:1"))
        wait_until(lambda: running.backend.waiting)
        running.begin_close(0.01).result(PATIENCE)
        with contextlib.suppress(ConnectionError):
            assert client.rest() == b""
    assert running.backend.left == [running.backend.waiting[b"wait:1"]]
