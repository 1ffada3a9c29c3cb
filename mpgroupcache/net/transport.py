"""Peers asked through an application's own transport, such as a proxy's (Go: ``HTTPPool.Transport``).

A transport is what ``urllib.request.build_opener`` returns, or anything with such an ``open``. It blocks, so the
coordinator has threads for it; where none is given, client.py asks, which needs none and takes a tenth of the time.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, Final

from mpgroupcache.errors import ProtocolError
from mpgroupcache.net import peerwire
from mpgroupcache.net.breaker import Breaker
from mpgroupcache.net.outcomes import Outcome, Reply, Unreached, explain, outcome_of
from mpgroupcache.sizes import format_size
from mpgroupcache.threads import Threads

if TYPE_CHECKING:
    from mpgroupcache.net.hooks import Opener, Transport
    from mpgroupcache.net.peer import PeerOptions


_READ_BYTES: Final = 64 << 10


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any) -> None:
        """Follow none: it may be another key's value, as where Go's ServeMux cleans a path."""


class _Until(io.RawIOBase):
    """What comes on a socket until a deadline, however slowly. A socket's own timeout begins anew with each byte."""

    def __init__(self, raw: io.RawIOBase, sock: Any, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that is there, head and body, within the timeout of its connection."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout = sock.gettimeout()
        if timeout is not None:
            self.fp = io.BufferedReader(_Until(self.fp.detach(), sock, time.monotonic() + timeout))


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _TLSConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _TLSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TLSConnection, request)


_DEFAULT: Final = urllib.request.build_opener(_Handler, _TLSHandler, _NoRedirects, urllib.request.ProxyHandler({}))


def default_transport(_ctx: Any) -> Opener:
    """Ask directly, without the environment's proxies."""
    return _DEFAULT


class TooLarge(ProtocolError):
    """A peer answered with more than this host takes."""


class NoAnswer(ProtocolError):
    """What a peer answered is no answer to what it was asked, or none whose end one could know."""


def round_trip(opener: Opener, url: str, headers: Mapping[str, str], timeout: float, max_bytes: int) -> Reply:
    """Make a request and read its whole response.

    Raises ``OSError``, also for a response that is cut off; ``TooLarge`` for one of more than that, ``NoAnswer``.
    """
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        if response.url != url:
            raise NoAnswer(f"its transport followed a redirect to {response.url}, which may be another key")
        fields = [
            (name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers.items()
        ]
        limit = max_bytes if response.status == 200 else peerwire.MAX_ERROR_BYTES
        body = _read_body(response, deadline, limit)
        if len(body) > limit and response.status == 200:
            raise TooLarge(f"answered with more than {format_size(max_bytes)} (max_response_bytes)")
        return Reply(response.status, fields, body[:limit])


def _read_body(response: Any, deadline: float, limit: int) -> bytes:
    """The whole body, or a little more than ``limit`` of it.

    What is cut off, or may be, is no value: that would be empty, or lack its end.
    """
    length = response.headers.get("Content-Length")
    chunked = response.headers.get("Transfer-Encoding", "").lower().endswith("chunked")
    if length is None and not chunked:
        raise NoAnswer(f"answered {response.status} with neither Content-Length nor chunks")
    parts = []
    size = 0
    while size <= limit:
        try:
            part = response.read1(min(_READ_BYTES, limit + 1 - size))
        except http.client.HTTPException as error:
            raise ConnectionError(f"connection closed after {size} bytes of a body in chunks") from error
        if not part:
            break
        parts.append(part)
        size += len(part)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no whole answer in time: got {size} bytes")
    if size <= limit and length is not None and not chunked and size != int(length):
        raise ConnectionError(f"connection closed after {size} bytes of {length}")
    return b"".join(parts)


class TransportClient:
    """One peer, as asked by this host through a transport: ``PeerClient``'s face and guarantees."""

    def __init__(
        self, url: str, options: PeerOptions, transport: Transport, jitter: Callable[[], float] = random
    ) -> None:
        self.url = url
        self._options = options
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(options.max_connections, "mpgroupcache-transport")
        self._headers = {
            peerwire.INSTANCE.decode(): options.instance.hex(),
            peerwire.TIMEOUT.decode(): peerwire.encode_timeout(options.request_timeout).decode(),
        }
        if options.secret is not None:
            self._headers[peerwire.SECRET.decode()] = options.secret
        self._breaker = Breaker(jitter)
        self._why_open = ""
        self._probe_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._fetches = 0
        self._probe: asyncio.Task[Outcome] | None = None
        self._retired = self._closed = False

    def __repr__(self) -> str:
        return f"<TransportClient {self.url}: {self._fetches} requests under way>"

    @property
    def available(self) -> bool:
        """Whether a fetch would ask the peer; else it fails at once."""
        return self._breaker.closed and not self._closed

    @property
    def under_way(self) -> int:
        """Requests that have no outcome yet."""
        return self._fetches

    def fetch(self, group: str, key: bytes, done: Callable[[Outcome], None]) -> None:
        """Ask for a key. ``done`` is called once with the outcome, maybe before this returns."""
        if not self.available:
            done(Unreached(self._why_open))
            return
        try:
            target = peerwire.request_target(self._options.base_path, group, key).decode()
        except ValueError as error:
            done(Unreached(f"{self.url} cannot be asked: {error}"))
            return
        self._fetches += 1
        self._start(target).add_done_callback(partial(self._finished, done))

    def retire(self) -> None:
        """The peer left the ring: finish what is under way."""
        self._retired = True
        self._rest()

    async def close(self) -> None:
        """End what is under way as unreached."""
        self._closed = True
        self._why_open = f"{self.url}: not asked any more, this host's client is closed"
        self._rest()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.close()

    def _start(self, target: str, probe: bool = False) -> asyncio.Task[Outcome]:
        task = self._loop.create_task(self._ask(target, probe))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _finished(self, done: Callable[[Outcome], None], task: asyncio.Task[Outcome]) -> None:
        """A callback, and not the task's own last step: one that is cancelled before its first has none."""
        self._fetches -= 1
        done(Unreached(self._why_open) if task.cancelled() else task.result())
        if self._retired:
            self._rest()

    async def _ask(self, target: str, probe: bool = False) -> Outcome:
        began = self._loop.time()
        seconds = self._options.request_timeout
        try:
            async with asyncio.timeout(seconds):
                reply = await asyncio.wrap_future(self._threads.call(self._round_trip, target))
        except (TooLarge, NoAnswer) as error:
            self._answered(probe)
            return Unreached(f"{self.url}: {error}")
        except TimeoutError:
            reason = f"{self.url}: no answer in {seconds:g} s"
        except Exception as error:  # an opener may raise anything
            reason = f"{self.url}: {explain(error)}"
        else:
            self._answered(probe)
            return outcome_of(self.url, reply)
        if not self._closed and self._breaker.failed(began, probe):
            self._why_open = f"{reason} (not asked again until it answers a probe)"
            self._probe = None
            if not self._retired:
                self._probe_timer = self._loop.call_later(self._breaker.delay, self._send_probe)
        return Unreached(reason)

    def _answered(self, probe: bool) -> None:
        if not self._breaker.answered(self._loop.time(), probe):
            return
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if self._probe is not None and not probe:  # a request that was under way has been answered before it
            self._probe.cancel()
        self._probe = None

    def _send_probe(self) -> None:
        self._breaker.probe()
        self._probe = self._start(self._options.base_path, probe=True)

    def _round_trip(self, target: str) -> Reply:
        options = self._options
        opener = self._transport(None)
        return round_trip(opener, self.url + target, self._headers, options.request_timeout, options.max_response_bytes)

    def _rest(self) -> None:
        if self._fetches:
            return
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if self._retired:
            self._threads.close()
