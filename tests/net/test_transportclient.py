"""A peer that is asked through an application's own transport."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from email.message import Message
from typing import Any

from workers import PATIENCE

from mpgroupcache.net import peerwire
from mpgroupcache.net.outcomes import Fetched, Outcome, OwnerError, Unreached
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.net.transportclient import TransportClient

URL = "http://10.0.0.2:8080"
VALUE = peerwire.response_head(1)[0] + b"v"


class Response(io.BytesIO):
    url = ""

    def __init__(self, body: bytes = VALUE, status: int = 200, **headers: str) -> None:
        super().__init__(body)
        self.status = status
        self.headers = Message()
        usual = {"Content-Type": "application/x-protobuf", "Content-Length": str(len(body))}
        for name, text in (usual | headers).items():
            self.headers[name] = text


class Opener:
    """Answers as a test says; it keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[urllib.request.Request] = []
        self.answer: Any = Response

    def open(self, request: urllib.request.Request, *, timeout: float) -> Any:
        self.requests.append(request)
        response = self.answer()
        if response is not None and not response.url:
            response.url = request.full_url
        return response


def client(opener: Opener, **options: Any) -> TransportClient:
    made = PeerOptions(self_url="http://10.0.0.1:8080", instance=bytes(16), **options)
    return TransportClient(URL, made, lambda ctx: opener, jitter=lambda: 0.0)


async def fetch(peer: TransportClient, key: bytes = b"k") -> Outcome:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    peer.fetch("g", key, outcome.set_result)
    return await asyncio.wait_for(outcome, PATIENCE)


def test_what_is_asked_and_what_answers_mean() -> None:
    async def run() -> None:
        opener = Opener()
        peer = client(opener, secret="secret", max_response_bytes=100)
        assert peer.abilities is None
        assert await fetch(peer, b"a/\xff") == Fetched(b"v", None)
        [request] = opener.requests
        assert request.full_url == f"{URL}/_groupcache/g/a%2F%FF"
        assert request.headers["Mpgroupcache-secret"] == "secret"
        opener.answer = lambda: Response(b"x" * 101)
        assert "more than 100 B" in str(await fetch(peer))
        opener.answer = lambda: Response(b"boom\n", 500, **{peerwire.LOAD_ERROR.decode(): "app.Boom"})
        assert await fetch(peer) == OwnerError("app.Boom", "boom")
        assert peer.abilities == set()
        opener.answer = lambda: Response(**{peerwire.ABILITIES.decode(): "rate"})
        assert await fetch(peer) == Fetched(b"v", None)
        assert peer.abilities == {peerwire.Ability.RATE}
        assert repr(peer) == f"<TransportClient {URL}: 0 requests under way, abilities rate>"

        def raise_error() -> None:
            headers = Message()
            headers["Content-Length"] = "16"
            url = opener.requests[-1].full_url
            raise urllib.error.HTTPError(url, 404, "Not Found", headers, io.BytesIO(b"no such group: g"))

        opener.answer = raise_error
        outcome = await fetch(peer)
        assert isinstance(outcome, Unreached)
        assert "answered 404: no such group: g" in outcome.reason
        assert peer.available
        assert peer.under_way == 0
        await peer.close()
        assert isinstance(await fetch(peer), Unreached)

    asyncio.run(run())


def test_a_dead_peer_is_asked_once_until_it_answers_a_probe() -> None:
    async def run() -> None:
        opener = Opener()
        peer = client(opener)

        def refuse() -> None:
            raise ConnectionRefusedError("refused")

        opener.answer = refuse
        for _ in range(10):
            outcome = await fetch(peer)
            assert isinstance(outcome, Unreached)
            assert "refused" in outcome.reason
        assert len(opener.requests) == 1
        opener.answer = lambda: Response(b"bad request\n", 400, **{peerwire.ABILITIES.decode(): "timeout"})
        async with asyncio.timeout(PATIENCE):
            while not peer.available:
                await asyncio.sleep(0.01)
        assert opener.requests[-1].full_url == f"{URL}/_groupcache/"
        assert peer.abilities == {peerwire.Ability.TIMEOUT}
        opener.answer = Response
        assert await fetch(peer) == Fetched(b"v", None)
        await peer.close()

    asyncio.run(run())


def test_a_transport_that_hangs() -> None:
    async def run() -> None:
        released = threading.Event()
        opener = Opener()
        opener.answer = lambda: released.wait(PATIENCE) and Response()
        peer = client(opener, request_timeout=0.05)
        assert "no answer in 0.05 s" in str(await fetch(peer))
        late = asyncio.create_task(fetch(peer))
        await asyncio.wait_for(late, PATIENCE)  # at once: it is not asked again
        closing = client(opener)
        waiting = asyncio.create_task(fetch(closing))
        await asyncio.sleep(0)
        await closing.close()
        assert isinstance(await waiting, Unreached)
        released.set()
        await peer.close()

    asyncio.run(run())


def test_a_peer_that_leaves_the_ring_finishes() -> None:
    async def run() -> None:
        released = threading.Event()
        opener = Opener()
        opener.answer = lambda: released.wait(PATIENCE) and Response()
        peer = client(opener)
        waiting = asyncio.create_task(fetch(peer))
        await asyncio.sleep(0)
        peer.retire()
        released.set()
        assert await waiting == Fetched(b"v", None)
        assert peer.under_way == 0
        await peer.close()

    asyncio.run(run())


# ---- The breaker


def test_a_probe_is_given_up_when_another_request_is_answered() -> None:
    async def run() -> None:
        opener = Opener()
        peer = client(opener)
        late, probe = threading.Event(), threading.Event()
        probed = threading.Event()

        def answer_late() -> Response:
            assert late.wait(PATIENCE)
            return Response()

        def hang() -> Response:
            probed.set()
            assert probe.wait(PATIENCE)
            return Response(b"bad request\n", 400)

        def refuse() -> Response:
            raise ConnectionRefusedError("refused")

        opener.answer = answer_late
        waiting = asyncio.create_task(fetch(peer))
        while not opener.requests:
            await asyncio.sleep(0.001)
        opener.answer = refuse
        await fetch(peer)
        assert not peer.available
        opener.answer = hang
        assert await asyncio.to_thread(probed.wait, PATIENCE)
        late.set()
        assert await waiting == Fetched(b"v", None)
        assert peer.available
        probe.set()
        opener.answer = Response
        assert await fetch(peer) == Fetched(b"v", None)
        assert peer.available
        await peer.close()

    asyncio.run(run())


def test_a_peer_that_left_the_ring_is_not_probed_for_ever() -> None:
    async def run() -> None:
        opener = Opener()
        peer = client(opener)
        probed, released = threading.Event(), threading.Event()

        def refuse() -> Response:
            raise ConnectionRefusedError("refused")

        def hang() -> Response:
            probed.set()
            assert released.wait(PATIENCE)
            return refuse()

        opener.answer = refuse
        await fetch(peer)
        opener.answer = hang
        assert await asyncio.to_thread(probed.wait, PATIENCE)
        probe = peer._probe
        peer.retire()
        released.set()
        assert probe is not None
        await probe
        assert peer._probe is None
        assert peer._probe_timer is not None
        assert peer._probe_timer.when() <= asyncio.get_running_loop().time()  # no other one
        await peer.close()

    asyncio.run(run())


def test_a_transport_that_hangs_does_not_keep_its_process() -> None:
    script = """
import asyncio, time
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.net.transportclient import TransportClient
class Opener:
    def open(self, request, *, timeout):
        time.sleep(3600)
async def run():
    options = PeerOptions(self_url="http://10.0.0.1:80", instance=bytes(16), request_timeout=0.1)
    peer = TransportClient("http://10.0.0.2:80", options, lambda ctx: Opener())
    outcome = asyncio.get_running_loop().create_future()
    peer.fetch("g", b"k", outcome.set_result)
    print(await outcome)
    await peer.close()
asyncio.run(run())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "no answer in 0.1 s" in done.stdout
