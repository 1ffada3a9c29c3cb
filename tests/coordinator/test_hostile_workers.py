"""Workers that do not keep to the protocol: their connection ends, with a line in the log, and nobody else notices."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
from array import array
from collections.abc import Callable, Iterator

import pytest
from workers import Daemon, HandWorker, Worker, descriptors_of, segments_of, value_of, wait_until

from mpgroupcache.coordinator.connection import MAX_BACKLOG
from mpgroupcache.ipc import fields, frame, memfd, messages

SIZE = 100_000

Start = Callable[..., Daemon]
SpawnOn = Callable[..., Worker]


@pytest.fixture
def daemon(start_coordinator: Start) -> Daemon:
    return start_coordinator()


@pytest.fixture
def hands(daemon: Daemon) -> Iterator[HandWorker]:
    with contextlib.closing(HandWorker(daemon.socket)) as hands:
        yield hands


@pytest.fixture
def others(daemon: Daemon, spawn_on: SpawnOn) -> Iterator[Worker]:
    """A worker like any other, who is served on."""
    worker = spawn_on(daemon.socket)
    assert worker.get("k") == value_of("k")
    yield worker
    assert worker.get("after") == value_of("after")
    assert daemon.process.poll() is None


def refused(hands: HandWorker) -> None:
    """Its connection is closed."""
    with contextlib.suppress(ConnectionResetError):
        while hands.sock.recv(1 << 16):
            pass


def unsealed(size: int, seals: int = 0) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL_BUT_WRITE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
ALL_BUT_SHRINK = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
VALUES: dict[str, tuple[Callable[[], int], str]] = {
    "not sealed": (lambda: unsealed(SIZE), "no sealed memfd"),
    "may be rewritten": (lambda: unsealed(SIZE, ALL_BUT_WRITE), "no sealed memfd"),
    "may be cut off": (lambda: unsealed(SIZE, ALL_BUT_SHRINK), "no sealed memfd"),
    "no memfd": (lambda: os.open("/dev/zero", os.O_RDONLY), "no sealed memfd"),
    "too short": (lambda: memfd.make(bytes(SIZE - 1)), f"got {SIZE - 1} bytes, expected the {SIZE}"),
    "too long": (lambda: memfd.make(bytes(SIZE + 1)), f"got {SIZE + 1} bytes, expected the {SIZE}"),
    "missing": (lambda: -1, "its descriptor did not come"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_that_could_change_or_lie_are_refused(
    daemon: Daemon, hands: HandWorker, others: Worker, kind: str
) -> None:
    make, text = VALUES[kind]
    lease = hands.lease(hands.declare(), b"bad")
    waiting = others.begin_waiting("bad")
    fd = make()
    hands.send(messages.Store(lease, SIZE, False, None, None, None, False), fd)
    if fd >= 0:
        os.close(fd)
    refused(hands)
    assert waiting.result(30) == value_of("bad")
    daemon.wait_says(text)


@pytest.mark.parametrize("ending", [messages.Store, messages.Return, messages.Fail])
def test_a_lease_is_its_holders(
    daemon: Daemon, hands: HandWorker, others: Worker, ending: type[messages.Message]
) -> None:
    loading = others.begin_loading("hold:a")
    with contextlib.closing(HandWorker(daemon.socket)) as holder:
        lease = holder.lease(holder.declare(), b"theirs")
        fields = {
            messages.Store: (b"wrong", False, None, None, None, False),
            messages.Return: (),
            messages.Fail: ("X", "x"),
        }[ending]
        hands.send(ending(lease, *fields))
        refused(hands)
        daemon.wait_says("expected one of its holder")
        holder.send(messages.Store(lease, value_of("theirs"), False, None, None, None, False))
        assert others.get("theirs") == value_of("theirs")
    others.release("a")
    assert loading.result(30) == value_of("hold:a")
    assert others.loads == ["k", "hold:a"]


def test_messages_that_are_not_a_workers(daemon: Daemon, hands: HandWorker, others: Worker) -> None:
    hands.send(messages.Declared(0, None, 0, 0))
    refused(hands)
    daemon.wait_says("got Declared on a call connection, expected one of Ask, AskMany, Cancel, Change, Declare, ")
    with contextlib.closing(HandWorker.__new__(HandWorker)) as mute:  # one that never said HELLO
        HandWorker.open(mute, daemon.socket)
        mute.send(messages.Ask(0, b"k", (), True, False, "get"))
        refused(mute)
    daemon.wait_says("got Ask on a new connection, expected one of Hello, Ping, Pong")


def test_descriptors_that_nobody_asked_for_are_limited(daemon: Daemon, hands: HandWorker, others: Worker) -> None:
    before = descriptors_of(daemon.process.pid)
    null = os.open("/dev/null", os.O_RDONLY)
    with contextlib.suppress(ConnectionError):
        for byte in frame.encode(messages.Fail(1, "X", "x" * 4000)):
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null] * 10).tobytes())]
            hands.sock.sendmsg([bytes([byte])], passed)
    os.close(null)
    refused(hands)
    daemon.wait_says("descriptors: got more than can be taken")
    wait_until(lambda: descriptors_of(daemon.process.pid) <= before, "descriptors that are closed")


def test_workers_that_claim_nothing_cost_a_region_each_at_most(daemon: Daemon, others: Worker) -> None:
    """And those that have gone cost none: the next find what was made for them."""
    control = next(name for name in segments_of(daemon.socket) if name.endswith("-control"))
    crowd, step, region = 40, 16, 15 * mmap.PAGESIZE

    def memory() -> int:
        return os.stat(f"/dev/shm/{control}").st_blocks * 512

    def descriptors() -> int:
        return descriptors_of(daemon.process.pid)

    first, few = memory(), descriptors()
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for _ in range(crowd):
                stack.enter_context(contextlib.closing(HandWorker(daemon.socket)))
        wait_until(lambda: descriptors() <= few, "connections that are closed")
    assert crowd * region / 2 < memory() - first <= (crowd + step) * region


def test_a_worker_that_does_not_read_is_let_go_of(daemon: Daemon, hands: HandWorker, others: Worker) -> None:
    group = hands.declare()
    key = b"filler"
    lease = hands.lease(group, key)
    hands.send(messages.Store(lease, bytes(fields.INLINE_BYTES), False, None, None, None, False))
    with contextlib.suppress(ConnectionError):
        for _ in range(2 * MAX_BACKLOG // fields.INLINE_BYTES):
            hands.send(messages.Ask(group, key, (), True, False, "get"))
    received = 0
    with contextlib.suppress(EOFError, ConnectionError):
        while hands.receive():
            received += fields.INLINE_BYTES
    assert received < 2 * MAX_BACKLOG


@pytest.mark.parametrize(("ttl", "stale"), [(1e300, None), (1.0, float("inf")), (1e308, 1e308)])
def test_lives_of_any_length(hands: HandWorker, others: Worker, ttl: float, stale: float | None) -> None:
    lease = hands.lease(hands.declare(), b"k1")
    waiting = others.begin_waiting("k1")
    hands.send(messages.Store(lease, b"value", False, None, ttl, stale, False))
    assert waiting.result(30) == others.get("k1") == b"value"


def test_ids_that_have_no_room_for_their_keys(hands: HandWorker, others: Worker) -> None:
    loading = others.begin_loading("hold:a:k")
    group = hands.declare()
    hands.sock.sendall(frame.encode(messages.AskMany(group, (b"hold:a:k",), (), True, False, True), 0xFFFFFFFF))
    refused(hands)
    others.release("a")
    assert loading.result(30) == value_of("hold:a:k")
    others.do("flush")
    assert others.do("lookup", "hold:a:k") == value_of("hold:a:k")
