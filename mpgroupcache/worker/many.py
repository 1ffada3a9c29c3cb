"""Many keys in one get: a program, as a miss is one (waits.py).

1. All that are missing are asked for in one message, which is answered at once with all that is there, and with leases.
2. With a batch getter the caller has all leases that nobody else holds, and loads those keys in one call. Without one
   he has one of them, and asks for each other key when he comes to it: so nobody waits for his ninety-nine loads.
3. Then he waits for what others load. He holds no lease by then, and is given none: so no two callers wait for each
   other. A key whose loader was lost is asked for alone, as in 2.

A get within such a load names all of its leases, and asking for a key of its own batch is a ``LoadCycleError``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, cast

from mpgroupcache.counters import Counter
from mpgroupcache.errors import DeadlineExceeded, NotFound, describe_error
from mpgroupcache.ipc.messages import FREE, Failed, FailureCode, Lease, Origin
from mpgroupcache.product import Product, absence
from mpgroupcache.shm._hold import Hold, Seat
from mpgroupcache.shm._view import ByteView
from mpgroupcache.worker.asked import BATCH_BYTES
from mpgroupcache.worker.config import says_not_found
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.miss import (
    UNSERVED,
    Broken,
    Given,
    LocalGroup,
    LocalProcess,
    attached,
    changes_of,
    given_of,
    kept_for,
    load,
    look,
    outcome_of,
    settle,
    up_to_load,
    view_of,
)
from mpgroupcache.worker.nesting import begin_loads, end_load, held
from mpgroupcache.worker.waits import Apart, BatchMaker, Flush, MakeMany, Maker, Request, Steps

Outcomes: TypeAlias = "dict[bytes, ByteView | Exception]"
MAX_BATCH = 1000  # keys in one message, and in one call of a batch getter: a get inside has to name as many leases


def miss_many(
    hold: Hold,
    process: LocalProcess,
    group: LocalGroup,
    keys: tuple[bytes, ...],
    ctx: Any,
    maker: Maker | None = None,
) -> Steps[Outcomes]:
    """Get what was not there: of each key a view, or why there is none. Raises ``DeadlineExceeded``.

    ``maker``: who loads them, where that is not the group's getter.
    """
    outcomes: Outcomes = {}
    maker = maker or group.getter
    link = group.ready_link()
    if link is None:
        yield from attached(process, group)
        link = group.ready_link()
        found, missing, absent = group.find_many(keys)
        outcomes.update(found)
        outcomes.update({key: NotFound(text) for key, text in absent.items()})
        keys = tuple(missing)
    if link is not None and maker is not None and not group.picks():
        for batch in _batches(keys):
            try:
                yield from _ask(hold, process, group, link, batch, ctx, maker, outcomes)
            except UNSERVED:
                break
    for key in keys:
        if key not in outcomes:
            yield from _ask_alone(hold, process, group, key, ctx, maker, outcomes)
    return outcomes


def _batches(keys: tuple[bytes, ...]) -> Iterator[tuple[bytes, ...]]:
    """What fits into a message each."""
    begin = size = 0
    for i, key in enumerate(keys):
        if i - begin == MAX_BATCH or (i > begin and size + len(key) > BATCH_BYTES):
            yield keys[begin:i]
            begin, size = i, 0
        size += len(key)
    yield keys[begin:]


def _ask_alone(
    hold: Hold, process: LocalProcess, group: LocalGroup, key: bytes, ctx: Any, maker: Maker | None, outcomes: Outcomes
) -> Steps[None]:
    found: ByteView | Apart
    try:
        if maker is None:
            found = yield from look(hold, process, group, key)
        else:
            found = yield from up_to_load(hold, process, group, key, ctx, False, maker)
    except DeadlineExceeded:  # it is this get's own
        raise
    except Exception as error:
        outcomes[key] = error
        return
    if isinstance(found, Apart):
        yield from _note(outcomes, key, _run(found))
    else:
        outcomes[key] = found


def _run(apart: Apart) -> Steps[ByteView]:
    return cast("ByteView", (yield apart))


def _note(outcomes: Outcomes, key: bytes, steps: Steps[ByteView]) -> Steps[None]:
    """Load a key, which no deadline of this get ends: one that has passed is that of a get within the load."""
    try:
        outcomes[key] = yield from steps
    except Exception as error:
        outcomes[key] = error


def _ask(
    hold: Hold,
    process: LocalProcess,
    group: LocalGroup,
    link: Link,
    keys: tuple[bytes, ...],
    ctx: Any,
    maker: Maker,
    outcomes: Outcomes,
) -> Steps[None]:
    """Ask for keys, load those whose leases are granted, wait for the others; what is left out is to be asked alone."""
    seats, changes = held(), changes_of(process, group)
    boarded = [
        (key, hold.board(process.flights, link.place(group.name, key, False, False, seats), changes, seats))
        for key in keys
    ]
    try:
        yield from _ask_for(hold, group, link, boarded, ctx, maker, outcomes)
    except UNSERVED:
        for _, seat in boarded:  # else who asks for these keys alone, this caller too, waits for this one
            seat.leave()
        raise


def _ask_for(
    hold: Hold,
    group: LocalGroup,
    link: Link,
    boarded: list[tuple[bytes, Seat]],
    ctx: Any,
    maker: Maker,
    outcomes: Outcomes,
) -> Steps[None]:
    every = _loads_many(maker)
    led = [(key, seat) for key, seat in boarded if seat.leads]
    joined = [(key, seat) for key, seat in boarded if not seat.leads]
    loads: list[tuple[bytes, Seat, Request, int]] = []
    waiting: list[tuple[bytes, Seat, Request]] = []
    if led:
        asked = tuple([key for key, _ in led])
        head, *requests = link.ask_many(hold, group.name, [seat for _, seat in led], asked, not group.readable, every)
        answers = yield head
        head.settle()
        if isinstance(answers, Failed):
            raise answers.exception()
        for (key, seat), request in zip(led, requests, strict=True):
            answer = request.answer
            if answer is None:
                waiting.append((key, seat, request))
            elif type(answer) is Lease:
                seat.lease = answer.lease
                loads.append((key, seat, request, answer.version))
            elif answer is FREE:
                request.settle()
                seat.leave()
            else:
                _settle(group, key, seat, request, answer, outcomes)
    if loads:  # with all that it waits for: what goes on when its caller goes takes everything along, and ends it
        yield Apart(_load_and_wait, (group, link, maker, loads, waiting, joined, ctx, outcomes))
    else:
        yield from _wait(group, link, waiting, joined, outcomes)


def _load_and_wait(
    hold: Hold,
    group: LocalGroup,
    link: Link,
    maker: Maker,
    loads: list[tuple[bytes, Seat, Request, int]],
    waiting: list[tuple[bytes, Seat, Request]],
    joined: list[tuple[bytes, Seat]],
    ctx: Any,
    outcomes: Outcomes,
) -> Steps[None]:
    if _loads_many(maker):
        outcomes.update((yield from load_many(hold, group, link, cast("BatchMaker", maker), loads, ctx)))
    else:
        for key, seat, request, version in loads:
            group.count(Counter.LOADS)
            one = load(hold, group, link, seat, request, key, ctx, None, maker, version)
            yield from _note(outcomes, key, one)
    yield from _wait(group, link, waiting, joined, outcomes)


def _loads_many(maker: Maker) -> bool:
    return bool(getattr(maker, "batches", False))


def _wait(
    group: LocalGroup,
    link: Link,
    waiting: list[tuple[bytes, Seat, Request]],
    joined: list[tuple[bytes, Seat]],
    outcomes: Outcomes,
) -> Steps[None]:
    """Wait for what others load. The coordinator gives no lease to who waits for many: they are asked for alone."""
    for key, seat, request in waiting:
        _settle(group, key, seat, request, (yield request), outcomes)
    for key, seat in joined:
        try:
            if not seat.leads:
                link.join(seat)
                yield seat
            if seat.leads:
                seat.leave()
            elif (view := outcome_of(group, key, seat.outcome)) is not None:
                outcomes[key] = view
        except DeadlineExceeded:
            raise
        except Exception as error:
            group.count(Counter.LOADS)
            outcomes[key] = error


def _settle(group: LocalGroup, key: bytes, seat: Seat, request: Request, answer: Any, outcomes: Outcomes) -> None:
    try:
        if (view := settle(group, key, seat, request, answer)) is not None:
            outcomes[key] = view
    except UNSERVED:  # it is asked for alone, and loaded here if that is of no use either
        seat.leave()
    except Exception as error:
        group.count(Counter.LOADS)
        outcomes[key] = error


def load_many(
    hold: Hold,
    group: LocalGroup,
    link: Link,
    maker: BatchMaker,
    loads: list[tuple[bytes, Seat, Request, int]],
    ctx: Any,
) -> Steps[Outcomes]:
    """Load keys in one call of a batch getter, and end their leases."""
    keys = tuple([key for key, _, _, _ in loads])
    group.count(Counter.LOADS, len(loads))
    try:
        token = begin_loads([seat for _, seat, _, _ in loads])
        try:
            results = yield MakeMany(maker, ctx, keys)
        finally:
            end_load(token)
        made: list[tuple[Request, Seat, Product | Exception]] = []
        outcomes: Outcomes = {}
        settled: list[tuple[Seat, Given | Broken]] = []
        good = 0
        for (key, seat, request, version), result in zip(loads, results, strict=True):
            if isinstance(result, Product):
                good += 1
                given = given_of(group, result, version)
                made.append((request, seat, result))
                settled.append((seat, given))
                outcomes[key] = view_of(given)
            elif says_not_found(result):
                good += 1
                text = str(result)
                made.append((request, seat, absence(text)))
                settled.append((seat, Broken(FailureCode.NOT_FOUND, "", text, None)))
                outcomes[key] = result
            elif (kept := kept_for(group, key, result)) is not None:
                made.append((request, seat, result))
                settled.append((seat, Given(bytes(kept), Origin.FLIGHT, kept.version, kept.ttl)))
                outcomes[key] = kept
            else:
                made.append((request, seat, result))
                settled.append((seat, Broken(FailureCode.LOAD_ERROR, *describe_error(result), result)))
                outcomes[key] = result
        group.count(Counter.LOCAL_LOADS, good)
        group.count(Counter.LOCAL_LOAD_ERRS, len(loads) - good)
        link.end_many(made)
        for seat, outcome in settled:
            seat.settle(outcome)
        if link.channel.waiting:
            yield Flush(link.channel)
        return outcomes
    except BaseException:  # it says nothing about the keys: the next ones load
        for _, seat, request, _ in loads:
            link.end(request, seat, None)
        raise
