"""``HTTPPool`` where it runs: in a web application, in the coordinator, in a worker."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import Child
from gopeers import Answer, GoPeer, Recorder, exchange
from peerkeys import ODD_KEYS
from rings import addresses
from salted import salted
from servers import WORKERS, Server
from workers import Daemon, advance, wait_until

import mpgroupcache
from mpgroupcache.net import peerwire
from mpgroupcache.net.ages import read_ages
from mpgroupcache.net.consistenthash import HASHES, Map

HERE = Path(__file__).parent


@pytest.fixture(params=["sync", "gthread", "asgi"])
def served(request: pytest.FixtureRequest, serve: Callable[..., Server]) -> Server:
    """The application that serves peers, under gunicorn."""
    application = "peer:app" if request.param in ("sync", "gthread") else "peer:asgi"
    return serve(request.param, application=application)


def ask(server: Server, path: str, method: bytes = b"GET", *headers: bytes) -> Answer:
    answer = exchange(f"http://127.0.0.1:{server._port}", path.encode(), method, *headers)
    assert answer is not None
    return answer


def value(answer: Answer) -> bytes:
    assert answer.status == 200, answer
    assert answer.headers.get("Content-Type", answer.headers.get("content-type")) == "application/x-protobuf"
    return peerwire.decode_response(answer.body).value


def loader_error(answer: Answer) -> object:
    return peerwire.loader_error(500, [(n.encode(), v.encode()) for n, v in answer.headers.items()], answer.body)


def test_requests_are_answered_as_the_coordinator_does(served: Server) -> None:
    keys = [key for key in ODD_KEYS.values() if len(key) < 1000]  # gunicorn takes request lines of 4 KiB
    for key in keys:
        target = peerwire.request_target(peerwire.DEFAULT_BASE_PATH, "g", key).decode()
        assert value(ask(served, target)) == b"V:g:" + key
        assert value(ask(served, target)) == b"V:g:" + key  # from the cache
    # As Go's client writes them.
    assert value(ask(served, "/_groupcache/g/a+b%2Bc")) == b"V:g:a b+c"
    assert value(ask(served, "/_groupcache/async/k")) == b"V:g:k"
    assert value(ask(served, "/_groupcache/g/size:300000")) == b"x" * 300_000
    assert value(ask(served, "/_groupcache/g/size:0")) == b""
    assert value(ask(served, "/_groupcache/g/ctx")) == b"g nobody 127.0.0.1"
    assert value(ask(served, "/_groupcache/g/ctx2", b"GET", b"X-Who: ann")) == b"g ann 127.0.0.1"
    head = ask(served, "/_groupcache/g/size:300000", b"HEAD")
    assert (head.status, head.body) == (200, b"")
    bad = ask(served, "/_groupcache/g")
    assert (bad.status, bad.body) == (400, b"bad request\n")
    unknown = ask(served, "/_groupcache/nobody/k")
    assert (unknown.status, unknown.body) == (404, b"no such group: nobody\n")
    failed = ask(served, "/_groupcache/g/fail:boom")
    assert (failed.status, failed.body) == (500, b"boom\n")
    assert loader_error(failed)
    refused = ask(served, "/_groupcache/g/bad%20context")
    assert (refused.status, refused.body) == (500, b"context: 'x-who'\n")
    assert not loader_error(refused)  # whoever asks loads it
    wait_until(lambda: int(ask(served, "/").body) == 2 * len(keys) + 7, "requests that were counted")


def test_other_methods_load_nothing(served: Server) -> None:
    for method in (b"DELETE", b"OPTIONS", b"POST", b"PUT"):
        for path in ("/_groupcache/g/k", "/_groupcache/g/bad%20context", "/_groupcache/nobody/k", "/_groupcache/g"):
            answer = ask(served, path, method)
            assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")
            assert answer.headers.get("Allow", answer.headers.get("allow")) == "GET, HEAD"
    assert value(ask(served, "/_groupcache/g/k")) == b"V:g:k"
    wait_until(lambda: int(ask(served, "/").body) == 1, "the one request that was counted")


def test_an_application_says_what_it_can_do(served: Server) -> None:
    """All but rates, which its values do not have, and many keys at once."""
    for path in ("/_groupcache/", "/_groupcache/g/k", "/_groupcache/g/fail:boom", "/_groupcache/nobody/k"):
        for method in (b"GET", b"HEAD", b"PUT"):
            answer = ask(served, path, method)
            headers = [(name.encode(), text.encode()) for name, text in answer.headers.items()]
            said = peerwire.read_abilities(answer.status, headers)
            assert said == {"absence", "ages", "load-error", "timeout"}
    assert peerwire.decode_response(ask(served, "/_groupcache/g/k").body).minute_qps is None
    wait_until(lambda: int(ask(served, "/").body) == 5, "no request of the base path that was counted")


def left(answer: Answer) -> Any:
    """What an answer says of ages. Clocks of processes are some milliseconds apart."""
    return read_ages((name.encode(), text.encode()) for name, text in answer.headers.items())


def test_an_application_says_what_is_left_of_ages(served: Server) -> None:
    def ask_again(key: str = "k") -> Any:
        return left(ask(served, f"/_groupcache/aged/{key}"))

    first = ask_again()
    assert 900 < first.fresh < 1001
    assert first.fresh <= first.dead < 10_001
    kept = wait_until(lambda: (said := ask_again()).dead > 9000 and said, "a value in the arena")
    assert kept.version == first.version is not None
    assert 900 < kept.fresh < 1001
    advance(served.socket_path, 2000)
    stale = ask_again()
    assert stale.version == first.version
    assert -1100 < stale.fresh < -999
    assert 7900 < stale.dead < 8001
    wait_until(lambda: ask_again().version != first.version, "a refresh")
    assert ask_again("once:k").dead == 0  # it is for who asked
    assert left(ask(served, "/_groupcache/g/k"))[:2] == (None, None)


def test_an_application_says_that_there_is_no_such_value(served: Server) -> None:
    def ask_again(group: str = "aged") -> Any:
        answer = ask(served, f"/_groupcache/{group}/none:k")
        assert (answer.status, answer.body) == (404, b"k\n")
        headers = [(name.encode(), text.encode()) for name, text in answer.headers.items()]
        assert peerwire.absence(answer.status, headers, answer.body) == "k"
        return left(answer).dead

    for _ in range(3):
        assert ask_again("g") == 0  # it is not kept
    wait_until(lambda: 900 < ask_again() < 1001, "an absence that is noted")
    advance(served.socket_path, 900)
    assert 0 < ask_again() < 101


def test_a_group_without_a_loader_is_this_hosts_own(served: Server) -> None:
    answer = ask(served, "/_groupcache/plain/k")
    assert (answer.status, answer.body) == (404, b"no such group: plain\n")


@pytest.mark.parametrize("worker_class", ["sync", "asgi"])
def test_an_application_without_a_coordinator_says_what_is_left_of_ages(
    serve: Callable[..., Server], tmp_path: Path, worker_class: str
) -> None:
    """Also of what it keeps for seconds."""
    application = "peer:app" if worker_class == "sync" else "peer:asgi"
    server = serve(worker_class, application=application, socket_path=str(tmp_path / "nobody"))
    for _ in range(WORKERS + 1):
        said = left(ask(server, "/_groupcache/aged/k"))
        assert 900 < said.fresh <= said.dead < 1001
        assert said.version is None
        answer = ask(server, "/_groupcache/aged/none:k")
        assert (answer.status, left(answer).dead) == (404, 0)


def test_a_go_peer_asks_an_application(served: Server, start_go_peer: Callable[..., GoPeer]) -> None:
    go = start_go_peer("-groups", "g")
    go.set_peers(f"http://127.0.0.1:{served._port}")  # which owns every key
    for key in (b"plain", b"a/b", b"a b+c", "schlüssel".encode(), b"\xff\x00"):
        assert go.get("g", key) == b"V:g:" + key
    with pytest.raises(LookupError, match="boom"):
        go.get("g", b"fail:boom")
    assert go.loads("g") == {b"fail:boom": 1}  # Go loads again what its peer's loader raised


def test_a_path_that_is_unescaped_already() -> None:
    """Some servers give no raw path. A plus in it may have been a space: a guess could be another key's value."""
    from mpgroupcache import serving

    told: list[Any] = []
    environ = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/_groupcache/g/a+b"}
    [body] = serving.wsgi("/_groupcache/", None, environ, lambda status, headers: told.append(status))
    assert told == ["501 Not Implemented"]
    assert b"raw path" in body
    environ["PATH_INFO"] = "/_groupcache/nobody/ä b/c".encode().decode("latin-1")
    assert list(serving.wsgi("/_groupcache/", None, environ, lambda status, headers: told.append(status))) == [
        b"no such group: nobody\n"
    ]


# ---- In the coordinator


@pytest.fixture
def hooked_ring(
    spawn_hooked: Callable[[str, str, list[str]], Daemon], tmp_path: Path
) -> tuple[list[str], list[Daemon]]:
    places = addresses(2)
    ring = [f"http://{place}" for place in places]
    return ring, [spawn_hooked(str(tmp_path / f"s{i}"), place, ring) for i, place in enumerate(places)]


@pytest.fixture
def spawn_hooked() -> Iterator[Callable[[str, str, list[str]], Daemon]]:
    """Start coordinators that import ``hooked_app``."""
    started: list[Daemon] = []

    def start(socket: str, address: str, ring: list[str]) -> Daemon:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "TEST_NAME": address,
            "TEST_SELF": f"http://{address}",
            "TEST_RING": " ".join(ring),
        }
        started.append(Daemon(socket, "--listen", address, "--app", "hooked_app", env=environment))
        return started[-1].wait_serving()

    yield start
    for daemon in started:
        daemon.close()


class Asking:
    """A worker that makes no pool."""

    def __init__(self, socket: str) -> None:
        mpgroupcache.configure(socket=socket)
        self.group = mpgroupcache.new_group("g", 0, lambda ctx, key, dest: dest.set_string("own"))
        assert mpgroupcache.connect()

    def get(self, key: str) -> str:
        return str(self.group.get(key))


def test_functions_of_the_module_that_the_coordinator_imports(
    hooked_ring: tuple[list[str], list[Daemon]], child: Callable[..., Child]
) -> None:
    ring, daemons = hooked_ring
    asking = child(Asking, daemons[0].socket)
    points = Map(50, salted)
    points.add(*ring)
    theirs = [key for key in map(str, range(40)) if points.get(key) == ring[1]]
    assert 0 < len(theirs) < 40
    here, there = (url.removeprefix("http://") for url in ring)
    own = ("own", f"{here} for None")  # this worker's, or the host's loader process's
    wait_until(lambda: asking.call("get", theirs[0]) != "own", "the other host's loader")
    for key in map(str, range(40)):
        # The owner by that hash; through the transport, whose header its context saw, and its loader was told of.
        got = asking.call("get", key)
        assert got == f"{there} for hooked" if key in theirs else got in own
    bad = exchange(ring[1], b"/_groupcache/g/bad%20context")
    assert bad is not None
    assert (bad.status, bad.body) == (500, b"context: not for you\n")
    daemons[1].close()  # and its keys are this host's
    for key in theirs:
        assert asking.call("get", key) in own


class Pooled:
    """A worker with a pool."""

    def __init__(self, socket: str, self_url: str, ring: list[str], **hooks: Any) -> None:
        mpgroupcache.configure(socket=socket)
        self.pool = mpgroupcache.HTTPPool(self_url, **hooks)
        self.pool.set(*ring)
        self.group = mpgroupcache.new_group("g", 0, lambda ctx, key, dest: dest.set_string("own"))
        self.direct = mpgroupcache.new_group(
            "direct", 0, lambda ctx, key, dest: dest.set_string("own"), peers=self.pool
        )
        assert mpgroupcache.connect()

    def get(self, key: str) -> str:
        return str(self.group.get(key))

    def get_direct(self, key: str, ctx: Any = None) -> str:
        return str(self.direct.get(key, ctx=ctx))

    def refused(self, peers: list[str]) -> str:
        with pytest.raises(ValueError) as raised:  # noqa: PT011 - its text is the result
            self.pool.set(*peers)
        return str(raised.value)

    def make_another(self) -> str:
        with pytest.raises(RuntimeError) as raised:
            mpgroupcache.HTTPPool("http://127.0.0.1:3")
        return str(raised.value)

    def picked(self, keys: list[str]) -> list[str | None]:
        return [None if (peer := self.pool.pick_peer(key)) is None else repr(peer) for key in keys]


class Naming(urllib.request.BaseHandler):
    """Puts the ``ctx`` of the get into each request."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        request.add_header("X-Ctx", str(self._ctx))
        return request


def naming(ctx: Any) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), Naming(ctx))


def hooked_pool(socket: str, self_url: str, ring: list[str]) -> Pooled:
    return Pooled(socket, self_url, ring, hash_fn=salted, transport=naming)


def other_pool(socket: str, self_url: str, ring: list[str]) -> Pooled:
    return Pooled(socket, self_url, ring, hash_fn="fnv1a", replicas=7, base_path="/cache/")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A peer whose values are the targets that it is asked for."""

    def answer(target: bytes) -> bytes:
        body = b"".join([(parts := peerwire.response_head(len(target)))[0], target, parts[1]])
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (peerwire.CONTENT_TYPE, len(body))
        return head + body

    recorder = Recorder(answer)
    yield recorder
    recorder.close()


def test_functions_that_the_coordinator_does_not_have(
    here: Daemon, child: Callable[..., Child], capfd: pytest.CaptureFixture[str]
) -> None:
    ring = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    worker = child(hooked_pool, here.socket, ring[0], ring)
    assert {worker.call("get", key) for key in map(str, range(20))} == {"own"}
    assert "hash_fn and transport: got functions, which the coordinator does not have" in capfd.readouterr().err


def test_functions_where_a_worker_asks_itself(here: Daemon, child: Callable[..., Child], recorder: Recorder) -> None:
    """With the pool as a group's own picker they run in the worker, and the transport is told of the get's ``ctx``."""
    ring = ["http://127.0.0.1:1", recorder.url]
    worker = child(hooked_pool, here.socket, ring[0], ring)
    points = Map(50, salted)
    points.add(*ring)
    theirs = [key for key in map(str, range(40)) if points.get(key) == recorder.url]
    assert 0 < len(theirs) < 40
    for key in map(str, range(40)):
        value = worker.call("get_direct", key, f"ctx of {key}")
        assert value == (f"/_groupcache/direct/{key}" if key in theirs else "own")
    assert [
        [line.lower() for line in headers if line.lower().startswith(b"x-ctx")] for _, headers in recorder.requests
    ] == [[b"x-ctx: ctx of " + key.encode()] for key in theirs]


@pytest.mark.parametrize("method", ["get", "get_direct"])
def test_a_ring_of_another_kind(here: Daemon, child: Callable[..., Child], recorder: Recorder, method: str) -> None:
    """Where its hash has a name the coordinator asks by it, as the worker does: Go's ``HTTPPoolOptions``."""
    ring = ["http://127.0.0.1:1", recorder.url]
    points = Map(7, HASHES["fnv1a"])
    points.add(*ring)
    # The recorder's port is as it comes, and this hash keeps keys in order together: with some ports the first dozens
    # have one owner.
    keys = [[key for key in map(str, range(1000)) if points.get(key) == url][:20] for url in ring]
    assert all(keys)
    worker = child(other_pool, here.socket, ring[0], ring)
    group = "g" if method == "get" else "direct"
    assert [[worker.call(method, key) for key in some] for some in keys] == [
        ["own"] * len(keys[0]),
        [f"/cache/{group}/{key}" for key in keys[1]],
    ]


def test_a_second_pool(here: Daemon, child: Callable[..., Child]) -> None:
    worker = child(Pooled, here.socket, "http://127.0.0.1:1", [])
    assert worker.call("make_another").startswith("HTTPPool: got a second one, for http://127.0.0.1:3, expected one in")


def test_picking_in_a_worker(here: Daemon, child: Callable[..., Child], start_go_peer: Callable[..., GoPeer]) -> None:
    go = start_go_peer("-groups", "direct")
    ring = ["http://127.0.0.1:1", go.url]
    worker = child(Pooled, here.socket, ring[0], ring)
    keys = [str(i) for i in range(20)]
    points = Map(50)
    points.add(*ring)
    assert worker.call("picked", keys) == [
        None if points.get(key) == ring[0] else f"<peer at {go.url}/_groupcache/>" for key in keys
    ]
    for key in keys:
        owned = points.get(key) == ring[0]
        assert worker.call("get_direct", key) == ("own" if owned else f"V:direct:{key}")
    assert len(go.loads("direct")) == sum(points.get(key) == go.url for key in keys)


@pytest.mark.parametrize(
    ("hooks", "error", "text"),
    [
        ({"hash_fn": "md5"}, ValueError, "hash_fn: got 'md5', expected a function"),
        ({"hash_fn": 7}, TypeError, "hash_fn: got int, expected a function"),
        ({"context": "x"}, TypeError, None),
        ({"replicas": 0}, ValueError, "replicas: got 0"),
        ({"replicas": 10_001}, ValueError, "replicas: got 10001, expected at most 10000"),
        ({"base_path": f"/{'x' * 2000}/"}, ValueError, "base_path: got 2002 characters, expected at most 2000"),
        ({"base_path": "x"}, ValueError, "base path: got 'x'"),
    ],
)
def test_pools_that_cannot_be(hooks: dict[str, Any], error: type[Exception], text: str | None) -> None:
    with pytest.raises(error, match=text):
        mpgroupcache.HTTPPool("http://127.0.0.1:1", **hooks)
    from mpgroupcache import pool

    assert pool.made() is None


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        (["http://10.0.0.1:80"] * 4097, "got 4097 peers of 86037 bytes, expected at most 4096 of 245760"),
        (["http://" + "x" * 200] * 2000, "got 2000 peers of 420000 bytes, expected at most 4096 of 245760"),
        (["http://h/" + "x" * 2000], "got a URL of 2009 characters, expected at most 2000"),
    ],
    ids=["many", "long together", "long"],
)
def test_rings_that_cannot_be(here: Daemon, child: Callable[..., Child], peers: list[str], text: str) -> None:
    """The coordinator would close the connection that brings one, each time anew."""
    worker = child(Pooled, here.socket, "http://127.0.0.1:1", [])
    assert f"HTTPPool.set: {text}" in worker.call("refused", peers)
    assert worker.call("get", "k") == "own"
