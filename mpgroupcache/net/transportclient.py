"""One peer, asked through an application's own transport (Go: ``HTTPPool.Transport``).

A transport blocks, so there are threads for it. Where none is given, client.py asks, which needs none and takes a tenth
of the time.
"""

from __future__ import annotations

import asyncio
from functools import partial
from random import random
from typing import TYPE_CHECKING

from mpgroupcache.net import peerwire
from mpgroupcache.net.breaker import Breaker
from mpgroupcache.net.outcomes import Outcome, Reply, Unreached, explain, outcome_of
from mpgroupcache.net.transport import NoAnswer, TooLarge, round_trip
from mpgroupcache.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpgroupcache.net.hooks import Transport
    from mpgroupcache.net.peer import PeerOptions


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
        self._abilities: frozenset[peerwire.Ability] | None = None
        self._why_open = ""
        self._probe_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._fetches = 0
        self._probe: asyncio.Task[Outcome] | None = None
        self._retired = self._closed = False

    def __repr__(self) -> str:
        abilities = peerwire.describe_abilities(self._abilities)
        return f"<TransportClient {self.url}: {self._fetches} requests under way, abilities {abilities}>"

    @property
    def available(self) -> bool:
        """Whether a fetch would ask the peer; else it fails at once."""
        return self._breaker.closed and not self._closed

    @property
    def abilities(self) -> frozenset[peerwire.Ability] | None:
        """What the peer can do beyond Go's protocol, as it said last; None: it has not answered yet."""
        return self._abilities

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

    def fetch_many(self, group: str, keys: Sequence[bytes], done: Callable[[bytes, Outcome], None]) -> None:
        """Ask for each key alone: a transport is given requests as Go's is."""
        for key in keys:
            self.fetch(group, key, partial(done, key))

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
            if (abilities := peerwire.read_abilities(reply.status, reply.headers)) is not None:
                self._abilities = abilities
            return outcome_of(self.url, reply, abilities)
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
