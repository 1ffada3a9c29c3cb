"""The groups that this process has declared, and the functions an application begins with."""

from __future__ import annotations

from collections.abc import Callable

from mpgroupcache.ages import UNSET, Ages, Seconds, Unset, make_ages
from mpgroupcache.getters import BoundGetter, Getter, GetterFunction, source_of
from mpgroupcache.group import Group
from mpgroupcache.late import importing
from mpgroupcache.limits import MAX_NAME_BYTES, MAX_SECONDS
from mpgroupcache.pickers import PeerPicker
from mpgroupcache.shm._hold import Hold
from mpgroupcache.sizes import parse_size
from mpgroupcache.worker import drivers
from mpgroupcache.worker.miss import attached
from mpgroupcache.worker.process import current
from mpgroupcache.worker.waits import Maker, Steps

_groups: dict[str, Group] = {}
_new_group_hook: Callable[[Group], object] | None = None
_server_start: Callable[[], object] | None = None
_started = False  # a group was made


def register_new_group_hook(fn: Callable[[Group], object]) -> None:
    """Have ``fn(group)`` called with each group that this process makes from now on (Go: ``RegisterNewGroupHook``).

    What it raises reaches whoever makes the group, which is made all the same. Raises ``RuntimeError`` the second time.
    """
    global _new_group_hook
    if _new_group_hook is not None:
        raise RuntimeError(f"register_new_group_hook: got {fn!r}, expected one hook in a process; it has one")
    _new_group_hook = fn


def register_server_start(fn: Callable[[], object]) -> None:
    """Have ``fn()`` called once, when this process makes its first group (Go: ``RegisterServerStart``).

    For a process that has made one it comes too late, as in Go. Raises ``RuntimeError`` the second time.
    """
    global _server_start
    if _server_start is not None:
        raise RuntimeError(f"register_server_start: got {fn!r}, expected one function in a process; it has one")
    _server_start = fn


def new_group(
    name: str,
    cache_bytes: int | str,
    getter: Getter | GetterFunction | Unset = UNSET,
    *,
    peers: PeerPicker | None = None,
    load_timeout: float | None = None,
    ttl: Seconds | None = None,
    stale: Seconds = 0,
    stale_if_error: Seconds = 0,
    jitter: float = 0,
    copy_ttl: Seconds | Unset | None = UNSET,
    negative_ttl: Seconds | None = None,
) -> Group:
    """Declare a group (Go: ``NewGroup``). Nothing connects before its first ``get``.

    ``name``: 1 to 255 bytes of UTF-8, unique in the process; it names the group on the whole host. ``cache_bytes``: the
    budget of keys and values together, in bytes or as "64MiB"; 0 switches caching off, not singleflight. ``getter``: a
    function ``(ctx, key, dest)`` or an object with such a ``get``; it may be ``async``; left out: a group without a
    loader, a plain cache of this host's, to which values are ``set``. ``peers``: this group's own picker; None: what
    `register_peer_picker` registered, else the coordinator's ring. ``load_timeout``: seconds after which a load that
    still runs is given to the next waiter as well; None: never while its worker lives.

    How long values live, in seconds or as ``timedelta``; a loader may say otherwise for one value (`Sink`):

    - ``ttl``: a value is fresh for so long; None: for ever. ``jitter``, from 0 to below 1: the part of it by which each
      value's is shortened at random, at most, so that what was loaded together does not die together.
    - ``stale``: for so long after its ``ttl`` a value is returned at once, while it is loaded anew. Then it is dead.
    - ``stale_if_error``: for so long after its ``ttl`` the old value is returned where its load fails.
    - ``negative_ttl``: for so long it is kept that a loader raised `NotFound`; None: not at all.
    - ``copy_ttl``: for so long a host keeps what another one owns, never longer than ``ttl``. Left out: 5 s in groups
      with a ``ttl``; else, and for None, as long as its owner says.

    The last declaration's ages hold for what is stored from then on.

    Raises ``ValueError`` for a second group of that name, and for a name, size or age that cannot be; ``TypeError`` for
    what is no getter, None too, and for ``peers`` that pick none.
    """
    if getter is None:
        raise TypeError(
            "getter: got None, expected a function (ctx, key, dest); leave it out for a group without a loader"
        )
    maker, source = (None, ("", "")) if getter is UNSET else (BoundGetter(getter), source_of(getter))
    ages = make_ages(ttl, stale, stale_if_error, jitter, copy_ttl, negative_ttl)
    return declare(name, cache_bytes, maker, source, peers, load_timeout, ages)


def declare(
    name: str,
    cache_bytes: int | str,
    maker: Maker | None,
    source: tuple[str, str],
    peers: PeerPicker | None,
    load_timeout: float | None,
    ages: Ages,
    former: Group | None = None,
) -> Group:
    """Declare a group as `new_group` does. ``source``: the module and the name of what its ``maker`` calls.

    ``former``: a group whose name this one takes.
    """
    global _started
    if not isinstance(name, str):
        raise TypeError(f"name: got {type(name).__name__}, expected str")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"name: got {name!r}, expected text without lone surrogates") from error
    if not 0 < size <= MAX_NAME_BYTES:
        raise ValueError(f"name: got {len(name)} characters, expected 1 to {MAX_NAME_BYTES} bytes of UTF-8")
    if _groups.get(name) is not former:
        raise ValueError(f"name: got {name!r}, which is declared already; get_group({name!r}) returns it")
    if load_timeout is not None:
        load_timeout = float(load_timeout)
        if not 0 < load_timeout <= MAX_SECONDS:
            raise ValueError(f"load_timeout: got {load_timeout}, expected 0 < seconds <= {MAX_SECONDS:g}, or None")
    if peers is not None and not callable(getattr(peers, "pick_peer", None)):
        raise TypeError(f"peers: got {type(peers).__name__}, expected an object with pick_peer(key), or None")
    group = Group(name, parse_size(cache_bytes), maker, source, load_timeout, peers, ages)
    if not _started:
        _started = True
        if _server_start is not None:
            _server_start()
    _groups[name] = group
    if _new_group_hook is not None:
        _new_group_hook(group)
    return group


def get_group(name: str) -> Group | None:
    """Return the group of that name that this process declared (Go: ``GetGroup``)."""
    return _groups.get(name)


def declared() -> list[Group]:
    """Return all groups that this process declared."""
    return list(_groups.values())


def connect() -> bool:
    """Connect, and attach every declared group, now and not at the first ``get``: for a server's hook that runs in each
    new worker. Groups that are declared later attach at their first miss.

    Returns whether there is a coordinator; without one, ``get`` works all the same, and tries again.
    """
    return drivers.run(_connect)


async def aconnect() -> bool:
    """``connect`` for a coroutine: its loop goes on meanwhile."""
    with importing:
        from mpgroupcache.worker import loops  # asyncio, which only those pay for who have imported it

    return await loops.run(_connect)


def _connect(_hold: Hold) -> Steps[bool]:
    return (yield from attached(current(), *declared(), patient=True))
