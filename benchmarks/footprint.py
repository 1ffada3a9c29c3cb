"""What a further worker costs in private memory, and what an idle coordinator costs in CPU."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import mpgroupcache
from benchmarks.common import coordinator, cpu_ns, table, verdict

VALUE = b"x" * 1000
KEYS = 30_000  # some 30 MB


def private_bytes() -> int:
    """This process's private memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def work(socket: str, pipe: Connection) -> None:
    """A worker that reads every value; sends what the cache added to its private memory."""
    mpgroupcache.configure(socket=socket)
    group = mpgroupcache.new_group("footprint", "64MiB", lambda ctx, key, dest: dest.set_bytes(VALUE))
    keys = [f"key-{number}" for number in range(KEYS)]
    before = private_bytes()
    total = sum(len(group.get(key)) for key in keys)
    assert total == KEYS * len(VALUE)
    pipe.send((private_bytes() - before, group.stats))
    pipe.recv()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    costs = []
    with coordinator() as (path, pid):
        pipes = []
        for _ in range(options.processes):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(path, theirs), daemon=True).start()
            cost, _ = ours.recv()
            costs.append(cost)
            pipes.append(ours)
        begin, cpu = time.monotonic(), cpu_ns(pid)
        time.sleep(options.seconds)
        idle = (cpu_ns(pid) - cpu) / 1e7 / (time.monotonic() - begin)
        for pipe in pipes:
            pipe.send(None)
    rows = [[f"worker {number + 1}", f"{cost / 1024:.0f}"] for number, cost in enumerate(costs)]
    table(
        f"footprint: private KiB for the cache in a worker that read {KEYS * len(VALUE) >> 20} MiB", ["", "KiB"], rows
    )
    print("\n" + verdict("private memory of a further worker", max(costs[1:]) / (1 << 20), 1.0, " MiB"))
    print(verdict(f"idle coordinator with {options.processes} workers", idle, 0.2, " % of a core"))


if __name__ == "__main__":
    main(sys.argv[1:])
