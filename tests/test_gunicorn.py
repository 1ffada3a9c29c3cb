"""Under real gunicorn: every kind of worker, reloads, upgrades, deaths, and the coordinator that lives beside it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable
from http.client import HTTPException

import psutil
import pytest
from servers import Server, is_asgi, is_running
from workers import Daemon, segments_of, value_of, wait_until

Serve = Callable[..., Server]

UVICORN = pytest.param(
    "uvicorn.workers.UvicornWorker",
    marks=pytest.mark.skipif(importlib.util.find_spec("uvicorn.workers") is None, reason="this uvicorn has no worker"),
)
RELOADING = 5.0  # s that the embedded coordinator has to bridge between the old workers and the new
CLASSES = ["sync", "gthread", "gevent", "asgi", UVICORN]


# ---- Serving


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_storm_over_all_workers_loads_once(serve: Serve, worker_class: str) -> None:
    server = serve(worker_class)
    pids = server.wait_workers()
    for kind in ["get", "aget"] if is_asgi(worker_class) else ["get"]:
        key = f"hold:{kind}"
        storm = [server.begin(f"/{kind}/{key}") for _ in range(16)]
        # As many as can be inside at a time: a sync worker has one thread.
        wait_until(lambda key=key: len(server.asks(key)) == (2 if worker_class == "sync" else 16), "the storm")
        server.release(kind)
        assert {future.result().body for future in storm} == {value_of(key)}
        assert len(server.loads(key)) == 1
        server.wait_answers(f"/{kind}/{key}", pids)
        assert len(server.loads(key)) == 1
    stats = server.page("/stats")["plain"]
    assert stats["local_loads"] == 1
    assert stats["gets"] == stats["cache_hits"] + stats["local_loads"] + stats["loads_deduped"]


@pytest.mark.parametrize("worker_class", CLASSES)
def test_large_values(serve: Serve, worker_class: str) -> None:
    server = serve(worker_class)
    pids = server.wait_workers()
    requests = [server.begin("/get/big:300000:1") for _ in range(8)]
    assert {request.result().body for request in requests} == {value_of("big:300000:1")}
    server.wait_answers("/get/big:300000:1", pids)
    assert len(server.loads("big:300000:1")) == 1


@pytest.mark.parametrize("worker_class", ["gevent", "asgi", UVICORN])
def test_a_worker_serves_others_while_requests_wait(serve: Serve, worker_class: str) -> None:
    server = serve(worker_class)
    pids = server.wait_workers()
    waiting = [server.begin("/get/hold:a") for _ in range(30)]
    wait_until(lambda: len(server.asks("hold:a")) == 30, "30 requests")
    while not pids <= set(server.asks("hold:a")):
        waiting.append(server.begin("/get/hold:a"))
        wait_until(lambda: len(server.asks("hold:a")) == len(waiting), "one more request")
    wait_until(lambda: server.loads("hold:a"), "the loader")  # asks are told of before they are sent
    # One worker has the loader and waiters, the other only waiters. Both answer.
    server.wait_answers("/get/quick", pids)
    server.wait_answers("/get/big:300000:quick", pids)
    assert not any(future.done() for future in waiting)
    server.release("a")
    assert {future.result().body for future in waiting} == {value_of("hold:a")}
    assert len(server.loads("hold:a")) == 1


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent", "asgi"])
def test_a_worker_killed_in_a_load_is_replaced_by_a_waiter(serve: Serve, worker_class: str) -> None:
    server = serve(worker_class)
    server.wait_workers()
    doomed = server.begin("/get/hold:a")
    (holder,) = wait_until(lambda: server.loads("hold:a"), "the load")
    waiting = []
    while set(server.asks("hold:a")) == {holder}:
        waiting.append(server.begin("/get/hold:a"))
        wait_until(lambda: len(server.asks("hold:a")) > len(waiting), "a request that waits")
    os.kill(holder, signal.SIGKILL)
    with pytest.raises((HTTPException, OSError)):
        doomed.result()
    wait_until(lambda: len(server.loads("hold:a")) == 2, "the waiter's load")
    server.release("a")
    assert waiting[-1].result().body == value_of("hold:a")
    assert server.loads("hold:a")[1] != holder
    server.wait_workers(but={holder})
    assert server.get("hold:a").body == value_of("hold:a")
    assert len(server.loads("hold:a")) == 2


# ---- Being started


@pytest.mark.parametrize("worker_class", ["gthread", "gevent", "asgi"])
def test_preloaded_declarations_open_nothing(serve: Serve, worker_class: str) -> None:
    server = serve(worker_class, "--preload", eager=False)
    pids = server.wait_workers()
    about = server.page("/process")
    assert about["imported_by"] == server.process.pid
    assert not about["linked"]
    assert not any("mpgroupcache" in name for name in about["threads"])
    assert not os.path.exists(server.socket_path)
    server.wait_answers("/get/k", pids)
    assert len(server.loads("k")) == 1
    assert server.page("/process")["linked"]
    assert server.master.num_threads() == 1
    assert server.master.net_connections("unix") == []
    assert [file.path for file in server.master.open_files() if "/dev/shm" in file.path] == []
    assert "Traceback" not in server.log


@pytest.mark.parametrize("worker_class", ["sync", "gevent"])
def test_a_view_that_the_master_got_is_good_in_every_worker(serve: Serve, worker_class: str) -> None:
    server = serve(worker_class, "--preload", warm=True)
    pids = server.wait_workers()
    for _ in range(2):
        server.wait_answers("/warm", pids)
        server.wait_answers("/get/warm", pids)
        assert server.request("/warm").body == value_of("warm")
        server.process.send_signal(signal.SIGHUP)
        pids = server.wait_workers(but=pids)
    assert server.loads("warm") == [server.process.pid]
    assert "Traceback" not in server.log


def test_recycled_workers_keep_the_cache(serve: Serve) -> None:
    server = serve("sync", "--max-requests", "3", linger=RELOADING)
    answered_by = {server.get(f"k{i % 5}").worker for i in range(30)}
    assert len(answered_by) >= 8
    assert [len(server.loads(f"k{i}")) for i in range(5)] == [1] * 5
    assert server.page("/stats")["plain"]["gets"] == 30  # those of workers that have gone are counted too


# ---- The embedded coordinator


def is_beside(coordinator: psutil.Process, server: Server) -> bool:
    """Whether a coordinator lives outside of a server's sight: another session, and no child of its processes."""
    family = {server.process.pid, *server.workers()}
    return os.getsid(coordinator.pid) not in {os.getsid(pid) for pid in family} and coordinator.ppid() not in family


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended and is nobody's zombie; an orphan's reaper is not ours to judge."""
    try:
        return not process.is_running() or (process.status() == psutil.STATUS_ZOMBIE and process.ppid() <= 1)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_the_embedded_coordinator_outlives_reload_and_upgrade_and_ends_by_itself(
    serve: Serve, worker_class: str
) -> None:
    server = serve(worker_class, linger=RELOADING)
    first = server.wait_workers()
    assert server.get("k").body == value_of("k")
    coordinator = server.coordinator()
    assert is_beside(coordinator, server)

    server.process.send_signal(signal.SIGHUP)
    second = server.wait_workers(but=first)
    assert server.get("k").worker in second
    assert server.coordinator() == coordinator

    successor = server.upgrade()
    assert server.get("k").worker in server.workers(successor)
    assert server.coordinator() == coordinator
    assert coordinator.ppid() not in {successor.pid, *server.workers(successor)}
    assert len(server.loads("k")) == 1

    socket_path = server.socket_path
    successor.terminate()
    wait_until(lambda: not is_running(successor), "its end")
    wait_until(lambda: is_gone(coordinator), "the coordinator's end")
    assert not os.path.exists(socket_path)
    assert segments_of(socket_path) == []
    assert "Traceback" not in server.log


def test_the_embedded_coordinator_is_started_again(serve: Serve) -> None:
    server = serve("gthread")
    pids = server.wait_workers()
    server.wait_answers("/get/k", pids)
    dead = server.coordinator()
    dead.kill()
    wait_until(lambda: is_gone(dead), "its end")
    server.wait_answers("/get/k", pids)  # hits go on, in the memory that it left
    assert len(server.loads("k")) == 1
    server.wait_answers("/process", pids, lambda about: not json.loads(about)["linked"])
    assert server.get("new").body == value_of("new")  # a miss needs one
    assert server.coordinator() != dead
    server.wait_answers("/get/new", pids)
    assert len(server.loads("new")) == 1


# ---- A coordinator of its own


@pytest.mark.parametrize("worker_class", ["sync", "asgi"])
def test_a_deploy_leaves_the_cache_warm(
    start_coordinator: Callable[..., Daemon], serve: Serve, worker_class: str
) -> None:
    daemon = start_coordinator()
    keys = ["a", "b", "big:300000:c"]
    server = serve(worker_class, socket_path=daemon.socket)
    first = server.wait_workers()
    for key in keys:
        server.wait_answers(f"/get/{key}", first)
    server.process.send_signal(signal.SIGHUP)
    second = server.wait_workers(but=first)
    for key in keys:
        server.wait_answers(f"/get/{key}", second)
    assert [len(server.loads(key)) for key in keys] == [1, 1, 1]
    assert server.stop() == 0
    assert not list(server.directory.glob("mpgroupcache-*"))  # no private one was started

    successor = serve(worker_class, socket_path=daemon.socket)
    for key in keys:
        assert successor.get(key).body == value_of(key)
    assert [len(successor.loads(key)) for key in keys] == [0, 0, 0]
