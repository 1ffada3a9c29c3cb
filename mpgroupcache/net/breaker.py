"""A circuit breaker: a dead peer costs one timeout, not one for each request. No sockets, no clock, no chance.

Closed, requests go to the peer. Open, they do not; after a delay a *probe* is sent, which asks for nothing and for
which nobody waits. One probe is under way at a time. Any answer closes, whoever asked.

What speaks against a peer: no connection, no answer in time, a connection that is lost before the answer is complete,
and what is not HTTP. These cost time, and are what a dead, stopped or cut-off peer looks like. Any answer in HTTP, also
a refusal and an error (Go's 500 for a loader that failed), is a live peer's and costs a round trip only.

One request that fails may be about its key: a slow loader, or one that panics in Go, which closes the connection. So a
failure does not count where the peer has answered another request since the one that failed began. A dead peer answers
nothing, and opens the breaker with the first request that began after its last answer.

Each probe that fails doubles the delay. A probe's answer does not reset it, only a real request's does: a peer whose
door is open and whose loaders hang is left alone for longer each time.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FIRST_DELAY: Final = 0.5  # s; a restart of a peer is over by then, or by the next one
MAX_DELAY: Final = 10.0  # s; how long a peer that is back may be passed over. A connection in 10 s is nothing to either


class _Plain(Enum):
    """An enum whose members hash as the objects they are: ``Enum`` hashes their names, in Python, at every look-up."""

    __hash__ = object.__hash__


class State(_Plain):
    CLOSED = auto()
    OPEN = auto()
    PROBING = auto()  # open, with a probe under way


class Event(_Plain):
    ANSWER = auto()  # to a request, maybe one that was under way when the breaker opened
    FAILURE = auto()  # of a request, and it counts
    DUE = auto()  # the delay is over
    PROBE_ANSWER = auto()
    PROBE_FAILURE = auto()


class Step(_Plain):
    RESET = auto()  # the next delay is the first one again
    DELAY = auto()  # a delay begins, and the next one is twice as long
    NONE = auto()


TRANSITIONS: Final[Mapping[State, Mapping[Event, tuple[Step, State]]]] = {
    State.CLOSED: {
        Event.ANSWER: (Step.RESET, State.CLOSED),
        Event.FAILURE: (Step.DELAY, State.OPEN),
    },
    State.OPEN: {
        Event.ANSWER: (Step.RESET, State.CLOSED),
        Event.FAILURE: (Step.NONE, State.OPEN),
        Event.DUE: (Step.NONE, State.PROBING),
    },
    State.PROBING: {
        Event.ANSWER: (Step.RESET, State.CLOSED),  # the probe is given up
        Event.FAILURE: (Step.NONE, State.PROBING),
        Event.PROBE_ANSWER: (Step.NONE, State.CLOSED),
        Event.PROBE_FAILURE: (Step.DELAY, State.OPEN),
    },
}


class Breaker:
    """One peer's breaker. Times are seconds on any clock that its driver likes.

    This code assumes that its driver sends ``probe`` when ``delay`` is over, gives a probe up when the breaker closes
    without it, and reports each probe's end.
    """

    __slots__ = ("_answered_at", "_jitter", "_next_delay", "delay", "state")

    def __init__(self, jitter: Callable[[], float]) -> None:
        """``jitter``: a number from 0 to 1; a delay is between half and all of what it would be without."""
        self._jitter = jitter
        self._answered_at = float("-inf")
        self._next_delay = FIRST_DELAY
        self.state = State.CLOSED
        self.delay = 0.0
        """Seconds from the last opening, or failed probe, to the next probe."""

    def __repr__(self) -> str:
        return f"<Breaker: {self.state.name.lower()}, next delay {self._next_delay:g} s>"

    @property
    def closed(self) -> bool:
        """Whether requests go to the peer."""
        return self.state is State.CLOSED

    def answered(self, now: float, probe: bool = False) -> bool:
        """The peer answered. Returns whether that closed the breaker."""
        self._answered_at = now
        return self._fire(Event.PROBE_ANSWER if probe else Event.ANSWER)

    def failed(self, began: float, probe: bool = False) -> bool:
        """A request (or connection) that began at that time failed. Returns whether a delay begins."""
        if probe:
            return self._fire(Event.PROBE_FAILURE)
        return began >= self._answered_at and self._fire(Event.FAILURE)

    def probe(self) -> None:
        """The delay is over; the probe goes out."""
        self._fire(Event.DUE)

    def _fire(self, event: Event) -> bool:
        """Return whether the state is another one now."""
        before = self.state
        step, self.state = TRANSITIONS[before][event]
        match step:
            case Step.RESET:
                self._next_delay = FIRST_DELAY
            case Step.DELAY:
                self.delay = self._next_delay * (0.5 + 0.5 * self._jitter())
                self._next_delay = min(2 * self._next_delay, MAX_DELAY)
        return self.state is not before
