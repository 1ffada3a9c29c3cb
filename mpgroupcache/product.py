"""What a load brought. A new property of a value is one more field here, and goes its whole way from there."""

from __future__ import annotations

from msgspec import Struct


class Product(Struct, frozen=True, gc=False):
    """From the sink, or a peer that was picked, through the lease, the frame and the arena to whoever waits."""

    value: bytes
    """Where it is absent, what its loader said of that, as text."""
    picked: bool = False
    """Whether a peer gave it that this process had picked: then the hot cache alone may take it."""
    minute_qps: float | None = None
    """How often that peer is asked for it, each minute; None: it does not say."""
    ttl: float | None = None
    """s for which it is fresh; None: as its group says; infinite: for ever; 0: it is for those who wait, not kept."""
    stale: float | None = None
    """s for which it is stale then; None: as its group says."""
    absent: bool = False
    """Whether its loader said that there is no such value (``NotFound``)."""
