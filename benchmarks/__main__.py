"""All measurements, one after the other."""

from __future__ import annotations

from benchmarks import contention, footprint, hit, memory, miss

for module in (hit, contention, miss, memory, footprint):
    module.main([])
