"""Miss ratios of a recorded trace in a group, against another implementation of LRU: libcachesim's is the judge.

    make replay

The trace is the beginning of Twitter's cluster 52. libcachesim's source distribution carries it, and pip fetches that
when this runs for the first time. Neither is part of the package, which never imports the judge: it is under the GPL.

A real coordinator serves real workers: one, and four that the trace is dealt to. Each of them goes through its requests
by itself, but no further than the batch that all are in: the judge knows one order alone. A miss is a call of a loader.

An object's size in the trace is what counts towards a budget in both caches: here, the bytes of key and value together.
Budgets are shares of the bytes of all objects. What is left between the ratios is that some victims go ahead of need,
that memory has to lie in one piece, and that no entry takes more than a quarter of a budget.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import itertools
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import libcachesim

import mpgroupcache
from benchmarks.common import coordinator, table

TRACE = Path(sys.prefix) / "replay" / "twitter_cluster52.csv"
DIGEST = "cf4d37d041569bb30c3bc32b7b54dd40b40438c53ee72e4919acf810063d189a"  # SHA-256
REQUESTS = 400_000
SHARES = (0.01, 0.1, 0.3)
WORKERS = (1, 4)
BATCH = 400  # requests of all workers; in a batch their order is chance
PATIENCE = 120.0  # s for a batch
APART = 0.005  # at most

Requests = list[tuple[int, int]]  # object, bytes


def fetch() -> Path:
    """The trace, out of the source distribution of the judge that is installed."""
    if not TRACE.exists():
        print("  fetching the trace, some 80 MB")
        judge = f"libcachesim=={importlib.metadata.version('libcachesim')}"
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "libcachesim"]
            subprocess.run([*command, "--dest", directory, judge], check=True)
            (archive,) = Path(directory).iterdir()
            with tarfile.open(archive) as source:
                (member,) = (file for file in source if file.name.endswith(f"/data/{TRACE.name}"))
                content = source.extractfile(member)
                assert content is not None
                data = content.read()
        TRACE.parent.mkdir(exist_ok=True)
        TRACE.write_bytes(data)
    if (digest := hashlib.sha256(TRACE.read_bytes()).hexdigest()) != DIGEST:
        raise SystemExit(f"{TRACE}: got SHA-256 {digest}, expected {DIGEST}; remove it to fetch it again")
    return TRACE


def read(path: Path, count: int) -> Requests:
    """The first requests, their objects numbered in the order in which they come."""
    numbers: dict[str, int] = {}
    requests = []
    with path.open() as lines:
        for line in itertools.islice(lines, 1, 1 + count):  # time, object, size, next access
            _, name, size, _ = line.split(", ")
            requests.append((numbers.setdefault(name, len(numbers)), int(size)))
    return requests


def judged(requests: Requests, budget: int) -> float:
    """libcachesim's miss ratio."""
    cache, request, misses = libcachesim.LRU(budget), libcachesim.Request(), 0
    for request.obj_id, request.obj_size in requests:
        misses += not cache.get(request)
    return misses / len(requests)


def replay(
    path: str, budget: int, requests: Requests, part: tuple[int, int], barrier: Barrier, result: Connection
) -> None:
    """A worker: every so many requests of each batch, from one on. It tells how often it had to load."""
    loads = size = 0

    def load(ctx: object, key: str | bytes, dest: mpgroupcache.Sink) -> None:
        nonlocal loads
        loads += 1
        dest.set_bytes(bytes(size - len(key)))  # of the request that is under way

    mpgroupcache.configure(socket=path)
    group = mpgroupcache.new_group("replay", budget, load)
    first, step = part
    for begin in range(0, len(requests), BATCH):
        barrier.wait(PATIENCE)
        for number, size in requests[begin : begin + BATCH][first::step]:  # noqa: B007
            group.get(f"{number:05x}")
    result.send(loads)


def replayed(requests: Requests, budget: int, workers: int) -> float:
    """The group's miss ratio."""
    context = multiprocessing.get_context("fork")  # they have the requests then
    barrier = context.Barrier(workers)
    with coordinator() as (path, _):
        running = []
        for number in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=replay, args=(path, budget, requests, (number, workers), barrier, theirs))
            process.start()
            theirs.close()
            running.append((process, ours))
        loads = 0
        for process, result in running:
            loads += result.recv()
            process.join()
    return loads / len(requests)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args(arguments)
    requests = read(fetch(), options.requests)
    objects = dict(requests)
    total = sum(objects.values())
    rows = []
    for share in SHARES:
        budget = int(share * total)
        expected = judged(requests, budget)
        for workers in WORKERS:
            got = replayed(requests, budget, workers)
            verdict = "reached" if abs(got - expected) <= APART else "MISSED"
            rows.append(
                [f"{share:.0%} of bytes", workers, f"{got:.4f}", f"{expected:.4f}", f"{got - expected:+.4f}", verdict]
            )
    table(
        f"replay: {len(requests)} requests for {len(objects)} objects of {total} B, miss ratios",
        ["budget", "workers", "group", "libcachesim", "apart", f"within {APART}"],
        rows,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
