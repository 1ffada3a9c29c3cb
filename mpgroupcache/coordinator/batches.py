"""What many keys of one message are answered at once."""

from __future__ import annotations

from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.flights import Action
from mpgroupcache.ipc.fields import INLINE_BYTES
from mpgroupcache.ipc.messages import Answers, FailureCode
from mpgroupcache.shm._writer import Found

BATCH_BYTES = 128 << 10  # of values in one frame


class Batch:
    """The answers so far, by the places of their keys. ``first_id``: the request's id of the first one."""

    def __init__(self, connection: Connection, first_id: int) -> None:
        self.connection = connection
        self.first_id = first_id
        self.values: list[tuple[int, bytes, int | None, float | None]] = []
        self.leases: list[tuple[int, int, int]] = []
        self.free: list[int] = []
        self.failed: list[tuple[int, FailureCode, str, str]] = []
        self.actions: list[Action] = []
        """What is to be done when these are sent."""
        self._bytes = 0

    def add(self, place: int, found: Found) -> bool:
        """Add what is cached; False: it has no room here."""
        size = len(found.value)
        if size > INLINE_BYTES or self._bytes + size > BATCH_BYTES:
            return False
        self._bytes += size
        if found.absent:
            self.failed.append((place, FailureCode.NOT_FOUND, "", str(found.value, errors="replace")))
        else:
            fresh = None if found.fresh is None else found.fresh / 1e9
            self.values.append((place, bytes(found.value), found.version, fresh))
        return True

    def answers(self) -> Answers:
        """The message."""
        return Answers(tuple(self.values), tuple(self.leases), tuple(self.free), tuple(self.failed))
