"""Peers of an application's own choice: who owns a key, and how to ask (Go: ``PeerPicker``, ``ProtoGetter``).

A group has the picker that it was made with (``peers=``), else the one that is registered for this process, else none:
then the coordinator asks the peers of its ring. A picker runs where a get misses; the peer that it picks is asked where
a load would run: in the process that holds the lease, in its thread or on its loop, once for all who wait. A peer's own
request is never passed on, and waits for no other peer.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpgroupcache.errors import NotFound
from mpgroupcache.limits import usable_rate
from mpgroupcache.product import Product, Said, absence

if TYPE_CHECKING:
    from mpgroupcache.net.groupcachepb_pb2 import GetRequest, GetResponse


class ProtoGetter(Protocol):
    """A peer (Go: ``ProtoGetter``)."""

    def get(self, ctx: Any, request: GetRequest, /) -> GetResponse | Awaitable[GetResponse]:
        """Return the peer's answer (Go: ``ProtoGetter.Get``, which fills one in).

        It has the ``value``, and in ``minute_qps`` how often the peer is asked for it, if it says so. ``ctx`` is what
        the caller gave to ``Group.get``; ``request`` has ``group`` and ``key``, as bytes. ``NotFound`` says that the
        peer has no such value, nor is to be loaded here. Whatever else it raises, the key is. It may be ``async``, for
        ``aget``. How long a value lives it cannot say: that is what the group's ``ttl`` and ``copy_ttl`` say.
        """


class Telling:
    """A peer of ours: it is asked for all that it can say of a value, for which Go's message has no room."""

    __slots__ = ()

    def ask(self, ctx: Any, group: bytes, key: bytes) -> Product:
        """Return the peer's answer. It fails as ``ProtoGetter.get``, but that a value is absent it returns."""
        raise NotImplementedError


class PeerPicker(Protocol):
    """Knows the owner of each key (Go: ``PeerPicker``)."""

    def pick_peer(self, key: Any, /) -> ProtoGetter | None:
        """Return the peer that owns ``key``, or None where this process does (Go's ``ok`` is False).

        ``key`` is ``str`` where it is valid UTF-8, else ``bytes``. It should not block.
        """


class NoPeers:
    """A picker for a group that asks nobody, whatever the coordinator's ring (Go: ``NoPeers``)."""

    __slots__ = ()

    def pick_peer(self, _key: Any, /) -> None:
        """Return None: every key is this host's own (Go: ``NoPeers.PickPeer``)."""

    def __repr__(self) -> str:
        return "NoPeers()"


ByName = Callable[[str], PeerPicker | None]

_registered: ByName | None = None
_registered_as: str | None = None  # what registered it, for the error of the next one


def register_peer_picker(fn: Callable[[], PeerPicker | None]) -> None:
    """Have ``fn()`` give the picker of each group that is made without one (Go: ``RegisterPeerPicker``).

    It is called once for each group, before the group's first miss; for None the group has `NoPeers`. Raises
    ``RuntimeError`` where this, `register_per_group_peer_picker` or an ``HTTPPool`` came before.
    """
    _register(lambda _name: fn(), "register_peer_picker")


def register_per_group_peer_picker(fn: Callable[[str], PeerPicker | None]) -> None:
    """The same, but ``fn`` is given the group's name (Go: ``RegisterPerGroupPeerPicker``)."""
    _register(fn, "register_per_group_peer_picker")


def register_ring() -> None:
    """An ``HTTPPool`` names the coordinator's ring: groups without a picker of their own have none in this process."""
    _register(None, "HTTPPool")


def picker_of(name: str) -> PeerPicker | None:
    """The picker that is registered for a group of this name; None: the coordinator's ring."""
    return None if _registered is None else _registered(name) or NO_PEERS


def _register(by_name: ByName | None, source: str) -> None:
    global _registered, _registered_as
    if _registered_as is not None:
        raise RuntimeError(
            f"{source}: got a second source of peers, expected one in a process; {_registered_as} was it"
        )
    _registered, _registered_as = by_name, source


NO_PEERS: Final = NoPeers()


class BoundPicker:
    """A picker as a miss has it: the peers that it picks bring products."""

    __slots__ = ("_picker",)

    def __init__(self, picker: PeerPicker) -> None:
        self._picker = picker

    def pick(self, group: str, key: str | bytes) -> BoundPeer | None:
        """Return what asks the peer that owns ``key``; None: this host does."""
        peer = self._picker.pick_peer(key)
        return None if peer is None else BoundPeer(group, peer)


class BoundPeer:
    """A peer that was picked for a key of a group."""

    __slots__ = ("_group", "_peer", "is_async")

    def __init__(self, group: str, peer: ProtoGetter) -> None:
        self._group = group
        self._peer = peer
        self.is_async = inspect.iscoroutinefunction(peer.get)

    def __repr__(self) -> str:
        return f"the peer {self._peer!r}"

    def load(self, ctx: Any, key: bytes) -> Product:
        """Ask it, in this thread."""
        if isinstance(self._peer, Telling):
            return self._peer.ask(ctx, self._group.encode(), key)
        try:
            response = self._peer.get(ctx, _request(self._group, key))
        except NotFound as error:
            return absence(str(error), picked=True)
        if inspect.iscoroutine(response):
            response.close()
            raise TypeError("its get() is async, which `await group.aget(key)` can ask and get() cannot")
        return _product(response)

    async def load_async(self, ctx: Any, key: bytes) -> Product:
        """Ask it, on this loop."""
        try:
            return _product(await self._peer.get(ctx, _request(self._group, key)))  # type: ignore[misc]
        except NotFound as error:
            return absence(str(error), picked=True)


def _request(group: str, key: bytes) -> GetRequest:
    from mpgroupcache.net.groupcachepb_pb2 import GetRequest  # some megabytes, which most workers do without

    return GetRequest(group=group.encode(), key=key)


def _product(response: object) -> Product:
    """What is in a ``ProtoGetter``'s answer. Raises ``TypeError`` for what is none. No value is an empty one."""
    from mpgroupcache.net.groupcachepb_pb2 import GetResponse

    if not isinstance(response, GetResponse):
        raise TypeError(f"ProtoGetter.get: got {type(response).__name__}, expected a groupcachepb GetResponse")
    rate = usable_rate(response.minute_qps) if response.HasField("minute_qps") else None
    return Product(response.value, picked=True, said=Said(rate, None, False, None, None))
