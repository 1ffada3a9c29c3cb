"""CPython's own tests of ``functools.lru_cache``, with ``@cached`` in its place."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import judging
import pytest
from tools import missing
from workers import Daemon

BOUND = "it wants a bound on entries; ours is one on bytes, and evicts nothing so soon"
ANY_OBJECT = "it wants objects of any class as keys, by their hash; what has no bytes is refused here"

REASONS = {
    "test_kwargs_order": "it wants the order of keywords to tell calls apart; every spelling of a call is one here",
    "test_lru": BOUND,
    "test_lru_bug_35780": BOUND,
    "test_lru_cache_threaded2": "it wants five loads of one call at once; that is one load here, for all five",
    "test_lru_cache_typed_is_not_recursive": "it wants (1,) and (True,) to be one; keys are typed to the bottom here",
    "test_lru_hash_only_once": ANY_OBJECT,
    "test_lru_method": BOUND,
    "test_lru_reentrancy_with_len": "it has len() cached while the cache itself calls it: a miss is Python here",
    "test_lru_type_error": "it wants a list to be no key; it has bytes, and is one here",
    "test_lru_with_types": "it wants f(3) and f(x=3) to be two; every spelling of a call is one here",
    "test_need_for_rlock": ANY_OBJECT,
}

LIMIT = 25  # s; a test that takes longer never ends


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the ids are of Python 3.11")
def test_lru_cache(start_coordinator: Callable[..., Daemon]) -> None:
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_functools") is None:
        missing("Python's own tests are not here (apt-get install libpython3-testsuite)")
    judge = Path(__file__).with_name("judge_lru.py")
    done = subprocess.run(
        [sys.executable, str(judge), str(LIMIT)],
        env=judging.environment_of(start_coordinator()),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert len(result["tests"]) == 27
    judging.check(set(result["tests"]), result["failed"], REASONS)
