"""A host without web workers: loader processes of the coordinator's own."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from gopeers import exchange
from rings import addresses
from servers import Server
from workers import PATIENCE, Daemon, segments_of, value_of, wait_until

from mpgroupcache.coordinator.main import ExitCode
from mpgroupcache.net import peerwire
from mpgroupcache.shm._reader import Reader
from mpgroupcache.shm.segment import segment_path
from mpgroupcache.worker.peerloads import MAX_THREADS

HERE = Path(__file__).parent


@pytest.fixture
def start_host(start_coordinator: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Start a coordinator that serves peers; returns its URL."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]))

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


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent", "asgi"])
def test_gunicorns_workers_load_for_peers(
    start_coordinator: Callable[..., Daemon], serve: Callable[..., Server], worker_class: str
) -> None:
    """Preloaded: gevent patches in the worker what the package was imported with, and its loop goes on meanwhile."""
    [address] = addresses(1)
    daemon = start_coordinator("--listen", address)
    server = serve(worker_class, "--preload", socket_path=daemon.socket)
    server.wait_workers()
    group = "async" if worker_class == "asgi" else "plain"
    for i in range(4):  # in turn
        answer = exchange(f"http://{address}", f"/_groupcache/{group}/peer-{i}".encode())
        assert answer is not None
        assert peerwire.decode_response(answer.body).value == value_of(f"peer-{i}")
        assert server.get(f"own-{i}").body == value_of(f"own-{i}")


def test_a_load_that_is_left_is_refused_and_others_go_on(start_host: Callable[..., str]) -> None:
    """A ``SystemExit`` says nothing about the key, nor of the process: each loader has its turn, and stays one."""
    url = start_host("--app", "loaded_app", "--loaders", "2")
    wait_loaded(url, "g", "k")
    for i in range(2 * MAX_THREADS):
        status, body = ask(url, "g", f"leave:{i}")
        assert (status, b"no worker or loader process of this host can load now" in body) == (503, True)
    assert ask(url, "g", "other")[0] == 200


def test_a_load_that_waits_for_one_behind_it(
    start_host: Callable[..., str],
    start_coordinator: Callable[..., Daemon],
    socket_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. Loads take all threads. 2. One more is queued. 3. They ask for its key, and wait for it."""
    monkeypatch.setenv("TEST_DIRECTORY", str(tmp_path))
    url = start_host("--app", "loaded_app", "--loaders", "1")
    wait_loaded(url, "g", "k")
    [control] = [name for name in segments_of(socket_path) if name.endswith("-control")]
    reader = Reader(segment_path(control))
    with ThreadPoolExecutor(MAX_THREADS + 1) as pool:
        pages = [pool.submit(ask, url, "g", f"page:{i}") for i in range(MAX_THREADS)]
        wait_until(lambda: all((tmp_path / str(i)).exists() for i in range(MAX_THREADS)), "loads in all threads")
        before = reader.server_requests(0)
        part = pool.submit(ask, url, "g", "part")
        wait_until(lambda: reader.server_requests(0) > before, "a load that is queued")
        (tmp_path / "go").touch()
        assert [answer.result(PATIENCE)[0] for answer in (part, *pages)] == [200] * (MAX_THREADS + 1)


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

    def ended() -> bool:
        try:
            return bool(loader.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    wait_until(ended, "the loader's end")
    if number == signal.SIGKILL:
        start_coordinator()  # whose start clears what the dead one left


def test_an_app_that_cannot_be_imported_is_named(socket_path: str) -> None:
    daemon = Daemon(socket_path, "--app", "no_such_module")
    assert daemon.wait() == ExitCode.BAD_OPTION
    assert "--app: got 'no_such_module', which cannot be imported: ModuleNotFoundError" in "".join(daemon.log)
