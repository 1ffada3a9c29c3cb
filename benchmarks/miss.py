"""A miss that the asking worker loads, in ping-pongs between two processes over a Unix socket."""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import sys

import mpgroupcache
from benchmarks.common import coordinator, percentile, ratio, side_by_side, table, verdict

BATCH = 500
VALUE = b"x" * 100


def echo() -> tuple[socket.socket, int]:
    """The near end of a socket whose far end, in another process, sends back what it gets; and that process."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if (pid := os.fork()) == 0:
        near.close()
        while data := far.recv(4096):
            far.send(data)
        os._exit(0)
    far.close()
    return near, pid


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    near, echoing = echo()
    numbers = itertools.count()
    with coordinator() as (path, coordinating):
        mpgroupcache.configure(socket=path)
        group = mpgroupcache.new_group("miss", "64MiB", lambda ctx, key, dest: dest.set_bytes(VALUE))

        def misses() -> None:
            for _ in range(BATCH):
                group.get(f"key-{next(numbers)}")

        def ping_pongs() -> None:
            for _ in range(BATCH):
                near.send(VALUE)
                near.recv(4096)

        # Where the kernel puts two processes that wake each other decides what a ping-pong takes, by more than twice.
        own, *others = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own})
        for place, cpu in [("one core", own), *[("two cores", other) for other in others[:1]]]:
            for pid in (echoing, coordinating):
                os.sched_setaffinity(pid, {cpu})
            times = side_by_side({"miss": (misses, BATCH), "ping-pong": (ping_pongs, BATCH)}, options.rounds)
            report(place, times)
        stats = group.stats
    near.close()
    assert stats.cache_hits == 0, stats


def report(place: str, times: dict[str, list[float]]) -> None:
    rows = [
        [name, *(f"{percentile(series, share) / 1000:.1f}" for share in (0.5, 0.9, 0.99))]
        for name, series in times.items()
    ]
    table(f"miss: {len(VALUE)} B values, both processes on {place}, us", ["", "median", "p90", "p99"], rows)
    print("\n" + verdict(f"a miss in ping-pongs, {place}", ratio(times, "miss", "ping-pong"), 5.0, " ping-pongs"))
    print(f"  misses per second and worker: {1e9 / statistics.median(times['miss']):.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
