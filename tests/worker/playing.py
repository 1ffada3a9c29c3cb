"""The coordinator's end of a connection, which a test plays."""

from __future__ import annotations

import os
import socket
import threading

from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.frame import Decoder, encode
from mpgroupcache.ipc.messages import Ask, Message, Origin, Value
from mpgroupcache.worker.channel import Channel

ASK = Ask(1, b"key", (), False, False, "get")
LARGE = bytes(100_000)


class Peer:
    """The coordinator's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(10)
        self.received = memfd.Received()  # descriptors
        self._decoder = Decoder()

    def receive(self) -> tuple[int, Message]:
        while (frame := next(iter(self._decoder), None)) is None:
            data, ancillary, _, _ = self.sock.recvmsg(4096, memfd.ANCILLARY_BYTES)
            if not data:
                raise EOFError
            self.received.add(ancillary)
            self._decoder.feed(data)
        return frame

    def send(self, message: Message, request_id: int = 0) -> None:
        self.sock.sendall(encode(message, request_id))

    def send_large(self, request_id: int) -> None:
        fd = memfd.make(LARGE)
        self.sock.sendmsg([encode(Value(len(LARGE), Origin.CACHE, None, None), request_id)], memfd.passed(fd))
        os.close(fd)


def in_thread(channel: Channel, results: list[object], deadline: float | None = None) -> threading.Thread:
    """Ask in a thread; ``results`` gets the answer, or the error."""

    def run() -> None:
        try:
            results.append(channel.request(ASK, deadline))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread
