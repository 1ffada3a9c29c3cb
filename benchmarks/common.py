"""What the measurements share: a coordinator of their own, batches side by side, and tables."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mpgroupcache.shm._control import Control
from mpgroupcache.shm._writer import Arena, arena_size
from mpgroupcache.shm.ownership import Segment, open_instance
from mpgroupcache.shm.segment import DIRECTORY, arena_name, instance_name

Batch = Callable[[], object]


@contextlib.contextmanager
def coordinator(*options: str, python: str = sys.executable) -> Iterator[tuple[str, int]]:
    """Run a coordinator of that environment, wherever this process is; yields its socket and its process id."""
    with tempfile.TemporaryDirectory(prefix="mpg-") as directory:
        path = str(Path(directory) / "socket")
        command = [python, "-P", "-m", "mpgroupcache.coordinator", "--socket", path, "--log-level", "warning"]
        process = subprocess.Popen([*command, *options])
        try:
            while not os.path.exists(path):
                if process.poll() is not None:
                    raise RuntimeError(f"the coordinator ended with {process.returncode}")
                time.sleep(0.01)
            yield path, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            for left in Path(DIRECTORY).glob(
                f"{instance_name(path)}*"
            ):  # it keeps the cache for its workers: this process
                left.unlink()


@contextlib.contextmanager
def new_arena(path: str, budget: int) -> Iterator[tuple[Arena, Control, Segment]]:
    """The one arena of an instance of its own, named after the socket's ``path``, without a coordinator around it."""
    with contextlib.ExitStack() as stack:
        instance = instance_name(path)
        control_segment, control = open_instance(instance)
        stack.callback(_close, control, control_segment)
        segment = Segment(arena_name(instance, 0, 0), arena_size(budget))
        group = control.add_group("benchmark", budget)
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
        stack.callback(_close, arena, segment)
        yield arena, control, segment


def _close(user: Arena | Control, segment: Segment) -> None:
    user.close()
    segment.unlink()
    segment.close()


def side_by_side(
    batches: Mapping[str, tuple[Batch, int]], rounds: int, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, list[float]]:
    """Run one batch of each in turn, ``rounds`` times; returns the nanoseconds per operation of every batch.

    A batch comes with its number of operations. In turn, so that a machine whose speed drifts drifts for all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in batches}
    for batch, _ in batches.values():
        batch()  # warm up
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, (batch, operations) in batches.items():
                begin = clock()
                batch()
                times[name].append((clock() - begin) / operations)
    finally:
        gc.enable()
    return times


def cpu_ns(pid: int) -> int:
    """The CPU time of a process and its threads."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def ratio(times: Mapping[str, Sequence[float]], name: str, other: str) -> float:
    """The median over rounds of what ``name`` took, in what ``other`` took in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all are not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}\n")
    for number, row in enumerate(cells):
        print(
            "  "
            + "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def verdict(claim: str, got: float, limit: float, unit: str = "x") -> str:
    """A line that says whether a figure was reached."""
    return f"  {'reached' if got <= limit else 'MISSED '}  {claim}: {got:.3g}{unit}, at most {limit:g}{unit}"
