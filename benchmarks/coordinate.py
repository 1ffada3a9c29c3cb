"""Misses that one coordinator can coordinate for several workers: ASK, LEASE, STORE, and no more of a worker than that.

    python -m benchmarks.coordinate [--against PYTHON]

The coordinator has one processor, and all the workers another, if there is one. "busy" is what it has of its own: far
below 100 % somebody else was in its way. ``--against`` has another environment's coordinator take turns with this one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import coordinator, percentile, ratio, table

WORKERS = 4
VALUE_BYTES = 100
WARM_UP = 0.2  # s
THIS, OTHER = "this one", "the other"


class Coordinating:
    """A coordinator and its workers, all of one environment."""

    def __init__(self, path: str, pid: int, python: str, cpus: tuple[int, int], ways: int) -> None:
        self._pid = pid
        os.sched_setaffinity(pid, {cpus[0]})
        command = [python, "-P", str(Path(__file__).with_name("asking.py")), path, str(ways), str(VALUE_BYTES)]
        self._workers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)
        ]
        for worker in self._workers:
            os.sched_setaffinity(worker.pid, {cpus[1]})

    def close(self) -> None:
        for worker in self._workers:
            worker.communicate()

    def cpu_time(self) -> int:
        """What the coordinator has had of its processor until now, in ns."""
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0])

    def round(self, seconds: float) -> tuple[float, float]:
        """The time of a miss, and the coordinator's own part of it, in ns."""
        begun = self.cpu_time()
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        misses = 0
        for worker in self._workers:
            assert worker.stdout is not None
            misses += int(worker.stdout.readline())
        return seconds * 1e9 / misses, (self.cpu_time() - begun) / misses


@contextlib.contextmanager
def coordinating(python: str, ways: int) -> Iterator[Coordinating]:
    """Run a coordinator and workers of that environment."""
    own, *others = sorted(os.sched_getaffinity(0))
    with coordinator(python=python) as (path, pid):
        running = Coordinating(path, pid, python, (own, others[0] if others else own), ways)
        try:
            running.round(WARM_UP)
            yield running
        finally:
            running.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a round takes (0.5)")
    parser.add_argument("--ways", type=int, default=8, help="ASKs of each worker that are under way (8)")
    parser.add_argument("--against", metavar="PYTHON", help="the python of another environment with this library")
    options = parser.parse_args(arguments)
    pythons = {THIS: sys.executable}
    if options.against is not None:
        pythons[OTHER] = options.against
    times: dict[str, list[float]] = {name: [] for name in pythons}
    cpu: dict[str, list[float]] = {name: [] for name in pythons}
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(coordinating(python, options.ways)) for name, python in pythons.items()}
        for _ in range(options.rounds):
            for name, each in running.items():
                for series, value in zip((times, cpu), each.round(options.seconds), strict=True):
                    series[name].append(value)
    report(times, cpu, options.ways)


def report(times: dict[str, list[float]], cpu: dict[str, list[float]], ways: int) -> None:
    rows = [
        [
            name,
            *(f"{1e9 / percentile(times[name], share):.0f}" for share in (0.5, 0.9, 0.1)),
            f"{statistics.median(cpu[name]) / 1000:.1f}",
            f"{statistics.median(own / whole for own, whole in zip(cpu[name], times[name], strict=True)):.0%}",
        ]
        for name in times
    ]
    title = f"coordinate: misses of {WORKERS} workers with {ways} ASKs each, {VALUE_BYTES} B values, per second"
    table(title, ["", "median", "p10", "p90", "CPU us a miss", "busy"], rows)
    if OTHER in times:
        faster, cheaper = 1 / ratio(times, THIS, OTHER), ratio(cpu, THIS, OTHER)
        print(f"\n  {faster:.2f} times the misses per second of {OTHER}, at {cheaper:.2f} times its CPU a miss")


if __name__ == "__main__":
    main(sys.argv[1:])
