"""Histories of real workers are those of a register: what is read was never removed, replaced or overtaken before.

What a history cannot show is named in check.py.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from check import ANY_RUN, Rules
from hammer import MIX, drive
from record import Found, Load, NoAnswer, NotDone
from workers import Daemon

import mpgroupcache
from mpgroupcache import ByteView, ChangeError, DeadlineExceeded, LoadError, LoadErrors, NotFound, Sink

OPERATIONS = int(os.environ.get("MPGROUPCACHE_HISTORY_OPERATIONS", "2000000"))
ROUND = 100_000  # operations that are judged at once
ROOMY = 64 << 20  # bytes; nothing is ever evicted
NARROW = 1 << 20
TIMEOUT = 2.0  # s; of a change

Start = Callable[..., Daemon]


class Real:
    """A group of a worker, for `hammer`. The values are ASCII decimals."""

    def __init__(self, load: Load, sockets: list[str], cache_bytes: int) -> None:
        self._load = load
        mpgroupcache.configure(socket=sockets[os.getpid() % len(sockets)])
        self._group = mpgroupcache.new_group("history", cache_bytes, self._getter)
        mpgroupcache.connect()  # so that a first look that finds nothing says something

    def _getter(self, ctx: Any, key: str, dest: Sink) -> None:
        dest.set_bytes(b"%d" % self._load(key))

    def get(self, key: str) -> Found | None:
        with reading():
            return found(self._group.get(key))
        return None

    def get_many(self, keys: list[str]) -> dict[str, Found]:
        with reading():
            return {key: made for key, view in self._group.get_many(keys).items() if (made := found(view))}
        return {}

    def lookup(self, key: str) -> Found | None:
        return found(self._group.lookup(key))

    def set(self, key: str, value: int, version: int | None = None) -> bool:
        with changing():
            return self._group.set(key, b"%d" % value, if_version=version, timeout=TIMEOUT)

    def add(self, key: str, value: int) -> bool:
        with changing():
            return self._group.add(key, b"%d" % value, timeout=TIMEOUT)

    def incr(self, key: str, delta: int, initial: int | None = None) -> int | None:
        with changing():
            try:
                return self._group.incr(key, delta, initial=initial, timeout=TIMEOUT)
            except NotFound:
                return None

    def remove(self, key: str, version: int | None = None) -> bool:
        with changing():
            return self._group.remove(key, if_version=version, timeout=TIMEOUT)

    def touch(self, key: str) -> bool:
        with changing():
            return self._group.touch(key, timeout=TIMEOUT)

    def refresh(self, key: str) -> Found | None:
        with changing(), reading():
            return found(self._group.refresh(key, timeout=TIMEOUT))
        return None

    def clear(self) -> None:
        with changing():
            self._group.clear(timeout=TIMEOUT)


def found(view: ByteView | None) -> Found | None:
    return None if view is None else Found(int(str(view)), view.version)


@contextmanager
def reading() -> Iterator[None]:
    """``NotFound`` is the answer that there is nothing; what else a read fails with says nothing."""
    try:
        yield
    except NotFound:
        pass
    except (LoadError, LoadErrors, DeadlineExceeded) as error:
        raise NoAnswer from error


@contextmanager
def changing() -> Iterator[None]:
    """A change that failed somewhere may have been done elsewhere."""
    try:
        yield
    except ChangeError as error:
        raise (NoAnswer if error.unknown or error.failed else NotDone) from error


class Coordinators:
    """Coordinators that are stopped, killed and followed by others."""

    def __init__(self, start: Start, socket: str) -> None:
        self._start, self._socket = start, socket
        self._daemon = start()
        self._pace = threading.Event()

    def disturb(self, chance: random.Random) -> None:
        if chance.random() < 0.5:
            self._daemon.send(signal.SIGSTOP)
            self._pace.wait(0.3 * chance.random())
            self._daemon.send(signal.SIGCONT)
        else:
            self._daemon.send(signal.SIGKILL)
            self._daemon.wait()
            self._daemon = self._start()


def test_nothing_is_lost_where_nobody_is_disturbed(start_coordinator: Start, tmp_path: Path) -> None:
    daemon = start_coordinator()
    report = drive(
        Real, ([daemon.socket], ROOMY), tmp_path, operations=20_000, faults=False, rules=Rules(lossless=True)
    )
    assert report.fine, "\n".join(map(str, report.pages[:3]))
    assert report.names.keys() >= {name for name in MIX if not name.startswith(("get_", "set_", "remove_"))}


def test_workers_that_are_stopped_and_killed(start_coordinator: Start, tmp_path: Path) -> None:
    daemon = start_coordinator()
    report = drive(Real, ([daemon.socket], NARROW), tmp_path, operations=20_000, rules=ANY_RUN)
    assert report.fine, "\n".join(map(str, report.pages[:3]))


def test_coordinators_that_are_stopped_and_killed(start_coordinator: Start, socket_path: str, tmp_path: Path) -> None:
    """Without a coordinator a new worker does not see what is there: so what it misses is not lost."""
    coordinators = Coordinators(start_coordinator, socket_path)
    report = drive(
        Real,
        ([socket_path], NARROW),
        tmp_path,
        operations=20_000,
        rules=Rules(blind=True),
        disturb=coordinators.disturb,
    )
    assert report.fine, "\n".join(map(str, report.pages[:3]))


@pytest.mark.long
def test_for_long(start_coordinator: Start, socket_path: str, tmp_path: Path) -> None:
    """Variant of the ones above."""
    coordinators = Coordinators(start_coordinator, socket_path)
    seed = done = 0
    while done < OPERATIONS:
        seed += 1
        directory = tmp_path / str(seed)
        directory.mkdir()
        report = drive(
            Real,
            ([socket_path], NARROW),
            directory,
            operations=ROUND,
            rules=Rules(blind=True),
            disturb=coordinators.disturb,
            seed=seed,
        )
        assert report.fine, "\n".join(map(str, report.pages[:3]))
        done += report.operations


# A ring: the same with two coordinators that are each other's peers, `Real, ([first.socket, second.socket], ROOMY)`,
# Rules(blind=True) (a copy outlives what its owner has lost), faults=False at first. See tests/net/rings.py.
