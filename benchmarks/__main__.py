"""All measurements, one after the other."""

from __future__ import annotations

from benchmarks import contention, coordinate, evictions, fetch, footprint, hit, memory, miss, peer, promotion, startup

for module in (hit, contention, evictions, miss, coordinate, peer, fetch, memory, footprint, promotion, startup):
    module.main([])
