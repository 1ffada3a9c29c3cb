"""Fixtures of real Go peers, and of the peers' server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from gopeers import GoPeer, build
from peerserver import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def go_program(request: pytest.FixtureRequest) -> Path:
    """The Go peer's program. Where there is no Go, tests are skipped, and fail in CI."""
    cache = request.config.cache
    assert cache is not None
    return build(cache.mkdir("gopeer"))


@pytest.fixture(scope="module")
def start_go_peer(go_program: Path) -> Iterator[Callable[..., GoPeer]]:
    """Start Go peers, for all tests of a module: ``start_go_peer("-groups", "g,h", "-mux", ...)``."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> GoPeer:
            peer = GoPeer(go_program, *options)
            stack.callback(peer.close)
            return peer

        yield start


@pytest.fixture
def run_server() -> Iterator[Callable[..., Running]]:
    """Start servers: ``run_server(host, **options)``."""
    with contextlib.ExitStack() as stack:

        def start(*args: str, **options: Any) -> Running:
            running = Running(*args, **options)
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Running]:
    """One server for those tests of a module that leave it as it was."""
    running = Running()
    yield running
    running.stop()
