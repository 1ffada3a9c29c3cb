"""``group.get(key)`` on a hit, against in-process caches, LMDB and memcached."""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cachebox
import cachetools
import lmdb
from pymemcache.client.base import Client

import mpgroupcache
from benchmarks.common import Batch, coordinator, percentile, ratio, side_by_side, table, verdict

SIZES = (100, 1 << 10, 10 << 10, 100 << 10, 1 << 20)
KEYS = 10_000
TOGETHER = 64 << 20  # bytes; fewer keys where their values would pass this
BATCH = 10_000  # gets in a batch
SLOW_BATCH = 500  # of those that take microseconds
COLD = ", cold"  # the first batch of a turn finds the processor's caches full of what the others left there
WARMING = ", warming"  # and then it takes some batches until they have what this one needs: these are not reported
WARMING_BATCHES = 10


def gets(cache: Any, keys: list[str]) -> Batch:
    """A batch of ``cache[key]``."""

    def batch() -> None:
        for key in keys:
            cache[key]

    return batch


def group_gets(group: mpgroupcache.Group, keys: list[str]) -> Batch:
    """A batch of ``group.get(key)``."""

    def batch() -> None:
        for key in keys:
            group.get(key)

    return batch


def lmdb_gets(environment: lmdb.Environment, keys: list[str]) -> Batch:
    """A batch of gets from LMDB with a transaction each, which is what keeps a value valid while it is used."""

    def batch() -> None:
        for key in keys:
            with environment.begin(buffers=True) as transaction:
                transaction.get(key.encode())

    return batch


def memcached_gets(client: Client, keys: list[str]) -> Batch:
    """A batch of gets from memcached."""

    def batch() -> None:
        for key in keys:
            client.get(key)

    return batch


def repeated(batch: Batch) -> Batch:
    """The same batch, ``WARMING_BATCHES`` times."""

    def batches() -> None:
        for _ in range(WARMING_BATCHES):
            batch()

    return batches


@contextlib.contextmanager
def memcached() -> Iterator[Client | None]:
    """A memcached of its own on a Unix socket, where it is installed."""
    if (command := shutil.which("memcached")) is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "memcached")
        process = subprocess.Popen([command, "-u", "nobody", "-m", "256", "-I", "8m", "-s", path, "-a", "0777"])
        Path(directory).chmod(0o777)
        try:
            while not Path(path).exists():
                time.sleep(0.01)
            yield Client(path)
        finally:
            process.terminate()
            process.wait()


def fill(name: str, size: int, count: int) -> tuple[mpgroupcache.Group, dict[str, bytes], list[str]]:
    """Return a group that has cached ``count`` values of ``size`` bytes, the values, and a batch's keys."""
    keys = [f"key-{number:05d}" for number in range(count)]
    body = random.Random(size).randbytes(size)
    values = {key: key.encode() + body[len(key) :] for key in keys}  # an object each, as in life
    group = mpgroupcache.new_group(name, 2 * TOGETHER, lambda ctx, key, dest: dest.set_bytes(values[key]))
    for key in keys:
        group.get(key)
    while any(group.lookup(key) is None for key in keys):
        time.sleep(0.01)  # the last values are still being stored
    order = keys * (BATCH // count + 1)
    random.Random(1).shuffle(order)
    return group, values, order[:BATCH]


def in_turn(batches: dict[str, tuple[Batch, int]], rounds: int) -> dict[str, list[float]]:
    """Time each batch with cold caches of the processor, and with warm ones."""
    turns: dict[str, tuple[Batch, int]] = {}
    for name, (batch, operations) in batches.items():
        turns[name + COLD] = batch, operations
        turns[name + WARMING] = repeated(batch), WARMING_BATCHES * operations
        turns[name] = batch, operations
    times = side_by_side(turns, rounds)
    return {turn: series for turn, series in times.items() if not turn.endswith(WARMING)}


def measure(size: int, count: int, rounds: int, socket_client: Client | None) -> dict[str, list[float]]:
    """Fill every cache with the same values, and time gets in random order."""
    group, values, order = fill(f"hit-{size}-{count}", size, count)
    box, tools = cachebox.LRUCache(2 * count), cachetools.LRUCache(2 * count)
    with tempfile.TemporaryDirectory() as directory, lmdb.open(directory, map_size=4 * TOGETHER, sync=False) as disk:
        with disk.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key.encode(), value)
        for key, value in values.items():
            box[key] = tools[key] = value
        batches = {
            "mpgroupcache": (group_gets(group, order), BATCH),
            "cachebox": (gets(box, order), BATCH),
            "cachetools": (gets(tools, order), BATCH),
            "lmdb": (lmdb_gets(disk, order), BATCH),
        }
        if socket_client is not None:
            for key, value in values.items():
                socket_client.set(key, value)
            few = order[:SLOW_BATCH]
            batches["memcached"] = (memcached_gets(socket_client, few), SLOW_BATCH)
        return in_turn(batches, rounds)


def compare_sizes(count: int, rounds: int) -> float:
    """Time gets of ``count`` values of each size, and return what the slowest takes in what the fastest does.

    As many of every size, so that what differs is the size and not the processor's cache; and in one measurement, so
    that it is not the processor's speed of the minute.
    """
    batches = {}
    for size in SIZES:
        group, _, order = fill(f"size-{size}", size, count)
        batches[f"{size} B"] = group_gets(group, order), BATCH
    times = in_turn(batches, rounds)
    first = next(iter(batches))
    report(f"{count} values of each size", times, first)
    relative = [ratio(times, name, first) for name in batches]
    return max(relative) / min(relative)


def report(title: str, times: dict[str, list[float]], base: str = "mpgroupcache") -> None:
    """Print a table of one measurement. ``base``: in whose times each is told."""
    rows = []
    for name, series in times.items():
        figures = [f"{percentile(series, share):.0f}" for share in (0.5, 0.9, 0.99)]
        same = base + (COLD if name.endswith(COLD) else "")
        rows.append([name, *figures, f"{ratio(times, name, same):.2f}"])
    table(f"hit: {title}, ns per get", ["", "median", "p90", "p99", f"times {base}"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    lines = []
    with coordinator() as (path, _), memcached() as client:
        mpgroupcache.configure(socket=path)
        for size in SIZES:
            count = min(KEYS, TOGETHER // size)
            times = measure(size, count, options.rounds, client)
            report(f"{count} values of {size} B", times)
            for other, limit in (("cachebox", 1.6), ("cachetools", 1.0), ("lmdb", 1 / 8)):
                got = ratio(times, "mpgroupcache", other)
                lines.append(verdict(f"{count} values of {size} B: get against {other}", got, limit))
        few = TOGETHER // SIZES[-1]
        spread = compare_sizes(few, options.rounds)
        lines.append(verdict(f"{few} values of 100 B to 1 MiB: slowest size against fastest", spread, 1.3))
    if client is None:
        lines.append("  memcached is not installed: not measured")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
