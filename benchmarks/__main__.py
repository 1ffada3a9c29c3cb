"""All measurements, one after the other."""

from __future__ import annotations

from benchmarks import contention, footprint, hit, memory, miss, peer

for module in (hit, contention, miss, peer, memory, footprint):
    module.main([])
