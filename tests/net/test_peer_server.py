"""The peers' server over real sockets: answers as Go's to the byte, order, limits, clients that misbehave, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import ssl
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trustme
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from peerkeys import ODD_KEYS
from workers import wait_until

from mpgroupcache.net import wire
from mpgroupcache.net.addresses import format_address, parse_address
from mpgroupcache.net.connection import Connection, Limits
from mpgroupcache.net.server import PeerServer
from mpgroupcache.net.source import NoSuchGroup, Visitor
from mpgroupcache.net.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 30.0  # s; an answer that takes longer never comes
INSTANCE = bytes(range(16))
DATE = re.compile(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n")
COMMON = b"Mpgroupcache-Instance: " + INSTANCE.hex().encode() + b"\r\nDate: now\r\n"
MALFORMED = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
)
SHORT = Limits(request_timeout=0.2, idle_timeout=0.2, stall_timeout=0.2)


class FakeSource:
    """Values of group "g". Each is in the same memory, which is overwritten at every call, as an arena may do it.

    Keys that begin with "now:" are delivered, with "fail:" failed and with "bug:" not answered but raised within
    ``visit``; "wait:" waits for ``deliver``.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, tuple[bytes, float]] = {b"hello": (b"V:hello", 0.0), b"": (b"", 0.0)}
        self.finds = 0
        self.waiting: dict[bytes, Visitor] = {}
        self.left: list[Visitor] = []
        self._memory = bytearray(4 << 20)

    def find(self, group: str, key: bytes) -> tuple[memoryview, float] | None:
        self._scribble()
        self.finds += 1
        if group not in ("g", "late"):
            raise NoSuchGroup
        if group == "late" or key not in self.values:
            return None
        value, rate = self.values[key]
        self._memory[: len(value)] = value
        return memoryview(self._memory)[: len(value)], rate

    def visit(self, group: str, key: bytes, visitor: Visitor) -> None:
        self._scribble()
        if group == "late":
            raise NoSuchGroup
        what, _, text = key.partition(b":")
        match what:
            case b"now":
                visitor.deliver(text, 0.0)
            case b"fail":
                visitor.fail("app.Boom", text.decode())
            case b"wait":
                self.waiting[key] = visitor
            case _:
                raise RuntimeError("a defect")

    def leave(self, visitor: Visitor) -> None:
        self.left.append(visitor)

    def _scribble(self) -> None:
        self._memory[:64] = b"!" * 64


class Running:
    """A server in a thread of its own."""

    def __init__(self, host: str = "127.0.0.1", **options: Any) -> None:
        self.source = FakeSource()
        self._options = options
        self._host = host
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self._thread.start()
        assert self._started.wait(PATIENCE)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        try:
            self.server = await PeerServer.start(self.source, self._host, 0, instance=INSTANCE, **self._options)
        finally:
            self._started.set()
        await self._stop.wait()
        await self.server.close()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call on the server's loop."""

        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def begin_close(self, timeout: float = PATIENCE) -> Any:
        future = asyncio.run_coroutine_threadsafe(self.server.close(timeout), self.loop)
        wait_until(lambda: self.server.draining)
        return future

    def deliver(self, key: bytes, value: bytes, rate: float = 0.0) -> None:
        wait_until(lambda: key in self.source.waiting)
        self.call(self.source.waiting.pop(key).deliver, value, rate)

    def connect(self) -> Client:
        return Client(socket.create_connection(self.server.addresses[0], PATIENCE))

    def exchange(self, request: bytes) -> bytes:
        """All that comes back until the end of the connection."""
        with self.connect() as client:
            client.send(request)
            return client.rest()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        assert self.server._connections == set()
        assert self.server.unread_bytes == 0
        assert self.complaints == []


class Client:
    """A peer that sends raw bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> Answer:
        """One answer, with the length it says."""
        lines = []
        while (line := self._file.readline()) not in (b"\r\n", b""):
            lines.append(line.removesuffix(b"\r\n"))
        assert lines, "the connection was closed"
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        return Answer(lines[0], headers, self._file.read(int(headers[b"Content-Length"])))

    def rest(self) -> bytes:
        return DATE.sub(b"Date: now\r\n", self._file.read())


class Answer(NamedTuple):
    line: bytes
    headers: dict[bytes, bytes]
    body: bytes


def get(target: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    lines = [b"%s %s HTTP/%s" % (method, target, version), b"Host: peer", *headers, b"", b""]
    return b"\r\n".join(lines)


def of(key: bytes, *headers: bytes, **options: bytes) -> bytes:
    return get(wire.request_target(wire.DEFAULT_BASE_PATH, "g", key), *headers, **options)


def found(body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n" + COMMON
    return head + b"Content-Length: %d\r\n%s\r\n%s" % (len(body), more, body)


def text(status: bytes, body: bytes, own: bytes = b"", more: bytes = b"Connection: close\r\n") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n" % status
    return head + own + COMMON + b"Content-Length: %d\r\n%s\r\n%s" % (len(body), more, body)


CLOSE = b"Connection: close"


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Start servers: ``run(host, **options)``."""
    with contextlib.ExitStack() as stack:

        def start(*args: str, **options: Any) -> Running:
            running = Running(*args, **options)
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One server for the tests that leave it as it was."""
    running = Running()
    yield running
    running.stop()


# ---- Answers


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (of(b"hello", CLOSE), found(bytes.fromhex("0a07563a68656c6c6f"), b"Connection: close\r\n")),
        (of(b"", CLOSE), found(bytes.fromhex("0a00"), b"Connection: close\r\n")),
        (of(b"now:v", CLOSE), found(b"\x0a\x01v", b"Connection: close\r\n")),
        (of(b"hello", b"connection: foo, Close"), found(b"\x0a\x07V:hello", b"Connection: close\r\n")),
        (of(b"hello", CLOSE, method=b"HEAD"), found(b"\x0a\x07V:hello", b"Connection: close\r\n")[:-9]),
        (of(b"hello", CLOSE, method=b"DELETE"), found(b"\x0a\x07V:hello", b"Connection: close\r\n")),
        (of(b"hello", version=b"1.0"), found(b"\x0a\x07V:hello").replace(b"HTTP/1.1", b"HTTP/1.0")),
        (get(b"/_groupcache/g", CLOSE), text(b"400 Bad Request", b"bad request\n")),
        (get(b"/other", CLOSE), text(b"404 Not Found", b"404 page not found\n")),
        (get(b"*", CLOSE, method=b"OPTIONS"), text(b"404 Not Found", b"404 page not found\n")),
        (get(b"peer:80", method=b"CONNECT"), text(b"404 Not Found", b"404 page not found\n")),
        (get(b"/_groupcache/a%20b/k", CLOSE), text(b"404 Not Found", b"no such group: a b\n")),
        (get(b"/_groupcache/%FF/k", CLOSE), text(b"404 Not Found", b"no such group: \xff\n")),
        (get(b"/_groupcache/late/k", CLOSE), text(b"404 Not Found", b"no such group: late\n")),
        (
            of(b"fail:boom", CLOSE),
            text(b"500 Internal Server Error", b"boom\n", b"Mpgroupcache-Load-Error: app.Boom\r\n"),
        ),
        (
            of(b"hello", CLOSE, wire.INSTANCE + b": " + INSTANCE.hex().encode()),
            text(b"421 Misdirected Request", wire.ASKED_ITSELF.body),
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
def test_answers(shared: Running, request_: bytes, answer: bytes) -> None:
    assert shared.exchange(request_) == answer


def test_a_malformed_timeout_is_refused_where_it_counts(shared: Running) -> None:
    answer = shared.exchange(of(b"wait:never", b"Mpgroupcache-Timeout: 1.5", CLOSE))
    body = b"Mpgroupcache-Timeout: got b'1.5', expected milliseconds, at most 999999999999\n"
    assert answer == text(b"400 Bad Request", body)


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=list(ODD_KEYS))
def test_odd_keys(shared: Running, key: bytes) -> None:
    shared.call(shared.source.values.update, {key: (b"odd", 0.0)})
    with shared.connect() as client:
        for _ in range(3):  # the later ones are known
            client.send(of(key))
            assert client.answer().body == b"\x0a\x03odd"
    if key not in (b"hello", b""):
        shared.call(shared.source.values.pop, key)
    else:
        shared.call(shared.source.values.update, FakeSource().values)


def test_the_rate_is_the_only_difference(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as client:
        for rate, more in [(0.0, b""), (1.5, bytes.fromhex("11000000000000f83f")), (-1.0, b""), (float("nan"), b"")]:
            running.call(running.source.values.update, {b"k": (b"v", rate)})
            for request in (of(b"k"), of(b"k", b"Connection: keep-alive")):
                client.send(request)
                answer = client.answer()
                assert answer.body == b"\x0a\x01v" + more
                assert list(answer.headers) == [
                    b"Content-Type",
                    b"Mpgroupcache-Instance",
                    b"Date",
                    b"Content-Length",
                ]


def test_old_clients_may_keep_their_connection(shared: Running) -> None:
    with shared.connect() as client:
        for body in (b"\x0a\x07V:hello", b"\x0a\x07V:hello"):
            client.send(of(b"hello", b"Connection: keep-alive", version=b"1.0"))
            answer = client.answer()
            assert (answer.line, answer.body) == (b"HTTP/1.0 200 OK", body)
            assert answer.headers[b"Connection"] == b"keep-alive"


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
def test_a_body_is_not_read(shared: Running, body: tuple[bytes, bytes]) -> None:
    answer = shared.exchange(of(b"hello", body[0], method=b"POST") + body[1] + of(b"hello"))
    assert answer == found(b"\x0a\x07V:hello", b"Connection: close\r\n")


def test_no_body_may_be_said(shared: Running) -> None:
    answer = shared.exchange(of(b"hello", b"Content-Length: 0", method=b"POST") + of(b"hello", CLOSE))
    assert answer == found(b"\x0a\x07V:hello") + found(b"\x0a\x07V:hello", b"Connection: close\r\n")


def test_a_defect_of_the_source_is_one_client_s(shared: Running, caplog: pytest.LogCaptureFixture) -> None:
    with shared.connect() as client:
        client.send(of(b"bug:"))
        answer = client.answer()
        assert (answer.line, answer.body) == (
            b"HTTP/1.1 500 Internal Server Error",
            b"internal error; see this peer's log\n",
        )
        client.send(of(b"hello"))
        assert client.answer().body == b"\x0a\x07V:hello"
    assert "a defect" in caplog.text
    assert not any(name == wire.LOAD_ERROR for name in answer.headers)


def test_another_base_path(run: Callable[..., Running]) -> None:
    running = run(base_path="/a/b/")
    assert running.exchange(get(b"/a/b/g/hello", CLOSE)).endswith(b"V:hello")
    assert b"404 page not found" in running.exchange(of(b"hello", CLOSE))


def test_secrets(run: Callable[..., Running], caplog: pytest.LogCaptureFixture) -> None:
    running = run(secret="s3cret")
    for headers in ((), (b"Mpgroupcache-Secret: other",)):
        assert running.exchange(of(b"hello", *headers, CLOSE)) == text(b"403 Forbidden", wire.WRONG_SECRET.body)
    with running.connect() as client:
        for _ in range(3):
            client.send(of(b"hello", b"mpgroupcache-secret: s3cret"))
            assert client.answer().body == b"\x0a\x07V:hello"
        client.send(of(b"hello"))
        assert client.answer().line == b"HTTP/1.1 403 Forbidden"
    assert running.server.errors == {403: 3}
    assert caplog.text.count("Mpgroupcache-Secret: got no header, expected this ring's secret") == 1  # not for each


# ---- Order


def test_answers_are_in_order(run: Callable[..., Running]) -> None:
    running = run()
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
    assert running.source.left == []


def test_a_visitor_is_answered_once(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as client:
        client.send(of(b"wait:1"))
        wait_until(lambda: running.source.waiting)
        visitor = running.source.waiting.pop(b"wait:1")
        running.call(visitor.deliver, b"one", 0.0)
        running.call(visitor.deliver, b"two", 0.0)
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
        of(b"hello", b"Connection: keep-alive", version=b"1.0"),
        of(b"k" * 20_000),
        get(b"/_groupcache/n/k"),
        get(b"/_groupcache/g/%zz"),
        get(b"/_groupcache/g/hello world"),
        b"\r\n" + of(b"hello"),
        b"GET /_groupcache/g/hello HTTP/1.1\nHost: a HTTP/1.1\r\nHost: peer\r\n\r\n",
        of(b"hello", CLOSE),
        of(b"hello", b"Content-Length: 3") + b"abc",
        b"nonsense",
        b"GET ",
    ]
)


def answers_to(pieces: list[bytes]) -> tuple[bytes, bool]:
    """What a connection writes if these pieces come, one at a time, and whether it closes."""

    async def serve() -> tuple[bytes, bool]:
        server = PeerServer(FakeSource(), instance=INSTANCE)
        server.value_head = b"HTTP/1.1 200 OK\r\nContent-Length: "
        server.common_headers = b"Content-Length: "
        connection, transport = Connection(server), FakeTransport()
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


# ---- Waiting, and leaving


def test_a_visitor_leaves_in_time(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as client:
        client.send(of(b"wait:1", b"Mpgroupcache-Timeout: 20") + of(b"hello"))
        answer = client.answer()
        assert answer.line == b"HTTP/1.1 504 Gateway Timeout"
        assert answer.body == b"deadline exceeded: no value within the 0.02 s of Mpgroupcache-Timeout\n"
        assert client.answer().body == b"\x0a\x07V:hello"
        visitor = running.source.waiting.pop(b"wait:1")
        assert running.source.left == [visitor]
        running.call(visitor.deliver, b"late", 0.0)
        client.send(of(b"hello", b"Mpgroupcache-Timeout: 20"))
        assert client.answer().body == b"\x0a\x07V:hello"


def test_a_visitor_that_is_answered_does_not_leave(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as client:
        client.send(of(b"wait:1", b"Mpgroupcache-Timeout: 999999999999"))
        running.deliver(b"wait:1", b"one")
        assert client.answer().body == b"\x0a\x03one"
    assert running.source.left == []


@pytest.mark.parametrize("rudely", [False, True])
def test_a_visitor_leaves_with_its_client(run: Callable[..., Running], rudely: bool) -> None:
    running = run()
    with running.connect() as client:
        client.send(of(b"wait:1"))
        wait_until(lambda: running.source.waiting)
        if rudely:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor = running.source.waiting.pop(b"wait:1")
    wait_until(lambda: running.source.left == [visitor])
    running.call(visitor.deliver, b"late", 0.0)


def test_a_client_that_only_stops_sending_has_its_answers(shared: Running) -> None:
    with shared.connect() as client:
        client.send(of(b"hello") * 3)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == found(b"\x0a\x07V:hello") * 3


# ---- Limits


def test_headers_are_limited(run: Callable[..., Running]) -> None:
    running = run(limits=Limits(headers=5, header_bytes=1000))
    too_large = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n"
    too_large += b"Connection: close\r\n\r\n431 Request Header Fields Too Large"
    assert running.exchange(of(b"hello", b"A: 1", b"B: 2", b"C: 3", CLOSE)).endswith(b"V:hello")
    assert running.exchange(of(b"hello", b"A: 1", b"B: 2", b"C: 3", b"D: 4", b"E: 5")) == too_large
    assert running.exchange(b"GET / HTTP/1.1\r\nX: " + b"x" * 400_000) == too_large
    assert running.exchange(b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 60_000) == too_large


def test_targets_are_limited(shared: Running) -> None:
    longest = get(b"/_groupcache/g/" + b"k" * (wire.MAX_TARGET_BYTES - 14), CLOSE)
    expected = b"target: got %d bytes, expected at most %d\n" % (wire.MAX_TARGET_BYTES + 1, wire.MAX_TARGET_BYTES)
    assert shared.exchange(longest) == text(b"414 Request URI Too Long", expected)
    assert b"\r\n\r\n414 Request URI Too Long" in shared.exchange(b"GET /" + b"k" * 400_000)


def test_connections_are_limited(run: Callable[..., Running]) -> None:
    running = run(limits=Limits(connections=2))
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
def test_silent_clients_are_let_go(run: Callable[..., Running], begun: bytes) -> None:
    running = run(limits=SHORT)
    with running.connect() as client:
        client.send(begun)
        answers = client.rest()
        assert answers == (found(b"\x0a\x07V:hello") if begun == of(b"hello") else b"")


def test_a_slow_request_is_let_go_however_busy_it_is(run: Callable[..., Running]) -> None:
    running = run(limits=replace(SHORT, idle_timeout=1000.0))
    with running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\n")
        client.sock.settimeout(0.01)
        with contextlib.suppress(ConnectionError):
            while True:
                client.send(b"X: y\r\n")
                with contextlib.suppress(TimeoutError):
                    assert client.sock.recv(1) == b""
                    break


def test_a_visitor_may_wait_longer_than_an_idle_client(run: Callable[..., Running]) -> None:
    running = run(limits=SHORT)
    with running.connect() as waiting, running.connect() as idle:
        waiting.send(of(b"wait:1"))
        assert idle.rest() == b""
        wait_until(lambda: len(running.server._connections) == 1)
        running.deliver(b"wait:1", b"one")
        assert waiting.answer().body == b"\x0a\x03one"


def test_a_client_that_does_not_read_is_not_served_on(run: Callable[..., Running]) -> None:
    running = run()
    value = random.Random(1).randbytes(1 << 20)
    running.call(running.source.values.update, {b"big": (value, 0.0)})
    count = 100
    with running.connect() as client:
        client.send(of(b"big") * count)
        wait_until(lambda: running.server.unread_bytes)
        before = running.source.finds
        with running.connect() as other:
            other.send(of(b"hello"))
            assert other.answer().body == b"\x0a\x07V:hello"
        assert running.source.finds == before + 1
        assert before < count / 2  # what the sockets' buffers take
        assert running.server.unread_bytes < 2 << 20
        for _ in range(count):
            assert client.answer().body[4:] == value
    assert running.source.finds == count + 1


@pytest.mark.parametrize("closing", [b"", CLOSE])
def test_a_client_that_never_reads_is_let_go(run: Callable[..., Running], closing: bytes) -> None:
    running = run(limits=SHORT)
    running.call(running.source.values.update, {b"big": (bytes(4 << 20), 0.0)})
    with running.connect() as client:
        client.send(of(b"big", closing or b"X: y") * 10)
        wait_until(lambda: running.server.unread_bytes)
        wait_until(lambda: not running.server._connections)
        with contextlib.suppress(ConnectionError):
            client.rest()


def test_what_all_clients_have_not_read_is_limited(run: Callable[..., Running]) -> None:
    running = run(limits=Limits(unread_bytes=1 << 20))
    running.call(running.source.values.update, {b"big": (bytes(4 << 20), 0.0)})
    with running.connect() as lazy, running.connect() as client:
        lazy.send(of(b"big") * 10)
        wait_until(lambda: running.server.unread_bytes)
        client.send(of(b"big"))
        answer = client.answer()
        assert answer.line == b"HTTP/1.1 503 Service Unavailable"
        assert answer.body.startswith(b"busy: clients have ")
        client.send(of(b"hello"))
        assert client.answer().body == b"\x0a\x07V:hello"


def test_endless_requests_leave_others_their_turn(run: Callable[..., Running]) -> None:
    running = run()
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
        wait_until(lambda: running.source.finds > 5000)
        with running.connect() as client:
            for _ in range(20):
                before = running.source.finds
                client.send(of(b"hello"))
                assert client.answer().body == b"\x0a\x07V:hello"
                assert running.source.finds - before < 20_000
        stopping.set()
        flood.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)


def test_random_bytes_never_stop_the_server(shared: Running) -> None:
    chance = random.Random(7)
    for _ in range(150):
        with shared.connect() as client, contextlib.suppress(ConnectionError):
            whole = of(b"hello", b"Accept: */*") + of(b"now:x")
            noise = bytearray(whole if chance.random() < 0.7 else chance.randbytes(200))
            for _ in range(chance.randrange(1, 6)):
                noise[chance.randrange(len(noise))] = chance.randrange(256)
            client.send(bytes(noise))
            client.sock.shutdown(socket.SHUT_WR)
            client.rest()
    assert shared.exchange(of(b"hello", CLOSE)).endswith(b"V:hello")


# ---- The end


def test_requests_under_way_end_in_order(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as idle, running.connect() as waiting, running.connect() as slow:
        waiting.send(of(b"wait:1") + of(b"hello"))
        slow.send(of(b"hello")[:-1])
        wait_until(lambda: running.source.waiting and len(running.server._connections) == 3)
        closing = running.begin_close()
        assert idle.rest() == b""
        with pytest.raises(ConnectionError):
            socket.create_connection(waiting.sock.getpeername())
        running.deliver(b"wait:1", b"one")
        assert waiting.rest() == found(b"\x0a\x03one", b"Connection: close\r\n")
        slow.send(b"\n")
        assert slow.rest() == found(b"\x0a\x07V:hello", b"Connection: close\r\n")
    closing.result(PATIENCE)


def test_requests_under_way_have_so_much_time(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as client:
        client.send(of(b"wait:1"))
        wait_until(lambda: running.source.waiting)
        running.begin_close(0.01).result(PATIENCE)
        with contextlib.suppress(ConnectionError):
            assert client.rest() == b""
    assert running.source.left == [running.source.waiting[b"wait:1"]]


# ---- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def files(directory: Path, ca: trustme.CA, name: str) -> tuple[str, str, str]:
    """(certificate, key, authority)"""
    issued = ca.issue_cert(name)
    paths = [str(directory / f"{name}.{end}") for end in ("cert", "key", "ca")]
    issued.cert_chain_pems[0].write_to_path(paths[0])
    issued.private_key_pem.write_to_path(paths[1])
    ca.cert_pem.write_to_path(paths[2])
    return paths[0], paths[1], paths[2]


def tls_exchange(running: Running, context: ssl.SSLContext, request: bytes) -> bytes:
    with (
        context.wrap_socket(
            socket.create_connection(running.server.addresses[0], PATIENCE), server_hostname="localhost"
        ) as sock,
        Client(sock) as client,
    ):
        client.send(request)
        return client.rest()


def test_tls(run: Callable[..., Running], tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    running = run(ssl_context=server_context(cert, key))
    value = random.Random(1).randbytes(3 << 20)
    running.call(running.source.values.update, {b"big": (value, 0.0)})
    context = client_context(ca)
    assert tls_exchange(running, context, of(b"big") * 3 + of(b"hello", CLOSE)).count(value) == 3
    with pytest.raises(ssl.SSLCertVerificationError):
        tls_exchange(running, client_context(), of(b"hello", CLOSE))
    assert running.exchange(of(b"hello")) == b""  # without TLS
    assert tls_exchange(running, context, of(b"hello", CLOSE)).endswith(b"V:hello")


def test_mutual_tls(
    run: Callable[..., Running], tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    running = run(ssl_context=server_context(cert, key, ca))
    (tmp_path / "other").mkdir()
    stranger = files(tmp_path / "other", trustme.CA(), "stranger")
    assert tls_exchange(running, client_context(ca, cert, key), of(b"hello", CLOSE)).endswith(b"V:hello")
    for context in (client_context(ca), client_context(ca, *stranger[:2])):
        with contextlib.suppress(OSError):  # in TLS 1.3 the client's handshake is over before the server has refused it
            assert tls_exchange(running, context, of(b"hello", CLOSE)) == b""
    wait_until(lambda: not running.server._connections)
    assert "no connection: [SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE]" in caplog.text
    assert running.source.finds == 1


def test_a_handshake_has_to_come(run: Callable[..., Running], tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, _ = files(tmp_path, authority, "localhost")
    running = run(ssl_context=server_context(cert, key), limits=SHORT)
    with running.connect() as client:
        assert client.rest() == b""
    wait_until(lambda: not running.server._connections)


def test_tls_files_that_are_refused(tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    _, other, _ = files(tmp_path, authority, "other")
    bad = tmp_path / "bad"
    bad.write_text("-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")
    for arguments, message in [
        ((cert, other, None), f"--tls-key: {other} is not the key of the certificate in --tls-cert {cert}"),
        (("/missing", key, None), "--tls-cert: /missing: No such file or directory"),
        ((key, key, None), f"--tls-cert: got {key}, which holds no PEM block of that kind, expected a certificate"),
        ((cert, cert, None), f"--tls-key: got {cert}, which holds no PEM block of that kind, expected a private key"),
        (
            (cert, key, key),
            f"--tls-ca: got {key}, which holds no PEM block of that kind, expected certificates of auth",
        ),
        ((cert, key, str(bad)), f"--tls-ca {bad}: "),
        ((str(bad), key, None), f"--tls-cert {bad}, --tls-key {key}: "),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            server_context(*arguments)
    with pytest.raises(ValueError, match="--tls-key: got nothing, expected a file, since --tls-cert is given"):
        client_context(ca, cert)
    with pytest.raises(ValueError, match="--tls-cert: got nothing, expected a file, since --tls-key is given"):
        client_context(ca, None, key)


# ---- Addresses


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("[::1]:8080", "::1", 8080),
        (":0", "", 0),
        ("name.example:65535", "name.example", 65535),
    ],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert parse_address(address) == (host, port)
    assert format_address(host, port) == address


@pytest.mark.parametrize(
    "address", ["", "host", "host:", "::1:80", "[::1]", "[host]:80", "h:65536", "h:-1", "h:+1", "[::1:80", "h:\u0661"]
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--listen: got {address!r}, expected HOST:PORT, such as")):
        parse_address(address)


def test_bind_errors_name_the_option(shared: Running) -> None:
    async def start(host: str, port: int) -> None:
        await PeerServer.start(FakeSource(), host, port, instance=INSTANCE)

    port = shared.server.port
    with pytest.raises(OSError, match=f"--listen 127.0.0.1:{port}: Address already in use"):
        uvloop.run(start("127.0.0.1", port))
    with pytest.raises(OSError, match="--listen 192.0.2.1:0: Cannot assign requested address"):
        uvloop.run(start("192.0.2.1", 0))
    with pytest.raises(OSError, match="--listen nowhere.invalid:1: "):
        uvloop.run(start("nowhere.invalid", 1))


@pytest.mark.parametrize("host", ["", "localhost"])
def test_all_addresses_of_a_host_have_one_port(run: Callable[..., Running], host: str) -> None:
    running = run(host)
    assert {port for _, port in running.server.addresses} == {running.server.port}
    assert running.exchange(of(b"hello", CLOSE)).endswith(b"V:hello")
    listed = ", ".join(format_address(*address) for address in running.server.addresses)
    assert repr(running.server).startswith(f"<peer server on {listed}, ")
