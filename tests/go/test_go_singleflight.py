"""Go's ``singleflight_test.go``, and the right behaviour where Go's is a defect."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from workers import PATIENCE, wait_until, waiting_here

from mpgroupcache import LoadCycleError, LoadError
from mpgroupcache.singleflight import Group
from mpgroupcache.worker import process


def callers() -> int:
    """How many threads of this process wait or call."""
    return len(process.current().flights) + waiting_here()


def test_do() -> None:
    assert Group().do("key", lambda: "bar") == "bar"


def test_do_err() -> None:
    error = ValueError("some error")

    def fail() -> None:
        raise error

    group = Group()
    with pytest.raises(ValueError, match="some error") as raised:
        group.do("key", fail)
    assert raised.value is error
    assert group.do("key", lambda: None) is None  # nothing is kept


def begin(group: Group, function: Callable[[], object], count: int) -> list[Future[object]]:
    """Have so many threads call ``do``; returns when one calls the function and the others wait."""
    pool = ThreadPoolExecutor(count)
    begun = [pool.submit(group.do, "key", function) for _ in range(count)]
    wait_until(lambda: callers() == count, "threads that wait")
    return begun


def test_do_dup_suppress() -> None:
    released = threading.Event()
    calls = []
    result = object()

    def function() -> object:
        calls.append(1)
        assert released.wait(PATIENCE)
        return result

    begun = begin(Group(), function, 10)
    released.set()
    assert [future.result(PATIENCE) for future in begun] == [result] * 10
    assert calls == [1]


def test_what_a_function_raises_reaches_all() -> None:
    released = threading.Event()

    def function() -> None:
        assert released.wait(PATIENCE)
        raise KeyError("boom")

    begun = begin(Group(), function, 3)
    released.set()
    errors = [future.exception(PATIENCE) for future in begun]
    [own] = [error for error in errors if isinstance(error, KeyError)]
    others = [error for error in errors if isinstance(error, LoadError)]
    assert len(others) == 2
    assert all(error.__cause__ is own and error.type_name == "KeyError" for error in others)


def test_a_thread_that_exits_strands_nobody() -> None:
    """Go's defect: a function that panics or calls ``Goexit`` leaves every other caller waiting for ever."""
    released = threading.Event()
    calls = []

    def function() -> str:
        calls.append(1)
        assert released.wait(PATIENCE)
        if len(calls) == 1:
            raise SystemExit
        return "bar"

    begun = begin(Group(), function, 3)
    released.set()
    outcomes = [future.exception(PATIENCE) or future.result() for future in begun]
    assert sorted(map(str, outcomes)) == ["", "bar", "bar"]
    assert len(calls) == 2


def test_a_function_that_asks_for_its_own_key() -> None:
    """Go's defect: it waits for itself for ever."""
    group, other = Group(), Group()
    with pytest.raises(LoadCycleError):
        group.do("key", lambda: other.do("key", lambda: group.do("key", lambda: "never")))
    assert group.do("key", lambda: other.do("key", lambda: "bar")) == "bar"  # keys of other groups are others
    assert callers() == 0
