"""A miss: one program for threads and loops, with a coordinator and without (waits.py says what it may wait for).

1. The callers of this process that miss one key share a flight: the first leads, the others wait for it.
2. Who leads asks the port. The value came meanwhile, or another process loads it: that is everybody's answer.
3. Or the lease is granted: who leads loads, by a peer that its group has picked, or by the getter. The product ends the
   lease, the flight, and the miss.

Guarantees: each caller has the value, an error, or has given up; whatever strikes it, the next one leads then, and the
lease goes back. A caller of a later change count joins no flight from before: the count is noted as the flight begins.
Where the count cannot be seen, each caller has one of its own.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol, cast

from msgspec import Struct

from mpgroupcache.ages import FOREVER, Ages, fresh_here
from mpgroupcache.counters import Counter
from mpgroupcache.errors import (
    CoordinatorError,
    CoordinatorUnavailable,
    NotFound,
    ProtocolError,
    describe_error,
)
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.contexts import unpack_context
from mpgroupcache.ipc.messages import Changed, Failed, FailureCode, Hit, Lease, Load, Origin, Value
from mpgroupcache.product import Product, absence
from mpgroupcache.shm._hold import Flights, Hold, Seat
from mpgroupcache.shm._reader import Mapping
from mpgroupcache.shm._view import ByteView, loaded_view
from mpgroupcache.worker.config import says_not_found
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.nesting import begin_load, end_load, held
from mpgroupcache.worker.port import Alone, Port
from mpgroupcache.worker.waits import Apart, Flush, Make, Maker, Request, Steps, Until

logger = logging.getLogger(__name__)

GLANCE = 0.05  # s

UNSERVED = (CoordinatorUnavailable, CoordinatorError, ProtocolError)  # of a request: no get fails because of it


class LocalGroup(Protocol):
    """What a miss asks of its group."""

    getter: Maker | None
    """None: it has none, and is no more than what is put there."""
    ages: Ages

    @property
    def changes(self) -> int:
        """How many changes of the group this process has seen the begin of; below 0: that cannot be seen."""

    @property
    def name(self) -> str:
        """What the host calls it."""

    def ready_link(self) -> Link | None:
        """The link on which it is attached, if that works: a look, and no more."""

    @property
    def readable(self) -> bool:
        """Whether this process could see a value that is in the arena."""

    def take_loop(self, key: bytes) -> Any:
        """The event loop on which it is to be loaded in the place of a stale value; None: wherever."""

    def find(self, key: bytes, /) -> ByteView | None:
        """The value in shared memory, or None. Raises ``NotFound`` where it is kept that there is none."""

    def find_many(self, keys: Sequence[bytes], /) -> tuple[dict[bytes, ByteView], list[bytes], dict[bytes, str]]:
        """``find`` of many: views by key, the keys that are missing, and why there is none of others."""

    def find_kept(self, key: bytes, /) -> ByteView | None:
        """The same, and what is dead and kept for a load that fails."""

    def count(self, counter: int, n: int = 1, /) -> None:
        """Add to one of the group's counters."""

    def picks(self) -> bool:
        """Whether the group picks peers itself."""

    def pick(self, key: bytes) -> Maker | None:
        """The peer that it has picked for a key; None: this host."""

    def blame(self, error: Exception) -> None:
        """A peer that was picked has failed."""


class LocalProcess(Protocol):
    """What a miss asks of its process."""

    flights: Flights
    alone: Alone

    @property
    def alone_for(self) -> float:
        """For how many seconds no coordinator has answered."""

    def is_served(self) -> bool:
        """Whether there is a coordinator, or its memory, where this process would look for one."""

    def retry_at(self, group: Any) -> float:
        """When an attempt to attach a group is of use again, of ``time.monotonic()``."""

    def is_attached(self, *groups: Any) -> bool:
        """Whether there is a link, on which these groups are attached."""

    def attach(self, *groups: Any, starts: bool = True) -> Until | None:
        """Begin to attach groups; what to wait for. None: it is of no use to wait now.

        ``starts``: whether a private coordinator is started for it.
        """


# ---- What a flight of this process ends with


class Given(Struct, frozen=True):
    """A value: its bytes, or where they are mapped. Each caller makes a view of its own."""

    value: bytes | Mapping
    origin: Origin
    version: int | None = None
    fresh: float | None = None  # s left; None: for ever


class Broken(Struct, frozen=True):
    """Its load has failed."""

    code: FailureCode
    type_name: str
    message: str
    cause: Exception | None

    def exception(self) -> Exception:
        """One for each caller: raising one object in many threads mixes up its tracebacks."""
        error = Failed(self.code, self.type_name, self.message).exception()
        error.__cause__ = self.cause
        return error


_blind = itertools.count(1)

LOOK_AGAIN = object()
"""It is in the arena."""


# ---- The programs


def miss(
    hold: Hold,
    process: LocalProcess,
    group: LocalGroup,
    key: bytes,
    ctx: Any,
    here: bool,
    maker: Maker | None = None,
) -> Steps[ByteView]:
    """Get what was not there. ``here``: no peer is to be asked, since it is a peer that asks.

    ``maker``: who loads it, where that is not the group's getter.
    """
    found = yield from up_to_load(hold, process, group, key, ctx, here, maker)
    if isinstance(found, Apart):
        found = yield found
    return cast("ByteView", found)


def up_to_load(
    hold: Hold,
    process: LocalProcess,
    group: LocalGroup,
    key: bytes,
    ctx: Any,
    here: bool,
    maker: Maker | None = None,
) -> Steps[ByteView | Apart]:
    """Get what was not there, up to the load, which is returned where it is this caller's."""
    peer = None
    if not here and group.picks():
        peer = group.pick(key)
        here = peer is None
    try:
        link = group.ready_link()
        if link is None:
            yield from attached(process, group)
            link = group.ready_link()
            if (view := group.find(key)) is not None:
                return view
            if link is None and (kept := process.alone.find(group.name, key, changes_of(process, group))) is not None:
                group.count(Counter.MAIN_HITS)
                return kept
        port: Port = link or process.alone
        copy = not group.readable
        while True:
            seats = held()
            place = port.place(group.name, key, here, peer is not None, seats)
            seat = hold.board(process.flights, place, changes_of(process, group), seats)
            if not seat.leads:
                port.join(seat)
                yield seat
            if not seat.leads:
                found = outcome_of(group, key, seat.outcome)
            else:
                request, found, version = None, None, None
                try:
                    request = port.ask(hold, group.name, seat, key, copy, here)
                    answer = None if request is None else (yield request)
                    if type(answer) is Lease:
                        seat.lease, version = answer.lease, answer.version
                    elif request is not None:
                        found = settle(group, key, seat, request, answer)
                except UNSERVED as error:
                    logger.info("group %r: a value is loaded without the coordinator: %s", group.name, error)
                    port, request, answer = process.alone, None, None
                if answer is None or seat.lease:
                    break
            if found is not None:
                return found
            copy = True
        group.count(Counter.LOADS)
    except BaseException:
        group.count(Counter.LOADS)  # it was a get all the same
        raise
    return Apart(load, (group, port, seat, request, key, ctx, peer, maker or group.getter, version))


def look(hold: Hold, process: LocalProcess, group: LocalGroup, key: bytes) -> Steps[ByteView]:
    """Get what was not there, of a group that has no loader. Raises ``NotFound``."""
    try:
        link = group.ready_link()
        if link is None:
            yield from attached(process, group)
            link = group.ready_link()
        if (view := group.find(key)) is not None:
            return view
        if link is None:
            if (kept := process.alone.find(group.name, key, changes_of(process, group))) is not None:
                return kept
        elif not group.readable:  # else it was seen that there is none
            try:
                request = link.ask(hold, group.name, None, key, True, True, "look")
                answer = yield request
            except UNSERVED as error:
                logger.info("group %r: nobody says whether a value is there: %s", group.name, error)
            else:
                if isinstance(answer, Value):
                    return _take(group, _given(request, answer))
        raise NotFound(f"group {group.name!r} has no value of {key[:100]!r}, and no loader")
    finally:
        group.count(Counter.LOADS)


def changes_of(process: LocalProcess, group: LocalGroup) -> int:
    """The change count to begin with. Where it cannot be seen, one that nobody else has."""
    changes = group.changes
    return blind() if changes < 0 or (changes == 0 and process.is_served()) else changes


def blind() -> int:
    """A change count that nobody else has, below 0."""
    return -next(_blind)


def attached(process: LocalProcess, *groups: Any, patient: bool = False) -> Steps[bool]:
    """Attach groups, as far as that is worth waiting for; ``patient``: as long as it takes. Whether they are."""
    for _ in range(2):  # of the first attempt others may have thought, who knew nothing of these groups
        if process.is_attached(*groups) or (wait := process.attach(*groups)) is None:
            break
        if not (yield Until(wait.attempt, None) if patient else wait):
            break
    return process.is_attached(*groups)


def glance(_hold: Hold, process: LocalProcess, group: LocalGroup) -> Steps[None]:
    """Attach a group for whoever only looks: where that is soon."""
    if (wait := process.attach(group, starts=False)) is not None:
        yield Until(wait.attempt, time.monotonic() + GLANCE)


def load(
    hold: Hold,
    group: LocalGroup,
    port: Port,
    seat: Seat,
    request: Request | None,
    key: bytes,
    ctx: Any,
    peer: Maker | None,
    maker: Maker,
    version: int | None,
    waits: bool = False,
) -> Steps[ByteView]:
    """Load for a lease, and end it. ``waits``: until all see it."""
    try:
        product: Product | None = None
        try:
            token = begin_load(seat)
            try:
                if peer is not None:
                    try:
                        product = yield Make(peer, ctx, key)
                    except Exception as error:
                        group.blame(error)
                if product is None:
                    product = yield Make(maker, ctx, key)
            finally:
                end_load(token)
        except Exception as error:  # the key's own failure, and every waiter's
            if says_not_found(error):  # an answer, and likewise
                group.count(Counter.LOCAL_LOADS)
                text = str(error)
                if waits and isinstance(port, Link):
                    yield from _store(hold, port, seat, request, absence(text))
                else:
                    port.end(request, seat, absence(text))
                seat.settle(Broken(FailureCode.NOT_FOUND, "", text, None))
                raise
            group.count(Counter.LOCAL_LOAD_ERRS)
            kept = None if waits else kept_for(group, key, error)  # who wants a new one is told that there is none
            port.end(request, seat, error)
            if kept is not None:
                seat.settle(Given(bytes(kept), Origin.FLIGHT, kept.version, kept.ttl))
                return kept
            seat.settle(Broken(FailureCode.LOAD_ERROR, *describe_error(error), error))
            raise
        group.count(Counter.PEER_LOADS if product.picked else Counter.LOCAL_LOADS)
        if waits and isinstance(port, Link):
            yield from _store(hold, port, seat, request, product)
        else:
            port.end(request, seat, product)
        if product.absent:  # so its peer says
            broken = Broken(FailureCode.NOT_FOUND, "", product.value.decode(errors="replace"), None)
            seat.settle(broken)
            raise broken.exception()
        given = given_of(group, product, version)
        seat.settle(given)
        if port.channel is not None and port.channel.waiting:
            yield Flush(port.channel)
        return view_of(given)
    except BaseException:  # of the loader or a signal's handler, it says nothing about the key: the next one loads
        port.end(request, seat, None)
        raise


def given_of(group: LocalGroup, product: Product, version: int | None) -> Given:
    """What a load brought, whose lease has the version."""
    fresh = fresh_here(group.ages, product)
    if product.said is not None and version is not None:
        version = product.said.version or version
    return Given(product.value, Origin.FLIGHT, version, None if fresh == FOREVER else fresh)


def kept_for(group: LocalGroup, key: bytes, error: Exception) -> ByteView | None:
    """What is returned though its load has failed."""
    if not group.ages.stale_if_error or (kept := group.find_kept(key)) is None:
        return None
    logger.warning(
        "group %r: a load failed, and the old value is returned (stale_if_error): %s: %s",
        group.name,
        *describe_error(error),
        exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
    )
    return kept


def _store(hold: Hold, link: Link, seat: Seat, request: Request | None, product: Product) -> Steps[None]:
    """Send a value, and wait until all see it."""
    stored = link.store(hold, seat, product)
    if request is not None:
        request.settle()
    answer = yield stored
    stored.settle()
    if not isinstance(answer, Changed):
        raise ProtocolError(f"answer to STORE: got {answer}, expected CHANGED")


def load_for_peer(
    hold: Hold, flights: Flights, group: LocalGroup, link: Link, message: Load, request: Request
) -> Steps[ByteView]:
    """Do a load that the coordinator has handed to this process, and that ``hold`` owes. Nobody joins it here.

    That of a peer's request asks no other peer; in the place of a stale value it is what a get would do.
    """
    seat = hold.board(flights, (group.name, message.key, message.lease), group.changes, ())
    seat.lease = message.lease
    assert group.getter is not None
    ctx = unpack_context(message.ctx)
    peer = group.pick(message.key) if message.picks else None
    return (yield from load(hold, group, link, seat, request, message.key, ctx, peer, group.getter, None))


# ---- Answers


def settle(group: LocalGroup, key: bytes, seat: Seat, request: Request, answer: Any) -> ByteView | None:
    """The answer of a port that is no lease ends the flight. None: it was cached, and is gone again."""
    match answer:
        case Value(origin=origin):
            given = _given(request, answer)
            request.settle()
            # The leader's ask had opened the peer's flight; the others joined it.
            shared = (
                given if origin is not Origin.PEER else Given(given.value, Origin.FLIGHT, given.version, given.fresh)
            )
            seat.settle(shared)
            return _take(group, given)
        case Hit():
            request.settle()
            seat.settle(LOOK_AGAIN)
            return group.find(key)
        case Failed(code=FailureCode.REFUSED):
            request.settle()
            raise answer.exception()
        case Failed(code=code, type_name=type_name, message=message):
            request.settle()
            broken = Broken(code, type_name, message, None)
            seat.settle(broken)
            raise broken.exception()
        case other:
            raise ProtocolError(f"answer to ASK: got {other}, expected HIT, VALUE, LEASE or FAILED")


def outcome_of(group: LocalGroup, key: bytes, outcome: Any) -> ByteView | None:
    """What a flight that another caller led means for one who waited. None: ask for the value itself."""
    if type(outcome) is Given:
        return _take(group, outcome)
    if outcome is LOOK_AGAIN:
        return group.find(key)
    raise outcome.exception()


def _take(group: LocalGroup, given: Given) -> ByteView:
    group.count(Counter.MAIN_HITS if given.origin is Origin.CACHE else Counter.LOADS)
    if given.origin is Origin.FLIGHT:
        group.count(Counter.LOADS_DEDUPED)
    return view_of(given)


def _given(request: Request, answer: Value) -> Given:
    value = answer.value
    contents = _map(request, value) if isinstance(value, int) else value
    return Given(contents, answer.origin, answer.version, answer.fresh)


def view_of(given: Given) -> ByteView:
    return loaded_view(given.value, given.version, given.fresh)


def _map(request: Request, size: int) -> Mapping:
    try:
        return memfd.map(request.descriptor, size)
    except OSError as error:
        raise CoordinatorUnavailable(f"a value of {size} bytes cannot be mapped: {error}") from error


def serve(hold: Hold, process: LocalProcess, group: LocalGroup, key: bytes, ctx: Any) -> Steps[ByteView]:
    """Answer a peer's request: as a get, but no other peer is asked for it, nor waited for."""
    if (link := group.ready_link()) is None:
        yield from attached(process, group)
        link = group.ready_link()
    if link is not None:
        link.tell_served(group.name)
    if (view := group.find(key)) is not None:
        return view
    return (yield from miss(hold, process, group, key, ctx, True))
