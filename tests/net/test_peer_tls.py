r"""The peers' client over TLS.

``localhost.pem`` is made by::

    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem; cat key.pem cert.pem
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from fakepeers import BAD_TIMEOUT, FakePeer, fake_peer, fetch, never, on_each_loop, options, until

from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.outcomes import Fetched, Unreached
from mpgroupcache.net.ring import Ring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PEM = Path(__file__).with_name("localhost.pem")


def server_context(client_certificates: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=PEM)
    context.load_cert_chain(PEM)
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.asynccontextmanager
async def asked(url: str, tls: ssl.SSLContext, timeout: float = 10.0) -> AsyncIterator[PeerClient]:
    client = PeerClient(url, options(tls=tls, request_timeout=timeout), jitter=lambda: 1.0)
    yield client
    await client.close()
    assert not client._connections


async def why(peer: FakePeer, tls: ssl.SSLContext, host: str = "127.0.0.1") -> str:
    """Why a fetch fails."""
    async with asked(f"https://{host}:{peer.port}", tls) as client:
        outcome = await fetch(client)
        assert isinstance(outcome, Unreached)
        assert not client.available
        return outcome.reason


@on_each_loop
async def test_with_certificates_of_both_ends() -> None:
    tls = ssl.create_default_context(cafile=PEM)
    tls.load_cert_chain(PEM)
    async with fake_peer(context=server_context(True)) as peer, asked(f"https://127.0.0.1:{peer.port}", tls) as client:
        for _ in range(3):
            assert await fetch(client) == Fetched(b"V:k", None)
        assert peer.connections == 1
        fetches = [asyncio.create_task(fetch(client, b"%d" % i)) for i in range(40)]
        client.retire()
        assert await asyncio.gather(*fetches) == [Fetched(b"V:%d" % i, None) for i in range(40)]
        await until(lambda: not client._connections)


@on_each_loop
async def test_a_certificate_of_an_unknown_ca() -> None:
    async with fake_peer(context=server_context()) as peer:
        assert "the peer's certificate is not trusted: self-signed" in await why(peer, ssl.create_default_context())


@on_each_loop
async def test_a_certificate_for_another_host() -> None:
    async with fake_peer(context=server_context(), host="127.0.0.2") as peer:
        tls = ssl.create_default_context(cafile=PEM)
        assert "certificate is not trusted: IP address mismatch" in await why(peer, tls, "127.0.0.2")


@on_each_loop
async def test_no_certificate_where_one_is_asked_for() -> None:
    async with fake_peer(context=server_context(True)) as peer:
        text = await why(peer, ssl.create_default_context(cafile=PEM))
        assert "if the peer asks for certificates, this host needs one of its CA" in text


@on_each_loop
async def test_a_peer_without_tls() -> None:
    async with fake_peer() as peer:
        assert "no connection" in await why(peer, ssl.create_default_context())


@on_each_loop
async def test_a_peer_with_tls_asked_without() -> None:
    async with fake_peer(context=server_context()) as peer:
        client = PeerClient(f"http://127.0.0.1:{peer.port}", options())
        assert isinstance(await fetch(client), Unreached)
        assert not client.available
        await client.close()


@on_each_loop
async def test_a_silent_peer_with_tls() -> None:
    tls = ssl.create_default_context(cafile=PEM)
    async with (
        fake_peer(never, server_context()) as peer,
        asked(f"https://127.0.0.1:{peer.port}", tls, BAD_TIMEOUT) as client,
    ):
        outcome = await fetch(client)
        assert isinstance(outcome, Unreached)
        assert "no answer in" in outcome.reason


@on_each_loop
async def test_the_systems_cas_are_the_default() -> None:
    async with fake_peer(context=server_context()) as peer:
        ring = Ring(options())
        ring.set(["http://self:1", f"https://127.0.0.1:{peer.port}"])
        outcome = await fetch(ring.peers[0])
        assert isinstance(outcome, Unreached)
        assert "certificate is not trusted" in outcome.reason
        await ring.close()
