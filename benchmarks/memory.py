"""Shared memory: of the budget's use after long churn, and of small entries beside their keys and values."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import table, verdict
from mpgroupcache.shm._writer import Arena, arena_size
from mpgroupcache.shm.segment import Segment, arena_name, instance_name, open_instance

CHURN = 10  # budgets' worth of values
SMALLEST, LARGEST = 64, 1 << 20  # bytes; values are log-uniform in between
SMALL = ((20, 100), (16, 16), (20, 0), (60, 1000))  # bytes of key and value


@contextlib.contextmanager
def open_arena(budget: int) -> Iterator[tuple[Arena, Segment]]:
    """An arena of its own, without a coordinator around it."""
    with tempfile.TemporaryDirectory() as directory:
        instance = instance_name(str(Path(directory) / "socket"))
        control_segment, control = open_instance(instance)
        group = control.add_group("group", budget)
        segment = Segment(arena_name(instance, group, 0), arena_size(budget))
        arena = Arena(
            control,
            segment.buffer,
            segment.fd,
            group=group,
            incarnation=0,
            budget=budget,
            max_entry=budget // 4,
            seed=1,
        )
        try:
            yield arena, segment
        finally:
            arena.close()
            control.close()
            for each in (segment, control_segment):
                each.unlink()
                each.close()


def churn(budget: int) -> tuple[float, float, float, int]:
    """Segment bytes and live bytes in budgets, microseconds per put, and puts that were refused."""
    chance = random.Random(1)
    source = chance.randbytes(LARGEST)
    with open_arena(budget) as (arena, segment):
        put, puts, refused, spent = 0, 0, 0, 0
        while put < CHURN * budget:
            size = int(SMALLEST * (LARGEST / SMALLEST) ** chance.random())
            value = memoryview(source)[:size]
            begin = time.perf_counter_ns()
            refused += not arena.put(b"key-%d" % puts, value)
            spent += time.perf_counter_ns() - begin
            put += size
            puts += 1
        faults = arena.check()
        assert faults == [], faults
        live = arena.list_stats(0)[0]
        return os.fstat(segment.fd).st_blocks * 512 / budget, live / budget, spent / puts / 1000, refused


def overhead(key: int, value: int, budget: int) -> float:
    """Bytes in the segment for each entry, besides its key and value, when the budget is full."""
    with open_arena(budget) as (arena, segment):
        data = bytes(value)
        for number in range(budget // (key + value)):
            arena.put(b"%0*d" % (key, number), data)
        live, items, evictions = arena.list_stats(0)
        assert evictions == 0, "the segment was full before the budget was"
        return (os.fstat(segment.fd).st_blocks * 512 - live) / items


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 256], metavar="MiB")
    options = parser.parse_args(arguments)
    rows, lines = [], []
    for budget in options.budgets:
        segment, live, microseconds, refused = churn(budget << 20)
        rows.append([f"{budget} MiB", f"{segment:.3f}", f"{live:.3f}", f"{microseconds:.1f}", refused])
        lines.append(verdict(f"{budget} MiB: segment bytes in budgets in use", segment / min(live, 1.0), 1.25))
        lines.append(verdict(f"{budget} MiB: budget that holds no live entries", 1 - live, 0.1, ""))
    table(
        f"memory: values of {SMALLEST} B to {LARGEST >> 20} MiB, log-uniform, {CHURN} budgets churned through",
        ["budget", "segment/budget", "live/budget", "us per put", "refused"],
        rows,
    )
    small = [[f"{key} B + {value} B", f"{overhead(key, value, 32 << 20):.1f}"] for key, value in SMALL]
    table("memory: bytes in the segment for an entry besides key and value, 32 MiB full", ["key + value", "B"], small)
    print()
    print("\n".join(lines))
    print(verdict("bytes an entry, worst of these", max(float(row[1]) for row in small), 128, " B"))
    print("  the coordinator's private memory comes on top: 16 B an entry")


if __name__ == "__main__":
    main(sys.argv[1:])
