"""Fixtures that start real processes, and see that nothing of them is left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workers import Daemon, Worker, segments_of


@pytest.fixture
def socket_path() -> Iterator[str]:
    """A path for a coordinator's socket, in a directory with a short name; its instance must leave no segment."""
    with tempfile.TemporaryDirectory(prefix="mpg-") as directory:
        path = str(Path(directory) / "socket")
        yield path
        assert segments_of(path) == []


@pytest.fixture
def start_coordinator(socket_path: str) -> Iterator[Callable[..., Daemon]]:
    """Start coordinators: ``start_coordinator(*options, socket=...)``."""
    started: list[Daemon] = []

    def start(*options: str, socket: str = socket_path) -> Daemon:
        started.append(Daemon(socket, *options))
        return started[-1].wait_serving()

    yield start
    for daemon in started:
        daemon.close()


@pytest.fixture
def spawn_on() -> Iterator[Callable[..., Worker]]:
    """Start workers of the coordinator on a socket: ``spawn_on(socket, cache_bytes=..., **new_group_options)``."""
    spawned: list[Worker] = []

    def spawn(socket: str, **options: object) -> Worker:
        spawned.append(Worker(socket, **options))  # type: ignore[arg-type]
        return spawned[-1]

    yield spawn
    for worker in spawned:
        worker.close()


@pytest.fixture
def spawn(start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker]) -> Callable[..., Worker]:
    """Start workers of one coordinator: ``spawn(cache_bytes=..., **new_group_options)``."""
    daemon = start_coordinator()
    return lambda **options: spawn_on(daemon.socket, **options)
