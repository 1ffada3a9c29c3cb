"""All measurements, one after the other."""

from __future__ import annotations

from benchmarks import contention, coordinate, fetch, footprint, hit, memory, miss, peer, promotion, startup

for module in (hit, contention, miss, coordinate, peer, fetch, memory, footprint, promotion, startup):
    module.main([])
