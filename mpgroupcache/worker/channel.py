"""A worker's call channel: requests of any number of threads, greenlets and event loops over one connection.

Whoever waits reads. A thread that waits for its answer takes the right to read if nobody has it, and reads for
everybody; the others sleep. When the reader has its own answer another one is woken to read on. Against a reader thread
that saves a switch between threads on every request, which is most of the time that a request takes.

Guarantees: a request ends with its answer, with ``DeadlineExceeded``, or with ``CoordinatorUnavailable`` within
``LIVENESS_TIMEOUT`` of the coordinator's last sign of life. An exception that strikes anywhere costs nobody else
anything: what must not be done by halves is the base class's (shm/_exchange.pyx).
This code assumes that a channel is used in the process that made it (the process's state is made anew in a child).
"""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING, Any

from mpgroupcache.errors import CoordinatorUnavailable, DeadlineExceeded, ProtocolError
from mpgroupcache.ipc.frame import ID_AT, encode, read_frame
from mpgroupcache.ipc.messages import Answers, AskMany, Cancel, Message, Ping, answers_of
from mpgroupcache.shm._exchange import Descriptor, Exchange, Request
from mpgroupcache.shm._hold import Hold, guarded

if TYPE_CHECKING:
    import asyncio
    import socket

LIVENESS_TIMEOUT = 2.0  # s; longer than any stall of a healthy coordinator, short enough for a request to wait out
PING_AFTER = LIVENESS_TIMEOUT / 2  # s of silence while somebody waits
COARSE = 0.1  # s by which a socket's own timeout may be late: the kernel's timers for that have steps of up to 80 ms


class CoordinatorSilent(CoordinatorUnavailable):
    """There is a coordinator, which does not answer: it is stopped, or stalled. To find that out takes its time."""


class Channel(Exchange):
    """One connection. Raises ``CoordinatorUnavailable`` from its methods once it is ``broken``."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected socket's place."""
        # A patched one (gevent's) waits in its own way, and never in the kernel; so does this, then.
        self._cooperative = type(sock).__module__ != "socket"
        sock.setblocking(not self._cooperative)
        self._timeout: float | None = None  # of a wait in the kernel
        self._heard = time.monotonic()
        self._pinged = False
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}  # and how many coroutines of each wait
        self._watching = threading.Lock()  # guards those counts
        self.writers: dict[asyncio.AbstractEventLoop, asyncio.Future[None]] = {}  # for whom the socket is full
        self.open(sock.fileno(), encode(Cancel()), ID_AT)
        sock.close()

    def close(
        self, reason: str = "the channel was closed", kind: type[CoordinatorUnavailable] = CoordinatorUnavailable
    ) -> None:
        """Break the connection; every request that waits raises ``CoordinatorUnavailable``."""
        self.fail(kind(reason))

    # ---- Sending

    def ask(self, hold: Hold, message: Message, descriptor: Descriptor | None = None) -> Request:
        """Send a request, of which ``hold`` has the answer. Dropped, it is taken back."""
        request_id = self.take_ids(1)
        try:
            return hold.ask(self, request_id, encode(message, request_id), descriptor)
        except OSError as error:
            raise self._failed("sending to", error) from error

    def ask_many(self, hold: Hold, message: AskMany) -> list[Request]:
        """Send a request for many keys: what answers it, and then what answers each of them."""
        count = 1 + len(message.keys)
        first_id = self.take_ids(count)
        try:
            return hold.ask_many(self, first_id, count, encode(message, first_id))
        except OSError as error:
            raise self._failed("sending to", error) from error

    def send_on(self) -> None:
        """Send what the socket did not take at once, as far as it does now."""
        if error := self.flush():
            raise self._failed("sending to", OSError(error, "socket"))

    def drain(self, deadline: float | None) -> None:
        """Wait in a thread until the socket has taken everything, the deadline passes, or the coordinator is silent."""
        silent, waited = time.monotonic() + LIVENESS_TIMEOUT, self.waiting
        while self.waiting and self.broken is None:
            self.send_on()
            now = time.monotonic()
            if self.waiting < waited:
                silent, waited = now + LIVENESS_TIMEOUT, self.waiting
            elif deadline is not None and now >= deadline:
                return
            elif now >= silent:
                self.fail_silent("took nothing of what was sent to it")
            else:
                self._poll(select.POLLOUT, (silent if deadline is None else min(silent, deadline)) - now)

    def fail_silent(self, what: str) -> None:
        """Leave a coordinator that is there, and does nothing."""
        self.fail(CoordinatorSilent(f"the coordinator {what} for {LIVENESS_TIMEOUT:g} s"))

    def _failed(self, doing: str, error: OSError) -> Exception:
        self.close(f"{doing} the coordinator: {error}")
        return self.gone()

    # ---- Waiting, in a thread or greenlet

    def request(self, message: Message, deadline: float | None = None) -> Message:
        """Send a request and return its answer. ``deadline``: of ``time.monotonic()``; then ``DeadlineExceeded``."""
        answer: Message = guarded(self._request, message, deadline)
        return answer

    def _request(self, hold: Hold, message: Message, deadline: float | None) -> Message:
        request = self.ask(hold, message)
        answer: Message = self.wait(hold, request, deadline)
        request.settle()
        return answer

    def wait(self, hold: Hold, request: Request, deadline: float | None) -> Any:
        """Return the answer to a request, once it is there."""
        lock = None
        if self.waiting:
            self.drain(deadline)
        while (answer := request.answer) is None:
            if self.broken is not None:
                raise self.gone()
            if hold.read(self):  # for everybody
                if self.has_unread:  # an earlier reader was struck before that was delivered
                    self._deliver()
                while request.answer is None and self.broken is None:
                    if deadline is None:
                        self._read(PING_AFTER)
                    elif (left := deadline - time.monotonic()) > 0:
                        self._read(PING_AFTER if left > PING_AFTER + COARSE else left)
                    else:
                        break
                hold.stop_reading()
            elif lock is None:
                lock = threading.Lock()
                lock.acquire()
                request.wake = lock.release  # and look again: who left meanwhile saw nobody to wake
            else:
                # Woken with the answer, or to read. A newcomer may read first: then it wakes us again.
                left = PING_AFTER if deadline is None else min(PING_AFTER, deadline - time.monotonic())
                if left > 0:
                    lock.acquire(timeout=left)
            if request.answer is None and deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded
        return answer

    # ---- Reading; the caller's hold has the right to

    def _read(self, timeout: float) -> None:
        try:
            count = self.receive(True) if timeout == self._timeout else self._receive(timeout)
        except OSError as error:
            self.close(f"reading from the coordinator: {error}")
            return
        if count < 0:
            self.check_liveness()
        elif count == 0:
            self.close("the coordinator closed the connection")
        else:
            self._heard = time.monotonic()
            self._pinged = False
            self._deliver()

    def _receive(self, timeout: float) -> int:
        if self._cooperative or timeout <= COARSE:
            count = self.receive(False)
            if count < 0 and timeout > 0.0 and self._poll(select.POLLIN, timeout):
                count = self.receive(False)
            return count
        if timeout != PING_AFTER:
            timeout -= COARSE  # the rest of it is waited for by a poll, the next time
        self.set_timeout(timeout)
        self._timeout = timeout
        return self.receive(True)  # waits in the kernel: a poll in front of it costs a switch

    def _poll(self, events: int, seconds: float) -> bool:
        """Wait for the socket; under gevent, other greenlets run meanwhile."""
        if (fd := self.fileno()) < 0:  # it was closed meanwhile: whoever waits finds it broken
            return True
        poll = select.poll()
        poll.register(fd, events)
        return bool(poll.poll(max(seconds, 0.0) * 1e3))

    def _deliver(self) -> None:
        """Hand out the messages that are whole."""
        unread = self.unread()
        at = 0
        try:
            while at < len(unread) and (frame := read_frame(unread, at)) is not None:
                end, request_id, message = frame
                if type(message) is Answers:
                    for place, answer in answers_of(message):
                        self.deliver(0, request_id + 1 + place, answer, False)
                if not self.deliver(end - at, request_id, message, message.passes_descriptor):
                    raise ProtocolError(f"{type(message).__name__}: its descriptor did not come")
                at = end
        except ProtocolError as error:
            self.close(str(error))

    def check_liveness(self) -> None:
        """Ask a silent coordinator for a sign of life, and break the connection when none came."""
        silent = time.monotonic() - self._heard
        if silent >= LIVENESS_TIMEOUT and self._pinged:
            if not self._is_readable():  # else it is this process that was busy elsewhere
                self.fail(CoordinatorSilent(f"the coordinator was silent for {silent:.1f} s"))
        elif silent >= PING_AFTER and not self._pinged:
            self._pinged = True
            self._heard = time.monotonic() - PING_AFTER  # silence before anybody waited is not the coordinator's
            self.post(encode(Ping()))

    def _is_readable(self) -> bool:
        try:
            return self._poll(select.POLLIN, 0.0)
        except (OSError, ValueError):  # closed meanwhile
            return False

    # ---- Event loops watch the socket while one of their coroutines waits

    def watch_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have ``loop`` read, too. ``unwatch_from`` follows."""
        with self._watching:
            watchers = self._loops.get(loop, 0)
            if watchers == 0:
                loop.add_reader(self.watch(), self._read_ready)
            self._loops[loop] = watchers + 1

    def unwatch_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """One coroutine less."""
        with self._watching:
            self._loops[loop] -= 1
            if self._loops[loop] == 0:
                del self._loops[loop]
                loop.remove_reader(self.fileno())
                self.unwatch()

    def _read_ready(self) -> None:
        guarded(self._read_what_came)

    def _read_what_came(self, hold: Hold) -> None:
        if hold.read(self):  # else a thread reads, and delivers our answers too
            self._deliver()
            self._read(0.0)
