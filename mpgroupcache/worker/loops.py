"""Runs a program on an event loop, as a coroutine. Imported by whoever awaits: threads do without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from mpgroupcache.errors import CoordinatorUnavailable, DeadlineExceeded
from mpgroupcache.shm._exchange import Bell
from mpgroupcache.shm._hold import Hold
from mpgroupcache.threads import waiting
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT, PING_AFTER, Channel
from mpgroupcache.worker.config import load_context
from mpgroupcache.worker.peerloads import start_with
from mpgroupcache.worker.process import current
from mpgroupcache.worker.waits import (
    CONNECTING,
    Apart,
    Attempt,
    Blocking,
    Flush,
    Make,
    MakeMany,
    Request,
    Seat,
    Steps,
    Until,
)

T = TypeVar("T")

_apart: set[asyncio.Task[Any]] = set()  # a task that nobody refers to may be collected
_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = WeakKeyDictionary()


async def run(program: Callable[..., Steps[T]], *arguments: Any, timeout: float | None = None) -> T:
    """Run a program to its end. ``timeout``: seconds that it may wait for others; then ``DeadlineExceeded``."""
    hold = Hold()
    try:
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        result, _ = await _run(hold, program(hold, *arguments), deadline)
        return result
    finally:
        hold.end()


async def _run(hold: Hold, steps: Steps[T], deadline: float | None) -> tuple[T, float | None]:
    """Its result, and the deadline, which its makers have put off."""
    step: Callable[[Any], Any] = steps.send
    outcome: Any = None
    while True:
        try:
            wait = step(outcome)
        except StopIteration as end:
            return end.value, deadline
        finally:
            outcome = None  # an exception here would keep this frame, and this frame the exception
        step = steps.send
        try:
            if isinstance(wait, Make | MakeMany):
                began = time.monotonic()
                try:
                    outcome = await _make(wait)
                finally:
                    deadline = None if deadline is None else deadline + time.monotonic() - began
            elif isinstance(wait, Apart):
                with waiting():
                    outcome, deadline = await _run_apart(hold, wait, deadline)
            elif deadline is None:
                with waiting():
                    outcome = await _wait(wait)
            else:
                with waiting():
                    outcome = await _wait_until(wait, deadline)
        except BaseException as error:
            step, outcome = steps.throw, error


async def _wait_until(wait: Any, deadline: float) -> Any:
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await _wait(wait)
    except TimeoutError:
        if not limit.expired():
            raise
    if isinstance(wait, Flush):
        return None
    raise DeadlineExceeded(CONNECTING) if isinstance(wait, Until) else DeadlineExceeded


async def _wait(wait: Any) -> Any:
    result = None
    match wait:
        case Request():
            result = await _answer(wait)
        case Seat():
            while not (wait.leads or wait.over):
                await _woken(wait)
        case Blocking(function=function, arguments=arguments):
            result = await asyncio.get_running_loop().run_in_executor(None, function, *arguments)
        case Until(attempt=attempt, moment=moment):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if moment is None else max(moment - time.monotonic(), 0.0)):
                    await _over(attempt)
            result = attempt.over
        case Flush(channel=channel):
            while channel.waiting and channel.broken is None:
                await _writable(channel)
        case _:
            raise TypeError(f"a program yielded {wait!r}, expected one of waits.py; was it meant to be returned?")
    return result


async def _make(make: Make | MakeMany) -> Any:
    if make.maker.is_async:
        if isinstance(make, MakeMany):
            return await make.maker.load_many_async(make.ctx, make.keys)
        return await make.maker.load_async(make.ctx, make.key)
    return await asyncio.wrap_future(current().threads.call(_load, make))


def _load(make: Make | MakeMany) -> Any:
    try:
        with load_context():
            if isinstance(make, MakeMany):
                return make.maker.load_many(make.ctx, make.keys)
            return make.maker.load(make.ctx, make.key)
    except StopIteration as error:  # which asyncio's futures do not take: whoever awaits one would never wake
        raise RuntimeError(f"{make.maker} raised StopIteration") from error


# ---- What goes on when its caller goes


async def _run_apart(hold: Hold, apart: Apart, deadline: float | None) -> Any:
    heir = hold.hand_over()
    task = asyncio.create_task(_run_to_its_end(heir, apart, deadline))
    _apart.add(task)
    task.add_done_callback(functools.partial(_finish, heir))
    return await asyncio.shield(task)


def start(hold: Hold, program: Callable[..., Steps[Any]], *arguments: Any) -> None:
    """Run a program on this loop that nobody waits for, with what ``hold`` has."""
    task = asyncio.create_task(_run_to_its_end(hold, Apart(program, arguments), None))
    _apart.add(task)
    task.add_done_callback(functools.partial(_finish, hold))


start_with(start)


async def _run_to_its_end(hold: Hold, apart: Apart, deadline: float | None) -> Any:
    return await _run(hold, apart.program(hold, *apart.arguments), deadline)


def _finish(hold: Hold, task: asyncio.Task[Any]) -> None:
    """It has ended, perhaps before its first step: a loop that ends cancels tasks that never ran."""
    _apart.discard(task)
    hold.end()
    if not task.cancelled():
        task.exception()  # was sent to the waiters, and is no news to the loop


# ---- Waking, from any thread


def _bell() -> Bell:
    """The running loop's, which watches it for as long as it lives."""
    loop = asyncio.get_running_loop()
    if (bell := _bells.get(loop)) is None:
        bell = Bell()
        loop.add_reader(bell.fileno(), _ring, bell)
        _bells[loop] = bell
    return bell


def _ring(bell: Bell) -> None:
    for future in bell.take():
        if not future.done():
            future.set_result(None)


async def _woken(waits: Seat | Request) -> None:
    """Return when ``waits`` has been woken, now or since the last time."""
    future = asyncio.get_running_loop().create_future()
    waits.wake = _bell().waker(future)
    # What came before there was a waker has woken nobody.
    if isinstance(waits, Seat):
        ready = waits.leads or waits.over
    else:
        ready = waits.answer is not None or waits.exchange.broken is not None
    if not ready:
        await future


async def _over(attempt: Attempt) -> None:
    future = asyncio.get_running_loop().create_future()
    attempt.wake_with(_bell().waker(future))
    await future


# ---- A channel: the loop watches its socket for as long as one of its programs waits for an answer


async def _answer(request: Request) -> Any:
    channel: Channel = request.exchange
    loop = asyncio.get_running_loop()
    if request.answer is None:
        channel.watch_from(loop)
        try:
            while request.answer is None:
                if channel.broken is not None:
                    raise channel.gone()
                if channel.waiting:
                    await _writable(channel)
                    continue
                timer = loop.call_later(PING_AFTER, _look, channel, request)
                try:
                    await _woken(request)
                finally:
                    timer.cancel()
        finally:
            channel.unwatch_from(loop)
    return request.answer


def _look(channel: Channel, request: Request) -> None:
    channel.check_liveness()
    if request.wake is not None:
        request.wake()


async def _writable(channel: Channel) -> None:
    """Send on when the socket takes more, for at most as long as that may take a coordinator that lives."""
    loop = asyncio.get_running_loop()
    if (taken := channel.writers.get(loop)) is None:  # a loop has one callback for a descriptor: they share it
        taken = channel.writers[loop] = asyncio.ensure_future(_send_on(channel))
    await asyncio.shield(taken)


async def _send_on(channel: Channel) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    try:
        fd = channel.watch()
        loop.add_writer(fd, writable.set)
        try:
            async with asyncio.timeout(LIVENESS_TIMEOUT):
                await writable.wait()
        except TimeoutError:
            channel.fail_silent("took nothing of what was sent to it")
        finally:
            loop.remove_writer(fd)
            channel.unwatch()
        channel.send_on()
    except CoordinatorUnavailable:
        pass  # whoever waits looks whether it is broken
    finally:
        del channel.writers[loop]
