"""Members that are names: addresses, and SRV records."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rrset
import pytest
from driven import SELF, Driven, errors
from fakepeers import on_each_loop, until

from mpgroupcache.net import membership
from mpgroupcache.net.membership import NAMES_INTERVAL, Addresses, Membership, Services, open_source
from mpgroupcache.net.urls import parse_url

# ---- Addresses


class FakeNames:
    """What the system's resolver answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: list[str] | OSError = []
        self.asked: list[str] = []
        monkeypatch.setattr(membership, "resolve_addresses", self._resolve)

    async def _resolve(self, name: str) -> list[str]:
        self.asked.append(name)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> FakeNames:
    return FakeNames(monkeypatch)


@on_each_loop
async def test_addresses_are_sorted_and_asked_for_again(names: FakeNames) -> None:
    names.answer = ["10.0.0.10", "10.0.0.2", "fd00::2", "10.0.0.2"]
    driven = Driven(open_source(["dns:https://cache.example:8443/x"], "https://10.0.0.2:8443/x"))
    await driven.membership.start()
    first = ["https://10.0.0.2:8443/x", "https://10.0.0.10:8443/x"]
    assert driven.rings == [first]
    names.answer = names.answer[::-1]
    await driven.tick(NAMES_INTERVAL)
    names.answer = ["10.0.0.2"]
    await driven.tick(NAMES_INTERVAL / 2)  # not yet
    assert driven.rings == [first]
    await driven.tick(NAMES_INTERVAL / 2)
    assert driven.rings == [first, first[:1]]
    assert set(names.asked) == {"cache.example"}


@on_each_loop
async def test_addresses_are_of_the_kind_that_self_has(names: FakeNames) -> None:
    names.answer = ["10.0.0.2", "fd00::2", "fd00::1", "fe80::1%eth0"]
    source = Addresses(parse_url("http://cache.example:80"), parse_url("http://[fd00::2]:80"))
    assert await source.look(False) == ["http://[fd00::1]:80", "http://[fd00::2]:80"]


@on_each_loop
async def test_a_name_that_fails_keeps_the_ring(names: FakeNames, caplog: pytest.LogCaptureFixture) -> None:
    names.answer = OSError("nobody has that name")
    driven = Driven(open_source(["dns:http://cache.example:8080"], SELF))
    await driven.membership.start()
    assert errors(caplog) == ["peers: nobody has that name; there is no ring yet"]
    names.answer = ["10.0.0.1"]
    await driven.tick(NAMES_INTERVAL)
    assert driven.rings == [[SELF]]
    caplog.clear()
    for answer in (OSError("gone"), OSError("gone"), ["fd00::1"], []):
        names.answer = answer
        await driven.tick(NAMES_INTERVAL)
    gone, none = errors(caplog)
    assert gone == "peers: gone; the ring stays, of 1"
    assert "got no address of IPv4" in none
    assert driven.rings == [[SELF]]
    caplog.clear()


@on_each_loop
async def test_that_it_is_as_before_is_told_once(names: FakeNames, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mpgroupcache.net.membership")
    driven = Driven(open_source(["dns:http://cache.example:8080"], SELF))
    for answer in (["10.0.0.1", "10.0.0.2"], ["10.0.0.1"], ["10.0.0.1"], OSError("gone"), ["10.0.0.1"], ["10.0.0.1"]):
        names.answer = answer
        await driven.tick(NAMES_INTERVAL)
    assert [record.getMessage() for record in caplog.records] == [
        "peers: gone; the ring stays, of 1",
        "peers: 1 in the ring, as before",
    ]
    caplog.clear()


@on_each_loop
async def test_one_look_at_a_time_and_it_ends_at_close(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    async def hang(name: str) -> list[str]:
        nonlocal looks
        looks += 1
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(membership, "resolve_addresses", hang)
    watching = Membership(open_source(["dns:http://cache.example:8080"], SELF), lambda urls: None)
    for now in range(0, 100, 10):
        watching.tick(now)
        await asyncio.sleep(0)
    assert looks == 1
    looking = watching._looking
    assert looking is not None
    await watching.close()
    assert looking.cancelled()


@on_each_loop
async def test_one_that_never_looked_can_be_closed() -> None:
    await Membership(open_source([], SELF), lambda urls: None).close()


@on_each_loop
async def test_the_systems_resolver() -> None:
    assert await membership.resolve_addresses("127.0.0.1") == ["127.0.0.1"]


@on_each_loop
@pytest.mark.parametrize(
    ("url", "member"),
    [
        ("http://cache.example", "http://10.0.0.2"),
        ("https://cache.example:8443/x", "https://10.0.0.2:8443/x"),
        ("http://[fd00::7]", "http://10.0.0.2"),
        ("https://[fd00::7]:8443/x", "https://10.0.0.2:8443/x"),
    ],
)
async def test_a_member_is_as_the_url_but_for_its_host(names: FakeNames, url: str, member: str) -> None:
    names.answer = ["10.0.0.2"]
    assert await Addresses(parse_url(url), parse_url("http://10.0.0.2")).look(False) == [member]


# ---- SRV


@on_each_loop
async def test_how_srv_is_asked_for() -> None:
    """With the search list, as for other names, and for a bounded time."""
    asked: list[tuple[Any, ...]] = []

    class Resolver:
        async def resolve(self, *question: Any, **options: Any) -> list[Any]:
            asked.append((*question, options))
            return []

    resolver: Any = Resolver()
    assert await membership.resolve_services("_peer._tcp.cache", resolver) == []
    assert asked == [("_peer._tcp.cache", "SRV", {"search": True, "lifetime": membership.SRV_LIFETIME})]


class NameServer(asyncio.DatagramProtocol):
    """Answers questions for SRV with the records it is given: texts as in a zone file."""

    def __init__(self) -> None:
        self.records: list[str] | None = None  # None: there is no such name
        self.port = 0

    async def start(self) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0), family=socket.AF_INET
        )
        self.port = self._transport.get_extra_info("sockname")[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        pass

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if self.records is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif self.records:
            answer.answer.append(dns.rrset.from_text(query.question[0].name, 5, "IN", "SRV", *self.records))
        self._transport.sendto(answer.to_wire(), address)

    def close(self) -> None:
        self._transport.close()


@on_each_loop
async def test_srv(caplog: pytest.LogCaptureFixture) -> None:
    server = NameServer()
    await server.start()
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], server.port
    server.records = [
        "0 33 8080 cache-1.Cache.example.",
        "0 33 8080 cache-0.cache.example.",
        "0 33 8081 cache-0.cache.example.",
    ]
    driven = Driven(Services(parse_url("http://_peer._tcp.cache.example/x"), resolver))
    await driven.membership.start()
    places = ["cache-0.cache.example:8080", "cache-0.cache.example:8081", "cache-1.cache.example:8080"]
    ring = [f"http://{place}/x" for place in places]
    assert driven.rings == [ring]
    for records, text in (
        (None, "does not exist"),
        ([], "does not contain an answer"),
        (["0 0 0 ."], "got no SRV record"),
    ):
        caplog.clear()
        server.records = records
        await driven.tick(NAMES_INTERVAL)
        assert text in errors(caplog)[0]
    assert driven.rings == [ring]
    server.records = ["0 33 8080 cache-1.cache.example."]
    await driven.tick(NAMES_INTERVAL)
    assert driven.rings == [ring, ["http://cache-1.cache.example:8080/x"]]
    server.close()
    await until(lambda: server._transport.is_closing())
    caplog.clear()
