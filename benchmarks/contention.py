"""CPU time per hit, alone, beside a second reader of the same keys, and beside a coordinator that evicts all the time.

CPU time of the process, not wall time: so a machine with two processors can show it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
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
KEYS = 10_000
VALUE = b"x" * 100
BATCH = 20_000


def write(path: str, ready: Event, evict: Event, stop: Event) -> None:
    """A coordinator's arena: filled once, then, while ``evict`` is set, full and written to without a pause."""
    with new_arena(path, BUDGET) as (arena, _):
        others = (b"other-%d" % number for number in itertools.count())
        while arena.list_stats(0)[2] == 0:  # until it is full, and evicts
            arena.put(next(others), VALUE)
        for number in range(KEYS):  # last, so that evictions come to them only if nobody gets them
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


def read(instance: str, go: Event, stop: Event) -> None:
    """A second worker that hits the same keys."""
    core = attach(instance)
    keys = order()
    while not stop.is_set():
        if go.wait(0.05):
            for key in keys:
                core.get(key)


def order() -> list[str]:
    keys = [f"key-{number:05d}" for number in range(KEYS)] * (BATCH // KEYS)
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
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    ready, evict, go, stop = (context.Event() for _ in range(4))
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "socket")
        instance = instance_name(path)
        writer = context.Process(target=write, args=(path, ready, evict, stop))
        other = context.Process(target=read, args=(instance, go, stop))
        with running(writer):  # type: ignore[arg-type]
            ready.wait(60)
            with running(other):  # type: ignore[arg-type]
                try:
                    report(instance, evict, go, options.rounds)
                finally:
                    stop.set()


def report(instance: str, evict: Event, go: Event, rounds: int) -> None:
    core = attach(instance)
    keys = order()

    def batch() -> None:
        for key in keys:
            core.get(key)

    def beside(event: Event) -> list[float]:
        event.set()
        begun = time.perf_counter()
        while time.perf_counter() - begun < 0.1:  # until the other process is at it; keys that rest would be evicted
            batch()
        times = side_by_side({"": (batch, len(keys))}, 3, time.process_time_ns)[""]
        event.clear()
        time.sleep(0.1)
        return times

    times: dict[str, list[float]] = {"alone": [], "beside a reader": [], "beside evictions": []}
    for _ in range(max(rounds // 3, 3)):
        times["alone"] += side_by_side({"": (batch, len(keys))}, 3, time.process_time_ns)[""]
        times["beside a reader"] += beside(go)
        times["beside evictions"] += beside(evict)
    rows = [
        [name, f"{statistics.median(series):.0f}", f"{ratio(times, name, 'alone'):.2f}"]
        for name, series in times.items()
    ]
    table(f"contention: {KEYS} keys of {len(VALUE)} B, CPU ns per get", ["", "median", "times alone"], rows)
    print()
    print(verdict("CPU per get beside a reader", ratio(times, "beside a reader", "alone"), 1.1))
    print(verdict("CPU per get beside evictions", ratio(times, "beside evictions", "alone"), 1.3))


if __name__ == "__main__":
    main(sys.argv[1:])
