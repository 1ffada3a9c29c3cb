"""What is behind the peers' server: whom it asks for values, and how it is answered."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class NoSuchGroup(LookupError):
    """Nobody on this host declared the group."""


class Served(Struct, frozen=True, gc=False):
    """What a peer is answered: a value, or that there is none."""

    value: bytes | memoryview
    """Of an absence, its loader's text in UTF-8."""
    minute_qps: float
    """How often it is asked for; 0.0: unknown."""
    fresh: float | None
    """Seconds until it is stale; below 0: since when. None: it never is."""
    dead: float | None
    """Seconds until it is dead; 0.0: it is for those who wait, and kept nowhere. None: it never is."""
    version: int | None
    """None: it has none."""
    absent: bool
    """Whether the loader says that there is no such thing."""


class Visitor(Protocol):
    """A peer's request that waits for a value. It is answered once, maybe before ``Backend.visit`` returns."""

    @property
    def ctx(self) -> bytes:
        """What its loader is told, as the server's ``context`` packed it; empty: nothing."""

    def deliver(self, served: Served) -> None:
        """Answer with the value, or that there is none."""

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the error that the loader raised."""

    def refuse(self, text: str) -> None:
        """Answer that this host cannot load: whoever asks is to load there."""


class Backend(Protocol):
    """Where values come from. It is called on the loop, and must not block."""

    def find(self, group: str, key: bytes) -> Served | None:
        """What is cached, its value valid until the backend's next call; None if nothing is. Raises ``NoSuchGroup``."""

    def visit(self, group: str, key: bytes, visitor: Visitor) -> None:
        """Load a value that is not cached. Raises ``NoSuchGroup``."""

    def leave(self, visitor: Visitor) -> None:
        """The visitor does not wait any longer: its client is gone, or its time is up."""
