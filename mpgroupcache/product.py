"""What a load brought. A new property of a value is one more field here, and goes its whole way from there."""

from __future__ import annotations

from msgspec import Struct


class Product(Struct, frozen=True, gc=False):
    """From the sink, or a peer that was picked, through the lease, the frame and the arena to whoever waits."""

    value: bytes
    picked: bool = False
    """Whether a peer gave it that this process had picked: then the hot cache alone may take it."""
    minute_qps: float | None = None
    """How often that peer is asked for it, each minute; None: it does not say."""
