"""The peers' server over TLS: what is spoken, whose certificates it takes, and the files that say so."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trustme
from children import PATIENCE
from peerserver import CLOSE, SHORT, Client, Limits, Running, of, served
from workers import wait_until

from mpgroupcache.net.tls import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


def connect(running: Running, context: ssl.SSLContext) -> Client:
    raw = socket.create_connection(running.server.addresses[0], PATIENCE)
    return Client(context.wrap_socket(raw, server_hostname="localhost"))


def tls_exchange(running: Running, context: ssl.SSLContext, request: bytes) -> bytes:
    with connect(running, context) as client:
        client.send(request)
        return client.rest()


def test_tls(run_server: Callable[..., Running], tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    running = run_server(ssl_context=server_context(cert, key))
    value = random.Random(1).randbytes(3 << 20)
    running.call(running.backend.values.update, {b"big": served(value)})
    context = client_context(ca)
    assert tls_exchange(running, context, of(b"big") * 3 + of(b"hello", CLOSE)).count(value) == 3
    with pytest.raises(ssl.SSLCertVerificationError):
        tls_exchange(running, client_context(), of(b"hello", CLOSE))
    assert running.exchange(of(b"hello")) == b""  # without TLS
    assert tls_exchange(running, context, of(b"hello", CLOSE)).endswith(b"V:hello")


def test_what_clients_have_not_read_is_known(
    run_server: Callable[..., Running], tmp_path: Path, authority: trustme.CA
) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    running = run_server(ssl_context=server_context(cert, key), limits=Limits(unread_bytes=12 << 20))
    running.call(running.backend.values.update, {b"big": served(bytes(10 << 20))})
    context = client_context(ca)
    with connect(running, context) as lazy, connect(running, context) as client:
        lazy.send(of(b"big") * 10)
        wait_until(lambda: running.server.handler.unread_bytes > 4 << 20, "an answer that is not read")
        client.send(of(b"big"))
        assert client.answer().line == b"HTTP/1.1 503 Service Unavailable"
        client.send(of(b"hello"))
        assert client.answer().body == b"\x0a\x07V:hello"
        assert len(lazy.answer().body) > 10 << 20
        wait_until(lambda: 0 < running.server.handler.unread_bytes <= 10 << 20, "the next answer, and no other")
    wait_until(lambda: running.server.handler.unread_bytes == 0)


@pytest.mark.parametrize("draining", [False, True])
def test_a_last_answer_is_read_at_the_clients_leisure(
    run_server: Callable[..., Running], tmp_path: Path, authority: trustme.CA, draining: bool
) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    running = run_server(ssl_context=server_context(cert, key))
    value = random.Random(1).randbytes(10 << 20)
    running.call(running.backend.values.update, {b"big": served(value)})
    with connect(running, client_context(ca)) as client:
        client.send(of(b"big") if draining else of(b"big", CLOSE))
        wait_until(lambda: running.server.handler.unread_bytes, "an answer that is not read")
        closing = running.begin_close() if draining else None
        seconds: set[bytes] = set()
        wait_until(
            lambda: seconds.add(running.server.handler.heads.value) or len(seconds) == 4, "three looks at idle clients"
        )
        assert client.rest().endswith(value)
    if closing is not None:
        closing.result(PATIENCE)


def test_a_client_that_never_reads_is_let_go(
    run_server: Callable[..., Running], tmp_path: Path, authority: trustme.CA
) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    running = run_server(ssl_context=server_context(cert, key), limits=replace(SHORT, idle_timeout=1000.0))
    running.call(running.backend.values.update, {b"big": served(bytes(10 << 20))})
    with connect(running, client_context(ca)) as client:
        client.send(of(b"big", CLOSE))
        wait_until(lambda: running.server.handler.unread_bytes)
        wait_until(lambda: not running.server._connections)
    assert running.server.handler.unread_bytes == 0


def test_mutual_tls(
    run_server: Callable[..., Running], tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    running = run_server(ssl_context=server_context(cert, key, ca))
    (tmp_path / "other").mkdir()
    stranger = files(tmp_path / "other", trustme.CA(), "stranger")
    assert tls_exchange(running, client_context(ca, cert, key), of(b"hello", CLOSE)).endswith(b"V:hello")
    for context in (client_context(ca), client_context(ca, *stranger[:2])):
        with contextlib.suppress(OSError):  # in TLS 1.3 the client's handshake is over before the server has refused it
            assert tls_exchange(running, context, of(b"hello", CLOSE)) == b""
    wait_until(lambda: not running.server._connections)
    assert "no connection: [SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE]" in caplog.text
    assert running.backend.finds == 1


def test_what_tls_is_spoken(run_server: Callable[..., Running], tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, ca = files(tmp_path, authority, "localhost")
    contexts = server_context(cert, key), client_context(ca)
    for context in contexts:
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.options & ssl.OP_NO_COMPRESSION
        assert {cipher["protocol"] for cipher in context.get_ciphers()} == {"TLSv1.2", "TLSv1.3"}
        assert all(cipher["aead"] for cipher in context.get_ciphers())
        exchanges = {cipher["kea"] for cipher in context.get_ciphers()}
        assert exchanges == {"kx-any", "kx-ecdhe"}  # any: 1.3's, which are ephemeral, too
    running = run_server(ssl_context=contexts[0])

    def speaks(version: ssl.TLSVersion, ciphers: str) -> str | None:
        old = ssl.create_default_context(cafile=ca)
        old.set_ciphers(ciphers)
        old.minimum_version = old.maximum_version = version
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert tls_exchange(running, old, of(b"hello", CLOSE)).endswith(b"V:hello")
            return version.name
        return None

    everything = "ALL:@SECLEVEL=0"
    assert speaks(ssl.TLSVersion.TLSv1_3, everything) == "TLSv1_3"
    assert speaks(ssl.TLSVersion.TLSv1_2, everything) == "TLSv1_2"
    with warnings.catch_warnings(action="ignore"):
        assert speaks(ssl.TLSVersion.TLSv1_1, everything) is None
    for ciphers in ("ECDHE+AES:!AESGCM", "DHE+AESGCM", "kRSA"):
        assert speaks(ssl.TLSVersion.TLSv1_2, f"{ciphers}:@SECLEVEL=0") is None


def test_a_handshake_has_to_come(run_server: Callable[..., Running], tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, _ = files(tmp_path, authority, "localhost")
    running = run_server(ssl_context=server_context(cert, key), limits=SHORT)
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
