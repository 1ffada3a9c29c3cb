"""Changes of values: what workers ask for with CHANGE, done in one step of the coordinator's thread each.

In this order: what has arrived of the key is taken in; what is under way of it is overtaken, and is published no more;
the group's change count is raised, by which processes know that what they share is from before; the arena is changed;
the answer is sent. What changes nothing, since its condition does not hold, overtakes nothing. A coordinator that dies
between two of these has done the change, or not; nothing older comes back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from typing import Final, TypeAlias

from mpgroupcache.coordinator.connection import Connection
from mpgroupcache.coordinator.flights import FlightTable
from mpgroupcache.coordinator.hostgroups import Groups, HostGroup, Life
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.coordinator.roster import Roster
from mpgroupcache.coordinator.stores import Stores
from mpgroupcache.counters import Counter
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.messages import Change, Changed, Failed, FailureCode
from mpgroupcache.shm._control import Control
from mpgroupcache.shm._writer import Found
from mpgroupcache.sizes import format_size

logger = logging.getLogger(__name__)

MOST, LEAST = (1 << 63) - 1, -(1 << 63)
NUMBER_BYTES = 20  # of the longest one
_NUMBER: Final = re.compile(rb"[+-]?[0-9]{1,19}")  # as incr writes it, and others may

Refusal: TypeAlias = tuple[FailureCode, str]
Unreached: TypeAlias = tuple[tuple[str, str], ...]


class Changes:
    """Does them."""

    def __init__(
        self,
        groups: Groups,
        control: Control,
        peering: Peering,
        workers: Roster,
        flights: FlightTable,
        stores: Stores,
    ) -> None:
        self._groups = groups
        self._control = control
        self._peering = peering
        self._workers = workers
        self._flights = flights
        self._stores = stores
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def copying(self) -> bool:
        """Whether a large value is on its way."""
        return bool(self._tasks)

    def hear(self, connection: Connection, request_id: int, message: Change) -> None:
        """A worker asks for a change."""
        fd = connection.claim(message) if message.passes_descriptor else -1
        try:
            answer = self._answer(connection, request_id, message, fd)
        finally:
            if fd >= 0:
                os.close(fd)
        if answer is not None:
            connection.send(answer, request_id)

    def refusal(self, group: HostGroup) -> Unreached | None:
        """Why a group's values cannot be changed: on which other hosts they may be. None: they can."""
        if not group.loads:
            return None  # they are this host's own
        if group.picks:
            return (("picker", "the group picks its peers itself, and they are not told of changes"),)
        ring = self._peering.ring
        if ring is None or not ring.peers:
            return None
        return tuple([(peer.url, "it is in the ring, and changes do not cross hosts yet") for peer in ring.peers])

    def begin_refresh(self, group: HostGroup, key: bytes) -> None:
        """A load of a key begins that is later than all others: nobody who asks from here on shares an earlier one."""
        self._take_in(group, key)
        self._control.raise_changes(group.id)

    def _begin(self, group: HostGroup, key: bytes) -> None:
        """From here on, what was under way of a key is published no more."""
        self._flights.change((group, key))
        self._control.raise_changes(group.id)

    def _take_in(self, group: HostGroup, key: bytes) -> None:
        """A value that has arrived is there."""
        if (group, key) in self._stores.unsettled:
            self._stores.settle()

    def _answer(self, connection: Connection, request_id: int, message: Change, fd: int) -> Changed | Failed | None:
        """What becomes of it; None: it is answered later."""
        if (group := self._groups.get(message.group)) is None:
            return Failed(FailureCode.REFUSED, "", f"group {message.group}: no such group; DECLARE it first")
        if time.clock_gettime_ns(time.CLOCK_BOOTTIME) > message.deadline:
            return Failed(FailureCode.TOO_LATE, "", "its timeout had passed when the coordinator came to it")
        if (unreached := self.refusal(group)) is not None:
            return Changed(0, (), unreached, False)
        # Of these a worker is told, since they tell it that it may have the wrong coordinator.
        alone = message.what in ("remove", "clear") and self._is_alone(group)
        if message.what == "clear":
            self._clear(group)
            return Changed(0, (), (), alone)
        if fd >= 0:
            self._begin_copy(connection, request_id, group, message, fd)
            return None
        done = 0
        refused: list[tuple[int, FailureCode, str]] = []
        for place, key in enumerate(message.keys):
            self._take_in(group, key)
            if message.what == "incr":
                return self._incr(group, key, message)
            outcome = self._change_one(group, key, place, message)
            if isinstance(outcome, bool):
                done += outcome
            else:
                code, text = outcome
                refused.append((place, code, "" if refused else text))  # a thousand texts have no room in a frame
        return Changed(done, tuple(refused), (), alone)

    def _is_alone(self, group: HostGroup) -> bool:
        """Whether nothing of the group is here, and no worker but the one who asks."""
        here = self._stores.unsettled or (group.arena is not None and group.items)
        return len(self._workers) <= 1 and not here

    # ---- Each kind

    def _change_one(self, group: HostGroup, key: bytes, place: int, message: Change) -> bool | Refusal:
        if message.what == "remove":
            return self._remove(group, key, message.version)
        if message.what == "touch":
            return self._touch(group, key, message)
        value = message.values[place]
        assert isinstance(value, bytes)
        return self._put(group, key, value, message)

    def _remove(self, group: HostGroup, key: bytes, version: int | None) -> bool:
        if version is not None and ((found := self._find(group, key)) is None or found.version != version):
            return False
        self._begin(group, key)  # also where there is nothing: what is under way is not to come
        if group.arena is None or not group.arena.remove(key):
            return False
        self._control.count(group.id, Counter.REMOVALS)
        return True

    def _clear(self, group: HostGroup) -> None:
        self._stores.settle()
        self._flights.clear(group)
        group.clears += 1
        self._control.note_clear(group.id)
        self._control.raise_changes(group.id)
        if group.arena is not None:
            self._control.count(group.id, Counter.REMOVALS, group.items)
            group.arena.clear()

    def _touch(self, group: HostGroup, key: bytes, message: Change) -> bool:
        life = group.life(message)
        if (found := self._find(group, key)) is None or life is None or found.absent or group.arena is None:
            return False
        return group.arena.touch(key, life.fresh, life.dead)

    def _put(self, group: HostGroup, key: bytes, value: bytes, message: Change) -> bool | Refusal:
        """Put a value, if its condition holds."""
        if not self._may_put(group, key, message):
            return False
        self._begin(group, key)
        if group.put(key, value, group.life(message)):
            return True
        return self._unkept(group, key, len(value))

    def _find(self, group: HostGroup, key: bytes) -> Found | None:
        return None if group.arena is None else group.arena.find(key)

    def _may_put(self, group: HostGroup, key: bytes, message: Change) -> bool:
        if message.what == "set" and message.version is None:
            return True
        found = self._find(group, key)
        is_there = found is not None and not found.absent
        return not is_there if message.what == "add" else found is not None and found.version == message.version

    def _unkept(self, group: HostGroup, key: bytes, size: int) -> Refusal:
        """A value that was to be put cannot be kept: the old one goes, since it is none any more."""
        most = 0
        if group.arena is not None:
            group.arena.remove(key)
            most = group.arena.max_entry
        if group.cache_bytes == 0 or (group.arena is not None and len(key) + size > most):
            got = f"group {group.name!r}: got a key and value of {len(key) + size} bytes"
            return FailureCode.TOO_LARGE, f"{got}, expected at most {most}; raise cache_bytes or --max-value-share"
        return FailureCode.NO_ROOM, (
            f"group {group.name!r}: no room for a value of {size} bytes in its {format_size(group.cache_bytes)}; "
            "release views, or enlarge /dev/shm"
        )

    def _incr(self, group: HostGroup, key: bytes, message: Change) -> Changed:
        found = self._find(group, key)
        life: Life | None
        if found is not None and not found.absent:
            if (number := _number(found)) is None:
                got = f"incr: got a value of {len(found.value)} bytes that is no number"
                return _refused(FailureCode.NOT_A_NUMBER, f"{got}, expected ASCII decimal of 64 bits")
            number += message.amount
            life = Life(found.fresh, found.dead)
        elif message.initial is None:
            text = f"incr: group {group.name!r} has no value of {key[:100]!r}, and got no initial"
            return _refused(FailureCode.NOT_FOUND, text)
        else:
            number, life = message.initial, group.life(message)
        if not LEAST <= number <= MOST:
            return _refused(FailureCode.OVERFLOW, f"incr: got a sum of {number}, expected one of 64 bits")
        self._begin(group, key)
        if not group.put(key, b"%d" % number, life):
            return _refused(*self._unkept(group, key, NUMBER_BYTES))
        return Changed(number, (), (), False)

    # ---- Large values

    def _begin_copy(self, connection: Connection, request_id: int, group: HostGroup, message: Change, fd: int) -> None:
        """Copy a value in steps. It takes effect when it is there: after all changes that were done meanwhile."""
        size = message.values[0]
        assert isinstance(size, int)
        memfd.check(fd, size)
        copying = self._copy(connection, request_id, group, message, os.dup(fd), size)
        task = asyncio.get_running_loop().create_task(copying)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(
        self, connection: Connection, request_id: int, group: HostGroup, message: Change, fd: int, size: int
    ) -> None:
        key = message.keys[0]
        holds, clears = True, -1  # whether its condition does, at the end

        def takes_effect() -> bool:
            nonlocal holds
            self._take_in(group, key)
            if holds := self._may_put(group, key, message):
                self._begin(group, key)
            return holds

        kept = False
        try:
            life = group.life(message)
            while life is not None and holds and not kept and clears != group.clears:
                clears = group.clears  # what is cleared while it is copied has lost its place, and is copied anew
                kept = await group.put_from(key, fd, size, life, takes_effect)
        except (OSError, BufferError) as error:  # a BufferError: the coordinator ended meanwhile
            logger.error("group %r: a value of %d bytes was not set: %s", group.name, size, error)
        finally:
            os.close(fd)
        refused: tuple[tuple[int, FailureCode, str], ...] = ()
        if not kept and holds and takes_effect():
            refused = ((0, *self._unkept(group, key, size)),)
        connection.send(Changed(int(holds and not refused), refused, (), False), request_id)


def _number(found: Found) -> int | None:
    """The number that is there, if it is one of 64 bits."""
    text = bytes(found.value[: NUMBER_BYTES + 1])
    number = int(text) if _NUMBER.fullmatch(text) else None
    return None if number is None or not LEAST <= number <= MOST else number


def _refused(code: FailureCode, text: str) -> Changed:
    return Changed(0, ((0, code, text),), (), False)
