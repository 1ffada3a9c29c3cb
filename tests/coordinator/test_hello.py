"""HELLO: which version of the conversation is spoken, and what becomes of a worker with whom there is none."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import msgspec
import pytest
from workers import PATIENCE, Daemon, HandWorker, Worker, hello, value_of

import mpgroupcache
from mpgroupcache.ages import AGELESS
from mpgroupcache.ipc import fields, frame, messages
from mpgroupcache.ipc.fields import MAX_ABILITIES, MAX_VERSION
from mpgroupcache.ipc.messages import HIGHEST_VERSION, LOWEST_VERSION, Failed, FailureCode, Hello, Welcome
from mpgroupcache.shm._reader import LAYOUT_VERSION
from mpgroupcache.shm.segment import instance_name
from mpgroupcache.worker import link as link_module
from mpgroupcache.worker import process
from mpgroupcache.worker.channel import LIVENESS_TIMEOUT
from mpgroupcache.worker.link import Link

Start = Callable[..., Daemon]


@pytest.fixture
def daemon(start_coordinator: Start) -> Daemon:
    return start_coordinator()


@pytest.fixture
def mute(daemon: Daemon) -> Iterator[HandWorker]:
    """A worker that has not said HELLO yet."""
    with contextlib.closing(HandWorker.__new__(HandWorker)) as mute:
        mute.open(daemon.socket)
        yield mute


def goes_on(worker: HandWorker) -> None:
    """It is served like any other."""
    lease = worker.lease(worker.declare(), b"k")
    worker.send(messages.Store(lease, b"v", False, None, None, None, False))
    assert worker.ask(messages.Ping()) == messages.Pong()


def test_what_welcome_says(daemon: Daemon, mute: HandWorker) -> None:
    welcome = mute.ask(hello("call"))
    assert isinstance(welcome, Welcome)
    assert welcome.version == HIGHEST_VERSION
    assert welcome.pid == daemon.process.pid
    assert welcome.layout == LAYOUT_VERSION
    assert os.path.exists(f"/dev/shm/{welcome.control}")
    assert welcome.control.startswith(welcome.instance)
    goes_on(mute)


@pytest.mark.parametrize(("lowest", "highest"), [(LOWEST_VERSION, MAX_VERSION), (1, HIGHEST_VERSION), (1, MAX_VERSION)])
@pytest.mark.parametrize("role", ["call", "service"])
def test_the_highest_version_that_both_speak(mute: HandWorker, role: fields.Role, lowest: int, highest: int) -> None:
    welcome = mute.ask(hello(role, lowest, highest))
    assert isinstance(welcome, Welcome)
    assert welcome.version == HIGHEST_VERSION
    assert mute.ask(messages.Ping()) == messages.Pong()


@pytest.mark.parametrize(
    ("lowest", "highest"),
    [
        (HIGHEST_VERSION + 1, MAX_VERSION),  # a release to come
        (1, LOWEST_VERSION - 1),  # one that has gone
        (HIGHEST_VERSION + 1, LOWEST_VERSION - 1),  # none
        (MAX_VERSION, 1),
    ],
)
@pytest.mark.parametrize("role", ["call", "service"])
def test_no_version_in_common(daemon: Daemon, mute: HandWorker, role: fields.Role, lowest: int, highest: int) -> None:
    refusal = mute.ask(hello(role, lowest, highest))
    assert isinstance(refusal, Failed)
    assert refusal.code is FailureCode.REFUSED
    expected = f"expected some of {LOWEST_VERSION} to {HIGHEST_VERSION}; upgrade what is older"
    assert f"got a worker with {lowest} to {highest}, {expected}" in refusal.message
    with pytest.raises(EOFError):
        mute.receive()
    daemon.wait_says(refusal.message)
    with contextlib.closing(HandWorker(daemon.socket)) as other:
        goes_on(other)


def test_who_is_turned_away_is_heard_no_more(daemon: Daemon, mute: HandWorker) -> None:
    mute.send_together(
        hello("call", MAX_VERSION, MAX_VERSION), messages.Declare("other", 1 << 20, None, False, "", "", True, AGELESS)
    )
    assert isinstance(mute.receive(), Failed)
    with pytest.raises((EOFError, ConnectionResetError)):  # the reset: it was closed with something unread
        mute.receive()
    daemon.wait_says("got Declare on a refused connection, expected none")
    with contextlib.closing(HandWorker(daemon.socket)) as other:
        assert other.declare() == 0  # the first group


def clock(hello: Hello, off: float) -> Hello:
    """The same, of a worker whose clock is so many seconds off."""
    return msgspec.structs.replace(hello, clock=hello.clock + int(off * 1e9))


@pytest.mark.parametrize("off", [3600, -60])
@pytest.mark.parametrize("role", ["call", "service"])
def test_another_clock(daemon: Daemon, mute: HandWorker, role: fields.Role, off: int) -> None:
    """By it values would be stale that are fresh, or live that are dead."""
    refusal = mute.ask(clock(hello(role), off))
    assert isinstance(refusal, Failed)
    assert refusal.code is FailureCode.REFUSED
    found = re.fullmatch(
        r"clock: got a worker whose CLOCK_BOOTTIME is ([+-]\d+) s off, expected the coordinator's, by which values "
        r"age; run both in one time namespace",
        refusal.message,
    )
    assert found is not None
    assert -PATIENCE <= int(found[1]) - off <= 1  # what it took to be read counts
    with pytest.raises(EOFError):
        mute.receive()
    daemon.wait_says(refusal.message)
    with contextlib.closing(HandWorker(daemon.socket)) as other:
        goes_on(other)


def test_a_hello_that_is_read_late_is_no_other_clock(mute: HandWorker) -> None:
    """By more than a worker waits for its answer."""
    late = mute.ask(clock(hello("call"), -2 * LIVENESS_TIMEOUT))
    assert isinstance(late, Welcome)
    goes_on(mute)


def test_a_worker_in_another_time_namespace_loads_alone(daemon: Daemon) -> None:
    """A real one, whose clock is an hour off: it is turned away by name, and serves its callers all the same."""
    elsewhere = ["unshare", "--time", "--boottime", "3600"]
    if shutil.which("unshare") is None or subprocess.run([*elsewhere, "true"], check=False).returncode != 0:
        pytest.skip("no time namespace can be made here")
    program = (
        "import mpgroupcache, sys; mpgroupcache.configure(socket=sys.argv[1]);"
        "group = mpgroupcache.new_group('group', '1MiB', lambda ctx, key, dest: dest.set_string(key));"
        "print(mpgroupcache.connect(), group.get('k'))"
    )
    done = subprocess.run(
        [*elsewhere, sys.executable, "-c", program, daemon.socket], check=True, capture_output=True, text=True
    )
    assert done.stdout == "False k\n"
    daemon.wait_says("clock: got a worker whose CLOCK_BOOTTIME is +3")


def test_abilities_that_nobody_knows_are_ignored(mute: HandWorker) -> None:
    assert isinstance(mute.ask(hello("call", abilities=("fly", "swim", "fly"))), Welcome)
    goes_on(mute)


def send_fields(worker: HandWorker, *fields: Any) -> None:
    """Send a HELLO of any fields."""
    header = frame.encode(hello("call"), 1)[:8]
    payload = msgpack.packb(fields)
    worker.sock.sendall(header + len(payload).to_bytes(4, "big") + payload)


def fields_of(message: Hello) -> list[Any]:
    return [getattr(message, name) for name in message.__struct_fields__]


def test_fields_that_a_later_release_appends_are_ignored(mute: HandWorker) -> None:
    send_fields(mute, *fields_of(hello("call", highest=HIGHEST_VERSION + 1)), 12.5, None, {"clock": [1]})
    welcome = mute.receive()
    assert isinstance(welcome, Welcome)
    assert welcome.version == HIGHEST_VERSION
    goes_on(mute)


@pytest.mark.parametrize(
    "wrong",
    [
        fields_of(hello("call"))[:-1],
        [*fields_of(hello("call"))[:-1], ["fly"] * (MAX_ABILITIES + 1)],
        [*fields_of(hello("call"))[:-2], 0, []],
    ],
    ids=["a field less", "abilities without end", "no version"],
)
def test_a_hello_that_is_none_ends_its_connection(daemon: Daemon, mute: HandWorker, wrong: list[Any]) -> None:
    send_fields(mute, *wrong)
    with pytest.raises(EOFError):
        mute.receive()
    daemon.wait_says("connection of process 0>: Hello: ")


def test_a_frame_of_before_there_were_versions_ends_its_connection(daemon: Daemon, mute: HandWorker) -> None:
    mute.sock.sendall(b"mg\1" + frame.encode(hello("call"), 1)[3:])
    with pytest.raises(EOFError):
        mute.receive()
    daemon.wait_says(f"version: got 1, expected {frame.VERSION}; restart what is older")


def test_what_a_link_knows_of_its_instance(daemon: Daemon) -> None:
    link = Link(daemon.socket, lambda _link, _load: None)
    assert link.broken
    link.open(None, lambda _reader: None)
    assert not link.broken
    assert (link.instance, link.abilities) == (instance_name(daemon.socket), frozenset())
    assert link.reader is not None
    link.close()
    del link  # and its region, for which the coordinator would keep its segments
    gc.collect()


def test_a_worker_that_is_turned_away_loads_alone(daemon: Daemon, spawn_on: Callable[..., Worker]) -> None:
    """And keeps nothing: others have a coordinator, and may change what this one does not see."""
    worker = spawn_on(daemon.socket)
    worker.do("speak", MAX_VERSION, MAX_VERSION)
    for _ in range(2):
        assert worker.get("k") == value_of("k")
    assert worker.get("l") == value_of("l")
    assert worker.loads == ["k", "k", "l"]
    assert not worker.do("has_link")
    daemon.wait_says(f"got a worker with {MAX_VERSION} to {MAX_VERSION}")


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_worker_of_another_layout_maps_nothing_and_is_served_copies(
    here: Daemon, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(link_module, "LAYOUT_VERSION", LAYOUT_VERSION + 1)
    loads = []

    def load(_ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        loads.append(key)
        dest.set_bytes(bytes(size))

    group = mpgroupcache.new_group("group", "8MiB", load)
    for _ in range(3):
        assert group.get("k") == bytes(size)
    link = process.current().working_link
    assert link is not None
    assert link.reader is None
    assert loads == ["k"]
    assert not group.attached
