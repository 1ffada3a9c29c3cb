"""The ring as an application's code names it (Go: ``HTTPPool``)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mpgroupcache.errors import CacheError
from mpgroupcache.ipc.link import Link
from mpgroupcache.ipc.wire import SetPeers
from mpgroupcache.net.consistenthash import HASHES
from mpgroupcache.net.options import parse_url
from mpgroupcache.net.wire import DEFAULT_BASE_PATH, check_base_path
from mpgroupcache.process import current, on_link

logger = logging.getLogger(__name__)

_pool: HTTPPool | None = None


class HTTPPool:
    """Names the peers of this host's coordinator, which owns the ring and speaks to them (Go: ``HTTPPool``).

    Make one in each worker, at import: it is what the coordinator goes by unless it was told of peers itself
    (``--peer``), which wins, with a warning here. What serves this host to its peers is the coordinator's ``--listen``.
    """

    def __init__(
        self,
        self_url: str,
        *,
        base_path: str = DEFAULT_BASE_PATH,
        replicas: int = 50,
        hash_fn: str | Callable[[bytes], int] = "crc32",
    ) -> None:
        """``self_url``: this host's own, as `set` has it. ``hash_fn``: ``"crc32"``, ``"fnv1a"``, or that function.

        Raises ``RuntimeError`` for a second pool in this process, as Go panics; ``ValueError`` for what cannot be.
        """
        global _pool
        name = hash_fn if isinstance(hash_fn, str) else next((n for n, h in HASHES.items() if h is hash_fn), "")
        if name not in HASHES:
            raise ValueError(f"hash_fn: got {hash_fn!r}, expected one of {', '.join(HASHES)}: the coordinator hashes")
        if replicas < 1:
            raise ValueError(f"replicas: got {replicas}, expected at least 1 (Go's default is 50)")
        parse_url(self_url, "self_url")
        self._self_url, self._base_path, self._replicas, self._hash = (
            self_url,
            check_base_path(base_path),
            replicas,
            name,
        )
        self._message: SetPeers | None = None
        if _pool is not None:
            raise RuntimeError(f"HTTPPool: got a second one, for {self_url}, expected one in a process; use its set()")
        _pool = self
        on_link(self._tell)

    def __repr__(self) -> str:
        peers = 0 if self._message is None else len(self._message.peers)
        return f"<HTTPPool {self._self_url}: {peers} peers>"

    def set(self, *peers: str) -> None:
        """Make these URLs the whole ring, this host's own included, in the order that all members have (Go: ``Set``).

        Nothing connects for it: a process that has no link yet tells the coordinator when it has. Raises ``ValueError``
        for what is no URL.
        """
        for url in peers:
            parse_url(url, "HTTPPool.set")
        self._message = SetPeers(self._self_url, tuple(peers), self._base_path, self._replicas, self._hash)
        if (link := current().working_link) is not None:
            self._tell(link)

    def _tell(self, link: Link) -> None:
        if self._message is None:
            return
        try:
            link.set_peers(self._message)
        except CacheError as error:
            logger.warning("HTTPPool.set: %s", error)
