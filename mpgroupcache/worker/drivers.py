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
from mpgroupcache.worker.waits import Apart, Blocking, Flush, Make, Request, Seat, Steps

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def run(program: Callable[..., Steps[T]], *arguments: Any, timeout: float | None = None) -> T:
    """Run a program to its end. ``timeout``: seconds that it may wait for others; then ``DeadlineExceeded``."""
    deadline = None if timeout is None else time.monotonic() + timeout
    result: T = guarded(_run, program, arguments, deadline, None)
    return result


def run_with(runner: asyncio.Runner, program: Callable[..., Steps[T]], *arguments: Any) -> T:
    """Run a program in a thread that has a loop of its own, for makers that are async."""
    result: T = guarded(_run, program, arguments, None, runner)
    return result


def _run(
    hold: Hold,
    program: Callable[..., Steps[T]],
    arguments: tuple[Any, ...],
    deadline: float | None,
    runner: asyncio.Runner | None,
) -> T:
    steps = program(hold, *arguments)
    step: Callable[[Any], Any] = steps.send
    outcome: Any = None
    while True:
        try:
            wait = step(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        except RuntimeError as error:
            if (
                type(outcome) is StopIteration and error.__cause__ is outcome
            ):  # a loader's, which no generator may raise
                raise outcome from None
            raise
        finally:
            outcome = None  # an exception here would keep this frame, and this frame the exception
        step = steps.send
        try:
            if isinstance(wait, Make):
                if not wait.maker.is_async:
                    outcome = wait.maker.load(wait.ctx, wait.key)
                elif runner is not None:
                    outcome = runner.run(wait.maker.load_async(wait.ctx, wait.key))
                else:
                    raise TypeError(f"{wait.maker} is async: got get(), expected `await group.aget(key)`")
            elif isinstance(wait, Request):
                with waiting():
                    outcome = wait.exchange.wait(hold, wait, deadline)
            elif isinstance(wait, Apart):
                outcome = _run(hold, wait.program, wait.arguments, None, runner)
            elif isinstance(wait, Seat):
                with waiting():
                    _sit(wait, deadline)
                outcome = None
            elif isinstance(wait, Blocking):
                outcome = wait.function(*wait.arguments)
            elif isinstance(wait, Flush):
                with contextlib.suppress(CoordinatorUnavailable):  # it knows by that what was not sent
                    wait.channel.drain()
                outcome = None
            else:
                raise TypeError(f"a program yielded {wait!r}, expected one of waits.py; was it meant to be returned?")
        except BaseException as error:
            step, outcome = steps.throw, error


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
            raise DeadlineExceeded("get: the timeout passed while another caller loads; the load goes on")
