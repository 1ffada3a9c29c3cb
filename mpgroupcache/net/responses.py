"""The bytes of what the peers' server answers: peerwire.py's answers, as HTTP/1.1 or 1.0."""

from __future__ import annotations

import functools
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, NamedTuple

from mpgroupcache.net.batches import ANSWERS_TYPE
from mpgroupcache.net.peerwire import (
    ABILITIES,
    CONTENT_TYPE,
    INSTANCE,
    MALFORMED,
    ErrorResponse,
    encode_abilities,
    response_head,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpgroupcache.net.peerwire import Ability

# As Go has them: Python's own differ in one, and between its versions.
_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Request Entity Too Large",
    414: "Request URI Too Long",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def _unparsed(status: int, detail: str = "") -> ErrorResponse:
    """What net/http answers where it does not call a handler."""
    return ErrorResponse(status, f"{status} {_REASONS[status]}{detail}".encode(), MALFORMED.headers, closes=True)


NO_HOST: Final = _unparsed(400, ": missing required Host header")
HEAD_TOO_LARGE: Final = _unparsed(431)
BODY_TOO_LARGE: Final = _unparsed(413)
TARGET_TOO_LONG: Final = _unparsed(414)


class Manner(NamedTuple):
    """How a request is answered."""

    refused: bool
    """With 405, whatever it asks for: its method is neither GET nor HEAD, and it does not carry keys."""
    head: bool
    """Without the body."""
    closes: bool
    """With the end of the connection."""
    old: bool
    """As HTTP/1.0 has it."""


PLAIN: Final = Manner(refused=False, head=False, closes=False, old=False)


class Heads:
    """What all answers of a server begin with. It holds for a second, since the time is in it."""

    def __init__(self, instance: bytes, abilities: Iterable[Ability]) -> None:
        self._abilities = b"%s: %s\r\n" % (ABILITIES, encode_abilities(abilities))
        self._constant = b"%s: %s\r\n%s" % (INSTANCE, instance.hex().encode(), self._abilities)
        self.value = b""
        """The head of a value's answer, up to what is its own."""
        self.batch = b""
        """The head of an answer for many keys, up to its length."""
        self._common = b""  # of an error's, behind its own headers

    def renew(self, now: float) -> None:
        """``now``: seconds since the epoch."""
        date = formatdate(now, usegmt=True).encode()
        self._common = b"%sDate: %s\r\n" % (self._constant, date)
        self.value = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s" % (CONTENT_TYPE, self._common)
        self.batch = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s" % (ANSWERS_TYPE, self._common)

    def error(self, response: ErrorResponse) -> bytes:
        """The head of an error's answer, up to its length; without one where the body ends with the connection.

        Then there is neither a date nor an instance, as from Go's net/http.
        """
        lines = [b"HTTP/1.1 %d %s\r\n" % (response.status, _REASONS[response.status].encode())]
        lines += [b"%s: %s\r\n" % header for header in response.headers]
        return b"".join((*lines, self._abilities + b"\r\n" if response.closes else self._common))


@functools.lru_cache(1024)
def frame(size: int, minute_qps: float | None) -> tuple[bytes, bytes]:
    """What goes before a value of that size, from its answer's length on, and what goes behind it: the usual answer."""
    before, behind = response_head(size, minute_qps)
    return b"Content-Length: %d\r\n\r\n%s" % (len(before) + size + len(behind), before), behind


def answer(manner: Manner, head: bytes, body: tuple[bytes | memoryview, ...], length: int) -> bytes:
    """Any answer. ``head`` ends where the length's header begins."""
    if manner.old:
        head = head.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    connection = b""
    if manner.closes != manner.old:
        connection = b"Connection: %s\r\n" % (b"close" if manner.closes else b"keep-alive")
    return b"".join((head, b"Content-Length: %d\r\n%s\r\n" % (length, connection), *(() if manner.head else body)))
