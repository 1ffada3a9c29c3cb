"""Peers that behave as a test says: raw servers that read requests and answer with any bytes, or do not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeAlias

import pytest
import uvloop
from children import PATIENCE

from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.outcomes import Outcome, Unreached
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.net.peerwire import CONTENT_TYPE, response_head

INSTANCE = bytes(range(16))
BAD_TIMEOUT = 0.25  # s; the timeout of tests in which it passes
TYPE = b"Content-Type: " + CONTENT_TYPE + b"\r\n"


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine a test that runs on uvloop, and on asyncio's own loop."""

    def running(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**fixtures))

    functools.update_wrapper(running, test)
    signature = inspect.signature(test)
    loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    running.__signature__ = signature.replace(parameters=[loop, *signature.parameters.values()])  # type: ignore[attr-defined]
    loops = [uvloop.new_event_loop, asyncio.new_event_loop]
    return pytest.mark.parametrize("new_loop", loops, ids=["uvloop", "asyncio"])(running)


class Request(NamedTuple):
    target: bytes
    headers: dict[bytes, bytes]  # names in small letters
    connection: int  # the number of its connection
    method: bytes
    body: bytes


Answer: TypeAlias = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def message(value: bytes) -> bytes:
    return b"".join((response_head(len(value))[0], value))


def response(body: bytes, status: bytes = b"200 OK", headers: bytes = TYPE) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n" % (
        TYPE,
        b"".join([b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]),
    )


def value_of(key: bytes) -> bytes:
    return b"V:" + key


async def well(request: Request, writer: asyncio.StreamWriter) -> None:
    """Answer as a peer does: the value is made of the target's last part."""
    if request.target == b"/_groupcache/":
        writer.write(response(b"bad request\n", b"400 Bad Request", b""))
    else:
        writer.write(response(message(value_of(request.target.rpartition(b"/")[2]))))


async def never(request: Request, writer: asyncio.StreamWriter) -> None:
    """Accept, and say nothing."""


def saying(answer: bytes, close: bool = False) -> Answer:
    """Answer each request with these bytes."""

    async def say(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if close:
            writer.close()

    return say


class FakePeer:
    """A server on a port of its own. ``answer`` may be changed while it serves."""

    def __init__(self, answer: Answer = well, host: str = "127.0.0.1") -> None:
        self.answer = answer
        self.host = host
        self.requests: list[Request] = []
        self.connections = 0
        self.writers: dict[int, asyncio.StreamWriter] = {}  # of connections that are open
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        """Serve, at the former port if there was one."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=context, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and reset those that are open."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in list(self.writers.values()):
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        number = self.connections
        self.writers[number] = writer
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
                headers = dict(line.lower().split(b": ", 1) for line in lines)
                method, target, _ = line.split(b" ")
                body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
                request = Request(target, headers, number, method, body)
                self.requests.append(request)
                await self.answer(request, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            del self.writers[number]
            writer.transport.abort()


class Fixture:
    """A fake peer and a client that asks it."""

    def __init__(self, peer: FakePeer, client: PeerClient) -> None:
        self.peer, self.client = peer, client

    async def fetch(self, key: bytes = b"k", group: str = "g") -> Outcome:
        return await fetch(self.client, key, group)


async def fetch(client: PeerClient, key: bytes = b"k", group: str = "g") -> Outcome:
    """Fetch, and see that there is one outcome."""
    outcomes: list[Outcome] = []
    done = asyncio.Event()

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        done.set()

    client.fetch(group, key, take)
    await asyncio.wait_for(done.wait(), PATIENCE)
    assert len(outcomes) == 1
    return outcomes[0]


async def fetch_many(client: PeerClient, keys: Sequence[bytes], group: str = "g") -> list[Outcome]:
    """Fetch many keys, and see that each has one outcome."""
    outcomes: dict[bytes, list[Outcome]] = {key: [] for key in keys}
    done = asyncio.Event()

    def take(key: bytes, outcome: Outcome) -> None:
        outcomes[key].append(outcome)
        if all(outcomes.values()):
            done.set()

    client.fetch_many(group, keys, take)
    await asyncio.wait_for(done.wait(), PATIENCE)
    assert {len(got) for got in outcomes.values()} == {1}
    return [outcomes[key][0] for key in keys]


def options(**changes: Any) -> PeerOptions:
    return PeerOptions(self_url="http://self:1", instance=INSTANCE, **{"request_timeout": PATIENCE, **changes})


@contextlib.asynccontextmanager
async def fake_peer(
    answer: Answer = well, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[FakePeer]:
    peer = FakePeer(answer, host)
    await peer.start(context)
    try:
        yield peer
    finally:
        await peer.stop()


@contextlib.asynccontextmanager
async def asking(answer: Answer = well, **changes: Any) -> AsyncIterator[Fixture]:
    """A fake peer and its client; at the end nothing is left of either."""
    async with fake_peer(answer) as peer:
        client = PeerClient(f"http://127.0.0.1:{peer.port}", options(**changes), jitter=lambda: 0.0)
        try:
            yield Fixture(peer, client)
        finally:
            await client.close()
            assert not client._connections
            assert not client._exchanges


async def until(condition: Callable[[], object]) -> None:
    """Wait until the loop's other work made something true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


def reason(outcome: Outcome) -> str:
    """Why a peer was not reached."""
    assert isinstance(outcome, Unreached)
    return outcome.reason
