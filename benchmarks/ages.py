"""What ages cost a hit: of a group without, of one with, and of a stale value whose refresh is under way."""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

import mpgroupcache
from benchmarks.common import Batch, coordinator, percentile, ratio, side_by_side, table, verdict
from tests.workers import advance

KEYS = 1000
BATCH = 10_000  # gets in a batch
VALUE = b"x" * 100


def gets(group: mpgroupcache.Group, keys: list[str]) -> Batch:
    """A batch of hits."""

    def batch() -> None:
        get = group.get
        for key in keys:
            get(key)

    return batch


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args(arguments)
    keys = [f"key-{i % KEYS}" for i in range(BATCH)]
    end = threading.Event()

    def wait(ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        end.wait()
        dest.set_bytes(VALUE)

    with coordinator("--lease-timeout", "600") as (path, _):
        mpgroupcache.configure(socket=path)
        groups = {
            "without ages": mpgroupcache.new_group("plain", "64MiB"),
            "fresh": mpgroupcache.new_group("fresh", "64MiB", ttl=1e6),
            "stale": mpgroupcache.new_group("stale", "64MiB", wait, ttl=1, stale=1e6),
        }
        for group in groups.values():
            group.set_many({f"key-{i}": VALUE for i in range(KEYS)})
        advance(path, 2)
        for key in set(keys):
            groups["stale"].get(key)  # has its refresh begin
        while groups["stale"].stats.refreshes < KEYS:
            end.wait(0.01)
        times = side_by_side({name: (gets(group, keys), BATCH) for name, group in groups.items()}, options.rounds)
        end.set()
    rows = [
        [name, *(f"{percentile(series, share):.1f}" for share in (0.1, 0.5, 0.9))] for name, series in times.items()
    ]
    table(f"a hit: {KEYS} keys, {len(VALUE)} B, ns", ["", "p10", "median", "p90"], rows)
    print("\n" + verdict("a hit of a value with an age, in one without", ratio(times, "fresh", "without ages"), 1.10))
    print(verdict("a stale hit, in a fresh one", ratio(times, "stale", "fresh"), 1.2))


if __name__ == "__main__":
    main(sys.argv[1:])
