"""A peer's GET of a cached value: our server against a Go groupcache server, with wrk.

    python benchmarks/peer.py [--rounds 5] [--seconds 5] [--go-peer PROGRAM]

Each server is a process of its own; ours is a coordinator, whose worker waits. It sends a rate with each value. "one
key" is one URL asked for all the time, "10 000 keys" asks for them in turn (a wrk script does, which costs wrk itself).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mpgroupcache
from benchmarks.common import coordinator, ratio, table, verdict

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


@contextlib.contextmanager
def our_peer() -> Iterator[str]:
    """Run a coordinator that serves peers, with this process as its worker; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with coordinator("--listen", address) as (path, _):
        mpgroupcache.configure(socket=path)
        mpgroupcache.new_group("g", "64MiB", lambda ctx, key, dest: dest.set_bytes(b"x" * int(key.split(":")[1])))
        mpgroupcache.connect()
        yield f"http://{address}"


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


def build_go(source: Path, directory: str) -> str | None:
    """A Go program; None where Go, groupcache or the source is missing."""
    go = shutil.which("go")
    if go is None or not source.exists() or not (GOPATH / "src/github.com/golang/groupcache").is_dir():
        return None
    program = f"{directory}/{source.parent.name}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GO")}
    environment |= {"GO111MODULE": "off", "GOPATH": str(GOPATH)}
    subprocess.run([go, "build", "-o", program, str(source)], check=True, env=environment)
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
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        go_peer = options.go_peer or build_go(GO_SOURCE, directory)
        if go_peer is None or shutil.which(WRK[0]) is None:
            print("\n  peer: wrk, Go or golang-github-golang-groupcache-dev is not installed: not measured")
            return
        script = Path(directory) / "keys.lua"
        script.write_text(SCRIPT)
        times = {}
        with (
            our_peer() as ours,
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
