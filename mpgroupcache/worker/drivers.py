"""Runs a program in a thread or greenlet, which blocks wherever the program waits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mpgroupcache.errors import CoordinatorUnavailable, DeadlineExceeded
from mpgroupcache.shm._hold import Hold, guarded
from mpgroupcache.threads import waiting
from mpgroupcache.worker.waits import CONNECTING, Apart, Blocking, Flush, Make, MakeMany, Request, Seat, Steps, Until

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def run(program: Callable[..., Steps[T]], *arguments: Any, timeout: float | None = None) -> T:
    """Run a program to its end. ``timeout``: seconds that it may wait for others; then ``DeadlineExceeded``."""
    deadline = None if timeout is None else time.monotonic() + timeout
    result: T
    result, _ = guarded(_run, program, arguments, deadline, None)
    return result


def run_with(runner: asyncio.Runner, program: Callable[..., Steps[T]], *arguments: Any) -> T:
    """Run a program in a thread that has a loop of its own, for makers that are async."""
    result: T
    result, _ = guarded(_run, program, arguments, None, runner)
    return result


def _run(
    hold: Hold,
    program: Callable[..., Steps[T]],
    arguments: tuple[Any, ...],
    deadline: float | None,
    runner: asyncio.Runner | None,
) -> tuple[T, float | None]:
    """Its result, and the deadline, which its makers have put off."""
    steps = program(hold, *arguments)
    step: Callable[[Any], Any] = steps.send
    outcome: Any = None
    while True:
        try:
            wait = step(outcome)
        except StopIteration as end:
            return end.value, deadline
        except RuntimeError as error:
            # A loader's StopIteration, which no generator may raise.
            if type(outcome) is StopIteration and error.__cause__ is outcome:
                raise outcome from None
            raise
        finally:
            outcome = None  # an exception here would keep this frame, and this frame the exception
        step = steps.send
        try:
            if isinstance(wait, Request):  # the others are dearer
                with waiting():
                    outcome = wait.exchange.wait(hold, wait, deadline)
            elif isinstance(wait, Make | MakeMany):
                began = time.monotonic()
                try:
                    outcome = _make(wait, runner)
                finally:
                    deadline = None if deadline is None else deadline + time.monotonic() - began
            elif isinstance(wait, Apart):
                outcome, deadline = _run(hold, wait.program, wait.arguments, deadline, runner)
            elif isinstance(wait, Seat):
                with waiting():
                    _sit(wait, deadline)
                outcome = None
            elif isinstance(wait, Blocking):
                outcome = wait.function(*wait.arguments)
            elif isinstance(wait, Until):
                with waiting():
                    outcome = _await(wait, deadline)
            elif isinstance(wait, Flush):
                with contextlib.suppress(CoordinatorUnavailable):  # it knows by that what was not sent
                    wait.channel.drain(deadline)
                outcome = None
            else:
                raise TypeError(f"a program yielded {wait!r}, expected one of waits.py; was it meant to be returned?")
        except BaseException as error:
            step, outcome = steps.throw, error


def _make(wait: Make | MakeMany, runner: asyncio.Runner | None) -> Any:
    if not wait.maker.is_async:
        return (
            wait.maker.load_many(wait.ctx, wait.keys)
            if isinstance(wait, MakeMany)
            else wait.maker.load(wait.ctx, wait.key)
        )
    if runner is None:
        raise TypeError(f"{wait.maker} is async: got get(), expected `await group.aget(key)`")
    if isinstance(wait, MakeMany):
        return runner.run(wait.maker.load_many_async(wait.ctx, wait.keys))
    return runner.run(wait.maker.load_async(wait.ctx, wait.key))


def _await(wait: Until, deadline: float | None) -> bool:
    """Whether it was over in time."""
    end = min((moment for moment in (wait.moment, deadline) if moment is not None), default=None)
    lock = threading.Lock()
    lock.acquire()
    wait.attempt.wake_with(lock.release)
    lock.acquire(timeout=-1 if end is None else max(end - time.monotonic(), 0.0))
    if not wait.attempt.over and end == deadline:
        raise DeadlineExceeded(CONNECTING)
    return wait.attempt.over


def _sit(seat: Seat, deadline: float | None) -> None:
    lock = None
    while not (seat.leads or seat.over):
        if lock is None:
            lock = threading.Lock()
            lock.acquire()
            seat.wake = lock.release
        elif deadline is None:
            lock.acquire()
        elif (left := deadline - time.monotonic()) > 0:
            lock.acquire(timeout=left)
        else:
            raise DeadlineExceeded
