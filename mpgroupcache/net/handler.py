"""How a server answers requests, whichever client asks: checked, looked up, else loaded while the client waits."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from mpgroupcache.net import batches, peerwire
from mpgroupcache.net.ages import encode_ages
from mpgroupcache.net.backend import NoSuchGroup
from mpgroupcache.net.hooks import PeerRequest
from mpgroupcache.net.responses import PLAIN, Heads, Manner, answer, frame
from mpgroupcache.net.serverlimits import Limits
from mpgroupcache.net.visits import Batch, Visit

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpgroupcache.net.backend import Backend, Served
    from mpgroupcache.net.visits import ResponseWriter

logger = logging.getLogger(__name__)

LOCATED: Final = 2048  # targets that are kept; hot keys are asked for again and again
MAX_LOCATED: Final = 1024  # bytes of each
MAX_UNCOUNTED: Final = 64 << 10  # bytes of a value that is sent however much clients have still to read
REPORT_INTERVAL: Final = 10.0  # s between two log messages of one kind

# What is done here and not by Go; the coordinator's peers are told with each answer.
ABILITIES: Final = tuple(peerwire.Ability)

# Names of headers in lower case
_INSTANCE: Final = peerwire.INSTANCE.lower()
_SECRET: Final = peerwire.SECRET.lower()
_TIMEOUT: Final = peerwire.TIMEOUT.lower()


class Handler:
    """Answers requests, for all clients of one server."""

    def __init__(
        self,
        backend: Backend,
        *,
        instance: bytes,
        base_path: str = peerwire.DEFAULT_BASE_PATH,
        secret: str | None = None,
        limits: Limits | None = None,
        context: Callable[[PeerRequest], bytes] | None = None,
    ) -> None:
        """As ``PeerServer.start`` has it."""
        self.backend = backend
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self.heads = Heads(instance, ABILITIES)
        self.draining = False
        """Whether each answer is its connection's last."""
        self.errors: Counter[int] = Counter()
        """How many requests were answered with which status other than 200."""
        self.unread_bytes = 0
        """Of answers to clients that were stopped for not reading, and of answers for many keys that are not whole."""
        self._base_path = peerwire.check_base_path(base_path)
        self._locate = functools.lru_cache(LOCATED)(functools.partial(peerwire.locate, self._base_path))
        self._instance = instance.hex().encode()
        self._secret = peerwire.encode_secret(secret) if secret is not None else None
        self._context = context
        self._reported: dict[str, float] = {}

    def report(self, kind: str, message: str, *arguments: object) -> None:
        """Log a warning, but not for each of many."""
        now = time.monotonic()
        if now - self._reported.get(kind, -REPORT_INTERVAL) >= REPORT_INTERVAL:
            self._reported[kind] = now
            logger.warning(message, *arguments)

    # ---- Requests

    def answer(
        self,
        writer: ResponseWriter,
        target: bytes,
        headers: dict[bytes, bytes],
        manner: Manner,
        keys: bytes | None = None,
    ) -> None:
        """Answer a request, now or when its value is there; ``keys``: that it carries, for all of them."""
        group = ""
        try:
            if self._secret is not None or _INSTANCE in headers:
                self._check(headers, writer)
            if manner is not PLAIN and manner.refused:
                self.send_error(writer, manner, peerwire.METHOD_NOT_ALLOWED)
                return
            if keys is not None:
                group = peerwire.locate_group(self._base_path, target)
                self._gather(writer, group, batches.decode_keys(keys), headers, manner)
                return
            if len(target) <= MAX_LOCATED:
                group, key = self._locate(target)
            else:
                group, key = peerwire.locate(self._base_path, target)
            found = self.backend.find(group, key)
            if found is None:
                self._visit(writer, group, key, headers, manner)
            else:
                self.send(writer, manner, found)
        except peerwire.RequestError as error:
            self.send_error(writer, manner, error.response)
        except NoSuchGroup:
            self.send_error(writer, manner, peerwire.no_such_group(group.encode()))
        except Exception:  # a defect of the backend's: this client is not to wait, and the others are not to suffer
            logger.exception("%r: a request failed", writer)
            self.send_error(writer, manner, peerwire.error_response(500, "internal error; see this peer's log"))

    def _check(self, headers: dict[bytes, bytes], writer: ResponseWriter) -> None:
        """Raise ``RequestError`` for a request that is not to be answered here."""
        try:
            if self._secret is not None:
                peerwire.check_secret(self._secret, headers.get(_SECRET))
            if headers.get(_INSTANCE) == self._instance:
                raise peerwire.RequestError(
                    "this peer asks itself; its --self is not in its peers", peerwire.ASKED_ITSELF
                )
        except peerwire.RequestError as error:
            self.report("request", "%r: %s", writer, error)
            raise

    def _visit(
        self, writer: ResponseWriter, group: str, key: bytes, headers: dict[bytes, bytes], manner: Manner
    ) -> None:
        """Wait for a value; the request's errors are raised, and then nobody waits."""
        timeout = _timeout_of(headers)
        visit = Visit(self, writer, manner, self._make_context(writer, group, key, headers))
        try:
            self.backend.visit(group, key, visit)
        except BaseException:
            if visit.end() is None:
                logger.exception("%r: got an error from a backend that had answered", writer)
                return
            raise
        if timeout is not None:
            visit.leave_after(timeout)

    def _gather(
        self, writer: ResponseWriter, group: str, keys: list[bytes], headers: dict[bytes, bytes], manner: Manner
    ) -> None:
        """Look keys up, and wait for those that are not there; errors as with `_visit`, of one key for all."""
        timeout = _timeout_of(headers)
        batch = Batch(self, writer, manner, len(keys))
        try:
            for at, key in enumerate(keys):
                found = self.backend.find(group, key)
                if found is None:
                    context = self._make_context(writer, group, key, headers)
                    self.backend.visit(group, key, batch.enter(at, context))
                else:
                    batch.put(at, batches.answer_of(found))
        except BaseException:
            if batch.end() is None:
                logger.exception("%r: got an error from a backend that had answered", writer)
                return
            batch.leave()
            raise
        if timeout is not None:
            batch.leave_after(timeout)

    def _make_context(self, writer: ResponseWriter, group: str, key: bytes, headers: dict[bytes, bytes]) -> bytes:
        """What the application makes of the request; what that raises is answered."""
        if self._context is None:
            return b""
        texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        try:
            return self._context(PeerRequest(group, key, texts, writer.remote))
        except Exception as error:
            self.report("context", "%r: the HTTPPool's context raised %r", writer, error)
            raise peerwire.RequestError(str(error), peerwire.error_response(500, f"context: {error}")) from error

    # ---- Answers

    def send(self, writer: ResponseWriter, manner: Manner, served: Served) -> None:
        """Answer with a value, or that there is none; nothing refers to its memory after that."""
        value = served.value
        if served.absent:
            text = bytes(value).decode(errors="replace")
            self.send_error(writer, manner, peerwire.no_such_value(text, served.dead))
            return
        size = len(value)
        limits = self.limits
        if size > limits.value_bytes:
            text = f"value: got {size} bytes, expected at most {limits.value_bytes}; load it where it is needed"
            self.send_error(writer, manner, peerwire.error_response(503, text))
            return
        if size > MAX_UNCOUNTED and 0 < self.unread_bytes > limits.unread_bytes - size:
            text = f"busy: clients have {self.unread_bytes} bytes of answers to read; ask again later"
            self.send_error(writer, manner, peerwire.error_response(503, text))
            return
        rate = served.minute_qps if served.minute_qps > 0.0 else None
        ages = encode_ages(served.fresh, served.dead, served.version)
        if manner is PLAIN and not self.draining:
            before, behind = frame(size, rate)
            writer.write(b"".join((self.heads.value, ages, before, value, behind)))
        else:
            before, behind = peerwire.response_head(size, rate)
            self._send(
                writer, manner, self.heads.value + ages, (before, value, behind), len(before) + size + len(behind)
            )

    def send_batch(self, writer: ResponseWriter, manner: Manner, body: bytes) -> None:
        """Answer for many keys."""
        self._send(writer, manner, self.heads.batch, (body,), len(body))

    def hold(self, size: int) -> bool:
        """Whether there is room for so many bytes of an answer that is not whole; below 0: they are gone again."""
        if size > 0 and self.unread_bytes > self.limits.unread_bytes - size:
            return False
        self.unread_bytes += size
        return True

    def send_error(self, writer: ResponseWriter, manner: Manner, response: peerwire.ErrorResponse) -> None:
        """Answer with an error."""
        self.errors[response.status] += 1
        head = self.heads.error(response)
        if response.closes:
            writer.write(head + response.body)
            writer.end()
        else:
            self._send(writer, manner, head, (response.body,), len(response.body))

    def _send(
        self, writer: ResponseWriter, manner: Manner, head: bytes, body: tuple[bytes | memoryview, ...], length: int
    ) -> None:
        if self.draining and not manner.closes:
            manner = manner._replace(closes=True)
        writer.write(answer(manner, head, body, length))
        if manner.closes:
            writer.end()


def _timeout_of(headers: dict[bytes, bytes]) -> float | None:
    """The seconds for which a client waits; None: it does not say. Raises ``RequestError``."""
    header = headers.get(_TIMEOUT)
    return None if header is None else peerwire.decode_timeout(header)
