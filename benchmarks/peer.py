"""A peer's GET of a cached value: our server against a Go groupcache server, with wrk.

    python benchmarks/peer.py [--rounds 5] [--seconds 5] [--go-peer PROGRAM]

Each server is a process of its own. Ours answers from an arena, and sends a rate with each value; Go sends none. "one
key" is one URL asked for all the time, "10 000 keys" asks for them in turn (a wrk script does, which costs wrk itself).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks.common import new_arena, ratio, table, verdict
from mpgroupcache.net.server import PeerServer, Visitor
from mpgroupcache.shm._writer import Arena

GO_SOURCE = Path(__file__).parent.parent / "tests" / "net" / "gopeer" / "main.go"
GOPATH = Path("/usr/share/gocode")  # where Debian has the sources of its Go packages
WRK = ("wrk", "-t1", "-c16")
SMALL, LARGE = 100, 1 << 20
KEYS = 10_000
ONE_KEY, MANY_KEYS, LARGE_VALUE = "100 B, one key", "100 B, 10 000 keys", "1 MiB, one key"
SCRIPT = f"""
local number = 0
request = function()
  number = (number + 1) % {KEYS}
  return wrk.format("GET", wrk.path .. number)
end
"""


class ArenaSource:
    """A source of what is in one arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def find(self, group: str, key: bytes) -> tuple[memoryview, float] | None:
        value = self._arena.find(key)
        return None if value is None else (value, 60.0)

    def visit(self, group: str, key: bytes, visitor: Visitor) -> None:
        visitor.fail("LookupError", "not in the arena")

    def leave(self, visitor: Visitor) -> None:
        pass


async def serve() -> None:
    """Be our server until stdin ends."""
    with tempfile.TemporaryDirectory() as directory, new_arena(f"{directory}/socket", 64 << 20) as (arena, _):
        for size in (SMALL, LARGE):
            arena.put(b"size:%d:" % size, b"x" * size)
        for number in range(KEYS):
            arena.put(b"size:%d:%d" % (SMALL, number), b"x" * SMALL)
        server = await PeerServer.start(ArenaSource(arena), "127.0.0.1", 0, instance=os.urandom(16))
        print(f"http://127.0.0.1:{server.port}", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.close()


@contextlib.contextmanager
def running(*command: str) -> Iterator[str]:
    """Run a server that prints its URL first, and ends with its stdin; yields the URL."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command[0]} ended with {process.wait()}")
        yield line.split()[0]
    finally:
        process.communicate()


def build_go_peer(directory: str) -> str | None:
    """The Go peer's program; None where Go, groupcache or the source is missing."""
    go = shutil.which("go")
    if go is None or not GO_SOURCE.exists() or not (GOPATH / "src/github.com/golang/groupcache").is_dir():
        return None
    program = f"{directory}/gopeer"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GO")}
    environment |= {"GO111MODULE": "off", "GOPATH": str(GOPATH)}
    subprocess.run([go, "build", "-o", program, str(GO_SOURCE)], check=True, env=environment)
    return program


def nanoseconds(url: str, seconds: float, *options: str) -> float:
    """What wrk says of one URL: the time of a request, at the rate of all."""
    output = subprocess.run([*WRK, f"-d{seconds:g}s", *options, url], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"{url}: wrk met errors:\n{output}")
    found = re.search(r"Requests/sec: +([0-9.]+)", output)
    assert found is not None, output
    return 1e9 / float(found[1])


def measure(urls: dict[str, str], rounds: int, seconds: float, path: str, *options: str) -> dict[str, list[float]]:
    """Nanoseconds of a request, of each server in turn."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    for url in urls.values():
        nanoseconds(url + path, 1, *options)  # warm up: a Go peer loads first
    for _ in range(rounds):
        for name, url in urls.items():
            times[name].append(nanoseconds(url + path, seconds, *options))
    return times


def report(title: str, times: dict[str, list[float]], size: int) -> None:
    """Print a table of one measurement."""
    rows = []
    for name, series in times.items():
        rate = 1e9 / statistics.median(series)
        rows.append([name, f"{rate:.0f}", f"{rate * size / 1e6:.1f}", f"{1 / ratio(times, name, 'Go'):.2f}"])
    table(f"peer: GET of {title}", ["", "requests/s", "MB/s", "times Go's"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of one run of wrk (%(default)s)")
    parser.add_argument("--go-peer", help="tests/net/gopeer, built; by default it is built here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        uvloop.run(serve())
        return
    with tempfile.TemporaryDirectory() as directory:
        go_peer = options.go_peer or build_go_peer(directory)
        if go_peer is None or shutil.which(WRK[0]) is None:
            print("\n  peer: wrk, Go or golang-github-golang-groupcache-dev is not installed: not measured")
            return
        script = Path(directory) / "keys.lua"
        script.write_text(SCRIPT)
        times = {}
        with (
            running(sys.executable, "-m", "benchmarks.peer", "--serve") as ours,
            running(go_peer, "-cache-bytes", str(64 << 20)) as go,
        ):
            urls = {"mpgroupcache": ours, "Go": go}
            for title, size, more in (
                (ONE_KEY, SMALL, ()),
                (MANY_KEYS, SMALL, ("-s", str(script))),
                (LARGE_VALUE, LARGE, ()),
            ):
                path = f"/_groupcache/g/size:{size}:"
                times[title] = measure(urls, options.rounds, options.seconds, path, *more)
                report(title, times[title], size)
    lines = []
    for title, limit in ((ONE_KEY, 1 / 1.3), (LARGE_VALUE, 1.0)):
        lines.append(
            verdict(f"{title}: time of a request against Go's", ratio(times[title], "mpgroupcache", "Go"), limit)
        )
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
