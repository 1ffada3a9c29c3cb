"""Recorded histories of a cache that keeps the contract are legal, and each broken one is found."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import reference
from check import Rules
from hammer import MIX, drive, hammer_here
from record import Load, Report, judge, read
from reference import Server, SharedCache, Store, reach

BROKEN_STORES = [
    reference.PublishesLate,
    reference.SetOvertakesNothing,
    reference.CountsInTwoSteps,
    reference.AddsInTwoSteps,
    reference.ComparesInTwoSteps,
    reference.ClearMissesOne,
    reference.RemovesLater,
    reference.RepeatsChanges,
    reference.RepeatsVersions,
]
BROKEN_CACHES = [reference.JoinsAcrossChanges, reference.KeepsCopies, reference.RefreshJoins]


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    """Let threads meet in short operations, too."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Pair:
    """A cache whose callers are those of two processes."""

    def __init__(self, load: Load, kind: type[SharedCache], store: Store) -> None:
        self._parts = itertools.cycle([kind(load, store), kind(load, store)])

    def __getattr__(self, name: str) -> object:
        return getattr(next(self._parts), name)


def hammer(directory: Path, cache: type[SharedCache], store: Store, rules: Rules, operations: int) -> Report:
    directory.mkdir()
    hammer_here(Pair, (cache, store), directory, operations=operations, threads=4)
    return judge(read(directory), rules)


def is_found(directory: Path, cache: type[SharedCache], store: type[Store], rules: Rules) -> bool:
    """In one of several runs: most need a part of the first."""
    return any(not hammer(directory / str(turn), cache, store(), rules, 4000).fine for turn in range(10))


@pytest.mark.parametrize(
    "rules", [Rules(), Rules(lossless=True), Rules(blind=True)], ids=["lossy", "lossless", "blind"]
)
def test_a_right_cache_has_legal_histories(tmp_path: Path, rules: Rules) -> None:
    report = hammer(tmp_path / "run", SharedCache, Store(), rules, 10_000)
    assert report.fine, report
    assert report.operations >= 10_000
    assert set(report.names) == {name for name in MIX if name not in ("get_many", "set_if", "remove_if")} | {"load"}


@pytest.mark.parametrize("store", BROKEN_STORES)
def test_a_broken_store_is_found(tmp_path: Path, store: type[Store]) -> None:
    assert is_found(tmp_path, SharedCache, store, Rules(lossless=True))


@pytest.mark.parametrize("cache", BROKEN_CACHES)
def test_a_broken_cache_is_found(tmp_path: Path, cache: type[SharedCache]) -> None:
    assert is_found(tmp_path, cache, Store, Rules())


def test_processes_that_are_stopped_and_killed(tmp_path: Path) -> None:
    with Server() as server:
        report = drive(reach, (SharedCache, server.Store()), tmp_path, operations=5000)
    assert report.fine, report


def test_processes_with_copies_of_their_own(tmp_path: Path) -> None:
    with Server() as server:
        report = drive(reach, (reference.KeepsCopies, server.Store()), tmp_path, operations=2000, faults=False)
    assert not report.fine
