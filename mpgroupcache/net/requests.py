"""What a client sends, as requests: bytes in, a slice at a time, and whole requests out.

httptools parses them. A peer says the same in each request but for the target: what follows that is known again, and
then need not be parsed.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from httptools import HttpParserError, HttpRequestParser

from mpgroupcache.net.batches import KEYS_TYPE, MAX_REQUEST_BYTES, METHOD
from mpgroupcache.net.peerwire import MALFORMED, MAX_TARGET_BYTES, METHODS, ErrorResponse
from mpgroupcache.net.responses import BODY_TOO_LARGE, HEAD_TOO_LARGE, NO_HOST, PLAIN, TARGET_TOO_LONG, Manner
from mpgroupcache.net.serverlimits import Limits

_MAX_USUAL: Final = 1024  # bytes that are kept of what follows a target, to know it again
_FRAMING: Final = frozenset((b"connection", b"content-length", b"transfer-encoding"))

Request: TypeAlias = tuple[bytes, dict[bytes, bytes], Manner, bytes | None]
"""A target, headers with their names in lower case, how it is to be answered, and the keys that it carries, if any."""


class _Ended(Exception):
    """The parser is to stop."""


class RequestParser:
    """Of one client.

    A request is complete with its headers, but for one that carries keys. Nobody needs another one with a body: the
    answer to it ends the connection, and the body is not read. (Go does so with large bodies, and reads small ones for
    nothing.)
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = self._header_bytes = 0  # of this request, while its head comes
        self._found: list[Request | ErrorResponse] = []  # in the bytes that came last
        self._complete = False  # is one of them
        self._in_head = False
        self._body: bytearray | None = None  # of a request that carries keys, and has not come to its end
        self._ended = False
        self.at_begin = True
        """Whether the next byte is known to be a request's first."""
        self.head_bytes = 0
        """That came since the last complete request, if none was complete in them; with what came of its body."""

    def end(self) -> None:
        """Find nothing any more, whatever comes."""
        self._ended = True

    def parse(self, data: bytes | memoryview) -> list[Request | ErrorResponse]:
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
        begun = self._in_head or self._body is not None
        self.at_begin = self._complete and not begun and data[-4:] == b"\r\n\r\n"
        if self._complete and begun:  # another one, behind the last
            self.head_bytes = 1
        if self._body is None and self.head_bytes > MAX_TARGET_BYTES + self._limits.header_bytes:
            self._refuse(TARGET_TOO_LONG if len(self._target) > MAX_TARGET_BYTES else HEAD_TOO_LARGE)
        return found

    def usual(self, data: bytes) -> tuple[bytes, dict[bytes, bytes]] | None:
        """What followed the target if ``data``, which was just parsed, was one plain request, and what that says.

        A next request that goes on like this need not be parsed.
        """
        if len(self._found) != 1 or not self.at_begin or isinstance(request := self._found[0], ErrorResponse):
            return None
        target, headers, manner, _ = request
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
        self._header_count = self._header_bytes = 0
        self._in_head = False
        if (
            parser.get_method() == b"GET"
            and b"host" in headers
            and _FRAMING.isdisjoint(headers)
            and parser.should_keep_alive()
        ):
            manner = PLAIN
        elif self._carries_keys(headers):
            if int(headers[b"content-length"]) > MAX_REQUEST_BYTES:
                self._refuse(BODY_TOO_LARGE)
                raise _Ended
            self._body = bytearray()
            return
        else:
            manner = self._manner(headers)
        self._finish((target, headers, manner, None))

    def on_body(self, part: bytes) -> None:
        assert self._body is not None
        self._body += part

    def on_message_complete(self) -> None:
        if self._body is not None:
            body, self._body = bytes(self._body), None
            self._finish((self._target, self._headers, self._manner(self._headers, is_read=True), body))

    def _finish(self, request: Request) -> None:
        self._target, self._headers, self.head_bytes = b"", {}, 0
        self._complete = True
        self._found.append(request)
        if request[2].closes:
            self._ended = True
            raise _Ended

    def _carries_keys(self, headers: dict[bytes, bytes]) -> bool:
        """Whether it is a request for many keys, which come in a body whose length is said."""
        return (
            self._parser.get_method() == METHOD
            and headers.get(b"content-type") == KEYS_TYPE
            and b"content-length" in headers
            and not self._parser.should_upgrade()
        )

    def _manner(self, headers: dict[bytes, bytes], is_read: bool = False) -> Manner:
        """``is_read``: its body, which carries keys."""
        parser = self._parser
        old = parser.get_http_version() < "1.1"
        if b"host" not in headers and not old:
            self._refuse(NO_HOST)
            raise _Ended
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"").strip(b"0") != b""
        closes = (has_body and not is_read) or not parser.should_keep_alive() or parser.should_upgrade()
        method = parser.get_method()
        return Manner(method not in METHODS and not is_read, method == b"HEAD", closes, old)
