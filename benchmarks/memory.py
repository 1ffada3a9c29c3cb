"""What an arena takes of the machine's memory: for values of all sizes after long churn, and for each small entry.

    python benchmarks/memory.py [--budget 64MiB ...] [--churn 10]

Figures: ``memory`` is what the segment's file takes (``st_blocks``), ``live`` the bytes of keys and values in it,
``private`` what the coordinator keeps beside it. ``overhead`` is what an entry takes besides its key and value.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time

from benchmarks.common import new_arena
from mpgroupcache.shm._writer import Arena
from mpgroupcache.shm.ownership import Segment
from mpgroupcache.sizes import format_size, parse_size

SMALLEST, LARGEST = 64, 1 << 20  # bytes of values; their logarithms are spread evenly
PATTERN = random.Random(1).randbytes(LARGEST)
SMALL_ENTRIES = [(20, 100), (16, 16), (40, 400), (12, 0)]  # (key, value) in bytes


def private_bytes() -> int:
    """Anonymous memory of this process."""
    with open("/proc/self/smaps_rollup") as rollup:
        return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Anonymous:"))


def memory_of(segment: Segment) -> int:
    return os.fstat(segment.fd).st_blocks * 512


def live_of(arena: Arena) -> tuple[int, int]:
    """(bytes, entries)"""
    (main_bytes, main, _), (hot_bytes, hot, _) = arena.list_stats(0), arena.list_stats(1)
    return main_bytes + hot_bytes, main + hot


def churn(budget: int, times: int, seed: int) -> None:
    """Values of all sizes, until ``times`` the budget has gone through."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory, new_arena(f"{directory}/socket", budget) as (arena, _, segment):
        done = puts = refused = 0
        peak, lowest = 0.0, 1.0
        spent = 0.0
        while done < times * budget:
            size = int(SMALLEST * (LARGEST / SMALLEST) ** rng.random())
            key = b"key-%d" % puts
            value = memoryview(PATTERN)[:size]
            begin = time.perf_counter()
            cached = arena.put(key, value)
            spent += time.perf_counter() - begin
            refused += not cached
            done += len(key) + size
            puts += 1
            if done > budget and puts % 50 == 0:
                live, _ = live_of(arena)
                peak = max(peak, memory_of(segment) / live)
                lowest = min(lowest, live / budget)
        live, items = live_of(arena)
        memory = memory_of(segment)
        assert arena.check() == []
        print(
            f"{format_size(budget):>10}{items:>9}{live / budget:>10.1%}{lowest:>10.1%}{memory / live:>10.3f}"
            f"{peak:>9.3f}{refused:>9}{spent / puts * 1e6:>12.1f}"
        )


def small(budget: int, key_bytes: int, value_bytes: int) -> None:
    """Entries of one size: filled, and then as many again."""
    value = PATTERN[:value_bytes]
    private = private_bytes()
    with tempfile.TemporaryDirectory() as directory, new_arena(f"{directory}/socket", budget) as (arena, _, segment):
        count = budget // (key_bytes + value_bytes)
        keys = (b"%0*d" % (key_bytes, number) for number in range(2 * count))
        spent = []
        for _ in range(2):
            begin = time.perf_counter()
            for _ in range(count):
                arena.put(next(keys), value)
            spent.append((time.perf_counter() - begin) / count)
        live, items = live_of(arena)
        memory, beside = memory_of(segment), private_bytes() - private
        assert arena.check() == []
        print(
            f"{f'{key_bytes} + {value_bytes} B':>14}{items:>10}{live / budget:>9.1%}{memory / live:>9.3f}"
            f"{(memory - live) / items:>11.1f}{beside / items:>10.1f}{spent[0] * 1e6:>10.2f}{spent[1] * 1e6:>12.2f}"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget", action="append", type=parse_size, help="cache_bytes; may be repeated (64MiB, 256MiB)"
    )
    parser.add_argument("--churn", type=int, default=10, help="budgets that go through (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)

    print(f"values of {SMALLEST} B to {format_size(LARGEST)}, log-uniform, {options.churn} budgets put")
    print(
        f"{'budget':>10}{'entries':>9}{'live':>10}{'lowest':>10}{'mem/live':>10}"
        f"{'peak':>9}{'refused':>9}{'us a put':>12}"
    )
    for budget in options.budget or (64 << 20, 256 << 20):
        churn(budget, options.churn, options.seed)

    print("\nsmall entries in 64 MiB, bytes an entry")
    print(
        f"{'key + value':>14}{'entries':>10}{'live':>9}{'mem/live':>9}{'overhead':>11}{'private':>10}{'us fresh':>10}"
        f"{'us evicting':>12}"
    )
    for key_bytes, value_bytes in SMALL_ENTRIES:
        small(64 << 20, key_bytes, value_bytes)


if __name__ == "__main__":
    main()
