"""A link, against a coordinator that the test plays: what is said on its two connections, and how it ends."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from arenas import Instance
from playing import Peer
from workers import PATIENCE, wait_until

from mpgroupcache.ages import AGELESS
from mpgroupcache.errors import CoordinatorError, CoordinatorUnavailable, LoadCycleError, ProtocolError
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.fields import INLINE_BYTES, MAX_HELD
from mpgroupcache.ipc.messages import (
    HIGHEST_VERSION,
    LOWEST_VERSION,
    NO_LAYOUT,
    Ask,
    Declare,
    Declared,
    Fail,
    Failed,
    FailureCode,
    Hello,
    Hit,
    Lease,
    Load,
    PeersSet,
    Ping,
    Pong,
    Return,
    Served,
    SetPeers,
    Store,
    Waiting,
    Welcome,
)
from mpgroupcache.product import Product, Said
from mpgroupcache.shm._hold import Flights, Hold
from mpgroupcache.shm._reader import LAYOUT_VERSION, Reader
from mpgroupcache.worker import link as link_module
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT
from mpgroupcache.worker.link import Link, connect

OTHER_LAYOUT = LAYOUT_VERSION + 1


class Coordinator:
    """Whom links connect to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(PATIENCE)
        self._listener.bind(path)
        self._listener.listen()
        self._pool = ThreadPoolExecutor(1)
        self.peers: list[Peer] = []

    def accept(self) -> Peer:
        sock, _ = self._listener.accept()
        self.peers.append(Peer(sock))
        return self.peers[-1]

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have the worker's end do something meanwhile."""
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        for peer in self.peers:
            peer.sock.close()
        self._listener.close()
        self._pool.shutdown()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    coordinator = Coordinator(str(tmp_path / "socket"))
    yield coordinator
    coordinator.close()


class Linked:
    """A link that is open, and the coordinator's two ends of it."""

    def __init__(self, coordinator: Coordinator, layout: int = OTHER_LAYOUT, control: str = "mpgroupcache-x") -> None:
        self.loads: list[Any] = []
        self.broke: list[bool] = []
        self.claimed: list[Reader] = []
        self.regions: list[int] = []
        self.coordinator = coordinator
        self.link = Link(
            coordinator.path,
            lambda link, load: self.loads.append((link, load)),
            self._note,
            self._note_region,
            lambda: ((9, 2),),
        )
        assert self.link.broken
        opening = coordinator.begin(self.link.open, None, self.claimed.append)
        self.call = coordinator.accept()
        number, self.hello = self.call.receive()
        welcome = Welcome(HIGHEST_VERSION, "instance", control, os.getpid(), layout, ("sing", "dance"))
        self.call.send(welcome, number)
        self.service = coordinator.accept()
        self.service_hello = self.service.receive()
        opening.result(PATIENCE)

    def _note(self) -> None:
        self.broke.append(self.link.broken)

    def _note_region(self) -> None:
        assert self.link.reader is not None
        self.regions.append(self.link.reader.number)

    def ask(self, answer: Any, function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """What it says, and what it makes of the answer."""
        asking = self.coordinator.begin(lambda: function(*arguments, **options))
        number, said = self.call.receive()
        self.call.send(answer, number)
        error = asking.exception(PATIENCE)
        return said, error if error is not None else asking.result()

    def ping(self, number: int) -> None:
        self.service.send(Ping(), number)
        assert self.service.receive() == (number, Pong())
        assert self.service.receive() == (0, Waiting(((9, 2),)))

    def hears(self, *connections: Peer) -> None:
        """Those connections end."""
        for peer in connections:
            assert peer.sock.recv(1) == b""


@pytest.fixture
def linked(coordinator: Coordinator) -> Iterator[Linked]:
    linked = Linked(coordinator)
    yield linked
    linked.link.close()


def declare(linked: Linked, name: str = "group", number: int = 5) -> Declared:
    declared = Declared(number, None, 0, 0)
    saying = Declare(name, 1000, 2.0, False, "app", "load", True, AGELESS)
    assert linked.ask(declared, linked.link.declare, saying) == (saying, declared)
    return declared


# ---- The beginning


def test_two_connections_of_one_worker(linked: Linked) -> None:
    call, (number, service) = linked.hello, linked.service_hello
    assert isinstance(call, Hello)
    assert isinstance(service, Hello)
    assert call == Hello("call", os.getpid(), call.worker, LOWEST_VERSION, HIGHEST_VERSION, (), call.clock)
    assert service == Hello("service", os.getpid(), call.worker, LOWEST_VERSION, HIGHEST_VERSION, (), service.clock)
    assert number == 1
    assert not linked.link.broken
    assert (linked.link.instance, linked.link.abilities) == ("instance", {"sing", "dance"})


def test_each_link_has_a_token_of_its_own(tmp_path: Path) -> None:
    tokens = set()
    for name in ("one", "two"):
        coordinator = Coordinator(str(tmp_path / name))
        linked = Linked(coordinator)
        assert isinstance(linked.hello, Hello)
        tokens.add(linked.hello.worker)
        linked.link.close()
        coordinator.close()
    assert len(tokens) == 2


def test_a_layout_that_is_unknown_here(coordinator: Coordinator, caplog: pytest.LogCaptureFixture) -> None:
    linked = Linked(coordinator)
    assert linked.link.reader is None
    assert linked.claimed == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        f"instance instance has layout {OTHER_LAYOUT}, and this process knows {LAYOUT_VERSION}" in record.getMessage()
    )
    linked.link.close()


def test_a_region_is_claimed(coordinator: Coordinator, instance: Instance, caplog: pytest.LogCaptureFixture) -> None:
    instance.control.spare_regions(1)
    linked = Linked(coordinator, LAYOUT_VERSION, instance.segment.name)
    reader = linked.link.reader
    assert reader is not None
    assert linked.claimed == [reader]
    assert reader.number == 0
    assert reader.reads(instance.path)
    assert caplog.records == []
    linked.link.close()


def test_a_region_that_is_free_later(
    coordinator: Coordinator, instance: Instance, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "CLAIM_INTERVAL", 0.01)
    instance.control.spare_regions(1)
    taken: list[Reader] = []
    while not taken or taken[-1].number >= 0:
        taken.append(Reader(instance.path))
    linked = Linked(coordinator, LAYOUT_VERSION, instance.segment.name)
    reader = linked.link.reader
    assert reader is not None
    assert reader.number < 0
    assert not linked.link.claim_region()
    linked.ping(17)  # it is answered meanwhile
    taken.clear()
    instance.control.reap()
    wait_until(lambda: linked.regions)
    assert linked.regions == [reader.number] == [0]
    linked.ping(18)
    assert linked.link.claim_region()
    assert [record.getMessage() for record in caplog.records] == [
        "no free region in instance instance: hits are copied by the coordinator until there is one",
        "instance instance: a region was claimed, and hits are no longer copied",
    ]
    assert linked.broke == []
    linked.link.close()


def test_an_instance_without_shared_memory(coordinator: Coordinator, caplog: pytest.LogCaptureFixture) -> None:
    linked = Linked(coordinator, NO_LAYOUT)
    assert linked.link.reader is None
    assert linked.link.claim_region()  # there is none to be had
    (record,) = caplog.records
    assert record.getMessage() == (
        "instance instance has no room in shared memory: nothing is cached until there is some"
    )
    linked.link.close()


def test_who_may_connect_is_told(tmp_path: Path) -> None:
    user = os.geteuid()
    assert link_module._who_may(str(tmp_path)) == (
        f"; it is for user {os.stat(tmp_path).st_uid}, and this process is user {user}'s: start the coordinator with "
        "--group of a group that this process is in"
    )
    assert link_module._who_may(str(tmp_path / "nothing")) == f"; user {user} may not enter its directory"


def test_a_socket_that_refuses_this_user(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(link_module, "socket", SimpleNamespace(**{**vars(socket), "socket": Refused}))
    with pytest.raises(CoordinatorUnavailable, match="Permission denied; it is for user .* --group"):
        connect(coordinator.path)


@pytest.mark.parametrize("same", [True, False])
def test_an_earlier_links_reader_is_kept_where_the_instance_is_the_same(
    coordinator: Coordinator, instance: Instance, same: bool
) -> None:
    instance.control.spare_regions(2)
    asked: list[str] = []

    class Earlier:
        number = 0

        def reads(self, path: str) -> bool:
            asked.append(path)
            return same

    earlier: Any = Earlier()
    link = Link(coordinator.path, lambda *_: None)
    opening = coordinator.begin(link.open, earlier, lambda reader: None)
    call = coordinator.accept()
    number, _ = call.receive()
    call.send(Welcome(HIGHEST_VERSION, "i", instance.segment.name, 1, LAYOUT_VERSION, ()), number)
    coordinator.accept().receive()
    opening.result(PATIENCE)
    assert asked == [instance.path]
    assert (link.reader is earlier) == same
    link.close()


def test_nobody_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "nobody")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CoordinatorUnavailable, match=f"no coordinator on {path}: .*No such file"):
        connect(path)
    with pytest.raises(CoordinatorUnavailable, match="no coordinator on"):
        Link(path, lambda *_: None).open(None, lambda reader: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_connection_that_is_made(coordinator: Coordinator) -> None:
    with connect(coordinator.path) as sock:
        assert sock.gettimeout() == LIVENESS_TIMEOUT
        assert not os.get_inheritable(sock.fileno())


VERSION_TEXT = f"WELCOME: got version {HIGHEST_VERSION + 1}, expected one of the offered {LOWEST_VERSION} to "
NO_WELCOME: dict[str, tuple[Any, type[Exception], str]] = {
    "later": (Welcome(HIGHEST_VERSION + 1, "i", "c", 1, OTHER_LAYOUT, ()), ProtocolError, VERSION_TEXT),
    "earlier": (Welcome(LOWEST_VERSION - 1, "i", "c", 1, OTHER_LAYOUT, ()), ProtocolError, "WELCOME: got version"),
    "refused": (Failed(FailureCode.REFUSED, "", "too old"), CoordinatorError, "too old"),
    "something else": (Hit(), ProtocolError, "answer: got Hit, expected Welcome"),
    "a segment that is none": (Welcome(HIGHEST_VERSION, "i", "c", 1, LAYOUT_VERSION, ()), Exception, "segment name"),
}


@pytest.mark.parametrize(("answer", "kind", "text"), NO_WELCOME.values(), ids=list(NO_WELCOME))
def test_no_welcome(coordinator: Coordinator, answer: Any, kind: type[Exception], text: str) -> None:
    broke: list[bool] = []
    link = Link(coordinator.path, lambda *_: None, lambda: broke.append(True))
    opening = coordinator.begin(link.open, None, lambda reader: None)
    call = coordinator.accept()
    number, _ = call.receive()
    call.send(answer, number)
    with pytest.raises(kind, match=text):
        opening.result(PATIENCE)
    assert link.broken
    assert call.sock.recv(1) == b""
    assert str(link.channel.broken) == str(opening.exception())
    assert broke == []


def test_where_no_thread_can_be_started_nothing_is_left(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(coordinator.path, lambda *_: None)
    opening = coordinator.begin(link.open, None, lambda reader: None)
    call = coordinator.accept()
    number, _ = call.receive()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        call.send(Welcome(HIGHEST_VERSION, "i", "c", 1, OTHER_LAYOUT, ()), number)
        with pytest.raises(RuntimeError, match="can't start"):
            opening.result(PATIENCE)
    service = coordinator.accept()
    service.receive()  # HELLO does not wait for the thread: what is declared behind it can be loaded for peers
    assert service.sock.recv(1) == b""
    assert call.sock.recv(1) == b""


# ---- What is said


def test_a_group_is_declared_once(linked: Linked) -> None:
    """And once more where it is another one: a function that was declared again."""
    declared = declare(linked)
    picking = Declare("picking", 1, None, True, "", "", True, AGELESS)
    assert linked.ask(declared, linked.link.declare, picking) == (picking, declared)
    assert linked.link.declare(picking) == declared
    larger = Declare("picking", 2, None, True, "", "", True, AGELESS)
    assert linked.ask(declared, linked.link.declare, larger) == (larger, declared)


def test_a_group_that_is_refused(linked: Linked) -> None:
    refusal = Failed(FailureCode.REFUSED, "", "too many")
    _, error = linked.ask(refusal, linked.link.declare, Declare("group", 1, None, False, "", "", True, AGELESS))
    assert isinstance(error, CoordinatorError)
    assert str(error) == "too many"
    declare(linked)


def test_a_ring_is_named(linked: Linked) -> None:
    ring: dict[str, Any] = {
        "self_url": "http://a",
        "peers": ("http://a",),
        "base_path": "/",
        "replicas": 50,
        "hash": "crc32",
        "hooks": (),
    }
    assert linked.ask(PeersSet(), linked.link.set_peers, **ring) == (SetPeers(**ring), None)
    _, error = linked.ask(Failed(FailureCode.REFUSED, "", "from its options"), linked.link.set_peers, **ring)
    assert isinstance(error, CoordinatorError)


def test_a_peers_request_is_told(linked: Linked) -> None:
    declare(linked)
    linked.link.tell_served("group")
    assert linked.call.receive() == (0, Served(5))


class Inside:
    """A seat, as far as an ASK names those around it."""

    def __init__(self, *leases: int) -> None:
        self.held = tuple([SimpleNamespace(lease=lease) for lease in leases])


@pytest.mark.parametrize(
    ("leases", "named"),
    [
        ((), ()),
        ((3, 0, 7), (3, 7)),  # of one that is loaded without the coordinator there is none
        ((0,), ()),
        (tuple(range(1, MAX_HELD + 3)), tuple(range(3, MAX_HELD + 3))),
    ],
)
@pytest.mark.parametrize(("copy", "here"), [(True, False), (False, True)])
def test_an_ask_names_the_leases_that_its_caller_is_in(
    linked: Linked, leases: tuple[int, ...], named: tuple[int, ...], copy: bool, here: bool
) -> None:
    declare(linked)
    hold = Hold()
    request = linked.link.ask(hold, "group", cast(Any, Inside(*leases)), b"key", copy, here)
    number, said = linked.call.receive()
    assert said == Ask(5, b"key", named, copy, here, "get")
    linked.call.send(Lease(9, 1), number)
    assert linked.link.channel.wait(hold, request, None) == Lease(9, 1)
    hold.end()


def test_callers_in_the_same_loads_share_a_place(linked: Linked) -> None:
    place = linked.link.place
    inside: Any = Inside(3, 0, 7).held
    assert place("group", b"k", True, False, ()) == place("group", b"k", True, True, ()) == ("group", b"k", True)
    assert place("group", b"k", False, False, ()) == ("group", b"k", False)
    assert place("group", b"k", False, False, inside) == ("group", b"k", False, 3, 7)


def test_who_joins_a_flight_that_waits_for_him_is_told(linked: Linked) -> None:
    flights = Flights()
    holds = [Hold(), Hold(), Hold()]
    outer = holds[0].board(flights, ("group", b"a"), 0, ())
    linked.link.join(holds[1].board(flights, ("group", b"a"), 0, ()))
    seat = holds[2].board(flights, ("group", b"a"), 0, (outer,))
    with pytest.raises(LoadCycleError, match="group/b'a' -> group/b'a'"):
        linked.link.join(seat)


# ---- How a lease ends


SEAT: Any = SimpleNamespace(lease=9)
SAID = Said(2.5, 7, True, -1.0, 60.0)
LARGE = bytes(INLINE_BYTES + 1)
ENDS: dict[str, tuple[Any, Any]] = {
    "a value": (Product(b"v"), Store(9, b"v", False, None, None, None, False)),
    "a peer's value": (Product(b"v", True, SAID), Store(9, b"v", True, SAID, None, None, False)),
    "the largest in a frame": (Product(LARGE[1:]), Store(9, LARGE[1:], False, None, None, None, False)),
    "a value in a memfd": (Product(LARGE), Store(9, len(LARGE), False, None, None, None, False)),
    "an error": (ValueError("boom"), Fail(9, "ValueError", "boom")),
    "nothing": (None, Return(9)),
}


@pytest.mark.parametrize(("result", "message"), ENDS.values(), ids=list(ENDS))
def test_the_end_of_a_lease(linked: Linked, result: Any, message: Any) -> None:
    hold = Hold()
    request = hold.owe(linked.link.channel, b"undo")
    linked.link.end(request, SEAT, result)
    assert linked.call.receive() == (0, message)
    fd = linked.call.received.claim(message)
    if fd >= 0:
        assert memfd.read(fd, len(LARGE)) == LARGE
        os.close(fd)
    assert len(linked.call.received) == 0
    hold.end()
    linked.link.channel.post(b"nothing else was said")
    assert linked.call.sock.recv(100) == b"nothing else was said"


def test_a_value_without_a_memfd_is_another_ones_to_load(linked: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> None:
        raise OSError("full")

    monkeypatch.setattr(link_module, "sealed", fail)
    hold = Hold()
    linked.link.end(hold.owe(linked.link.channel, b"undo"), SEAT, Product(LARGE))
    assert linked.call.receive() == (0, Return(9))
    hold.end()


# ---- The service connection


def test_pings_are_answered_and_loads_handed_on(linked: Linked) -> None:
    linked.service.send(Welcome(HIGHEST_VERSION, "i", "c", 1, OTHER_LAYOUT, ()), 1)
    linked.ping(17)
    load = Load(3, "group", b"k", b"\xc0", False)
    linked.service.send(load)
    linked.ping(18)
    assert linked.loads == [(linked.link, load)]
    assert linked.broke == []


def test_a_ping_sends_on_what_the_socket_did_not_take(linked: Linked) -> None:
    channel = linked.link.channel
    while not channel.waiting:
        channel.post(bytes(1 << 16))
    linked.call.sock.setblocking(False)
    while channel.waiting:
        linked.ping(0)
        try:
            while linked.call.sock.recv(1 << 20):
                pass
        except BlockingIOError:
            pass


@pytest.mark.parametrize("way", ["closed", "nonsense", "a message that is none of its"])
def test_the_service_connection_ends(linked: Linked, way: str) -> None:
    if way == "closed":
        linked.service.sock.shutdown(socket.SHUT_RDWR)
        text = "the coordinator closed the service connection"
    elif way == "nonsense":
        linked.service.sock.sendall(b"no frame of ours, and long enough")
        text = "the service connection broke: magic: got b'no'"
    else:
        linked.service.send(Hit())
        text = "the service connection broke: service connection: got Hit(), expected PING or LOAD"
    wait_until(lambda: linked.broke)
    assert linked.broke == [True]
    assert linked.link.broken
    with pytest.raises(CoordinatorUnavailable, match=f"^{re.escape(text)}"):
        linked.link.channel.request(Ping())
    linked.hears(linked.call)


def test_a_link_that_nobody_minds(coordinator: Coordinator) -> None:
    link = Link(coordinator.path, lambda *_: None)
    opening = coordinator.begin(link.open, None, lambda reader: None)
    call = coordinator.accept()
    number, _ = call.receive()
    call.send(Welcome(HIGHEST_VERSION, "i", "c", 1, OTHER_LAYOUT, ()), number)
    service = coordinator.accept()
    opening.result(PATIENCE)
    service.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: link.broken)
    wait_until(lambda: all(thread.name != "mpgroupcache-service" for thread in threading.enumerate()))
    link.close()


# ---- Ends


def test_closing_is_no_break(linked: Linked) -> None:
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "mpgroupcache-service")
    assert thread.daemon  # a process may end without a word
    linked.link.close()
    assert all(thread.name != "mpgroupcache-service" for thread in threading.enumerate())
    linked.hears(linked.call, linked.service)
    assert linked.broke == []
    assert linked.link.broken
    with pytest.raises(CoordinatorUnavailable, match="the link was closed"):
        linked.link.channel.request(Ping())
    linked.link.close()


def test_a_link_may_be_closed_by_what_it_tells(coordinator: Coordinator) -> None:
    """Its own thread does not wait for its end."""
    closed = threading.Event()

    def close(link: Link, _: Load) -> None:
        link.close("by a load")
        closed.set()

    linked = Linked(coordinator)
    linked.link._service._on_load = lambda load: close(linked.link, load)  # type: ignore[union-attr]
    linked.service.send(Load(3, "group", b"k", b"\xc0", False))
    assert closed.wait(LIVENESS_TIMEOUT / 2)


def test_a_link_that_was_never_opened(coordinator: Coordinator) -> None:
    link = Link(coordinator.path, lambda *_: None)
    link.abandon()
    link.close()
    assert link.broken


def test_a_forked_childs_copy_says_nothing(linked: Linked) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pid = os.fork()
    if pid == 0:
        linked.link.abandon()
        ok = len(os.listdir("/proc/self/fd")) == before - 2 and linked.link.broken
        ok = ok and str(linked.link.channel.broken) == "the channel is the parent process's"
        os._exit(not ok)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    linked.ping(17)  # the parent's is there
    declare(linked)
