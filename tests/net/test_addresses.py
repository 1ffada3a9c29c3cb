"""Addresses that the peers' server listens on: how they are written, what they bind, and what is said of bad ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import uvloop
from peerserver import CLOSE, INSTANCE, FakeBackend, Running, of

from mpgroupcache.net.addresses import format_address, parse_address
from mpgroupcache.net.server import PeerServer

if TYPE_CHECKING:
    from collections.abc import Callable


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


def test_a_port_alone_is_an_address() -> None:
    assert parse_address("8080") == parse_address(":8080") == ("", 8080)


@pytest.mark.parametrize(
    ("host", "expected"), [("", {"127.0.0.1", "::1"}), ("0.0.0.0", {"0.0.0.0"}), ("127.0.0.9", {"127.0.0.9"})]
)
def test_all_addresses_of_this_host_have_to_be_asked_for(
    run_server: Callable[..., Running], host: str, expected: set[str]
) -> None:
    running = run_server(host)
    bound = {address for address, _ in running.server.addresses}
    assert bound
    assert bound <= expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":",
        "host",
        "host:",
        "65536",
        "::1:80",
        "[::1]",
        "[host]:80",
        "h:65536",
        "h:-1",
        "h:+1",
        "[::1:80",
        "h:\u0661",
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--listen: got {address!r}, expected HOST:PORT, such as")):
        parse_address(address)


def test_bind_errors_name_the_option(shared_server: Running) -> None:
    async def start(host: str, port: int) -> None:
        await PeerServer.start(FakeBackend(), host, port, instance=INSTANCE)

    port = shared_server.server.port
    with pytest.raises(OSError, match=f"--listen 127.0.0.1:{port}: Address already in use"):
        uvloop.run(start("127.0.0.1", port))
    with pytest.raises(OSError, match="--listen 192.0.2.1:0: Cannot assign requested address"):
        uvloop.run(start("192.0.2.1", 0))
    with pytest.raises(OSError, match="--listen nowhere.invalid:1: "):
        uvloop.run(start("nowhere.invalid", 1))


@pytest.mark.parametrize("host", ["", "localhost"])
def test_all_addresses_of_a_host_have_one_port(run_server: Callable[..., Running], host: str) -> None:
    running = run_server(host)
    assert {port for _, port in running.server.addresses} == {running.server.port}
    assert running.exchange(of(b"hello", CLOSE)).endswith(b"V:hello")
    listed = ", ".join(format_address(*address) for address in running.server.addresses)
    assert repr(running.server).startswith(f"<peer server on {listed}, ")
