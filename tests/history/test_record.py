"""Recorded histories of a cache that keeps the contract are legal, and each broken one is found."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import reference
from check import Rules, show_call
from children import ChildError
from hammer import MIX, drive, hammer_here
from record import SPACING, Found, Load, Recorder, Report, judge, read
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


def test_what_was_begun_and_not_done_is_kept_and_forgotten(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "1.log")
    recorder.begin("1.0", "a", "set", 700 * SPACING).end(True)
    recorder.begin("1.0", "a", "set", 701 * SPACING).forget()
    recorder.begin("1.1", "a", "incr", 2, 500 * SPACING)
    recorder.begin("1.0", "a", "get").end(Found(700 * SPACING + 2, version=12))
    recorder.begin("1.0", "b", "lookup").end(None)
    recorder.close()
    recording = read(tmp_path)
    assert [show_call(op) for op in recording.histories["a"]] == [
        "set 1000 -> true",
        "incr 2 or 2000",
        "get -> 1002",
    ]
    assert [show_call(op) for op in recording.histories["b"]] == ["lookup -> none"]
    assert recording.versions == {12: 700 * SPACING + 2}
    assert judge(recording).fine


def test_a_version_of_two_values_is_a_fault(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "1.log")
    for value in (1000, 2000):
        recorder.begin("1.0", f"{value}", "set", value).end(True)
        recorder.begin("1.0", f"{value}", "get").end(Found(value, version=5))
    recorder.close()
    report = judge(read(tmp_path))
    assert report.pages == ["version 5 is of the values 1000 and 2000"]


def test_a_half_line_of_a_killed_process_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "1.log").write_text("begin 0 1 1.0 a get - -\nend 0 1 2 - -\nbegin 1 3 1.0 a ge")
    assert len(read(tmp_path).histories["a"]) == 1


def test_a_clear_is_in_each_history_that_it_can_concern(tmp_path: Path) -> None:
    lines = [
        "get a 10 20",
        "get b 30 40",
        "clear * 18 19",
        "clear * 20 30",
        "clear * 21 29",
        "clear * 1 100",
        "clear * 35",
    ]
    with (tmp_path / "1.log").open("w") as file:
        for number, line in enumerate(lines):
            name, key, start, *end = line.split()
            print("begin", number, start, "1.0", key, name, "- -", file=file)
            if end:
                print("end", number, start, *end, "- -", file=file)
    histories = read(tmp_path).histories
    assert [(op.start, op.end) for op in histories["a"] if op.name == "clear"] == [(1, 100), (18, 19), (20, 30)]
    assert [(op.start, op.end) for op in histories["b"] if op.name == "clear"] == [(1, 100), (20, 30), (35, math.inf)]


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
    assert len(list(tmp_path.glob("*.log"))) > 3  # of those that were killed, too


def test_processes_with_copies_of_their_own(tmp_path: Path) -> None:
    with Server() as server:
        report = drive(reach, (reference.KeepsCopies, server.Store()), tmp_path, operations=2000, faults=False)
    assert not report.fine


class Failing(SharedCache):
    """An adapter with a fault of its own."""

    def get(self, key: str) -> Found | None:
        raise ZeroDivisionError


def test_a_process_that_fails_ends_the_run(tmp_path: Path) -> None:
    with Server() as server, pytest.raises(ChildError, match="ZeroDivisionError"):
        drive(reach, (Failing, server.Store()), tmp_path, operations=10**9, faults=False)
