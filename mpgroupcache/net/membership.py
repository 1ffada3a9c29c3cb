"""Where the ring's members come from: ``--peer`` as given, a file that is watched, or names that are resolved.

    http://10.0.0.2:8080             a member; all of them, this host included, in the order that every member has
    file:/etc/app/peers              a file: a URL on each line, # begins a comment
    dns:http://cache.example:8080    A and AAAA: each address is a member, http://10.0.0.2:8080 and so on
    srv:http://_peer._tcp.cache.example    SRV: each host and port is a member, http://cache-0.cache.example:8080

Flags and files keep their order. Resolved members are sorted, since answers come in any order, and on all hosts alike.
This host is recognised by ``--self``, which has to be one of them: with ``dns:`` the host's address (in Kubernetes
``status.podIP``), with ``srv:`` its name and port in the records. A headless service has to list pods that are not
ready, too (``publishNotReadyAddresses``), or a pod that has just started is not in its own ring.

A list that is bad, empty or cannot be had leaves the ring as it was, and is logged once. While there is none, each host
loads for itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from mpgroupcache.net.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dns.asyncresolver import Resolver

    from mpgroupcache.net.urls import PeerURL

logger = logging.getLogger(__name__)

FILE_INTERVAL: Final = 1.0  # s between looks at a file's status
NAMES_INTERVAL: Final = 5.0  # s between questions; CoreDNS lets Kubernetes' answers live that long by default
MAX_FILE_BYTES: Final = 4 << 20  # some 100 000 peers
SRV_LIFETIME: Final = 5.0  # s that a question for SRV may take, with all its retries

_KINDS: Final = ("file:", "dns:", "srv:")


class Source(Protocol):
    """What knows the members."""

    @property
    def interval(self) -> float | None:
        """Seconds between looks; None: one is enough."""

    async def look(self, urgent: bool) -> list[str] | None:
        """Return the members; None: as they were. ``urgent``: an operator asked for it.

        Raises ``OSError`` or ``ValueError`` for a list that cannot be had or used.
        """


def open_source(peers: Sequence[str], self_url: str) -> Source:
    """Return the source that ``--peer`` names. Raises ``ValueError`` for what cannot be one."""
    kinds = [kind for peer in peers for kind in _KINDS if peer.startswith(kind)]
    if not kinds:
        for url in peers:
            parse_url(url)
        return Fixed(peers)
    if len(peers) > 1:
        raise ValueError(f"--peer: got {', '.join(peers)}, expected either URLs, or one of {' '.join(_KINDS)} alone")
    what = peers[0].removeprefix(kinds[0])
    match kinds[0]:
        case "file:":
            return WatchedFile(what)
        case "dns:":
            return Addresses(parse_url(what, "--peer dns"), parse_url(self_url, "--self"))
        case _:
            return Services(parse_url(what, "--peer srv"))


class Fixed:
    """Members that do not change."""

    interval = None

    def __init__(self, urls: Iterable[str]) -> None:
        self._urls = list(urls)

    async def look(self, urgent: bool) -> list[str]:
        return self._urls


# ---- A file


class _Status(NamedTuple):
    """Changes when the file is written, or replaced by another."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Status:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class WatchedFile:
    """A file, read again when it changes.

    A change counts when the next look finds the same status: a file that is being written in place is not read half.
    """

    interval = FILE_INTERVAL

    def __init__(self, path: str) -> None:
        self._path = path
        self._read: _Status | None = None  # the status of what was read last
        self._seen: _Status | None = None

    async def look(self, urgent: bool) -> list[str] | None:
        seen, self._seen = self._seen, None
        status = _Status.of(os.stat(self._path))
        self._seen = status
        first = self._read is None
        if not urgent and (status == self._read or not (first or status == seen)):
            return None
        with open(self._path, "rb") as file:
            self._read = _Status.of(os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"{self._path}: got more than {MAX_FILE_BYTES} bytes, expected a list of URLs")
        return parse_list(content, self._path)


def parse_list(content: bytes, path: str) -> list[str]:
    """Return the URLs of a file. Raises ``ValueError`` with the line of one that cannot be, and if there is none."""
    urls = []
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        if url := line.partition("#")[0].strip():
            urls.append(parse_url(url, f"{path}: line {number}").text)
    if not urls:
        raise ValueError(f"{path}: got no URL, expected one on each line")
    return urls


# ---- Names


class Addresses:
    """The addresses of a name. Of the kind that ``--self`` has: a host with IPv4 and IPv6 is one member, not two."""

    interval = NAMES_INTERVAL

    def __init__(self, url: PeerURL, own: PeerURL) -> None:
        try:
            self._version = ip_address(own.host).version
        except ValueError:
            raise ValueError(
                f"--self: got {own.text}, expected this host's address for --peer dns:, such as http://10.0.0.7:8080"
            ) from None
        self._url = url

    async def look(self, urgent: bool) -> list[str]:
        found = {ip_address(text) for text in await resolve_addresses(self._url.host) if "%" not in text}
        mine = sorted((address for address in found if address.version == self._version), key=int)
        if not mine:
            raise ValueError(
                f"{self._url.host}: got no address of IPv{self._version}, expected some, as --self has one"
            )
        return [_with_host(self._url, f"[{ip}]" if isinstance(ip, IPv6Address) else str(ip)) for ip in mine]


class Services:
    """The hosts and ports of a name's SRV records; priority and weight do not matter, all are members."""

    interval = NAMES_INTERVAL

    def __init__(self, url: PeerURL, resolver: Resolver | None = None) -> None:
        """``resolver``: the system's if not given. Raises ``ValueError`` where dnspython is missing."""
        try:
            from dns.asyncresolver import Resolver
            from dns.resolver import NoResolverConfiguration
        except ImportError:
            raise ValueError("--peer srv: expected dnspython; pip install 'mpgroupcache[srv]'") from None
        if url.place != url.host:
            raise ValueError(f"--peer srv: got {url.text}, expected no port, it is in the records")
        self._url = url
        try:
            self._resolver = resolver or Resolver()
        except NoResolverConfiguration as error:
            raise ValueError(f"--peer srv: {error}") from None

    async def look(self, urgent: bool) -> list[str]:
        found = sorted(set(await resolve_services(self._url.host, self._resolver)))
        if not found:
            raise ValueError(f"{self._url.host}: got no SRV record, expected some")
        return [_with_host(self._url, f"{host}:{port}") for host, port in found]


def _with_host(url: PeerURL, host: str) -> str:
    port = url.place[url.place.rindex("]") + 1 if "]" in url.place else len(url.host) :]
    return f"{'https' if url.tls else 'http'}://{host}{port}{url.path}"


async def resolve_addresses(name: str) -> list[str]:
    """Return the addresses of a name, as the system resolves it. Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    return [str(found[4][0]) for found in await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


async def resolve_services(name: str, resolver: Resolver) -> list[tuple[str, int]]:
    """Return host and port of a name's SRV records. Raises ``OSError``."""
    from dns.exception import DNSException

    try:
        answer = await resolver.resolve(name, "SRV", search=True, lifetime=SRV_LIFETIME)
    except DNSException as error:
        raise OSError(f"{name}: {error}") from None
    records = [(record.target.to_text(omit_final_dot=True).lower(), int(record.port)) for record in answer]
    return [(host, port) for host, port in records if host != "."]  # that is "decidedly not available"


# ---- What drives it


class Membership:
    """Looks at a source from time to time, and hands on the members when they change."""

    def __init__(self, source: Source, apply: Callable[[list[str]], None]) -> None:
        """``apply``: takes a whole ring (`Ring.set`); a ``ValueError`` from it leaves the ring as it was."""
        self._source = source
        self._apply = apply
        self._members: list[str] | None = None  # that were applied last
        self._next_look = float("-inf")
        self._urgent = False
        self._fault = ""  # that was logged last
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look for the first time. Raises ``ValueError`` for fixed members that cannot be a ring."""
        if isinstance(self._source, Fixed):
            self._take(await self._source.look(True))
        else:
            await self._look(True)

    def tick(self, now: float) -> None:
        """Look if it is time to, without waiting for it. ``now``: seconds of any clock."""
        if self._looking is not None:
            if not self._looking.done():
                return
            self._looking = None
        if not self._urgent:
            if self._source.interval is None or now < self._next_look:
                return
            self._next_look = now + self._source.interval
        urgent, self._urgent = self._urgent, False
        self._looking = asyncio.get_running_loop().create_task(self._look(urgent))

    def refresh(self) -> None:
        """Look at the next tick, whatever the time, and believe what is there. For SIGHUP."""
        self._urgent = True

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))

    async def _look(self, urgent: bool) -> None:
        try:
            members = await self._source.look(urgent)
            if members is not None:
                self._take(members)
        except (OSError, ValueError) as error:
            fault = str(error)
            if urgent or fault != self._fault:
                kept = "there is no ring yet" if self._members is None else f"the ring stays, of {len(self._members)}"
                logger.error("peers: %s; %s", fault, kept)
            self._fault = fault
        except Exception:  # a defect of ours, or of a resolver: the next look may fare better
            logger.exception("peers: not looked up")

    def _take(self, members: list[str]) -> None:
        if members != self._members:
            self._apply(members)  # which says what has changed
            self._members = members
        elif self._fault:
            logger.info("peers: %d in the ring, as before", len(members))
        self._fault = ""
