"""What the peers' client half is told: its options, and the URLs of peers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from mpgroupcache.net.peerwire import DEFAULT_BASE_PATH, MAX_RESPONSE_BYTES, check_base_path, encode_secret

if TYPE_CHECKING:
    import ssl

    from mpgroupcache.net.consistenthash import Hash
    from mpgroupcache.net.hooks import Transport

SECRET_OPTION: Final = "--secret-file"  # as errors name it

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<place>(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<path>/.*)?"
)


class PeerURL(NamedTuple):
    """A peer's URL in parts."""

    text: str  # as it was given: the ring hashes it
    tls: bool
    host: str
    port: int
    place: str  # host and port as they were given: the header Host
    path: str  # in front of the base path; empty, or begins with a slash and ends without

    @property
    def meaning(self) -> tuple[bool, str, int, str]:
        """What is equal for two URLs that lead to the same peer, and that the ring takes for two."""
        return self.tls, self.host.lower(), self.port, self.path


def parse_url(url: str, option: str = "--peer") -> PeerURL:
    """Return the parts of a peer's URL; ``option`` is the name that an error gives it.

    Nothing is normalised, since Go's ring hashes the text as it is given. A slash at the end, which Go's client would
    double, is refused.
    """
    match = _URL.fullmatch(url)
    try:
        if match is None:
            raise ValueError
        path = match["path"] or ""
        check_base_path(path + "/")
        port = int(match["port"]) if match["port"] else {"http": 80, "https": 443}[match["scheme"]]
        if not 0 < port < 65536:
            raise ValueError
        host = match["host"] or str(IPv6Address(match["v6"]))
    except ValueError:
        expected = "http:// or https://, a host, maybe a port and a path, and no slash at the end"
        raise ValueError(f"{option}: got {url!r}, expected {expected}, such as http://10.0.0.2:8080") from None
    return PeerURL(url, match["scheme"] == "https", host, port, match["place"], path)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What all peers of this host have in common. Raises ``ValueError`` for what cannot be."""

    self_url: str  # as it is in the list of peers
    instance: bytes  # 16 random bytes of this start of the coordinator
    base_path: str = DEFAULT_BASE_PATH
    replicas: int = 50  # points of each peer in the ring; Go's
    hash_fn: Hash = crc32  # from bytes to 32 bits; Go's default
    transport: Transport | None = None  # None: client.py's
    secret: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None  # for https peers; None: the system's CAs, and no certificate of our own
    connect_timeout: float = 1.0  # s, with name and TLS: a host that is there takes a few round trips
    request_timeout: float = 5.0  # s from fetch to outcome; a load on the owner is in it, and a get's patience above it
    # To each peer. One carries some thousands of cached values a second; a slow load keeps one busy.
    max_connections: int = 16
    max_response_bytes: int = MAX_RESPONSE_BYTES  # of one response

    def __post_init__(self) -> None:
        parse_url(self.self_url, "--self")
        check_base_path(self.base_path)
        if self.secret is not None:
            encode_secret(self.secret)
        for name in ("replicas", "connect_timeout", "request_timeout", "max_connections", "max_response_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected a number above 0")
