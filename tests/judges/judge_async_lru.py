"""A pytest plug-in that puts ``cached`` in the place of ``async_lru``, and runs tests that are coroutines."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import random
import sys
import types
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
from telling import tell

import mpgroupcache
from mpgroupcache.functions.wrapper import CachedFunction

R = TypeVar("R")

numbers = itertools.count()


class Wrapper(Generic[R]):
    """What annotations name."""


def cache_invalidate(self: CachedFunction[..., Any], *args: Any, **kwargs: Any) -> bool:
    return self.group.remove(self.key(*args, **kwargs))


CachedFunction.cache_invalidate = cache_invalidate  # type: ignore[attr-defined]  # of methods, too


def alru_cache(
    maxsize: Any = 128, typed: bool = False, *, ttl: float | None = None, jitter: float | None = None
) -> Any:
    """``async_lru.alru_cache`` as far as ``cached`` has it. What was asked for is told as it was asked for."""
    if maxsize is not None and not isinstance(maxsize, int):
        return alru_cache()(maxsize)

    def decorate(function: Any) -> Any:
        first = next(iter(inspect.signature(function).parameters), None) if callable(function) else None
        made: Any = mpgroupcache.cached(
            f"alru-{os.getpid()}-{next(numbers)}",
            "1MiB",
            ttl=ttl,
            jitter=0 if jitter is None else jitter,
            codec="pickle",
            ignore=("self",) if first == "self" else (),
        )(function)
        tell(made, maxsize=maxsize, typed=typed, tasks=0, closed=False)
        return made

    return decorate


module: Any = types.ModuleType("async_lru")
module.alru_cache = alru_cache
module._CacheParameters = dict
module._LRUCacheWrapper = Wrapper
module._R = R
module.random = random
sys.modules["async_lru"] = module


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function: Callable[..., Any] = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(function).parameters}
    asyncio.run(function(**arguments))
    return True
