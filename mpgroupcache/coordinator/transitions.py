"""A flight's states, and what each event leads to, as data. flights.py says what the words mean, and does the steps.

Everything that affects the state machine lives in this file: a step that is not in the table is never done. The words
are strings, which type checkers hold to these lists: before Python 3.12 each mention of an enum's member costs a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

State: TypeAlias = Literal[
    "away",  # new, and its key is a remote peer's; never seen between two calls
    "fetching",  # from that peer
    "unleased",  # new, or between two leases; never seen between two calls
    "seeking",  # a loader for guests: the driver is about to say who it is
    "leased",
    "ended",
]
"""Of a flight."""

Event: TypeAlias = Literal[
    "ask",  # a caller wants the key
    "visit",  # a guest wants the key
    "begin",  # nobody asks, but the key is to be loaded
    "change",  # the key names another value from now on, or none
    "replace",  # a load begins that is to be a later one
    "enlist",  # a loader was found
    "no_loader",  # none was found
    "fetched",  # the peer sent the value
    "refused",  # the peer's loader raised
    "unreached",  # the peer failed
    "value",  # a lease's value is there
    "error",  # a lease's loader raised
    "return",  # a lease's loader was left without value or error
    "revoke",  # a lease's holder is silent, or over its time
    "cancel",  # a caller gave up
    "lose",  # a caller's connection is closed
    "next",  # raised here: the flight is without a lease
]
"""What a driver tells of."""

Role: TypeAlias = Literal[
    "nobody",  # in no flight (yet)
    "waiter",
    "guest",  # a waiter that cannot load
    "holder",  # of the live lease
    "revoked",  # of a lease that was taken away
]
"""Of the waiter that an event comes from."""

Step: TypeAlias = Literal[
    "lead",  # the waiter enters the flight as its holder
    "join",  # the waiter queues up
    "fetch",  # the waiter queues up, and the peer is asked
    "fetch_alone",  # the peer is asked
    "grant",  # the waiter that came first becomes the holder
    "seek",  # the driver is to find a loader
    "deliver",  # all who wait get the value
    "fail",  # all who wait get the error
    "overtake",  # the flight goes out of reach: it goes on, but nobody joins it, and its value is not published
    "replace",  # the same, but its value is published, unless a later flight has brought one
    "remember",  # the holder becomes revoked, its lease stays known
    "remove",  # the waiter leaves, its lease is forgotten
    "none",
]
"""What the table of flights does then."""


def _of_revoked(state: State) -> dict[tuple[Event, Role], tuple[Step, State]]:
    """What comes from one whose lease was taken away: only its value still counts."""
    return {
        ("value", "revoked"): ("deliver", "ended"),
        ("error", "revoked"): ("remove", state),
        ("return", "revoked"): ("remove", state),
        ("revoke", "revoked"): ("none", state),
        ("cancel", "revoked"): ("remove", state),
        ("lose", "revoked"): ("remove", state),
    }


TRANSITIONS: Final[Mapping[State, Mapping[tuple[Event, Role], tuple[Step, State]]]] = {
    "away": {
        ("ask", "nobody"): ("fetch", "fetching"),
        ("begin", "nobody"): ("fetch_alone", "fetching"),
    },
    "fetching": {  # also without a waiter: the value is still good for the hot cache
        ("ask", "nobody"): ("join", "fetching"),
        ("change", "nobody"): ("overtake", "fetching"),
        ("replace", "nobody"): ("replace", "fetching"),
        ("cancel", "waiter"): ("remove", "fetching"),
        ("lose", "waiter"): ("remove", "fetching"),
        ("fetched", "nobody"): ("deliver", "ended"),
        ("refused", "nobody"): ("fail", "ended"),
        ("unreached", "nobody"): ("none", "ended"),  # its waiters ask again
    },
    "seeking": {
        ("ask", "nobody"): ("lead", "leased"),
        ("visit", "nobody"): ("join", "seeking"),
        ("change", "nobody"): ("overtake", "seeking"),
        ("replace", "nobody"): ("replace", "seeking"),
        ("cancel", "guest"): ("remove", "seeking"),
        ("lose", "guest"): ("remove", "seeking"),
        ("enlist", "nobody"): ("lead", "leased"),
        ("no_loader", "nobody"): ("fail", "ended"),
        **_of_revoked("seeking"),  # an owner that is lost may have had the live lease as well
    },
    "unleased": {
        ("ask", "nobody"): ("lead", "leased"),
        ("visit", "nobody"): ("join", "unleased"),
        ("begin", "nobody"): ("lead", "leased"),
        ("next", "waiter"): ("grant", "leased"),
        ("next", "guest"): ("seek", "seeking"),  # no other waiter is left
        ("next", "nobody"): ("none", "ended"),  # no waiter is left
    },
    "leased": {
        ("ask", "nobody"): ("join", "leased"),
        ("visit", "nobody"): ("join", "leased"),
        ("change", "nobody"): ("overtake", "leased"),
        ("replace", "nobody"): ("replace", "leased"),
        ("cancel", "waiter"): ("remove", "leased"),
        ("lose", "waiter"): ("remove", "leased"),
        ("cancel", "guest"): ("remove", "leased"),
        ("lose", "guest"): ("remove", "leased"),
        # From the holder.
        ("value", "holder"): ("deliver", "ended"),
        ("error", "holder"): ("fail", "ended"),
        ("return", "holder"): ("remove", "unleased"),
        ("revoke", "holder"): ("remember", "unleased"),
        ("cancel", "holder"): ("remove", "unleased"),  # its cancellation crossed the grant
        ("lose", "holder"): ("remove", "unleased"),
        **_of_revoked("leased"),
    },
    "ended": {},  # nothing leads to an ended flight any more
}
