"""Peers that an application picks itself, and the hooks around groups."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from children import Child
from workers import PATIENCE, Daemon, advance, count_asks, flush, wait_until, waiting_here

import mpgroupcache
from mpgroupcache import CacheType, LoadCycleError, NoPeers, NotFound, Sink
from mpgroupcache.net.groupcachepb_pb2 import GetRequest, GetResponse
from mpgroupcache.worker import declared

OWNED = "owned"  # by the peer; every other key is this host's


class Peer:
    """A peer that does what a test says, and its own picker."""

    def __init__(self, answer: Callable[[Any, GetRequest], Any]) -> None:
        self._answer = answer
        self.picked: list[str | bytes] = []
        self.asked: list[tuple[Any, GetRequest]] = []

    def pick_peer(self, key: str | bytes) -> Peer | None:
        self.picked.append(key)
        return self if OWNED in str(key) else None

    def get(self, ctx: Any, request: GetRequest) -> GetResponse:
        self.asked.append((ctx, request))
        return self._answer(ctx, request)  # type: ignore[no-any-return]


def peer_value(ctx: Any, request: GetRequest) -> GetResponse:
    return GetResponse(value=b"peer's " + request.key)


def load(ctx: Any, key: str | bytes, dest: Sink) -> None:
    dest.set_string("own")


class Async(Peer):
    """The same, for loops."""

    async def get(self, ctx: Any, request: GetRequest) -> GetResponse:  # type: ignore[override]
        self.asked.append((ctx, request))
        await asyncio.sleep(0)
        return self._answer(ctx, request)  # type: ignore[no-any-return]


async def load_async(ctx: Any, key: str | bytes, dest: Sink) -> None:
    dest.set_string("own")


def test_a_peer_is_asked_and_what_it_gave_is_not_ours(here: Daemon) -> None:
    peer = Peer(lambda ctx, request: GetResponse(value=b"peer's"))
    group = mpgroupcache.new_group("g", "1MiB", load, peers=peer)
    assert group.get(OWNED, ctx="mine") == "peer's"
    [(ctx, request)] = peer.asked
    assert (ctx, request.group, request.key) == ("mine", b"g", OWNED.encode())
    assert group.get("other") == "own"
    wait_until(lambda: group.lookup("other"))
    stats = group.stats
    assert (stats.peer_loads, stats.peer_errors, stats.local_loads, stats.loads) == (1, 0, 1, 2)
    assert group.cache_stats(CacheType.MAIN_CACHE).items == 1


@pytest.mark.parametrize("size", [100, 200_000])
def test_what_a_peer_is_often_asked_for_is_hot(here: Daemon, size: int) -> None:
    peer = Peer(lambda ctx, request: GetResponse(value=bytes(size), minute_qps=1e9))
    group = mpgroupcache.new_group("g", "4MiB", load, peers=peer)
    assert group.get(OWNED) == bytes(size)
    wait_until(lambda: group.lookup(OWNED) is not None)
    assert group.cache_stats(CacheType.HOT_CACHE).items == 1
    assert group.cache_stats(CacheType.MAIN_CACHE).items == 0
    main, hot = (group.cache_stats(which) for which in CacheType)
    assert group.get(OWNED) == bytes(size)
    assert len(peer.asked) == 1
    assert group.cache_stats(CacheType.MAIN_CACHE) == replace(main, gets=main.gets + 1)  # it was looked for there first
    assert group.cache_stats(CacheType.HOT_CACHE) == replace(hot, gets=hot.gets + 1, hits=hot.hits + 1)
    group.get("other")
    assert group.cache_stats(CacheType.HOT_CACHE) == replace(hot, gets=hot.gets + 2, hits=hot.hits + 1)


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), -1.0, 1e300])
def test_rates_that_cannot_be_break_nothing(here: Daemon, rate: float) -> None:
    peer = Peer(lambda ctx, request: GetResponse(value=b"v", minute_qps=rate))
    group = mpgroupcache.new_group("g", "1MiB", load, peers=peer)
    for i in range(20):
        assert group.get(f"{OWNED} {i}") == "v"
    assert mpgroupcache.connect()


def fail(ctx: Any, request: GetRequest) -> GetResponse:
    raise ConnectionError("down")


async def answer_later(ctx: Any, request: GetRequest) -> GetResponse:
    return GetResponse(value=b"later")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (fail, "builtins.ConnectionError: down"),
        (lambda ctx, request: b"bytes", "got bytes, expected a groupcachepb GetResponse"),
        (answer_later, "its get() is async"),
    ],
)
def test_a_peer_that_fails(here: Daemon, caplog: pytest.LogCaptureFixture, answer: Any, why: str) -> None:
    peer = Peer(answer)
    group = mpgroupcache.new_group("g", "1MiB", load, peers=peer)
    with caplog.at_level(logging.WARNING):
        assert group.get(OWNED) == "own"
    assert why.removeprefix("builtins.") in caplog.text
    stats = group.stats
    assert (stats.peer_errors, stats.peer_loads, stats.local_loads) == (1, 0, 1)


def test_a_peer_that_asks_back(here: Daemon) -> None:
    """Two hosts that take each other for the owner: whoever asks back is not to wait for who asked first."""

    def answer(ctx: Any, request: GetRequest) -> GetResponse:
        with ThreadPoolExecutor(1) as other_host:
            served = other_host.submit(group.serve, request.key, None, None).result(PATIENCE)
        return GetResponse(value=b"by you: " + bytes(served))

    group = mpgroupcache.new_group("g", "1MiB", load, peers=Peer(answer))
    assert group.get(OWNED) == "by you: own"


def test_a_picker_that_fails_is_logged_once_a_minute(
    here: Daemon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def pick_peer(self, key: object) -> None:
            raise RuntimeError("no ring yet")

    group = mpgroupcache.new_group("g", 0, load, peers=Broken())
    for _ in range(3):
        assert group.get("k") == "own"
    assert group.stats.peer_errors == 3
    assert caplog.text.count("no ring yet") == 1
    monkeypatch.setattr(declared, "BLAME_INTERVAL", 0.0)
    assert group.get("k") == "own"
    assert caplog.text.count("no ring yet") == 2


def none_there(ctx: Any, request: GetRequest) -> GetResponse:
    raise NotFound(f"no {request.key.decode()}")


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("ages", [{}, {"negative_ttl": 60.0}])
def test_a_peer_that_says_that_there_is_none(here: Daemon, ages: dict[str, float], later: bool) -> None:
    """Nobody loads it here; and it is noted for as long as the group says."""

    async def get() -> None:
        await group.aget(OWNED)

    peer = (Async if later else Peer)(none_there)
    group = mpgroupcache.new_group("g", "1MiB", load_async if later else load, peers=peer, **ages)
    for _ in range(3):
        with pytest.raises(NotFound, match=f"^no {OWNED}$"):
            asyncio.run(get()) if later else group.get(OWNED)
        flush()
    stats = group.stats
    noted = 2 if ages else 0
    assert (stats.absent_hits, len(peer.asked)) == (noted, 3 - noted)
    assert (stats.peer_errors, stats.peer_loads, stats.local_loads) == (0, 3 - noted, 0)


@pytest.mark.parametrize("size", [100, 200_000])
def test_what_a_peer_has_is_kept_for_copy_ttl(here: Daemon, size: int) -> None:
    """A peer of an application's own says no ages: they count from its value's arrival."""
    peer = Peer(lambda ctx, request: GetResponse(value=bytes(size), minute_qps=1e9))
    group = mpgroupcache.new_group("g", "4MiB", load, peers=peer, ttl=600.0, copy_ttl=60.0)
    for asked in (1, 2):
        view = group.get(OWNED)
        assert 50 < view.ttl < 60.1  # type: ignore[operator]
        wait_until(lambda: group.lookup(OWNED) is not None)
        assert group.get(OWNED) == bytes(size)
        assert len(peer.asked) == asked
        advance(here.socket, 61)
        assert group.lookup(OWNED) is None


def test_stale_values_of_this_hosts_own_are_refreshed(here: Daemon) -> None:
    loads = itertools.count(1)
    peer = Peer(peer_value)
    group = mpgroupcache.new_group(
        "g", "1MiB", lambda ctx, key, dest: dest.set_string(f"own {next(loads)}"), peers=peer, ttl=60.0, stale=600.0
    )
    assert group.get("other") == "own 1"
    flush()
    advance(here.socket, 61)
    assert group.get("other") == "own 1"
    wait_until(lambda: group.get("other") == "own 2", "a refresh")
    assert group.stats.refreshes == 1
    assert peer.asked == []


def test_a_stale_copy_is_refreshed_on_the_loop_that_has_met_it(here: Daemon) -> None:
    """An async peer's: its clients belong to that loop."""
    loops: list[asyncio.AbstractEventLoop] = []

    class Noting(Async):
        async def get(self, ctx: Any, request: GetRequest) -> GetResponse:  # type: ignore[override]
            loops.append(asyncio.get_running_loop())
            return await super().get(ctx, request)

    peer = Noting(lambda ctx, request: GetResponse(value=b"%d" % len(loops), minute_qps=1e9))
    group = mpgroupcache.new_group("g", "1MiB", load, peers=peer, ttl=600.0, copy_ttl=600.0, stale=600.0, jitter=0.9)

    async def run() -> None:
        left: Any = 600.0
        while left > 500.0:  # by its jitter it is stale long before its copy_ttl is over
            key = f"{OWNED} {len(loops)}"
            await group.aget(key)
            flush()
            if (view := group.lookup(key)) is not None:
                left = view.ttl
        count = len(loops)
        advance(here.socket, left + 1)
        assert await group.aget(key) == str(count)
        async with asyncio.timeout(PATIENCE):
            while await group.aget(key) == str(count):
                await asyncio.sleep(0)
        assert loops == [asyncio.get_running_loop()] * (count + 1)

    asyncio.run(run())
    assert group.stats.refreshes == 1


def test_one_asks_for_all_who_wait(here: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    asked = count_asks(monkeypatch.setattr)

    def answer(ctx: Any, request: GetRequest) -> GetResponse:
        assert released.wait(PATIENCE)
        return GetResponse(value=b"once")

    peer = Peer(answer)
    group = mpgroupcache.new_group("g", 0, load, peers=peer)
    with ThreadPoolExecutor(4) as pool:
        gets = [pool.submit(group.get, OWNED) for _ in range(4)]
        wait_until(lambda: waiting_here() == 3, "gets that wait for the first")
        released.set()
        assert [get.result(PATIENCE) for get in gets] == ["once"] * 4
    assert len(peer.asked) == asked() == 1
    stats = group.stats
    assert (stats.peer_loads, stats.loads_deduped, stats.loads) == (1, 3, 4)


class Waiting:
    """Another process with the same picker."""

    def __init__(self, socket: str) -> None:
        mpgroupcache.configure(socket=socket)
        self.peer = Peer(peer_value)
        self.group = mpgroupcache.new_group("g", 0, load, peers=self.peer)
        self.pool = ThreadPoolExecutor(1)
        self._asked = count_asks()

    def begin(self) -> None:
        """Begin a get; returns when the coordinator knows of it."""
        self.begun = self.pool.submit(self.group.get, OWNED)
        wait_until(lambda: self._asked() == 1, "an ASK")
        flush()

    def end(self) -> tuple[str, int]:
        """What it was given, and how often it asked its peer."""
        return str(self.begun.result(PATIENCE)), len(self.peer.asked)


def test_one_process_asks_for_all_who_wait(here: Daemon, child: Callable[..., Child]) -> None:
    released, asked = threading.Event(), threading.Event()

    def answer(ctx: Any, request: GetRequest) -> GetResponse:
        asked.set()
        assert released.wait(PATIENCE)
        return GetResponse(value=b"once")

    group = mpgroupcache.new_group("g", 0, load, peers=Peer(answer))
    other = child(Waiting, here.socket)
    with ThreadPoolExecutor(1) as pool:
        get = pool.submit(group.get, OWNED)
        assert asked.wait(PATIENCE)
        other.call("begin")
        released.set()
        assert get.result(PATIENCE) == "once"
    assert other.call("end") == ("once", 0)
    stats = group.stats
    assert (stats.peer_loads, stats.loads_deduped, stats.loads, stats.local_loads) == (1, 1, 2, 0)


def test_asyncio(here: Daemon) -> None:
    later, plain = Async(peer_value), Peer(peer_value)
    first = mpgroupcache.new_group("first", "1MiB", load_async, peers=later)
    second = mpgroupcache.new_group("second", "1MiB", load, peers=plain)

    async def run() -> list[str]:
        return [str(await group.aget(key)) for group in (first, second) for key in (OWNED, "other")]

    assert asyncio.run(run()) == ["peer's owned", "own", "peer's owned", "own"]
    assert len(later.asked) == len(plain.asked) == 1


def test_a_peer_that_asks_for_its_own_key(here: Daemon) -> None:
    """A cycle is found through a peer too: the coordinator knows what its caller holds."""
    errors = []

    def answer(ctx: Any, request: GetRequest) -> GetResponse:
        try:
            group.get(OWNED)
        except LoadCycleError as error:
            errors.append(str(error))
            raise
        raise AssertionError

    group = mpgroupcache.new_group("g", "1MiB", load, peers=Peer(answer))
    assert group.get(OWNED) == "own"
    assert len(errors) == 1


def test_without_a_coordinator(tmp_path: Any, child: Callable[..., Child]) -> None:
    alone = child(Alone, str(tmp_path / "nobody"))
    assert alone.call("get", OWNED) == b"peer's owned"
    assert alone.call("get", "other") == b"own"


class Alone:
    def __init__(self, socket: str) -> None:
        mpgroupcache.configure(socket=socket)
        self.group = mpgroupcache.new_group("g", "1MiB", load, peers=Peer(peer_value))

    def get(self, key: str) -> bytes:
        return bytes(self.group.get(key))


def test_peers_that_pick_none() -> None:
    with pytest.raises(TypeError, match="peers: got str, expected an object with pick_peer"):
        mpgroupcache.new_group("g", 0, load, peers="http://10.0.0.1")  # type: ignore[arg-type]
    assert mpgroupcache.get_group("g") is None
    assert NoPeers().pick_peer("k") is None


# ---- What a process registers: each in one of its own


class Registering:
    """A process in which a test registers things; ``told`` says what they were called with."""

    def __init__(self, socket: str) -> None:
        mpgroupcache.configure(socket=socket)
        self.told: list[Any] = []

    def hooks(self) -> list[Any]:
        mpgroupcache.register_new_group_hook(lambda group: self.told.append(group.name))
        mpgroupcache.register_server_start(lambda: self.told.append("start"))
        for name in ("one", "two"):
            mpgroupcache.new_group(name, 0, load)
        return self.told

    def register_twice(self) -> list[str]:
        register: list[Callable[[], object]] = [
            lambda: mpgroupcache.register_new_group_hook(print),
            lambda: mpgroupcache.register_server_start(print),
            lambda: mpgroupcache.register_peer_picker(NoPeers),
        ]
        later: list[Callable[[], object]] = [
            *register,
            lambda: mpgroupcache.register_per_group_peer_picker(lambda name: None),
            lambda: mpgroupcache.HTTPPool("http://10.0.0.1:80"),
        ]
        for call in register:
            call()
        errors = []
        for call in later:
            with pytest.raises(RuntimeError) as raised:
                call()
            errors.append(str(raised.value))
        return errors

    def register_after(self, first: str) -> list[str]:
        """Sources of peers, each after another one; every one names that."""
        sources: dict[str, Callable[[], object]] = {
            "register_peer_picker": lambda: mpgroupcache.register_peer_picker(NoPeers),
            "register_per_group_peer_picker": lambda: mpgroupcache.register_per_group_peer_picker(lambda name: None),
            "HTTPPool": lambda: mpgroupcache.HTTPPool("http://10.0.0.1:80"),
        }
        sources.pop(first)()
        errors = []
        for register in sources.values():
            with pytest.raises(RuntimeError) as raised:
                register()
            errors.append(str(raised.value))
        return errors

    def pick(self, per_group: bool) -> list[Any]:
        def picker(*name: str) -> Peer | None:
            self.told.append(name)
            return None if name == ("none",) else Peer(peer_value)

        if per_group:
            mpgroupcache.register_per_group_peer_picker(picker)
        else:
            mpgroupcache.register_peer_picker(picker)
        groups = [mpgroupcache.new_group(name, 0, load) for name in ("some", "none")]
        groups.append(mpgroupcache.new_group("own", 0, load, peers=NoPeers()))
        values = [str(group.get(OWNED)) for group in groups for _ in range(2)]
        return [values[::2], values[1::2], self.told]


def test_hooks(here: Daemon, child: Callable[..., Child]) -> None:
    assert child(Registering, here.socket).call("hooks") == ["start", "one", "two"]


def test_registering_twice(here: Daemon, child: Callable[..., Child]) -> None:
    errors = child(Registering, here.socket).call("register_twice")
    assert [error.split(":")[0] for error in errors] == [
        "register_new_group_hook", "register_server_start", "register_peer_picker", "register_per_group_peer_picker",
        "HTTPPool",
    ]  # fmt: skip
    assert errors[-1].endswith("register_peer_picker was it")


@pytest.mark.parametrize("first", ["register_peer_picker", "register_per_group_peer_picker", "HTTPPool"])
def test_sources_of_peers_exclude_each_other(here: Daemon, child: Callable[..., Child], first: str) -> None:
    errors = child(Registering, here.socket).call("register_after", first)
    assert len(errors) == 2
    assert all(
        error.endswith(f"got a second source of peers, expected one in a process; {first} was it") for error in errors
    )


def test_a_registered_picker_is_asked_for_once_a_group(here: Daemon, child: Callable[..., Child]) -> None:
    first, second, told = child(Registering, here.socket).call("pick", False)
    assert first == second == ["peer's owned", "peer's owned", "own"]
    assert told == [(), ()]
    first, second, told = child(Registering, here.socket).call("pick", True)
    assert first == second == ["peer's owned", "own", "own"]
    assert told == [("some",), ("none",)]
