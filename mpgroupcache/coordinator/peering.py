"""This host among its peers: the port that serves them, and the ring in which it asks.

The ring is what the options say (``--peer``), else what the ``HTTPPool`` of the application's module says (``--app``),
else what an ``HTTPPool`` in a worker does. Functions are the module's, whoever names the ring.

Most coordinators are an application's own, and have neither port nor ring. So what speaks to peers, with TLS, HTTP and
protobuf, is imported when there are some: with it a start takes half as long again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from mpgroupcache.coordinator.options import Options
from mpgroupcache.ipc.contexts import pack_context
from mpgroupcache.ipc.messages import SetPeers
from mpgroupcache.net.consistenthash import HASHES

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpgroupcache.net.backend import Backend
    from mpgroupcache.net.consistenthash import Hash
    from mpgroupcache.net.hooks import Context, NamedRing, PeerRequest
    from mpgroupcache.net.membership import Membership
    from mpgroupcache.net.ring import Ring
    from mpgroupcache.net.server import PeerServer

logger = logging.getLogger(__name__)

INSTANCE_BYTES: Final = 16  # random: by which a request that comes from this host itself is known


class Peering:
    """The peers' two halves. Raises ``ValueError`` for options that cannot be."""

    def __init__(self, options: Options, pool: NamedRing | None = None) -> None:
        """``pool``: of the module that this process imported."""
        self._options = options
        self._pool = pool
        self._instance = os.urandom(INSTANCE_BYTES)
        self._server: PeerServer | None = None
        self._membership: Membership | None = None
        self.ring: Ring | None = None
        """Who is asked for keys that are not this host's; None: there is no ring."""
        self._named: SetPeers | None = None
        if options.peers and options.self_url is not None:
            from mpgroupcache.net.membership import Membership, open_source

            hash_fn = HASHES[options.hash]
            if pool is not None and pool.hash_fn not in HASHES.values():
                hash_fn = pool.hash_fn
            self.ring = self._make_ring(options.self_url, options.base_path, options.replicas, hash_fn)
            self._membership = Membership(open_source(options.peers, options.self_url), self.ring.set)
        if pool is not None:
            loop = asyncio.get_running_loop()
            pool.take(lambda: loop.call_soon_threadsafe(self._ask_pool))
            self._ask_pool()

    def _ask_pool(self) -> None:
        """The module's pool may have named the ring."""
        pool = self._pool
        assert pool is not None
        if pool.peers is None:
            return
        if self._membership is not None:
            logger.warning("HTTPPool.set: got %d peers, but the ring is --peer's", len(pool.peers))
            return
        if self.ring is None:
            self.ring = self._make_ring(pool.self_url, pool.base_path, pool.replicas, pool.hash_fn)
        try:
            self.ring.set(pool.peers)
        except ValueError as error:
            logger.error("HTTPPool.set: %s", error)

    def _make_ring(self, self_url: str, base_path: str | None, replicas: int, hash_fn: Hash) -> Ring:
        from mpgroupcache.net import tls
        from mpgroupcache.net.peer import PeerOptions
        from mpgroupcache.net.peerwire import DEFAULT_BASE_PATH
        from mpgroupcache.net.ring import Ring

        options = self._options
        has_files = options.tls_ca is not None or options.tls_cert is not None
        return Ring(
            PeerOptions(
                self_url=self_url,
                instance=self._instance,
                base_path=base_path or DEFAULT_BASE_PATH,
                replicas=replicas,
                hash_fn=hash_fn,
                transport=None if self._pool is None else self._pool.transport,
                secret=options.secret,
                tls=tls.client_context(options.tls_ca, options.tls_cert, options.tls_key) if has_files else None,
                request_timeout=options.peer_timeout,
            )
        )

    def set_peers(self, named: SetPeers) -> None:
        """Take the ring that a worker names. Raises ``ValueError`` where there is one already, or it cannot be.

        Requests under way end as they would have.
        """
        if self._options.peers:
            raise ValueError(f"got {len(named.peers)} peers from code, but the coordinator has its ring from --peer")
        pool = self._pool
        if pool is not None and pool.peers is not None:
            if set(named.peers) != set(pool.peers):
                got = f"got {len(named.peers)} peers from a worker"
                raise ValueError(f"{got}, but the coordinator has its ring from the HTTPPool of its --app")
            return
        if named.hooks and pool is None:
            raise ValueError(
                f"{' and '.join(named.hooks)}: got functions, which the coordinator does not have; start it with --app "
                "and the module that makes the HTTPPool"
            )
        if named == self._named:
            return  # each worker says the same
        if pool is None and named.hash not in HASHES:
            raise ValueError(f"hash: got {named.hash!r}, expected one of {', '.join(HASHES)}")
        hash_fn = HASHES[named.hash] if pool is None else pool.hash_fn
        try:
            ring = self._make_ring(named.self_url, named.base_path, named.replicas, hash_fn)
        except ImportError as error:  # it comes late, and its files may have gone meanwhile
            got = f"what speaks to peers cannot be imported: {error}"
            raise ValueError(f"{got}; start the coordinator again, as it is installed now") from error
        ring.set(named.peers)
        before, self.ring, self._named = self.ring, ring, named
        if before is not None:
            before.set(())

    async def open(self, backend: Backend) -> None:
        """Serve peers from ``backend``, and join the ring. Raises ``OSError`` or ``ValueError`` naming the option."""
        await self._listen(backend)
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

    async def _listen(self, backend: Backend) -> None:
        options = self._options
        if options.listen is None:
            return
        from mpgroupcache.net import tls
        from mpgroupcache.net.addresses import format_address, is_unspecified, parse_address
        from mpgroupcache.net.peerwire import DEFAULT_BASE_PATH
        from mpgroupcache.net.server import PeerServer

        context = None
        if options.tls_cert is not None and options.tls_key is not None:
            context = tls.server_context(options.tls_cert, options.tls_key, options.tls_ca)
        elif options.tls_ca is not None:
            logger.warning(
                "--tls-ca: got it without --tls-cert, so that --listen %s is served without TLS, and no peer is asked "
                "for a certificate",
                options.listen,
            )
        host, port = parse_address(options.listen)
        self._server = await PeerServer.start(
            backend,
            host,
            port,
            instance=self._instance,
            base_path=options.base_path or DEFAULT_BASE_PATH,
            secret=options.secret,
            ssl_context=context,
            context=None if self._pool is None or self._pool.context is None else _packing(self._pool.context),
        )
        addresses = [format_address(*address) for address in self._server.addresses]
        logger.info(
            "serving peers on %s, %s TLS, %s secret",
            ", ".join(addresses),
            "without" if context is None else "with",
            "without" if options.secret is None else "with a",
        )
        open_to_all = options.secret is None and (context is None or options.tls_ca is None)
        if open_to_all and (everywhere := [address for address in addresses if is_unspecified(address)]):
            logger.warning(
                "--listen %s: whoever reaches any address of this host reads each group, and has it load any key; "
                "expected an address of the ring's network, or --secret-file, or --tls-cert with --tls-ca",
                " and ".join(everywhere),
            )

    async def close(self) -> None:
        """Answer the peers that are waiting, and leave the ring."""
        if self._membership is not None:
            await self._membership.close()
        if self._server is not None:
            await self._server.close()
        if self.ring is not None:
            await self.ring.close()


def _packing(context: Context) -> Callable[[PeerRequest], bytes]:
    """What ``context`` makes of a request, as it travels to a loader's process."""
    return lambda request: pack_context(context(request))
