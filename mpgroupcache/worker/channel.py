"""A worker's call channel: requests of any number of threads, greenlets and event loops over one connection.

Whoever waits reads. A thread that waits for its answer takes the reading lock if it is free and reads for everybody;
the others sleep. When the reader has its own answer it wakes one of those to read on. Against a reader thread that
saves a switch between threads on every request, which is most of the time that a request takes.

Guarantees: a request ends with its answer, with ``DeadlineExceeded``, or with ``CoordinatorUnavailable`` within
``LIVENESS_TIMEOUT`` of the coordinator's last sign of life.
This code assumes that a channel is used in the process that made it (the process's state is made anew in a child).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from mpgroupcache.errors import CoordinatorUnavailable, DeadlineExceeded, ProtocolError
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.frame import Decoder, encode
from mpgroupcache.ipc.messages import Cancel, Message, Ping

LIVENESS_TIMEOUT = 2.0  # s; longer than any stall of a healthy coordinator, short enough for a request to wait out
PING_AFTER = LIVENESS_TIMEOUT / 2  # s of silence while somebody waits
DONT_WAIT = int(socket.MSG_DONTWAIT)
READ_BYTES = 128 << 10  # a frame with an inline value fits


def _set_timeout(sock: socket.socket, direction: int, seconds: float) -> None:
    """Bound what one system call waits.

    By the kernel, where the socket is Python's own: its timeouts cost a ``poll`` in front of every call. A socket that
    was patched (gevent's) waits in its own way, and never in the kernel.
    """
    if type(sock).__module__ == "socket":
        sock.settimeout(None)
        whole, fraction = divmod(max(seconds, 1e-3), 1.0)  # 0 would be: for ever
        sock.setsockopt(socket.SOL_SOCKET, direction, struct.pack("@ll", int(whole), int(fraction * 1e6)))
    else:
        sock.settimeout(seconds)


class CoordinatorSilent(CoordinatorUnavailable):
    """There is a coordinator, which does not answer: it is stopped, or stalled. To find that out takes its time."""


class Answer(Struct, frozen=True):
    """A message, and the descriptor that came with it; that is the receiver's to close."""

    message: Message
    fd: int


class _Pending:
    """A request that waits for its answer."""

    __slots__ = ("answer", "done", "wake")

    def __init__(self, done: Callable[[], None] | None) -> None:
        self.answer: Answer | None = None
        self.done = done  # an event loop's request: called, by whoever reads, when the answer is there
        self.wake = threading.Lock()
        self.wake.acquire()

    def rouse(self) -> None:
        """Let the thread that sleeps on this look again. Roused twice is roused once."""
        if self.done is not None:
            self.done()
        else:
            try:  # noqa: SIM105 - suppress() costs more than all the rest of this
                self.wake.release()
            except RuntimeError:
                pass  # already roused


class Channel:
    """One connection. Raises ``CoordinatorUnavailable`` from every method once it is broken."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock  # sends
        self._receiver = sock.dup()  # of the same connection; its timeout changes while others send
        _set_timeout(self._sock, socket.SO_SNDTIMEO, LIVENESS_TIMEOUT)
        _set_timeout(self._receiver, socket.SO_RCVTIMEO, PING_AFTER)
        self._timeout = PING_AFTER
        self._sending = threading.Lock()
        self._reading = threading.Lock()  # its holder reads for all
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._decoder = Decoder()
        self._fds = memfd.Received()
        self._watching = threading.Lock()  # guards the next, so that no loop begins to watch what is being closed
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}  # and how many coroutines of each wait
        self._heard = time.monotonic()
        self._pinged = False
        self.broken: CoordinatorUnavailable | None = None

    def close(
        self, reason: str = "the channel was closed", kind: type[CoordinatorUnavailable] = CoordinatorUnavailable
    ) -> None:
        """Break the connection; every request that waits raises ``CoordinatorUnavailable``."""
        if self.broken is None:
            self.broken = kind(reason)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        for pending in list(self._pending.values()):
            pending.rouse()
        self._close_sockets()

    def abandon(self) -> None:
        """In a forked child: close the descriptors alone. Locks are as the parent's threads had them, and not taken."""
        self.broken = CoordinatorUnavailable("the channel is the parent process's")
        for sock in (self._sock, self._receiver):
            with contextlib.suppress(OSError):
                os.close(sock.detach())  # close() would tell gevent's event loop, which is the parent's
        self._fds.close()

    def _close_sockets(self) -> None:
        """Close a broken channel's descriptors once nobody reads or watches them; the last one who did calls this.

        Closed earlier, their numbers could be another file's while somebody still uses them.
        """
        with self._watching:
            if self._loops or not self._reading.acquire(blocking=False):
                return
        # The lock is kept: nobody reads again.
        with self._sending:
            self._sock.close()
        self._receiver.close()
        self._fds.close()

    def _stop_reading(self) -> None:
        self._reading.release()
        if self.broken is not None:
            self._close_sockets()
        self._rouse_next_reader()

    # ---- Sending

    def send(self, message: Message, request_id: int = 0, fd: int = -1) -> None:
        """Send one frame, with a descriptor that stays the caller's."""
        frame = encode(message, request_id)
        if self.broken is not None:
            raise self.broken
        try:
            with self._sending:
                if fd >= 0:
                    sent = self._sock.sendmsg([frame], memfd.passed(fd))
                    self._sock.sendall(frame[sent:])
                else:
                    self._sock.sendall(frame)
        except OSError as error:  # a timeout too: what of the frame is out cannot be taken back
            kind = CoordinatorSilent if isinstance(error, TimeoutError | BlockingIOError) else CoordinatorUnavailable
            self.close(f"sending to the coordinator: {error}", kind)
            assert self.broken is not None
            raise self.broken from error
        except BaseException:  # of a signal's handler, or a killed greenlet: perhaps half of the frame is out
            self.close("a frame was cut off")
            raise

    def _begin(self, message: Message, done: Callable[[], None] | None = None) -> tuple[int, _Pending]:
        pending = _Pending(done)
        request_id = next(self._ids) & 0xFFFFFFFF  # that many requests are never under way at once
        self._pending[request_id] = pending
        try:
            self.send(message, request_id)
        except BaseException:
            self._pending.pop(request_id, None)
            raise
        return request_id, pending

    def _give_up(self, request_id: int, pending: _Pending) -> None:
        """Stop waiting. An answer that crosses is dropped by whoever reads it; this gives a lease in it back."""
        if self._pending.pop(request_id, None) is None and pending.answer is not None and pending.answer.fd >= 0:
            os.close(pending.answer.fd)
        if self.broken is None:
            with contextlib.suppress(CoordinatorUnavailable):
                self.send(Cancel(), request_id)
        self._rouse_next_reader()  # perhaps it was this one that had been roused to read

    # ---- Waiting, in a thread or greenlet

    def request(self, message: Message, deadline: float | None = None) -> Answer:
        """Send a request and return its answer. ``deadline``: of ``time.monotonic()``; then ``DeadlineExceeded``."""
        request_id, pending = self._begin(message)
        try:
            while pending.answer is None:
                if self._reading.acquire(blocking=False):
                    try:
                        self._read_until(pending, deadline)
                    finally:
                        self._stop_reading()
                elif self.broken is None:
                    # Roused with the answer, or to read. A newcomer may take the lock first: then it rouses us again.
                    left = PING_AFTER if deadline is None else min(PING_AFTER, deadline - time.monotonic())
                    if left > 0:
                        pending.wake.acquire(timeout=left)
                if pending.answer is None:
                    if self.broken is not None:
                        raise self.broken
                    if deadline is not None and time.monotonic() >= deadline:
                        raise DeadlineExceeded("get: the timeout passed while another caller loads; the load goes on")
        except BaseException:
            self._give_up(request_id, pending)
            raise
        return pending.answer

    def _read_until(self, pending: _Pending, deadline: float | None) -> None:
        """Read for everybody until ``pending`` has its answer or its deadline has passed."""
        while pending.answer is None and self.broken is None:
            if deadline is None:
                self._read(PING_AFTER)
            elif (left := deadline - time.monotonic()) > 0:
                self._read(min(PING_AFTER, left))
            else:
                return

    def _rouse_next_reader(self) -> None:
        """The interleaving that this ends: the others found the lock taken and sleep, and their reader leaves.

        Whoever began before the lock was released is seen here; whoever begins later finds it free. A request of an
        event loop needs no rousing: its loop watches the socket.
        """
        for pending in list(self._pending.values()):
            if pending.done is None and pending.answer is None:
                pending.rouse()
                return

    # ---- Reading; the caller holds the reading lock

    def _read(self, timeout: float) -> None:
        flags = memfd.RECEIVE_FLAGS
        try:
            if timeout <= 0.0:
                flags |= DONT_WAIT
            elif timeout != self._timeout:
                self._timeout = timeout
                _set_timeout(self._receiver, socket.SO_RCVTIMEO, timeout)
            count, ancillary, flags, _ = self._receiver.recvmsg_into([self._buffer], memfd.ANCILLARY_BYTES, flags)
        except (TimeoutError, BlockingIOError):
            self._check_liveness()
            return
        except OSError as error:
            self.close(f"reading from the coordinator: {error}")
            return
        if ancillary:
            self._fds.add(ancillary)
        if count == 0 or flags & memfd.TRUNCATED:
            self.close("the coordinator closed the connection" if count == 0 else "out of file descriptors")
            return
        self._heard = time.monotonic()
        self._pinged = False
        try:
            self._decoder.feed(self._buffer[:count])
            for request_id, message in self._decoder:
                self._dispatch(request_id, Answer(message, self._fds.claim(message)))
        except ProtocolError as error:
            self.close(str(error))

    def _dispatch(self, request_id: int, answer: Answer) -> None:
        # The answer is there before the request is taken out: so of two that take it out, a reader and a caller that
        # gives up, the one that comes first leaves the descriptor to the other, who sees it.
        if (pending := self._pending.get(request_id)) is not None:
            pending.answer = answer
            if self._pending.pop(request_id, None) is not None:
                pending.rouse()
                return
        if answer.fd >= 0:
            os.close(answer.fd)

    def _check_liveness(self) -> None:
        """Ask a silent coordinator for a sign of life, and break the connection when none came."""
        silent = time.monotonic() - self._heard
        if silent >= LIVENESS_TIMEOUT and self._pinged:
            if not self._is_readable():  # else it is this process that was busy elsewhere
                self.close(f"the coordinator was silent for {silent:.1f} s", CoordinatorSilent)
        elif silent >= PING_AFTER and not self._pinged:
            self._pinged = True
            self._heard = time.monotonic() - PING_AFTER  # silence before anybody waited is not the coordinator's
            with contextlib.suppress(CoordinatorUnavailable):
                self.send(Ping())

    def _is_readable(self) -> bool:
        try:
            poll = select.poll()
            poll.register(self._receiver.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # closed meanwhile
            return False

    # ---- Waiting, on an event loop

    async def request_async(self, message: Message) -> Answer:
        """The same for a coroutine; its loop watches the socket for as long as it waits. Cancel it to stop waiting."""
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()

        def rouse() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(wake.set)

        request_id, pending = self._begin(message, rouse)
        try:
            self._watch(loop)
        except BaseException:
            self._give_up(request_id, pending)
            raise
        try:
            while pending.answer is None:
                if self.broken is not None:
                    raise self.broken
                timer = loop.call_later(PING_AFTER, self._watch_liveness, wake)
                try:
                    await wake.wait()
                finally:
                    timer.cancel()
                wake.clear()
        except BaseException:
            self._give_up(request_id, pending)
            raise
        finally:
            self._unwatch(loop)
        return pending.answer

    def _watch_liveness(self, wake: asyncio.Event) -> None:
        self._check_liveness()
        wake.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._watching:
            if self.broken is not None:
                raise self.broken
            watchers = self._loops.get(loop, 0)
            if watchers == 0:
                loop.add_reader(self._receiver.fileno(), self._read_ready)
            self._loops[loop] = watchers + 1

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._watching:
            self._loops[loop] -= 1
            if self._loops[loop] == 0:
                del self._loops[loop]
                loop.remove_reader(self._receiver.fileno())
        if self.broken is not None:
            self._close_sockets()

    def _read_ready(self) -> None:
        # A thread that reads holds the lock: it delivers our answers too.
        if self._reading.acquire(blocking=False):
            try:
                self._read(0.0)  # that thread may have been here since the loop looked
            finally:
                self._stop_reading()
