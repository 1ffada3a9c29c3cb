"""Segments: their names, who may make an instance's, and what is left of a dead one."""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from arenas import Instance, Lookup, LookupWorker, OpenArena
from children import Child
from workers import segments_of

from mpgroupcache.errors import AlreadyRunning, ArenaError
from mpgroupcache.shm import ownership, remains, segment
from mpgroupcache.shm._reader import LAYOUT_VERSION, Reader, lock_writer
from mpgroupcache.shm.ownership import Segment, open_instance
from mpgroupcache.shm.segment import instance_name, segment_path

StartChild = Callable[..., Child]


class Coordinator:
    """An instance with an arena, in a process that may be killed."""

    def __init__(self, socket_path: str) -> None:
        self.instance = Instance(socket_path)
        self.arena = OpenArena(self.instance, 1 << 20)

    def put(self, key: bytes, value: bytes) -> tuple[str, int, str]:
        assert self.arena.arena.put(key, value)
        return self.arena.address

    def leave(self) -> None:
        """Let go of everything, and unlink nothing."""
        self.arena.arena.close()
        self.arena.segment.close()
        self.instance.control.close()
        self.instance.segment.close()


class Starter:
    """One of several that want to become the coordinator."""

    def __init__(self, socket_path: str) -> None:
        self.name = instance_name(socket_path)

    def start(self, at: float) -> bool:
        time.sleep(max(at - time.monotonic(), 0))  # all of them at once
        try:
            self.opened = open_instance(self.name)
        except AlreadyRunning:
            return False
        return True


class Draft:
    """Half of a start: a control segment that has no name of an instance yet."""

    def __init__(self, name: str) -> None:
        self.segment = Segment(name, 4096)

    def lock(self) -> None:
        lock_writer(self.segment.fd)


def test_instance_name_follows_from_the_sockets_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    name = instance_name(str(tmp_path / "real" / "s"))
    assert name.startswith("mpgroupcache-")
    assert "/" not in name
    assert instance_name(str(tmp_path / "link" / "s")) == name
    assert instance_name(str(tmp_path / "real" / "t")) != name
    monkeypatch.chdir(tmp_path / "real")
    assert instance_name("s") == instance_name("./s") == name


@pytest.mark.parametrize("name", ["psm_1234", "mpgroupcache-/../x", "../mpgroupcache-x", ""])
def test_names_of_others_are_refused(name: str) -> None:
    with pytest.raises(ArenaError, match="expected one that begins with mpgroupcache-"):
        segment.segment_path(name)


def test_a_segment_is_sparse_and_its_descriptor_is_the_memory(instance_path: str) -> None:
    made = Segment(f"{instance_name(instance_path)}-x", 1 << 30)
    assert os.fstat(made.fd).st_size == len(made.buffer) == 1 << 30
    assert os.fstat(made.fd).st_blocks == 0
    os.pwrite(made.fd, b"seen", 4096)
    assert bytes(made.buffer[4096:4100]) == b"seen"
    with pytest.raises(FileExistsError):
        Segment(made.name, 4096)
    made.unlink()
    made.close()


def test_rename_never_takes_a_name_that_is_there(instance_path: str) -> None:
    name = instance_name(instance_path)
    one, two = Segment(f"{name}-1", 4096), Segment(f"{name}-2", 4096)
    with pytest.raises(FileExistsError):
        one.rename(two.name)
    assert one.name == f"{name}-1"
    one.rename(f"{name}-3")
    assert segments_of(instance_path) == [f"{name}-2", f"{name}-3"]
    for made in (one, two):
        made.unlink()
        made.close()


def test_where_no_segment_can_be_made_the_error_says_where_to_look(instance_path: str) -> None:
    with pytest.raises(ArenaError, match=r"/dev/shm a writable tmpfs\?"):
        Segment(f"{instance_name(instance_path)}-{'x' * 300}", 4096)


def test_a_second_coordinator_is_refused_and_leaves_nothing(instance: Instance, instance_path: str) -> None:
    before = segments_of(instance_path)
    with pytest.raises(AlreadyRunning, match="another living coordinator"):
        open_instance(instance.name)
    assert segments_of(instance_path) == before
    assert Reader(instance.path).number == 0


def test_segments_outlive_a_creator_that_ends_without_unlinking(instance_path: str, child: StartChild) -> None:
    creator = child(Coordinator, instance_path)
    creator.call("put", b"k", b"v")
    creator.call("leave")
    creator.close()  # where a resource tracker knows of them, it would remove them now
    assert len(segments_of(instance_path)) == 2
    instance = Instance(instance_path)
    ownership.clear_arenas(instance.name, but=())
    instance.close()


def test_a_killed_coordinators_instance_is_the_next_ones(instance_path: str, child: StartChild) -> None:
    coordinator = child(Coordinator, instance_path)
    address = coordinator.call("put", b"key", b"value")
    lookup = Lookup(*address)
    view = lookup.lookup(b"key")
    coordinator.kill()
    assert lookup.copy(b"key") == b"value"  # hits go on without a coordinator
    assert not lookup.reader.retired

    instance = Instance(instance_path)
    assert len(segments_of(instance_path)) == 2
    assert not lookup.reader.retired
    assert lookup.copy(b"key") == view == b"value"

    ownership.clear_arenas(instance.name, but=())  # this one takes over no arena
    assert segments_of(instance_path) == [instance.segment.name]
    assert lookup.copy(b"key") is None
    assert not lookup.attached
    assert view == b"value"
    with pytest.raises(FileNotFoundError):
        Lookup(*address)
    instance.close()
    assert lookup.reader.retired


def test_of_many_starters_one_wins(instance_path: str, child: StartChild) -> None:
    starters = [child(Starter, instance_path) for _ in range(4)]
    for _ in range(4):
        at = time.monotonic() + 0.05
        for starter in starters:
            starter.send("start", at)
        won = [starter.receive() for starter in starters]
        assert won.count(True) == 1
        winner = starters.pop(won.index(True))
        assert segments_of(instance_path) == [f"{instance_name(instance_path)}-control"]
        winner.kill()  # the next round starts from what it left
    Instance(instance_path).close()


def test_a_named_control_segment_can_always_be_read(instance_path: str, child: StartChild) -> None:
    watcher = child(Watcher, instance_path)
    watcher.send("watch")
    for _ in range(20):
        Instance(instance_path).close()
    instance = Instance(instance_path)
    assert watcher.receive() > 0
    watcher.close()
    instance.close()


class Watcher:
    """A worker that tries to attach all the time."""

    def __init__(self, socket_path: str) -> None:
        self.path = segment.segment_path(segment.control_name(instance_name(socket_path)))

    def watch(self) -> int:
        """Until it attached to an instance that stays. Returns how often there was none, or one that had ended."""
        missing = 0
        while True:
            try:
                reader = Reader(self.path)
            except FileNotFoundError:
                missing += 1
            except ArenaError as error:
                if "is retired" not in str(error):
                    raise
                missing += 1
            else:
                deadline = time.monotonic() + 0.3
                while not reader.retired:
                    if time.monotonic() > deadline:
                        return missing + 1
                    time.sleep(0.001)  # the pace of looking


def test_unfinished_control_segments_are_cleared_unless_somebody_is_at_them(
    instance_path: str, child: StartChild
) -> None:
    name = segment.control_name(instance_name(instance_path))
    dead, busy = child(Draft, f"{name}-dead"), child(Draft, f"{name}-busy")
    dead.call("lock")
    dead.kill()
    busy.call("lock")
    instance = Instance(instance_path)
    assert segments_of(instance_path) == [name, f"{name}-busy"]
    busy.kill()
    instance.close()
    Instance(instance_path).close()


def test_what_is_no_segment_of_ours_is_not_written_to(instance_path: str) -> None:
    path = Path(segment.segment_path(segment.control_name(instance_name(instance_path))))
    path.write_bytes(b"somebody else's words" * 10)
    kept = os.open(path, os.O_RDONLY)
    Instance(instance_path).close()
    assert os.pread(kept, 210, 0) == b"somebody else's words" * 10
    os.close(kept)


# Where these are in the header of a segment of either kind, or of a control segment, in every layout.
VERSION, BOOT_ID, ALIVE = 8, 16, 48
LAYOUTS = [0, LAYOUT_VERSION - 1, LAYOUT_VERSION + 1, 0xFFFFFFFF]


def write(name: str, offset: int, form: str, value: int) -> None:
    with Path(segment_path(name)).open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_workers_of_another_layout_let_go_of_what_cannot_be_taken_over(
    instance_path: str, child: StartChild, layout: int
) -> None:
    owner = child(Coordinator, instance_path)
    address = owner.call("put", b"key", b"value")
    worker, reader = child(LookupWorker, *address), Reader(address[0])
    assert worker.call("hit", b"key") == [b"value"]
    owner.kill()
    for name in segments_of(instance_path):
        write(name, VERSION, "<I", layout)
    segment, control = open_instance(instance_name(instance_path))
    assert worker.call("hit", b"key") == [None]
    assert reader.retired
    assert segments_of(instance_path) == [segment.name]
    control.close()
    segment.unlink()
    segment.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_workers_of_another_layout_let_go_of_an_arena(
    instance: Instance, arena: Callable[..., OpenArena], layout: int
) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    lookup = Lookup(*opened.address)
    assert lookup.copy(b"key") == b"value"
    write(opened.segment.name, VERSION, "<I", layout)
    ownership.clear_arenas(instance.name, ())
    assert lookup.copy(b"key") is None
    assert not Path(opened.path).exists()


def test_a_control_segment_tells_when_its_coordinator_ticked(instance: Instance) -> None:
    name = instance.segment.name
    second = 10**9
    assert 0 <= (remains.silent_for(name) or -1) < 30
    write(name, ALIVE, "<Q", time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 700 * second)
    for layout in (*LAYOUTS, LAYOUT_VERSION):
        write(name, VERSION, "<I", layout)
        assert 700 <= (silence := remains.silent_for(name) or -1) < 730
    instance.control.stamp()
    assert (remains.silent_for(name) or -1) < silence - 600
    instance.control.close()
    instance.segment.close()
    write(name, ALIVE, "<Q", 0)
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert uptime <= (remains.silent_for(name) or -1) < math.inf
    instance.segment, instance.control = open_instance(instance.name)
    assert 0 <= (remains.silent_for(name) or -1) < 30
    write(name, ALIVE, "<Q", 1 << 63)  # no time of this boot
    assert remains.silent_for(name) == math.inf
    instance.control.stamp()
    write(name, BOOT_ID, "<Q", 7)
    assert remains.silent_for(name) == math.inf


def test_what_is_no_control_segment_tells_nothing(instance: Instance, arena: Callable[..., OpenArena]) -> None:
    assert remains.silent_for(arena(1000).segment.name) is None
    name = f"{instance.name}-control-other"
    path = Path(segment_path(name))
    for content in (b"", Path(instance.path).read_bytes()[:ALIVE], b"x" * 4096):
        path.write_bytes(content)
        assert remains.silent_for(name) is None
    path.unlink()
    with pytest.raises(FileNotFoundError):
        remains.silent_for(name)
    os.mkfifo(path)
    assert remains.silent_for(name) is None
    path.unlink()
