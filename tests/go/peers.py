"""The fake peers of Go's ``TestPeers``, and its group."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import mpgroupcache
from mpgroupcache import Sink
from mpgroupcache.net.groupcachepb_pb2 import GetRequest, GetResponse


class FakePeer:
    """Go's ``fakePeer``."""

    def __init__(self) -> None:
        self.hits = 0
        self.fail = False

    def get(self, _ctx: Any, request: GetRequest) -> GetResponse:
        self.hits += 1
        if self.fail:
            raise OSError("simulated error from peer")
        return GetResponse(value=b"got:" + request.key)


class FakePeers:
    """Go's ``fakePeers``: a key's owner is its crc32 modulo their number; None is this process."""

    def __init__(self, peers: list[FakePeer | None]) -> None:
        self.peers = peers

    def pick_peer(self, key: str) -> FakePeer | None:
        return self.peers[crc32(key.encode()) % len(self.peers)]


class PeersTest:
    """The group of one process, with and without a cache."""

    def __init__(self, socket: str | None = None) -> None:
        if socket is not None:
            mpgroupcache.configure(socket=socket)
        self.fakes = [FakePeer(), FakePeer(), FakePeer()]
        self.picker = FakePeers([*self.fakes, None])
        self.local_hits = 0
        self.cached = mpgroupcache.new_group("TestPeers-group", 1 << 20, self._load, peers=self.picker)
        self.uncached = mpgroupcache.new_group("TestPeers-uncached", 0, self._load, peers=self.picker)

    def _load(self, _ctx: Any, key: str, dest: Sink) -> None:
        self.local_hits += 1
        dest.set_string(f"got:{key}")

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self, method)(*args)

    def run(self, group: str, count: int = 200) -> tuple[int, list[int]]:
        """Get so many keys; returns how many were loaded here, and how many each peer gave."""
        self.local_hits = 0
        for fake in self.fakes:
            fake.hits = 0
        for i in range(count):
            assert getattr(self, group).get(f"key-{i}") == f"got:key-{i}"
        return self.local_hits, [fake.hits for fake in self.fakes]

    def take_down(self, number: int) -> None:
        self.picker.peers[number] = None

    def bring_back_failing(self, number: int) -> None:
        self.picker.peers[number] = self.fakes[number]
        self.fakes[number].fail = True

    def stats(self, group: str) -> mpgroupcache.Stats:
        return getattr(self, group).stats  # type: ignore[no-any-return]

    def items(self) -> tuple[int, int]:
        """Of the main and of the hot cache."""
        main, hot = (self.cached.cache_stats(which).items for which in mpgroupcache.CacheType)
        return main, hot
