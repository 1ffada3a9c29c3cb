"""The log that an operator reads: one line for an event, and no key in it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trustme
from impatient import Impatient
from workers import PATIENCE, Daemon, HandWorker, Worker, value_of, wait_until

from mpgroupcache.ages import AGELESS
from mpgroupcache.ipc.messages import Declare, Failed
from mpgroupcache.shm._control import MAX_GROUPS

Start = Callable[..., Daemon]
SpawnOn = Callable[..., Worker]

SLOW = re.compile(
    r"WARNING: group 'group': process (\d+) loads a value for (\d+\.\d) s now, and (\d+) others wait for it; .*"
)


@pytest.fixture
def impatient(socket_path: str) -> Iterator[Impatient]:
    daemon = Impatient(socket_path, "--listen", "127.0.0.1:0")
    daemon.wait_serving()
    yield daemon
    daemon.close()


def lines_of(daemon: Daemon, text: str) -> list[str]:
    return [line for line in daemon.log if text in line]


def peers_port(daemon: Daemon) -> int:
    [line] = lines_of(daemon, "serving peers on")
    found = re.search(r"127\.0\.0\.1:(\d+)", line)
    assert found is not None
    return int(found[1])


def slow_loads(daemon: Daemon) -> list[tuple[int, float, int]]:
    """(pid, seconds, waiters) of each line on a slow load."""
    found = [match for line in daemon.log if (match := SLOW.search(line)) is not None]
    return [(int(pid), float(seconds), int(waiters)) for pid, seconds, waiters in (match.groups() for match in found)]


def test_a_load_that_others_wait_for_long_is_named_again_and_again(impatient: Impatient, spawn_on: SpawnOn) -> None:
    """And one that nobody waits for is not."""
    holder, *others = (spawn_on(impatient.socket) for _ in range(3))
    loading = holder.begin_loading("hold:hidden")
    alone = holder.begin_loading("hold:alone")
    waiting = [other.begin_waiting("hold:hidden") for other in others]
    wait_until(lambda: slow_loads(impatient)[-1:] and slow_loads(impatient)[-1][1] >= 2, "several lines on one load")
    for name in ("hidden", "alone"):
        holder.release(name)
    assert {future.result(PATIENCE) for future in (loading, *waiting)} == {value_of("hold:hidden")}
    assert alone.result(PATIENCE) == value_of("hold:alone")
    lines = slow_loads(impatient)
    assert {pid for pid, _, _ in lines} == {holder.pid}
    assert lines[-1][2] == len(others)
    assert all(waiters for _, _, waiters in lines)
    seconds = [seconds for _, seconds, _ in lines]
    assert all(later > earlier for earlier, later in itertools.pairwise(seconds))
    assert seconds[0] >= 0.5
    assert not any("hidden" in line or "alone" in line for line in impatient.log)


def test_callers_of_the_same_process_that_wait_count_too(impatient: Impatient, spawn_on: SpawnOn) -> None:
    """They share its ASK, so that nobody else has asked."""
    holder = spawn_on(impatient.socket)
    loading = holder.begin_loading("hold:shared")
    waiting = [holder.begin_waiting("hold:shared") for _ in range(3)]
    wait_until(lambda: slow_loads(impatient) and slow_loads(impatient)[-1][2] == 3, "a line that counts them")
    holder.release("shared")
    assert {future.result(PATIENCE) for future in (loading, *waiting)} == {value_of("hold:shared")}
    assert {pid for pid, _, _ in slow_loads(impatient)} == {holder.pid}


def test_a_peer_that_waits_is_one_of_those_others(impatient: Impatient, spawn_on: SpawnOn) -> None:
    worker = spawn_on(impatient.socket)
    worker.get("k")

    def ask() -> None:
        peer = http.client.HTTPConnection("127.0.0.1", peers_port(impatient), timeout=PATIENCE)
        with contextlib.closing(peer):
            peer.request("GET", "/_groupcache/group/hold:guest")
            peer.getresponse().read()

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: slow_loads(impatient), "a line on the load")
    worker.release("guest")
    asking.join(PATIENCE)
    pid, _, waiting = slow_loads(impatient)[0]
    assert (pid, waiting) == (worker.pid, 1)


def test_a_coordinators_life(start_coordinator: Start, tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    own, other = "http://10.0.0.1:8080", "http://10.0.0.2:8080"
    ring.write_text(f"{own}\n")
    daemon = start_coordinator("--listen", "127.0.0.1:0", "--self", own, "--peer", f"file:{ring}")
    assert lines_of(daemon, f"INFO: serving on {daemon.socket}, instance mpgroupcache-")
    assert lines_of(daemon, "INFO: serving peers on 127.0.0.1:")[0].endswith(", without TLS, without secret\n")
    assert lines_of(daemon, f"INFO: peers: 1 in the ring, came: {own}, left: none")
    ring.write_text(f"{own}\n{other}\n")
    daemon.wait_says(f"peers: 2 in the ring, came: {other}, left: none")
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        worker.ask(Declare("pages", 1 << 20, None, False, "shop", "page", True, AGELESS))
        worker.ask(Declare("rows", 0, None, False, "", "", True, AGELESS))
        daemon.wait_says("INFO: group 'pages': declared with a cache of 1 MiB, loaded by shop.page")
        daemon.wait_says("INFO: group 'rows': declared with no cache, loaded by what has no name")
        daemon.send(signal.SIGUSR1)
        daemon.wait_says("INFO: state: 1 workers, 2 groups that hold ")
        [state] = lines_of(daemon, "state: ")
        assert ", 0 loads under way, 2 peers in the ring, 0 failing, " in state
        assert state.endswith(" free in /dev/shm\n")
    ring.write_text(f"{own}\n")
    daemon.wait_says(f"peers: 1 in the ring, came: none, left: {other}")


def counted(daemon: Daemon) -> list[tuple[int, ...]]:
    """(here, came, left) of each line on workers."""
    lines = lines_of(daemon, "INFO: workers: ")
    return [tuple(map(int, re.findall(r"\d+", line.partition("workers: ")[2]))) for line in lines]


def test_workers_come_and_go_by_count(impatient: Impatient) -> None:
    crowd = 50
    daemon = impatient
    with contextlib.ExitStack() as stack:
        for _ in range(crowd):
            stack.enter_context(contextlib.closing(HandWorker(daemon.socket)))
        wait_until(lambda: sum(came for _, came, _ in counted(daemon)) == crowd, "all that came")
        assert counted(daemon)[-1][0] == crowd
    wait_until(lambda: sum(left for _, _, left in counted(daemon)) == crowd, "all that left")
    assert counted(daemon)[-1][0] == 0


def test_a_crowd_of_workers_is_a_line_now_and_then(impatient: Impatient) -> None:
    """Also where the coordinator looks more often, since a load is under way."""
    daemon = impatient
    with contextlib.closing(HandWorker(daemon.socket)) as holder:
        holder.lease(holder.declare(), b"k")
        while len(counted(daemon)) < 4:
            HandWorker(daemon.socket).close()
    at = [datetime.fromisoformat(line[:23].replace(",", ".")) for line in lines_of(daemon, "INFO: workers: ")]
    assert all(later - earlier > timedelta(seconds=0.9) for earlier, later in itertools.pairwise(at))


def test_what_workers_are_refused_is_said_and_not_to_each_of_them(start_coordinator: Start) -> None:
    daemon = start_coordinator()
    with contextlib.closing(HandWorker(daemon.socket)) as worker:
        for number in range(MAX_GROUPS):
            worker.ask(Declare(f"group {number}", 0, None, False, "", "", True, AGELESS))
        for number in range(50):
            assert isinstance(worker.ask(Declare(f"more {number}", 0, None, False, "", "", True, AGELESS)), Failed)
        daemon.wait_says(f"is refused: group 'more 0': expected at most {MAX_GROUPS} groups")
        daemon.send(signal.SIGUSR1)
        daemon.wait_says("state: ")  # behind them
    assert len(lines_of(daemon, "is refused")) == 1


def test_a_variable_that_is_misspelt_is_named(socket_path: str) -> None:
    daemon = Daemon(
        socket_path, env=dict(os.environ, MPGROUPCACHE_MAX_BITES="1MiB", MPGROUPCACHE_PORT="tcp://10.0.0.1:80")
    )
    daemon.wait_serving()
    daemon.close()
    [line] = lines_of(daemon, "WARNING")
    assert "MPGROUPCACHE_MAX_BITES: got a variable that means nothing here; is it MPGROUPCACHE_MAX_BYTES?" in line


@pytest.mark.parametrize(
    ("address", "protected", "warned"),
    [
        ("0.0.0.0:0", (), True),
        ("0.0.0.0:0", ("--secret-file",), False),
        ("0.0.0.0:0", ("--tls-cert", "--tls-key"), True),
        ("0.0.0.0:0", ("--tls-cert", "--tls-key", "--tls-ca"), False),
        ("127.0.0.1:0", (), False),
    ],
)
def test_a_port_that_is_open_to_everybody(
    start_coordinator: Start, tmp_path: Path, address: str, protected: tuple[str, ...], warned: bool
) -> None:
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    (tmp_path / "--secret-file").write_text("what-the-ring-has\n")
    ca.cert_pem.write_to_path(tmp_path / "--tls-ca")
    certificate.private_key_pem.write_to_path(tmp_path / "--tls-key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "--tls-cert")
    options = [word for option in protected for word in (option, str(tmp_path / option))]
    daemon = start_coordinator("--listen", address, *options)
    assert bool(lines_of(daemon, "WARNING: --listen ")) is warned
