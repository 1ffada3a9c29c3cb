"""Threads for loads: of peers' requests, and of ``aget`` with a getter that is not async.

A load may itself get other keys, and wait for loads that are queued behind it. So a thread whose load waits in a get
does not count: another one takes its place, and whatever is queued is run in the end. With threads of a fixed number
some loads that all wait for one key, whose load is behind them, would wait for ever, and so would whoever asks for it.

Threads are started when there is work and none is free. They are daemons: a load that hangs does not keep its process
from exiting, and the coordinator passes its lease on.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

from mpgroupcache.late import importing

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Run: TypeAlias = "Callable[[asyncio.Runner], object]"
"""Work, which may use the thread's own loop. What it raises is a defect of ours."""


class _Place:
    """Of the running code in some `Threads`."""

    __slots__ = ("threads", "waits")

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.waits = 0  # of its code: several, where a loop runs it


_place: ContextVar[_Place | None] = ContextVar("mpgroupcache_place", default=None)


class Threads:
    """At most ``most`` threads, beside those whose work waits."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        # Made here and not at import: gevent may have patched them meanwhile.
        self._queue: queue.SimpleQueue[tuple[Run, Callable[[], object]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the counts
        self._threads = 0
        self._aside = 0  # of them, whose work waits
        self._free = 0  # threads that wait for work, less the work that waits for them

    def submit(self, run: Run, refuse: Callable[[], object]) -> None:
        """Run something soon; ``refuse`` is called instead where no thread can be started, and there is none."""
        with self._lock:
            self._free -= 1
            starts = self._starts()
        self._queue.put((run, refuse))
        if starts:
            self._start()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in one of the threads, with the caller's context."""
        future: Future[T] = Future()
        context = contextvars.copy_context()
        context.run(_place.set, _Place(self))

        def run(_runner: asyncio.Runner) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = context.run(function, *args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        self.submit(run, lambda: future.set_exception(RuntimeError("no thread can be started for a load")))
        return future

    def close(self) -> None:
        """Let the threads end, each after what it is at."""
        with self._lock:
            self._most = 0
            threads = self._threads
        for _ in range(threads):
            self._queue.put(None)

    def step_aside(self, place: _Place) -> None:
        """The work of one of these threads is about to wait. ``step_back`` follows."""
        with self._lock:
            place.waits += 1
            self._aside += place.waits == 1
            starts = self._starts()
        if starts:
            self._start()

    def step_back(self, place: _Place) -> None:
        """It goes on, maybe beside ``most`` others; so many end when they are through."""
        with self._lock:
            place.waits -= 1
            self._aside -= place.waits == 0

    def _starts(self) -> bool:
        """Whether one more is to be started; it counts then."""
        starts = self._free < 0 and self._threads - self._aside < self._most
        if starts:
            self._threads += 1
            self._free += 1
        return starts

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as error:  # out of threads: those that there are will do it
            with self._lock:
                self._threads -= 1
                self._free -= 1
                alone = self._threads == self._aside
            logger.warning("no thread for a load: %s", error)
            if alone:
                self._refuse_all()

    def _refuse_all(self) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                with self._lock:
                    self._free += 1
                item[1]()

    def _work(self) -> None:
        with importing:
            import asyncio  # of all that is here the slowest to import, and most processes start none of these threads

        _place.set(_Place(self))
        runner = asyncio.Runner()
        counted = True
        try:
            while (item := self._queue.get()) is not None:
                try:
                    item[0](runner)
                except Exception:
                    logger.exception("a load ended in an error that nobody was told")
                del item  # or its group, and all that was cached there, would be held while this waits
                with self._lock:
                    if self._threads - self._aside > self._most:  # others stepped back meanwhile
                        # At once: whoever steps aside behind this has to find that it needs another thread.
                        self._threads -= 1
                        counted = False
                        return
                    self._free += 1
        finally:
            if counted:
                with self._lock:
                    self._threads -= 1
            runner.close()


class waiting:
    """``with waiting():`` around what may wait for another load, in whatever thread."""

    __slots__ = ("_at",)

    def __enter__(self) -> None:
        self._at = _place.get()
        if self._at is not None:
            self._at.threads.step_aside(self._at)

    def __exit__(self, *_exc_info: object) -> None:
        if self._at is not None:
            self._at.threads.step_back(self._at)
