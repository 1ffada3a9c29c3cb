"""Who gets in: real processes of other users and groups, whose numbers need no account."""

from __future__ import annotations

import grp
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arenas import Instance
from children import Child
from tools import missing
from workers import Daemon, HandWorker, leave, segments_of, value_of, wait_until

import mpgroupcache
from mpgroupcache.coordinator import access, main
from mpgroupcache.coordinator.access import Access
from mpgroupcache.coordinator.main import ExitCode
from mpgroupcache.errors import CoordinatorUnavailable
from mpgroupcache.shm.segment import control_name, instance_name, segment_path
from mpgroupcache.worker.link import connect

USER, OTHER_USER = 61_001, 61_002
GROUP, OTHER_GROUP = 62_001, 62_002

Start = Callable[..., Daemon]
StartChild = Callable[..., Child]


class Process:
    """A process of another user, that may be a worker."""

    def __init__(self, user: int, group: int, groups: list[int]) -> None:
        os.setgroups(groups)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        self.loads: list[str] = []

    def _load(self, ctx: object, key: str, dest: mpgroupcache.Sink) -> None:
        self.loads.append(key)
        dest.set_bytes(value_of(key))

    def work(self, path: str) -> None:
        mpgroupcache.configure(socket=path)
        self.group = mpgroupcache.new_group("group", "8MiB", self._load)

    def get(self, key: str) -> tuple[bool, list[str]]:
        """Whether the value is right, and what was loaded for it, and whatever was before."""
        return self.group.get(key) == value_of(key), self.loads

    def lookup(self, key: str) -> bool:
        return self.group.lookup(key) is not None

    def connect(self) -> bool:
        return mpgroupcache.connect()

    def leave(self) -> None:
        leave()

    def is_let_in(self, path: str) -> bool:
        """Whether the coordinator, and not only the socket's mode, lets this process in."""
        try:
            HandWorker(path).close()
        except (EOFError, ConnectionError):
            return False
        return True

    def error_of_connecting(self, path: str) -> str:
        with pytest.raises(CoordinatorUnavailable) as caught:
            connect(path)
        return str(caught.value)

    def opens(self, path: str, flags: int) -> bool:
        try:
            os.close(os.open(path, flags))
        except PermissionError:
            return False
        return True

    def access(self, group: str) -> int | None:
        return Access(group).gid

    def leave_file(self, name: str, content: bytes, mode: int) -> None:
        path = Path(segment_path(name))
        path.write_bytes(content)
        path.chmod(mode)

    def coordinate(self, *arguments: str) -> int:
        """Be a coordinator until SIGTERM; in this process, since others may not be let near the interpreter."""
        return main.main(arguments)

    def begin(self, path: str) -> None:
        Instance(path).close()


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        missing("processes of other users take root")


@pytest.fixture
def open_path(socket_path: str) -> str:
    """A socket's path in a directory that everybody may enter."""
    os.chmod(os.path.dirname(socket_path), 0o755)
    return socket_path


@pytest.fixture
def process(child: StartChild) -> Callable[..., Child]:
    """Start processes: ``process(user, group, *supplementary groups)``."""
    return lambda user=USER, group=OTHER_GROUP, *groups: child(Process, user, group, list(groups))


@pytest.fixture
def files() -> Iterator[list[str]]:
    """Names in shared memory that are gone after the test."""
    names: list[str] = []
    yield names
    for name in names:
        Path(segment_path(name)).unlink(missing_ok=True)


def modes(path: str) -> dict[str, tuple[int, int]]:
    """Mode and group of an instance's socket and segments."""
    paths = {"socket": path}
    for name in segments_of(path):
        paths["control" if name.endswith("-control") else "arena"] = segment_path(name)
    found = {what: os.stat(place) for what, place in paths.items()}
    return {what: (stat.S_IMODE(status.st_mode), status.st_gid) for what, status in found.items()}


def declared(daemon: Daemon, process: Child) -> None:
    """A worker that has loaded a key, and sees it cached."""
    process.call("work", daemon.socket)
    wait_until(lambda: process.call("connect"), "a connection")
    assert process.call("get", "k")[0]
    wait_until(lambda: process.call("lookup", "k"), "a value that is cached")


# ---- Nobody else


def test_another_user_is_refused(start_coordinator: Start, open_path: str, process: Callable[..., Child]) -> None:
    daemon = start_coordinator()
    own, foreign = process(0, 0), process()
    declared(daemon, own)
    assert modes(daemon.socket) == {"socket": (0o600, 0), "control": (0o600, 0), "arena": (0o600, 0)}
    for name in segments_of(daemon.socket):
        assert not foreign.call("opens", segment_path(name), os.O_RDONLY)
    foreign.call("work", daemon.socket)
    assert not foreign.call("connect")
    assert foreign.call("get", "k") == (True, ["k"])  # alone
    message = foreign.call("error_of_connecting", daemon.socket)
    assert f"Permission denied; it is for user 0, and this process is user {USER}'s: start the coordinator" in message
    os.chmod(os.path.dirname(daemon.socket), 0o700)
    assert f"user {USER} may not enter its directory" in foreign.call("error_of_connecting", daemon.socket)
    os.chmod(os.path.dirname(daemon.socket), 0o755)
    os.chmod(daemon.socket, 0o666)  # what the mode would let in
    assert not foreign.call("is_let_in", daemon.socket)
    daemon.wait_says(f"got user {USER}, expected 0; its connection is refused")
    own.call("leave")


# ---- A group


def test_members_of_the_group_share_the_cache(
    start_coordinator: Start, open_path: str, process: Callable[..., Child]
) -> None:
    daemon = start_coordinator("--group", str(GROUP))
    first, second, root = process(USER, GROUP), process(OTHER_USER, OTHER_GROUP, 7, GROUP), process(0, 0)
    declared(daemon, first)
    assert modes(daemon.socket) == {"socket": (0o660, GROUP), "control": (0o660, GROUP), "arena": (0o640, GROUP)}
    large = "big:300000:a"  # travels by descriptor
    assert first.call("get", large) == (True, ["k", large])
    for other in (second, root):
        other.call("work", daemon.socket)
        assert other.call("get", "k") == other.call("get", large) == (True, [])
        assert other.call("get", large) == (True, [])
    [arena] = [name for name in segments_of(daemon.socket) if not name.endswith("-control")]
    for member in (first, second):
        assert member.call("is_let_in", daemon.socket)
        assert not member.call("opens", segment_path(arena), os.O_RDWR)
        assert member.call("opens", segment_path(arena), os.O_RDONLY)
    for worker in (first, second, root):
        worker.call("leave")


def test_a_coordinator_that_is_not_root(open_path: str, process: Callable[..., Child]) -> None:
    os.chown(os.path.dirname(open_path), USER, -1)
    serving = process(USER, OTHER_GROUP, GROUP)
    serving.send("coordinate", "--socket", open_path, "--group", str(GROUP))
    own, member, foreign = process(USER), process(OTHER_USER, GROUP), process(OTHER_USER)
    own.call("work", open_path)
    wait_until(lambda: own.call("connect"), "a connection")
    assert own.call("get", "k") == (True, ["k"])
    wait_until(lambda: own.call("lookup", "k"), "a value that is cached")
    assert modes(open_path) == {"socket": (0o660, GROUP), "control": (0o660, GROUP), "arena": (0o640, GROUP)}
    assert {os.stat(segment_path(name)).st_uid for name in segments_of(open_path)} == {USER}
    member.call("work", open_path)
    assert member.call("get", "k") == (True, [])
    foreign.call("work", open_path)
    assert not foreign.call("connect")
    for worker in (own, member):
        worker.call("leave")
    serving.signal(signal.SIGTERM)
    assert serving.receive() == ExitCode.OK


def test_who_is_not_of_the_group_is_refused(
    start_coordinator: Start, open_path: str, process: Callable[..., Child]
) -> None:
    daemon = start_coordinator("--group", str(GROUP))
    member, foreign = process(USER, GROUP), process(OTHER_USER, OTHER_GROUP, 7, 8)
    declared(daemon, member)
    for name in segments_of(daemon.socket):
        assert not foreign.call("opens", segment_path(name), os.O_RDONLY)
    foreign.call("work", daemon.socket)
    assert not foreign.call("connect")
    os.chmod(daemon.socket, 0o666)
    assert not foreign.call("is_let_in", daemon.socket)
    daemon.wait_says(f"got user {OTHER_USER} of group {OTHER_GROUP}, expected user 0, or a member of group {GROUP}")
    crowded = process(OTHER_USER, OTHER_GROUP, *range(70_000, 70_300), GROUP)
    assert not crowded.call("is_let_in", daemon.socket)
    daemon.wait_says(f"expected at most {access._MOST_GROUPS}")
    member.call("leave")


def test_a_new_group_begins_anew_and_a_first_one_does_not(
    start_coordinator: Start, open_path: str, process: Callable[..., Child]
) -> None:
    """Who had a segment open, has it open: what has let others in is not for the next ones."""
    daemon = start_coordinator()
    own = process(0, 0)
    declared(daemon, own)
    for options, expected in [
        (["--group", str(GROUP)], True),
        (["--group", str(GROUP)], True),
        (["--group", str(OTHER_GROUP)], False),
        ([], False),
        ([], True),
    ]:
        daemon.send(signal.SIGKILL)
        daemon.wait()
        before = set(segments_of(open_path))
        daemon = start_coordinator(*options)
        wait_until(lambda: own.call("connect"), "a connection")
        own.call("get", "k")
        wait_until(lambda: own.call("lookup", "k"), "a value that is cached")
        after = segments_of(open_path)
        arenas = {name for name in after if not name.endswith("-control")}
        assert (arenas <= before) is expected
        assert ("--group has changed; its cache begins anew" in "".join(daemon.log)) is not expected
        gid = int(options[1]) if options else 0
        shared = (0o660, 0o660, 0o640) if options else (0o600,) * 3
        assert modes(daemon.socket) == dict(
            zip(("socket", "control", "arena"), ((mode, gid) for mode in shared), strict=True)
        )
    own.call("leave")


def test_groups_that_cannot_be(tmp_path: Path, process: Callable[..., Child]) -> None:
    for name in ("no such group", str((1 << 32) - 1)):
        path = str(tmp_path / "s")
        daemon = Daemon(path, "--group", name)
        assert daemon.wait() == ExitCode.BAD_OPTION
        assert f"--group: got {name!r}, expected the name or the number of a group of this host" in "".join(daemon.log)
        assert segments_of(path) == []
    member = process(USER, OTHER_GROUP, GROUP)
    assert member.call("access", str(GROUP)) == GROUP
    assert member.call("access", str(OTHER_GROUP)) == OTHER_GROUP
    with pytest.raises(AssertionError, match=f"--group: got '7', of which this process's user {USER} is no member"):
        member.call("access", "7")


def test_a_group_has_a_name_or_a_number() -> None:
    entry = grp.getgrgid(0)
    assert Access(entry.gr_name).gid == Access("0").gid == 0
    assert Access(None).gid is None


# ---- Names that another user has taken


def test_another_users_segments_are_not_taken_over(
    start_coordinator: Start, open_path: str, process: Callable[..., Child], files: list[str]
) -> None:
    """1. A coordinator dies. 2. Another user has made what looks like a segment of its. 3. The next one finds both."""
    daemon = start_coordinator()
    own = process(0, 0)
    declared(daemon, own)
    [arena] = [name for name in segments_of(open_path) if not name.endswith("-control")]
    content = Path(segment_path(arena)).read_bytes()[:4096]
    daemon.send(signal.SIGKILL)
    daemon.wait()
    forged = f"{arena.rpartition('-')[0]}-0"  # comes first
    process().call("leave_file", forged, content, 0o666)
    files.append(forged)
    daemon = start_coordinator()
    assert f"segment {forged}: got one of user {USER}, expected one of user 0" in "".join(daemon.log)
    assert forged not in segments_of(open_path)
    wait_until(lambda: own.call("connect"), "a connection")
    assert own.call("lookup", "k")
    own.call("leave")


def test_a_name_that_another_user_has_taken_is_named(
    tmp_path: Path, process: Callable[..., Child], files: list[str]
) -> None:
    path = str(tmp_path / "s")
    control = control_name(instance_name(path))
    arena, draft = control.replace("-control", "-g0-1"), f"{control}-draft"
    other, own = process(USER), process(OTHER_USER)
    files += [control, arena, draft]
    for name in (arena, draft):
        other.call("leave_file", name, b"x" * 4096, 0o666)
    own.call("begin", path)  # they are nothing to it
    for mode in (0o666, 0o600):
        other.call("leave_file", control, bytes(4096), mode)
        with pytest.raises(AssertionError, match=f"got one of user {USER}, expected one of user {OTHER_USER}; remove"):
            own.call("begin", path)
        Path(segment_path(control)).unlink()
    other.call("leave_file", control, bytes(4096), 0o666)
    Instance(path).close()  # root's own removes it
    assert control not in segments_of(path)
