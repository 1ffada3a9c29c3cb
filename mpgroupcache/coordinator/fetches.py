"""Flights that ask a key's owner, another host, and what becomes of its answers."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mpgroupcache.coordinator.flights import Action, Fetch, Flight, FlightTable
from mpgroupcache.coordinator.hostgroups import HostGroup
from mpgroupcache.coordinator.refreshes import Refreshes
from mpgroupcache.coordinator.stores import Delivery
from mpgroupcache.counters import Counter
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.fields import INLINE_BYTES
from mpgroupcache.limits import MAX_ABSENT_TEXT
from mpgroupcache.shm._control import Control

if TYPE_CHECKING:
    from mpgroupcache.net.outcomes import Fetched, Outcome
    from mpgroupcache.net.peer import Peer

logger = logging.getLogger(__name__)

REPORT_INTERVAL, REPORT_AGAIN = 10.0, 600.0  # s between two log messages on one peer; with the same text


class Fetches:
    """Asks owners, and tells the flights how that ended."""

    def __init__(
        self,
        control: Control,
        flights: FlightTable,
        refreshes: Refreshes,
        carry_out: Callable[[list[Action]], None],
    ) -> None:
        self._control = control
        self._flights = flights
        self._refreshes = refreshes
        self._carry_out = carry_out
        self._useless: dict[str, tuple[str, float]] = {}  # by peer: what was said last of its answers, and when

    def begin(self, action: Fetch) -> None:
        """Ask the flight's peer."""
        flight = action.flight
        group, key = flight.key
        flight.peer.fetch(group.name, key, functools.partial(self._end, group, flight))

    def begin_many(self, actions: Sequence[Fetch]) -> None:
        """Ask many flights' peers, each for all that it owns of a group at once if it can answer so."""
        asked: dict[tuple[Peer, HostGroup], dict[bytes, Flight]] = {}
        for action in actions:
            group, key = action.flight.key
            asked.setdefault((action.flight.peer, group), {})[key] = action.flight
        for (peer, group), flights in asked.items():
            peer.fetch_many(group.name, list(flights), functools.partial(self._end_one, group, flights))

    def _end_one(self, group: HostGroup, flights: Mapping[bytes, Flight], key: bytes, outcome: Outcome) -> None:
        self._end(group, flights[key], outcome)

    def _end(self, group: HostGroup, flight: Flight, outcome: Outcome) -> None:
        from mpgroupcache.net.outcomes import (
            Absent,
            Fetched,
            OwnerError,
            Unreached,
        )  # as peering.py does: only with peers

        match outcome:
            case Fetched():
                self._control.count(group.id, Counter.PEER_LOADS)
                self._keep(group, flight, outcome)
            case Absent(text=text):
                self._control.count(group.id, Counter.PEER_LOADS)
                life, absence = group.owned_life(outcome, absent=True), text.encode()[:MAX_ABSENT_TEXT]
                if not flight.overtaken:
                    group.put(flight.key[1], absence, life, absent=True, copy=0)
                self._carry_out(self._flights.fetched(flight, Delivery(absence, life=life, absent=True)))
            case OwnerError(type_name=type_name, text=text):
                self._control.count(group.id, Counter.PEER_ERRORS)
                self._refreshes.put_off(flight)
                self._carry_out(self._flights.refused(flight, (type_name, text)))
            case Unreached(reason=reason):
                self._control.count(group.id, Counter.PEER_ERRORS)
                self._report_useless(flight.peer, reason)
                if not flight.waiters:  # else one of them goes on, and loads here
                    self._refreshes.put_off(flight)
                self._carry_out(self._flights.unreached(flight))

    def _keep(self, group: HostGroup, flight: Flight, fetched: Fetched) -> None:
        """The owner's value: a copy, if it is kept here."""
        value, life = fetched.value, group.owned_life(fetched)
        version = group.new_version()
        if not flight.overtaken:
            owners = fetched.version or 0
            group.promote(flight.key[1], value, fetched.minute_qps, life, version=version, owners=owners)
        delivered = fetched.version or version
        if len(value) <= INLINE_BYTES:
            delivery = Delivery(value, fetched=True, version=delivered, life=life)
            self._carry_out(self._flights.fetched(flight, delivery))
            return
        try:
            fd = memfd.make(value)
        except OSError as error:
            logger.error("group %r: a peer's value of %d bytes: %s", group.name, len(value), error)
            self._carry_out(self._flights.unreached(flight))
            return
        delivery = Delivery(len(value), fd, fetched=True, version=delivered, life=life)
        self._carry_out(self._flights.fetched(flight, delivery))
        os.close(fd)

    def _report_useless(self, peer: Peer, reason: str) -> None:
        """Say once what is wrong with the answers of a peer that lives, such as one of another base path.

        Of one that fails its client has said so.
        """
        now = time.monotonic()
        last, at = self._useless.get(peer.url, ("", -REPORT_AGAIN))
        if peer.available and now - at >= (REPORT_AGAIN if reason == last else REPORT_INTERVAL):
            self._useless[peer.url] = reason, now
            logger.warning("a peer's answer is of no use, and its key is loaded here: %s", reason)
