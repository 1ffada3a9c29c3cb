"""Workers of a soak: they get from many threads, look at every byte, hold views, and count what they did."""

from __future__ import annotations

import heapq
import itertools
import mmap
import os
import random
import threading
import traceback
from pathlib import Path
from typing import Any

from children import PATIENCE
from rings import Getting, check_whole, value_of

import mpgroupcache
from mpgroupcache import ByteView, CacheType
from mpgroupcache.worker import process

BUDGET = 2 << 20
THREADS = 3
LAPS = THREADS  # the number of the thread that runs laps

# Several times the budget, so that something is evicted all the time, also with each of three hosts owning a third.
_sizes = random.Random(1)
KEYS = [
    b"whole:%d:%d" % (_sizes.randrange(70_000, 300_000) if i % 40 == 0 else _sizes.randrange(20, 3000), i)
    for i in range(4000)
]


def pick(chance: random.Random) -> bytes:
    """A key; a few of them most of the time."""
    return KEYS[int(len(KEYS) * chance.random() ** 3)]


class Tally:
    """What one worker has done so far, in a file that outlives it."""

    _THREAD_WORDS = 2  # gets that have begun, and that have ended with the right value
    _WORDS = (THREADS + 1) * _THREAD_WORDS + 2

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * self._WORDS)
            self._words = memoryview(mmap.mmap(file.fileno(), 8 * self._WORDS)).cast("Q")
        self._loading = threading.Lock()

    def begin(self, thread: int) -> None:
        self._words[2 * thread] += 1

    def end(self, thread: int) -> None:
        self._words[2 * thread + 1] += 1

    def count_load(self) -> None:
        with self._loading:
            self._words[-2] += 1

    def count_failure(self) -> None:
        self._words[-1] += 1

    def begun(self) -> int:
        return sum(self._words[: 2 * THREADS + 2 : 2])

    def ended(self) -> list[int]:
        """Of each thread."""
        return self._words[1 : 2 * THREADS + 2 : 2].tolist()

    @property
    def loads(self) -> int:
        return self._words[-2]

    @property
    def failures(self) -> int:
        return self._words[-1]


class Soaking(Getting):
    """Such a worker. It begins when it is told to ``go``, and a thread ends at the first failure."""

    def __init__(self, socket: str, tally: Path, seed: int) -> None:
        self._tally = Tally(tally)
        super().__init__(socket, BUDGET)
        self._failures: list[str] = []
        threading.excepthook = lambda args: self._fail(args.exc_value)  # the service thread's, too
        self._going = threading.Event()
        self._idle = [threading.Event() for _ in range(THREADS)]
        self._lap_chance = random.Random(seed)
        os.nice(5)  # full load is all that the machine has left: coordinators that start, and other tests, go first
        for number in range(THREADS):
            chance = random.Random(seed * THREADS + number)
            threading.Thread(target=self._run, args=(number, chance), daemon=True).start()

    def _load(self, ctx: Any, key: str | bytes, dest: mpgroupcache.Sink) -> None:
        dest.set_bytes(value_of(key if isinstance(key, bytes) else key.encode()))
        self._tally.count_load()

    def _get(self, thread: int, chance: random.Random) -> tuple[bytes, ByteView]:
        key = pick(chance)
        self._tally.begin(thread)
        view = self.group.get(key)
        check_whole(key, view)
        self._tally.end(thread)
        return key, view

    def _run(self, number: int, chance: random.Random) -> None:
        held: list[tuple[int, int, bytes, ByteView]] = []  # the first to go first
        for turn in itertools.count():
            if not self._going.is_set():
                held.clear()
                self._idle[number].set()
                self._going.wait()
                self._idle[number].clear()
            key, view = self._get(number, chance)
            if chance.random() < 0.1:
                heapq.heappush(held, (turn + int(1000 * chance.random() ** 3), turn, key, view))
            del view
            while held and held[0][0] <= turn:
                *_, key, view = heapq.heappop(held)
                check_whole(key, view)
                del view

    def _fail(self, error: BaseException | None) -> None:
        self._failures.append("".join(traceback.format_exception(error)))
        self._tally.count_failure()

    def failures(self) -> list[str]:
        return self._failures

    def go(self) -> None:
        self._going.set()

    def rest(self) -> None:
        """Have all threads stop, without a view, before their next get."""
        for idle in self._idle:
            idle.clear()
        self._going.clear()
        for number, idle in enumerate(self._idle):
            assert idle.wait(PATIENCE), f"thread {number} is in a get for {PATIENCE} s"

    def lap(self, gets: int) -> None:
        """Get so many keys, while the others rest."""
        for _ in range(gets):
            self._get(LAPS, self._lap_chance)

    def items(self) -> int:
        """Entries of both of its caches."""
        return sum(self.group.cache_stats(which).items for which in CacheType)

    def threads(self) -> list[str]:
        """Their names, without their numbers."""
        return sorted(
            thread.name.rpartition("-")[0] if thread.name.startswith("Thread") else thread.name
            for thread in threading.enumerate()
        )

    def linked(self) -> bool:
        """Whether it has a coordinator, as far as it knows."""
        return process.current().working_link is not None
