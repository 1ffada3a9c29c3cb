"""The call channel against a coordinator that the test plays."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from playing import ASK, Peer, in_thread
from workers import PATIENCE, wait_until

from mpgroupcache import CoordinatorUnavailable
from mpgroupcache.ipc.fields import INLINE_BYTES
from mpgroupcache.ipc.frame import encode
from mpgroupcache.ipc.messages import Cancel, Hit, Message, Ping, Pong, Store, Value
from mpgroupcache.shm._exchange import Request
from mpgroupcache.shm._hold import Hold
from mpgroupcache.worker import channel as channel_module
from mpgroupcache.worker import loops
from mpgroupcache.worker.channel import Channel
from mpgroupcache.worker.waits import Flush


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def on_loop(channel: Channel) -> Message:
    hold = Hold()
    try:
        answer: Message = await loops._wait(channel.ask(hold, ASK))
        return answer
    finally:
        hold.end()


def test_a_reader_hands_on(ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """1. One reads, and the others sleep. 2. It has its answer, and wakes another. 3. That one has the next answer."""
    channel, peer = ends
    monkeypatch.setattr(channel_module, "PING_AFTER", 10 * PATIENCE)  # nobody looks on his own meanwhile
    holds = [Hold() for _ in range(5)]
    requests = [channel.ask(hold, ASK) for hold in holds]
    numbers = [peer.receive()[0] for _ in requests]

    def wait(hold: Hold, request: Request) -> Message:
        answer: Message = channel.wait(hold, request, None)
        hold.end()
        return answer

    with ThreadPoolExecutor(5) as pool:
        try:
            waiting = [pool.submit(wait, hold, request) for hold, request in zip(holds, requests, strict=True)]
            wait_until(lambda: sum(request.wake is not None for request in requests) == 4, "four that sleep")
            for number in numbers:
                peer.send(Hit(), number)
                assert waiting[number - 1].result(PATIENCE) == Hit()
        finally:
            channel.close()


def test_one_who_gives_up_when_it_is_his_turn_to_read_passes_it_on(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A reads. 2. B and C wait. 3. A has its answer and wakes B. 4. B has given up: it reads no more."""
    channel, peer = ends
    monkeypatch.setattr(channel_module, "PING_AFTER", 30.0)  # nobody looks on his own meanwhile
    results: list[object] = []
    first = in_thread(channel, results)
    numbers = [peer.receive()[0]]
    second = Hold()
    request = channel.ask(second, ASK)
    request.wake = threading.Lock().release  # as one who sleeps
    numbers.append(peer.receive()[0])
    third = in_thread(channel, results)
    numbers.append(peer.receive()[0])
    peer.send(Hit(), numbers[0])
    first.join(10)
    second.end()
    assert peer.receive() == (numbers[1], Cancel())
    peer.send(Hit(), numbers[2])
    third.join(5)
    assert not third.is_alive()
    assert results == [Hit(), Hit()]


def test_what_an_answer_brings_to_one_who_gives_up_is_closed(ends: tuple[Channel, Peer]) -> None:
    """Before it is read, before it is taken, or with it."""
    channel, peer = ends
    before = descriptors()
    for read_first in (True, False):
        hold = Hold()
        request = channel.ask(hold, ASK)
        number, _ = peer.receive()
        peer.send_large(number)
        if read_first:
            assert isinstance(channel.wait(hold, request, None), Value)
            assert descriptors() == before + 1
        hold.end()
        assert peer.receive() == (number, Cancel())
        del request
    results: list[object] = []
    reader = in_thread(channel, results)  # who reads what came for the second, and drops it
    peer.send(Hit(), peer.receive()[0])
    reader.join(10)
    assert results == [Hit()]
    assert descriptors() == before


def test_what_was_read_and_not_delivered_is_the_next_readers(ends: tuple[Channel, Peer]) -> None:
    """1. A reads two answers, of which one is B's. 2. It is struck before it has delivered them."""
    channel, peer = ends
    first, second = Hold(), Hold()
    asked = [channel.ask(hold, ASK) for hold in (first, second)]
    for _ in asked:
        peer.send(Hit(), peer.receive()[0])
    assert first.read(channel)
    wait_until(lambda: channel.receive(False) > 0, "answers")
    first.end()
    assert channel.wait(second, asked[1], time.monotonic() + 10) == Hit()
    second.end()
    assert len(channel) == 0


def test_a_process_that_was_busy_does_not_blame_the_coordinator(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    hold = Hold()
    channel.ask(hold, ASK)
    channel._heard -= channel_module.PING_AFTER
    channel.check_liveness()
    assert [peer.receive()[1] for _ in range(2)] == [ASK, Ping()]
    peer.send(Pong())
    channel._heard -= channel_module.LIVENESS_TIMEOUT  # nobody has looked for so long
    channel.check_liveness()
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
    watch = channel.watch_from

    def break_first(loop: asyncio.AbstractEventLoop) -> None:
        channel.close("broken by another thread")
        watch(loop)

    monkeypatch.setattr(channel, "watch_from", break_first)
    with pytest.raises(CoordinatorUnavailable, match="by another thread"):
        asyncio.run(on_loop(channel))
    assert len(channel) == 0
    assert channel.fileno() == -1


def test_closing_while_a_thread_and_a_loop_wait(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    results: list[object] = []
    thread = in_thread(channel, results)
    peer.receive()

    async def run() -> None:
        waiting = asyncio.create_task(on_loop(channel))
        await asyncio.sleep(0)
        threading.Thread(target=channel.close).start()
        with pytest.raises(CoordinatorUnavailable):
            await waiting

    asyncio.run(run())
    thread.join(10)
    assert isinstance(results[0], CoordinatorUnavailable)
    wait_until(lambda: channel.fileno() == -1)


@pytest.mark.parametrize("on", ["a thread", "a loop"])
def test_a_socket_that_is_full(ends: tuple[Channel, Peer], on: str) -> None:
    """What was sent stays whole and in order, a loop goes on meanwhile, and a deaf coordinator is left."""
    channel, peer = ends
    store = Store(1, bytes(INLINE_BYTES), False, None, None, None, False)
    while not channel.waiting:
        channel.post(encode(store))
    last = Hold()
    channel.ask(last, ASK)

    def read() -> list[Message]:
        received = []
        while not received or received[-1] != ASK:
            received.append(peer.receive()[1])
        return received

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        if on == "a thread":
            channel.drain(None)
        else:
            asyncio.run(loops._wait(Flush(channel)))
        assert set(map(type, reading.result(10)[:-1])) == {Store}
    assert channel.waiting == 0
    last.end()
    while not channel.waiting:
        channel.post(encode(store))
    if on == "a thread":
        channel.drain(None)
    else:
        asyncio.run(loops._wait(Flush(channel)))
    assert isinstance(channel.broken, channel_module.CoordinatorSilent)
    assert str(channel.broken) == "the coordinator took nothing of what was sent to it for 2 s"


def test_a_request_that_is_dropped_while_a_frame_is_half_sent_comes_behind_it(ends: tuple[Channel, Peer]) -> None:
    """Before 3.12 the collector may run where what is left of the frame is noted, and drop a request there."""
    channel, peer = ends
    whole = b"B" * 1_000_000  # not one of these bytes is a CANCEL's
    received = b""
    peer.sock.settimeout(0)

    def read() -> bytes:
        try:
            return peer.sock.recv(1 << 20)
        except BlockingIOError:
            return b""

    thresholds, post = gc.get_threshold(), channel.post
    gc.disable()
    try:
        hold = Hold()
        channel.ask(hold, ASK)
        cycle: list[object] = [hold]
        cycle.append(cycle)
        del hold, cycle
        kept = [(number,) * 3 for number in range(5000)]  # so that the next tuple of three is made anew
        gc.set_threshold(1)
        gc.enable()
        post(whole)
    finally:
        gc.enable()
        gc.set_threshold(*thresholds)
    while channel.waiting:
        received += read()
        channel.send_on()
    while more := read():
        received += more
    assert whole in received
    assert len(kept) == 5000


def test_a_channel_that_is_closed_while_it_is_full(ends: tuple[Channel, Peer]) -> None:
    """By the service thread, which hears first that the coordinator is gone: whoever drains it goes on."""
    channel, _ = ends
    while not channel.waiting:
        channel.post(encode(Store(1, bytes(INLINE_BYTES), False, None, None, None, False)))
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(channel.drain, None)
        channel.close("as if the coordinator had")
        assert draining.result(10) is None
