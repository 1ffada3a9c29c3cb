"""Which values fetched from their owners go to the hot cache: the best tenth, where Go's rule takes any tenth.

An owner of ours says with a value how often its key is asked for (``minute_qps``): by all hosts that have to ask, and
on its own. That is not this host's rate, but goes with it, and order is all that the rule uses. It keeps one number,
the score that a tenth of the fetched values exceed, and moves it after every fetch: up by nine steps for a value above
it, down by one for a value below. So

- the share is Go's, whatever the rates are, were or become: when all of them fall, the threshold follows them down by
  1 % with each value it refuses, and when new keys grow hot they are above it at once;
- a value that is not hot enough costs the hot cache nothing, where a random tenth of everything pushes it out;
- owners whose rates tell nothing (all of them 0) get Go's rule again, since ties are broken by chance.

What keeps a key hot afterwards is the hot cache's own LRU order; a key that is evicted is fetched, and judged, again.
Compared in ``benchmarks/promotion.py``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

SHARE = 0.1  # of fetched values: Go's one in ten
STEP = 0.1  # of the threshold's logarithm; at a tenth of it, the share is right to some 2 % but takes 10 times to move
TIE = 1e-6  # requests per second; what chance adds to a rate, below any that a request or two could give
# Bytes whose transfer costs an owner what a request costs. Hits on small values save requests, so they are worth their
# rate for each byte of room; hits on large ones save bytes, and room for bytes saves the same whatever their size.
REQUEST_BYTES = 16 << 10
FULL = 0.9  # of the hot cache's room; below, promoting evicts nothing worth the name
LOWEST, HIGHEST = 1e-12, 1e12  # thresholds; a peer's absurd rates cannot put it out of reach

_UP = math.exp(STEP * (1 - SHARE))
_DOWN = math.exp(-STEP * SHARE)


def fill(main_bytes: int, hot_bytes: int, budget: int) -> float:
    """How full a group's hot cache is: 1.0 where the next value of the hot list evicts others of it.

    It may have what the main cache leaves of ``budget``, and at least an eighth of the main cache's bytes, since only
    above that are victims hot ones (Go: ``populateCache``).
    """
    room = max(budget - main_bytes, main_bytes // 8)
    return min(hot_bytes / room, 1.0) if room > 0 else 1.0


class Promotion:
    """Decides for one group of one host. Without clocks or I/O: told what was fetched, it answers."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        """``chance`` gives numbers from [0, 1), evenly spread."""
        self._chance = chance
        self._threshold = LOWEST

    def __repr__(self) -> str:
        return f"<Promotion above {self._threshold:.3g}>"

    def admits(self, minute_qps: float | None, size: int, fill: float) -> bool:
        """Whether a fetched value of ``size`` bytes, key included, goes to the hot cache.

        ``minute_qps`` is what its owner said; None is what Go groupcache peers say, and a number that is no rate is
        worth as much: then one in ten. ``fill`` is the hot cache's, see the function of that name: while there is room,
        every value goes there whose key was asked for before.
        """
        if minute_qps is None or not 0 <= minute_qps < math.inf:
            return self._chance() < SHARE
        score = (minute_qps + TIE * self._chance()) * (1 + REQUEST_BYTES / max(size, 1))
        best = score > self._threshold
        self._threshold = min(max(self._threshold * (_UP if best else _DOWN), LOWEST), HIGHEST)
        return best or (fill < FULL and minute_qps > 0)
