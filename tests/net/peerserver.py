"""The peers' server in a thread of its own, with values that need no arena, and a client that sends it raw bytes."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop
from children import PATIENCE
from msgspec import structs
from workers import wait_until

from mpgroupcache.net import batches, peerwire
from mpgroupcache.net.backend import NoSuchGroup, Served, Visitor
from mpgroupcache.net.server import PeerServer
from mpgroupcache.net.serverlimits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

INSTANCE = bytes(range(16))
DATE = re.compile(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n")
ABILITIES = b"Mpgroupcache-Abilities: absence, ages, batch, load-error, rate, timeout\r\n"
COMMON = b"Mpgroupcache-Instance: " + INSTANCE.hex().encode() + b"\r\n" + ABILITIES + b"Date: now\r\n"
CLOSE = b"Connection: close"
SHORT = Limits(request_timeout=0.2, idle_timeout=0.2, stall_timeout=0.2)


def served(
    value: bytes,
    rate: float = 0.0,
    fresh: float | None = None,
    dead: float | None = None,
    version: int | None = None,
    absent: bool = False,
) -> Served:
    return Served(value, rate, fresh, dead, version, absent)


class FakeBackend:
    """Values of group "g". Each is in the same memory, which is overwritten at every call, as an arena may do it.

    Keys that begin with "now:" are delivered, with "fail:" failed and with "bug:" not answered but raised within
    ``visit``; "wait:" waits for ``deliver``.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, Served] = {
            b"hello": served(b"V:hello"),
            b"": served(b""),
            b"aged": served(b"v", 0.0, -0.25, 60.0, 7),
            b"absent": served(b"none", 0.0, 5.0, 5.0, absent=True),
        }
        self.finds = 0
        self.found_at: dict[bytes, int] = {}  # which find was a key's last
        self.waiting: dict[bytes, Visitor] = {}
        self.visitors: list[Visitor] = []  # that were not answered at once
        self.left: list[Visitor] = []
        self._memory = bytearray(4 << 20)

    def find(self, group: str, key: bytes) -> Served | None:
        self._scribble()
        self.finds += 1
        self.found_at[key] = self.finds
        if group not in ("g", "late"):
            raise NoSuchGroup
        if group == "late" or key not in self.values:
            return None
        found = self.values[key]
        size = len(found.value)
        self._memory[:size] = found.value
        return structs.replace(found, value=memoryview(self._memory)[:size])

    def visit(self, group: str, key: bytes, visitor: Visitor) -> None:
        self._scribble()
        if group == "late":
            raise NoSuchGroup
        what, _, text = key.partition(b":")
        match what:
            case b"now":
                visitor.deliver(served(text))
            case b"fail":
                visitor.fail("app.Boom", text.decode())
            case b"wait":
                self.waiting[key] = visitor
                self.visitors.append(visitor)
            case _:
                raise RuntimeError("a defect")

    def leave(self, visitor: Visitor) -> None:
        self.left.append(visitor)

    def _scribble(self) -> None:
        self._memory[:64] = b"!" * 64


class Running:
    """A server in a thread of its own."""

    def __init__(self, host: str = "127.0.0.1", **options: Any) -> None:
        self.backend = FakeBackend()
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
            self.server = await PeerServer.start(self.backend, self._host, 0, instance=INSTANCE, **self._options)
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
        wait_until(lambda: self.server.handler.draining)
        return future

    def deliver(self, key: bytes, value: bytes, *args: Any) -> None:
        """``args``: as `served` has them."""
        wait_until(lambda: key in self.backend.waiting)
        self.call(self.backend.waiting.pop(key).deliver, served(value, *args))

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
        assert self.server.handler.unread_bytes == 0
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


def unparsed(status: bytes, more: bytes = b"") -> bytes:
    """What is answered before there is a request."""
    head = b"HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n" % status
    return head + ABILITIES + b"\r\n" + status + more


MALFORMED = unparsed(b"400 Bad Request")


def get(target: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    lines = [b"%s %s HTTP/%s" % (method, target, version), b"Host: peer", *headers, b"", b""]
    return b"\r\n".join(lines)


def of(key: bytes, *headers: bytes, **options: bytes) -> bytes:
    return get(peerwire.request_target(peerwire.DEFAULT_BASE_PATH, "g", key), *headers, **options)


def found(body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n" + COMMON
    return head + b"Content-Length: %d\r\n%s\r\n%s" % (len(body), more, body)


def many(keys: list[bytes], *headers: bytes, group: bytes = b"g", body: bytes | None = None) -> bytes:
    """A request for many keys; ``body``: another than theirs."""
    body = batches.encode_keys(keys) if body is None else body
    own = (b"Content-Type: " + batches.KEYS_TYPE, b"Content-Length: %d" % len(body))
    return get(b"/_groupcache/" + group, *own, *headers, method=b"POST") + body


REFUSED = (b"405 Method Not Allowed", b"Method Not Allowed\n", b"Allow: GET, HEAD\r\n")
"""What is said to other methods: as `text` takes it."""


def text(status: bytes, body: bytes, own: bytes = b"", more: bytes = b"Connection: close\r\n") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n" % status
    return head + own + COMMON + b"Content-Length: %d\r\n%s\r\n%s" % (len(body), more, body)
