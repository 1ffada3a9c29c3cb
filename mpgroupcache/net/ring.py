"""The ring of this host: who owns a key, and how each of the others is asked.

The ring is Go's: it takes URLs as texts and in the order given, which decides where two points fall together. So all
members need the same texts in the same order; nothing is sorted or normalised here, as Go's ``HTTPPool.Set`` does not.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from mpgroupcache.net.client import PeerClient
from mpgroupcache.net.consistenthash import Map
from mpgroupcache.net.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mpgroupcache.net.peer import Peer, PeerOptions

logger = logging.getLogger(__name__)


def _some(urls: Sequence[str]) -> str:
    """A few of them, for the log."""
    return ", ".join(urls[:5]) + (f" and {len(urls) - 5} more" if len(urls) > 5 else "") if urls else "none"


class Ring:
    """The ring's members, and all but this host as peers. One thread, that of the event loop it is made in."""

    def __init__(self, options: PeerOptions) -> None:
        self._options = options
        self._map = Map(options.replicas, options.hash_fn)
        self._urls: tuple[str, ...] = ()
        self._peers: dict[str, Peer] = {}  # without this host itself
        self._retired: set[Peer] = set()

    def __repr__(self) -> str:
        failing = sum(not peer.available for peer in self._peers.values())
        return f"<Ring: {len(self._urls)} members, {len(self._peers)} of them others, {failing} of those failing>"

    @property
    def urls(self) -> tuple[str, ...]:
        """The ring's members in their order, this host included."""
        return self._urls

    @property
    def peers(self) -> list[Peer]:
        """The other members."""
        return list(self._peers.values())

    def set(self, urls: Iterable[str]) -> None:
        """Make these the whole ring, this host included; none: there is no ring. Go's ``HTTPPool.Set``.

        Peers that stay keep their connections; those that leave finish what is under way. A ring without this host is
        one that it only asks. Raises ``ValueError``, and changes nothing, for what is no URL, and for a ring that has
        this host under another spelling.
        """
        members = tuple(urls)
        parts = {url: parse_url(url) for url in members}
        own = self._options.self_url
        if members and own not in parts:
            meaning = parse_url(own, "--self").meaning
            if alike := next((url for url, part in parts.items() if part.meaning == meaning), None):
                expected = f"{alike}, as --peer has it; the ring takes them for two peers"
                raise ValueError(f"--self: got {own}, expected {expected}")
            logger.warning(
                "--self: got %s, which is not in the ring of %s: every key is another host's", own, _some(members)
            )
        points = Map(self._options.replicas, self._options.hash_fn)
        points.add(*members)
        if self._options.tls is None and any(part.tls for part in parts.values()):
            from mpgroupcache.net.tls import client_context

            self._options = replace(self._options, tls=client_context())  # which reads all of the system's authorities
        peers = {url: self._peers.get(url) or self._make_peer(url) for url in parts if url != own}
        left = [peer for url, peer in self._peers.items() if url not in peers]
        if members and members != self._urls:
            before = set(self._urls)
            came = [url for url in members if url not in before]
            gone = [url for url in self._urls if url not in parts]
            logger.info("peers: %d in the ring, came: %s, left: %s", len(members), _some(came), _some(gone))
        self._map, self._urls, self._peers = points, members, peers
        self._retired = {peer for peer in (*self._retired, *left) if peer.under_way}
        for peer in left:
            peer.retire()

    def _make_peer(self, url: str) -> Peer:
        transport = self._options.transport
        if transport is None:
            return PeerClient(url, self._options)
        from mpgroupcache.net.transportclient import TransportClient  # and with it Python's own HTTP client

        return TransportClient(url, self._options, transport)

    def owner(self, key: bytes) -> Peer | None:
        """Return the peer that owns a key; None: this host does, or there is no ring."""
        return self._peers.get(self._map.get(key))

    async def close(self) -> None:
        """Leave the ring: what is under way ends as unreached, and all connections are closed."""
        closing = [*self._peers.values(), *self._retired]
        self._map = Map(self._options.replicas, self._options.hash_fn)
        self._urls, self._peers, self._retired = (), {}, set()
        await asyncio.gather(*(peer.close() for peer in closing))
