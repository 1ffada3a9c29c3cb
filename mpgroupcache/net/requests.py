"""What a client sends, as requests: bytes in, a slice at a time, and the heads of requests out.

httptools parses them. A peer says the same in each request but for the target: what follows that is known again, and
then need not be parsed.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from httptools import HttpParserError, HttpRequestParser

from mpgroupcache.net.peerwire import MALFORMED, MAX_TARGET_BYTES, METHODS, ErrorResponse
from mpgroupcache.net.responses import HEAD_TOO_LARGE, NO_HOST, PLAIN, TARGET_TOO_LONG, Manner
from mpgroupcache.net.serverlimits import Limits

_MAX_USUAL: Final = 1024  # bytes that are kept of what follows a target, to know it again
_FRAMING: Final = frozenset((b"connection", b"content-length", b"transfer-encoding"))

RequestHead: TypeAlias = tuple[bytes, dict[bytes, bytes], Manner]
"""A target, headers with their names in lower case, and how it is to be answered."""


class _Ended(Exception):
    """The parser is to stop."""


class RequestParser:
    """Of one client.

    A request is complete with its headers. Nobody needs one with a body: the answer to it ends the connection, and the
    body is not read. (Go does so with large bodies, and reads small ones for nothing.)
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = self._header_bytes = 0  # of this request, while its head comes
        self._found: list[RequestHead | ErrorResponse] = []  # in the bytes that came last
        self._complete = False  # is one of them
        self._in_head = False
        self._ended = False
        self.at_begin = True
        """Whether the next byte is known to be a request's first."""
        self.head_bytes = 0
        """That came since the last complete request, if none was complete in them."""

    def end(self) -> None:
        """Find nothing any more, whatever comes."""
        self._ended = True

    def parse(self, data: bytes | memoryview) -> list[RequestHead | ErrorResponse]:
        """Return what is complete with these bytes, in order. Behind an error, or a request that closes, is nothing."""
        found = self._found = []
        if self._ended:
            return found
        self._complete = False
        self.head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._refuse(MALFORMED)
        self.at_begin = self._complete and data[-4:] == b"\r\n\r\n"
        if self._complete and self._in_head:  # a head has begun behind the last one
            self.head_bytes = 1
        if self.head_bytes > MAX_TARGET_BYTES + self._limits.header_bytes:
            self._refuse(TARGET_TOO_LONG if len(self._target) > MAX_TARGET_BYTES else HEAD_TOO_LARGE)
        return found

    def usual(self, data: bytes) -> tuple[bytes, dict[bytes, bytes]] | None:
        """What followed the target if ``data``, which was just parsed, was one plain request, and what that says.

        A next request that goes on like this need not be parsed.
        """
        if len(self._found) != 1 or not self.at_begin or isinstance(request := self._found[0], ErrorResponse):
            return None
        target, headers, manner = request
        rest = data[4 + len(target) :]
        if manner is PLAIN and data.startswith(b"GET %s HTTP/1.1\r\n" % target) and len(rest) <= _MAX_USUAL:
            return rest, headers
        return None

    def _refuse(self, response: ErrorResponse) -> None:
        """Nothing that comes now is a request."""
        if not self._ended:
            self._ended = True
            self._found.append(response)

    # What httptools calls. It takes an exception for an error, and hides it behind its own.

    def on_message_begin(self) -> None:
        self._in_head = True

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1  # each, since of one name a single one is kept
        self._header_bytes += len(name) + len(value)
        limits = self._limits
        if self._header_count > limits.headers or self._header_bytes > limits.header_bytes:
            self._refuse(HEAD_TOO_LARGE)
            raise _Ended
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        target, headers, parser = self._target, self._headers, self._parser
        self._target, self._headers, self.head_bytes = b"", {}, 0
        self._header_count = self._header_bytes = 0
        self._in_head = False
        if (
            parser.get_method() == b"GET"
            and b"host" in headers
            and _FRAMING.isdisjoint(headers)
            and parser.should_keep_alive()
        ):
            manner = PLAIN
        else:
            manner = self._manner(headers)
        self._complete = True
        self._found.append((target, headers, manner))
        if manner.closes:
            self._ended = True
            raise _Ended

    def _manner(self, headers: dict[bytes, bytes]) -> Manner:
        parser = self._parser
        old = parser.get_http_version() < "1.1"
        if b"host" not in headers and not old:
            self._refuse(NO_HOST)
            raise _Ended
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"").strip(b"0") != b""
        closes = has_body or not parser.should_keep_alive() or parser.should_upgrade()
        method = parser.get_method()
        return Manner(method not in METHODS, method == b"HEAD", closes, old)
