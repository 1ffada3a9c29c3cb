"""The application's face, in one process with a real coordinator."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from workers import Daemon, advance, segments_of, value_of, wait_until

import mpgroupcache
from mpgroupcache import (
    BytesSink,
    ByteView,
    ByteViewSink,
    CacheType,
    DeadlineExceeded,
    LoadCycleError,
    Sink,
    StringSink,
    TruncatingSink,
)
from mpgroupcache.getters import BoundGetter
from mpgroupcache.ipc.messages import Failed, FailureCode, Pong
from mpgroupcache.shm._group import with_own_get
from mpgroupcache.worker import process


def load(ctx: Any, key: str | bytes, dest: Sink) -> None:
    """Tell who asked for what."""
    dest.set_string(f"{ctx}:{type(key).__name__}:{key!r}")


def test_get(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    view = group.get("cat.jpg", ctx="me")
    assert isinstance(view, ByteView)
    assert view == "me:str:'cat.jpg'"
    wait_until(lambda: group.lookup("cat.jpg"))
    assert group.get("cat.jpg", ctx="other") == "me:str:'cat.jpg'"
    assert group.get(b"cat.jpg") == "me:str:'cat.jpg'"  # the two spellings are one entry
    assert group.name == "g"
    assert mpgroupcache.get_group("g") is group
    assert mpgroupcache.get_group("none") is None
    assert repr(group) == "<mpgroupcache.Group 'g' (1 MiB, attached)>"


def test_its_text_says_the_budget_that_is_in_force(
    start_coordinator: Callable[..., Daemon], here: Daemon, socket_path: str
) -> None:
    """Which is not what was asked for, where the first declaration or --max-bytes said less."""
    mpgroupcache.configure(socket=start_coordinator("--max-bytes", "512KiB", socket=f"{socket_path}-2").socket)
    group = mpgroupcache.new_group("g", "1MiB", load)
    assert repr(group) == "<mpgroupcache.Group 'g' (1 MiB, not attached)>"
    group.get("k")
    assert repr(group) == "<mpgroupcache.Group 'g' (512 KiB, attached)>"


@pytest.mark.parametrize(
    ("key", "seen"),
    [
        ("", "str:''"),
        (b"", "str:''"),
        ("ä€😀", "str:'ä€😀'"),
        ("ä€😀".encode(), "str:'ä€😀'"),
        (b"\xff\x00", "bytes:b'\\xff\\x00'"),
        ("a\0b", "str:'a\\x00b'"),
    ],
)
def test_keys(here: Daemon, key: str | bytes, seen: str) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    assert group.get(key) == f"None:{seen}"
    wait_until(lambda: group.lookup(key))
    other = key.decode() if isinstance(key, bytes) and not key.startswith(b"\xff") else key
    assert group.get(other) == f"None:{seen}"


@pytest.mark.parametrize("key", ["x" * (1 << 16), b"\xff" * (1 << 16)])
def test_the_longest_keys(here: Daemon, key: str | bytes) -> None:
    group = mpgroupcache.new_group("g", "8MiB", lambda ctx, key, dest: dest.set_string("v"))
    assert group.get(key) == "v"
    wait_until(lambda: group.lookup(key))
    with pytest.raises(ValueError, match="65536"):
        group.get(key + key[:1])  # type: ignore[operator]


@pytest.mark.parametrize(("key", "error"), [("\ud800", ValueError), (7, TypeError), (None, TypeError)])
def test_keys_that_cannot_be(here: Daemon, key: Any, error: type[Exception]) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    with pytest.raises(error, match="key: got"):
        group.get(key)


def test_sinks(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string("héllo"))
    text, raw, view, cut = StringSink(), BytesSink(), ByteViewSink(), TruncatingSink(bytearray(3))
    for sink in (text, raw, view, cut):
        assert group.get("k", sink) is None
    assert text.value == "héllo"
    assert raw.value == "héllo".encode()
    assert view.value == "héllo"
    assert cut.n == 3
    with pytest.raises(TypeError, match="dest"):
        group.get("k", [])  # type: ignore[call-overload]


def test_declarations() -> None:
    group = mpgroupcache.new_group("declared once", 0, load)
    try:
        with pytest.raises(ValueError, match="declared already"):
            mpgroupcache.new_group("declared once", 0, load)
    finally:
        from mpgroupcache import registry

        del registry._groups["declared once"]
    assert not group.attached
    with pytest.raises(TypeError, match="getter"):
        mpgroupcache.new_group("g", 0, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name"):
        mpgroupcache.new_group("", 0, load)
    with pytest.raises(ValueError, match="name"):
        mpgroupcache.new_group("x" * 256, 0, load)
    with pytest.raises(ValueError, match="cache_bytes"):
        mpgroupcache.new_group("g", "64MB", load)
    for seconds in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="load_timeout"):
            mpgroupcache.new_group("g", 0, load, load_timeout=seconds)
    with pytest.raises(ValueError, match="surrogates"):
        mpgroupcache.new_group("\udc00", 0, load)
    assert mpgroupcache.get_group("g") is None


def test_a_getter_object(here: Daemon) -> None:
    class Getter:
        def get(self, ctx: Any, key: str, dest: Sink) -> None:
            dest.set_bytes(key.encode())

    assert mpgroupcache.new_group("g", "1MiB", Getter()).get("k") == "k"


def test_a_loader_that_sets_nothing(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: None)
    with pytest.raises(RuntimeError, match="set nothing"):
        group.get("k")
    assert group.stats.local_load_errs == 1


def test_stats(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    for _ in range(3):
        group.get("a")
        wait_until(lambda: group.cache_stats(CacheType.MAIN_CACHE).items)
    stats = group.stats
    assert (stats.gets, stats.cache_hits, stats.loads, stats.local_loads) == (3, 2, 1, 1)
    cache = group.cache_stats(CacheType.MAIN_CACHE)
    assert (cache.items, cache.gets, cache.hits, cache.evictions) == (1, 3, 2, 0)
    assert cache.bytes == 1 + len("None:str:'a'")
    assert group.cache_stats(CacheType.HOT_CACHE).items == 0


def test_nested_loads_and_cycles_through_two_groups(here: Daemon) -> None:
    outer = mpgroupcache.new_group("outer", "1MiB", lambda ctx, key, dest: dest.set_bytes(inner.get(key)))

    def load_inner(ctx: Any, key: str, dest: Sink) -> None:
        dest.set_bytes(outer.get(key) if key == "cycle" else key.encode())

    inner = mpgroupcache.new_group("inner", "1MiB", load_inner)
    assert outer.get("k") == "k"
    with pytest.raises(LoadCycleError, match="outer/b'cycle' -> inner/b'cycle' -> outer/b'cycle'"):
        outer.get("cycle")


def test_threads_wait_for_one_load(here: Daemon) -> None:
    go, loads = threading.Event(), []

    def slow(ctx: Any, key: str, dest: Sink) -> None:
        loads.append(key)
        assert go.wait(20)
        dest.set_bytes(value_of(key))

    group = mpgroupcache.new_group("g", "1MiB", slow)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(bytes(group.get("k")))) for _ in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: loads)
    with pytest.raises(DeadlineExceeded):
        group.get("k", timeout=0.05)
    go.set()
    for thread in threads:
        thread.join()
    assert results == [value_of("k")] * 16
    assert loads == ["k"]


def in_child(check: Any) -> None:
    """Fork, and run ``check`` in the child."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_attaches_anew(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "4MiB", lambda ctx, key, dest: dest.set_bytes(value_of(key)))
    keys = [f"big:10000:{number}" for number in range(20)]
    held = [group.get(key) for key in keys]
    wait_until(lambda: all(group.lookup(key) is not None for key in keys))
    held = [group.get(key) for key in keys]
    number = process.current()._link.reader.number  # type: ignore[union-attr]

    def check() -> None:
        assert [bytes(view) for view in held] == [*map(value_of, keys)]
        assert not group.attached
        assert group.get(keys[0]) == value_of(keys[0])
        assert group.attached
        assert process.current()._link.reader.number != number  # type: ignore[union-attr]
        assert group.get("child") == value_of("child")
        for n in range(1000):  # churn: the inherited views keep what they show
            group.get(f"big:10000:c{n}")
        assert [bytes(view) for view in held] == [*map(value_of, keys)]

    in_child(check)
    assert group.get("child") == value_of("child")
    held.clear()


def test_a_forked_child_changes_values(here: Daemon) -> None:
    """Its parent sees its changes, it sees its parent's, and what it meets that is stale it loads anew."""
    group = mpgroupcache.new_group(
        "g", "1MiB", lambda ctx, key, dest: dest.set_string(str(os.getpid())), ttl=60, stale=600
    )
    parent = str(os.getpid())
    assert group.get("stale") == parent
    group.set_many({"changed": b"parent", "removed": b"parent", "n": b"1"})
    wait_until(lambda: group.lookup("stale"))
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()

    def change() -> None:
        os.read(from_child, 1)
        seen.append(bytes(group.get("changed")))
        group.set("changed", b"parent again")
        os.write(to_child, b".")

    def check() -> None:
        assert group.get("changed") == "parent"
        assert group.set("changed", b"child")
        assert group.get("changed") == "child"
        assert group.remove("removed")
        assert group.incr("n") == 2
        os.write(to_parent, b".")
        os.read(from_parent, 1)
        assert group.get("changed") == "parent again"
        advance(here.socket, 61)
        assert group.get("stale") == parent
        wait_until(lambda: group.get("stale") == str(os.getpid()))

    seen: list[bytes] = []
    thread = threading.Thread(target=change)
    thread.start()
    try:
        in_child(check)
    finally:
        os.write(to_parent, b".")  # if the child has not come to that
        thread.join()
        for end in (from_child, to_parent, from_parent, to_child):
            os.close(end)
    assert seen == [b"child"]
    assert group.lookup("removed") is None
    assert group.get("n") == "2"
    assert group.get("stale") != parent


def test_a_child_of_a_child_and_fork_in_a_thread(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "4MiB", lambda ctx, key, dest: dest.set_bytes(value_of(key)))
    group.get("a")
    failures: list[BaseException] = []

    def grandchild() -> None:
        assert group.get("b") == value_of("b")

    def child() -> None:
        assert group.get("a") == value_of("a")
        in_child(grandchild)

    def run() -> None:
        try:
            in_child(child)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failures == []


def test_stats_of_a_dead_worker_are_kept(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "4MiB", lambda ctx, key, dest: dest.set_bytes(value_of(key)))

    def child() -> None:
        group.get("a")
        wait_until(lambda: group.lookup("a"))
        group.get("a")

    group.get("parent")
    in_child(child)
    stats = wait_until(lambda: group.stats if group.stats.loads == 2 else None)
    assert stats.local_loads == 2
    assert stats.cache_hits >= 1


def test_the_segments_are_private(here: Daemon) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    group.get("k")
    names = segments_of(here.socket)
    assert len(names) == 2
    for path in [f"/dev/shm/{name}" for name in names] + [here.socket]:
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_connecting_before_any_group_is_declared(here: Daemon) -> None:
    """As a server's hook does, in workers that import the application later."""
    assert mpgroupcache.connect()
    link = process.current().working_link
    assert link is not None
    group = mpgroupcache.new_group("late", "1MiB", load)
    assert group.get("k") == "None:str:'k'"
    assert process.current().working_link is link


def test_connecting_on_a_loop_does_not_block_it(here: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    turns, connected = threading.Semaphore(0), process.Process._connect

    def slow(self: process.Process, starts: bool) -> object:
        for _ in range(3):
            assert turns.acquire(timeout=20)  # which the loop lets go on
        return connected(self, starts)

    monkeypatch.setattr(process.Process, "_connect", slow)

    async def run() -> bool:
        task = asyncio.create_task(mpgroupcache.aconnect())
        while not task.done():
            turns.release()
            await asyncio.sleep(0.001)
        return await task

    assert asyncio.run(run())
    assert group.attached


def test_all_is_frozen() -> None:
    assert set(mpgroupcache.__all__) == {
        "AlreadyRunning", "ArenaError", "AtomicInt", "ByteView", "ByteViewSink", "BytesSink", "CacheError",
        "CacheStats", "CacheType", "ChangeError", "CoordinatorError", "CoordinatorUnavailable",
        "DeadlineExceeded", "Getter", "Group",
        "HTTPPool", "LoadCycleError", "LoadError", "LoadErrors", "NoPeers", "NotFound", "PeerPicker",
        "ProtoGetter", "ProtoSink",
        "ProtocolError", "Sink", "Stats", "StringSink", "TruncatingSink", "aconnect", "cached",
        "configure", "connect", "get_group", "lru",
        "new_group", "register_new_group_hook", "register_peer_picker", "register_per_group_peer_picker",
        "register_server_start", "singleflight",
    }  # fmt: skip
    assert all(hasattr(mpgroupcache, name) for name in mpgroupcache.__all__)


def test_a_child_keeps_none_of_its_parents_connections(here: Daemon) -> None:
    """Or the coordinator would not notice the parent's death while the child lives, whatever leases it held."""
    group = mpgroupcache.new_group("g", "1MiB", load)
    group.get("a")
    link = process.current().working_link
    assert link is not None

    def sockets() -> list[str]:
        # Of a descriptor that is closed meanwhile (this directory's) there is nothing to read.
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sorted(os.readlink(path) for path in links if os.path.lexists(path) and "socket" in os.readlink(path))

    before = sockets()
    link.close()
    wait_until(lambda: link._service._sock.fileno() == -1)  # type: ignore[union-attr]
    others = sockets()
    assert len(before) - len(others) >= 2
    group.get("b")

    def check() -> None:
        assert sockets() == others
        assert group.get("c") == "None:str:'c'"

    in_child(check)
    assert process.current().working_link is not None
    assert group.get("d") == "None:str:'d'"


def test_an_attachment_to_the_last_instance_that_comes_late(
    here: Daemon, start_coordinator: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A begins to attach. 2. The next instance comes; B attaches there. 3. A attaches to the last. 4. B asks.

    Instances number groups as they come: B must not ask the next one for the group that had this number in the last.
    """
    # So that nothing attaches but what does here.
    monkeypatch.setattr(process.Process, "_begin_reattaching", lambda _: False)
    first = mpgroupcache.new_group("first", 0, lambda ctx, key, dest: dest.set_string("first"))
    second = mpgroupcache.new_group("second", 0, lambda ctx, key, dest: dest.set_string("second"))
    assert second.get("k") == "second"
    assert first.get("k") == "first"
    last = process.current().working_link
    assert last is not None
    here.send(signal.SIGKILL)
    here.wait()
    wait_until(lambda: last.broken)
    for name in segments_of(here.socket):
        os.unlink(f"/dev/shm/{name}")  # as at a new boot: the next instance knows of no group
    start_coordinator()
    process.current()._groups.clear()  # so that they come in another order
    wait_until(mpgroupcache.connect)
    link = process.current().working_link
    assert link is not None
    assert (link._declared["first"].group, last._declared["first"].group) == (0, 1)
    ready_link = first.ready_link

    def late() -> Any:
        found = ready_link()
        monkeypatch.undo()
        first.attach_to(last)
        return found

    key = "of-one-only"
    go, asked = threading.Event(), threading.Event()

    def hold(ctx: Any, key: str, dest: Sink) -> None:
        asked.set()
        assert go.wait(20)
        dest.set_string("second's")

    second.getter = BoundGetter(hold)
    holder = threading.Thread(target=second.get, args=(key,))
    holder.start()
    assert asked.wait(20)
    monkeypatch.setattr(first, "ready_link", late)
    try:
        assert first.get(key, timeout=5) == "first"
    finally:
        go.set()
        holder.join()


def test_a_refusal_fails_no_get(here: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    group = mpgroupcache.new_group("g", "1MiB", load)
    assert group.get("a") == "None:str:'a'"
    link = process.current().working_link
    assert link is not None
    monkeypatch.setattr(link.channel, "wait", lambda *_: Failed(FailureCode.REFUSED, "", "no memory"))
    assert group.get("b") == "None:str:'b'"
    monkeypatch.setattr(link.channel, "wait", lambda *_: Pong())
    assert group.get("c") == "None:str:'c'"


def test_an_arena_that_is_gone_fails_no_get(here: Daemon) -> None:
    """As when the process has no descriptor left, or the coordinator ends between its answer and the attachment."""
    group = mpgroupcache.new_group("g", "1MiB", load)
    assert mpgroupcache.connect()
    group.detach()
    for name in segments_of(here.socket):
        if not name.endswith("-control"):
            os.unlink(f"/dev/shm/{name}")
    assert group.get("k") == "None:str:'k'"


def test_get_is_a_method_of_its_class_alone() -> None:
    """An inherited one, or a Python function, takes the interpreter twice as long to call."""
    get = vars(mpgroupcache.Group)["get"]
    assert type(get) is types.MethodDescriptorType
    assert get.__objclass__ is mpgroupcache.Group
    assert str(inspect.signature(get)) == "(self, /, key, dest=None, *, ctx=None, timeout=None)"
    assert "DeadlineExceeded" in inspect.getdoc(get)  # type: ignore[operator]


def test_no_other_class_is_given_the_get_of_groups() -> None:
    """It would read other objects' memory as a group's."""
    with pytest.raises(TypeError, match="got Other, expected a subclass of GroupCore"):
        with_own_get(type("Other", (), {}))
    with pytest.raises(TypeError, match="doesn't apply to a 'object' object"):
        mpgroupcache.Group.get(object(), "k")  # type: ignore[call-overload]
