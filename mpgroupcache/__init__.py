"""mpgroupcache: groupcache for pre-fork Python web workers.

A cache that all worker processes of a host share. A hit is a look at shared memory; a miss is loaded once, however many
workers and threads ask.

    @mpgroupcache.cached(ttl=60)
    def user(user_id: int, locale: str = "en") -> User: ...

    user(7)           # the function runs once, on the whole host
    user.remove(7)    # when it has returned, every call on this host loads, or has a later value

Behind each function is a group of keys and bytes. It can be had without one:

    thumbs = mpgroupcache.new_group("thumbs", "64MiB", load)
    view = thumbs.get("cat.jpg")    # a ByteView: a zero-copy view of shared memory

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

import sys as _sys

from mpgroupcache.late import importing

# As type checkers know it. Named here, since the module that has it takes longer than all the rest of this one.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from mpgroupcache import lru, singleflight
    from mpgroupcache.errors import (
        AlreadyRunning,
        ArenaError,
        CacheError,
        ChangeError,
        CoordinatorError,
        CoordinatorUnavailable,
        DeadlineExceeded,
        LoadCycleError,
        LoadError,
        LoadErrors,
        NotFound,
        ProtocolError,
    )
    from mpgroupcache.functions.decorator import cached
    from mpgroupcache.getters import Getter
    from mpgroupcache.group import Group
    from mpgroupcache.pickers import (
        NoPeers,
        PeerPicker,
        ProtoGetter,
        register_peer_picker,
        register_per_group_peer_picker,
    )
    from mpgroupcache.pool import HTTPPool
    from mpgroupcache.registry import (
        aconnect,
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

__version__ = "0.1.0"

# Pins, leases and seats are taken by native code under the GIL: without it two threads would take one. An interpreter
# that can do without it has it back, for good, with the first module that needs it, unless it was told not to.
_has_gil = getattr(_sys, "_is_gil_enabled", lambda: True)
if not _has_gil():
    __import__(f"{__name__}.shm._reader")
    if not _has_gil():
        raise ImportError(f"{__name__}: got a Python that runs without the GIL, expected one with it; say -X gil=1")

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
    "ChangeError",
    "CoordinatorError",
    "CoordinatorUnavailable",
    "DeadlineExceeded",
    "Getter",
    "Group",
    "HTTPPool",
    "LoadCycleError",
    "LoadError",
    "LoadErrors",
    "NoPeers",
    "NotFound",
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

# Where each name is at home. A name is imported when it is first asked for: so an import of the package costs next to
# nothing, the coordinator does without what only an application needs, and a process that names no peers without
# protobuf. What the type checker is told above says the same.
_HOMES = {
    "AlreadyRunning": "errors",
    "ArenaError": "errors",
    "AtomicInt": "stats",
    "ByteView": "shm._view",
    "ByteViewSink": "sinks",
    "BytesSink": "sinks",
    "CacheError": "errors",
    "CacheStats": "stats",
    "ChangeError": "errors",
    "CacheType": "stats",
    "CoordinatorError": "errors",
    "CoordinatorUnavailable": "errors",
    "DeadlineExceeded": "errors",
    "Getter": "getters",
    "Group": "group",
    "HTTPPool": "pool",
    "LoadCycleError": "errors",
    "LoadError": "errors",
    "LoadErrors": "errors",
    "NoPeers": "pickers",
    "NotFound": "errors",
    "PeerPicker": "pickers",
    "ProtoGetter": "pickers",
    "ProtoSink": "sinks",
    "ProtocolError": "errors",
    "Sink": "sinks",
    "Stats": "stats",
    "StringSink": "sinks",
    "TruncatingSink": "sinks",
    "aconnect": "registry",
    "cached": "functions.decorator",
    "configure": "worker.config",
    "connect": "registry",
    "get_group": "registry",
    "lru": "lru",
    "new_group": "registry",
    "register_new_group_hook": "registry",
    "register_peer_picker": "pickers",
    "register_per_group_peer_picker": "pickers",
    "register_server_start": "registry",
    "singleflight": "singleflight",
}

if not TYPE_CHECKING:  # or every name would be one of ours to a type checker

    def __getattr__(name):
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with importing:
            from importlib import import_module

            module = import_module(f"{__name__}.{home}")
        found = globals()[name] = module if name == home else getattr(module, name)
        return found

    def __dir__():
        return sorted({*globals(), *_HOMES})
