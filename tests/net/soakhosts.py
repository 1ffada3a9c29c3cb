"""The hosts of a soak, ours and Go's, and what can be done to one of them."""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from checked import Checked, Report
from children import Child
from gopeers import GoPeer
from rings import GROUP, Host, addresses, check_whole
from soaking import Soaking, Tally, pick
from workers import segments_of, wait_until

from mpgroupcache import ByteView
from mpgroupcache.coordinator.main import ExitCode

BRIEF = 1  # workers of a host that may be killed, beside the one that lasts

StartGo: TypeAlias = Callable[..., GoPeer]


class SoakHost(Host):
    """A host with workers that get all the time, one of which lasts."""

    def __init__(self, directory: Path, address: str, ring: Path, tallies: Path, seeds: itertools.count[int]) -> None:
        self._tallies = tallies
        self._seeds = seeds
        self.tallies: dict[Child, Tally] = {}  # of dead workers, too
        self.worker_kills = self.coordinator_kills = 0
        options = ("--peer-timeout", "1", "--lease-timeout", "3")
        super().__init__(directory, address, [f"file:{ring}"], *options, kind=Checked)
        self.lasting = self.begin()
        self.brief = [self.begin() for _ in range(BRIEF)]

    def begin(self) -> Child:
        """Start a worker, which counts from its first get on: it is attached before."""
        seed = next(self._seeds)
        path = self._tallies / f"{seed}"
        worker = self.child(Soaking, path, seed)
        self.tallies[worker] = Tally(path)
        wait_until(lambda: worker.call("linked"), "a new worker's link")
        return worker

    @property
    def workers(self) -> list[Child]:
        return [self.lasting, *self.brief]

    def replace(self, worker: Child) -> Child:
        worker.kill()
        self.worker_kills += 1
        self.brief.remove(worker)
        self.brief.append(self.begin())
        return self.brief[-1]

    def restart(self, number: signal.Signals) -> None:
        """End the coordinator, or have it begin anew; the next one takes all of the cache over."""
        if number == signal.SIGUSR2:
            before = "".join(self.daemon.log).count("serving on")
            self.daemon.send(number)
            self.daemon.wait_says("serving on", before + 1)
        else:
            self.daemon.send(number)
            self.bury(number)
            self.start()
        self.daemon.wait_says("took over")
        self.wait_linked()

    def bury(self, number: signal.Signals) -> None:
        """Wait for the end of a coordinator that was sent this signal."""
        assert self.daemon.wait() == (ExitCode.OK if number == signal.SIGTERM else -number)
        self.require_clean_log()
        self.coordinator_kills += number == signal.SIGKILL

    def wait_linked(self) -> None:
        for worker in self.living():
            wait_until(lambda worker=worker: worker.call("linked"), "a worker's return to its coordinator")

    def require_clean_log(self) -> None:
        """Nothing went wrong that is not of this test's doing, and nothing cached was lost."""
        for line in self.daemon.log:
            assert "Traceback" not in line, "".join(self.daemon.log)
            assert " ERROR: " not in line, "".join(self.daemon.log)
            assert "took over" not in line or "dropped 0 " in line, line
            assert "begins anew" not in line, line

    def ended(self) -> list[int]:
        """Gets that each thread of each living worker has done."""
        return [ended for worker in self.workers for ended in self.tallies[worker].ended()[:-1]]

    def living(self) -> list[Child]:
        return [worker for worker in self.workers if worker.process.is_alive()]

    def check(self) -> Report:
        assert isinstance(self.daemon, Checked)
        return self.daemon.check()

    def close(self) -> None:
        """End it however it is; after ``end`` there is nothing to end."""
        for worker in self.tallies:
            worker.kill()
        super().close()

    def end(self) -> None:
        """Have the cache taken over once more, all of it; then end it, workers first."""
        items = self.lasting.call("items")
        self.restart(signal.SIGKILL)
        self.daemon.wait_says(f"took over {items} entries")
        wait_until(lambda: self.check().at_rest, "rest of what was taken over")
        for worker in self.workers:
            worker.close()
            assert worker.wait() == 0
        self.daemon.send(signal.SIGTERM)
        assert self.daemon.wait() == ExitCode.OK
        self.require_clean_log()
        assert segments_of(self.socket) == []


class GoHost:
    """A Go peer, which may be killed and started again, and a thread that gets from it."""

    def __init__(self, start: StartGo, seed: int) -> None:
        [self._place] = addresses(1)
        self._start = start
        self._chance = random.Random(seed)
        self._peers: list[str] = []
        self._using = threading.Lock()  # held over a get, so that it is not this thread's that fails in a kill
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.gets = 0
        self.failure: BaseException | None = None
        self.peer = self._make()
        self.url = self.peer.url

    def _make(self) -> GoPeer:
        return self._start("-groups", GROUP, "-listen", self._place)

    def set_peers(self, urls: list[str]) -> None:
        self._peers = urls
        self.peer.set_peers(*urls)

    def replace(self) -> None:
        with self._using:
            self.peer.close()
            self.peer = self._make()
            self.peer.set_peers(*self._peers)

    def go(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def rest(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.get()
        except BaseException as error:
            self.failure = error

    def get(self) -> None:
        key = pick(self._chance)
        with self._using:
            check_whole(key, ByteView(self.peer.get(GROUP, key)))
        self.gets += 1
