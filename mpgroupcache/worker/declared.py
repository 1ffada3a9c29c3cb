"""A group as this process declared it: where it is attached, and who brings what it misses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from mpgroupcache.counters import Counter
from mpgroupcache.errors import describe_error
from mpgroupcache.keys import decode_key
from mpgroupcache.shm._group import GroupCore
from mpgroupcache.shm.segment import segment_path
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.waits import Maker

logger = logging.getLogger(__name__)

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
        getter: Maker,
        source: tuple[str, str],
        load_timeout: float | None,
        find_picker: Callable[[], Picker | None],
    ) -> None:
        """``source``: the getter's module and name. ``find_picker`` is called once, before the first miss; None: peers
        are the coordinator's business.
        """
        self._name = name
        self.getter = getter
        self._source = source
        self.changes = 0  # of this group that were begun, as far as this process knows; nothing changes yet
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
        declared = link.declare(self._name, self.cache_bytes, self._load_timeout, self.picks(), self._source)
        self._caches, self.budget = declared.segment is not None, declared.cache_bytes
        if link.reader is None:
            self.detach()
        else:
            path = None if declared.segment is None else segment_path(declared.segment)
            self.attach(link.reader, declared.group, path)
        self._link = link

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
