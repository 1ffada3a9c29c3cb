"""A ring of hosts under load, and all that happens to them: kills, restarts, stops, and changes of the ring."""

from __future__ import annotations

import itertools
import random
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from rings import GROUP, addresses
from soakhosts import GoHost, SoakHost, StartGo
from workers import wait_until

Fault: TypeAlias = Callable[["Churn", SoakHost], None]


class Churn:
    """A ring of so many hosts and perhaps a Go peer, and what is done to it. ``close`` it in any case."""

    group = GROUP

    def __init__(self, seed: int, hosts: int, start_go: StartGo | None) -> None:
        self.chance = random.Random(seed)
        self._seeds = itertools.count(seed)
        self._directory = tempfile.TemporaryDirectory(prefix="mpg-")
        directory = Path(self._directory.name)
        self._run, self._tallies, self.temporary = (directory / name for name in ("run", "tallies", "tmp"))
        for path in (self._run, self._tallies, self.temporary):
            path.mkdir()
        self._file = directory / "peers"
        self._places = addresses(hosts)
        self._urls = [f"http://{place}" for place in self._places]
        self.hosts: list[SoakHost] = []
        self.go_host = None if start_go is None else GoHost(start_go, seed)
        if self.go_host is not None:
            self._urls.append(self.go_host.url)
        self.events: dict[str, int] = {}

    def start(self) -> None:
        self._name(self._urls)
        for place in self._places:
            self.hosts.append(SoakHost(self._run, place, self._file, self._tallies, self._seeds))

    def end(self) -> None:
        """End all, in order: nothing is left."""
        for host in self.hosts:
            host.end()
        assert list(self._run.iterdir()) == []  # no socket
        assert list(self.temporary.iterdir()) == []

    def close(self) -> None:
        if self.go_host is not None:
            self.go_host.rest()
        for host in self.hosts:
            host.close()
        self._directory.cleanup()

    # ---- Load

    def go(self) -> None:
        for host in self.hosts:
            for worker in host.workers:
                worker.call("go")
        if self.go_host is not None:
            self.go_host.go()

    def rest(self) -> None:
        """Nobody gets, nothing is under way, nothing is pinned, and every host has all of its workers and peers."""
        if self.go_host is not None:
            self.go_host.rest()
        for host in self.hosts:
            for worker in host.workers:
                worker.call("rest")
        self._name(self._urls)
        self.require_no_failure()
        for host in self.hosts:
            host.wait_linked()
        self.wait_rest()

    def wait_rest(self) -> None:
        for host in self.hosts:
            wait_until(lambda host=host: self._rests(host), f"rest of {host.url}")
            host.require_clean_log()

    def _rests(self, host: SoakHost) -> bool:
        report = host.check()
        assert report.faults == []
        whole = report.ring == len(self._urls) and not report.failing
        return whole and report.at_rest and report.connections == 2 * len(host.workers)

    def require_no_failure(self) -> None:
        for host in self.hosts:
            for worker in host.workers:
                if host.tallies[worker].failures:
                    raise AssertionError("\n".join(worker.call("failures")))
        if self.go_host is not None and self.go_host.failure is not None:
            raise self.go_host.failure

    def gets(self) -> int:
        return sum(sum(tally.ended()) for host in self.hosts for tally in host.tallies.values())

    def wait_gets(self, gets: int, *without: SoakHost) -> None:
        """Return once so many more gets have been done, with the right values, by all workers of these hosts."""
        hosts = [host for host in self.hosts if host not in without]
        before = sum(sum(host.ended()) for host in hosts)

        def done() -> bool:
            self.require_no_failure()
            return sum(sum(host.ended()) for host in hosts) - before >= gets

        wait_until(done, f"{gets} more gets")

    def wait_all_get(self) -> None:
        """Return once every thread has got something: nobody waits for what is gone."""
        before = [host.ended() for host in self.hosts]

        def done() -> bool:
            self.require_no_failure()
            return all(
                now > then
                for host, old in zip(self.hosts, before, strict=True)
                for now, then in zip(host.ended(), old, strict=True)
            )

        wait_until(done, "a get of every thread")
        if self.go_host is not None:
            gets = self.go_host.gets
            wait_until(lambda: self.go_host.gets > gets or self.go_host.failure, "a get through the Go peer")

    # ---- Faults

    def run(self, cycles: int, faults: Sequence[Fault], steady: int | None = None) -> None:
        """So many times all of these, in any order. The coordinator of host ``steady`` is not restarted.

        In each step: 1. something happens to a host. 2. Every thread of every host gets on.
        """
        faults = [fault for fault in faults if self.go_host is not None or fault is not Churn.kill_go]
        for _ in range(cycles):
            for fault in self.chance.sample(faults, len(faults)):
                hosts = self.hosts
                if fault in RESTARTS and steady is not None:
                    hosts = [host for number, host in enumerate(hosts) if number != steady]
                fault(self, self.chance.choice(hosts))
                self.events[fault.__name__] = self.events.get(fault.__name__, 0) + 1
                self.wait_all_get()
                self.wait_gets(500)

    def kill_worker(self, host: SoakHost) -> None:
        host.replace(self.chance.choice(host.brief)).call("go")

    def stop_worker(self, host: SoakHost) -> None:
        """While it is stopped, the others go on; also those that wait for what it loads: its lease is passed on."""
        worker = self.chance.choice(host.workers)
        worker.signal(signal.SIGSTOP)
        try:
            self.wait_gets(self.chance.choice([10, 1000]))
        finally:
            worker.signal(signal.SIGCONT)

    def kill_coordinator(self, host: SoakHost) -> None:
        host.restart(signal.SIGKILL)

    def end_coordinator(self, host: SoakHost) -> None:
        host.restart(signal.SIGTERM)

    def upgrade_coordinator(self, host: SoakHost) -> None:
        host.restart(signal.SIGUSR2)

    def kill_starting_coordinator(self, host: SoakHost) -> None:
        """The next one, too, as soon as it has taken over."""
        host.daemon.send(signal.SIGKILL)
        host.bury(signal.SIGKILL)
        host.begin_start()
        host.daemon.wait_says("took over")
        host.restart(signal.SIGKILL)

    def kill_host(self, host: SoakHost) -> None:
        """All at once but one worker, which goes on with what the others have left."""
        host.daemon.send(signal.SIGKILL)
        for worker in host.brief:
            worker.kill()
        host.restart(signal.SIGKILL)
        for worker in list(host.brief):
            host.replace(worker).call("go")

    def stop_coordinator(self, host: SoakHost) -> None:
        """For less time than its workers wait."""
        host.daemon.send(signal.SIGSTOP)
        try:
            self.wait_gets(self.chance.choice([1, 100]), host)
        finally:
            host.daemon.send(signal.SIGCONT)
        host.wait_linked()

    def stop_coordinator_for_long(self, host: SoakHost) -> None:
        """Until its workers have given it up."""
        host.daemon.send(signal.SIGSTOP)
        try:
            wait_until(lambda: not any(worker.call("linked") for worker in host.workers), "workers that gave it up")
            self.wait_gets(100)
        finally:
            host.daemon.send(signal.SIGCONT)
        host.wait_linked()

    def kill_go(self, _host: SoakHost) -> None:
        assert self.go_host is not None
        self.go_host.replace()

    def change_ring(self, _host: SoakHost) -> None:
        """Without one of its members, which only asks then; and with it again."""
        urls = list(self._urls)
        urls.remove(self.chance.choice(urls))
        self._name(urls)
        self.wait_gets(500)
        self._name(self._urls)

    def _name(self, urls: list[str]) -> None:
        """Change the ring of all, by the file that they watch; a signal has them read it now."""
        new = self._file.with_suffix(".new")
        new.write_text("\n".join(urls) + "\n")
        new.rename(self._file)
        for host in self.hosts:
            if self.chance.random() < 0.5:
                host.daemon.send(signal.SIGHUP)
        if self.go_host is not None:
            self.go_host.set_peers(urls)


RESTARTS: list[Fault] = [
    Churn.kill_coordinator,
    Churn.kill_starting_coordinator,
    Churn.kill_host,
    Churn.end_coordinator,
    Churn.upgrade_coordinator,
]
BRIEF_FAULTS: list[Fault] = [
    Churn.kill_worker,
    Churn.stop_worker,
    Churn.stop_coordinator,
    Churn.kill_go,
    Churn.change_ring,
]
"""Those that take no second."""
FAULTS: list[Fault] = [*BRIEF_FAULTS, *RESTARTS, Churn.stop_coordinator_for_long]
