"""``get_many`` of cached keys, against as many gets of one, whose values are put in a dict, too, or dropped."""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

import mpgroupcache
from benchmarks.common import Batch, coordinator, percentile, ratio, side_by_side, table, verdict

KEYS = 10_000
VALUE = b"x" * 100
LIMITS = {10: 0.7, 100: 0.6}  # keys at once: the share of what as many gets take


def load(ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
    dest.set_bytes(VALUE)


def gets(group: mpgroupcache.Group, batches: list[list[str]]) -> Batch:
    """Gets whose values nobody keeps."""

    def batch() -> None:
        for keys in batches:
            for key in keys:
                group.get(key)

    return batch


def kept_gets(group: mpgroupcache.Group, batches: list[list[str]]) -> Batch:
    """What a caller would write instead."""

    def batch() -> None:
        for keys in batches:
            {key: group.get(key) for key in keys}

    return batch


def get_manys(group: mpgroupcache.Group, batches: list[list[str]]) -> Batch:
    """The same keys together."""

    def batch() -> None:
        for keys in batches:
            group.get_many(keys)

    return batch


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(arguments)
    with coordinator() as (path, _):
        mpgroupcache.configure(socket=path)
        group = mpgroupcache.new_group("many", "64MiB", load)
        order = [f"key-{number:05d}" for number in range(KEYS)]
        group.get_many(order)
        random.Random(1).shuffle(order)
        turns: dict[str, tuple[Batch, int]] = {}
        for count in LIMITS:
            batches = [order[start : start + count] for start in range(0, KEYS, count)]
            turns[f"{count} gets, dropped"] = gets(group, batches), KEYS
            turns[f"{count} gets"] = kept_gets(group, batches), KEYS
            turns[f"get_many of {count}"] = get_manys(group, batches), KEYS
        times = side_by_side(turns, options.rounds)
    shares = (0.1, 0.5, 0.9)
    rows = [[name, *(f"{percentile(series, share):.0f}" for share in shares)] for name, series in times.items()]
    table(f"many: {KEYS} values of {len(VALUE)} B, ns per key", ["", "p10", "median", "p90"], rows)
    print()
    for count, limit in LIMITS.items():
        for what in ("gets", "gets, dropped"):
            got = ratio(times, f"get_many of {count}", f"{count} {what}")
            print(verdict(f"get_many of {count} keys, of as many {what}", got, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
