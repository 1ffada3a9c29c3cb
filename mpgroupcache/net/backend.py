"""What is behind the peers' server: whom it asks for values, and how it is answered."""

from __future__ import annotations

from typing import Protocol


class NoSuchGroup(LookupError):
    """Nobody on this host declared the group."""


class Visitor(Protocol):
    """A peer's request that waits for a value. It is answered once, maybe before ``Backend.visit`` returns."""

    @property
    def ctx(self) -> bytes:
        """What its loader is told, as the server's ``context`` packed it; empty: nothing."""

    def deliver(self, value: bytes, minute_qps: float) -> None:
        """Answer with the value."""

    def fail(self, type_name: str, text: str) -> None:
        """Answer with the error that the loader raised."""

    def refuse(self, text: str) -> None:
        """Answer that this host cannot load: whoever asks is to load there."""


class Backend(Protocol):
    """Where values come from. It is called on the loop, and must not block."""

    def find(self, group: str, key: bytes) -> tuple[memoryview, float] | None:
        """The cached value, valid until the backend's next call, and its requests per minute (0.0: unknown).

        None if it is not cached. Raises ``NoSuchGroup``.
        """

    def visit(self, group: str, key: bytes, visitor: Visitor) -> None:
        """Load a value that is not cached. Raises ``NoSuchGroup``."""

    def leave(self, visitor: Visitor) -> None:
        """The visitor does not wait any longer: its client is gone, or its time is up."""
