"""Real worker processes that do what a test tells them, and real coordinators, for tests."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import mmap
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

import msgspec

import mpgroupcache
from mpgroupcache import registry
from mpgroupcache.ages import AGELESS
from mpgroupcache.ipc import fields, frame, memfd, messages
from mpgroupcache.shm._exchange import Descriptor, Request
from mpgroupcache.shm._hold import Hold
from mpgroupcache.shm.segment import DIRECTORY, control_name, instance_name, segment_path
from mpgroupcache.worker import link, process
from mpgroupcache.worker.channel import Channel
from mpgroupcache.worker.link import connect

GROUP = "group"
BUDGET = 8 << 20
CLOCK_OFFSET_AT = 64  # in the control header
PATIENCE = 30.0  # s; a condition that takes longer never comes
ONE_WAY = (
    messages.Store,
    messages.StoreMany,
    messages.Refresh,
    messages.Fail,
    messages.Return,
    messages.Waiting,
    messages.Served,
)


def wait_until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Return the first true result of ``condition``."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about in {PATIENCE} s"
        time.sleep(0.002)  # the pace of looking, not a wait for something to happen
    return result


def value_of(key: str) -> bytes:
    """What loaders return for ``key``: ``big:N:...`` is N bytes long."""
    size = int(key.split(":")[1]) if key.startswith("big:") else 40
    seed = hashlib.blake2b(key.encode(), digest_size=32).digest()
    return (seed * (size // 32 + 1))[:size]


def descriptors_of(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Daemon:
    """A coordinator process."""

    program: Sequence[str] = ("-m", "mpgroupcache.coordinator")
    """What Python runs."""

    def __init__(self, socket: str, *options: str, prefix: Sequence[str] = (), **popen: Any) -> None:
        """``prefix``: a command that becomes the coordinator, such as ``ip netns exec NAME``."""
        self.socket = socket
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *self.program, "--socket", socket, *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def wait_serving(self) -> Daemon:
        """Return once it says that it serves; what it had to say before that is in the log."""

        def serves() -> bool:
            return self.process.poll() is not None or any("serving on" in line for line in self.log)

        wait_until(serves, "a coordinator that serves")
        assert self.process.poll() is None, "".join(self.log)
        return self

    def wait_says(self, text: str, times: int = 1) -> None:
        """Return once its log has ``text`` so many times."""
        wait_until(lambda: "".join(self.log).count(text) >= times, f"{text!r} in the coordinator's log")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return its exit code, with its log complete."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def close(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.wait()


def leave() -> None:
    """Undo that this process was a worker: while one is there, a coordinator keeps its segments."""
    mpgroupcache.configure(socket=None, keep_alone=None, load_context=None, not_found=())
    process.current().close()
    process._process.clear()
    # It may be attaching a group to the link that is closed now.
    wait_until(
        lambda: all(thread.name != process.ATTACHING for thread in threading.enumerate()), "the end of reattaching"
    )
    while registry._groups:
        _, group = registry._groups.popitem()
        group.detach()
        group._link = None

    def left() -> bool:
        gc.collect()
        return not process._readers

    wait_until(left, "the end of this process's regions")


def count_asks(patch: Callable[[object, str, object], None] = setattr) -> Callable[[], int]:
    """Count the ASKs that this process sends from now on: returns what tells how many there were.

    ``patch``: the ``setattr`` of a test's ``monkeypatch``, where it is the test's own process.
    """
    ask = Channel.ask
    asked = 0

    def counted(
        channel: Channel, hold: Hold, message: messages.Message, descriptor: Descriptor | None = None
    ) -> Request:
        nonlocal asked
        request = ask(channel, hold, message, descriptor)
        asked += isinstance(message, messages.Ask)
        return request

    patch(Channel, "ask", counted)
    return lambda: asked


def waiting_here() -> int:
    """Callers of this process that wait for a load of its own."""
    return sum(len(flight.waiting) for flight in process.current().flights)


def flush() -> None:
    """Return when the coordinator has acted on what this worker sent.

    It answers a PING that comes behind it; and what came in one read with that PING, it has stored when it reads again.
    """
    link = process.current().working_link
    assert link is not None
    for _ in range(2):
        link.channel.request(messages.Ping())


def segments_of(socket: str) -> list[str]:
    """The names that an instance has in shared memory."""
    return sorted(name for name in os.listdir(DIRECTORY) if name.startswith(instance_name(socket)))


class Worker:
    """A worker process with one group, whose loader tells of its loads and obeys keys.

    A key says what its loader does: ``hold:NAME:...`` goes on after ``release(NAME)``; ``raise:NAME`` raises
    ``ValueError`` then, and ``exit:NAME`` is left by ``SystemExit``; ``self:`` gets its own key; ``cross:A:B`` gets
    ``cross:B:A`` after ``release("cross")``. In the end the value is ``value_of(key)``.
    """

    def __init__(self, socket: str, cache_bytes: int = BUDGET, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._sending = threading.Lock()
        self.process = context.Process(target=_work, args=(theirs, socket, cache_bytes, options), daemon=True)
        self.process.start()
        theirs.close()
        self._numbers = itertools.count()
        self._futures: dict[int, Future[Any]] = {}
        self.loads: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, ok, result = self._pipe.recv()
                if number < 0:
                    self.loads.append(result)
                elif ok:
                    self._futures.pop(number).set_result(result)
                else:
                    self._futures.pop(number).set_exception(result)
        for future in self._futures.values():
            future.set_exception(EOFError("the worker is gone"))

    def begin(self, name: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a command run in a thread of its own there."""
        future: Future[Any] = Future()
        number = next(self._numbers)
        self._futures[number] = future
        with self._sending:
            self._pipe.send((number, name, args, kwargs))
        return future

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a command there and return its result."""
        return self.begin(name, *args, **kwargs).result(PATIENCE)

    def get(self, key: str, **kwargs: Any) -> bytes:
        """``group.get(key)``, copied."""
        result: bytes = self.do("get", key, **kwargs)
        return result

    def wait_load(self, key: str) -> None:
        """Return once its loader has been called for ``key``."""
        wait_until(lambda: key in self.loads, f"a load of {key} in {self.pid}")

    def begin_waiting(self, key: str, **kwargs: Any) -> Future[bytes]:
        """Begin a get of what is being loaded; returns when the coordinator, or who asks it there, knows of it."""
        before = self.do("waiting")
        future = self.begin("get", key, **kwargs)
        wait_until(lambda: self.do("waiting") > before, f"an ASK for {key} from {self.pid}")
        self.do("flush")
        return future

    def begin_loading(self, key: str, **kwargs: Any) -> Future[bytes]:
        """Begin a get whose loader runs there; returns when it does."""
        future = self.begin("get", key, **kwargs)
        self.wait_load(key)
        return future

    def release(self, name: str) -> None:
        """Let loaders that hold NAME go on, now and later."""
        self.do("release", name)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.join(PATIENCE)

    def close(self) -> None:
        """End it, however it is."""
        if self.process.is_alive():
            with contextlib.suppress(OSError):
                self.send(signal.SIGCONT)
                self.begin("quit")
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
        self._reader.join(PATIENCE)
        self._pipe.close()


def hello(
    role: fields.Role,
    lowest: int = messages.LOWEST_VERSION,
    highest: int = messages.HIGHEST_VERSION,
    abilities: tuple[str, ...] = (),
) -> messages.Hello:
    """A HELLO of this process, as a worker of its own."""
    clock = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return messages.Hello(role, os.getpid(), os.urandom(16), lowest, highest, abilities, clock)


def advance(socket: str, seconds: float) -> None:
    """Move the clock by which an instance's values age, for all of its processes."""
    with open(segment_path(control_name(instance_name(socket))), "r+b") as file, mmap.mmap(file.fileno(), 4096) as page:
        (offset,) = struct.unpack_from("=Q", page, CLOCK_OFFSET_AT)
        struct.pack_into("=Q", page, CLOCK_OFFSET_AT, offset + int(seconds * 1e9))


def unversioned(message: messages.Message) -> messages.Value:
    """A VALUE as a test can say it: without its version, which is random. It has one."""
    assert isinstance(message, messages.Value)
    assert message.version is not None
    return msgspec.structs.replace(message, version=None)


class HandWorker:
    """A worker's call connection on which a test says every word itself."""

    def __init__(self, socket: str) -> None:
        self.open(socket)
        assert isinstance(self.ask(hello("call")), messages.Welcome)

    def open(self, socket: str) -> None:
        """Connect, and say nothing."""
        self.sock = connect(socket)
        self.sock.settimeout(PATIENCE)
        self._decoder = frame.Decoder()
        self._numbers = itertools.count(1)

    def send(self, message: messages.Message, fd: int = -1) -> int:
        """Send a message, perhaps with a descriptor, and return its request id."""
        number = self._number(message)
        self.sock.sendmsg([frame.encode(message, number)], memfd.passed(fd) if fd >= 0 else [])
        return number

    def _number(self, message: messages.Message) -> int:
        return 0 if isinstance(message, ONE_WAY) else next(self._numbers)

    def send_together(self, *messages: messages.Message, then: bytes = b"") -> None:
        """Send messages for the coordinator to find in one read, and perhaps something that is none."""
        self.sock.sendall(b"".join([frame.encode(message, self._number(message)) for message in messages]) + then)

    def receive(self) -> messages.Message:
        """The next message; ``EOFError`` at the end. A descriptor that comes with it is lost."""
        while (frame := next(iter(self._decoder), None)) is None:
            if not (data := self.sock.recv(1 << 16)):
                raise EOFError
            self._decoder.feed(data)
        return frame[1]

    def ask(self, message: messages.Message) -> messages.Message:
        """Send a request and return its answer."""
        self.send(message)
        return self.receive()

    def declare(self, cache_bytes: int = BUDGET, picks: bool = False) -> int:
        """Declare the group and return its id."""
        answer = self.ask(messages.Declare(GROUP, cache_bytes, None, picks, "", "", True, AGELESS))
        assert isinstance(answer, messages.Declared)
        return answer.group

    def lease(self, group: int, key: bytes) -> int:
        """Ask for a key that is nowhere and return the lease."""
        answer = self.ask(messages.Ask(group, key, (), True, False, "get"))
        assert isinstance(answer, messages.Lease)
        return answer.lease

    def close(self) -> None:
        self.sock.close()


class _Working:
    """The other end of ``Worker``."""

    def __init__(self, pipe: Connection, cache_bytes: int, options: dict[str, Any]) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._held: dict[str, threading.Event] = {}
        self._views: dict[str, mpgroupcache.ByteView] = {}
        self._leaked: list[mpgroupcache.ByteView] = []
        self.quitting = threading.Event()
        self._asked = count_asks()
        self.group = mpgroupcache.new_group(GROUP, cache_bytes, self.load, **options)

    def load(self, ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
        self.tell(-1, True, key)
        kind, _, rest = key.partition(":")
        name = "cross" if kind == "cross" else rest.partition(":")[0]
        if kind in ("hold", "raise", "exit", "cross"):
            assert self._hold(name).wait(PATIENCE)
        match kind:
            case "raise":
                raise ValueError(name)
            case "exit":
                raise SystemExit(name)
            case "self":
                self.group.get(key)
            case "cross":
                self.group.get(":".join(["cross", *reversed(rest.split(":"))]))
        dest.set_bytes(value_of(key))

    def _hold(self, name: str) -> threading.Event:
        return self._held.setdefault(name, threading.Event())

    def tell(self, *message: Any) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._pipe.send(message)

    def run(self, number: int, name: str, args: Any, kwargs: Any) -> None:
        try:
            self.tell(number, True, getattr(self, name)(*args, **kwargs))
        except BaseException as error:
            self.tell(number, False, error)

    # ---- Commands

    def get(self, key: str, **kwargs: Any) -> bytes:
        view = self.group.get(key, **kwargs)
        return bytes(view)

    def get_many(self, keys: list[str]) -> list[bytes]:
        return [bytes(self.group.get(key)) for key in keys]

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """``group.METHOD(...)``; a view as bytes."""
        result = getattr(self.group, method)(*args, **kwargs)
        return bytes(result) if isinstance(result, mpgroupcache.ByteView) else result

    def plain(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The same of a group without a loader."""
        group = mpgroupcache.get_group("plain") or mpgroupcache.new_group("plain", BUDGET)
        result = getattr(group, method)(*args, **kwargs)
        return bytes(result) if isinstance(result, mpgroupcache.ByteView) else result

    def length(self, key: str) -> int | None:
        view = self.group.lookup(key)
        return None if view is None else len(view)

    def version(self, key: str) -> int | None:
        return self.group.get(key).version

    def go_alone(self) -> None:
        """Have no link any more, and find none."""
        current = process.current()
        current._retry_at = float("inf")
        assert current._link is not None
        current._link.close("the test cut it")

    def lookup(self, key: str) -> bytes | None:
        view = self.group.lookup(key)
        return None if view is None else bytes(view)

    def hold_view(self, key: str) -> int:
        self._views[key] = self.group.get(key)
        return len(self._views[key])

    def read_view(self, key: str) -> bytes:
        return bytes(self._views[key])

    def drop_view(self, key: str) -> None:
        del self._views[key]

    def leak(self, keys: list[str]) -> int:
        """Get them and keep their views for good; how many were right."""
        views = [self.group.get(key) for key in keys]
        self._leaked += views
        return sum(view == value_of(key) for view, key in zip(views, keys, strict=True))

    def release(self, name: str) -> None:
        self._hold(name).set()

    def stats(self) -> tuple[mpgroupcache.Stats, mpgroupcache.CacheStats]:
        return self.group.stats, self.group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE)

    def attached(self) -> bool:
        return self.group.attached

    def waiting(self) -> int:
        """How often it has asked the coordinator, and how many wait here for who did."""
        return self._asked() + waiting_here()

    def flush(self) -> None:
        flush()

    def speak(self, lowest: int, highest: int) -> None:
        """Offer these versions of the conversation from now on."""
        link.LOWEST_VERSION, link.HIGHEST_VERSION = lowest, highest  # type: ignore[misc]

    def wall_clock(self) -> float:
        return time.time()

    def claim_every(self, seconds: float) -> None:
        """Look for a region that often from now on, where none was free."""
        link.CLAIM_INTERVAL = seconds

    def has_link(self) -> bool:
        return process.current().working_link is not None

    def watch_links(self) -> None:
        """Keep the names of the threads that try to reach the coordinator from now on."""
        make, self._linkers = process.Link, []

        def watched(*arguments: Any) -> Any:
            self._linkers.append(threading.current_thread().name)
            return make(*arguments)

        process.Link = watched  # type: ignore[assignment,misc]

    def linkers(self) -> list[str]:
        return self._linkers

    def connect(self) -> bool:
        return mpgroupcache.connect()

    def census(self) -> tuple[int, int]:
        """Service threads, and open descriptors."""
        threads = [thread for thread in threading.enumerate() if thread.name == "mpgroupcache-service"]
        return len(threads), descriptors_of(os.getpid())

    def storm(self, keys: list[str], threads: int) -> list[list[bytes]]:
        """Every thread gets every key, all at once."""
        barrier = threading.Barrier(threads)
        results: list[list[bytes]] = [[] for _ in range(threads)]

        def run(number: int) -> None:
            for key in keys:
                barrier.wait(PATIENCE)
                results[number].append(bytes(self.group.get(key)))

        pool = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join(PATIENCE)
        return results

    def quit(self) -> None:
        self.quitting.set()


def _work(pipe: Connection, socket: str, cache_bytes: int, options: dict[str, Any]) -> None:
    mpgroupcache.configure(socket=socket)
    working = _Working(pipe, cache_bytes, options)

    def read() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                threading.Thread(target=working.run, args=pipe.recv(), daemon=True).start()
        working.quitting.set()

    threading.Thread(target=read, daemon=True).start()
    working.quitting.wait()
