"""Puts that evict, beside workers that hit all the time: what a coordinator does while many sites are busy.

The writer has one processor, and the workers share the others, if there are any: so each hits about as often as its
ring has room for, and lets another run. Rings are full then when they are drained, as they are where each worker has a
processor of its own. The writer drains from time to time, too, as a coordinator does.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.synchronize import Event, Semaphore
from random import Random

from benchmarks.common import new_arena, percentile, table
from benchmarks.contention import BUDGET, VALUE, attach, running
from mpgroupcache.coordinator.instance import TICK
from mpgroupcache.shm._control import Control
from mpgroupcache.shm._writer import Arena
from mpgroupcache.shm.segment import instance_name

WORKERS = (0, 1, 4, 16, 64)
KEYS = 200_000
HITS = 1000  # of a worker's own keys at a time
PAUSE = 1e-6  # s; the least that lets others run
GOAL = 5000  # puts a second beside the most workers
PATIENCE = 60.0  # s


def read(instance: str, number: int, ready: Semaphore, stop: Event) -> None:
    """A worker that hits."""
    os.setsid()  # the scheduler may share processors out among sessions: the writer's would have many processes
    core = attach(instance)
    random = Random(number)
    keys = [f"key-{random.randrange(KEYS):06d}" for _ in range(HITS)]
    for turn in itertools.count():
        for key in keys:
            core.get(key)
        if turn == 0:
            ready.release()
        if stop.is_set():
            return
        time.sleep(PAUSE)


def measure(arena: Arena, control: Control, others: itertools.count[int], seconds: float) -> tuple[list[float], float]:
    """Put new keys into a full arena; returns the seconds of each put, and the CPU seconds of all."""
    times = []
    cpu, begun = time.process_time(), time.perf_counter()
    ended, drained = begun, begun
    while ended < begun + seconds:
        if ended >= drained + TICK:
            control.drain()
            drained = ended = time.perf_counter()
        if not arena.put(b"other-%d" % next(others), VALUE):
            raise RuntimeError("no room")
        now = time.perf_counter()
        times.append(now - ended)
        ended = now
    return times, time.process_time() - cpu


def beside(count: int, seconds: float) -> tuple[list[float], float]:
    """What ``measure`` returns, beside so many workers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processors = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory, new_arena(f"{directory}/socket", BUDGET) as (arena, control, _):
        others = itertools.count()
        while arena.list_stats(0)[2] == 0:  # until it is full, and evicts
            arena.put(b"other-%d" % next(others), VALUE)
        for number in range(KEYS):
            arena.put(b"key-%06d" % number, VALUE)
        control.spare_regions(count)
        instance = instance_name(f"{directory}/socket")
        ready, stop = context.Semaphore(0), context.Event()
        workers = [context.Process(target=read, args=(instance, number, ready, stop)) for number in range(count)]
        os.sched_setaffinity(0, processors[1:] or processors)  # theirs
        try:
            with running(*workers):  # type: ignore[arg-type]
                os.sched_setaffinity(0, processors[:1])
                try:
                    for _ in workers:
                        if not ready.acquire(timeout=PATIENCE):
                            raise RuntimeError(f"{count} workers do not all hit after {PATIENCE:.0f} s")
                    return measure(arena, control, others, seconds)
                finally:
                    stop.set()
        finally:
            os.sched_setaffinity(0, processors)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    options = parser.parse_args(arguments)
    rows = []
    rate = 0.0
    for count in options.workers:
        times, cpu = beside(count, options.seconds)
        rate = len(times) / options.seconds
        milliseconds = (percentile(times, 0.5), percentile(times, 0.99), max(times))
        rows.append(
            [count, f"{rate:.0f}", f"{cpu / len(times) * 1e6:.1f}", *(f"{value * 1e3:.3g}" for value in milliseconds)]
        )
    table(
        f"evictions: new values of {len(VALUE)} B, while workers hit {KEYS} keys",
        ["workers", "puts/s", "CPU us each", "median ms", "p99 ms", "most ms"],
        rows,
    )
    word = "reached" if rate >= GOAL else "MISSED "
    print(f"\n  {word}  puts that evict beside {options.workers[-1]} workers: {rate:.0f}/s, at least {GOAL}/s")


if __name__ == "__main__":
    main(sys.argv[1:])
