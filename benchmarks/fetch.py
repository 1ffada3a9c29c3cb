"""A get whose owner is a remote peer: a worker and its coordinator against a Go groupcache client, from one Go peer."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mpgroupcache
from benchmarks.common import coordinator, percentile, ratio, table, verdict
from benchmarks.peer import build_go, running

BATCH = 200  # gets
KEYS = 1000
SMALL = 100


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args(arguments)
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as directory:
        peer = build_go(here.parent / "tests" / "net" / "gopeer" / "main.go", directory)
        client = build_go(here / "gofetch" / "main.go", directory)
        if peer is None or client is None:
            print("\n  fetch: Go or golang-github-golang-groupcache-dev is not installed: not measured")
            return
        with (
            running(peer, "-cache-bytes", str(2 << 30)) as url,
            coordinator("--self", "http://nowhere.invalid", "--peer", url) as (path, _),
        ):
            mpgroupcache.configure(socket=path)
            group = mpgroupcache.new_group("g", 0, lambda ctx, key, dest: None)
            times = measure(group, client, url, SMALL, options.rounds)
            assert group.stats.peer_errors == 0
    rows = [
        [name, *(f"{percentile(series, share) / 1000:.1f}" for share in (0.5, 0.9, 0.99))]
        for name, series in times.items()
    ]
    table(f"fetch: {SMALL} B values from a Go peer on loopback, us", ["", "median", "p90", "p99"], rows)
    print("\n" + verdict("a get of a remote peer's key against Go's", ratio(times, "mpgroupcache", "Go"), 3.0))


def measure(group: mpgroupcache.Group, client: str, url: str, size: int, rounds: int) -> dict[str, list[float]]:
    """Nanoseconds of a get, of both in turn."""
    numbers = itertools.count()
    prefix = f"size:{size}:"
    command = [client, "-owner", url, "-prefix", prefix, "-keys", str(KEYS)]
    times: dict[str, list[float]] = {"mpgroupcache": [], "Go": []}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as go:
        assert go.stdin is not None
        assert go.stdout is not None
        for turn in range(rounds + 1):
            began = time.perf_counter_ns()
            for _ in range(BATCH):
                group.get(f"{prefix}{next(numbers) % KEYS}")
            ours = (time.perf_counter_ns() - began) / BATCH
            print(BATCH, file=go.stdin, flush=True)
            theirs = int(go.stdout.readline()) / BATCH
            if turn:  # the first warms up
                times["mpgroupcache"].append(ours)
                times["Go"].append(theirs)
        go.stdin.close()
    return times


if __name__ == "__main__":
    main(sys.argv[1:])
