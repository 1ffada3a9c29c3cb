"""One peer, as this host asks it, and what this host's peers have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol
from zlib import crc32

from mpgroupcache.net.peerwire import DEFAULT_BASE_PATH, MAX_RESPONSE_BYTES, check_base_path, encode_secret
from mpgroupcache.net.urls import parse_url

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from mpgroupcache.net.consistenthash import Hash
    from mpgroupcache.net.hooks import Transport
    from mpgroupcache.net.outcomes import Outcome
    from mpgroupcache.net.peerwire import Ability

SECRET_OPTION: Final = "--secret-file"  # as errors name it


class Peer(Protocol):
    """One peer, as this host asks it: over connections of its own, or through an application's transport."""

    url: str

    @property
    def available(self) -> bool:
        """Whether a fetch would ask the peer; else it fails at once."""

    @property
    def abilities(self) -> frozenset[Ability] | None:
        """What the peer can do beyond Go's protocol, as it said last; None: it has not answered yet."""

    @property
    def under_way(self) -> int:
        """Requests that have no outcome yet."""

    def fetch(self, group: str, key: bytes, done: Callable[[Outcome], None]) -> None:
        """Ask for a key. ``done`` is called once with the outcome, maybe before this returns."""

    def fetch_many(self, group: str, keys: Sequence[bytes], done: Callable[[bytes, Outcome], None]) -> None:
        """Ask for many keys, each of them once: together if the peer has said that it can answer so, else each alone.

        ``done`` is called once for each, with the key and its outcome, maybe before this returns.
        """

    def retire(self) -> None:
        """The peer left the ring: finish what is under way."""

    async def close(self) -> None:
        """End what is under way as unreached."""


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
