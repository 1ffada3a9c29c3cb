"""Values that live for a time, where workers serve peers and ask them: what crosses, and for how long it is kept."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from children import Child
from gopeers import GoPeer, Recorder
from workers import PATIENCE, Daemon, advance, count_asks, flush, wait_until

import mpgroupcache
from mpgroupcache import pool
from mpgroupcache.net import peerwire
from mpgroupcache.net.ages import encode_ages
from mpgroupcache.worker.process import current

SELF = "http://127.0.0.1:1"


class Look(NamedTuple):
    value: str
    version: int | None
    ttl: float | None


def look_at(view: mpgroupcache.ByteView) -> Look:
    return Look(str(view).rstrip(), view.version, view.ttl)


class Loading:
    """A worker whose loader says how often it has loaded a key.

    Of ``none:...`` there is no value, and one of ``once:...`` is not to be kept.
    """

    def __init__(self, socket: str, peer: str | None, ages: dict[str, float]) -> None:
        """``peer``: asked for what it owns."""
        mpgroupcache.configure(socket=socket)
        self._pool = ThreadPoolExecutor(1)
        self._loads: collections.Counter[str] = collections.Counter()
        pool.PEER_TIMEOUT = PATIENCE
        self.pool = mpgroupcache.HTTPPool(SELF)
        if peer is not None:
            self.pool.set(SELF, peer)
        self.group = mpgroupcache.new_group("g", "16MiB", self._load, peers=None if peer is None else self.pool, **ages)
        mpgroupcache.connect()

    def _load(self, ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        self._loads[key] += 1
        if key.startswith("none:"):
            raise mpgroupcache.NotFound(f"no {key}")
        value = f"{key} {self._loads[key]}"
        if key.startswith("once:"):
            dest.set_string(value, ttl=0)
        else:
            dest.set_string(value)

    def loads(self) -> dict[str, int]:
        return dict(self._loads)

    def theirs(self, prefix: str, count: int) -> list[str]:
        """Keys that the peer owns."""
        keys = [f"{prefix}{i}" for i in range(100 * count)]
        return [key for key in keys if self.pool.pick_peer(key) is not None][:count]

    def get(self, key: str) -> Look:
        return look_at(self.group.get(key))

    def begin(self, key: str) -> None:
        """Begin a get that misses; returns when the coordinator knows of it."""
        asked = count_asks()
        self._begun = self._pool.submit(self.get, key)
        wait_until(lambda: asked() == 1, "an ASK")
        flush()

    def end(self) -> Look:
        """What it was given."""
        return self._begun.result(PATIENCE)

    def lookup(self, key: str) -> Look | None:
        """What is there, when all that this worker has sent is."""
        flush()
        view = self.group.lookup(key)
        return None if view is None else look_at(view)

    def error(self, key: str) -> str:
        with pytest.raises(mpgroupcache.NotFound) as raised:
            self.group.get(key)
        return str(raised.value)

    def stats(self) -> mpgroupcache.Stats:
        if current().working_link is not None:
            flush()
        return self.group.stats


class Quiet(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Say nothing."""


class Serving(Loading):
    """The same, which serves peers itself."""

    def __init__(self, socket: str, ages: dict[str, float]) -> None:
        super().__init__(socket, None, ages)
        self._server = make_server("127.0.0.1", 0, self.pool.wsgi, handler_class=Quiet)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


@pytest.fixture
def sockets(start_coordinator: Callable[..., Daemon], tmp_path: Path) -> tuple[str, str]:
    """Of the coordinators of two hosts."""
    one, other = (start_coordinator(socket=str(tmp_path / name)).socket for name in ("one", "other"))
    return one, other


@pytest.fixture(params=["with coordinators", "without one here", "without one there", "without any"])
def some_sockets(request: pytest.FixtureRequest, sockets: tuple[str, str], tmp_path: Path) -> tuple[str, str]:
    """The same, where there may be none."""
    nobody = str(tmp_path / "nobody")
    here, there = sockets
    return (
        nobody if request.param in ("without one here", "without any") else here,
        nobody if request.param in ("without one there", "without any") else there,
    )


def test_ages_versions_and_absence_cross(
    some_sockets: tuple[str, str], tmp_path: Path, child: Callable[..., Child]
) -> None:
    here, there = some_sockets
    nobody = str(tmp_path / "nobody")
    ages = {"ttl": 60.0, "stale": 600.0, "negative_ttl": 60.0}
    owner = child(Serving, there, ages)
    asking = child(Loading, here, owner.call("url"), ages)
    for key in asking.call("theirs", "k", 20):
        got, owners = asking.call("get", key), owner.call("get", key)
        assert got.value == owners.value == f"{key} 1"
        assert 4 < got.ttl < 5.1  # copy_ttl
        assert 50 < owners.ttl < 60.1
        assert (owners.version is None) is (there == nobody)
        assert (got.version is None) is (here == nobody)
        if there != nobody and here != nobody:
            assert got.version == owners.version
    for key in asking.call("theirs", "none:", 3):
        assert [asking.call("error", key) for _ in range(3)] == [f"no {key}"] * 3
    assert asking.call("loads") == {}
    stats = asking.call("stats")
    assert (stats.peer_errors, stats.local_loads) == (0, 0)


def test_what_is_left_of_ages_crosses(sockets: tuple[str, str], child: Callable[..., Child]) -> None:
    """Of a value that the owner has, and nothing of one that it does not keep."""
    here, there = sockets
    ages = {"ttl": 10_000.0, "copy_ttl": 5000.0, "stale": 10_000.0, "negative_ttl": 10_000.0}
    owner = child(Serving, there, ages)
    asking = child(Loading, here, owner.call("url"), ages)
    keys = asking.call("theirs", "k", 3)
    absent, *_ = asking.call("theirs", "none:", 1)
    for key in keys:
        owner.call("get", key)
        assert owner.call("lookup", key) is not None
    wait_until(lambda: owner.call("error", absent) and owner.call("stats").absent_hits, "an absence there")
    advance(there, 9000)
    assert 900 < asking.call("get", keys[0]).ttl < 1001
    assert asking.call("error", absent) == f"no {absent}"
    loads, served = owner.call("loads"), owner.call("stats").server_requests
    wait_until(lambda: asking.call("error", absent) and asking.call("stats").absent_hits, "an absence here")
    assert owner.call("stats").server_requests == served
    advance(here, 1001)
    assert asking.call("error", absent) == f"no {absent}"  # no longer than there
    assert owner.call("stats").server_requests == served + 1
    advance(there, 3000)
    assert -2001 < asking.call("get", keys[1]).ttl < -1990  # it is stale there
    wait_until(lambda: owner.call("loads") != loads, "a refresh there")
    for key in asking.call("theirs", "once:", 60):  # of what one knows no rate, a tenth would be kept
        assert asking.call("get", key).ttl <= 0
        assert asking.call("lookup", key) is None
    assert asking.call("loads") == {}


def test_absence_is_not_noted_where_the_group_does_not_say_so(
    sockets: tuple[str, str], child: Callable[..., Child]
) -> None:
    here, there = sockets
    owner = child(Serving, there, {"negative_ttl": 60.0})
    asking = child(Loading, here, owner.call("url"), {})
    (key,) = asking.call("theirs", "none:", 1)
    for _ in range(3):
        assert asking.call("error", key) == f"no {key}"
        assert asking.call("stats").absent_hits == 0
    assert owner.call("stats").server_requests == 3
    assert owner.call("loads") == {key: 1}


def test_a_copy_lives_for_copy_ttl_at_most(sockets: tuple[str, str], child: Callable[..., Child]) -> None:
    here, there = sockets
    owner = child(Serving, there, {"ttl": 60.0})
    asking = child(Loading, here, owner.call("url"), {"ttl": 60.0})
    copied = []
    for key in asking.call("theirs", "k", 300):  # a tenth of them is kept
        version = asking.call("get", key).version
        if (copy := asking.call("lookup", key)) is not None:
            assert copy.version == version
            copied.append(key)
            if len(copied) == 3:
                break
    assert len(copied) == 3
    advance(here, 6)
    for key in copied:
        assert asking.call("lookup", key) is None
        assert asking.call("get", key).value == f"{key} 1"


def test_a_go_peers_value_lives_for_copy_ttl_at_most(
    sockets: tuple[str, str], child: Callable[..., Child], start_go_peer: Callable[..., GoPeer]
) -> None:
    """It says nothing of ages: they are the group's own, from its arrival."""
    go = start_go_peer("-groups", "g")
    asking = child(Loading, sockets[0], go.url, {"ttl": 60.0})
    (key,) = asking.call("theirs", "k", 1)
    got = asking.call("get", key)
    assert got.value == f"V:g:{key}"
    assert 4 < got.ttl < 5.1


def test_absence_is_an_error_to_a_go_peer(
    sockets: tuple[str, str], child: Callable[..., Child], start_go_peer: Callable[..., GoPeer]
) -> None:
    """As all others are: it loads."""
    owner = child(Serving, sockets[1], {})
    go = start_go_peer("-groups", "g")
    go.set_peers(owner.call("url"))
    assert go.get("g", b"k") == b"k 1"
    assert go.get("g", b"none:k") == b"V:g:none:k"
    assert owner.call("loads") == {"k": 1, "none:k": 1}


@pytest.fixture
def teller() -> Iterator[Teller]:
    """A peer that says in its answers what a test has it say."""
    teller = Teller()
    yield teller
    teller.close()


class Teller(Recorder):
    says: tuple[float | None, float | None, int | None] = 100.0, 10_000.0, 7
    """Its values' ages and version."""
    rate: float | None = 1e9
    size = 0
    """Of its values, at least."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.released = threading.Event()
        """Before it is set, it does not answer."""
        self.released.set()

    def _answer(self, target: bytes) -> bytes:
        assert self.released.wait(PATIENCE)
        value = b"%s %d" % (target.rpartition(b"/")[2], len(self.requests))
        value = value.ljust(self.size)
        body = b"".join([(parts := peerwire.response_head(len(value), self.rate))[0], value, parts[1]])
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n" % (peerwire.CONTENT_TYPE, len(body))
        return b"%s%s: ages\r\n%s\r\n%s" % (head, peerwire.ABILITIES, encode_ages(*self.says), body)


@pytest.mark.parametrize("rate", [1e9, None])
@pytest.mark.parametrize("size", [0, 200_000])
def test_who_waits_for_what_another_process_asks_is_told_its_version(
    sockets: tuple[str, str], child: Callable[..., Child], teller: Teller, size: int, rate: float | None
) -> None:
    """Whether it is kept or not."""
    teller.size, teller.rate = size, rate
    teller.released.clear()
    workers = [child(Loading, sockets[0], teller.url, {}) for _ in range(2)]
    (key,) = workers[0].call("theirs", "k", 1)
    workers[0].call("begin", key)
    wait_until(lambda: teller.requests, "a request")
    workers[1].call("begin", key)
    teller.released.set()
    for worker in workers:
        got = worker.call("end")
        assert got[:2] == (f"{key} 1", 7)
        assert 90 < got.ttl < 100.1


# ---- Refreshes


@pytest.mark.parametrize("size", [0, 200_000])
def test_a_stale_copy_is_refreshed_by_the_peer_that_was_picked(
    sockets: tuple[str, str], child: Callable[..., Child], teller: Teller, size: int
) -> None:
    """The old one is returned meanwhile; and once for all processes of the host."""
    here, _ = sockets
    teller.size = size
    ages = {"ttl": 5000.0, "copy_ttl": 1000.0}
    workers = [child(Loading, here, teller.url, ages) for _ in range(2)]
    (key,) = workers[0].call("theirs", "k", 1)
    first = workers[0].call("get", key)
    assert first[:2] == (f"{key} 1", 7)
    copy = workers[1].call("get", key)
    assert copy[:2] == (f"{key} 1", 7)
    assert 90 < copy.ttl < 100.1
    wait_until(lambda: workers[0].call("lookup", key), "a copy")
    advance(here, 200)
    teller.says = 500.0, None, 8
    for worker in workers:
        assert worker.call("get", key)[:2] in ((f"{key} 1", 7), (f"{key} 2", 8))
    wait_until(lambda: workers[0].call("get", key)[:2] == (f"{key} 2", 8), "a refresh")
    assert 490 < workers[1].call("get", key).ttl < 500.1
    stats = workers[0].call("stats")
    assert (stats.refreshes, stats.refresh_errors, stats.local_loads, stats.peer_loads) == (1, 0, 0, 2)
    assert len(teller.requests) == 2
    assert [worker.call("loads") for worker in workers] == [{}, {}]


@pytest.mark.parametrize("size", [0, 200_000])
def test_a_stale_copy_whose_successor_is_not_kept_is_gone(
    sockets: tuple[str, str], child: Callable[..., Child], teller: Teller, size: int
) -> None:
    """Of a value without a rate a tenth is kept."""
    here, _ = sockets
    worker = child(Loading, here, teller.url, {"ttl": 5000.0, "copy_ttl": 1000.0})
    (key,) = worker.call("theirs", "k", 1)
    worker.call("get", key)
    wait_until(lambda: worker.call("lookup", key), "a copy")
    advance(here, 200)
    teller.size, teller.rate = size, None
    assert worker.call("get", key).value == f"{key} 1"
    wait_until(lambda: (there := worker.call("lookup", key)) is None or there.value == f"{key} 2", "a refresh")


def test_a_refresh_whose_peer_does_not_answer_is_begun_anew(
    sockets: tuple[str, str], child: Callable[..., Child], teller: Teller
) -> None:
    """By the next stale hit after its time: nobody waits for it, so that nobody looks whether it lives."""
    here, _ = sockets
    workers = [child(Loading, here, teller.url, {"ttl": 5000.0, "copy_ttl": 1000.0}) for _ in range(2)]
    (key,) = workers[0].call("theirs", "k", 1)
    for worker in workers:
        worker.call("get", key)
    wait_until(lambda: workers[0].call("lookup", key), "a copy")
    teller.released.clear()
    advance(here, 200)
    for requests, worker in zip((2, 3), workers, strict=True):
        assert worker.call("get", key).value == f"{key} 1"
        wait_until(lambda requests=requests: len(teller.requests) == requests, "a request")
        advance(here, 31)  # the lease timeout's 30 s
    teller.released.set()
    wait_until(lambda: workers[0].call("get", key).value == f"{key} 3", "a refresh")


def test_a_stale_copy_whose_peer_is_gone_is_loaded_here(
    sockets: tuple[str, str], child: Callable[..., Child], teller: Teller
) -> None:
    here, _ = sockets
    worker = child(Loading, here, teller.url, {"ttl": 5000.0, "copy_ttl": 1000.0})
    (key,) = worker.call("theirs", "k", 1)
    worker.call("get", key)
    assert worker.call("lookup", key) is not None
    advance(here, 200)
    teller.close()
    assert worker.call("get", key).version == 7
    wait_until(lambda: worker.call("get", key).ttl > 1000, "our own value")
    assert worker.call("loads") == {key: 1}
