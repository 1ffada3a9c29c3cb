"""Records what is asked of a cache, and what it answers, in one file for each process; and reads them as histories.

A call is in the file before it is made, so that one whose caller is killed has no answer, and is not forgotten. All
times are of the kernel's one clock, so a history can be merged from processes of one host.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from check import ANY_RUN, History, Operation, Rules, Verdict, check, explain, show

SPACING = 1000  # of the values that are set and loaded: room for increments, which stay recognizable
ALL = "*"  # the key of what is done to all keys


class Found(NamedTuple):
    """A value that was read, and its version where it has one."""

    value: int
    version: int | None = None


class NoAnswer(Exception):
    """Whether the operation was done, or will be, is not known."""


class NotDone(Exception):
    """The operation was not done, and will not be."""


class Cache(Protocol):
    """What histories are recorded of. It is made by ``factory(load, *arguments)``; None: there is nothing."""

    def get(self, key: str) -> Found | None: ...
    def get_many(self, keys: list[str]) -> dict[str, Found]: ...
    def lookup(self, key: str) -> Found | None: ...
    def set(self, key: str, value: int, version: int | None = None) -> bool: ...
    def add(self, key: str, value: int) -> bool: ...
    def incr(self, key: str, delta: int, initial: int | None = None) -> int | None: ...
    def remove(self, key: str, version: int | None = None) -> bool: ...
    def touch(self, key: str) -> bool: ...
    def refresh(self, key: str) -> Found | None: ...
    def clear(self) -> None: ...


Load = Callable[[str], int]
Factory = Callable[..., Cache]


class Recorder:
    """Writes the file of one process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._numbers = itertools.count()

    def begin(self, who: str, key: str, name: str, value: int | None = None, other: int | None = None) -> Call:
        call = Call(self, next(self._numbers))
        self.write(f"begin {call.number} {clock()} {who} {key} {name} {word(value)} {word(other)}")
        call.start = clock()
        return call

    def write(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")  # at once: the page cache outlives a killed process

    def close(self) -> None:
        os.close(self._file)


class Call:
    """An operation that was begun."""

    def __init__(self, recorder: Recorder, number: int) -> None:
        self._recorder = recorder
        self.number = number
        self.start = 0

    def end(self, result: Found | int | None, end: int | None = None) -> None:
        """``end``: of several calls that were one, when it returned."""
        found = result if isinstance(result, Found) else Found(result) if result is not None else None
        words = f"{word(found and found.value)} {word(found and found.version)}"
        self._recorder.write(f"end {self.number} {self.start} {end or clock()} {words}")

    def forget(self) -> None:
        """It was not done."""
        self._recorder.write(f"forget {self.number}")


def clock() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def word(value: int | None) -> str:
    return "-" if value is None else str(int(value))


def number(word: str) -> int | None:
    return None if word == "-" else int(word)


# ---- Reading


@dataclass
class Recording:
    """What processes have recorded."""

    histories: dict[str, History] = field(default_factory=lambda: defaultdict(list))
    """By key. What was done to all keys is in the histories of all that it can concern."""
    versions: dict[int, int] = field(default_factory=dict)
    """The value that each version was seen with."""
    faults: list[str] = field(default_factory=list)
    """Versions that were not one value's."""
    operations: int = 0

    def note_version(self, value: int, version: int) -> None:
        if (other := self.versions.setdefault(version, value)) != value:
            self.faults.append(f"version {version} is of the values {other} and {value}")


def read(directory: Path) -> Recording:
    """Merge the files of a directory."""
    recording = Recording()
    for path in sorted(directory.glob("*.log")):
        for key, op in read_file(path, recording):
            recording.histories[key].append(op)
            recording.operations += op.name != "load"
    concern(recording.histories, recording.histories.pop(ALL, []))
    for key, history in recording.histories.items():
        recording.histories[key] = renumber(history)
    return recording


def read_file(path: Path, recording: Recording) -> Iterator[tuple[str, Operation]]:
    calls: dict[str, tuple[str, Operation]] = {}
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # killed in the middle of it
        kind, call, *words = line.split()
        if kind == "begin":
            start, who, key, name, value, other = words
            calls[call] = key, Operation(who, int(start), math.inf, name, number(value), number(other))
            continue
        key, op = calls.pop(call)
        if kind == "forget":
            continue
        start, end, result, version = words
        yield key, op._replace(start=int(start), end=int(end), result=number(result))
        if version != "-":
            recording.note_version(int(result), int(version))
    yield from calls.values()


def concern(histories: dict[str, History], clears: History) -> None:
    """Put each clear into the histories of keys that were in use then."""
    answered = sorted((op for op in clears if op.end < math.inf), key=lambda op: op.start)
    unanswered = [op for op in clears if op.end == math.inf]
    starts = [op.start for op in answered]
    longest = max((op.end - op.start for op in answered), default=0)
    for history in histories.values():
        first = min(op.start for op in history)
        last = max((op.end for op in history if op.end < math.inf), default=0)
        near = answered[bisect_left(starts, first - longest) : bisect_right(starts, last)]
        history += [op for op in near + unanswered if op.end >= first and op.start <= last]


def renumber(history: History) -> History:
    """Give the values of a key short numbers, in the order of their first appearance."""
    numbers: dict[int, int] = {}

    def short(value: int | None) -> int | None:
        if value is None or value < SPACING:  # what is added, true and false
            return value
        return numbers.setdefault(value // SPACING, len(numbers) + 1) * SPACING + value % SPACING

    ordered = sorted(history, key=lambda op: op.start)
    return [op._replace(value=short(op.value), other=short(op.other), result=short(op.result)) for op in ordered]


# ---- Judging


@dataclass
class Report:
    """What was found in a recording."""

    verdicts: Counter[Verdict]
    pages: list[str]
    """The first histories that are not legal, as a person can read and keep them."""
    operations: int
    names: Counter[str]
    """How many of each operation had an answer."""

    @property
    def fine(self) -> bool:
        return not self.pages

    def __str__(self) -> str:
        verdicts = ", ".join(f"{count} {verdict.value}" for verdict, count in self.verdicts.items())
        return "\n\n".join([f"{self.operations} operations, histories: {verdicts}", *self.pages])


def judge(recording: Recording, rules: Rules = ANY_RUN, pages: int = 3) -> Report:
    """Check each history; what could not be decided counts as a fault."""
    verdicts: Counter[Verdict] = Counter()
    shown = list(recording.faults[:pages])
    for key, history in recording.histories.items():
        verdict = check(history, rules)
        verdicts[verdict] += 1
        if verdict is not Verdict.OK and len(shown) < pages:
            page = (
                explain(history, rules)
                if verdict is Verdict.ILLEGAL
                else f"{verdict.value}: too many orders\n{show(history)}"
            )
            shown.append(f"# {key}\n{page}")
    names = Counter(op.name for op in answered(recording))
    return Report(verdicts, shown, recording.operations, names)


def answered(recording: Recording) -> Iterable[Operation]:
    return (op for history in recording.histories.values() for op in history if op.end < math.inf)
