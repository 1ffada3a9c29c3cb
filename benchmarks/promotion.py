"""Requests that hosts send to keys' owners, when values go to the hot cache by rate, and by Go's one in ten.

    python -m benchmarks.promotion [--seconds 120]

A simulation. The rule is ``mpgroupcache.net.promotion``'s own; a host is two LRU lists with one budget and Go's choice
of victims. A rate is the decayed count of ``mpgroupcache/shm/rate.h``, at the owner alone: peers' requests count as
they come, hits of its own workers when their touches are drained, and rates are told as of the last drain. A key that
its owner evicts loses its rate. What is counted is requests to owners after the first half of the time.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.common import table, verdict
from mpgroupcache.net.promotion import SHARE, Promotion, fill

HALF_LIFE, YOUNGEST = 40.0, 10.0  # s; as in rate.h
DRAIN = 0.25  # s between two drains of the coordinator

Rule = Callable[[float, int, float], bool]  # (minute_qps, size, fill)
MakeRule = Callable[[random.Random], Rule]


def one_in_ten(rng: random.Random) -> Rule:
    """Go's rule."""
    return lambda minute_qps, size, fill: rng.random() < SHARE


def by_rate(rng: random.Random) -> Rule:
    """Ours."""
    return Promotion(rng.random).admits


@dataclass(frozen=True)
class Load:
    """Requests for keys whose popularity is Zipf's, to any host alike."""

    name: str
    exponent: float
    hosts: int = 8
    keys: int = 20_000
    qps: int = 4_000  # all hosts together
    cached: float = 1.0  # budget of a host, in bytes of all the keys that it owns
    sizes: tuple[int, ...] = (100,)  # bytes, key included; of keys by turns
    shift_every: float = math.inf  # s, after which ...
    shifted: int = 0  # ... as many of the hottest keys change places with others
    falls_in: float = math.inf  # s, in which all rates fall to a tenth

    def size_of(self, key: int) -> int:
        return self.sizes[key // self.hosts % len(self.sizes)]

    def requests(self, rng: random.Random) -> Iterator[tuple[float, int, int]]:
        """(time, host, key) without end."""
        order = list(range(self.keys))
        rng.shuffle(order)
        weights = list(itertools.accumulate((rank + 1) ** -self.exponent for rank in range(self.keys)))
        now, shift_at = 0.0, self.shift_every
        while True:
            ranks = rng.choices(range(self.keys), cum_weights=weights, k=1000)
            hosts = rng.choices(range(self.hosts), k=1000)
            for rank, host in zip(ranks, hosts, strict=True):
                now += 10 ** (now / self.falls_in) / self.qps
                if now >= shift_at:
                    shift_at += self.shift_every
                    for hot in range(self.shifted):
                        other = rng.randrange(self.keys)
                        order[hot], order[other] = order[other], order[hot]
                yield now, host, order[rank]


LOADS = (
    Load("Zipf 0.8", 0.8),
    Load("Zipf 1.0", 1.0),
    Load("Zipf 1.2", 1.2),
    Load("Zipf 1.0, 100 B to 100 KB", 1.0, sizes=(100, 1_000, 300, 10_000, 200, 100_000, 500)),
    Load("Zipf 1.0, room for a third", 1.0, cached=0.3),
    Load("Zipf 0.8 of 100 000 keys, room for a tenth", 0.8, keys=100_000, cached=0.1),
    Load("Zipf 1.0, 3 hosts", 1.0, hosts=3),
    Load("Zipf 1.0, 30 hosts", 1.0, hosts=30),
    Load("100 hottest of Zipf 1.0 shift every 30 s", 1.0, shift_every=30, shifted=100),
    Load("20 hottest of Zipf 1.0 shift every 10 s", 1.0, shift_every=10, shifted=20),
    Load("10 hottest of Zipf 0.8 shift every 5 s", 0.8, shift_every=5, shifted=10),
    Load("Zipf 1.0, falling to a tenth in a minute", 1.0, falls_in=60),
)


class Entry:
    """A main entry at its owner, with its rate."""

    __slots__ = ("since", "size", "sum")

    def __init__(self, size: int, now: float) -> None:
        self.size, self.since, self.sum = size, now, 0.0

    def count(self, now: float) -> None:
        self.sum += 2 ** ((now - self.since) / HALF_LIFE)

    def minute_qps(self, now: float) -> float:
        age = max(now - self.since, YOUNGEST)
        return self.sum * math.log(2) / HALF_LIFE / (2 ** (age / HALF_LIFE) - 1)


class Host:
    """A coordinator with its workers: what it owns in the main list, what it fetched in the hot one."""

    def __init__(self, budget: int, rule: Rule) -> None:
        self.budget, self.rule = budget, rule
        self.main: OrderedDict[int, Entry] = OrderedDict()  # oldest first, as the hot one
        self.hot: OrderedDict[int, int] = OrderedDict()  # key: size
        self.main_bytes = self.hot_bytes = 0
        self.touches: list[int] = []  # of main entries, not drained yet
        self.drained = 0.0  # when

    def drain(self, now: float) -> None:
        for key in self.touches:
            if (entry := self.main.get(key)) is not None:
                entry.count(now)
        self.touches.clear()
        self.drained = now

    def evict(self) -> None:
        while self.main_bytes + self.hot_bytes > self.budget:
            if self.hot_bytes > self.main_bytes // 8 or not self.main:
                self.hot_bytes -= self.hot.popitem(last=False)[1]
            else:
                self.main_bytes -= self.main.popitem(last=False)[1].size

    def load(self, key: int, size: int) -> None:
        self.main[key] = Entry(size, self.drained)
        self.main_bytes += size
        self.evict()

    def get_own(self, key: int, size: int) -> None:
        """A get of a worker of this host, which owns the key."""
        if key in self.main:
            self.main.move_to_end(key)
            self.touches.append(key)
        else:
            self.load(key, size)

    def serve(self, key: int, size: int) -> float:
        """A peer's request: the key's rate."""
        if (entry := self.main.get(key)) is None:
            self.load(key, size)
            return 0.0
        self.main.move_to_end(key)
        entry.count(self.drained)
        return entry.minute_qps(self.drained)

    def get(self, key: int, size: int, owner: Host) -> bool:
        """A get of a worker of this host, which does not own the key; whether the owner was asked."""
        if key in self.hot:
            self.hot.move_to_end(key)
            return False
        if self.rule(owner.serve(key, size), size, fill(self.main_bytes, self.hot_bytes, self.budget)):
            self.hot[key] = size
            self.hot_bytes += size
            self.evict()
        return True


def simulate(load: Load, make_rule: MakeRule, seconds: float, seed: int) -> tuple[int, int]:
    """(gets of keys that others own, requests to owners) in the second half of the time."""
    budget = int(sum(map(load.size_of, range(load.keys))) / load.hosts * load.cached)
    hosts = [Host(budget, make_rule(random.Random(seed + number))) for number in range(load.hosts)]
    gets = fetches = 0
    drain_at = DRAIN
    for now, number, key in load.requests(random.Random(seed)):
        if now >= seconds:
            break
        if now >= drain_at:
            drain_at = now + DRAIN
            for host in hosts:
                host.drain(now)
        size, owner, host = load.size_of(key), hosts[key % load.hosts], hosts[number]
        if owner is host:
            host.get_own(key, size)
            continue
        fetched = host.get(key, size, owner)
        if now >= seconds / 2:
            gets += 1
            fetches += fetched
    return gets, fetches


def compare(load: Load, seconds: float, seed: int) -> tuple[float, float]:
    """The share of gets that were sent to owners: by one in ten, and by rate."""
    shares = []
    for rule in (one_in_ten, by_rate):
        gets, fetches = simulate(load, rule, seconds, seed)
        shares.append(fetches / gets)
    return shares[0], shares[1]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of simulated time for each load")
    parser.add_argument("--qps", type=int, help="of all hosts together")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rows: list[Sequence[object]] = []
    lines = []
    for load in LOADS:
        chosen = replace(load, qps=options.qps) if options.qps else load
        go, ours = compare(chosen, options.seconds, options.seed)
        rows.append([load.name, f"{go:.1%}", f"{ours:.1%}", f"{ours / go:.2f}"])
        lines.append(verdict(f"requests to owners, {load.name}: by rate, of one in ten", ours / go, 0.95))
    table(
        "promotion: gets of other hosts' keys that were sent to their owners", ["", "1 in 10", "by rate", "ratio"], rows
    )
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
