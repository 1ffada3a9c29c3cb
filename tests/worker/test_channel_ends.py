"""How requests of a channel end, and how it does: deadlines, broken connections, signs of life."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from playing import ASK, Peer, in_thread
from workers import PATIENCE

from mpgroupcache import CoordinatorUnavailable, DeadlineExceeded
from mpgroupcache.ipc.fields import INLINE_BYTES
from mpgroupcache.ipc.frame import encode
from mpgroupcache.ipc.messages import Cancel, Hit, Origin, Ping, Value
from mpgroupcache.shm._hold import Hold
from mpgroupcache.worker import channel as channel_module
from mpgroupcache.worker.channel import COARSE, LIVENESS_TIMEOUT, PING_AFTER, Channel, CoordinatorSilent

# ---- How requests end


def test_ids_are_those_of_a_frame_and_never_0(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    hold = Hold()
    for _ in range(2):
        channel.ask(hold, ASK)
    assert [peer.receive()[0] for _ in range(2)] == [1, 2]
    most = (1 << 32) - 2
    assert channel.take_ids(most - 3) == 3
    for _ in range(2):
        channel.ask(hold, ASK)
    assert [peer.receive()[0] for _ in range(2)] == [most, 1]
    channel.take_ids(most - 3)
    assert channel.take_ids(3) == 1  # they are in a row
    hold.end()


@pytest.mark.parametrize("reads", [True, False])
def test_a_deadline(ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """Of one who reads for all, and of one who sleeps."""
    channel, peer = ends
    monkeypatch.setattr(channel_module, "PING_AFTER", 10 * PATIENCE)  # nothing else wakes them
    reader = Hold()
    if not reads:
        assert reader.read(channel)
    results: list[object] = []
    begin = time.monotonic()
    thread = in_thread(channel, results, begin + 0.1)
    number, said = peer.receive()
    assert said == ASK
    thread.join(PATIENCE)
    assert time.monotonic() - begin >= 0.1
    assert isinstance(results[0], DeadlineExceeded)
    assert str(results[0]) == "get: the timeout passed while another caller loads; the load goes on"
    assert peer.receive() == (number, Cancel())
    assert channel.broken is None
    reader.end()


@pytest.mark.parametrize("reads", [True, False])
def test_a_deadline_that_is_over(ends: tuple[Channel, Peer], reads: bool) -> None:
    channel, peer = ends
    reader = Hold()
    if not reads:
        assert reader.read(channel)
    with pytest.raises(DeadlineExceeded):
        channel.request(ASK, time.monotonic() - 1.0)
    number, _ = peer.receive()
    assert peer.receive() == (number, Cancel())
    reader.end()


def test_an_answer_in_time_is_no_deadline(ends: tuple[Channel, Peer]) -> None:
    """Also where it is looked at later."""
    channel, peer = ends
    hold = Hold()
    request = channel.ask(hold, ASK)
    peer.send(Hit(), peer.receive()[0])
    assert channel.wait(hold, request, time.monotonic() + PATIENCE) == Hit()
    assert channel.wait(hold, request, time.monotonic() - 1.0) == Hit()
    request.settle()
    hold.end()
    channel.post(b"no CANCEL")
    assert peer.sock.recv(100) == b"no CANCEL"


BREAKS: dict[str, tuple[bytes | None, str]] = {
    "it closes": (None, "the coordinator closed the connection"),
    "no frame": (b"no frame of ours, and long enough", "magic: got b'no', expected b'mg'"),
    "no descriptor": (
        encode(Value(INLINE_BYTES + 1, Origin.CACHE, None, None), 1),
        "Value: its descriptor did not come",
    ),
}


@pytest.mark.parametrize(("data", "text"), BREAKS.values(), ids=list(BREAKS))
def test_a_coordinator_that_breaks_the_connection(ends: tuple[Channel, Peer], data: bytes | None, text: str) -> None:
    channel, peer = ends
    results: list[object] = []
    threads = [in_thread(channel, results) for _ in range(2)]
    for _ in threads:
        peer.receive()
    if data is None:
        peer.sock.shutdown(socket.SHUT_WR)
    else:
        peer.sock.sendall(data)
    for thread in threads:
        thread.join(PATIENCE)
    assert all(type(result) is CoordinatorUnavailable for result in results)
    assert all(str(result).startswith(text) for result in results)
    assert results[0] is not results[1]
    with pytest.raises(CoordinatorUnavailable, match=text):
        channel.request(ASK)


def test_an_error_of_the_socket(ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    channel, peer = ends
    channel._timeout = PING_AFTER  # as of an earlier wait
    channel.set_timeout(PING_AFTER)
    hold = Hold()
    request = channel.ask(hold, ASK)
    peer.sock.close()  # with an ASK that it has not read: a reset
    with pytest.raises(CoordinatorUnavailable, match="reading from the coordinator: .*reset by peer"):
        channel.wait(hold, request, None)
    hold.end()


def test_a_coordinator_that_does_not_listen(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    peer.sock.close()
    hold = Hold()
    with pytest.raises(CoordinatorUnavailable, match="sending to the coordinator: .*Broken pipe") as caught:
        channel.ask(hold, ASK)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(channel) == 1  # until its hold ends
    hold.end()
    assert len(channel) == 0


def test_a_deadline_of_one_whose_frame_the_socket_does_not_take(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, _ = ends
    monkeypatch.setattr(channel_module, "LIVENESS_TIMEOUT", 10 * PATIENCE)  # nothing else ends it
    while not channel.waiting:
        channel.post(bytes(1 << 16))
    begin = time.monotonic()
    channel.drain(begin + 0.1)
    channel.drain(begin - 1.0)
    assert begin + 0.1 <= time.monotonic()
    assert channel.waiting
    assert channel.broken is None


def test_what_waited_for_the_socket_when_it_broke(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    while not channel.waiting:
        channel.post(bytes(1 << 16))
    peer.sock.close()
    with pytest.raises(CoordinatorUnavailable, match=r"sending to the coordinator: \[Errno 32\] socket$"):
        channel.drain(None)


# ---- Signs of life


class Clock:
    """What a channel sees of the time."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(channel_module, "time", clock)
    ends[0]._heard = clock.now
    return clock


def test_a_silence_is_asked_about_once_and_then_left(ends: tuple[Channel, Peer], clock: Clock) -> None:
    channel, peer = ends
    clock.now += PING_AFTER - 0.25
    channel.check_liveness()
    channel.post(encode(ASK))  # the first thing that it hears
    clock.now += 0.25
    channel.check_liveness()
    clock.now += LIVENESS_TIMEOUT - PING_AFTER - 0.25
    channel.check_liveness()
    channel.post(encode(ASK))
    assert [peer.receive()[1] for _ in range(3)] == [ASK, Ping(), ASK]
    assert channel.broken is None
    clock.now += 0.25
    channel.check_liveness()
    assert isinstance(channel.broken, CoordinatorSilent)
    assert str(channel.broken) == "the coordinator was silent for 2.0 s"


def test_silence_before_anybody_waited_is_nobodys_fault(ends: tuple[Channel, Peer], clock: Clock) -> None:
    channel, peer = ends
    clock.now += 10 * LIVENESS_TIMEOUT
    for _ in range(2):
        channel.check_liveness()
        assert channel.broken is None
    assert peer.receive() == (0, Ping())
    clock.now += LIVENESS_TIMEOUT - PING_AFTER
    channel.check_liveness()
    assert isinstance(channel.broken, CoordinatorSilent)


def test_what_comes_shortly_before_the_deadline_is_read(ends: tuple[Channel, Peer], clock: Clock) -> None:
    channel, peer = ends
    hold = Hold()
    request = channel.ask(hold, ASK)
    peer.send(Hit(), peer.receive()[0])
    assert channel.wait(hold, request, clock.now + 0.001) == Hit()
    hold.end()


def test_whatever_comes_is_a_sign_of_life(ends: tuple[Channel, Peer], clock: Clock) -> None:
    channel, peer = ends
    hold = Hold()
    request = channel.ask(hold, ASK)
    number, _ = peer.receive()
    clock.now += PING_AFTER
    channel.check_liveness()
    clock.now += LIVENESS_TIMEOUT
    peer.send(Hit(), number)
    assert channel.wait(hold, request, None) == Hit()
    hold.end()
    channel.check_liveness()
    clock.now += PING_AFTER
    channel.check_liveness()
    assert [peer.receive()[1] for _ in range(3)] == [Ping(), Cancel(), Ping()]
    assert channel.broken is None


def test_a_channel_that_was_closed_meanwhile_is_not_asked(ends: tuple[Channel, Peer]) -> None:
    channel, _ = ends
    channel._heard -= 10 * LIVENESS_TIMEOUT
    channel._pinged = True
    channel.close("by another")
    channel.check_liveness()
    assert str(channel.broken) == "by another"
    assert channel._poll(select.POLLIN, PATIENCE)  # there is nothing to wait for


@pytest.mark.parametrize("fails", [True, False])
def test_what_has_come_is_looked_for_and_not_waited_for(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    channel, _ = ends
    looks: list[tuple[int, float]] = []

    def poll(*look: Any) -> bool:
        looks.append(look)
        if fails:  # its number is another file's by now
            raise ValueError
        return False

    monkeypatch.setattr(channel, "_poll", poll)
    channel._heard -= LIVENESS_TIMEOUT
    channel._pinged = True
    channel.check_liveness()
    assert looks == [(select.POLLIN, 0.0)]
    assert isinstance(channel.broken, CoordinatorSilent)


def test_what_broke_it_first_is_what_is_told(ends: tuple[Channel, Peer]) -> None:
    channel, _ = ends
    channel.close()
    channel.close("again")
    with pytest.raises(CoordinatorUnavailable, match="^the channel was closed$"):
        channel.request(ASK)


def test_a_wait_takes_its_time(ends: tuple[Channel, Peer]) -> None:
    channel, _ = ends
    begin = time.monotonic()
    assert not channel._poll(select.POLLIN, 0.05)
    assert time.monotonic() - begin >= 0.05
    assert channel._poll(select.POLLOUT, PATIENCE)


# ---- Sockets that wait in their own way


class Patched(socket.socket):
    """As gevent's: of another module, and never to wait in the kernel."""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each time that a channel received: whether it waited."""
    waits: list[bool] = []
    receive = Channel.receive

    def noting(channel: Channel, wait: bool) -> int:
        waits.append(wait)
        return receive(channel, wait)

    monkeypatch.setattr(Channel, "receive", noting)
    return waits


@pytest.mark.parametrize("there", [True, False])
def test_a_patched_socket_is_polled(waits: list[bool], monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    ours, theirs = socket.socketpair()
    channel, peer, hold = Channel(Patched(fileno=ours.detach())), Peer(theirs), Hold()
    request = channel.ask(hold, ASK)
    number, _ = peer.receive()
    polled: list[tuple[int, float]] = []

    def poll(events: int, seconds: float) -> bool:
        polled.append((events, seconds))
        peer.send(Hit(), number)
        return True

    monkeypatch.setattr(channel, "_poll", poll)
    if there:
        peer.send(Hit(), number)
    assert channel.wait(hold, request, None) == Hit()
    assert polled == ([] if there else [(select.POLLIN, PING_AFTER)])
    assert waits == ([False] if there else [False, False])
    hold.end()
    channel.close()
    theirs.close()


def test_a_plain_socket_waits_in_the_kernel(ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told for how long where that changes."""
    channel, peer = ends
    told: list[float] = []
    monkeypatch.setattr(channel, "_poll", lambda *_: pytest.fail("a poll"))
    set_timeout = Channel.set_timeout
    monkeypatch.setattr(Channel, "set_timeout", lambda channel, s: [told.append(s), set_timeout(channel, s)])
    for _ in range(2):
        results: list[object] = []
        thread = in_thread(channel, results)
        peer.send(Hit(), peer.receive()[0])
        thread.join(PATIENCE)
        assert results == [Hit()]
    assert told == [PING_AFTER]


def test_the_last_part_of_a_wait_is_a_poll(
    ends: tuple[Channel, Peer], waits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, _ = ends
    told: list[float] = []
    polled: list[tuple[int, float]] = []
    set_timeout = Channel.set_timeout
    monkeypatch.setattr(Channel, "set_timeout", lambda channel, s: [told.append(s), set_timeout(channel, s)])
    monkeypatch.setattr(channel, "_poll", lambda *look: polled.append(look))
    assert channel._receive(COARSE + 0.05) == channel._receive(COARSE) == -1
    assert told == [pytest.approx(0.05)]
    assert polled == [(select.POLLIN, COARSE)]
    assert waits == [True, False]


def test_one_who_sleeps_does_so_until_his_deadline(ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    channel, _ = ends
    reader = Hold()
    assert reader.read(channel)
    slept: list[float] = []
    make_lock = threading.Lock

    class Lock:
        def __init__(self) -> None:
            self._lock = make_lock()
            self.release = self._lock.release

        def acquire(self, timeout: float = -1.0) -> bool:
            slept.append(timeout)
            return self._lock.acquire(timeout=timeout)

    monkeypatch.setattr(channel_module, "threading", SimpleNamespace(Lock=Lock))
    with pytest.raises(DeadlineExceeded):
        channel.request(ASK, time.monotonic() + 0.1)
    assert slept[0] == -1.0  # which makes it one to sleep on
    assert 0.0 < slept[1] <= 0.1
    reader.end()


# ---- Loops


def test_a_loop_watches_for_as_long_as_one_of_its_coroutines_waits(ends: tuple[Channel, Peer]) -> None:
    channel, _ = ends

    async def run() -> None:
        loop = asyncio.get_running_loop()
        channel.watch_from(loop)
        channel.watch_from(loop)
        assert channel._loops == {loop: 2}
        channel.unwatch_from(loop)
        assert channel._loops == {loop: 1}
        channel.close()
        assert channel.fileno() >= 0  # it is watched
        channel.unwatch_from(loop)
        assert channel._loops == {}
        assert channel.fileno() == -1

    asyncio.run(run())


def test_a_loop_does_not_wait(ends: tuple[Channel, Peer], waits: list[bool]) -> None:
    channel, _ = ends
    channel._read_ready()
    assert waits == [False]
    assert channel.broken is None


def test_a_loop_leaves_reading_to_a_thread_that_does(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    reader, hold = Hold(), Hold()
    assert reader.read(channel)
    request = channel.ask(hold, ASK)
    peer.send(Hit(), peer.receive()[0])
    channel._read_ready()
    assert request.answer is None
    reader.end()
    channel._read_ready()
    assert request.answer == Hit()
    hold.end()
