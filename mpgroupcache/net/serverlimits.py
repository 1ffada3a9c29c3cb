"""What one client of the peers' server may take, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass

from mpgroupcache.net.peerwire import MAX_VALUE_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """What they may take of this host."""

    connections: int = 1024  # more than peers with pools of their own open; fewer than the usual limit of descriptors
    headers: int = 100  # of a request; proxies in between add some
    header_bytes: int = 64 << 10  # of all of them, beside the target
    request_timeout: float = 10.0  # s from a request's first byte to its last; also for a TLS handshake
    idle_timeout: float = 120.0  # s; longer than Go's clients keep theirs (90), so that they close and not we
    stall_timeout: float = 30.0  # s in which a client has to read some of what it asked for
    value_bytes: int = MAX_VALUE_BYTES  # of one; a client of ours takes no more
    unread_bytes: int = 256 << 20  # of all clients' answers that are not read, or not whole; more is refused
