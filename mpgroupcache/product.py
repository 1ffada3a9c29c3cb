"""What a load brought. A new property of a value is one more field here, and goes its whole way from there."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from mpgroupcache.limits import MAX_ABSENT_TEXT, MAX_RATE, MAX_SECONDS


class Said(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a peer that was picked says of its value, as far as it can: one of ours may say all of it."""

    minute_qps: Annotated[float, Meta(ge=0, le=MAX_RATE)] | None
    """How often it is asked for it, each minute; None: it does not say."""
    version: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] | None
    """Its number there; None: it does not say."""
    says_ages: bool
    """Whether it says for how long it lives; else nobody knows that, as of Go's."""
    fresh: Annotated[float, Meta(ge=-MAX_SECONDS, le=MAX_SECONDS)] | None
    """s until it is stale there, below 0: since when; None: it never is."""
    dead: Annotated[float, Meta(ge=0, le=MAX_SECONDS)] | None
    """s until it is dead there; None: it never is."""


class Product(Struct, frozen=True, gc=False):
    """From the sink, or a peer that was picked, through the lease, the frame and the arena to whoever waits."""

    value: bytes
    """Where it is absent, what its loader said of that, as text."""
    picked: bool = False
    """Whether a peer gave it that this process had picked: then the hot cache alone may take it."""
    said: Said | None = None
    """What that peer says of it; None: nothing."""
    ttl: float | None = None
    """s for which it is fresh; None: as its group says; infinite: for ever; 0: it is for those who wait, not kept."""
    stale: float | None = None
    """s for which it is stale then; None: as its group says."""
    absent: bool = False
    """Whether its loader said that there is no such value (``NotFound``)."""


def absence(text: str, *, picked: bool = False, said: Said | None = None) -> Product:
    """What a load has brought that says with ``NotFound`` that there is no such thing."""
    return Product(text.encode(errors="backslashreplace")[:MAX_ABSENT_TEXT], picked, said, absent=True)
