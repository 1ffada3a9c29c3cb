"""Changes of values, one at a time and from several clients, beside redis and memcached; and a million ends at once."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpgroupcache
from benchmarks.common import coordinator, percentile, ratio, side_by_side, table, verdict
from benchmarks.miss import echo

BATCH = 500
VALUE = b"x" * 100
CLIENTS = 4
SECONDS = 2.0  # that clients work
ENTRIES = 1_000_000
KINDS = ("set", "add", "incr")


# ---- One client


def one_at_a_time(rounds: int) -> None:
    """A ``set`` against a get that the coordinator answers with a value, in ping-pongs."""
    near, _ = echo()
    numbers = itertools.count()
    with coordinator() as (path, _):
        mpgroupcache.configure(socket=path)
        group = mpgroupcache.new_group("change", "64MiB")
        link = _attached_link(group)
        group.set("there", VALUE)

        def sets() -> None:
            for _ in range(BATCH):
                group.set(f"key-{next(numbers)}", VALUE)

        def looks() -> None:
            for _ in range(BATCH):
                link(b"there")

        def ping_pongs() -> None:
            for _ in range(BATCH):
                near.send(VALUE)
                near.recv(4096)

        batches = {"set": (sets, BATCH), "ASK answered with a value": (looks, BATCH), "ping-pong": (ping_pongs, BATCH)}
        times = side_by_side(batches, rounds)
    near.close()
    rows = [
        [name, *(f"{percentile(series, share) / 1000:.1f}" for share in (0.5, 0.9, 0.99))]
        for name, series in times.items()
    ]
    table(f"a change: {len(VALUE)} B, us", ["", "median", "p90", "p99"], rows)
    more = ratio(times, "set", "ping-pong") - ratio(times, "ASK answered with a value", "ping-pong")
    print("\n" + verdict("a set, more than such an ASK", more, 0.3, " ping-pongs"))


def _attached_link(group: mpgroupcache.Group) -> Callable[[bytes], object]:
    """What asks the coordinator for a key that is there: through a driver, as a miss does."""
    from mpgroupcache.shm._hold import Hold
    from mpgroupcache.worker import drivers
    from mpgroupcache.worker.waits import Steps

    assert mpgroupcache.connect()

    def ask(hold: Hold, key: bytes) -> Steps[Any]:
        link = group.ready_link()
        assert link is not None
        request = link.ask(hold, group.name, None, key, True, True, "look")
        answer = yield request
        request.settle()
        return answer

    return lambda key: drivers.run(ask, key)


# ---- Several clients


def _client(kind: str, place: str, what: str, number: int, start: Any, results: Any) -> None:
    """Do one kind of change for ``SECONDS``, and tell how many it were."""
    operate = {"mpgroupcache": _ours, "redis": _redis, "memcached": _memcached}[kind](place, what, number)
    start.wait()
    done, until = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        for _ in range(50):
            operate(done)
            done += 1
    results.put(done)


def _ours(place: str, what: str, number: int) -> Callable[[int], object]:
    mpgroupcache.configure(socket=place)
    group = mpgroupcache.new_group("change", "64MiB")
    assert mpgroupcache.connect()
    if what == "set":
        return lambda i: group.set(f"{number}-{i % 1000}", VALUE)
    if what == "add":
        return lambda i: group.add(f"{number}-{i}", VALUE)
    return lambda i: group.incr(f"i{number}-{i % 1000}", initial=0)


def _redis(place: str, what: str, number: int) -> Callable[[int], object]:
    import redis

    client = redis.Redis(unix_socket_path=place)
    if what == "set":
        return lambda i: client.set(f"{number}-{i % 1000}", VALUE)
    if what == "add":
        return lambda i: client.set(f"{number}-{i}", VALUE, nx=True)
    return lambda i: client.incr(f"i{number}-{i % 1000}")


def _memcached(place: str, what: str, number: int) -> Callable[[int], object]:
    from pymemcache.client.base import Client

    client = Client(place, no_delay=True)
    if what == "set":
        return lambda i: client.set(f"{number}-{i % 1000}", VALUE, noreply=False)
    if what == "add":
        return lambda i: client.add(f"{number}-{i}", VALUE, noreply=False)
    for i in range(1000):
        client.set(f"i{number}-{i}", b"0", noreply=False)
    return lambda i: client.incr(f"i{number}-{i % 1000}", 1)


@contextlib.contextmanager
def _server(command: list[str], socket: Path) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.01)
        yield str(socket)
    finally:
        process.terminate()
        process.wait()


def several_clients(repeats: int) -> None:
    """Changes per second of one server with ``CLIENTS`` clients."""
    rates: dict[tuple[str, str], list[float]] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        places = {"mpgroupcache": stack.enter_context(coordinator())[0]}
        redis, memcached = Path(directory, "redis"), Path(directory, "memcached")
        if shutil.which("redis-server"):
            options = ["--port", "0", "--unixsocket", str(redis), "--save", "", "--appendonly", "no"]
            places["redis"] = stack.enter_context(_server(["redis-server", *options], redis))
        if shutil.which("memcached"):
            places["memcached"] = stack.enter_context(
                _server(["memcached", "-u", "root", "-t", "1", "-s", str(memcached)], memcached)
            )
        for _, what, (kind, place) in itertools.product(range(repeats), KINDS, places.items()):
            start, results = context.Barrier(CLIENTS), context.Queue()
            clients = [
                context.Process(target=_client, args=(kind, place, what, number, start, results))
                for number in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            done = sum(results.get() for _ in clients)
            for client in clients:
                client.join()
            rates.setdefault((kind, what), []).append(done / SECONDS)
    middle = {named: percentile(series, 0.5) for named, series in rates.items()}
    rows = [[kind, *(f"{middle[kind, what]:.0f}" for what in KINDS)] for kind in places]
    table(f"changes per second: one server, {CLIENTS} clients, {len(VALUE)} B", ["", *KINDS], rows)
    print()
    for what in KINDS if "redis" in places else ():
        print(verdict(f"redis's {what}s in ours", middle["redis", what] / middle["mpgroupcache", what], 1 / 1.6))


# ---- What a million ends cost gets


def _fill(group: mpgroupcache.Group, ttl: float | None) -> None:
    for begin in range(0, ENTRIES, 10_000):
        group.set_many({f"key-{i}": b"12345678" for i in range(begin, begin + 10_000)}, ttl=ttl)


def _getter(path: str, processor: int, ready: Any, over: Any, results: Any) -> None:
    """Gets of a value that lives, in a process of their own: the slowest, in seconds."""
    os.sched_setaffinity(0, {processor})
    mpgroupcache.configure(socket=path)
    group = mpgroupcache.new_group("ends", "512MiB")
    assert mpgroupcache.connect()
    slowest, clock = 0.0, time.perf_counter
    ready.set()
    while not over.is_set():
        for _ in range(1000):
            began = clock()
            with contextlib.suppress(mpgroupcache.NotFound):
                group.get("lives")
            slowest = max(slowest, clock() - began)
    results.put(slowest)


def ends() -> None:
    """A clear of a million entries, and a million that die within a second."""
    context = multiprocessing.get_context("spawn")
    rows = []
    with coordinator("--max-value-share", "0.5") as (path, pid):
        # The getter has a processor of its own: a get that waits for one says nothing of the cache.
        everywhere = os.sched_getaffinity(0)
        for process in (pid, 0):
            os.sched_setaffinity(process, everywhere - {max(everywhere)} or everywhere)
        mpgroupcache.configure(socket=path)
        group = mpgroupcache.new_group("ends", "512MiB")
        while not mpgroupcache.connect():  # this process had another coordinator, and waits before it tries again
            time.sleep(0.01)
        for what in ("nothing", "clear", "deaths"):
            if what != "nothing":
                _fill(group, ttl=None if what == "clear" else 60.0)
            group.set("lives", VALUE, ttl=None)
            ready, over, results = context.Event(), context.Event(), context.Queue()
            getter = context.Process(target=_getter, args=(path, max(everywhere), ready, over, results))
            getter.start()
            ready.wait()
            began = time.perf_counter()
            if what == "clear":
                group.clear()
            elif what == "deaths":
                _advance(path, 61)
            took = time.perf_counter() - began
            while what != "nothing" and _items(group) > 1:
                time.sleep(0.01)
            gone = time.perf_counter() - began
            if what == "nothing":
                time.sleep(1.0)
            over.set()
            rows.append([what, f"{took * 1e3:.2f}", f"{gone:.2f}", f"{results.get() * 1e3:.2f}"])
            getter.join()
    table(
        f"{ENTRIES} entries end at once",
        ["", "it took, ms", "all are gone after, s", "slowest get of another process, ms"],
        rows,
    )


def _items(group: mpgroupcache.Group) -> int:
    return group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).items


def _advance(path: str, seconds: float) -> None:
    from tests.workers import advance

    advance(path, seconds)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    one_at_a_time(options.rounds)
    several_clients(options.repeats)
    ends()


if __name__ == "__main__":
    main(sys.argv[1:])
