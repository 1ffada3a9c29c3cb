"""Fixtures that start real processes, and see that nothing of them is left."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from arenas import Instance, Lookup, OpenArena, hold
from children import Child
from servers import Server
from workers import Daemon, Worker, leave, segments_of

from mpgroupcache import registry
from mpgroupcache.coordinator.flights import FlightTable
from mpgroupcache.ipc import memfd
from mpgroupcache.shm._exchange import sealed
from mpgroupcache.shm._view import ByteView
from mpgroupcache.worker import config

# How long an example takes says how busy the machine is, and no more.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


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
def here(start_coordinator: Callable[..., Daemon], caplog: pytest.LogCaptureFixture) -> Iterator[Daemon]:
    """Make the test's own process a worker of a coordinator of its own."""
    daemon = start_coordinator()
    others = dict(registry._groups)  # of applications that tests import: a worker of this test's has none of them
    registry._groups.clear()
    config.configure(socket=daemon.socket)
    yield daemon
    caplog.get_records("call").clear()  # whose exceptions' frames would keep this process's region
    leave()
    registry._groups.update(others)


@pytest.fixture
def spawn(start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker]) -> Callable[..., Worker]:
    """Start workers of one coordinator: ``spawn(cache_bytes=..., **new_group_options)``."""
    daemon = start_coordinator()
    return lambda **options: spawn_on(daemon.socket, **options)


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Start processes that obey: ``child(factory, *args)``."""
    started: list[Child] = []

    def start(factory: Callable[..., object], *args: object) -> Child:
        started.append(Child(factory, *args))
        return started[-1]

    yield start
    for obeying in started:
        obeying.close()


@pytest.fixture
def instance_path(tmp_path: Path) -> Iterator[str]:
    """A socket's path that names an instance; nothing of it may be left in shared memory."""
    path = str(tmp_path / "socket")
    yield path
    assert segments_of(path) == []


@pytest.fixture
def instance(instance_path: str) -> Iterator[Instance]:
    """An instance whose coordinator is the test."""
    instance = Instance(instance_path)
    yield instance
    instance.close()


@pytest.fixture
def arena(instance: Instance) -> Iterator[Callable[..., OpenArena]]:
    """Make arenas, which have to be sound at the end: ``arena(budget, max_entry=...)``."""

    def make(budget: int, **options: int) -> OpenArena:
        return OpenArena(instance, budget, **options)

    yield make
    for opened in instance.arenas:
        opened.arena.sweep()
        assert opened.arena.check() == []
        assert opened.live_bytes() <= opened.arena.budget


@pytest.fixture(params=["bytes", "str", "slice", "arena", "memfd"])
def of(request: pytest.FixtureRequest) -> Callable[[bytes], ByteView]:
    """Make a view of bytes, over each backing that a view can have: ``of(value)``, which is UTF-8."""
    if request.param == "arena":
        opened = request.getfixturevalue("arena")(1 << 20)
        lookup = Lookup(*opened.address)

    def in_arena(value: bytes) -> ByteView:
        assert opened.arena.put(b"k", value)
        return hold(lookup, b"k")

    backings: dict[str, Callable[[bytes], ByteView]] = {
        "bytes": ByteView,
        "str": lambda value: ByteView(value.decode()),
        "slice": lambda value: ByteView(b"<" + value + b">")[1:-1],
        "arena": in_arena,
        "memfd": lambda value: ByteView(memfd.map(sealed(value), len(value))),
    }
    return backings[request.param]


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start gunicorn: ``serve(worker_class, *gunicorn_options, **more)``, as `Server` has it."""
    with contextlib.ExitStack() as stack:

        def start(worker_class: str, *options: str, **more: Any) -> Server:
            # In a directory with a short name: the embedded coordinator's socket is in there.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mpg-")))
            server = Server(directory, worker_class, *options, **more)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def flights() -> Iterator[FlightTable]:
    """A table of flights, which has to be sound at the end."""
    table = FlightTable()
    yield table
    assert table.check() == []
