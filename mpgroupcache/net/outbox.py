"""What a TLS client has not read yet, where it can be counted.

A TLS transport encrypts whatever it is given at once, into the buffer of the transport below it, which nobody above it
can see: a large answer seems to be sent, and the client to be waited for. So it is given a slice at a time, and told to
pause the writer as soon as it holds anything back itself, which it does when the transport below is full.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

SLICE: Final = 64 << 10  # bytes; what the transport below buffers before it pauses the TLS layer


class Outbox:
    """The answers to one client, on their way to its transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._is_limited = False
        self._waiting: deque[memoryview] = deque()
        self._size = 0  # of them together
        self._paused = False

    @property
    def size(self) -> int:
        """Bytes that are held back, here or by the TLS layer."""
        return self._size + self._transport.get_write_buffer_size()

    @property
    def empty(self) -> bool:
        return not self._waiting

    def write(self, data: bytes) -> None:
        """Send this behind what is waiting."""
        if not self._is_limited:  # not before: what is left of the handshake would pause a writer that has not begun
            self._is_limited = True
            self._transport.set_write_buffer_limits(high=1, low=0)
        self._waiting.append(memoryview(data))
        self._size += len(data)
        if len(self._waiting) == 1:
            self._send()

    def pause(self) -> None:
        """The transport holds something back."""
        self._paused = True

    def resume(self) -> None:
        """It has passed all of it on."""
        self._paused = False
        self._send()

    def _send(self) -> None:
        while self._waiting and not self._paused:
            data = self._waiting.popleft()
            part, rest = data[:SLICE], data[SLICE:]
            self._size -= len(part)
            if rest:
                self._waiting.appendleft(rest)
            self._transport.write(part)
