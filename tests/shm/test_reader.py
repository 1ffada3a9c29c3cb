"""A worker's half of shared memory: regions and their deaths, pins, and what it must not write to."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arenas import Instance, Lookup, LookupWorker, OpenArena, churn, hold, is_whole, whole_value
from children import Child, ChildError

from mpgroupcache.errors import ArenaError
from mpgroupcache.shm._group import GroupCore
from mpgroupcache.shm._reader import CONTROL_SIZE, MAX_GROUPS, PINS, Reader
from mpgroupcache.shm._view import ByteView

MakeArena = Callable[..., OpenArena]
StartChild = Callable[..., Child]

REGIONS = 16  # of a new instance


# ---- Attaching


def test_attaching_what_is_no_control_segment(arena: MakeArena, tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Reader(str(tmp_path / "nowhere"))
    other = tmp_path / "other"
    other.write_bytes(b"x" * 100)
    with pytest.raises(
        ArenaError, match=f"got 100 bytes, expected {CONTROL_SIZE}; the coordinator is of another version"
    ):
        Reader(str(other))
    os.truncate(other, CONTROL_SIZE)
    with pytest.raises(ArenaError, match="workers and coordinator must be of one version"):
        Reader(str(other))
    link = tmp_path / "link"
    link.symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        Reader(str(link))
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_attaching_an_instance_that_has_ended(instance: Instance) -> None:
    reader = Reader(instance.path)
    assert not reader.retired
    assert reader.reads(instance.path)
    instance.control.retire()
    assert reader.retired
    assert not reader.reads(instance.path)
    with pytest.raises(ArenaError, match="is retired: its coordinator has ended"):
        Reader(instance.path)


def test_a_failed_attach_leaves_the_group_as_it_was(arena: MakeArena) -> None:
    opened, other = arena(1000), arena(1000)
    opened.arena.put(b"key", b"value")
    lookup = Lookup(*opened.address)
    with pytest.raises(ArenaError, match=f"of group {other.group}, expected {opened.group}"):
        lookup.attach(lookup.reader, opened.group, other.path)
    with pytest.raises(ArenaError, match="another layout"):
        lookup.attach(lookup.reader, opened.group, opened.control_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lookup.attach(lookup.reader, opened.group, "/nowhere")
    with pytest.raises(ArenaError, match=f"group id {MAX_GROUPS}: expected less than {MAX_GROUPS}"):
        lookup.attach(lookup.reader, MAX_GROUPS, None)
    assert lookup.copy(b"key") == b"value"


def test_a_group_without_a_cache_only_misses(instance: Instance) -> None:
    group = instance.control.add_group("none", 0)
    lookup = Lookup(instance.path, group, None)
    assert lookup.attached
    assert not lookup.readable
    assert lookup.lookup(b"key") is None
    assert lookup.list_stats(0) == (0, 0, 0)
    lookup.count(2)
    assert lookup.counters()[2] == 1


def test_a_group_moves_from_one_instance_to_the_next(arena: MakeArena, tmp_path: Path) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"old")
    lookup = Lookup(*opened.address)
    view = hold(lookup, b"key")
    other = Instance(str(tmp_path / "other"))
    moved = OpenArena(other, 1000)
    moved.arena.put(b"key", b"new")
    lookup.attach(Reader(other.path), moved.group, moved.path)
    assert lookup.copy(b"key") == b"new"
    assert view == b"old"
    lookup.detach()
    assert not lookup.attached
    assert lookup.lookup(b"key") is None
    other.close()


def test_get_asks_the_loader_on_a_miss_alone(arena: MakeArena) -> None:
    class Loading(GroupCore):
        def _load(self, key: str | bytes, ctx: object, timeout: float | None) -> ByteView:
            return ByteView(f"loaded {key!r} {ctx} {timeout}")

    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    group = Loading()
    assert group.get("key", ctx=1, timeout=2.5) == "loaded 'key' 1 2.5"
    group.attach(Reader(opened.control_path), opened.group, opened.path)
    assert group.get("key") == b"value"
    for key in ("", "other", b"other", "ü" * 40_000, "\ud800", 17, None, bytearray(b"key")):
        assert group.get(key) == f"loaded {key!r} None None".encode("utf-8", "surrogatepass") or key == "\ud800"  # type: ignore[call-overload]


def test_text_and_bytes_of_a_key_are_one_entry(arena: MakeArena) -> None:
    opened = arena(1000)
    for key in ("key", "Schlüssel", "キー", "", "🗝"):
        opened.arena.put(key.encode(), key.encode())
    lookup = Lookup(*opened.address)
    for key in ("key", "Schlüssel", "キー", "", "🗝"):
        assert lookup.copy(key) == lookup.copy(key.encode()) == key.encode()
        assert lookup.copy(type("Text", (str,), {})(key)) == lookup.copy(type("Raw", (bytes,), {})(key.encode()))
        assert lookup.copy(type("Text", (str,), {})(key)) == key.encode()


# ---- Regions


def test_regions_are_claimed_in_order_and_used_again(instance: Instance) -> None:
    readers = [Reader(instance.path) for _ in range(4)]
    assert [reader.number for reader in readers] == [0, 1, 2, 3]
    assert [reader.generation for reader in readers] == [1] * 4
    assert instance.control.reap() == 0
    del readers[1:3]
    assert Reader(instance.path).number == 4  # not before they were reaped
    assert instance.control.reap() == 3
    assert (reader := Reader(instance.path)).number == 1
    assert reader.generation == 2


def test_where_no_region_is_free_lookups_miss(instance: Instance, arena: MakeArena) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    readers = [Reader(instance.path) for _ in range(REGIONS)]
    lookup = Lookup(*opened.address)
    assert (lookup.reader.number, lookup.reader.generation, lookup.reader.usable) == (-1, 0, False)
    assert lookup.attached
    assert not lookup.readable
    assert lookup.get(b"key") is None  # type: ignore[comparison-overlap]
    lookup.count(2, 5)
    assert lookup.counters()[2] == 5

    assert instance.control.spare_regions(3) >= 3
    readers.append(Reader(instance.path))
    assert readers[-1].number == REGIONS
    lookup.attach(readers[-1], opened.group, opened.path)
    assert lookup.copy(b"key") == b"value"
    assert lookup.counters()[2] == 5


class Crowded:
    """A process that has one descriptor left."""

    def claim(self, path: str) -> tuple[int, str, bool]:
        """What came of it, why, and whether it could be made up for."""
        null = os.open("/dev/null", os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (null + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.close(null)
        reader = Reader(path)
        number, refusal = reader.number, reader.refusal
        resource.setrlimit(resource.RLIMIT_NOFILE, (null + 9, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return number, refusal, reader.claim()


def test_a_claim_that_fails_says_why(instance: Instance, child: StartChild) -> None:
    expected = (-1, "no region ([Errno 24] Too many open files)", True)
    assert child(Crowded).call("claim", instance.path) == expected
    instance.control.reap()
    readers = [Reader(instance.path) for _ in range(REGIONS + 1)]
    assert [reader.number for reader in readers] == [*range(REGIONS), -1]
    assert readers[-1].refusal == "no free region"


def test_a_region_that_is_claimed_later_has_what_was_counted_before(
    instance: Instance, arena: MakeArena, child: StartChild
) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    readers = [Reader(instance.path) for _ in range(REGIONS)]
    lookup, other = Lookup(*opened.address), Lookup(*opened.address)
    other.attach(readers[0], opened.group, opened.path)
    lookup.count(2, 5)
    assert not lookup.reader.claim()
    lookup.deliver()
    assert (lookup.counters()[2], other.counters()[2]) == (5, 0)
    del readers[3:5]
    assert instance.control.reap() == 2
    assert lookup.reader.claim()
    assert lookup.reader.claim()
    assert (lookup.reader.number, lookup.reader.usable, lookup.readable) == (3, True, True)
    assert Reader(instance.path).number == 4
    lookup.deliver()
    lookup.deliver()
    lookup.count(2)
    assert (lookup.counters()[2], other.counters()[2]) == (6, 6)
    view = hold(lookup, b"key")
    opened.arena.remove(b"key")
    churn(opened)
    assert view == b"value"
    del lookup, view
    assert instance.control.reap() == 2
    assert other.counters()[2] == 6


def test_spare_regions_are_above_all_claimed_ones(instance: Instance) -> None:
    readers = [Reader(instance.path) for _ in range(REGIONS)]
    del readers[:-1]
    assert instance.control.reap() == REGIONS - 1
    assert instance.control.spare_regions(1) == REGIONS  # the next step
    assert instance.control.spare_regions(1) == REGIONS
    assert Reader(instance.path).number == 0


def test_a_killed_workers_region_is_reaped(arena: MakeArena, instance: Instance, child: StartChild) -> None:
    opened = arena(100_000)
    opened.arena.put(b"key", b"x" * 5000)
    worker, other = child(LookupWorker, *opened.address), child(LookupWorker, *opened.address)
    for process in (worker, other):
        assert process.call("hold", b"key") == [b"x" * 5000]
    assert {worker.call("region"), other.call("region")} == {(0, 1), (1, 1)}
    dead_number = worker.call("region")[0]
    opened.arena.put(b"key", b"y" * 5000)
    assert 5000 < opened.arena.limbo_bytes < 6000

    worker.signal(signal.SIGSTOP)
    assert instance.control.reap() == 0  # stopped is not dead
    worker.kill()
    assert instance.control.reap() == 1
    opened.arena.sweep()
    assert opened.arena.limbo_bytes > 5000
    assert other.call("values", b"key") == [b"x" * 5000]
    other.kill()
    assert instance.control.reap() == 1
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0
    assert child(LookupWorker, *opened.address).call("region") == (0, 2)
    assert dead_number in (0, 1)


class Daemon(LookupWorker):
    """A worker that closes its descriptors, as daemons do."""

    def close_descriptors(self) -> int:
        closed = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith("/dev/shm/"):
                    os.close(int(name))
                    closed += 1
        return closed

    def drop(self) -> None:
        """Let go of everything, while another file has the number of the reader's descriptor."""
        self.files = [open("/dev/null") for _ in range(10)]  # noqa: SIM115
        del self.group
        self.held.clear()
        for file in self.files:
            os.fstat(file.fileno())


def test_the_mapping_alone_keeps_the_region(arena: MakeArena, instance: Instance, child: StartChild) -> None:
    opened = arena(100_000)
    opened.arena.put(b"key", b"x" * 1000)
    worker = child(Daemon, *opened.address)
    worker.call("hold", b"key")
    assert worker.call("close_descriptors") == 1
    assert instance.control.reap() == 0
    opened.arena.remove(b"key")
    churn(opened)
    assert worker.call("values", b"key") == [b"x" * 1000]
    opened.arena.put(b"key", b"y")
    assert worker.call("hit", b"key") == [b"y"]
    worker.call("drop")
    assert instance.control.reap() == 1


# ---- What a worker can write to


class Vandal(LookupWorker):
    """A worker that looks at its mappings, and writes where it must not."""

    def mappings(self, path: str) -> list[tuple[int, int, str]]:
        """(address, size, permissions) of the mappings of a file."""
        found = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(path):
                first, last, permissions = re.match(r"(\w+)-(\w+) (\S+)", line).groups()  # type: ignore[union-attr]
                found.append((int(first, 16), int(last, 16) - int(first, 16), permissions))
        return found

    def write(self, address: int) -> None:
        ctypes.memset(address, 0xEE, 1)

    def write_through_a_view(self, key: bytes) -> None:
        view = self.group.lookup(key)
        assert view is not None
        address = ctypes.c_size_t()
        buffer = (ctypes.c_char * 256)()
        assert ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), buffer, 0) == 0
        address = ctypes.c_size_t.from_buffer(buffer)  # Py_buffer.buf
        ctypes.memset(address.value, 0xEE, 1)


def test_a_write_to_an_arena_faults(arena: MakeArena, child: StartChild) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    worker = child(Vandal, *opened.address)
    assert worker.call("hit", b"key") == [b"value"]
    (mapping,) = worker.call("mappings", opened.path)
    assert mapping[2] == "r--s"
    with pytest.raises(ChildError, match=f"ended with {-signal.SIGSEGV}"):
        worker.call("write", mapping[0])
    worker = child(Vandal, *opened.address)
    with pytest.raises(ChildError, match=f"ended with {-signal.SIGSEGV}"):
        worker.call("write_through_a_view", b"key")
    assert opened.get(b"key") == b"value"
    assert opened.arena.check() == []


def test_of_the_control_segment_a_worker_can_write_its_region_alone(arena: MakeArena, child: StartChild) -> None:
    opened = arena(1000)
    worker = child(Vandal, *opened.address)
    mappings = worker.call("mappings", opened.control_path)
    assert sum(size for _, size, permissions in mappings if permissions == "r--s") == CONTROL_SIZE
    assert [size for _, size, permissions in mappings if permissions != "r--s"] == [64 << 10]
    with pytest.raises(ChildError, match=f"ended with {-signal.SIGSEGV}"):
        worker.call("write", next(address for address, _, permissions in mappings if permissions == "r--s"))


# ---- Pins


def test_a_pinned_block_is_not_reused(arena: MakeArena) -> None:
    opened = arena(50_000)
    lookup = Lookup(*opened.address)
    views = []
    for number in range(10):
        opened.arena.put(b"key", bytes([number]) * 1000)
        views.append(hold(lookup, b"key"))
    opened.arena.remove(b"key")
    assert lookup.lookup(b"key") is None
    churn(opened)
    assert views == [bytes([number]) * 1000 for number in range(10)]
    limbo = opened.arena.limbo_bytes
    assert 10_000 < limbo < 11_000
    assert opened.arena.check() == []
    del views[::2]
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == limbo // 2
    views.clear()
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0


def test_where_pins_run_out_values_are_copied(arena: MakeArena) -> None:
    opened = arena(100_000)
    lookup = Lookup(*opened.address)
    opened.arena.put(b"key", b"value")
    opened.arena.put(b"large", b"x" * 20_000)
    views = [hold(lookup, b"key") for _ in range(PINS - 1)]
    assert lookup.reader.live_pins == PINS - 1
    copied = [hold(lookup, b"large") for _ in range(5)]
    assert lookup.reader.live_pins == PINS - 1
    opened.arena.remove(b"large")
    assert opened.arena.limbo_bytes == 0
    churn(opened)
    assert copied == [b"x" * 20_000] * 5
    assert bytes(copied[0]) is bytes(copied[0])  # its own bytes
    assert len(views) == PINS - 1
    assert all(view == b"value" for view in views)
    del views[500]
    opened.arena.put(b"large", b"y" * 1000)
    again = hold(lookup, b"large")
    assert bytes(again) is not bytes(again)
    assert lookup.reader.live_pins == PINS - 1
    del views, again
    assert lookup.reader.live_pins == 0


def test_threads_of_one_process(arena: MakeArena, child: StartChild) -> None:
    opened = arena(200_000)
    keys = [b"%d" % number for number in range(300)]
    worker = child(Threads, *opened.address)
    worker.send("verify_in_threads", keys, 4, 2.0)
    rng, version = random.Random(1), 0
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        for key in rng.sample(keys, 50):
            version += 1
            opened.arena.put(key, whole_value(key, version, rng.randrange(2000)))
    hits, pins = worker.receive()
    assert hits > 100
    assert pins == 0


class Threads(LookupWorker):
    def verify_in_threads(self, keys: list[bytes], threads: int, seconds: float) -> tuple[int, int]:
        """Get, hold, verify and release in several threads at once, with switches between them all the time."""
        hits = [0] * threads
        failures: list[BaseException] = []

        def work(number: int) -> None:
            rng = random.Random(number)
            held: list[tuple[bytes, Any]] = []
            deadline = time.monotonic() + seconds
            try:
                while time.monotonic() < deadline:
                    key = rng.choice(keys)
                    if (view := self.group.lookup(key)) is not None:
                        hits[number] += 1
                        held.append((key, rng.choice((view, memoryview(view), view[:]))))
                    del view
                    if len(held) > rng.randrange(100):
                        key, shown = held.pop(rng.randrange(len(held)))
                        assert is_whole(key, shown)
            except BaseException as error:
                failures.append(error)

        sys.setswitchinterval(1e-5)
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
        if failures:
            raise failures[0]
        return sum(hits), self.live_pins()


# ---- Exit

EXITING = """
import sys, threading
sys.path[:0] = {path!r}
from arenas import Lookup
lookup = Lookup(*{address!r})
view = lookup.lookup(b"key")
shown = memoryview(lookup.lookup(b"key"))[1:]
part = lookup.lookup(b"key")[2:]
file = lookup.lookup(b"key").reader()
cycle = [lookup.lookup(b"key")]
cycle.append(cycle)
class Late:
    def __del__(self, view=lookup.lookup(b"key")):
        assert view == b"value"
late = Late()
def read():
    while True:
        lookup.lookup(b"key")
threading.Thread(target=read, daemon=True).start()
print(lookup.reader.live_pins >= 6)
"""


def test_an_interpreter_exits_in_peace_with_views_alive(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1000)
    opened.arena.put(b"key", b"value")
    path = [os.path.dirname(__file__), *sys.path]
    script = EXITING.format(path=path, address=opened.address)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert instance.control.reap() == 1
    opened.arena.sweep()
