"""How long a process takes until it is of use: the import, a group declared, a coordinator that serves, the first miss.

Each in a fresh process, one after the other in every round, with bytecode in its cache, as installers leave it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import cpu_ns, ratio, table, verdict
from mpgroupcache.worker.config import private_socket

LOAD = "lambda ctx, key, dest: dest.set_bytes(b'x')"
DECLARE = f"import mpgroupcache; group = mpgroupcache.new_group('startup', '1MiB', {LOAD})"
MISS = f"{DECLARE}; group.get('key')"  # which starts a coordinator first
PATIENCE = 30.0  # s; what takes longer never comes

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name != "PYTHONDONTWRITEBYTECODE" and not name.startswith("MPGROUPCACHE_")
}

_BEGIN = "import time; begin = time.perf_counter(), time.process_time()"
_END = """
took = time.perf_counter() - begin[0], time.process_time() - begin[1]
import resource
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(took[0], took[1] + children.ru_utime + children.ru_stime)
"""
_CREDENTIALS = struct.Struct("iII")  # of SO_PEERCRED: pid, uid, gid


class Took(NamedTuple):
    """Seconds by the clock, and of all processes' CPU time."""

    wall: float
    cpu: float


def statement(code: str, **variables: str) -> Took:
    """What a statement takes in a new interpreter, without that interpreter's own start."""
    command = [sys.executable, "-c", f"{_BEGIN}\n{code}\n{_END}"]
    out = subprocess.run(command, env=ENVIRONMENT | variables, stdout=subprocess.PIPE, check=True).stdout
    return Took(*map(float, out.split()))


def coordinator(*options: str) -> Took:
    """From the exec of a private application's coordinator to a socket that accepts."""
    with tempfile.TemporaryDirectory(prefix="mpg-") as directory:
        path = str(Path(directory) / "socket")
        command = [sys.executable, "-P", "-m", "mpgroupcache.coordinator", "--socket", path, "--linger", "30"]
        begin = time.perf_counter()
        started = subprocess.Popen([*command, *options], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        sock = connected(path)
        wall = time.perf_counter() - begin
        with sock, ending(sock) as pid:
            cpu = cpu_ns(pid) / 1e9
            if pid != started.pid:  # it has left the process that was started
                _, _, usage = os.wait4(started.pid, 0)
                started.returncode = 0
                cpu += usage.ru_utime + usage.ru_stime
        started.wait(PATIENCE)
        return Took(wall, cpu)


def first_miss() -> Took:
    """The import, a group, and its first get, which starts the application's private coordinator."""
    name = os.urandom(8).hex()
    took = statement(MISS, MPGROUPCACHE_APPLICATION=name)
    with connected(private_socket(name)) as sock, ending(sock) as pid:
        return Took(took.wall, took.cpu + cpu_ns(pid) / 1e9)


def connected(path: str) -> socket.socket:
    """Connect as soon as somebody listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.0005)
        else:
            return sock


@contextlib.contextmanager
def ending(sock: socket.socket) -> Iterator[int]:
    """The process at the other end of a connection; it is ended afterwards."""
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    process = os.pidfd_open(pid)
    try:
        yield pid
        sock.close()
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], PATIENCE)[0]:
            raise RuntimeError(f"the coordinator {pid} does not end")
    finally:
        os.close(process)


CASES: dict[str, Callable[[], Took]] = {
    "import asyncio": partial(statement, "import asyncio"),
    "import mpgroupcache": partial(statement, "import mpgroupcache"),
    "... and new_group": partial(statement, DECLARE),
    "... and a first miss": first_miss,
    "coordinator": coordinator,
    "coordinator --detach": partial(coordinator, "--detach"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    for case in CASES.values():
        case()  # bytecode and files come into their caches
    took: dict[str, list[Took]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, case in CASES.items():
            took[name].append(case())
    walls = {name: [each.wall for each in series] for name, series in took.items()}
    cpus = {name: [each.cpu for each in series] for name, series in took.items()}
    rows = [
        [name, *(f"{statistics.median(times[name]) * 1e3:.1f}" for times in (walls, cpus))]
        + [f"{ratio(times, name, 'import asyncio'):.2f}" for times in (walls, cpus)]
        for name in CASES
    ]
    head = ["", "ms", "ms of CPU", "in imports of asyncio", "in its CPU"]
    table(f"startup: fresh processes, medians of {options.rounds} rounds", head, rows)
    imports = ratio(walls, "import mpgroupcache", "import asyncio")
    print("\n" + verdict("import mpgroupcache", imports, 1.0, " imports of asyncio"))
    for name in ("coordinator", "coordinator --detach"):
        serving = statistics.median(walls[name]) * 1e3
        print(verdict(f"{name}, from exec to a socket that accepts", serving, 120.0, " ms"))


if __name__ == "__main__":
    main(sys.argv[1:])
