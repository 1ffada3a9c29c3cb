"""Asks a cache for all that it can do, from several threads of several processes, which are stopped and killed.

Keys are new all the time: few at once, each for a short history, so that each history can be searched. They begin with
the name of the run's directory: a long run is many, each with a directory of its own, on one cache.
"""

from __future__ import annotations

import itertools
import mmap
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from check import ANY_RUN, Rules
from children import Child
from record import ALL, SPACING, Cache, Factory, Found, NoAnswer, NotDone, Recorder, Report, clock, judge, read

KEYS = 3  # at once
LENGTH = 18  # operations on a key, about
SLOTS = 64  # processes at once
MIX = {
    "get": 40,
    "get_many": 3,
    "lookup": 8,
    "set": 12,
    "set_if": 5,
    "add": 6,
    "incr": 10,
    "remove": 8,
    "remove_if": 2,
    "touch": 2,
    "refresh": 4,
    "clear": 1,
}
"""How often each is drawn."""
PAUSE = 0.002  # s; a load takes up to that long


class Board:
    """How many operations each process has begun. Each writes a number of its own: a stopped one spoils none."""

    def __init__(self, directory: Path) -> None:
        with open(directory / "board", "a+b") as file:
            file.truncate(8 * SLOTS)
            self._map = mmap.mmap(file.fileno(), 8 * SLOTS)
        self._counts = memoryview(self._map).cast("Q")
        self._adding = threading.Lock()

    def add(self, slot: int) -> None:
        with self._adding:
            self._counts[slot] += 1

    def total(self) -> int:
        return sum(self._counts)

    def close(self) -> None:
        self._counts.release()
        self._map.close()


class Hammer:
    """One process's part. ``life`` is a number that no other process of the run has, before or after."""

    def __init__(
        self,
        factory: Factory,
        arguments: tuple[Any, ...],
        directory: str,
        slot: int,
        life: int,
        threads: int = 3,
        mix: dict[str, int] = MIX,
    ) -> None:
        self._board = Board(Path(directory))
        self._recorder = Recorder(Path(directory) / f"{life}.log")
        self._run = Path(directory).name
        self._slot, self._life, self._threads, self._mix = slot, life, threads, mix
        self._made = 0
        self._making = threading.Lock()
        self._chance = random.Random(life)
        self._cache = factory(self.load, *arguments)

    def run(self, operations: int) -> None:
        """Go on until the board counts so many."""
        failures: list[BaseException] = []

        def hammer(thread: int) -> None:
            chance = random.Random(f"{self._life} {thread}")
            player = Player(f"{self._life}.{thread}", self._cache, self._recorder, self.make_value, chance)
            try:
                while (count := self._board.total()) < operations and not failures:
                    self._board.add(self._slot)
                    generation = count // (KEYS * LENGTH)
                    keys = [f"{self._run}-{generation}-{number}" for number in chance.sample(range(KEYS), KEYS)]
                    player.play(chance.choices(list(self._mix), list(self._mix.values()))[0], keys)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=hammer, args=(number,)) for number in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def load(self, key: str) -> int:
        """What the cache's loader does for a key."""
        call = self._recorder.begin(f"{self._life}", key, "load")
        if self._chance.random() < 0.5:
            time.sleep(self._chance.random() * PAUSE)  # how long the load takes, not a wait for something to happen
        value = self.make_value()
        call.end(value)  # nobody can have it before that is written
        return value

    def make_value(self) -> int:
        """A value that nothing else has."""
        with self._making:
            self._made += 1
            return (self._life << 32 | self._made) * SPACING

    def close(self) -> None:
        self._recorder.close()
        self._board.close()


@dataclass
class Player:
    """One thread's part: an operation after the other."""

    who: str
    cache: Cache
    recorder: Recorder
    make_value: Callable[[], int]
    chance: random.Random
    _seen: dict[str, Found] = field(default_factory=dict)

    def play(self, name: str, keys: list[str]) -> None:
        key = keys[0]
        match name:
            case "get" | "lookup" | "refresh":
                found = self._record(key, name, lambda: getattr(self.cache, name)(key))
                self._note(key, found)
            case "get_many":
                self._get_many(keys)
            case "set":
                value = self.make_value()
                self._record(key, "set", lambda: self.cache.set(key, value), value)
            case "set_if" | "remove_if":
                if seen := self._seen.get(key):
                    self._change_if(name, key, seen)
            case "add":
                value = self.make_value()
                self._record(key, "add", lambda: self.cache.add(key, value), value)
            case "incr":
                delta = self.chance.randrange(1, 4)
                initial = self.chance.choice([None, self.make_value()])
                self._record(key, "incr", lambda: self.cache.incr(key, delta, initial), delta, initial)
            case "remove":
                self._record(key, "remove", lambda: self.cache.remove(key))
            case "touch":
                self._record(key, "touch", lambda: self.cache.touch(key))
            case "clear":
                self._record(ALL, "clear", self.cache.clear)

    def _record(
        self, key: str, name: str, do: Callable[[], Any], value: int | None = None, other: int | None = None
    ) -> Any:
        call = self.recorder.begin(self.who, key, name, value, other)
        try:
            result = do()
        except NoAnswer:
            return None
        except NotDone:
            call.forget()
            return None
        call.end(result)
        return result

    def _get_many(self, keys: list[str]) -> None:
        calls = [self.recorder.begin(self.who, key, "get") for key in keys]
        try:
            found = self.cache.get_many(keys)
        except (NoAnswer, NotDone):
            return
        end = clock()
        for key, call in zip(keys, calls, strict=True):
            call.end(found.get(key), end)
            self._note(key, found.get(key))

    def _change_if(self, name: str, key: str, seen: Found) -> None:
        if name == "remove_if":
            self._record(key, "remove", lambda: self.cache.remove(key, seen.version), None, seen.value)
        else:
            value = self.make_value()
            self._record(key, "set", lambda: self.cache.set(key, value, seen.version), value, seen.value)

    def _note(self, key: str, found: Found | None) -> None:
        if found is not None and found.version is not None:
            if len(self._seen) > 2 * KEYS:
                self._seen.clear()
            self._seen[key] = found


Disturb = Callable[[random.Random], None]


def drive(
    factory: Factory,
    arguments: tuple[Any, ...],
    directory: Path,
    *,
    operations: int,
    processes: int = 3,
    threads: int = 3,
    mix: dict[str, int] = MIX,
    rules: Rules = ANY_RUN,
    disturb: Disturb | None = None,
    faults: bool = True,
    seed: int = 1,
) -> Report:
    """Run processes on one cache, with ``faults`` stopping and killing them, and judge what they have recorded.

    ``disturb`` is called in between, to do to the cache's own processes what is done to these.
    """
    chance = random.Random(seed)
    board = Board(directory)
    pace = threading.Event()
    lives = itertools.count(1)
    faults_in_turn = itertools.cycle(["kill", "stop", "disturb"])

    def start(slot: int) -> Child:
        child = Child(Hammer, factory, arguments, str(directory), slot, next(lives), threads, mix)
        child.send("run", operations)
        return child

    children = [start(slot) for slot in range(processes)]
    try:
        while board.total() < operations and not any(child.has_answered() for child in children):
            pace.wait(0.3 * chance.random())
            if not faults:
                continue
            slot = chance.randrange(processes)
            match next(faults_in_turn):
                case "kill":
                    children[slot].kill()
                    children[slot].close()
                    children[slot] = start(slot)
                case "stop":
                    children[slot].signal(signal.SIGSTOP)
                    pace.wait(0.3 * chance.random())
                    children[slot].signal(signal.SIGCONT)
                case "disturb" if disturb:
                    disturb(chance)
        # Who has answered before all was done has failed, and says why.
        for child in sorted(children, key=Child.has_answered, reverse=True):
            child.receive()
    finally:
        for child in children:
            child.close()
        board.close()
    return judge(read(directory), rules)


def hammer_here(factory: Factory, arguments: tuple[Any, ...], directory: Path, *, operations: int, **more: Any) -> None:
    """The same with the threads of this process only."""
    hammer = Hammer(factory, arguments, str(directory), slot=0, life=1, **more)
    try:
        hammer.run(operations)
    finally:
        hammer.close()
