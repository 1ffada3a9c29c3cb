"""The ring as an application's code names it, and peers' requests answered in the application (Go: ``HTTPPool``)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from mpgroupcache import serving
from mpgroupcache.errors import CacheError, NotFound
from mpgroupcache.limits import MAX_PEERS, MAX_PEERS_BYTES, MAX_REPLICAS, MAX_URL
from mpgroupcache.net import peerwire
from mpgroupcache.net.consistenthash import HASHES, Map
from mpgroupcache.net.outcomes import Absent, Fetched, outcome_of
from mpgroupcache.net.urls import parse_url
from mpgroupcache.pickers import ProtoGetter, Telling, register_ring
from mpgroupcache.product import Product, Said, absence
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.process import current, on_link

if TYPE_CHECKING:
    from mpgroupcache.net.groupcachepb_pb2 import GetRequest, GetResponse
    from mpgroupcache.net.hooks import Context, Transport

logger = logging.getLogger(__name__)

PEER_TIMEOUT = 5.0  # s; of a request that a process of the application makes itself: the coordinator's default

_pool: HTTPPool | None = None


def made() -> HTTPPool | None:
    """The pool of this process, if one was made."""
    return _pool


class HTTPPool:
    """The peers of this host (Go: ``HTTPPool``). Make one in each worker, at import.

    The coordinator owns the ring and speaks to the peers; a pool in a worker sends it their names. So what runs where:

    - ``hash_fn``, if it is not one of the named hashes, and ``transport`` run in the coordinator, which has to import
      the module that makes the pool (``--app``). Without that the coordinator refuses the ring, with a warning here,
      and every key is this host's own. ``transport`` is called with None there.
    - ``context`` runs where a peer's request arrives: in the coordinator (``--app``, ``--listen``), where its result
      has to be plain data, since loaders are other processes; or in the worker, for `wsgi` and `asgi`.
    - `pick_peer` and what it returns run here: also in a load, if the pool is a group's own picker (``peers=pool``).
      Then all of the above does, and ``transport`` has the ``ctx`` of the get.

    Peers that the coordinator was told of itself (``--peer``) win over `set`, with a warning.
    """

    def __init__(
        self,
        self_url: str,
        *,
        base_path: str = peerwire.DEFAULT_BASE_PATH,
        replicas: int = 50,
        hash_fn: str | Callable[[bytes], int] = crc32,
        context: Context | None = None,
        transport: Transport | None = None,
    ) -> None:
        """``self_url``: this host's own, as `set` has it. ``hash_fn``: from bytes to 32 bits, or "crc32", "fnv1a".

        ``context``: called with a `PeerRequest`, gives the ``ctx`` that its loader sees; without it that is None.
        ``transport``: called with a ``ctx``, gives what ``urllib.request.build_opener`` does, without redirects.

        Raises ``RuntimeError`` for a second pool in this process, as Go panics; ``ValueError`` for what cannot be.
        """
        global _pool
        if isinstance(hash_fn, str) and hash_fn not in HASHES:
            expected = f"a function from bytes to 32 bits, or one of {', '.join(HASHES)}"
            raise ValueError(f"hash_fn: got {hash_fn!r}, expected {expected}")
        function = HASHES[hash_fn] if isinstance(hash_fn, str) else hash_fn
        for name, hook in (("hash_fn", function), ("context", context), ("transport", transport)):
            if hook is not None and not callable(hook):
                raise TypeError(f"{name}: got {type(hook).__name__}, expected a function")
        _parse(self_url, "self_url")
        if replicas > MAX_REPLICAS:
            raise ValueError(f"replicas: got {replicas}, expected at most {MAX_REPLICAS}")
        self.self_url = self_url
        self.base_path = peerwire.check_base_path(base_path)
        if len(base_path) > MAX_URL:
            raise ValueError(f"base_path: got {len(base_path)} characters, expected at most {MAX_URL}")
        self.replicas = replicas
        self.hash_fn = function
        self.context = context
        self.transport = transport
        self.peers: tuple[str, ...] | None = None
        """The ring that `set` named last; None: there was none yet."""
        self._ring = self._make_ring(())
        self._taken: Callable[[], object] | None = None
        if _pool is not None:
            raise RuntimeError(f"HTTPPool: got a second one, for {self_url}, expected one in a process; use its set()")
        register_ring()
        _pool = self
        on_link(self._tell)

    def __repr__(self) -> str:
        return f"<HTTPPool {self.self_url}: {len(self.peers or ())} peers>"

    def _make_ring(self, peers: Iterable[str]) -> Map:
        ring = Map(self.replicas, self.hash_fn)
        ring.add(*peers)
        return ring

    # ---- Who is in the ring

    def set(self, *peers: str) -> None:
        """Make these URLs the whole ring, this host's own included, in the order that all members have (Go: ``Set``).

        Nothing connects for it: a process that has no link yet tells the coordinator when it has. Raises ``ValueError``
        for what is no URL, and for more than the coordinator takes.
        """
        for url in peers:
            _parse(url, "HTTPPool.set")
        size = sum(len(url) + 3 for url in peers)
        if len(peers) > MAX_PEERS or size > MAX_PEERS_BYTES:
            raise ValueError(
                f"HTTPPool.set: got {len(peers)} peers of {size} bytes, expected at most {MAX_PEERS} of "
                f"{MAX_PEERS_BYTES}; name more in a file, to the coordinator (--peer file:PATH)"
            )
        self._ring = self._make_ring(peers)
        self.peers = peers
        if self._taken is not None:
            self._taken()
        elif (link := current().working_link) is not None:
            self._tell(link)

    def take(self, taken: Callable[[], object]) -> None:
        """This process is the coordinator: it is to be told of each ``set``, in whatever thread that is."""
        self._taken = taken

    def _tell(self, link: Link) -> None:
        if self.peers is None:
            return
        named = next((name for name, function in HASHES.items() if function is self.hash_fn), None)
        hooks = [name for name, hooked in (("hash_fn", named is None), ("transport", self.transport)) if hooked]
        try:
            link.set_peers(
                self_url=self.self_url,
                peers=self.peers,
                base_path=self.base_path,
                replicas=self.replicas,
                hash=named or "function",
                hooks=tuple(hooks),
            )
        except CacheError as error:
            logger.warning("HTTPPool.set: %s", error)

    def pick_peer(self, key: str | bytes) -> ProtoGetter | None:
        """Return the peer that owns ``key``; None where this host does, or there is no ring (Go: ``PickPeer``)."""
        url = self._ring.get(key)
        if not url or url == self.self_url:
            return None
        return _HTTPGetter(url + self.base_path, self.transport)

    # ---- Peers' requests, answered here (Go: ServeHTTP)

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """A WSGI application that answers peers below ``base_path`` (Go: ``ServeHTTP``).

        Other paths are 404, and other methods than GET and HEAD 405.

        Mount it for that path in the application's own dispatcher, on a server that leaves room for the longest keys in
        its request line (gunicorn: ``limit_request_line``). The coordinator's ``--listen`` does the same in a fraction
        of the time for each request; this needs no port of its own.
        """
        return serving.wsgi(self.base_path, self.context, environ, start_response)

    async def asgi(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """The same as an ASGI application (Go: ``ServeHTTP``)."""
        await serving.asgi(self.base_path, self.context, scope, send)


def _parse(url: str, option: str) -> None:
    parse_url(url, option)
    if len(url) > MAX_URL:
        raise ValueError(f"{option}: got a URL of {len(url)} characters, expected at most {MAX_URL}")


class _HTTPGetter(Telling):
    """One peer, as asked by this process (Go: ``httpGetter``)."""

    __slots__ = ("_transport", "_url")

    def __init__(self, url: str, transport: Transport | None) -> None:
        """``transport``: Python's own if not given."""
        self._url = url
        self._transport = transport

    def __repr__(self) -> str:
        return f"<peer at {self._url}>"

    def get(self, ctx: Any, request: GetRequest) -> GetResponse:
        """Ask it. Raises ``OSError`` where it cannot be reached, ``CacheError`` for what it answered.

        That is a ``NotFound`` where its loader says that there is no such value. It is told of no secret, and sees no
        certificate: an application's ``transport`` may have both.
        """
        from mpgroupcache.net.groupcachepb_pb2 import GetResponse  # as in pickers.py

        outcome = self._fetch(ctx, request.group, request.key)
        if isinstance(outcome, Absent):
            raise NotFound(outcome.text)
        return GetResponse(value=outcome.value, minute_qps=outcome.minute_qps)

    def ask(self, ctx: Any, group: bytes, key: bytes) -> Product:
        outcome = self._fetch(ctx, group, key)
        if isinstance(outcome, Absent):
            return absence(outcome.text, picked=True, said=Said(None, None, True, outcome.fresh, outcome.dead))
        said = Said(outcome.minute_qps, outcome.version, outcome.says_ages, outcome.fresh, outcome.dead)
        return Product(outcome.value, picked=True, said=said)

    def _fetch(self, ctx: Any, group: bytes, key: bytes) -> Fetched | Absent:
        from mpgroupcache.net.transport import default_transport, round_trip  # here: most workers ask no peer

        target = peerwire.request_target("/", group, key).decode()[1:]
        headers = {peerwire.TIMEOUT.decode(): peerwire.encode_timeout(PEER_TIMEOUT).decode()}
        opener = (self._transport or default_transport)(ctx)
        reply = round_trip(opener, self._url + target, headers, PEER_TIMEOUT, peerwire.MAX_RESPONSE_BYTES)
        outcome = outcome_of(self._url, reply, peerwire.read_abilities(reply.status, reply.headers))
        if not isinstance(outcome, Fetched | Absent):
            raise CacheError(getattr(outcome, "reason", None) or f"{self._url}: its loader raised {outcome}")
        return outcome
