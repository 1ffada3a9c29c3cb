"""Requests that wait: for one value each, or for those of many keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mpgroupcache.net import batches, peerwire

if TYPE_CHECKING:
    import asyncio

    from mpgroupcache.net.backend import Backend, Served
    from mpgroupcache.net.responses import Manner


class ResponseWriter(Protocol):
    """A client's connection, as its requests are answered (Go: ``http.ResponseWriter``)."""

    visit: Waiting | None
    """The request that waits for a value; those behind it wait, too."""

    @property
    def remote(self) -> str:
        """The client's address, or "" where it is not known."""

    def wait(self, visit: Waiting) -> None:
        """A request waits from now on."""

    def write(self, data: bytes) -> None:
        """Send an answer."""

    def end(self) -> None:
        """That was the last answer."""

    def settle(self) -> None:
        """Go on with what waits."""


class Sender(Protocol):
    """Who sends answers: the handler."""

    backend: Backend

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def send(self, writer: ResponseWriter, manner: Manner, served: Served) -> None:
        """Answer with a value, or that there is none."""

    def send_batch(self, writer: ResponseWriter, manner: Manner, body: bytes) -> None:
        """Answer for many keys."""

    def send_error(self, writer: ResponseWriter, manner: Manner, response: peerwire.ErrorResponse) -> None:
        """Answer with an error."""

    def hold(self, size: int) -> bool:
        """Whether there is room for so many bytes of an answer that is not whole; below 0: they are gone again."""


class Waiting:
    """A request that its connection waits for, until it is answered or its client is gone."""

    __slots__ = ("_manner", "_sender", "_timer", "_writer")

    def __init__(self, sender: Sender, writer: ResponseWriter, manner: Manner) -> None:
        self._sender = sender
        self._writer: ResponseWriter | None = writer
        self._manner = manner
        self._timer: asyncio.TimerHandle | None = None
        writer.wait(self)

    def leave(self) -> None:
        """Wait no longer: the client is gone."""
        self.end()
        self._leave_backend()

    def leave_after(self, timeout: float) -> None:
        """Wait no longer than so many seconds."""
        if self._writer is not None:
            self._timer = self._sender.loop.call_later(timeout, self._give_up, timeout)

    def end(self) -> ResponseWriter | None:
        """Let the connection go on; None if it does already."""
        writer, self._writer = self._writer, None
        if self._timer is not None:
            self._timer.cancel()
        if writer is not None:
            writer.visit = None
        return writer

    def _leave_backend(self) -> None:
        raise NotImplementedError

    def _give_up(self, timeout: float) -> None:
        raise NotImplementedError


def _late(timeout: float) -> str:
    return f"deadline exceeded: no value within the {timeout:g} s of {peerwire.TIMEOUT.decode()}"


class Visit(Waiting):
    """A visitor: a request for one key."""

    __slots__ = ("ctx",)

    def __init__(self, sender: Sender, writer: ResponseWriter, manner: Manner, ctx: bytes) -> None:
        super().__init__(sender, writer, manner)
        self.ctx = ctx

    def deliver(self, served: Served) -> None:
        """Answer with the value, or that there is none, unless it is too late."""
        writer = self.end()
        if writer is not None:
            self._sender.send(writer, self._manner, served)
            writer.settle()

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the loader's error, unless it is too late."""
        self._answer(peerwire.load_failed(type_name, text))

    def refuse(self, text: str) -> None:
        """Answer that this peer cannot load, unless it is too late."""
        self._answer(peerwire.error_response(503, text))

    def _answer(self, response: peerwire.ErrorResponse) -> None:
        writer = self.end()
        if writer is not None:
            self._sender.send_error(writer, self._manner, response)
            writer.settle()

    def _leave_backend(self) -> None:
        self._sender.backend.leave(self)

    def _give_up(self, timeout: float) -> None:
        self._answer(peerwire.error_response(504, _late(timeout)))
        self._leave_backend()


class Batch(Waiting):
    """A request for many keys, each a visitor of its own: its load is shared with whoever else asks for it.

    Its answer goes out when all of them are answered, or when its time is up. What has been answered until then is held
    as bytes, which are counted with those that clients have not read.
    """

    __slots__ = ("_answers", "_held", "_missing", "_visitors")

    def __init__(self, sender: Sender, writer: ResponseWriter, manner: Manner, count: int) -> None:
        super().__init__(sender, writer, manner)
        self._answers = [batches.ALONE] * count
        self._missing = count
        self._held = 0
        self._visitors: dict[int, KeyVisitor] = {}  # of keys that wait

    def enter(self, at: int, ctx: bytes) -> KeyVisitor:
        """A key has to be loaded; ``at``: its place among the keys."""
        visitor = self._visitors[at] = KeyVisitor(self, at, ctx)
        return visitor

    def settle(self, at: int, answer: batches.Answer) -> None:
        """A key that waited is answered, unless it is too late."""
        if self._visitors.pop(at, None) is not None:
            self.put(at, answer)

    def put(self, at: int, answer: batches.Answer) -> None:
        """A key is answered, as far as there is room; nothing refers to its memory after that."""
        encoded = batches.encode_answer(answer)
        size = len(encoded)
        if self._held + size <= batches.ROOM and self._sender.hold(size):
            self._held += size
            self._answers[at] = encoded
        self._missing -= 1
        if not self._missing and (writer := self.end()) is not None:
            self._sender.send_batch(writer, self._manner, batches.encode_answers(self._answers))
            writer.settle()

    def end(self) -> ResponseWriter | None:
        held, self._held = self._held, 0
        self._sender.hold(-held)
        return super().end()

    def _leave_backend(self) -> None:
        while self._visitors:
            _, visitor = self._visitors.popitem()
            self._sender.backend.leave(visitor)

    def _give_up(self, timeout: float) -> None:
        late = batches.refusal(_late(timeout))
        for at, visitor in list(self._visitors.items()):
            self.settle(at, late)
            self._sender.backend.leave(visitor)


class KeyVisitor:
    """One key of a batch."""

    __slots__ = ("_at", "_batch", "ctx")

    def __init__(self, batch: Batch, at: int, ctx: bytes) -> None:
        self._batch = batch
        self._at = at
        self.ctx = ctx

    def deliver(self, served: Served) -> None:
        """Answer with the value, or that there is none, unless it is too late."""
        self._batch.settle(self._at, batches.answer_of(served))

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the loader's error, unless it is too late."""
        self._batch.settle(self._at, batches.failure(type_name, text))

    def refuse(self, text: str) -> None:
        """Answer that this peer cannot load, unless it is too late."""
        self._batch.settle(self._at, batches.refusal(text))
