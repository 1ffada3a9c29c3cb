"""Workers of a soak: they get from many threads, look at every byte, hold views, and count what they did.

Now and then a thread changes values of a group without a loader, which is its host's alone.
"""

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
from mpgroupcache import ByteView, CacheType, ChangeError
from mpgroupcache.worker import process

BUDGET = 2 << 20
THREADS = 3
LAPS = THREADS  # the number of the thread that runs laps
CHANGES = 0.02  # of all turns: how many have a change, too
CHANGE_TIMEOUT = 1.0  # s: less than for what a coordinator is given up, so that its threads get while it is stopped
NUMBER = b"number"  # to which each thread of a host adds

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

    # Of each thread, as it begins and as it ends well: its gets, its increments, its removals.
    _GETS, _INCREMENTS, _REMOVALS = 0, 2, 4
    _THREAD_WORDS = 6
    _WORDS = (THREADS + 1) * _THREAD_WORDS + 3

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * self._WORDS)
            self._words = memoryview(mmap.mmap(file.fileno(), 8 * self._WORDS)).cast("Q")
        self._sharing = threading.Lock()

    def begin(self, thread: int) -> None:
        self._words[thread * self._THREAD_WORDS + self._GETS] += 1

    def end(self, thread: int) -> None:
        self._words[thread * self._THREAD_WORDS + self._GETS + 1] += 1

    def begin_increment(self, thread: int) -> None:
        self._words[thread * self._THREAD_WORDS + self._INCREMENTS] += 1

    def end_increment(self, thread: int) -> None:
        self._words[thread * self._THREAD_WORDS + self._INCREMENTS + 1] += 1

    def fail_increment(self, thread: int, unknown: bool) -> None:
        """It was not made; or its answer was lost."""
        if unknown:
            with self._sharing:
                self._words[-3] += 1
        else:
            self._words[thread * self._THREAD_WORDS + self._INCREMENTS] -= 1

    def begin_removal(self, thread: int) -> None:
        self._words[thread * self._THREAD_WORDS + self._REMOVALS] += 1

    def end_removal(self, thread: int) -> None:
        self._words[thread * self._THREAD_WORDS + self._REMOVALS + 1] += 1

    def count_load(self) -> None:
        with self._sharing:
            self._words[-2] += 1

    def count_failure(self) -> None:
        self._words[-1] += 1

    def _of_threads(self, word: int) -> list[int]:
        return self._words[word : (THREADS + 1) * self._THREAD_WORDS : self._THREAD_WORDS].tolist()

    def begun(self) -> int:
        return sum(self._of_threads(self._GETS))

    def ended(self) -> list[int]:
        """Of each thread."""
        return self._of_threads(self._GETS + 1)

    def increments(self) -> tuple[int, int]:
        """That have begun, and that have returned."""
        return sum(self._of_threads(self._INCREMENTS)), sum(self._of_threads(self._INCREMENTS + 1))

    def removals(self) -> tuple[int, int]:
        """That have begun, and that have removed something."""
        return sum(self._of_threads(self._REMOVALS)), sum(self._of_threads(self._REMOVALS + 1))

    @property
    def lost(self) -> int:
        """Increments of which nobody knows whether they were made."""
        return self._words[-3]

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
        self._plain = mpgroupcache.new_group("plain", BUDGET)
        self._names = itertools.count()
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

    def _change(self, thread: int) -> None:
        """Add one to the host's number; and set a value of our own, see it, remove it, and see that it is gone."""
        self._tally.begin_increment(thread)
        try:
            self._plain.incr(NUMBER, initial=1, timeout=CHANGE_TIMEOUT)
        except ChangeError as error:
            self._tally.fail_increment(thread, error.unknown)
        else:
            self._tally.end_increment(thread)
        key = b"%d:%d" % (os.getpid(), next(self._names))  # a new one: what was lost may be done later
        try:
            self._plain.set(key, key, timeout=CHANGE_TIMEOUT)
            seen = self._plain.lookup(key)
            assert seen is None or seen == key
            self._tally.begin_removal(thread)
            if self._plain.remove(key, timeout=CHANGE_TIMEOUT):
                self._tally.end_removal(thread)
            assert self._plain.lookup(key) is None
        except ChangeError:
            pass

    def _run(self, number: int, chance: random.Random) -> None:
        held: list[tuple[int, int, bytes, ByteView]] = []  # the first to go first
        for turn in itertools.count():
            if not self._going.is_set():
                held.clear()
                self._idle[number].set()
                self._going.wait()
                self._idle[number].clear()
            if chance.random() < CHANGES:
                self._change(number)
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

    def lap(self, gets: int, changes: int) -> None:
        """Get so many keys, and change so many values, while the others rest."""
        for _ in range(gets):
            self._get(LAPS, self._lap_chance)
        for _ in range(changes):
            self._change(LAPS)

    def number(self) -> int:
        """To which all threads of the host have added."""
        view = self._plain.lookup(NUMBER) or self._plain.get(NUMBER)
        return int(bytes(view))

    def removals(self) -> int:
        """What the host has counted of the values that are its own."""
        return self._plain.stats.removals

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
