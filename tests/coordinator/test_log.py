"""The log that an operator reads: one line for an event, and no key in it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import pytest
from impatient import Impatient
from workers import PATIENCE, Daemon, Worker, value_of, wait_until

SpawnOn = Callable[..., Worker]

SLOW = re.compile(
    r"WARNING: group 'group': process (\d+) loads a value for (\d+\.\d) s now, and (\d+) callers wait for it; .*"
)


@pytest.fixture
def impatient(socket_path: str) -> Iterator[Impatient]:
    daemon = Impatient(socket_path)
    daemon.wait_serving()
    yield daemon
    daemon.close()


def slow_loads(daemon: Daemon) -> list[tuple[int, float, int]]:
    """(pid, seconds, waiters) of each line on a slow load."""
    found = [match for line in daemon.log if (match := SLOW.search(line)) is not None]
    return [(int(pid), float(seconds), int(waiters)) for pid, seconds, waiters in (match.groups() for match in found)]


def test_a_load_that_others_wait_for_long_is_named_again_and_again(impatient: Impatient, spawn_on: SpawnOn) -> None:
    """And one that nobody waits for is not."""
    holder, *others = (spawn_on(impatient.socket) for _ in range(3))
    loading = holder.begin_loading("hold:secret")
    alone = holder.begin_loading("hold:alone")
    waiting = [other.begin_waiting("hold:secret") for other in others]
    wait_until(lambda: slow_loads(impatient)[-1:] and slow_loads(impatient)[-1][1] >= 2, "several lines on one load")
    for name in ("secret", "alone"):
        holder.release(name)
    assert {future.result(PATIENCE) for future in (loading, *waiting)} == {value_of("hold:secret")}
    assert alone.result(PATIENCE) == value_of("hold:alone")
    lines = slow_loads(impatient)
    assert {pid for pid, _, _ in lines} == {holder.pid}
    assert lines[-1][2] == len(others)
    assert all(waiters for _, _, waiters in lines)
    seconds = [seconds for _, seconds, _ in lines]
    assert all(later > earlier for earlier, later in itertools.pairwise(seconds))
    assert seconds[0] >= 0.5
    assert not any("secret" in line or "alone" in line for line in impatient.log)
