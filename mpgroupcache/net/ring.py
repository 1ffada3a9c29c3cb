"""All peers of this host: who owns a key, and one client for each of them.

The ring is Go's: it takes URLs as texts and in the order given, which decides where two points fall together. So all
members need the same texts in the same order; nothing is sorted or normalised here, as Go's ``HTTPPool.Set`` does not.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.consistenthash import Map
from mpgroupcache.net.options import PeerOptions, parse_url
from mpgroupcache.net.transport import TransportClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mpgroupcache.net.outcomes import Outcome

__all__ = ["PeerClient", "PeerOptions", "Peers"]

logger = logging.getLogger(__name__)


class Client(Protocol):
    """One peer, as asked by this host."""

    url: str

    @property
    def available(self) -> bool:
        """Whether a fetch would ask the peer; else it fails at once."""

    @property
    def under_way(self) -> int:
        """Requests that have no outcome yet."""

    def fetch(self, group: str, key: bytes, done: Callable[[Outcome], None]) -> None:
        """Ask for a key. ``done`` is called once with the outcome, maybe before this returns."""

    def retire(self) -> None:
        """The peer left the ring: finish what is under way."""

    async def close(self) -> None:
        """End what is under way as unreached."""


class Peers:
    """The ring, and the clients of its other members. One thread, that of the event loop it is made in."""

    def __init__(self, options: PeerOptions) -> None:
        self._options = options
        self._map = Map(options.replicas, options.hash_fn)
        self._urls: tuple[str, ...] = ()
        self._clients: dict[str, Client] = {}  # without this host itself
        self._retired: set[Client] = set()

    def __repr__(self) -> str:
        failing = sum(not client.available for client in self._clients.values())
        return f"<Peers: {len(self._urls)} in the ring, {len(self._clients)} others, {failing} of them failing>"

    @property
    def urls(self) -> tuple[str, ...]:
        """The ring's members in their order, this host included."""
        return self._urls

    @property
    def clients(self) -> list[Client]:
        """The other members."""
        return list(self._clients.values())

    def set(self, urls: Iterable[str]) -> None:
        """Make these the whole ring, this host included; none: there is no ring. Go's ``HTTPPool.Set``.

        Peers that stay keep their connections; those that leave finish what is under way. A ring without this host is
        one that it only asks. Raises ``ValueError``, and changes nothing, for what is no URL, and for a ring that has
        this host under another spelling.
        """
        ring = tuple(urls)
        parts = {url: parse_url(url) for url in ring}
        own = self._options.self_url
        if ring and own not in parts:
            meaning = parse_url(own, "--self").meaning
            if alike := next((url for url, part in parts.items() if part.meaning == meaning), None):
                expected = f"{alike}, as --peer has it; the ring takes them for two peers"
                raise ValueError(f"--self: got {own}, expected {expected}")
            some = ", ".join(ring[:5]) + (f" and {len(ring) - 5} more" if len(ring) > 5 else "")
            logger.warning("--self: got %s, which is not in the ring of %s: every key is another host's", own, some)
        points = Map(self._options.replicas, self._options.hash_fn)
        points.add(*ring)
        if self._options.tls is None and any(part.tls for part in parts.values()):
            self._options = replace(self._options, tls=ssl.create_default_context())
        clients = {url: self._clients.get(url) or self._make_client(url) for url in parts if url != own}
        left = [client for url, client in self._clients.items() if url not in clients]
        self._map, self._urls, self._clients = points, ring, clients
        self._retired = {client for client in (*self._retired, *left) if client.under_way}
        for client in left:
            client.retire()

    def _make_client(self, url: str) -> Client:
        transport = self._options.transport
        return PeerClient(url, self._options) if transport is None else TransportClient(url, self._options, transport)

    def owner(self, key: bytes) -> Client | None:
        """Return the peer that owns a key; None: this host does, or there is no ring."""
        return self._clients.get(self._map.get(key))

    def fetch(self, peer: Client, group: str, key: bytes, done: Callable[[Outcome], None]) -> None:
        """Ask a peer for a key, as `PeerClient.fetch` does."""
        peer.fetch(group, key, done)

    async def close(self) -> None:
        """Leave the ring: what is under way ends as unreached, and all connections are closed."""
        closing = [*self._clients.values(), *self._retired]
        self._map = Map(self._options.replicas, self._options.hash_fn)
        self._urls, self._clients, self._retired = (), {}, set()
        await asyncio.gather(*(client.close() for client in closing))
