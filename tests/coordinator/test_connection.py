"""The coordinator's end of a connection: what goes out together, and in which order. Each send makes a packet here."""

from __future__ import annotations

import contextlib
import os
import socket
from array import array
from collections.abc import Callable, Iterator

import pytest

from mpgroupcache.coordinator.connection import CORKED_BYTES, Connection, Cork, Handlers
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.fields import INLINE_BYTES
from mpgroupcache.ipc.frame import Decoder
from mpgroupcache.ipc.messages import Lease, Message, Origin, Ping, Pong, Value

SIZE = INLINE_BYTES + 1


class Loop:
    """As much of an event loop as a connection needs."""

    def __init__(self) -> None:
        self.writer: Callable[[], None] | None = None

    def add_writer(self, _: int, callback: Callable[[], None]) -> None:
        self.writer = callback

    def remove_writer(self, _: int) -> None:
        self.writer = None

    def remove_reader(self, _: int) -> None:
        pass


class End:
    """A connection, and the worker's end of it."""

    def __init__(self, cork: Cork) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(0)
        self.loop = Loop()
        self.connection = Connection(ours, self.loop, cork, Handlers("test", {}))  # type: ignore[arg-type]

    def close(self) -> None:
        self.connection.close()
        self.sock.close()

    def received(self, most: int = 1000) -> list[tuple[list[Message], int]]:
        """Of each packet that has come: its messages, and how many descriptors it brought. The end is an empty one."""
        packets: list[tuple[list[Message], int]] = []
        with contextlib.suppress(BlockingIOError):
            while len(packets) < most and packets[-1:] != [([], 0)]:
                data, ancillary, _, _ = self.sock.recvmsg(1 << 20, memfd.ANCILLARY_BYTES)
                fds = array("i")
                for _, _, passed in ancillary:
                    fds.frombytes(passed)
                for fd in fds:
                    os.close(fd)
                decoder = Decoder()
                decoder.feed(data)
                packets.append(([message for _, message in decoder], len(fds)))
        return packets


@pytest.fixture
def cork() -> Cork:
    return Cork()


@pytest.fixture
def make(cork: Cork) -> Iterator[Callable[[], End]]:
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(End(cork)))


Make = Callable[[], End]


def test_what_is_sent_while_the_cork_is_in_goes_out_at_once_for_each_connection(cork: Cork, make: Make) -> None:
    a, b, idle = make(), make(), make()
    with cork:
        for number in range(1, 4):
            a.connection.send(Lease(number, 1), number)
        b.connection.send(Pong(), 9)
        assert a.received() == b.received() == []
    assert a.received() == [([Lease(1, 1), Lease(2, 1), Lease(3, 1)], 0)]
    assert b.received() == [([Pong()], 0)]
    assert idle.received() == []
    with cork:
        pass
    assert a.received() == []


def test_what_is_sent_while_no_read_is_handled_goes_out_by_itself(make: Make) -> None:
    a = make()
    a.connection.send(Ping())
    a.connection.send(Lease(1, 1))
    assert a.received() == [([Ping()], 0), ([Lease(1, 1)], 0)]


def test_descriptors_keep_their_places(cork: Cork, make: Make) -> None:
    a = make()
    fd = memfd.make(bytes(SIZE))
    large = Value(SIZE, Origin.FLIGHT, None, None)
    with cork:
        a.connection.send(Lease(1, 1))
        a.connection.send(Lease(2, 1))
        a.connection.send(large, 3, fd)
        a.connection.send(Lease(4, 1))
        a.connection.send(large, 5, fd)
    os.close(fd)
    assert a.received() == [([Lease(1, 1), Lease(2, 1)], 0), ([large], 1), ([Lease(4, 1)], 0), ([large], 1)]


def test_no_more_is_kept_than_is_worth_it(cork: Cork, make: Make) -> None:
    a = make()
    small = Value(bytes(CORKED_BYTES // 4), Origin.CACHE, None, None)
    large = Value(bytes(CORKED_BYTES), Origin.CACHE, None, None)
    with cork:
        for message in (small, small, small, small, small, large, small):
            a.connection.send(message)
    assert [packet for packet, _ in a.received()] == [[small] * 3, [small], [small], [large], [small]]


def test_the_end_comes_after_what_was_sent(cork: Cork, make: Make) -> None:
    a, b = make(), make()
    with cork:
        a.connection.send(Lease(1, 1))
        a.connection.end()
    assert a.received() == [([Lease(1, 1)], 0), ([], 0)]
    value = Value(bytes(INLINE_BYTES), Origin.CACHE, None, None)
    sent = 0
    while b.connection.flushed:
        b.connection.send(value)
        sent += 1
    b.connection.end()
    for _ in range(sent):
        assert b.received(1) == [([value], 0)]
        if b.loop.writer is not None:
            b.loop.writer()
    assert b.received() == [([], 0)]


def test_a_connection_that_is_closed_meanwhile_sends_nothing(cork: Cork, make: Make) -> None:
    a, b = make(), make()
    with cork:
        a.connection.send(Lease(1, 1))
        a.connection.close()
        a.connection.send(Lease(2, 1))
        b.connection.send(Lease(3, 1))
    assert b.received() == [([Lease(3, 1)], 0)]
    assert a.sock.recv(1 << 16) == b""


def test_what_does_not_fit_goes_out_in_order_when_the_worker_reads(cork: Cork, make: Make) -> None:
    a = make()
    value = Value(bytes(CORKED_BYTES // 2), Origin.CACHE, None, None)
    sent: list[Message] = []
    while a.connection.flushed:
        with cork:
            for message in (Lease(len(sent) + 1, 1), value):
                a.connection.send(message)
                sent.append(message)
    with cork:
        a.connection.send(Ping())
    sent.append(Ping())
    got: list[Message] = []
    while len(got) < len(sent):
        got += [message for packet, _ in a.received() for message in packet]
        if a.loop.writer is not None:
            a.loop.writer()
    assert got == sent
    assert a.connection.flushed
