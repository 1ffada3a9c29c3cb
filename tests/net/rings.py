"""Rings of hosts: coordinators that are each other's peers, with workers, each ring on addresses of its own."""

from __future__ import annotations

import collections
import os
import random
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from children import Child
from workers import Daemon

import mpgroupcache

PORT = 8080
GROUP = "g"


def addresses(count: int) -> list[str]:
    """Addresses of this machine that no other test has: all of 127/8 is."""
    chance = random.Random(os.urandom(8))
    low = chance.randrange(1, 200)
    prefix = f"127.{chance.randrange(1, 255)}.{chance.randrange(0, 256)}"
    return [f"{prefix}.{low + i}:{PORT}" for i in range(count)]


def value_of(key: bytes) -> bytes:
    """What the loaders of all hosts, and of Go peers, give for a key."""
    if key.startswith(b"size:"):
        return b"x" * int(key.split(b":")[1])
    if key.startswith(b"whole:"):
        return whole_value(key)
    return b"" if key.startswith(b"empty:") else b"V:" + GROUP.encode() + b":" + key


def whole_value(key: bytes) -> bytes:
    """The value of ``whole:N:...``: N bytes that are the key over and over, and their checksum."""
    size = int(key.split(b":")[1])
    body = (key * (size // len(key) + 1))[:size]
    return body + zlib.crc32(body).to_bytes(4, "big")


def check_whole(key: bytes, view: mpgroupcache.ByteView) -> None:
    """Raise unless this is the whole, right value of ``whole:N:...``, by nothing but its own bytes."""
    size = int(key.split(b":")[1])
    assert len(view) == size + 4, (key, len(view))
    with memoryview(view) as data:
        assert data[: len(key)] == key[:size], (key, bytes(data[:40]))
        assert zlib.crc32(data[:size]).to_bytes(4, "big") == data[size:], key


class Look(NamedTuple):
    """A value's number, and for how long it is fresh."""

    version: int | None
    ttl: float | None


class Getting:
    """A worker's process: it gets, and loads, and counts its loads."""

    def __init__(
        self,
        socket: str,
        cache_bytes: int,
        pool: tuple[str, list[str]] | None = None,
        ages: dict[str, float] | None = None,
    ) -> None:
        mpgroupcache.configure(socket=socket)
        if pool is not None:
            self.pool = mpgroupcache.HTTPPool(pool[0])
            self.pool.set(*pool[1])
        self._loads: collections.Counter[bytes] = collections.Counter()
        self.group = mpgroupcache.new_group(GROUP, cache_bytes, self._load, **(ages or {}))
        mpgroupcache.connect()

    def _load(self, ctx: Any, key: str | bytes, dest: mpgroupcache.Sink) -> None:
        raw = key if isinstance(key, bytes) else key.encode()
        self._loads[raw] += 1
        if raw.startswith(b"fail:"):
            raise ValueError(raw[5:].decode())
        if raw.startswith(b"none:"):
            raise mpgroupcache.NotFound(f"no {raw.decode()}")
        dest.set_bytes(value_of(raw))

    def get(self, key: bytes, timeout: float | None = None) -> bytes:
        return bytes(self.group.get(key, timeout=timeout))

    def wrong(self, keys: Iterable[bytes]) -> list[bytes]:
        """Get all these keys; those whose values are wrong."""
        return [key for key in keys if self.group.get(key) != value_of(key)]

    def wrong_of_many(self, keys: Sequence[bytes]) -> list[bytes]:
        """The same in one get."""
        return [key for key, view in self.group.get_many(keys).items() if view != value_of(bytes(key))]

    def looks(self, key: bytes) -> Look:
        """What is known of a value beside its bytes."""
        view = self.group.get(key)
        return Look(view.version, view.ttl)

    def change(self, what: str, key: bytes) -> Any:
        """``group.remove(key)`` and others."""
        arguments = {"clear": (), "set": (key, b"set")}.get(what, (key,))
        return getattr(self.group, what)(*arguments)

    def plain(self, key: bytes, value: bytes | None) -> bytes | None:
        """Set a value of a group without a loader, unless it is None; what is there then."""
        group = mpgroupcache.get_group("plain") or mpgroupcache.new_group("plain", 1 << 20)
        if value is not None:
            group.set(key, value)
        view = group.lookup(key)
        return None if view is None else bytes(view)

    def set_peers(self, urls: list[str]) -> None:
        self.pool.set(*urls)

    def loads(self) -> dict[bytes, int]:
        return dict(self._loads)

    def error(self, key: bytes) -> tuple[str, str]:
        """How a get fails: the error's type, and its text."""
        try:
            self.group.get(key)
        except Exception as error:
            return type(error).__name__, str(error)
        return "", ""

    def stats(self) -> mpgroupcache.Stats:
        return self.group.stats

    def hot_items(self) -> int:
        return self.group.cache_stats(mpgroupcache.CacheType.HOT_CACHE).items


class Host:
    """A coordinator with its place in a ring, and its workers."""

    def __init__(
        self,
        directory: Path,
        address: str,
        ring: Sequence[str],
        *options: str,
        self_url: str | None = None,
        prefix: Sequence[str] = (),
        kind: type[Daemon] = Daemon,
    ) -> None:
        self.url = self_url or f"http://{address}"
        self.socket = str(directory / address.replace(":", "-"))
        self._prefix = prefix
        self._kind = kind
        self._options = ["--listen", address, *options]
        if ring:
            self._options += ["--self", self.url]
        for peer in ring:
            self._options += ["--peer", peer]
        self._workers: list[Child] = []
        self.start()

    def start(self) -> None:
        """Start the coordinator; again, if it ended."""
        self.begin_start()
        self.daemon.wait_serving()

    def begin_start(self) -> None:
        """The same, without waiting for it."""
        self.daemon = self._kind(self.socket, *self._options, prefix=self._prefix)

    def worker(self, cache_bytes: int = 64 << 20, pool: list[str] | None = None, **ages: float) -> Child:
        """Start a worker, which `Getting` describes; it has declared its group then.

        ``pool``: peers that it names. ``ages``: its group's, as ``new_group`` has them.
        """
        return self.child(Getting, cache_bytes, None if pool is None else (self.url, pool), ages)

    def child(self, kind: type[Getting], *args: Any) -> Child:
        """Start a worker of any kind, which is made of the socket and ``args``."""
        worker = Child(kind, self.socket, *args)
        self._workers.append(worker)
        worker.call("loads")
        return worker

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.daemon.close()


class Ring:
    """Hosts, and perhaps others, that know each other. Use it as a context manager."""

    def __init__(self, count: int, *options: str, others: Sequence[str] = ()) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mpg-")
        hosts = addresses(count)
        self.urls = [*(f"http://{address}" for address in hosts), *others]
        self.hosts = [Host(Path(self._directory.name), address, self.urls, *options) for address in hosts]

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for host in self.hosts:
            host.close()
        self._directory.cleanup()
