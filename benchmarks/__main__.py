"""All measurements, one after the other."""

from __future__ import annotations

<<<<<<< HEAD
from benchmarks import contention, footprint, hit, memory, miss, promotion

for module in (hit, contention, miss, memory, footprint, promotion):
=======
from benchmarks import contention, footprint, hit, memory, miss, peer

for module in (hit, contention, miss, peer, memory, footprint):
>>>>>>> srv
    module.main([])
