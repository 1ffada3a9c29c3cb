"""What a fork does to views: with the hooks around it, without them, and with threads."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from arenas import Instance, Lookup, LookupWorker, OpenArena, churn, hold
from children import Child
from workers import wait_until

from mpgroupcache.shm import _reader
from mpgroupcache.shm._reader import Reader

MakeArena = Callable[..., OpenArena]
StartChild = Callable[..., Child]

REGIONS = 16  # of a new instance
ONE, OTHER = 1, 2  # who forks


class Hooks:
    """The hooks of the package."""

    readers: ClassVar[weakref.WeakSet[Reader]] = weakref.WeakSet()

    @classmethod
    def register(cls, reader: Reader) -> None:
        who = threading.get_ident
        if not cls.readers:
            os.register_at_fork(
                before=lambda: [reader.before_fork(who()) for reader in cls.readers],
                after_in_parent=lambda: [reader.after_fork_in_parent(who()) for reader in cls.readers],
                after_in_child=cls.in_child,
            )
        cls.readers.add(reader)

    @classmethod
    def in_child(cls) -> None:
        _reader.renew_epoch()
        for reader in cls.readers:
            reader.after_fork_in_child(threading.get_ident())


class Forker(LookupWorker):
    """A worker that forks children, each of which goes on by a script of methods, one step at a time."""

    def __init__(self, control_path: str, group: int, arena_path: str | None) -> None:
        super().__init__(control_path, group, arena_path)
        self.address = control_path, group, arena_path
        self.children: list[tuple[int, int, int]] = []
        self.dropped_early: list[bytes] = []
        os.register_at_fork(after_in_child=lambda: self.release(*self.dropped_early))  # a hook that runs before ours
        Hooks.register(self.group.reader)

    def fork(self, hooks: bool = True) -> int:
        """Fork; the child waits for commands, and the parent returns its number."""
        commands, commands_in = os.pipe()
        results, results_in = os.pipe()
        pid = os.fork() if hooks else ctypes.PyDLL(None).fork()
        if pid == 0:
            for fd in (commands_in, results, *(fd for _, *fds in self.children for fd in fds)):
                os.close(fd)
            self.children.clear()
            self._obey(commands, results_in)
        os.close(commands)
        os.close(results_in)
        self.children.append((pid, commands_in, results))
        return len(self.children) - 1

    def _obey(self, commands: int, results: int) -> None:
        status = 1
        try:
            while command := os.read(commands, 4096):
                try:
                    result = repr(eval(command))
                except Exception as error:
                    result = f"{type(error).__name__}: {error}"
                os.write(results, result.encode())
            status = 0
        finally:
            os._exit(status)

    def ask(self, number: int, expression: str) -> str:
        """Evaluate an expression in a child; its ``repr``, or its exception."""
        _, commands, results = self.children[number]
        os.write(commands, expression.encode())
        return os.read(results, 65536).decode()

    def end(self, number: int) -> int:
        pid, commands, results = self.children[number]
        os.close(commands)
        os.close(results)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def attach_again(self) -> bool:
        """What a child does to look up by itself."""
        self.group.reader = Reader(self.address[0])
        Hooks.register(self.group.reader)
        self.group.attach(self.group.reader, *self.address[1:])
        return self.group.readable

    def export(self, *keys: bytes) -> None:
        """Hold memoryviews of held views, which are nothing that a child could ask."""
        self.exported = {key: memoryview(self.held[key]) for key in keys}

    def arenas(self) -> int:
        """How often arenas are mapped."""
        return Path("/proc/self/maps").read_text().count(Path(str(self.address[2])).name)

    def take_regions(self, count: int) -> int:
        self.taken = [Reader(self.address[0]) for _ in range(count)]
        return self.taken[-1].number

    def drop_early(self, *keys: bytes) -> None:
        """Let a child's first hook drop these views."""
        self.dropped_early += keys


@pytest.fixture
def forker(arena: MakeArena, child: StartChild) -> Iterator[tuple[OpenArena, Child]]:
    opened = arena(100_000)
    for key in (b"a", b"b", b"c"):
        opened.arena.put(key, key * 1000)
    return opened, child(Forker, *opened.address)  # type: ignore[return-value]


def test_a_forked_childs_views_are_its_own(forker: tuple[OpenArena, Child], instance: Instance) -> None:
    opened, worker = forker
    worker.call("hold", b"a", b"b", b"c")
    first = worker.call("fork")
    worker.call("release", b"a", b"b", b"c")  # only the child holds them now
    assert worker.call("live_pins") == 0
    for key in (b"a", b"b", b"c"):
        opened.arena.remove(key)
    churn(opened)
    assert opened.arena.limbo_bytes > 3000
    assert instance.control.reap() == 0
    for key in ("a", "b", "c"):
        assert worker.call("ask", first, f"self.held[b'{key}'] == b'{key}' * 1000") == "True"
    assert worker.call("ask", first, "self.region()") == "(1, 1)"
    assert worker.call("ask", first, "self.group.lookup(b'a'), self.group.attached") == "(None, False)"
    # What the child releases is free, and what a grandchild inherits is not.
    assert worker.call("ask", first, "self.release(b'a', b'b'), self.live_pins()") == "(None, 1)"
    assert worker.call("ask", first, "self.fork()") == "0"
    assert worker.call("ask", first, "self.release(b'c')") == "None"
    churn(opened)
    assert 1000 < opened.arena.limbo_bytes < 2000
    assert worker.call("ask", first, "self.ask(0, \"self.held[b'c'] == b'c' * 1000\")") == "'True'"
    assert worker.call("ask", first, "self.ask(0, 'self.region()')") == "'(2, 1)'"
    assert worker.call("ask", first, "self.end(0)") == "0"
    assert worker.call("end", first) == 0
    assert instance.control.reap() == 2
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0


def test_a_forked_childs_region_outlives_the_parent(forker: tuple[OpenArena, Child], instance: Instance) -> None:
    opened, worker = forker
    worker.call("hold", b"a")
    number = worker.call("fork")
    orphan = int(worker.call("ask", number, "os.getpid()"))
    os.kill(orphan, signal.SIGSTOP)  # it would end with the commands that it waits for
    opened.arena.remove(b"a")
    worker.kill()
    assert instance.control.reap() == 1
    opened.arena.sweep()
    assert opened.arena.limbo_bytes > 1000
    os.kill(orphan, signal.SIGCONT)
    wait_until(lambda: not _alive(orphan))
    assert instance.control.reap() == 1
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_that_attaches_again_looks_up_by_itself(forker: tuple[OpenArena, Child], instance: Instance) -> None:
    _opened, worker = forker
    worker.call("hold", b"a")
    number = worker.call("fork")
    assert worker.call("ask", number, "self.attach_again(), self.region(), self.hit(b'b')[0] == b'b' * 1000") == (
        "(True, (2, 1), True)"
    )
    assert worker.call("ask", number, "self.values(b'a')[0] == b'a' * 1000") == "True"
    assert worker.call("ask", number, "self.release(b'a')") == "None"
    assert instance.control.reap() == 1  # with its last view went the region that it was inherited in
    assert worker.call("end", number) == 0
    assert instance.control.reap() == 1
    assert worker.call("values", b"a") == [b"a" * 1000]


def test_views_that_a_childs_other_hooks_drop_are_free(forker: tuple[OpenArena, Child], instance: Instance) -> None:
    opened, worker = forker
    worker.call("hold", b"a", b"b")
    worker.call("drop_early", b"a")
    number = worker.call("fork")
    worker.call("release", b"a", b"b")
    assert worker.call("ask", number, "self.live_pins(), self.values(b'b')[0] == b'b' * 1000") == "(1, True)"
    opened.arena.remove(b"a")
    assert opened.arena.limbo_bytes == 0
    opened.arena.remove(b"b")
    assert opened.arena.limbo_bytes > 1000
    assert worker.call("end", number) == 0


def test_without_live_views_a_fork_takes_no_region(forker: tuple[OpenArena, Child], instance: Instance) -> None:
    _, worker = forker
    worker.call("hit", b"a")
    number = worker.call("fork")
    assert worker.call("ask", number, "self.region(), self.group.reader.usable") == "((-1, 0), False)"
    assert Reader(instance.path).number == 1
    assert worker.call("end", number) == 0


def test_where_a_fork_finds_no_region_the_childs_views_say_so(
    forker: tuple[OpenArena, Child], instance: Instance
) -> None:
    opened, worker = forker
    worker.call("hold", b"a")
    assert worker.call("take_regions", REGIONS - 1) == REGIONS - 1
    number = worker.call("fork")
    assert worker.call("ask", number, "bytes(self.held[b'a'])") == (
        "ValueError: the ByteView came through a fork that could not keep it; get() it again in the child"
    )
    assert worker.call("ask", number, "self.release(b'a')") == "None"
    assert worker.call("end", number) == 0
    opened.arena.remove(b"a")
    churn(opened)
    assert worker.call("values", b"a") == [b"a" * 1000]  # what the child did is nothing to the parent's pins


@pytest.mark.parametrize("hooks", [True, False], ids=["no region", "no hooks"])
def test_where_pins_are_not_kept_a_memoryview_shows_no_other_bytes(
    forker: tuple[OpenArena, Child], instance: Instance, hooks: bool
) -> None:
    """It cannot be refused, as a view can: the child has no such memory, which ends it."""
    _opened, worker = forker
    worker.call("hold", b"a")
    worker.call("export", b"a")
    kept = worker.call("fork")
    assert worker.call("take_regions", REGIONS - 2) == REGIONS - 1
    number = worker.call("fork", hooks)
    worker.call("release", b"a")
    assert worker.call("ask", number, "self.arenas()") == "0"
    assert worker.call("ask", kept, "self.exported[b'a'] == b'a' * 1000, self.arenas()") == "(True, 1)"
    assert worker.call("arenas") == 1
    assert worker.call("ask", number, "bytes(self.exported[b'a'])") == ""
    assert worker.call("end", number) == -signal.SIGSEGV
    # Mapped anew, and what is inherited unmapped by nobody.
    assert worker.call("ask", kept, "self.attach_again(), self.arenas(), self.hit(b'b')[0] == b'b' * 1000") == (
        "(False, 2, False)"
    )
    assert worker.call("ask", kept, "self.exported.clear(), self.held.clear(), self.arenas()") == "(None, None, 1)"
    assert worker.call("end", kept) == 0


def test_a_fork_without_hooks_leaves_the_pins_alone(forker: tuple[OpenArena, Child], instance: Instance) -> None:
    opened, worker = forker
    worker.call("hold", b"a", b"b")
    number = worker.call("fork", False)
    assert worker.call("ask", number, "_reader.forked(), self.group.attached, self.group.reader.usable") == (
        "(True, False, False)"
    )
    assert "could not keep it" in worker.call("ask", number, "bytes(self.held[b'a'])")
    assert "could not keep it" in worker.call("ask", number, "memoryview(self.held[b'a'])")
    assert worker.call("ask", number, "self.group.lookup(b'c')") == "None"
    assert worker.call("ask", number, "self.release(b'a')") == "None"
    opened.arena.remove(b"a")
    opened.arena.remove(b"b")
    churn(opened)
    assert worker.call("values", b"a", b"b") == [b"a" * 1000, b"b" * 1000]
    assert opened.arena.limbo_bytes > 2000
    # In the child its parent's region is not even mapped.
    maps = worker.call("ask", number, "open('/proc/self/maps').read().count('rw-s')")
    assert maps == "0"
    assert worker.call("ask", number, "_reader.renew_epoch(), _reader.forked()") == "(None, False)"
    opened.arena.put(b"c", b"c" * 1000)
    assert worker.call("ask", number, "self.attach_again(), self.hit(b'c')[0] == b'c' * 1000") == "(True, True)"
    assert "could not keep it" in worker.call("ask", number, "bytes(self.held[b'b'])")
    assert worker.call("ask", number, "self.held.clear()") == "None"
    assert worker.call("end", number) == 0
    assert instance.control.reap() == 1
    assert worker.call("values", b"a", b"b") == [b"a" * 1000, b"b" * 1000]


def test_between_the_hooks_no_pin_is_cleared_and_gets_copy(arena: MakeArena, instance: Instance) -> None:
    opened = arena(100_000)
    for key in (b"a", b"b"):
        opened.arena.put(key, key * 1000)
    lookup = Lookup(*opened.address)
    view, other = hold(lookup, b"a"), hold(lookup, b"b")
    lookup.reader.before_fork(ONE)
    assert Reader(instance.path).number == 2
    del view
    copied = hold(lookup, b"b")
    assert lookup.reader.live_pins == 1
    opened.arena.remove(b"a")
    assert opened.arena.limbo_bytes > 1000
    opened.arena.remove(b"b")
    assert opened.arena.limbo_bytes > 2000
    lookup.reader.after_fork_in_parent(ONE)
    assert lookup.reader.live_pins == 1
    assert instance.control.reap() == 2  # as after a fork that failed
    opened.arena.sweep()
    assert 1000 < opened.arena.limbo_bytes < 2000
    assert copied == other == b"b" * 1000
    lookup.reader.after_fork_in_parent(ONE)
    del other
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0


def test_without_pins_gets_between_the_hooks_copy_too(arena: MakeArena, instance: Instance) -> None:
    opened = arena(1000)
    opened.arena.put(b"a", b"value")
    lookup = Lookup(*opened.address)
    lookup.reader.before_fork(ONE)
    assert Reader(instance.path).number == 1
    view = hold(lookup, b"a")
    assert lookup.reader.live_pins == 0
    lookup.reader.after_fork_in_parent(ONE)
    assert view == b"value"
    view = hold(lookup, b"a")
    assert lookup.reader.live_pins == 1


def test_two_forks_between_their_hooks(arena: MakeArena, instance: Instance) -> None:
    """Each child has a region of its own, which holds what the parent lets go of."""
    opened = arena(100_000)
    opened.arena.put(b"a", b"a" * 1000)
    lookup = Lookup(*opened.address)
    view = hold(lookup, b"a")
    reader = lookup.reader
    reader.before_fork(ONE)
    reader.before_fork(OTHER)
    del view
    opened.arena.remove(b"a")
    for who in (OTHER, ONE):
        assert opened.arena.limbo_bytes > 1000
        assert instance.control.reap() == 0
        reader.after_fork_in_parent(who)
        assert instance.control.reap() == 1
        opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0
    assert reader.live_pins == 0


def test_a_fork_that_began_before_its_reader_was_made_ends_no_other(arena: MakeArena, instance: Instance) -> None:
    """1. One begins to fork. 2. The process connects. 3. Another begins to fork. 4. The first one's fork is over."""
    opened = arena(100_000)
    for key in (b"a", b"b"):
        opened.arena.put(key, key * 1000)
    lookup = Lookup(*opened.address)
    view = hold(lookup, b"a")
    reader = lookup.reader
    reader.before_fork(OTHER)
    reader.after_fork_in_parent(ONE)
    copied = hold(lookup, b"b")
    assert reader.live_pins == 1  # that one's child has no pin for it
    del view
    opened.arena.remove(b"a")
    assert opened.arena.limbo_bytes > 1000
    reader.after_fork_in_parent(OTHER)
    assert instance.control.reap() == 1
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0
    assert copied == b"b" * 1000


def test_a_hook_that_did_not_run_is_made_up_for(arena: MakeArena, instance: Instance) -> None:
    """What a signal handler raises between a fork and its last hook is raised in that hook."""
    opened = arena(100_000)
    opened.arena.put(b"a", b"a" * 1000)
    lookup = Lookup(*opened.address)
    view = hold(lookup, b"a")
    for _ in range(3):
        lookup.reader.before_fork(ONE)
    assert instance.control.reap() == 2
    lookup.reader.after_fork_in_parent(ONE)
    assert instance.control.reap() == 1
    del view
    assert lookup.reader.live_pins == 0
    view = hold(lookup, b"a")
    assert lookup.reader.live_pins == len([view])


def test_a_reader_dropped_between_the_hooks_lets_go_of_both_regions(instance: Instance, arena: MakeArena) -> None:
    opened = arena(1000)
    opened.arena.put(b"a", b"value")
    lookup = Lookup(*opened.address)
    view = hold(lookup, b"a")
    lookup.reader.before_fork(ONE)
    del view, lookup
    assert instance.control.reap() == 2
