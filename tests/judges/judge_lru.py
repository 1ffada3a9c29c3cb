"""Runs CPython's ``TestLRU`` against ``cached``; prints what failed of it, as JSON: id -> the last lines of why.

Each test has a process of its own, since some of them break the one that they fail in, or never end there.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import os
import signal
import sys
import tempfile
import types
import unittest
from collections.abc import Callable
from typing import Any, TextIO

from telling import tell
from test import test_functools

import mpgroupcache

LIMIT = int(sys.argv[1])  # s, of one test

numbers = itertools.count()


def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """``functools.lru_cache`` as far as ``cached`` has it. What was asked for is told as it was asked for."""
    if callable(maxsize):
        return lru_cache()(maxsize)
    told = None if maxsize is None else max(maxsize, 0)

    def decorate(function: Callable[..., Any]) -> Any:
        made = mpgroupcache.cached(
            f"lru-{os.getpid()}-{next(numbers)}",
            0 if told == 0 else "1MiB",
            codec="pickle",
            key=_key_of(function),
        )(function)
        tell(made, maxsize=told, typed=typed)
        return made

    return decorate


def _key_of(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Of a method it has to be said: the one whose is called is a number."""
    first = next(iter(inspect.signature(function).parameters), None)
    return (lambda self, *arguments: (int(self), *arguments)) if first == "self" else None


@lru_cache()
def cached(x: int, y: int) -> int:
    return 3 * x + y


class Judged(test_functools.TestLRU, unittest.TestCase):
    module = types.SimpleNamespace(
        lru_cache=lru_cache,
        partial=functools.partial,
        _CacheInfo=functools._CacheInfo,  # type: ignore[attr-defined]
        WRAPPER_ASSIGNMENTS=functools.WRAPPER_ASSIGNMENTS,
    )
    cached_func = (cached,)

    @lru_cache()
    def cached_meth(self, x: int, y: int) -> int:
        return 3 * x + y

    @staticmethod
    @lru_cache()
    def cached_staticmeth(x: int, y: int) -> int:
        return 3 * x + y


def run(name: str, output: TextIO) -> bool:
    """Run one test in this process, which is of no use to anybody afterwards."""
    signal.alarm(LIMIT)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    mpgroupcache.connect()
    return unittest.TextTestRunner(sys.stderr).run(Judged(name)).wasSuccessful()


def start(name: str, output: TextIO) -> int:
    """Start a process that runs a test, and return its id."""
    if pid := os.fork():
        return pid
    succeeded = False
    with contextlib.suppress(BaseException):
        succeeded = run(name, output)
    os._exit(not succeeded)


def main() -> None:
    names = unittest.defaultTestLoader.getTestCaseNames(Judged)
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in names]
        pids = [start(name, output) for name, output in zip(names, outputs, strict=True)]
        failed = {}
        for name, pid, output in zip(names, pids, outputs, strict=True):
            if os.waitpid(pid, 0)[1]:
                output.seek(0)
                failed[name] = output.read()[-2000:]
    json.dump({"tests": names, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    main()
