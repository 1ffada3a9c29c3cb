"""mpgroupcache: groupcache for pre-fork Python web workers.

A read-through cache that all worker processes of a host share. A hit is a zero-copy view of shared memory; a miss is
loaded once, however many workers and threads ask.

    thumbs = mpgroupcache.new_group("thumbs", "64MiB", load)
    view = thumbs.get("cat.jpg")

Coming from Go
--------------
Each docstring names its counterpart in Go groupcache, and says where it differs; the README has all of them.

    NewGroup, GetGroup                              new_group, get_group
    Getter, GetterFunc                              Getter
    Group.Get, Group.Name                           Group.get, Group.aget, Group.name
    Group.Stats, Group.CacheStats                   Group.stats, Group.cache_stats
    Stats, CacheStats, CacheType, AtomicInt         Stats, CacheStats, CacheType, AtomicInt
    ByteView                                        ByteView
    Sink, StringSink, ByteViewSink, ProtoSink       Sink, StringSink, ByteViewSink, ProtoSink
    AllocatingByteSliceSink                         BytesSink
    TruncatingByteSliceSink                         TruncatingSink
    PeerPicker, ProtoGetter, NoPeers                PeerPicker, ProtoGetter, NoPeers
    RegisterPeerPicker, RegisterPerGroupPeerPicker  register_peer_picker, register_per_group_peer_picker
    RegisterNewGroupHook, RegisterServerStart       register_new_group_hook, register_server_start
    NewHTTPPool, NewHTTPPoolOpts                    HTTPPool
"""

from typing import TYPE_CHECKING, Any

from mpgroupcache import lru, singleflight
from mpgroupcache.errors import (
    AlreadyRunning,
    ArenaError,
    CacheError,
    CoordinatorError,
    CoordinatorUnavailable,
    DeadlineExceeded,
    LoadCycleError,
    LoadError,
    ProtocolError,
)
from mpgroupcache.getters import Getter
from mpgroupcache.group import Group
from mpgroupcache.pickers import (
    NoPeers,
    PeerPicker,
    ProtoGetter,
    register_peer_picker,
    register_per_group_peer_picker,
)
from mpgroupcache.registry import (
    aconnect,
    cached,
    connect,
    get_group,
    new_group,
    register_new_group_hook,
    register_server_start,
)
from mpgroupcache.shm._view import ByteView
from mpgroupcache.sinks import BytesSink, ByteViewSink, ProtoSink, Sink, StringSink, TruncatingSink
from mpgroupcache.stats import AtomicInt, CacheStats, CacheType, Stats
from mpgroupcache.worker.config import configure

if TYPE_CHECKING:
    from mpgroupcache.pool import HTTPPool

__version__ = "0.1.0"

__all__ = [
    "AlreadyRunning",
    "ArenaError",
    "AtomicInt",
    "ByteView",
    "ByteViewSink",
    "BytesSink",
    "CacheError",
    "CacheStats",
    "CacheType",
    "CoordinatorError",
    "CoordinatorUnavailable",
    "DeadlineExceeded",
    "Getter",
    "Group",
    "HTTPPool",
    "LoadCycleError",
    "LoadError",
    "NoPeers",
    "PeerPicker",
    "ProtoGetter",
    "ProtoSink",
    "ProtocolError",
    "Sink",
    "Stats",
    "StringSink",
    "TruncatingSink",
    "aconnect",
    "cached",
    "configure",
    "connect",
    "get_group",
    "lru",
    "new_group",
    "register_new_group_hook",
    "register_peer_picker",
    "register_per_group_peer_picker",
    "register_server_start",
    "singleflight",
]


def __getattr__(name: str) -> Any:
    # Only a process that names peers pays for what speaks of them: protobuf, some megabytes in each worker.
    if name == "HTTPPool":
        from mpgroupcache.pool import HTTPPool

        return HTTPPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
