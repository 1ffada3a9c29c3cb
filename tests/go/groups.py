"""The two groups of Go's ``groupcache_test.go``, in this process or in a child."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from testpb_pb2 import TestMessage
from workers import PATIENCE, wait_until, waiting_here

import mpgroupcache
from mpgroupcache import BytesSink, ByteViewSink, ProtoSink, Sink, StringSink, TruncatingSink
from mpgroupcache.worker import process

T = TypeVar("T")

FROM_CHAN = "from-chan"
CACHE_BYTES = 1 << 20


class Caller(Protocol):
    """Whom a test tells to get: ``Groups`` in this process, or a ``Child`` that has them."""

    def call(self, method: str, *args: Any) -> Any: ...


class Groups:
    """``stringGroup`` and ``protoGroup``. Their loaders take ``FROM_CHAN``'s key from a file, once it is there."""

    def __init__(self, directory: str, socket: str | None = None) -> None:
        if socket is not None:
            mpgroupcache.configure(socket=socket)
        self._chan = Path(directory) / "chan"
        self.string_group = mpgroupcache.new_group("string-group", CACHE_BYTES, self._load_string)
        self.proto_group = mpgroupcache.new_group("proto-group", CACHE_BYTES, self._load_proto)
        self.no_dedup = mpgroupcache.new_group("testgroup", 1024, lambda ctx, key, dest: dest.set_string("testval"))
        self._load = self.no_dedup._load
        self.no_dedup._load = self._load_in_turn  # type: ignore[method-assign]
        self._entered = 0
        self._turn = threading.Semaphore(0)
        self._pool = ThreadPoolExecutor(4)
        self._begun: list[Future[Any]] = []

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self, method)(*args)

    def connect(self) -> None:
        assert mpgroupcache.connect()

    def _received(self, key: str) -> str:
        if key != FROM_CHAN:
            return key
        wait_until(self._chan.exists, "what the channel brings")
        return self._chan.read_text()

    def _load_string(self, _ctx: Any, key: str, dest: Sink) -> None:
        dest.set_string(f"ECHO:{self._received(key)}")

    def _load_proto(self, _ctx: Any, key: str, dest: Sink) -> None:
        dest.set_proto(TestMessage(name=f"ECHO:{self._received(key)}", city="SOME-CITY"))

    def get_string(self, key: str) -> str:
        sink = StringSink()
        self.string_group.get(key, sink)
        return sink.value

    def get_proto(self, key: str) -> tuple[str, str]:
        message = TestMessage()
        self.proto_group.get(key, ProtoSink(message))
        return message.name, message.city

    def get_into(self, kind: str, key: str) -> object:
        """Get into a sink of one kind; returns what it holds then."""
        if kind == "ProtoSink":
            return self.get_proto(key)
        buffer = bytearray(12)
        sinks = StringSink(), BytesSink(), ByteViewSink(), TruncatingSink(buffer)
        [sink] = [sink for sink in sinks if type(sink).__name__ == kind]
        assert self.string_group.get(key, sink) is None
        return bytes(buffer[: sink.n]) if isinstance(sink, TruncatingSink) else sink.value

    def get_no_dedup(self) -> str:
        return str(self.no_dedup.get("testkey"))

    def _load_in_turn(self, *args: Any) -> Any:
        """The cache was looked at, and had nothing; go on when it is this one's turn."""
        self._entered += 1
        assert self._turn.acquire(timeout=PATIENCE)
        return self._load(*args)

    def entered(self) -> int:
        return self._entered

    def turn(self) -> None:
        self._turn.release()

    def flood(self, until: int) -> None:
        """Trash the cache with other keys."""
        flooded = 0
        while flooded < until:
            key = f"dummy-key-{flooded}"
            flooded += len(key) + len(self.get_string(key))

    def begin(self, method: str, *args: Any) -> int:
        """Begin a call in a thread of its own; ``result`` of the number that this returns has its result."""
        self._begun.append(self._pool.submit(self.call, method, *args))
        return len(self._begun) - 1

    def result(self, number: int) -> Any:
        return self._begun[number].result(PATIENCE)

    def asking(self) -> int:
        """Gets of this process that wait for another one's load, here or elsewhere."""
        link = process.current().working_link
        return waiting_here() + (0 if link is None else len(link.channel))

    def fills(self) -> int:
        """Loads of all processes (Go: ``cacheFills``)."""
        return self.string_group.stats.local_loads + self.proto_group.stats.local_loads

    def send(self, text: str) -> None:
        """Let the loaders of ``FROM_CHAN`` have its key."""
        draft = self._chan.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, self._chan)

    def evictions(self) -> int:
        return self.string_group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE).evictions

    def held(self) -> tuple[int, int]:
        """Items and bytes of ``testgroup``."""
        stats = self.no_dedup.cache_stats(mpgroupcache.CacheType.MAIN_CACHE)
        return stats.items, stats.bytes

    def no_dedup_stats(self) -> mpgroupcache.Stats:
        return self.no_dedup.stats


def count_fills(caller: Caller, call: Callable[[], object]) -> int:
    before = caller.call("fills")
    call()
    return int(caller.call("fills") - before)
