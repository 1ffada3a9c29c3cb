"""Misses of many keys: ``get_many`` with a batch getter against single gets, and what one coordinator takes."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from typing import Any

import mpgroupcache
from benchmarks.common import coordinator, percentile, ratio, side_by_side, table, verdict

AT_ONCE = 100
BATCHES = 5  # in a measured batch
WORKERS = 4
SECONDS = 2.0
VALUE = b"x" * 100


class Getter:
    """Loads nothing but a constant."""

    def get(self, ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        dest.set_bytes(VALUE)

    def get_many(self, ctx: Any, keys: list[str], dest: dict[str, mpgroupcache.Sink]) -> None:
        for sink in dest.values():
            sink.set_bytes(VALUE)


def together(rounds: int) -> None:
    """One worker."""
    numbers = itertools.count()
    with coordinator() as (path, _):
        mpgroupcache.configure(socket=path)
        group = mpgroupcache.new_group("batch", "256MiB", Getter())
        mpgroupcache.connect()

        def singles() -> None:
            for _ in range(AT_ONCE * BATCHES):
                group.get(f"key-{next(numbers)}")

        def many() -> None:
            for _ in range(BATCHES):
                begin = next(numbers)
                group.get_many([f"many-{begin}-{i}" for i in range(AT_ONCE)])

        keys = AT_ONCE * BATCHES
        times = side_by_side({"get": (singles, keys), f"get_many of {AT_ONCE}": (many, keys)}, rounds)
    rows = [
        [name, *(f"{percentile(series, share) / 1000:.2f}" for share in (0.1, 0.5, 0.9))]
        for name, series in times.items()
    ]
    table("a miss, of a key, us", ["", "p10", "median", "p90"], rows)
    print("\n" + verdict("get_many, of as many gets", ratio(times, f"get_many of {AT_ONCE}", "get"), 0.1))


def _work(path: str, number: int, start: Any, results: Any) -> None:
    mpgroupcache.configure(socket=path)
    group = mpgroupcache.new_group("batch", "256MiB", Getter())
    assert mpgroupcache.connect()
    start.wait()
    done, until = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        group.get_many([f"{number}-{done + i}" for i in range(AT_ONCE)])
        done += AT_ONCE
    results.put(done)


def coordinated() -> None:
    """What a coordinator with a processor of its own takes of several workers."""
    context = multiprocessing.get_context("spawn")
    own, *others = sorted(os.sched_getaffinity(0))
    with coordinator() as (path, pid):
        os.sched_setaffinity(pid, {own})
        os.sched_setaffinity(0, set(others) or {own})
        start, results = context.Barrier(WORKERS), context.Queue()
        workers = [context.Process(target=_work, args=(path, i, start, results)) for i in range(WORKERS)]
        for worker in workers:
            worker.start()
        done = sum(results.get() for _ in workers)
        for worker in workers:
            worker.join()
        os.sched_setaffinity(0, {own, *others})
    rate = done / SECONDS
    print(f"\n  coordinated misses per second, {WORKERS} workers, get_many of {AT_ONCE}: {rate:.0f}")
    print(verdict("60000 of them take", 60_000 / rate, 1.0, " s"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    together(options.rounds)
    coordinated()


if __name__ == "__main__":
    main(sys.argv[1:])
