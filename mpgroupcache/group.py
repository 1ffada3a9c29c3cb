"""Groups: what an application declares and gets from (Go: ``Group``).

What ``get`` does up to a hit is native (``shm._group.GroupCore``); this module is the miss.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar, overload

from mpgroupcache.counters import Counter
from mpgroupcache.errors import (
    CoordinatorError,
    CoordinatorUnavailable,
    DeadlineExceeded,
    ProtocolError,
    describe_error,
)
from mpgroupcache.getters import Getter, GetterFunction, Loader
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.messages import MAX_HELD, Ask, Failed, Hit, Lease, Origin, Served, Value
from mpgroupcache.keys import decode_key, encode_key
from mpgroupcache.pickers import PeerAnswer, PeerPicker, ProtoGetter, make_request, picker_of, read_response
from mpgroupcache.shm._group import GroupCore, with_own_get
from mpgroupcache.shm._view import ByteView
from mpgroupcache.shm.segment import segment_path
from mpgroupcache.sinks import Sink
from mpgroupcache.sizes import format_size
from mpgroupcache.stats import CacheStats, CacheType, Stats
from mpgroupcache.threads import waiting
from mpgroupcache.worker.alone import Outcome
from mpgroupcache.worker.channel import Answer
from mpgroupcache.worker.leases import HeldLease, LocalLease, SharedLease, held_leases
from mpgroupcache.worker.link import Link
from mpgroupcache.worker.process import Process, current

logger = logging.getLogger(__name__)

T = TypeVar("T")

_UNSERVED = (CoordinatorUnavailable, CoordinatorError, ProtocolError)  # of a request: no get fails because of it

_running: set[asyncio.Task[ByteView]] = set()  # loads of ``aget``: a task that nobody refers to may be collected


@with_own_get
class Group(GroupCore):
    """A namespace of keys with its loader and its share of the cache (Go: ``Group``). Made by ``new_group``."""

    def __init__(
        self,
        name: str,
        cache_bytes: int,
        getter: Getter | GetterFunction,
        load_timeout: float | None = None,
        peers: PeerPicker | None = None,
    ) -> None:
        self._name = name
        self._cache_bytes = cache_bytes
        self._loader = Loader(getter)
        self._load_timeout = load_timeout
        self._peers = peers  # None: the registered ones, and then, those that the coordinator's ring has
        self._peers_known = peers is not None
        self._link: Link | None = None  # on which it was attached last
        self._caches = True  # so far as it is known: the host's first declaration says so

    @property
    def name(self) -> str:
        """The group's name (Go: ``Group.Name``)."""
        return self._name

    def __repr__(self) -> str:
        size = format_size(self._cache_bytes)
        return f"<mpgroupcache.Group {self._name!r} ({size}, {'attached' if self.attached else 'not attached'})>"

    def is_attached_to(self, link: Link) -> bool:
        """Whether this group looks values up where ``link`` leads."""
        return self._link is link and self.attached

    def attach_to(self, link: Link) -> None:
        """Declare this group on ``link`` and look values up there from now on."""
        picks = self._picker() is not None
        declared = link.declare(self._name, self._cache_bytes, self._load_timeout, picks, self._load_for_peer)
        path = None if declared.segment is None else segment_path(declared.segment)
        self.attach(link.reader, declared.group, path)
        self._caches = path is not None
        self._link = link

    # ---- A miss in a thread or greenlet: find the value, or the lease to load it

    def _load(self, key: str | bytes, ctx: Any, timeout: float | None, here: bool = False) -> ByteView:
        """``here``: no peer is to be asked, since the key is this host's, or it is a peer that asks."""
        raw = encode_key(key)
        if self._loader.is_async:
            raise TypeError(f"group {self._name!r} has an async getter: got get(), expected `await group.aget(key)`")
        peer = None
        if not here and (picker := self._picker()) is not None:
            peer = self._pick(picker, raw)
            here = peer is None
        try:
            found = self._find(current(), raw, None if timeout is None else time.monotonic() + timeout, here)
        except BaseException:  # it was a get all the same
            self.count(Counter.LOADS)
            raise
        if isinstance(found, ByteView):
            return found
        try:
            with found.loading():
                if peer is not None and (answer := self._fetch(peer, ctx, raw)) is not None:
                    return self._keep(found, answer)
                value = self._loader.load(ctx, raw)
            return self._store(found, value)  # here, since a signal's handler may raise in it
        except BaseException as error:
            self._end(found, error)
            raise

    def _find(self, process: Process, key: bytes, deadline: float | None, here: bool) -> ByteView | HeldLease:
        fresh = not self.attached
        link = process.link_for(self)
        if fresh and (view := self.lookup(key)) is not None:
            return view
        copy = not self.readable
        while link is not None:
            try:
                with waiting():
                    answer = link.channel.request(self._ask(link, key, copy, here), deadline)
                found = self._judge(link, answer, key)
            except _UNSERVED as error:
                logger.info("group %r: a value is loaded without the coordinator: %s", self._name, error)
                break
            if found is not None:
                return found
            copy = True
        waiter, future = process.alone.ask((self._name, key), away=not here and self._peers is not None)
        try:
            with waiting():
                outcome = future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            process.alone.cancel(waiter)
            raise _deadline_exceeded() from None
        except BaseException:
            process.alone.cancel(waiter)
            raise
        return self._judge_alone(process, outcome)

    def _ask(self, link: Link, key: bytes, copy: bool, here: bool) -> Ask:
        # The id as this link has it: another thread may be attaching the group to the next instance, or still to the
        # last one, where the same id is another group's. Of a deeper nest the innermost leases will do: each of them
        # waits for the next, so that the way round a cycle leads through them.
        return Ask(link.group_id(self._name), key, held_leases.get()[-MAX_HELD:], copy, here)

    def _judge(self, link: Link, answer: Answer, key: bytes) -> ByteView | SharedLease | None:
        """What an answer to ASK means. None: it was cached, and is gone again; ask for the value itself."""
        match answer.message:
            case Lease(lease=lease):
                self.count(Counter.LOADS)
                return SharedLease(link.channel, lease)
            case Hit():
                return self.lookup(key)
            case Value(value=value, origin=origin):
                view = _map(answer.fd, value) if isinstance(value, int) else ByteView(value)
                self.count(Counter.MAIN_HITS if origin is Origin.CACHE else Counter.LOADS)
                if origin is Origin.FLIGHT:
                    self.count(Counter.LOADS_DEDUPED)
                return view
            case Failed() as failed:
                raise failed.exception()
            case other:
                raise ProtocolError(f"answer to ASK: got {other}, expected HIT, VALUE, LEASE or FAILED")

    def _judge_alone(self, process: Process, outcome: Outcome) -> ByteView | LocalLease:
        self.count(Counter.LOADS)
        if isinstance(outcome, int):
            return LocalLease(process.alone, outcome)
        self.count(Counter.LOADS_DEDUPED)
        return ByteView(outcome.value)

    def _store(self, lease: HeldLease, value: bytes) -> ByteView:
        self.count(Counter.LOCAL_LOADS)
        return lease.store(value)

    def _end(self, lease: HeldLease, error: BaseException) -> None:
        if isinstance(error, Exception):
            self.count(Counter.LOCAL_LOAD_ERRS)
        lease.end(error)

    def _load_for_peer(self, lease: HeldLease, key: bytes, ctx: Any, runner: asyncio.Runner) -> None:
        """Load for a request of a peer's, in a thread that has nothing else to do."""
        try:
            with lease.loading():
                if self._loader.is_async:
                    value = runner.run(self._loader.load_async(ctx, key))
                else:
                    value = self._loader.load(ctx, key)
            self._store(lease, value)
        except BaseException as error:
            self._end(lease, error)
            if not isinstance(error, Exception):
                raise

    # ---- Peers that this process picks

    def _picker(self) -> PeerPicker | None:
        """Who picks peers here; None: the coordinator's ring. What is registered is called once (Go: ``initPeers``)."""
        if not self._peers_known:
            self._peers = picker_of(self._name)
            self._peers_known = True
        return self._peers

    def _pick(self, picker: PeerPicker, key: bytes) -> ProtoGetter | None:
        """Return the peer that owns a key. None: this host does, or nobody knows."""
        try:
            return picker.pick_peer(decode_key(key))
        except Exception as error:
            self._blame(error)
            return None

    def _fetch(self, peer: ProtoGetter, ctx: Any, key: bytes) -> PeerAnswer | None:
        """Ask the peer that owns a key. None: it failed, and the key is loaded here."""
        try:
            response = peer.get(ctx, make_request(self._name, key))
            if inspect.iscoroutine(response):
                response.close()
                raise TypeError("its get() is async, which `await group.aget(key)` can ask and get() cannot")
            return read_response(response)
        except Exception as error:
            self._blame(error)
            return None

    async def _fetch_async(self, peer: ProtoGetter, ctx: Any, key: bytes) -> PeerAnswer | None:
        """The same for a coroutine; a plain peer is asked in a thread."""
        try:
            request = make_request(self._name, key)
            if inspect.iscoroutinefunction(peer.get):
                return read_response(await peer.get(ctx, request))
            return read_response(await _in_thread(peer.get, ctx, request))
        except Exception as error:
            self._blame(error)
            return None

    def _blame(self, error: Exception) -> None:
        self.count(Counter.PEER_ERRORS)
        logger.warning("group %r: a peer failed, its key is loaded here: %s: %s", self._name, *describe_error(error))

    def _keep(self, lease: HeldLease, answer: PeerAnswer) -> ByteView:
        """End a lease with a peer's value."""
        self.count(Counter.PEER_LOADS)
        return lease.store(answer.value, answer)

    # ---- For peers, where a process of the application serves them

    def serve(self, key: bytes, ctx: Any, timeout: float | None) -> ByteView:
        """Answer a peer's request: as `get`, but no other peer is asked for it, nor waited for."""
        if self._loader.is_async:
            return asyncio.run(self.serve_async(key, ctx, timeout))
        self._tell_served(current().link_for(self))
        view = self.lookup(key)
        return self._load(key, ctx, timeout, here=True) if view is None else view

    async def serve_async(self, key: bytes, ctx: Any, timeout: float | None) -> ByteView:
        """The same for a coroutine."""
        self._tell_served(await self._link_async(current()))
        view = self.lookup(key)
        return await self._load_async(key, ctx, timeout, here=True) if view is None else view

    def _tell_served(self, link: Link | None) -> None:
        if link is not None:
            with contextlib.suppress(CoordinatorUnavailable):
                link.channel.send(Served(link.group_id(self._name)))

    # ---- The same for coroutines

    @overload
    async def aget(
        self, key: str | bytes, dest: None = None, *, ctx: Any = None, timeout: float | None = None
    ) -> ByteView: ...

    @overload
    async def aget(self, key: str | bytes, dest: Sink, *, ctx: Any = None, timeout: float | None = None) -> None: ...

    async def aget(
        self, key: str | bytes, dest: Sink | None = None, *, ctx: Any = None, timeout: float | None = None
    ) -> ByteView | None:
        """``get`` for asyncio: a hit never suspends (Go: ``Group.Get``).

        An ``async`` getter is awaited on this loop, a plain one runs in a thread. Cancelling stops the waiting, not a
        load: others may wait for it.
        """
        if dest is not None and not isinstance(dest, Sink):
            raise TypeError(f"dest: got {type(dest).__name__}, expected a mpgroupcache.Sink, or None for a ByteView")
        view = self.lookup(key)
        if view is None:
            view = await self._load_async(encode_key(key), ctx, timeout, here=False)
        if dest is None:
            return view
        dest._fill(view)
        return None

    async def _load_async(self, key: bytes, ctx: Any, timeout: float | None, here: bool) -> ByteView:
        peer = None
        if not here and (picker := self._picker()) is not None:
            peer = self._pick(picker, key)
            here = peer is None
        try:
            async with asyncio.timeout(timeout) as limit:
                found = await self._find_async(key, here)
        except BaseException as error:  # it was a get all the same
            self.count(Counter.LOADS)
            if isinstance(error, TimeoutError) and limit.expired():
                raise _deadline_exceeded() from None
            raise
        if isinstance(found, ByteView):
            return found
        task = asyncio.create_task(self._run_async(found, key, ctx, peer))
        _running.add(task)
        task.add_done_callback(functools.partial(_finish, found))
        with waiting():
            return await asyncio.shield(task)

    async def _find_async(self, key: bytes, here: bool) -> ByteView | HeldLease:
        process = current()
        fresh = not self.attached
        link = await self._link_async(process)
        if fresh and (view := self.lookup(key)) is not None:
            return view
        copy = not self.readable
        while link is not None:
            try:
                with waiting():
                    answer = await link.channel.request_async(self._ask(link, key, copy, here))
                found = self._judge(link, answer, key)
            except _UNSERVED as error:
                logger.info("group %r: a value is loaded without the coordinator: %s", self._name, error)
                break
            if found is not None:
                return found
            copy = True
        waiter, future = process.alone.ask((self._name, key), away=not here and self._peers is not None)
        try:
            with waiting():
                outcome = await asyncio.wrap_future(future)
            return self._judge_alone(process, outcome)
        except BaseException:
            process.alone.cancel(waiter)
            raise

    async def _link_async(self, process: Process) -> Link | None:
        """``Process.link_for``, in the executor where that is more than a look."""
        if self.attached and (link := process.working_link) is not None and self.is_attached_to(link):
            return link
        return await asyncio.get_running_loop().run_in_executor(None, process.link_for, self)

    async def _run_async(self, lease: HeldLease, key: bytes, ctx: Any, peer: ProtoGetter | None) -> ByteView:
        try:
            with lease.loading():
                if peer is not None and (answer := await self._fetch_async(peer, ctx, key)) is not None:
                    return self._keep(lease, answer)
                if self._loader.is_async:
                    value = await self._loader.load_async(ctx, key)
                else:
                    value = await _in_thread(self._loader.load_for_future, ctx, key)
            return self._store(lease, value)
        except BaseException as error:
            self._end(lease, error)
            raise

    # ---- Stats

    @property
    def stats(self) -> Stats:
        """The group's counters over all workers and the coordinator (Go: ``Group.Stats``)."""
        counts = self.counters()
        hits = counts[Counter.MAIN_HITS] + counts[Counter.HOT_HITS]
        return Stats(
            gets=hits + counts[Counter.LOADS],
            cache_hits=hits,
            peer_loads=counts[Counter.PEER_LOADS],
            peer_errors=counts[Counter.PEER_ERRORS],
            loads=counts[Counter.LOADS],
            loads_deduped=counts[Counter.LOADS_DEDUPED],
            local_loads=counts[Counter.LOCAL_LOADS],
            local_load_errs=counts[Counter.LOCAL_LOAD_ERRS],
            server_requests=self.server_requests,
        )

    def cache_stats(self, which: CacheType) -> CacheStats:
        """The state of the main or the hot cache, host-wide (Go: ``Group.CacheStats``). Zeros: nothing is cached."""
        hot = CacheType(which) is CacheType.HOT_CACHE
        if not self._caches:
            return CacheStats()
        counts = self.counters()
        held, items, evictions = self.list_stats(int(hot))
        hits = counts[Counter.HOT_HITS if hot else Counter.MAIN_HITS]
        gets = counts[Counter.HOT_HITS] + counts[Counter.LOADS] + (0 if hot else counts[Counter.MAIN_HITS])
        return CacheStats(bytes=held, items=items, gets=gets, hits=hits, evictions=evictions)


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run what may block in a thread, which knows the leases too."""
    return await asyncio.wrap_future(current().threads.call(function, *args))


def _map(fd: int, size: int) -> ByteView:
    try:
        return memfd.view(fd, size)
    except OSError as error:
        raise CoordinatorUnavailable(f"a value of {size} bytes cannot be mapped: {error}") from error


def _finish(lease: HeldLease, task: asyncio.Task[ByteView]) -> None:
    """A load of ``aget`` has ended, perhaps before its first step: a loop that ends cancels tasks that never ran."""
    _running.discard(task)
    if task.cancelled():
        lease.end(asyncio.CancelledError())
    else:
        task.exception()  # was sent to the waiters, and is no news to the loop


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded(
        "get: the timeout passed while another caller loads; the load goes on for its other waiters"
    )
