"""All measurements, one after the other."""

from __future__ import annotations

from benchmarks import contention, footprint, hit, memory, miss, promotion

for module in (hit, contention, miss, memory, footprint, promotion):
    module.main([])
