"""A request through an application's transport, such as a proxy's, or through Python's (Go: ``HTTPPool.Transport``).

A transport is what ``urllib.request.build_opener`` returns, or anything with such an ``open``. It blocks.
"""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

from mpgroupcache.errors import ProtocolError
from mpgroupcache.net.outcomes import Reply
from mpgroupcache.net.peerwire import MAX_ERROR_BYTES
from mpgroupcache.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpgroupcache.net.hooks import Opener

_READ_BYTES: Final = 64 << 10


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any) -> None:
        """Follow none: it may be another key's value, as where Go's ServeMux cleans a path."""


class _Until(io.RawIOBase):
    """What comes on a socket until a deadline, however slowly. A socket's own timeout begins anew with each byte."""

    def __init__(self, raw: io.RawIOBase, sock: Any, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that is there, head and body, within the timeout of its connection."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout = sock.gettimeout()
        if timeout is not None:
            self.fp = io.BufferedReader(_Until(self.fp.detach(), sock, time.monotonic() + timeout))


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _TLSConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _TLSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TLSConnection, request)


_DEFAULT: Final = urllib.request.build_opener(_Handler, _TLSHandler, _NoRedirects, urllib.request.ProxyHandler({}))


def default_transport(_ctx: Any) -> Opener:
    """Ask directly, without the environment's proxies."""
    return _DEFAULT


class TooLarge(ProtocolError):
    """A peer answered with more than this host takes."""


class NoAnswer(ProtocolError):
    """What a peer answered is no answer to what it was asked, or none whose end one could know."""


def round_trip(opener: Opener, url: str, headers: Mapping[str, str], timeout: float, max_bytes: int) -> Reply:
    """Make a request and read its whole response.

    Raises ``OSError``, also for a response that is cut off; ``TooLarge`` for one of more than that, ``NoAnswer``.
    """
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        if response.url != url:
            raise NoAnswer(f"its transport followed a redirect to {response.url}, which may be another key")
        fields = [
            (name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers.items()
        ]
        limit = max_bytes if response.status == 200 else MAX_ERROR_BYTES
        body = _read_body(response, deadline, limit)
        if len(body) > limit and response.status == 200:
            raise TooLarge(f"answered with more than {format_size(max_bytes)} (max_response_bytes)")
        return Reply(response.status, fields, body[:limit])


def _read_body(response: Any, deadline: float, limit: int) -> bytes:
    """The whole body, or a little more than ``limit`` of it.

    What is cut off, or may be, is no value: that would be empty, or lack its end.
    """
    length = response.headers.get("Content-Length")
    chunked = response.headers.get("Transfer-Encoding", "").lower().endswith("chunked")
    if length is None and not chunked:
        raise NoAnswer(f"answered {response.status} with neither Content-Length nor chunks")
    parts = []
    size = 0
    while size <= limit:
        try:
            part = response.read1(min(_READ_BYTES, limit + 1 - size))
        except http.client.HTTPException as error:
            raise ConnectionError(f"connection closed after {size} bytes of a body in chunks") from error
        if not part:
            break
        parts.append(part)
        size += len(part)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no whole answer in time: got {size} bytes")
    if size <= limit and length is not None and not chunked and size != int(length):
        raise ConnectionError(f"connection closed after {size} bytes of {length}")
    return b"".join(parts)
