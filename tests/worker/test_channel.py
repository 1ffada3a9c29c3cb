"""The call channel against a coordinator that the test plays."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from workers import wait_until

from mpgroupcache import CoordinatorUnavailable, DeadlineExceeded
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.frame import Decoder, encode
from mpgroupcache.ipc.messages import Ask, Cancel, Hit, Message, Origin, Ping, Pong, Value
from mpgroupcache.worker import channel as channel_module
from mpgroupcache.worker.channel import Channel

ASK = Ask(1, b"key", (), False, False)
LARGE = bytes(100_000)


class Peer:
    """The coordinator's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(10)
        self._decoder = Decoder()

    def receive(self) -> tuple[int, Message]:
        while (frame := next(iter(self._decoder), None)) is None:
            self._decoder.feed(self.sock.recv(4096))
        return frame

    def send(self, message: Message, request_id: int = 0) -> None:
        self.sock.sendall(encode(message, request_id))

    def send_large(self, request_id: int) -> None:
        fd = memfd.make(LARGE)
        self.sock.sendmsg([encode(Value(len(LARGE), Origin.CACHE), request_id)], memfd.passed(fd))
        os.close(fd)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Peer]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, Peer(theirs)
    channel.close()
    theirs.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def in_thread(channel: Channel, results: list[object], deadline: float | None = None) -> threading.Thread:
    def run() -> None:
        try:
            results.append(channel.request(ASK, deadline).message)
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_reader_hands_on(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    results: list[object] = []
    threads = [in_thread(channel, results) for _ in range(5)]
    for number in [peer.receive()[0] for _ in threads]:
        peer.send(Hit(), number)
    for thread in threads:
        thread.join(10)
    assert results == [Hit()] * 5


def test_one_who_gives_up_when_it_is_his_turn_to_read_passes_it_on(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A reads. 2. B and C wait. 3. A has its answer and rouses B. 4. B's deadline has passed: it reads no more."""
    channel, peer = ends
    monkeypatch.setattr(channel_module, "PING_AFTER", 30.0)  # nobody looks on his own meanwhile
    results: list[object] = []
    first = in_thread(channel, results)
    numbers = [peer.receive()[0]]
    wait_until(channel._reading.locked)
    second = in_thread(channel, results, time.monotonic() + 0.3)
    numbers.append(peer.receive()[0])
    third = in_thread(channel, results)
    numbers.append(peer.receive()[0])
    give_up = channel._give_up
    turn = threading.Event()

    def late(request_id: int, pending: channel_module._Pending) -> None:
        peer.send(Hit(), numbers[0])  # A ends now, and rouses B, who has ceased to wait
        first.join(10)
        turn.set()
        give_up(request_id, pending)

    monkeypatch.setattr(channel, "_give_up", late)
    assert turn.wait(10)
    second.join(10)
    assert peer.receive() == (numbers[1], Cancel())
    peer.send(Hit(), numbers[2])
    third.join(5)
    assert not third.is_alive()
    assert [type(result) for result in results] == [Hit, DeadlineExceeded, Hit]


@pytest.mark.parametrize("when", ["before the reader takes it", "after"])
def test_the_descriptor_of_an_answer_that_nobody_waits_for_is_closed(ends: tuple[Channel, Peer], when: str) -> None:
    channel, peer = ends
    request_id, pending = channel._begin(ASK)
    peer.receive()

    def give_up() -> None:
        other = threading.Thread(target=channel._give_up, args=(request_id, pending))
        other.start()
        other.join(10)

    class Crossed(dict):  # type: ignore[type-arg]
        """The caller gives up in the middle of the delivery."""

        def pop(self, *args: object) -> object:
            if threading.current_thread() is not reader:
                return super().pop(*args)
            if when == "before the reader takes it":
                give_up()
            popped = super().pop(*args)
            if when == "after":
                give_up()
            return popped

    channel._pending = Crossed(channel._pending)
    before = descriptors()
    peer.send_large(request_id)

    def read() -> None:
        with channel._reading:
            channel._read(1.0)

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(10)
    assert descriptors() == before


def test_a_process_that_was_busy_does_not_blame_the_coordinator(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    channel._begin(ASK)
    channel._heard -= channel_module.PING_AFTER
    channel._check_liveness()
    assert [peer.receive()[1] for _ in range(2)] == [ASK, Ping()]
    peer.send(Pong())
    channel._heard -= channel_module.LIVENESS_TIMEOUT  # nobody has looked for so long
    channel._check_liveness()
    assert channel.broken is None


def test_a_silent_coordinator_is_left(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    begin = time.monotonic()
    with pytest.raises(CoordinatorUnavailable, match="silent"):
        channel.request(ASK)
    assert time.monotonic() - begin < 2 * channel_module.LIVENESS_TIMEOUT
    assert [peer.receive()[1] for _ in range(2)] == [ASK, Ping()]


def test_a_channel_that_breaks_before_its_loop_watches_it(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, _ = ends
    watch = channel._watch

    def break_first(loop: asyncio.AbstractEventLoop) -> None:
        channel.close("broken by another thread")
        watch(loop)

    monkeypatch.setattr(channel, "_watch", break_first)
    with pytest.raises(CoordinatorUnavailable, match="by another thread"):
        asyncio.run(channel.request_async(ASK))
    assert channel._pending == {}
    assert channel._receiver.fileno() == -1


def test_closing_while_a_thread_and_a_loop_wait(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    results: list[object] = []
    thread = in_thread(channel, results)
    peer.receive()

    async def run() -> None:
        waiting = asyncio.create_task(channel.request_async(ASK))
        await asyncio.sleep(0)
        threading.Thread(target=channel.close).start()
        with pytest.raises(CoordinatorUnavailable):
            await waiting

    asyncio.run(run())
    thread.join(10)
    assert isinstance(results[0], CoordinatorUnavailable)
    wait_until(lambda: channel._receiver.fileno() == channel._sock.fileno() == -1)
