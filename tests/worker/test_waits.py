"""The two drivers, each with programs of a few lines: what one does, the other does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from workers import PATIENCE, wait_until

from mpgroupcache import DeadlineExceeded
from mpgroupcache.product import Product
from mpgroupcache.shm._hold import Flights, Hold
from mpgroupcache.worker import drivers, loops
from mpgroupcache.worker.waits import Apart, Attempt, Blocking, Make, Steps


def in_a_thread(program: Callable[..., Steps[Any]], *arguments: Any, timeout: float | None = None) -> Any:
    return drivers.run(program, *arguments, timeout=timeout)


def on_asyncio(program: Callable[..., Steps[Any]], *arguments: Any, timeout: float | None = None) -> Any:
    return asyncio.run(loops.run(program, *arguments, timeout=timeout))


def on_uvloop(program: Callable[..., Steps[Any]], *arguments: Any, timeout: float | None = None) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(loops.run(program, *arguments, timeout=timeout))


Run = Callable[..., Any]
every_driver = pytest.mark.parametrize("run", [in_a_thread, on_asyncio, on_uvloop])


class Maker:
    is_async = False

    def load(self, ctx: Any, key: bytes) -> Product:
        if ctx is not None:
            raise ctx
        return Product(key * 2)

    async def load_async(self, ctx: Any, key: bytes) -> Product:
        raise AssertionError


class AsyncMaker(Maker):
    is_async = True

    async def load_async(self, ctx: Any, key: bytes) -> Product:
        await asyncio.sleep(0)
        return super().load(ctx, key)


def yielding(_hold: Hold, *waits: Any) -> Steps[list[Any]]:
    results = []
    for wait in waits:
        results.append((yield wait))  # noqa: PERF401 - as a list's own loop it could not wait
    return results


def catching(_hold: Hold, wait: Any) -> Steps[BaseException]:
    try:
        yield wait
    except BaseException as error:
        return error
    raise AssertionError(f"{wait}: it raised nothing")


@every_driver
def test_what_comes_of_a_wait_is_sent_in(run: Run) -> None:
    assert run(yielding) == []
    blocking, make = Blocking(divmod, (7, 2)), Make(Maker(), None, b"ab")
    assert run(yielding, blocking, make) == [(3, 1), Product(b"abab")]
    assert run(yielding, Apart(yielding, (blocking,))) == [[(3, 1)]]


@every_driver
def test_what_strikes_a_wait_is_thrown_in(run: Run) -> None:
    for error in (ValueError("boom"), KeyboardInterrupt()):
        if run is in_a_thread or isinstance(error, Exception):  # a loop itself is left by the other
            assert run(catching, Make(Maker(), error, b"k")) is error
    assert isinstance(run(catching, Blocking(divmod, (1, 0))), ZeroDivisionError)
    with pytest.raises(ValueError, match="boom"):
        run(yielding, Apart(yielding, (Make(Maker(), ValueError("boom"), b"k"),)))


@every_driver
def test_a_maker_that_is_async(run: Run) -> None:
    make = Make(AsyncMaker(), None, b"k")
    if run is in_a_thread:
        with pytest.raises(TypeError, match="aget"):
            run(yielding, make)
        with asyncio.Runner() as runner:
            assert drivers.run_with(runner, yielding, make) == [Product(b"kk")]
    else:
        assert run(yielding, make) == [Product(b"kk")]


@every_driver
def test_a_maker_that_raises_stop_iteration(run: Run) -> None:
    error = StopIteration("over")
    with pytest.raises(StopIteration if run is in_a_thread else RuntimeError) as caught:
        run(yielding, Make(Maker(), error, b"k"))
    assert caught.value is error or caught.value.__cause__ is error


@every_driver
def test_what_is_no_wait(run: Run) -> None:
    with pytest.raises(TypeError, match="yielded 'a string', expected one of waits.py"):
        run(yielding, "a string")


def following(hold: Hold, flights: Flights, kept: list[Any]) -> Steps[Any]:
    seat = hold.board(flights, "key", 0, ())
    kept.append(seat)
    if not seat.leads:
        yield seat
    if seat.leads:
        seat.settle("mine")
        return "it led"
    return seat.outcome


@every_driver
@pytest.mark.parametrize("end", ["settled", "left", "dropped"])
def test_a_seat(run: Run, end: str) -> None:
    flights, kept = Flights(), []
    lead = Hold()
    leader = lead.board(flights, "key", 0, ())

    def finish() -> None:
        nonlocal lead, leader
        wait_until(lambda: kept and kept[0].wake is not None, "one who waits")
        if end == "settled":
            leader.settle("theirs")
        elif end == "left":
            lead.end()
        else:
            del lead, leader

    thread = threading.Thread(target=finish)
    thread.start()
    assert run(following, flights, kept, timeout=PATIENCE) == ("theirs" if end == "settled" else "it led")
    thread.join()
    assert len(flights) == 0


@every_driver
def test_a_makers_time_puts_the_deadline_off(run: Run) -> None:
    flights, kept = Flights(), []
    lead = Hold()
    leader = lead.board(flights, "key", 0, ())
    slow = Maker()
    slow.load = lambda ctx, key: time.sleep(1.1) or Product(key)  # type: ignore[method-assign, func-returns-value]

    def making(hold: Hold) -> Steps[Any]:
        yield Make(slow, None, b"k")
        return (yield from following(hold, flights, kept))

    def finish() -> None:
        wait_until(lambda: kept and kept[0].wake is not None, "one who waits")
        leader.settle("theirs")

    thread = threading.Thread(target=finish)
    thread.start()
    assert run(making, timeout=1.0) == "theirs"
    thread.join()


@every_driver
def test_a_deadline(run: Run) -> None:
    """It ends a wait for others, and what was held is given back; a maker's own time does not count."""
    flights, kept = Flights(), []
    lead = Hold()
    lead.board(flights, "key", 0, ())
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        run(following, flights, kept, timeout=0.05)
    assert 0.05 <= time.monotonic() - began < 5
    [flight] = flights
    assert flight.waiting == []
    lead.end()
    assert len(flights) == 0
    slow = Maker()
    slow.load = lambda ctx, key: time.sleep(0.05) or Product(key)  # type: ignore[method-assign, func-returns-value]
    assert run(yielding, Make(slow, None, b"k"), timeout=0.01) == [Product(b"k")]


def test_what_is_apart_goes_on_when_its_caller_goes() -> None:
    flights = Flights()
    go = threading.Event()

    def leading(hold: Hold) -> Steps[None]:
        seat = hold.board(flights, "key", 0, ())
        yield Apart(settling, (seat,))

    def settling(hold: Hold, seat: Any) -> Steps[None]:
        yield Make(Waiting(), None, b"")
        seat.settle("late")

    class Waiting(AsyncMaker):
        async def load_async(self, ctx: Any, key: bytes) -> Product:
            while not go.is_set():
                await asyncio.sleep(0.001)
            return Product(b"")

    async def run() -> None:
        task = asyncio.create_task(loops.run(leading))
        while not len(flights):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.01)
        assert len(flights) == 1
        follower = Hold()
        seat = follower.board(flights, "key", 0, ())
        go.set()
        await loops._wait(seat)
        assert seat.outcome == "late"

    asyncio.run(run())


def test_a_flight_of_before_a_change_is_joined_by_nobody() -> None:
    flights, before, after = Flights(), Hold(), Hold()
    first = before.board(flights, "key", 1, ())
    joined = before.board(flights, "key", 1, ())
    second = after.board(flights, "key", 2, ())
    assert (first.leads, joined.leads, second.leads) == (True, False, True)
    first.settle("old")
    assert joined.outcome == "old"
    [flight] = flights  # the end of the old one has not taken the new one out
    assert flight.leader is second
    after.end()
    assert len(flights) == 0


def test_whoever_takes_a_seat_while_its_leader_leaves_leads_then() -> None:
    """1. A leader leaves. 2. Its key's own ``__hash__`` runs. 3. Another thread takes a seat in that flight."""
    flights, taken = Flights(), []
    leader, follower = Hold(), Hold()

    class Key:
        boards = False

        def __hash__(self) -> int:
            if Key.boards:
                Key.boards = False
                taken.append(follower.board(flights, self, 0, ()))
            return 1

    key = Key()
    leader.board(flights, key, 0, ())
    Key.boards = True
    leader.end()
    [seat] = taken
    assert seat.leads
    follower.end()
    assert len(flights) == 0


def test_whoever_comes_as_an_attempt_ends_is_woken_twice_at_most() -> None:
    """1. A caller is noted. 2. The attempt ends, and wakes him. 3. He looks, and sees that it has ended."""
    attempt = Attempt(0.0)
    lock = threading.Lock()
    lock.acquire()

    class Ending(list):  # type: ignore[type-arg]
        def append(self, wake: Any) -> None:
            super().append(wake)
            attempt.end()

    attempt._wakes = Ending()
    attempt.wake_with(lock.release)
    assert lock.acquire(blocking=False)
