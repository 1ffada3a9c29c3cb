"""The program of a miss, step by step: what it waits for, asks, counts and ends, with a port that the test plays."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Hashable
from typing import Any, cast

import msgspec
import pytest
from workers import value_of

from mpgroupcache.ages import AGELESS
from mpgroupcache.counters import Counter
from mpgroupcache.errors import CoordinatorUnavailable, LoadCycleError, LoadError, NotFound
from mpgroupcache.ipc import memfd
from mpgroupcache.ipc.contexts import pack_context
from mpgroupcache.ipc.messages import Failed, FailureCode, Hit, Lease, Load, Message, Origin, Pong, Value
from mpgroupcache.product import Product, Said
from mpgroupcache.shm._exchange import Descriptor, sealed
from mpgroupcache.shm._hold import Flights, Hold, Seat
from mpgroupcache.shm._view import ByteView
from mpgroupcache.worker import miss
from mpgroupcache.worker.nesting import held
from mpgroupcache.worker.port import Alone
from mpgroupcache.worker.waits import Apart, Attempt, Flush, Make, Until

KEY = b"key"
LOADED = [Counter.LOADS]
SHARED = [Counter.LOADS, Counter.LOADS_DEDUPED]


class Request:
    """What the port was asked."""

    def __init__(self, *asked: Any) -> None:
        self.asked = asked
        self.settled = False
        self._descriptor: Descriptor | None = None

    def settle(self) -> None:
        self.settled = True

    @property
    def descriptor(self) -> Descriptor:
        if self._descriptor is None:
            raise OSError("no descriptor")
        return self._descriptor

    def bring(self, value: bytes) -> None:
        self._descriptor = sealed(value)


class Channel:
    waiting = 0


class Port:
    """A link, as far as a miss asks for one."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.ended: list[tuple[Any, int, Any]] = []
        self.served: list[str] = []
        self.refuse: Exception | None = None
        self.channel: Any = Channel()

    def place(self, group: str, key: bytes, here: bool, picked: bool, held: tuple[Seat, ...]) -> Hashable:
        return group, key, here, picked, len(held)

    def join(self, seat: Seat) -> None:
        assert not seat.leads
        if self.refuse is not None:
            raise self.refuse

    def ask(self, hold: Hold, group: str, seat: Seat, key: bytes, copy: bool, here: bool) -> Request:
        if self.refuse is not None:
            raise self.refuse
        assert isinstance(hold, Hold)
        assert seat.leads
        self.requests.append(Request(group, key, copy, here))
        return self.requests[-1]

    def end(self, request: Any, seat: Seat, result: Any) -> None:
        self.ended.append((request, seat.lease, result))

    def tell_served(self, group: str) -> None:
        self.served.append(group)


class Maker:
    is_async = False


class Group:
    name = "group"
    readable = True
    cache_bytes = 1 << 20

    def __init__(self) -> None:
        self.changes = 3
        self.getter: Any = Maker()
        self.port: Any = Port()
        self.counted: list[Counter] = []
        self.blamed: list[Exception] = []
        self.ages = AGELESS
        self.cached: ByteView | None = None
        self.kept: ByteView | None = None
        self.peers: dict[bytes, Any] | None = None

    def ready_link(self) -> Any:
        return self.port

    def find(self, key: bytes, /) -> ByteView | None:
        assert key == KEY
        return self.cached

    def find_kept(self, key: bytes, /) -> ByteView | None:
        assert key == KEY
        return self.kept

    def count(self, counter: int, n: int = 1, /) -> None:
        self.counted.append(Counter(counter))

    def picks(self) -> bool:
        return self.peers is not None

    def pick(self, key: bytes) -> Any:
        assert self.peers is not None
        return self.peers.get(key)

    def blame(self, error: Exception) -> None:
        self.blamed.append(error)


class Process:
    """Which attaches groups when the test says so."""

    def __init__(self) -> None:
        self.flights = Flights()
        self.alone = Alone({"group": Group()})
        self.attached = False
        self.wait: Until | None = Until(Attempt(0.0), 2.0)
        self.asked: list[tuple[tuple[Any, ...], bool]] = []

    def is_attached(self, *groups: Any) -> bool:
        return self.attached

    def is_served(self) -> bool:
        return False

    def attach(self, *groups: Any, starts: bool = True) -> Until | None:
        self.asked.append((groups, starts))
        return self.wait


def result_of(steps: Generator[Any, Any, ByteView], sent: Any = None) -> ByteView:
    """What a program returns that has what it waits for last."""
    with pytest.raises(StopIteration) as end:
        steps.send(sent)
    view = end.value.value
    assert isinstance(view, ByteView)
    return view


class Caller:
    """One who misses the key, and is driven by hand."""

    def __init__(self, process: Process, group: Group, here: bool = False) -> None:
        self.hold = Hold()
        program: Any = miss.miss(self.hold, cast(Any, process), cast(Any, group), KEY, "ctx", here)
        self.steps: Generator[Any, Any, ByteView] = program

    def go(self, sent: Any = None) -> Any:
        """What it waits for next."""
        return self.steps.send(sent)

    def end(self, sent: Any = None) -> ByteView:
        """What it returns."""
        view = result_of(self.steps, sent)
        self.hold.end()
        return view


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def group() -> Group:
    return Group()


def apart(wait: Any) -> tuple[Any, ...]:
    """The arguments of the load that goes on for itself."""
    assert isinstance(wait, Apart)
    assert wait.program is miss.load
    return wait.arguments


# ---- Attaching


def attach(process: Process, group: Group, port: Any) -> None:
    process.attached, group.port = True, port


def test_a_value_that_is_there_once_the_group_is_attached(process: Process, group: Group) -> None:
    group.port, port = None, group.port
    caller = Caller(process, group)
    assert caller.go() is process.wait
    assert process.asked == [((group,), True)]
    attach(process, group, port)
    group.cached = ByteView(b"value")
    assert caller.end(True) is group.cached
    assert (group.counted, len(process.flights), port.requests) == ([], 0, [])


def test_a_group_that_is_attached_by_the_way(process: Process, group: Group) -> None:
    group.port, port = None, group.port
    caller = Caller(process, group)
    caller.go()
    attach(process, group, port)
    assert caller.go(True) is port.requests[0]
    caller.hold.end()


def test_where_nobody_is_there_who_leads_loads(process: Process, group: Group) -> None:
    group.port = process.wait = None
    caller = Caller(process, group)
    loading, port, seat, request, key, ctx, peer, maker, version = apart(caller.go())
    assert (loading, port, request, key, ctx, peer) == (group, process.alone, None, KEY, "ctx", None)
    assert (maker, version) == (group.getter, None)
    assert (seat.leads, seat.lease, seat.flight.key) == (True, 0, ("group", KEY, True))
    assert group.counted == LOADED
    view = ByteView(b"value")
    assert caller.end(view) is view
    assert group.counted == LOADED


def test_what_is_kept_while_nobody_is_there(process: Process, group: Group) -> None:
    hold = Hold()
    process.alone.end(None, hold.board(process.flights, ("group", KEY, True), 3, ()), Product(b"kept"))
    hold.end()
    group.port = process.wait = None
    assert Caller(process, group).end() == b"kept"
    assert group.counted == [Counter.MAIN_HITS]
    group.changes += 1
    caller = Caller(process, group)
    apart(caller.go())
    caller.hold.end()


def attaching(process: Process, patient: bool = False) -> Generator[Any, Any, bool]:
    return miss.attached(cast(Any, process), "one", "two", patient=patient)


@pytest.mark.parametrize("patient", [False, True])
def test_attaching_is_tried_twice_and_waited_for(process: Process, patient: bool) -> None:
    """The first attempt may have been another's, who knew nothing of these groups."""
    assert process.wait is not None
    expected = Until(process.wait.attempt, None) if patient else process.wait
    steps = attaching(process, patient)
    assert next(steps) == expected
    assert steps.send(True) == expected
    with pytest.raises(StopIteration) as end:
        steps.send(True)
    assert end.value.value is False
    assert process.asked == [(("one", "two"), True)] * 2


@pytest.mark.parametrize("what", ["attached", "of no use", "not waited for", "attached meanwhile"])
def test_attaching_ends(process: Process, what: str) -> None:
    process.attached = what == "attached"
    if what == "of no use":
        process.wait = None
    steps = attaching(process)
    if what in ("attached", "of no use"):
        with pytest.raises(StopIteration) as end:
            next(steps)
    else:
        next(steps)
        process.attached = what == "attached meanwhile"
        with pytest.raises(StopIteration) as end:
            steps.send(what == "attached meanwhile")
    assert end.value.value is process.attached
    assert len(process.asked) == (what != "attached")


def test_who_only_looks_waits_for_a_moment_and_starts_nobody(process: Process, group: Group) -> None:
    def glance() -> Generator[Any, Any, None]:
        return miss.glance(Hold(), cast(Any, process), cast(Any, group))

    before = time.monotonic()
    wait = next(glance())
    assert isinstance(wait, Until)
    assert process.wait is not None
    assert wait.attempt is process.wait.attempt
    assert wait.moment is not None
    assert before + miss.GLANCE <= wait.moment <= time.monotonic() + miss.GLANCE
    assert process.asked == [((group,), False)]
    process.wait = None
    assert list(glance()) == []


# ---- Who leads


@pytest.mark.parametrize(("here", "readable"), [(False, True), (True, True), (False, False)])
def test_a_lease(process: Process, group: Group, here: bool, readable: bool) -> None:
    group.readable = readable
    caller = Caller(process, group, here)
    request = caller.go()
    assert request.asked == ("group", KEY, not readable, here)
    loading, port, seat, asked, key, ctx, peer, maker, version = apart(caller.go(Lease(7, 1)))
    assert (maker, version) == (group.getter, 1)
    assert (loading, port, asked, key, ctx, peer) == (group, group.port, request, KEY, "ctx", None)
    assert (seat.leads, seat.lease, seat.flight.key) == (True, 7, ("group", KEY, here, False, 0))
    assert not request.settled  # the load ends it
    assert group.counted == LOADED
    view = ByteView(b"value")
    assert caller.end(view) is view


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize(
    ("origin", "counted", "followers"),
    [
        (Origin.CACHE, [Counter.MAIN_HITS], [Counter.MAIN_HITS]),
        (Origin.FLIGHT, SHARED, SHARED),
        (Origin.PEER, LOADED, SHARED),  # the leader's ask had opened the peer's flight
    ],
)
def test_a_value_is_everybodys_in_the_flight(
    process: Process, group: Group, size: int, origin: Origin, counted: list[Counter], followers: list[Counter]
) -> None:
    value = value_of(f"big:{size}:")
    leader, follower = Caller(process, group), Caller(process, group)
    request = leader.go()
    seat = follower.go()
    assert not seat.leads
    carried: bytes | int = value
    if size > 1000:
        request.bring(value)
        carried = size
    assert leader.end(Value(carried, origin, None, None)) == value
    assert request.settled
    assert group.counted == counted
    group.counted.clear()
    assert seat.over
    assert follower.end() == value
    assert group.counted == followers
    assert len(group.port.requests) == 1
    assert len(process.flights) == 0


def test_a_hit_is_looked_up_by_everybody(process: Process, group: Group) -> None:
    leader, follower = Caller(process, group), Caller(process, group)
    request = leader.go()
    follower.go()
    group.cached = ByteView(b"value")
    assert leader.end(Hit()) is group.cached
    assert request.settled
    assert follower.end() is group.cached
    assert group.counted == []


def test_who_finds_nothing_where_there_was_a_hit_asks_for_a_copy(process: Process, group: Group) -> None:
    leader, follower = Caller(process, group), Caller(process, group)
    first = leader.go()
    follower.go()
    second = leader.go(Hit())
    assert (first.asked, second.asked) == (("group", KEY, False, False), ("group", KEY, True, False))
    seat = follower.go()  # which asks too, and waits for who was faster
    assert not seat.leads
    assert leader.end(Value(b"value", Origin.CACHE, None, None)) == follower.end() == b"value"
    assert group.counted == [Counter.MAIN_HITS] * 2


@pytest.mark.parametrize(
    "answer", [Failed(FailureCode.REFUSED, "", "no"), Pong(), Value(1 << 20, Origin.FLIGHT, None, None)]
)
def test_an_answer_of_no_use_is_loaded_without_the_coordinator(
    process: Process, group: Group, answer: Message, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mpgroupcache.worker.miss")
    caller = Caller(process, group)
    request = caller.go()
    _, port, seat, asked, *_ = apart(caller.go(answer))
    assert (port, asked, seat.lease, seat.leads) == (process.alone, None, 0, True)
    assert request.settled == isinstance(answer, Failed)  # another one is taken back
    assert group.counted == LOADED
    (record,) = caplog.records
    assert "group 'group': a value is loaded without the coordinator: " in record.getMessage()
    caller.hold.end()


def test_a_port_that_cannot_be_asked(process: Process, group: Group) -> None:
    group.port.refuse = CoordinatorUnavailable("gone")
    caller = Caller(process, group)
    _, port, seat, asked, *_ = apart(caller.go())
    assert (port, asked, seat.lease) == (process.alone, None, 0)
    caller.hold.end()


def test_what_nobody_foresaw_is_a_get_all_the_same(process: Process, group: Group) -> None:
    caller = Caller(process, group)
    caller.go()
    with pytest.raises(ZeroDivisionError):
        caller.steps.throw(ZeroDivisionError())
    assert group.counted == LOADED
    caller.hold.end()


@pytest.mark.parametrize(
    ("code", "kind"), [(FailureCode.LOAD_ERROR, LoadError), (FailureCode.LOAD_CYCLE, LoadCycleError)]
)
def test_a_failure_is_everybodys_as_an_exception_of_his_own(
    process: Process, group: Group, code: FailureCode, kind: type[Exception]
) -> None:
    leader, follower = Caller(process, group), Caller(process, group)
    request = leader.go()
    follower.go()
    with pytest.raises(kind, match="boom") as first:
        leader.go(Failed(code, "app.Error", "boom"))
    assert request.settled
    with pytest.raises(kind, match="boom") as second:
        follower.go()
    assert first.value is not second.value
    assert first.value.__cause__ is None
    if isinstance(first.value, LoadError):
        assert first.value.type_name == "app.Error"
    assert group.counted == LOADED * 2


# ---- Who waits


def test_the_next_one_leads_where_the_leader_left(process: Process, group: Group) -> None:
    leader, follower = Caller(process, group), Caller(process, group)
    leader.go()
    seat = follower.go()
    leader.steps.close()
    leader.hold.end()
    assert seat.leads
    request = follower.go()
    assert request is group.port.requests[1]
    assert follower.end(Value(b"value", Origin.CACHE, None, None)) == b"value"


def test_who_would_wait_for_himself_is_told(process: Process, group: Group) -> None:
    leader, follower = Caller(process, group), Caller(process, group)
    leader.go()
    group.port.refuse = LoadCycleError("a circle")
    with pytest.raises(LoadCycleError, match="a circle"):
        follower.go()
    assert group.counted == LOADED
    leader.hold.end()


def test_a_caller_of_a_later_change_joins_no_flight_from_before(process: Process, group: Group) -> None:
    leader, follower = Caller(process, group), Caller(process, group)
    first = leader.go()
    group.changes += 1
    second = follower.go()
    assert [first, second] == group.port.requests
    for caller in (leader, follower):
        caller.hold.end()


# ---- Peers


def test_a_peer_that_was_picked(process: Process, group: Group) -> None:
    peer = Maker()
    group.peers = {KEY: peer}
    caller = Caller(process, group)
    assert caller.go().asked == ("group", KEY, False, False)
    *_, picked, _, _ = apart(caller.go(Lease(7, 1)))
    assert picked is peer
    (flight,) = process.flights
    assert flight.key == ("group", KEY, False, True, 0)
    caller.hold.end()


def test_who_picked_himself_waits_for_no_peer(process: Process, group: Group) -> None:
    group.peers = {}
    caller = Caller(process, group)
    assert caller.go().asked == ("group", KEY, False, True)
    *_, picked, _, _ = apart(caller.go(Lease(7, 1)))
    assert picked is None
    caller.hold.end()


def test_a_peers_request_asks_no_other_peer(process: Process, group: Group) -> None:
    group.peers = {KEY: Maker()}
    caller = Caller(process, group, here=True)
    assert caller.go().asked == ("group", KEY, False, True)
    *_, picked, _, _ = apart(caller.go(Lease(7, 1)))
    assert picked is None
    caller.hold.end()


# ---- The load


class Loading:
    """A load for a lease, and one who waits for it."""

    def __init__(self, process: Process, group: Group, peer: Any = None) -> None:
        self.group, self.port = group, group.port
        self.hold, self.other = Hold(), Hold()
        self.seat = self.hold.board(process.flights, ("group", KEY), 3, ())
        self.seat.lease = 7
        self.waiting = self.other.board(process.flights, ("group", KEY), 3, ())
        self.request = Request()
        request: Any = self.request
        arguments = (cast(Any, group), self.port, self.seat, request, KEY, "ctx", peer, group.getter, 9)
        self.steps: Generator[Any, Any, ByteView] = miss.load(self.hold, *arguments)

    def shared(self) -> Any:
        """What the one who waits has."""
        assert self.waiting.over
        return miss.outcome_of(cast(Any, self.group), KEY, self.waiting.outcome)


def test_a_load(process: Process, group: Group) -> None:
    loading = Loading(process, group)
    assert loading.steps.send(None) == Make(group.getter, "ctx", KEY)
    assert held() == (loading.seat,)
    assert not loading.waiting.over
    product = Product(b"value")
    assert result_of(loading.steps, product) == b"value"
    assert held() == ()
    assert loading.port.ended == [(loading.request, 7, product)]
    assert group.counted == [Counter.LOCAL_LOADS]
    assert loading.shared() == b"value"
    assert group.counted == [Counter.LOCAL_LOADS, *SHARED]


def test_what_a_load_says_of_its_value(process: Process, group: Group) -> None:
    """Its number and how long it is fresh, to whoever loaded it and to those who wait."""
    loading = Loading(process, group)
    loading.steps.send(None)
    for view in (result_of(loading.steps, Product(b"value", ttl=60.0)), loading.shared()):
        assert view.version == 9
        assert 0 < view.ttl <= 60.0


def test_a_loader_that_finds_nothing(process: Process, group: Group) -> None:
    """It is everybody's answer, and no error."""
    loading = Loading(process, group)
    loading.steps.send(None)
    error = NotFound("no row")
    with pytest.raises(NotFound) as caught:
        loading.steps.throw(error)
    assert caught.value is error
    assert loading.port.ended[0] == (loading.request, 7, Product(b"no row", absent=True))
    assert group.counted == [Counter.LOCAL_LOADS]
    with pytest.raises(NotFound, match="^no row$") as shared:
        loading.shared()
    assert shared.value is not error


@pytest.mark.parametrize("there", [True, False])
def test_a_loader_that_raises_where_an_old_value_is_kept(process: Process, group: Group, there: bool) -> None:
    group.ages = msgspec.structs.replace(AGELESS, ttl=60.0, stale_if_error=600.0)
    group.kept = ByteView(b"old") if there else None
    loading = Loading(process, group)
    loading.steps.send(None)
    if there:
        with pytest.raises(StopIteration) as end:
            loading.steps.throw(ValueError("boom"))
        assert end.value.value == loading.shared() == b"old"
    else:
        with pytest.raises(ValueError, match="boom"):
            loading.steps.throw(ValueError("boom"))
    assert isinstance(loading.port.ended[0][2], ValueError)
    assert group.counted[0] == Counter.LOCAL_LOAD_ERRS


def test_a_load_whose_value_the_socket_does_not_take(process: Process, group: Group) -> None:
    loading = Loading(process, group)
    loading.steps.send(None)
    group.port.channel.waiting = 1
    assert loading.steps.send(Product(b"value")) == Flush(group.port.channel)
    assert loading.shared() == b"value"  # nobody waits for that
    assert result_of(loading.steps, None) == b"value"


def test_a_load_without_a_coordinator(process: Process, group: Group) -> None:
    group.port = process.alone
    loading = Loading(process, group)
    loading.steps.send(None)
    assert result_of(loading.steps, Product(b"value")) == b"value"
    assert process.alone.find("group", KEY, 3) == b"value"


def test_a_peers_value_is_not_loaded(process: Process, group: Group) -> None:
    peer = Maker()
    loading = Loading(process, group, peer)
    assert loading.steps.send(None) == Make(cast(Any, peer), "ctx", KEY)
    product = Product(b"value", True, Said(2.0, None, False, None, None))
    assert result_of(loading.steps, product) == b"value"
    assert loading.port.ended == [(loading.request, 7, product)]
    assert group.counted == [Counter.PEER_LOADS]


def test_a_peer_that_fails_is_blamed_and_the_value_loaded(process: Process, group: Group) -> None:
    loading = Loading(process, group, Maker())
    loading.steps.send(None)
    error = OSError("gone")
    assert loading.steps.throw(error) == Make(group.getter, "ctx", KEY)
    assert group.blamed == [error]
    assert result_of(loading.steps, Product(b"value")) == b"value"
    assert group.counted == [Counter.LOCAL_LOADS]


def test_a_loader_that_raises(process: Process, group: Group) -> None:
    loading = Loading(process, group)
    loading.steps.send(None)
    error = ValueError("boom")
    with pytest.raises(ValueError, match="boom") as caught:
        loading.steps.throw(error)
    assert caught.value is error
    assert held() == ()
    assert loading.port.ended[0] == (loading.request, 7, error)
    assert group.counted == [Counter.LOCAL_LOAD_ERRS]
    with pytest.raises(LoadError) as shared:
        loading.shared()
    assert (shared.value.type_name, shared.value.message, shared.value.__cause__) == ("ValueError", "boom", error)


def test_a_loader_that_is_left_gives_the_lease_back(process: Process, group: Group) -> None:
    loading = Loading(process, group)
    loading.steps.send(None)
    with pytest.raises(SystemExit):
        loading.steps.throw(SystemExit())
    assert loading.port.ended == [(loading.request, 7, None)]
    assert held() == ()
    assert group.counted == []
    loading.hold.end()
    assert loading.waiting.leads  # and loads


# ---- For peers


def test_a_load_for_a_peer(process: Process, group: Group) -> None:
    hold, request = Hold(), Request()
    message = Load(7, "group", KEY, pack_context({"user": "ann"}), False)
    link = group.port
    steps = miss.load_for_peer(hold, process.flights, cast(Any, group), link, message, cast(Any, request))
    assert next(steps) == Make(group.getter, {"user": "ann"}, KEY)
    (flight,) = process.flights
    assert flight.key == ("group", KEY, 7)
    assert flight.leader is not None
    assert flight.leader.lease == 7
    product = Product(b"value")
    assert result_of(steps, product) == b"value"
    assert link.ended == [(request, 7, product)]


@pytest.mark.parametrize("linked", ["before", "by the way", "not at all"])
def test_a_peers_request_that_this_process_serves(process: Process, group: Group, linked: str) -> None:
    port = group.port
    if linked != "before":
        group.port = None
    steps: Any = miss.serve(Hold(), cast(Any, process), cast(Any, group), KEY, "ctx")
    group.cached = ByteView(b"value")
    if linked != "before":
        assert next(steps) is process.wait
    if linked == "by the way":
        attach(process, group, port)
    assert result_of(steps, None if linked == "before" else linked == "by the way") is group.cached
    assert port.served == ([] if linked == "not at all" else ["group"])


def test_a_peers_request_that_misses(process: Process, group: Group) -> None:
    group.peers = {KEY: Maker()}
    hold = Hold()
    steps: Any = miss.serve(hold, cast(Any, process), cast(Any, group), KEY, "ctx")
    assert next(steps).asked == ("group", KEY, False, True)
    _, _, _, _, key, ctx, peer, _, _ = apart(steps.send(Lease(7, 1)))
    assert (key, ctx, peer) == (KEY, "ctx", None)
    hold.end()


def test_a_value_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(memfd, "map", fail)
    request: Any = Request()
    request.bring(b"value")
    with pytest.raises(CoordinatorUnavailable, match="a value of 5 bytes cannot be mapped: full"):
        miss._map(request, 5)
