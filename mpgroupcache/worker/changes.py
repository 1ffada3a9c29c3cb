"""Changes of values: programs, as a miss is one (waits.py). A change is done by the coordinator, or not at all.

Guarantees: when one has returned, no load that began before it is cached after it, and every get that begins afterwards
on this host sees it, or a later one. What may be done twice without harm (remove, clear, refresh) is asked of the next
coordinator too, until the deadline. For the others a lost answer is a ``ChangeError`` that says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from mpgroupcache.ages import FOREVER
from mpgroupcache.errors import (
    ChangeError,
    CoordinatorUnavailable,
    DeadlineExceeded,
    NotFound,
    ProtocolError,
    describe_error,
)
from mpgroupcache.ipc.messages import Changed, Failed, FailureCode, Lease
from mpgroupcache.limits import APPLICATION_VARIABLE, SOCKET_VARIABLE
from mpgroupcache.shm._hold import Hold
from mpgroupcache.shm._view import ByteView
from mpgroupcache.worker import config
from mpgroupcache.worker.asked import Asked
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.miss import LocalGroup, LocalProcess, attached, blind, load
from mpgroupcache.worker.nesting import held
from mpgroupcache.worker.waits import Apart, Attempt, Maker, Request, Steps, Until

logger = logging.getLogger(__name__)

FOREVER_NS: Final = (1 << 63) - 1
AGAIN: Final = 0.05  # s until a refresh is asked for again that a coordinator has refused


def change(hold: Hold, process: LocalProcess, group: LocalGroup, asked: Asked, timeout: float | None) -> Steps[int]:
    """Do a change, and return for how many keys it was done; of "incr", the new number.

    Raises ``ChangeError``; and what was refused for a key: ``ValueError`` for a value over its share, ``ChangeError``
    for one that has no room, ``NotFound``, ``TypeError`` or ``OverflowError`` of "incr".
    """
    deadline = _deadline(timeout)
    result = 0
    refused: list[tuple[bytes, FailureCode, str]] = []
    unreached: dict[str, str] = {}
    parts, done = list(asked.parts()), False
    while parts:
        link = group.ready_link() or (yield from _linked(process, group, asked.what, deadline))
        sent: list[Request] = []
        try:
            for part in parts:
                sent.append(_send(hold, link, group, part, deadline))  # noqa: PERF401 - those before one that raises count
            for request in sent:
                answer = yield request
                request.settle()
                changed = _expect(answer, asked.what, unknown=done)
                done = True
                _warn_of_another_application(group, asked, changed)
                result += changed.result
                keys = parts.pop(0).keys
                refused += [(keys[place], code, text) for place, code, text in changed.refused]
                unreached.update(changed.unreached)
        except CoordinatorUnavailable as error:
            if not (sent and not asked.repeats):
                continue
            raise ChangeError(
                f"{asked.what}: the coordinator was lost before it answered ({error}); it may have been done",
                unknown=True,
            ) from None
        except DeadlineExceeded:
            raise ChangeError(
                f"{asked.what}: the timeout of {timeout:g} s passed before there was an answer; it may have been done",
                unknown=True,
            ) from None
    if unreached:
        raise _unreached(asked.what, unreached)
    _raise_refused(refused)
    return result


def refresh(
    hold: Hold, process: LocalProcess, group: LocalGroup, key: bytes, ctx: Any, maker: Maker, timeout: float | None
) -> Steps[ByteView]:
    """Load a value anew, whatever there is; it has ended when all see what it brought. Raises ``ChangeError``."""
    deadline = _deadline(timeout)
    while True:
        link = group.ready_link() or (yield from _linked(process, group, "refresh", deadline))
        seat = hold.board(process.flights, (group.name, key, True), blind(), held())  # nobody joins it
        try:
            request = link.ask(hold, group.name, seat, key, True, True, "refresh")
            answer = yield request
            if type(answer) is Failed and answer.code is FailureCode.REFUSED:  # it is about to end: the next one does
                request.settle()
                seat.leave()
                yield Until(Attempt(time.monotonic()), time.monotonic() + AGAIN)
                continue
            if type(answer) is not Lease:
                request.settle()
                raise _unreached("refresh", dict(_expect(answer, "refresh").unreached))
            seat.lease = answer.lease
            arguments = (group, link, seat, request, key, ctx, None, maker, answer.version, True)
            loaded: ByteView = yield Apart(load, arguments)
        except (CoordinatorUnavailable, DeadlineExceeded) as error:
            if seat.over:  # its load has failed: the error is the loader's own, of a get within
                raise
            if isinstance(error, CoordinatorUnavailable):
                continue
            raise ChangeError(f"refresh: the timeout of {timeout:g} s passed before the load could begin") from None
        return loaded


def renew(
    hold: Hold, process: LocalProcess, group: LocalGroup, key: bytes, ctx: Any, maker: Maker, stale: ByteView
) -> Steps[ByteView]:
    """Load a value anew in the place of a stale one, if nobody is at it; else, and where that fails, return the old."""
    if (link := group.ready_link()) is None:
        return stale
    try:
        seat = hold.board(process.flights, (group.name, key, True), blind(), held())
        request = link.ask(hold, group.name, seat, key, True, True, "renew")
        answer = yield request
        if type(answer) is not Lease:
            request.settle()
            return stale
        seat.lease = answer.lease
        loaded: ByteView = yield Apart(load, (group, link, seat, request, key, ctx, None, maker, answer.version))
    except Exception as error:
        logger.warning(
            "group %r: a refresh failed, and the old value stays: %s: %s", group.name, *describe_error(error)
        )
        return stale
    return loaded


def _deadline(timeout: float | None) -> float | None:
    """Of ``time.monotonic()``."""
    return None if timeout is None else time.monotonic() + timeout


def _linked(process: LocalProcess, group: LocalGroup, what: str, deadline: float | None) -> Steps[Link]:
    """Wait for a coordinator, until the deadline; at once in vain where none has answered for that long."""
    left = FOREVER if deadline is None else deadline - time.monotonic()
    if process.alone_for >= left:
        raise ChangeError(f"{what}: no coordinator has answered for {process.alone_for:.1f} s, nothing was changed")
    try:
        while (link := group.ready_link()) is None:
            yield from attached(process, group, patient=True)
            if group.ready_link() is None:
                pause = max(process.retry_at(group) - time.monotonic(), 0.01)
                yield Until(Attempt(time.monotonic()), time.monotonic() + pause)
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded
    except DeadlineExceeded:
        raise ChangeError(f"{what}: no coordinator has answered within the timeout, nothing was changed") from None
    return link


def _send(hold: Hold, link: Link, group: LocalGroup, part: Asked, deadline: float | None) -> Request:
    if deadline is None:
        latest = FOREVER_NS
    else:
        left = max(deadline - time.monotonic(), 0.0)
        latest = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(left * 1e9)
    try:
        return link.change(hold, group.name, part, latest)
    except OSError as error:
        raise ChangeError(f"{part.what}: a value of {len(part.values[0])} bytes cannot be sent: {error}") from error


def _expect(answer: Any, what: str, *, unknown: bool = False) -> Changed:
    """``unknown``: whether a part of it was done before."""
    if type(answer) is Changed:
        return answer
    if type(answer) is not Failed:
        raise ProtocolError(f"answer to CHANGE: got {answer}, expected CHANGED")
    if answer.code not in (FailureCode.TOO_LATE, FailureCode.REFUSED):
        raise answer.exception()
    raise ChangeError(f"{what}: {answer.message}" + ("; a part of it was done" if unknown else ""), unknown=unknown)


def _raise_refused(refused: Sequence[tuple[bytes, FailureCode, str]]) -> None:
    """Raise what the first key was refused for; all others were done or refused as well."""
    if not refused:
        return
    _, code, text = refused[0]
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    kinds: dict[FailureCode, type[Exception]] = {
        FailureCode.TOO_LARGE: ValueError,
        FailureCode.NOT_FOUND: NotFound,
        FailureCode.NOT_A_NUMBER: TypeError,
        FailureCode.OVERFLOW: OverflowError,
    }
    raise kinds.get(code, ChangeError)(text + more)


def _unreached(what: str, unreached: dict[str, str]) -> ChangeError:
    return ChangeError(f"{what}: " + "; ".join(f"{peer}: {why}" for peer, why in unreached.items()), unreached)


_warned_of_another: set[str] = set()


def _warn_of_another_application(group: LocalGroup, asked: Asked, changed: Changed) -> None:
    """Say once that a private coordinator which has nothing of a group may be another application's."""
    if not changed.alone or not config.is_private() or group.name in _warned_of_another:
        return
    _warned_of_another.add(group.name)
    logger.warning(
        "group %r: %s found nothing, and no other worker is here: this process has a coordinator of its own, which "
        "others do not see. If they are of one application, give all of them the same %s, or one coordinator (%s)",
        group.name,
        asked.what,
        APPLICATION_VARIABLE,
        SOCKET_VARIABLE,
    )
