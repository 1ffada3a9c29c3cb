"""What an application may give to the ring: functions of its own, and the `HTTPPool` that carries them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import urllib.request

    from mpgroupcache.net.consistenthash import Hash


class PeerRequest(NamedTuple):
    """A peer's request, as an application's ``context`` sees it."""

    group: str
    key: bytes
    headers: Mapping[str, str]
    """By their names in lower case."""
    remote: str
    """The peer's address, or "" where it is not known."""


Context: TypeAlias = Callable[[PeerRequest], Any]
"""Makes a loader's ``ctx`` of a request (Go: ``HTTPPool.Context``)."""


class Opener(Protocol):
    """Makes requests (Go: ``http.RoundTripper``). Several threads use it at once."""

    def open(self, request: urllib.request.Request, /, *, timeout: float) -> Any:
        """Return the response: a context manager with ``status``, ``headers``, ``url`` and ``read1(size)``.

        ``read1`` returns what there is, of at most so many bytes, and b"" at the end. Raises ``OSError``, of which
        ``urllib.error.HTTPError`` is a response. ``timeout``: seconds until it returns, and for each read. It must not
        follow redirects, which would take the ring's secret along: an answer from another URL is refused.
        """


Transport: TypeAlias = Callable[[Any], Opener]
"""Called with the ``ctx`` of a get; in the coordinator, which has none, with None."""


class NamedRing(Protocol):
    """What the coordinator asks of the ``HTTPPool`` that its ``--app`` made."""

    self_url: str
    base_path: str
    replicas: int
    hash_fn: Hash
    context: Context | None
    transport: Transport | None
    peers: tuple[str, ...] | None
    """The ring that was named last; None: there was none yet."""

    def take(self, taken: Callable[[], object]) -> None:
        """Have ``taken`` called, in whatever thread, each time the ring is named anew."""
