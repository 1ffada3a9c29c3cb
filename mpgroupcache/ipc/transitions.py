"""A flight's states, and what each event leads to, as data. flights.py says what the words mean, and does the steps.

Everything that affects the state machine lives in this file: a step that is not in the table is never done.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final


class _Plain(Enum):
    """An enum whose members hash as the objects they are: ``Enum`` hashes their names, in Python, at every look-up."""

    __hash__ = object.__hash__


class State(_Plain):
    """Of a flight."""

    AWAY = auto()  # new, and its key is a remote peer's; never seen between two calls
    FETCHING = auto()  # from that peer
    UNLEASED = auto()  # new, or between two leases; never seen between two calls
    SEEKING = auto()  # a loader for guests: the driver is about to say who it is
    LEASED = auto()
    ENDED = auto()


class Event(_Plain):
    ASK = auto()  # a caller wants the key
    VISIT = auto()  # a guest wants the key
    ENLIST = auto()  # a loader was found
    NO_LOADER = auto()  # none was found
    FETCHED = auto()  # the peer sent the value
    REFUSED = auto()  # the peer's loader raised
    UNREACHED = auto()  # the peer failed
    VALUE = auto()  # a lease's value is there
    ERROR = auto()  # a lease's loader raised
    RETURN = auto()  # a lease's loader was left without value or error
    REVOKE = auto()  # a lease's holder is silent, or over its time
    CANCEL = auto()  # a caller gave up
    LOSE = auto()  # a caller's connection is closed
    NEXT = auto()  # raised here: the flight is without a lease


class Role(_Plain):
    """Of the waiter that an event comes from."""

    NOBODY = auto()  # in no flight (yet)
    WAITER = auto()
    GUEST = auto()  # a waiter that cannot load
    HOLDER = auto()  # of the live lease
    REVOKED = auto()  # of a lease that was taken away


class Step(_Plain):
    LEAD = auto()  # the waiter enters the flight as its holder
    JOIN = auto()  # the waiter queues up
    FETCH = auto()  # the waiter queues up, and the peer is asked
    GRANT = auto()  # the waiter that came first becomes the holder
    SEEK = auto()  # the driver is to find a loader
    DELIVER = auto()  # all who wait get the value
    FAIL = auto()  # all who wait get the error
    REMEMBER = auto()  # the holder becomes revoked, its lease stays known
    REMOVE = auto()  # the waiter leaves, its lease is forgotten
    NONE = auto()


def _of_revoked(state: State) -> dict[tuple[Event, Role], tuple[Step, State]]:
    """What comes from one whose lease was taken away: only its value still counts."""
    return {
        (Event.VALUE, Role.REVOKED): (Step.DELIVER, State.ENDED),
        (Event.ERROR, Role.REVOKED): (Step.REMOVE, state),
        (Event.RETURN, Role.REVOKED): (Step.REMOVE, state),
        (Event.REVOKE, Role.REVOKED): (Step.NONE, state),
        (Event.CANCEL, Role.REVOKED): (Step.REMOVE, state),
        (Event.LOSE, Role.REVOKED): (Step.REMOVE, state),
    }


TRANSITIONS: Final[Mapping[State, Mapping[tuple[Event, Role], tuple[Step, State]]]] = {
    State.AWAY: {
        (Event.ASK, Role.NOBODY): (Step.FETCH, State.FETCHING),
    },
    State.FETCHING: {  # also without a waiter: the value is still good for the hot cache
        (Event.ASK, Role.NOBODY): (Step.JOIN, State.FETCHING),
        (Event.CANCEL, Role.WAITER): (Step.REMOVE, State.FETCHING),
        (Event.LOSE, Role.WAITER): (Step.REMOVE, State.FETCHING),
        (Event.FETCHED, Role.NOBODY): (Step.DELIVER, State.ENDED),
        (Event.REFUSED, Role.NOBODY): (Step.FAIL, State.ENDED),
        (Event.UNREACHED, Role.NOBODY): (Step.NONE, State.ENDED),  # its waiters ask again
    },
    State.SEEKING: {
        (Event.ASK, Role.NOBODY): (Step.LEAD, State.LEASED),
        (Event.VISIT, Role.NOBODY): (Step.JOIN, State.SEEKING),
        (Event.CANCEL, Role.GUEST): (Step.REMOVE, State.SEEKING),
        (Event.LOSE, Role.GUEST): (Step.REMOVE, State.SEEKING),
        (Event.ENLIST, Role.NOBODY): (Step.LEAD, State.LEASED),
        (Event.NO_LOADER, Role.NOBODY): (Step.FAIL, State.ENDED),
        **_of_revoked(State.SEEKING),  # an owner that is lost may have had the live lease as well
    },
    State.UNLEASED: {
        (Event.ASK, Role.NOBODY): (Step.LEAD, State.LEASED),
        (Event.VISIT, Role.NOBODY): (Step.JOIN, State.UNLEASED),
        (Event.NEXT, Role.WAITER): (Step.GRANT, State.LEASED),
        (Event.NEXT, Role.GUEST): (Step.SEEK, State.SEEKING),  # no other waiter is left
        (Event.NEXT, Role.NOBODY): (Step.NONE, State.ENDED),  # no waiter is left
    },
    State.LEASED: {
        (Event.ASK, Role.NOBODY): (Step.JOIN, State.LEASED),
        (Event.VISIT, Role.NOBODY): (Step.JOIN, State.LEASED),
        (Event.CANCEL, Role.WAITER): (Step.REMOVE, State.LEASED),
        (Event.LOSE, Role.WAITER): (Step.REMOVE, State.LEASED),
        (Event.CANCEL, Role.GUEST): (Step.REMOVE, State.LEASED),
        (Event.LOSE, Role.GUEST): (Step.REMOVE, State.LEASED),
        # From the holder.
        (Event.VALUE, Role.HOLDER): (Step.DELIVER, State.ENDED),
        (Event.ERROR, Role.HOLDER): (Step.FAIL, State.ENDED),
        (Event.RETURN, Role.HOLDER): (Step.REMOVE, State.UNLEASED),
        (Event.REVOKE, Role.HOLDER): (Step.REMEMBER, State.UNLEASED),
        (Event.CANCEL, Role.HOLDER): (Step.REMOVE, State.UNLEASED),  # its cancellation crossed the grant
        (Event.LOSE, Role.HOLDER): (Step.REMOVE, State.UNLEASED),
        **_of_revoked(State.LEASED),
    },
    State.ENDED: {},  # nothing leads to an ended flight any more
}
