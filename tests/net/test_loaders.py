"""A host without web workers: loader processes of the coordinator's own."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from gopeers import exchange
from rings import addresses
from workers import Daemon, wait_until

from mpgroupcache.ipc.coordinator import ExitCode

HERE = str(Path(__file__).parent)


@pytest.fixture
def start_host(start_coordinator: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Start a coordinator that serves peers; returns its URL."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))

    def start(*options: str) -> str:
        [address] = addresses(1)
        start_coordinator("--listen", address, *options)
        return f"http://{address}"

    return start


def ask(url: str, group: str, key: str) -> tuple[int, bytes]:
    """What a peer is answered: the status, and the body."""
    answer = exchange(url, f"/_groupcache/{group}/{key}".encode())
    assert answer is not None
    return answer.status, answer.body


def wait_loaded(url: str, group: str, key: str) -> bytes:
    """The body of the first 200: loaders take a moment to start."""
    answers: list[tuple[int, bytes]] = []
    wait_until(lambda: (answers.append(ask(url, group, key)), answers[-1][0] == 200)[1], "a loader")  # type: ignore[func-returns-value]
    return answers[-1][1]


def test_loaders_serve_peers(start_host: Callable[..., str]) -> None:
    url = start_host("--app", "loaded_app", "--loaders", "2")
    numbers = itertools.count()
    pids: set[bytes] = set()
    wait_until(lambda: pids.add(wait_loaded(url, "g", f"k{next(numbers)}")) or len(pids) == 2, "loads in turn")
    assert wait_loaded(url, "later", "k") == b"\x0a\x05later"
    assert ask(url, "other", "k") == (404, b"no such group: other\n")


def test_a_loader_that_dies_is_started_again(start_host: Callable[..., str]) -> None:
    url = start_host("--app", "loaded_app")
    before = wait_loaded(url, "g", "before")
    status, _ = ask(url, "g", "die")
    assert status != 200
    assert wait_loaded(url, "g", "after") != before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_loaders_end_with_the_coordinator(
    start_coordinator: Callable[..., Daemon],
    start_host: Callable[..., str],
    number: signal.Signals,
    socket_path: str,
) -> None:
    url = start_host("--app", "loaded_app")
    loader = psutil.Process(int(wait_loaded(url, "g", "k")[2:]))
    coordinator = loader.parent()
    assert coordinator is not None
    coordinator.send_signal(number)
    wait_until(lambda: not loader.is_running() or loader.status() == psutil.STATUS_ZOMBIE, "the loader's end")
    if number == signal.SIGKILL:
        start_coordinator()  # whose start clears what the dead one left


def test_an_app_that_cannot_be_imported_is_named(socket_path: str) -> None:
    daemon = Daemon(socket_path, "--app", "no_such_module")
    assert daemon.wait() == ExitCode.BAD_OPTION
    assert "--app: got 'no_such_module', which cannot be imported: ModuleNotFoundError" in "".join(daemon.log)
