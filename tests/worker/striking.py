"""Strikes a get, or a load, with an exception at each point where CPython may run a signal's handler.

A program of its own, so that any interpreter can run it: ``striking.py WAY SOCKET``; "-" for the socket: nobody is
there. It prints what it found as JSON. Such points are behind a function's beginning (also where a generator goes on),
behind a call, and at a loop's way back; a tracer of opcodes raises there, at one after the other. Meanwhile threads of
this process miss other keys, and after each strike somebody else, where there is a coordinator in another process, gets
the same key: it must not wait for a load that nobody does.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import mpgroupcache
from mpgroupcache import singleflight
from mpgroupcache.worker.process import current

PACKAGE = os.path.dirname(mpgroupcache.__file__)
PATIENCE = 20.0  # s; whoever waits longer is stuck
LARGE = 100_000  # bytes; travels in a memfd

BEHIND = ("RESUME", "CALL", "JUMP_BACKWARD")  # an instruction behind one of these is such a point


class Struck(BaseException):
    """As ``KeyboardInterrupt``."""


class OverTime(Exception):
    """As Celery's ``SoftTimeLimitExceeded``."""


class Striker:
    """Raises ``kind`` at the point of that number, in this thread."""

    def __init__(self, at: int, kind: type[BaseException]) -> None:
        self.points = 0
        self.place = ""
        self._at = at
        self._kind = kind
        self._names: dict[CodeType, dict[int, str]] = {}
        self._last: dict[FrameType, str] = {}

    def __enter__(self) -> Striker:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        sys.settrace(None)
        self._last.clear()  # frames, and all that they refer to

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._trace

    def _trace(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event != "opcode":
            return self._trace
        code = frame.f_code
        if (names := self._names.get(code)) is None:
            names = self._names[code] = {step.offset: step.opname for step in dis.get_instructions(code)}
        before, self._last[frame] = self._last.get(frame, "RESUME"), names[frame.f_lasti]
        # A call that failed goes on at a handler, at once.
        if before.startswith(BEHIND) and names[frame.f_lasti] != "PUSH_EXC_INFO":
            self.points += 1
            if self.points == self._at:
                self.place = f"{os.path.relpath(code.co_filename, PACKAGE)}:{frame.f_lineno} behind {before}"
                sys.settrace(None)
                raise self._kind
        return self._trace


class Other:
    """Another process with the same group."""

    def __init__(self, socket: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "other", socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def get(self, key: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(key, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate()


def value_of(key: str) -> bytes:
    return key.encode() * (LARGE // len(key) if key.startswith("large") else 1)


class Getter:
    """Loads that can be held, and that fail."""

    def __init__(self) -> None:
        self.begun: dict[str, threading.Event] = {}
        self.go: dict[str, threading.Event] = {}

    def hold(self, key: str) -> None:
        self.begun[key], self.go[key] = threading.Event(), threading.Event()

    def get(self, _ctx: object, key: str, dest: mpgroupcache.Sink) -> None:
        if key in self.go:
            self.begun[key].set()
            assert self.go[key].wait(PATIENCE)
        if key.startswith("bad"):
            raise ValueError(key)
        dest.set_bytes(value_of(key))


def other_main(socket: str) -> None:
    mpgroupcache.configure(socket=socket)
    group = mpgroupcache.new_group("g", "64MiB", Getter())
    for line in sys.stdin:
        key = line.strip()
        try:
            right = group.get(key, timeout=PATIENCE) == value_of(key)
            print("right" if right else "wrong", flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)


def descriptors() -> Counter[str]:
    """How many there are of each kind."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the folder's own, or one of a thread beside
            found[re.sub(r"\d+", "", os.readlink(f"/proc/self/fd/{name}"))] += 1
    return found


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.001)


class Trial:
    """What all strikes of one way of missing have in common."""

    def __init__(self, way: str, socket: str) -> None:
        self.way = way
        self.getter = Getter()
        self.alone = socket == "-"
        mpgroupcache.configure(socket="/nonexistent/socket" if self.alone else socket)
        self.group = mpgroupcache.new_group("g", "64MiB", self.getter)
        self.shared: singleflight.Group = singleflight.Group()
        self.other = None if self.alone else Other(socket)
        self.faults: list[str] = []
        self._over = threading.Event()
        self._beside = [threading.Thread(target=self._miss_beside, args=(number,)) for number in range(2)]

    def _miss_beside(self, number: int) -> None:
        for count in itertools.count():
            key = f"beside-{number if count % 2 else 'both'}-{count}"
            began = time.monotonic()
            if self.group.get(key, timeout=PATIENCE) != value_of(key) or time.monotonic() - began > PATIENCE / 2:
                self.faults.append(f"a get of {key} beside took {time.monotonic() - began:.1f} s")
            if self._over.wait(0.0005):
                return

    def begin(self) -> None:
        """Have a link, and threads that miss."""
        self.group.get("first")
        for thread in self._beside:
            thread.start()

    def end(self) -> None:
        """See what is left when nobody misses any more."""
        self._over.set()
        for thread in self._beside:
            thread.join(PATIENCE)
            if thread.is_alive():
                self.faults.append("a thread that misses beside hangs")
        self._rest()
        self.faults += self.left()
        if self.other is not None:
            self.other.close()

    def call(self, key: str) -> object:
        """The call that is struck."""
        if self.way == "singleflight":
            return self.shared.do(key, lambda: key)
        return self.group._load(key, None, None)

    def run(self) -> dict[str, Any]:
        self.begin()
        gc.disable()
        points = 0
        before = descriptors()
        try:
            for kind in (Struck, OverTime):
                self._rest()
                before = descriptors()
                at = spared = 0
                while spared < 3:  # a call may find less to do, since a thread beside has done it
                    at += 1
                    if at % 64 == 1:
                        # Here, and by no thread beside: CPython 3.12.1 was seen to crash where the collector closed a
                        # generator in one thread while another one traced.
                        gc.collect()
                    striker = Striker(at, kind)
                    self._strike(striker, f"{self.way}-{kind.__name__}-{at}")
                    spared = 0 if striker.place else spared + 1
                    points += bool(striker.place)
                self._rest()
                wait_until(lambda: gc.collect() >= 0 and not descriptors() - before, "the end of descriptors")  # noqa: B023
        except Exception as error:
            self.faults.append(f"{type(error).__name__}: {error}; {descriptors() - before}")
        self.end()
        return {"points": points, "faults": self.faults}

    def _strike(self, striker: Striker, key: str) -> None:
        leader = None
        if self.way.startswith("wait"):
            leader = self._lead(key)
        if self.way == "attach":
            self._leave()
        try:
            with striker:
                self.call(key)
        except (Struck, OverTime, ValueError):
            pass
        if leader is not None:
            self.getter.go.pop(key).set()
            leader.join(PATIENCE)
            if leader.is_alive():
                self.faults.append(f"{striker.place}: whoever loaded {key} hangs")
        self._look(striker, key)

    def _rest(self) -> None:
        """Return when there is a link, if there can be one, and the group is attached to it."""

        def attached() -> bool:
            current()._retry_at = 0.0
            return mpgroupcache.connect()

        if not self.alone:
            wait_until(attached, "a link")

    def _leave(self) -> None:
        """Have the call connect and attach anew, and not put that off."""
        process = current()
        process._retry_at, process._broke_soon = 0.0, 0
        if (link := process.working_link) is not None:
            link.close()

    def _lead(self, key: str) -> threading.Thread:
        """Have another thread load the key; it goes on when this one waits, or was struck."""
        self.getter.hold(key)
        leader = threading.Thread(target=self.group.get, args=(key,))
        leader.start()
        if not self.getter.begun[key].wait(PATIENCE):
            raise TimeoutError("a load that begins")

        def let_go(go: threading.Event) -> None:
            deadline = time.monotonic() + 0.05
            while not any(flight.waiting for flight in current().flights) and time.monotonic() < deadline:
                time.sleep(0.0005)
            time.sleep(0.001)
            go.set()

        threading.Thread(target=let_go, args=(self.getter.go[key],)).start()
        return leader

    def _look(self, striker: Striker, key: str) -> None:
        """Nobody waits for a load that nobody does: not here, and not elsewhere."""
        if self.way == "singleflight":
            found = "right" if self._in_thread(lambda: self.shared.do(key, lambda: key)) == key else "wrong"
        elif self.other is not None:
            found = self.other.get(key)
        else:
            got = self._in_thread(lambda: self.group.get(key, timeout=PATIENCE))
            found = f"{type(got).__name__}: {got}" if isinstance(got, Exception) else "right" if got else "wrong"
        expected = "right" if not key.startswith("bad") or self.way == "singleflight" else "ValueError"
        if not found.startswith(expected):
            self.faults.append(f"{striker.place}: then {key} was {found}")

    def _in_thread(self, function: Callable[[], Any]) -> Any:
        results: list[Any] = []

        def run() -> None:
            try:
                results.append(function())
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        return results[0] if results else None

    def left(self) -> Iterator[str]:
        """What a process that misses nothing should not have."""
        gc.collect()
        if current().flights:
            yield f"flights are left: {[flight.key for flight in current().flights]}"
        link = current().working_link
        if not self.alone and link is None:
            yield "the link is broken"
        if link is not None:
            if len(link.channel):
                yield f"{len(link.channel)} requests are left"
            if link.reader.live_pins:
                yield f"{link.reader.live_pins} pins are left"


def storm(socket: str, interrupts: int) -> dict[str, Any]:
    """Interrupt gets at random times, and see that nothing is left of them."""
    import random
    import signal

    trial = Trial("storm", socket)
    struck = 0
    armed = False

    def interrupt(_number: int, _frame: object) -> None:
        if armed:
            raise Struck

    signal.signal(signal.SIGALRM, interrupt)
    trial.begin()
    rounds = 0
    began = time.monotonic()
    while struck < interrupts:
        rounds += 1
        key = random.choice(("large", "small", f"beside-both-{rounds}")) + f"-{rounds}"
        signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 6e-4))
        try:
            armed = True
            for turn in range(20):
                trial.group._load(f"{key}-{turn}", None, None)
            armed = False
        except Struck:
            struck += 1
        finally:
            armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    trial.end()
    return {"points": struck, "faults": trial.faults, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    if sys.argv[1] == "other":
        other_main(sys.argv[2])
    elif sys.argv[1] == "storm":
        print(json.dumps(storm(sys.argv[2], int(sys.argv[3]))))
        os._exit(0)
    else:
        print(json.dumps(Trial(sys.argv[1], sys.argv[2]).run()))
        sys.stdout.flush()
        os._exit(0)
