"""``find_many`` of cached keys, against as many gets of one, whose views are put in a dict, too, or dropped."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile

from benchmarks.common import Batch, new_arena, percentile, ratio, side_by_side, table, verdict
from mpgroupcache.shm._group import GroupCore, with_own_get
from mpgroupcache.shm._reader import Reader
from mpgroupcache.shm.segment import instance_name, segment_path

BUDGET = 64 << 20
KEYS = 10_000
VALUE = b"x" * 100
LIMITS = {10: 0.7, 100: 0.6}  # keys at once: the share of what as many gets take


@with_own_get
class Core(GroupCore):
    """A worker's group, without a coordinator behind it: here every get must hit."""


def gets(core: Core, batches: list[list[str]]) -> Batch:
    """Gets whose values nobody keeps."""

    def batch() -> None:
        for keys in batches:
            for key in keys:
                core.get(key)

    return batch


def kept_gets(core: Core, batches: list[list[str]]) -> Batch:
    """What a caller would write instead."""

    def batch() -> None:
        for keys in batches:
            {key: core.get(key) for key in keys}

    return batch


def finds(core: Core, batches: list[list[str]]) -> Batch:
    """The same keys together."""

    def batch() -> None:
        for keys in batches:
            core.find_many(keys)

    return batch


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mpg-") as directory:
        path = f"{directory}/socket"
        with new_arena(path, BUDGET) as (arena, _, segment):
            order = [f"key-{number:05d}" for number in range(KEYS)]
            for key in order:
                arena.put(key.encode(), VALUE)
            random.Random(1).shuffle(order)
            core = Core()
            core.attach(Reader(segment_path(f"{instance_name(path)}-control")), 0, segment_path(segment.name))
            turns: dict[str, tuple[Batch, int]] = {}
            for count in LIMITS:
                batches = [order[start : start + count] for start in range(0, KEYS, count)]
                turns[f"{count} gets, dropped"] = gets(core, batches), KEYS
                turns[f"{count} gets"] = kept_gets(core, batches), KEYS
                turns[f"find_many of {count}"] = finds(core, batches), KEYS
            times = side_by_side(turns, options.rounds)
            core.detach()
    shares = (0.1, 0.5, 0.9)
    rows = [[name, *(f"{percentile(series, share):.0f}" for share in shares)] for name, series in times.items()]
    table(f"many: {KEYS} values of {len(VALUE)} B, ns per key", ["", "p10", "median", "p90"], rows)
    print()
    for count, limit in LIMITS.items():
        got = ratio(times, f"find_many of {count}", f"{count} gets")
        print(verdict(f"find_many of {count} keys against as many gets", got, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
