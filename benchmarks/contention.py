"""CPU time per hit, alone, beside a second reader of the same keys, and beside a coordinator that evicts all the time.

CPU time of the process, not wall time: so a machine with two processors can show it. With few keys, which stay in the
processor's own cache, what shows is what processors take from each other; with many, memory covers some of it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks.common import new_arena, ratio, side_by_side, table, verdict
from mpgroupcache.shm._group import GroupCore
from mpgroupcache.shm._reader import Reader
from mpgroupcache.shm.segment import instance_name, segment_path

BUDGET = 64 << 20
KEYS = (10_000, 100)
VALUE = b"x" * 100
BATCH = 10_000
SETTLING = 0.02  # s


def write(path: str, count: int, ready: Event, evict: Event, stop: Event) -> None:
    """A coordinator's arena: filled once, then, while ``evict`` is set, full and written to without a pause."""
    with new_arena(path, BUDGET) as (arena, *_):
        others = (b"other-%d" % number for number in itertools.count())
        while arena.list_stats(0)[2] == 0:  # until it is full, and evicts
            arena.put(next(others), VALUE)
        for number in range(count):  # last, so that evictions come to them only if nobody gets them
            arena.put(b"key-%05d" % number, VALUE)
        ready.set()
        while not stop.is_set():
            if not evict.wait(0.05):
                continue
            for key in itertools.islice(others, 1000):
                arena.put(key, VALUE)


def attach(instance: str) -> GroupCore:
    """A worker's group, without a coordinator behind it: here every get must hit."""
    core = GroupCore()
    reader = Reader(segment_path(f"{instance}-control"))
    core.attach(reader, 0, next(str(path) for path in Path("/dev/shm").glob(f"{instance}-g0-*")))
    return core


def read(instance: str, count: int, go: Event, stop: Event) -> None:
    """A second worker that hits the same keys."""
    core = attach(instance)
    keys = order(count)
    while not stop.is_set():
        if go.wait(0.05):
            for key in keys:
                core.get(key)


def order(count: int) -> list[str]:
    keys = [f"key-{number:05d}" for number in range(count)] * (BATCH // count)
    random.Random(1).shuffle(keys)
    return keys


@contextlib.contextmanager
def running(*targets: multiprocessing.Process) -> Iterator[None]:
    for process in targets:
        process.start()
    try:
        yield
    finally:
        for process in targets:
            process.join(30)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(arguments)
    for count in KEYS:
        measure(count, options.rounds)


def measure(count: int, rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    ready, evict, go, stop = (context.Event() for _ in range(4))
    processors = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "socket")
        instance = instance_name(path)
        writer = context.Process(target=write, args=(path, count, ready, evict, stop))
        other = context.Process(target=read, args=(instance, count, go, stop))
        os.sched_setaffinity(0, processors[1:] or processors)  # theirs; this process then has one of its own
        with running(writer):  # type: ignore[arg-type]
            ready.wait(60)
            with running(other):  # type: ignore[arg-type]
                os.sched_setaffinity(0, processors[:1])
                try:
                    report(
                        attach(instance),
                        count,
                        {"alone": None, "beside a reader": go, "beside evictions": evict},
                        rounds,
                    )
                finally:
                    stop.set()
                    os.sched_setaffinity(0, processors)


def report(core: GroupCore, count: int, beside: dict[str, Event | None], rounds: int) -> None:
    keys = order(count)

    def batch() -> None:
        for key in keys:
            core.get(key)

    times: dict[str, list[float]] = {name: [] for name in beside}
    for _ in range(rounds):
        for name, event in beside.items():
            if event:
                event.set()
            begun = time.perf_counter()
            while time.perf_counter() - begun < SETTLING:  # until the other process is at it
                batch()
            times[name] += side_by_side({"": (batch, len(keys))}, 3, time.process_time_ns)[""]
            if event:
                event.clear()
    rows = [
        [name, f"{statistics.median(series):.0f}", f"{ratio(times, name, 'alone'):.2f}"]
        for name, series in times.items()
    ]
    table(f"contention: {count} keys of {len(VALUE)} B, CPU ns per get", ["", "median", "times alone"], rows)
    print()
    for name, limit in ("beside a reader", 1.1), ("beside evictions", 1.3):
        print(verdict(f"{count} keys: CPU per get {name}", ratio(times, name, "alone"), limit))


if __name__ == "__main__":
    main(sys.argv[1:])
