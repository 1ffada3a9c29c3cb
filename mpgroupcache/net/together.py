"""Many keys that a peer is asked for in one request, and those of them that it wants to be asked for alone."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from mpgroupcache.errors import ProtocolError
from mpgroupcache.net.outcomes import Reply, Unreached, outcomes_of
from mpgroupcache.net.peerwire import Ability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpgroupcache.net.outcomes import Outcome
    from mpgroupcache.net.peer import Peer

logger = logging.getLogger(__name__)


class Together:
    """The keys of one request, from when they are asked for until each has its one outcome.

    All within the time of one fetch, however much of it is asked alone.
    """

    def __init__(
        self,
        peer: Peer,
        timeout: float,
        group: str,
        keys: Sequence[bytes],
        done: Callable[[bytes, Outcome], None],
    ) -> None:
        """``keys``: each of them once."""
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout
        self._group = group
        self._keys = keys
        self._done = done
        self._alone: set[bytes] = set()  # that are asked for alone, and have no outcome yet
        self._timer: asyncio.TimerHandle | None = None

    def take(self, answer: Reply | Unreached) -> None:
        """The request has ended; keys that it leaves open are asked for alone."""
        outcomes: Sequence[Outcome | None]
        if isinstance(answer, Unreached):
            outcomes = [answer] * len(self._keys)
        else:
            try:
                outcomes = outcomes_of(self._peer.url, answer, len(self._keys))
            except ProtocolError as error:
                # It may be another peer by now, at the same URL: one that cannot answer so, and did not look at it.
                still = Ability.BATCH in (self._peer.abilities or ())
                outcomes = [Unreached(str(error)) if still else None] * len(self._keys)
        for key, outcome in zip(self._keys, outcomes, strict=True):
            if outcome is not None:
                self._settle(key, outcome)
        self._ask_alone([key for key, outcome in zip(self._keys, outcomes, strict=True) if outcome is None])

    def _ask_alone(self, keys: list[bytes]) -> None:
        if not keys:
            return
        self._alone.update(keys)
        self._timer = self._loop.call_at(self._deadline, self._give_up)
        for key in keys:
            self._peer.fetch(self._group, key, partial(self._take_alone, key))

    def _take_alone(self, key: bytes, outcome: Outcome) -> None:
        if key not in self._alone:
            return
        self._alone.remove(key)
        if not self._alone and self._timer is not None:
            self._timer.cancel()
        self._settle(key, outcome)

    def _give_up(self) -> None:
        for key in list(self._alone):
            self._take_alone(key, Unreached(f"{self._peer.url}: no answer in time, alone or with other keys"))

    def _settle(self, key: bytes, outcome: Outcome) -> None:
        try:
            self._done(key, outcome)
        except Exception:  # a defect of ours: the other keys are not to suffer from it
            logger.exception("%s: an outcome was not taken", self._peer.url)
