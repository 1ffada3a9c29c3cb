"""Everything at once: threads, evictions, held views, and workers that are killed, over millions of gets.

Each value carries its key, its length and a checksum, so that a wrong byte, a torn value or another key's value shows.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
import zlib
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from checked import Checked
from workers import PATIENCE, leave, wait_until

import mpgroupcache
from mpgroupcache import ByteView, Sink

GETS = int(os.environ.get("MPGROUPCACHE_STRESS_GETS", "1000000"))
WORKERS = 3
THREADS = 3
BUDGET = 4 << 20
KEYS = 3000
LARGEST = 200_000  # bytes; above what travels inline, and small enough for an arena of this budget


def make_value(key: str) -> bytes:
    """The one right value of a key."""
    chance = random.Random(key)
    body = chance.randbytes(64) * (int(100 * (LARGEST / 100) ** chance.random() ** 3) // 64)
    head = f"{key}:{len(body)}:".encode()
    return head + zlib.crc32(head + body).to_bytes(4, "big") + body


def check_value(key: str, view: ByteView) -> None:
    """Raise unless this is the whole, right value of ``key``, by nothing but its own bytes."""
    with memoryview(view) as data:
        head = f"{key}:".encode()
        assert data[: len(head)] == head, (key, bytes(data[:40]))
        end = bytes(data[len(head) : len(head) + 12]).index(b":") + len(head) + 1
        body = data[end + 4 :]
        assert int(bytes(data[len(head) : end - 1])) == len(body), (key, len(data))
        assert zlib.crc32(body, zlib.crc32(data[:end])).to_bytes(4, "big") == data[end : end + 4], key


def hammer(group: mpgroupcache.Group, seed: int, stop: Any) -> None:
    """Get keys, a few of them most of the time, and look at old views again before they go."""
    chance = random.Random(seed)
    held: list[tuple[str, ByteView]] = []
    while not stop.is_set():
        for _ in range(200):
            key = f"key-{int(KEYS * chance.random() ** 6)}"
            view = group.get(key)
            check_value(key, view)
            if chance.random() < 0.02:
                held.append((key, view))
        while len(held) > 20:
            key, view = held.pop(chance.randrange(len(held)))
            check_value(key, view)


def work(socket: str, seed: int, stop: Any) -> None:
    """A worker; it ends with 0 only if every value was right."""
    mpgroupcache.configure(socket=socket)
    group = mpgroupcache.new_group("stress", BUDGET, load)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            hammer(group, seed * THREADS + number, stop)
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def load(ctx: Any, key: str, dest: Sink) -> None:
    dest.set_bytes(make_value(key))


@pytest.mark.slow
def test_no_wrong_byte(socket_path: str) -> None:
    daemon = Checked(socket_path)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    seeds = iter(range(1, 1 << 30))
    chance = random.Random(7)

    def start() -> BaseProcess:
        process = context.Process(target=work, args=(socket_path, next(seeds), stop), daemon=True)
        process.start()
        return process

    workers: list[BaseProcess] = []
    try:
        daemon.wait_serving()
        workers += [start() for _ in range(WORKERS)]
        mpgroupcache.configure(socket=socket_path)
        group = mpgroupcache.new_group("stress", BUDGET, load)
        group.get("watch")
        begin = kill_at = time.monotonic()
        while group.stats.gets < GETS and not stop.is_set():
            assert time.monotonic() - begin < 10 * PATIENCE, group.stats
            stop.wait(0.05)
            assert all(worker.is_alive() for worker in workers)
            if time.monotonic() > kill_at:
                kill_at = time.monotonic() + 1 + chance.random()
                victim = workers.pop(chance.randrange(len(workers)))
                victim.kill()
                victim.join(PATIENCE)
                workers.append(start())
        assert not stop.is_set(), "a worker saw a wrong value"
        stop.set()
        for worker in workers:
            worker.join(PATIENCE)
            assert worker.exitcode == 0
        stats = group.stats
        assert stats.gets >= GETS
        assert group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).evictions > 1000
        assert stats.local_load_errs == 0
        wait_until(lambda: daemon.check().at_rest, "a sound arena with nothing pinned")
    finally:
        stop.set()
        for worker in workers:
            worker.kill()
            worker.join(PATIENCE)
        leave()
        daemon.close()
