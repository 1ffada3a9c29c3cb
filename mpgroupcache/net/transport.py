"""Peers asked through an application's own transport, such as a proxy's (Go: ``HTTPPool.Transport``).

A transport is what ``urllib.request.build_opener`` returns, or anything with such an ``open``. It blocks, so the
coordinator has threads for it; where none is given, client.py asks, which needs none and takes a tenth of the time.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from mpgroupcache.errors import ProtocolError
from mpgroupcache.net import wire
from mpgroupcache.net.breaker import Breaker
from mpgroupcache.net.outcomes import Outcome, Reply, Unreached, explain, outcome_of
from mpgroupcache.sizes import format_size

if TYPE_CHECKING:
    from mpgroupcache.net.options import PeerOptions


class Opener(Protocol):
    """Makes requests (Go: ``http.RoundTripper``). Several threads use it at once."""

    def open(self, request: urllib.request.Request, /, *, timeout: float) -> Any:
        """Return the response: a context manager with ``status``, ``headers`` and ``read(size)``.

        Raises ``OSError``, of which ``urllib.error.HTTPError`` is a response. ``timeout``: seconds.
        """


Transport: TypeAlias = Callable[[Any], Opener]
"""Called with the ``ctx`` of a get; in the coordinator, which has none, with None."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any) -> None:
        """Follow none: it may be another key's value, as where Go's ServeMux cleans a path."""


_DEFAULT: Final = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def default_transport(_ctx: Any) -> Opener:
    """Ask directly, without the environment's proxies."""
    return _DEFAULT


class TooLarge(ProtocolError):
    """A peer answered with more than this host takes."""


def round_trip(opener: Opener, url: str, headers: Mapping[str, str], timeout: float, max_bytes: int) -> Reply:
    """Make a request and read its whole response. Raises ``OSError``, or ``TooLarge`` for one of more than that."""
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        limit = max_bytes if response.status == 200 else wire.MAX_ERROR_BYTES
        body = response.read(limit + 1)
        if len(body) > limit and response.status == 200:
            raise TooLarge(f"answered with more than {format_size(max_bytes)} (max_response_bytes)")
        fields = [
            (name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers.items()
        ]
        return Reply(response.status, fields, body[:limit])


class TransportClient:
    """One peer, as asked by this host through a transport: ``PeerClient``'s face and guarantees."""

    def __init__(
        self, url: str, options: PeerOptions, transport: Transport, jitter: Callable[[], float] = random
    ) -> None:
        self.url = url
        self._options = options
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(options.max_connections, "mpgroupcache-transport")
        self._headers = {
            wire.INSTANCE.decode(): options.instance.hex(),
            wire.TIMEOUT.decode(): wire.encode_timeout(options.request_timeout).decode(),
        }
        if options.secret is not None:
            self._headers[wire.SECRET.decode()] = options.secret
        self._breaker = Breaker(jitter)
        self._why_open = ""
        self._probe_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._fetches = 0
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
            target = wire.request_target(self._options.base_path, group, key).decode()
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
        self._threads.shutdown(wait=False, cancel_futures=True)

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
                reply = await self._loop.run_in_executor(self._threads, self._round_trip, target)
        except TooLarge as error:
            self._breaker.answered(self._loop.time(), probe)
            return Unreached(f"{self.url}: {error}")
        except TimeoutError:
            reason = f"{self.url}: no answer in {seconds:g} s"
        except Exception as error:  # an opener may raise anything
            reason = f"{self.url}: {explain(error)}"
        else:
            self._breaker.answered(self._loop.time(), probe)
            return outcome_of(self.url, reply)
        if not self._closed and self._breaker.failed(began, probe):
            self._why_open = f"{reason} (not asked again until it answers a probe)"
            self._probe_timer = self._loop.call_later(self._breaker.delay, self._probe)
        return Unreached(reason)

    def _probe(self) -> None:
        if self._breaker.closed:  # a request that was under way has been answered meanwhile
            return
        self._breaker.probe()
        self._start(self._options.base_path, probe=True)

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
            self._threads.shutdown(wait=False)
