"""All measurements, one after the other."""

from __future__ import annotations

from benchmarks import (
    ages,
    batch,
    change,
    contention,
    coordinate,
    evictions,
    fetch,
    footprint,
    hit,
    many,
    memory,
    miss,
    peer,
    promotion,
    startup,
)

for module in (
    ages,
    batch,
    hit,
    many,
    change,
    contention,
    evictions,
    miss,
    coordinate,
    peer,
    fetch,
    memory,
    footprint,
    promotion,
    startup,
):
    module.main([])
