"""This host among its peers, as the options have it: the port that serves them, and the ring in which it asks."""

from __future__ import annotations

import os
from typing import Final

from mpgroupcache.ipc.options import Options
from mpgroupcache.ipc.wire import SetPeers
from mpgroupcache.net import tls
from mpgroupcache.net.addresses import parse_address
from mpgroupcache.net.membership import Membership, open_source
from mpgroupcache.net.peers import PeerOptions, Peers
from mpgroupcache.net.server import PeerServer
from mpgroupcache.net.source import Source

INSTANCE_BYTES: Final = 16  # random: by which a request that comes from this host itself is known


class Peering:
    """The peers' two halves. Raises ``ValueError`` for options that cannot be."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._instance = os.urandom(INSTANCE_BYTES)
        self._server: PeerServer | None = None
        self._membership: Membership | None = None
        self.peers: Peers | None = None
        """Who is asked for keys that are not this host's; None: there is no ring."""
        if options.self_url is not None:
            self.peers = self._make_peers(options.self_url, options.base_path, options.replicas, options.hash)
            if options.peers:
                self._membership = Membership(open_source(options.peers, options.self_url), self.peers.set)
        self._named: SetPeers | None = None

    def _make_peers(self, self_url: str, base_path: str, replicas: int, hash_name: str) -> Peers:
        options = self._options
        return Peers(
            PeerOptions(
                self_url=self_url,
                instance=self._instance,
                base_path=base_path,
                replicas=replicas,
                hash=hash_name,
                secret=options.secret,
                tls=tls.client_context(options.tls_ca, options.tls_cert, options.tls_key),
                request_timeout=options.peer_timeout,
            )
        )

    def set_peers(self, named: SetPeers) -> None:
        """Take the ring that the application names. Raises ``ValueError`` where the options have one, or it cannot be.

        Requests under way end as they would have.
        """
        if self._options.peers:
            raise ValueError(f"got {len(named.peers)} peers from code, but the coordinator has its ring from --peer")
        if named == self._named:
            return  # each worker says the same
        peers = self._make_peers(named.self_url, named.base_path, named.replicas, named.hash)
        peers.set(named.peers)
        before, self.peers, self._named = self.peers, peers, named
        if before is not None:
            before.set(())

    async def open(self, source: Source) -> None:
        """Serve peers from ``source``, and join the ring. Raises ``OSError`` or ``ValueError`` naming the option."""
        await self._listen(source)
        if self._membership is not None:
            await self._membership.start()

    def tick(self, now: float) -> None:
        """Look whether the ring has changed, if it is time to. ``now``: seconds of any clock."""
        if self._membership is not None:
            self._membership.tick(now)

    def refresh(self) -> None:
        """Look at the next tick."""
        if self._membership is not None:
            self._membership.refresh()

    async def _listen(self, source: Source) -> None:
        options = self._options
        if options.listen is None:
            return
        context = None
        if options.tls_cert is not None and options.tls_key is not None:
            context = tls.server_context(options.tls_cert, options.tls_key, options.tls_ca)
        host, port = parse_address(options.listen)
        self._server = await PeerServer.start(
            source,
            host,
            port,
            instance=self._instance,
            base_path=options.base_path,
            secret=options.secret,
            ssl_context=context,
        )

    async def close(self) -> None:
        """Answer the peers that are waiting, and leave the ring."""
        if self._membership is not None:
            await self._membership.close()
        if self._server is not None:
            await self._server.close()
        if self.peers is not None:
            await self.peers.close()
