"""A group as this process declared it: where it is attached, and who brings what it misses."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mpgroupcache.ages import Ages
from mpgroupcache.counters import Counter
from mpgroupcache.errors import describe_error
from mpgroupcache.ipc.messages import Declare
from mpgroupcache.keys import decode_key, encode_key
from mpgroupcache.shm._group import GroupCore
from mpgroupcache.shm.segment import segment_path
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.waits import Maker

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

ASK_AGAIN = 2.0  # s after which a process asks again for a refresh of which nothing is seen
MAX_ASKED = 4096  # values of which it is remembered
BLAME_INTERVAL = 60.0  # s between two log messages on a group's own peers


class Picker(Protocol):
    """Knows the peer that owns a key."""

    def pick(self, group: str, key: str | bytes) -> Maker | None:
        """Return what asks it; None: this host owns the key."""


class DeclaredGroup(GroupCore):
    """What of ``Group`` is the worker's business."""

    def __init__(
        self,
        name: str,
        cache_bytes: int,
        getter: Maker | None,
        source: tuple[str, str],
        load_timeout: float | None,
        ages: Ages,
        find_picker: Callable[[], Picker | None],
    ) -> None:
        """``source``: the getter's module and name. ``find_picker`` is called once, before the first miss; None: peers
        are the coordinator's business.
        """
        self._name = name
        self.getter = getter
        self._source = source
        self.ages = ages
        self.stale_if_error = ages.stale_if_error
        self._asked: dict[int | None, float] = {}  # by version: when this process asked for a refresh
        self._loops: dict[bytes, weakref.ref[asyncio.AbstractEventLoop]] = {}  # by key: of what is async, where
        self.cache_bytes = cache_bytes
        self.budget: int | None = None  # in force on the host, in bytes; None: not known here
        self._load_timeout = load_timeout
        self._find_picker: Callable[[], Picker | None] | None = find_picker
        self._picker: Picker | None = None
        self._blamed_at = -BLAME_INTERVAL
        self._link: Link | None = None  # on which it was attached last
        self._caches = True  # so far as it is known: the host's first declaration says so

    @property
    def name(self) -> str:
        """The group's name (Go: ``Group.Name``)."""
        return self._name

    def is_attached_to(self, link: Link) -> bool:
        """Whether this group looks values up where ``link`` leads."""
        return self._link is link and (self.attached or link.reader is None)

    def ready_link(self) -> Link | None:
        """The link on which it is attached, if that works: a look, and no more."""
        link = self._link
        if link is None or link.channel.broken is not None or not (self.attached or link.reader is None):
            return None
        return link

    def attach_to(self, link: Link) -> None:
        """Declare this group on ``link`` and look values up there from now on."""
        loads = self.getter is not None
        said = Declare(
            self._name, self.cache_bytes, self._load_timeout, self.picks(), *self._source, loads=loads, ages=self.ages
        )
        declared = link.declare(said)
        self._caches, self.budget = declared.segment is not None, declared.cache_bytes
        if link.reader is None:
            self.detach()
        else:
            path = None if declared.segment is None else segment_path(declared.segment)
            self.attach(link.reader, declared.group, path)
        self._link = link

    # ---- Stale values

    def _stale(self, key: str | bytes, version: int) -> None:
        """A get has met a value that somebody is to load anew: ask for that, once.

        It raises nothing: the get has its value. The coordinator notes in shared memory that a refresh is under way.
        What is kept here bridges the time until it does.
        """
        link = self.ready_link()
        if link is None or self.getter is None or not self._may_ask(version):
            return
        peer = self.pick(raw := encode_key(key))
        if (peer or self.getter).is_async:
            self._loops.pop(raw, None)  # that of one who asked in vain: it may not run any more
            if (loop := _running_loop()) is not None:
                self._loops[raw] = weakref.ref(loop)
        link.refresh(self._name, raw, peer is not None)

    def take_loop(self, key: bytes) -> asyncio.AbstractEventLoop | None:
        """The loop on which a stale value was met that is now to be loaded: clients of what is async belong to it."""
        loop = self._loops.pop(key, None)
        return None if loop is None else loop()

    def _may_ask(self, version: int | None) -> bool:
        """Whether a refresh of this stale value is to be asked for: not again by each of those who meet it meanwhile.

        What comes in its place has another version, and may be stale again soon. But a copy of which its owner has no
        better one stays the same.
        """
        now, asked = time.monotonic(), self._asked
        if len(asked) >= MAX_ASKED:
            asked, self._loops = {}, {}
            self._asked = asked
        if (before := asked.setdefault(version, now)) is not now:
            if now - before < ASK_AGAIN:
                return False
            asked[version] = now
        return True

    # ---- Peers that this process picks

    def picks(self) -> bool:
        """Whether this group picks its peers itself (Go: ``initPeers``, at the first time)."""
        if self._find_picker is not None:
            self._picker = self._find_picker()
            self._find_picker = None
        return self._picker is not None

    def pick(self, key: bytes) -> Maker | None:
        """Return the peer that owns a key. None: this host does, or nobody knows."""
        try:
            return None if self._picker is None else self._picker.pick(self._name, decode_key(key))
        except Exception as error:
            self.blame(error)
            return None

    def blame(self, error: Exception) -> None:
        """A peer that was picked failed, or who picks it did: its key is loaded here."""
        self.count(Counter.PEER_ERRORS)
        now = time.monotonic()
        if now - self._blamed_at >= BLAME_INTERVAL:
            self._blamed_at = now
            logger.warning(
                "group %r: a peer failed, its key is loaded here: %s: %s", self._name, *describe_error(error)
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, where one can: who has not imported asyncio has none."""
    module = sys.modules.get("asyncio")
    return None if module is None else module._get_running_loop()
