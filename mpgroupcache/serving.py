"""Peers' requests, answered in a process of the application: a WSGI and an ASGI application (Go: ``ServeHTTP``).

What is answered is the peers' wire, as the coordinator's own server has it; which key is asked for is read from the raw
request target, since of a path that is unescaped already a plus may be a space.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from mpgroupcache.errors import DeadlineExceeded, LoadError, NotFound, describe_error
from mpgroupcache.group import Group
from mpgroupcache.net import peerwire
from mpgroupcache.net.ages import age_headers
from mpgroupcache.net.hooks import Context, PeerRequest
from mpgroupcache.registry import get_group
from mpgroupcache.shm._view import ByteView, dead_in

_TIMEOUT: Final = peerwire.TIMEOUT.decode().lower()
# Without the rates, which the coordinator alone knows, and without many keys at once.
_ABILITIES: Final = (
    peerwire.ABILITIES,
    peerwire.encode_abilities(set(peerwire.Ability) - {peerwire.Ability.BATCH, peerwire.Ability.RATE}),
)


class _Asked(NamedTuple):
    group: Group
    key: bytes
    ctx: Any
    timeout: float | None


def _check_method(method: str) -> None:
    """Raise ``RequestError`` for a request that is not to be looked at."""
    if method.encode("latin-1", "replace") not in peerwire.METHODS:
        raise peerwire.RequestError(f"method: got {method}, expected GET or HEAD", peerwire.METHOD_NOT_ALLOWED)


def _read(
    base_path: str, context: Context | None, raw: bytes | None, path: bytes, headers: dict[str, str], remote: str
) -> _Asked:
    """Return what a request asks for. Raises ``RequestError``."""
    if raw is None:
        if b"+" in path:  # a space of a Go client's, or a plus: a guess may answer with another key's value
            text = "the server gives no raw path (RAW_URI, REQUEST_URI or raw_path), and this one has a plus"
            raise peerwire.RequestError(text, peerwire.error_response(501, text))
        raw = peerwire.escape_path(path)
    name, key = peerwire.locate(base_path, raw)
    if (group := get_group(name)) is None or group.getter is None:  # without one it is this host's own
        raise peerwire.RequestError(f"no such group: {name}", peerwire.no_such_group(name.encode()))
    header = headers.get(_TIMEOUT)
    timeout = None if header is None else peerwire.decode_timeout(header.encode("latin-1", "replace"))
    ctx = None
    if context is not None:
        try:
            ctx = context(PeerRequest(name, key, headers, remote))
        except Exception as error:  # which says nothing of the key: the peer that asks loads it
            raise peerwire.RequestError(str(error), peerwire.error_response(500, f"context: {error}")) from error
    return _Asked(group, key, ctx, timeout)


def _explain(error: Exception, asked: _Asked | None) -> peerwire.ErrorResponse:
    """Return what an error is answered with."""
    match error:
        case peerwire.RequestError():
            return error.response
        case NotFound() if asked is not None:
            return peerwire.no_such_value(str(error), asked.group.absent_for(asked.key))
        case DeadlineExceeded():
            return peerwire.error_response(504, f"deadline exceeded: {error}")
        case LoadError():
            return peerwire.load_failed(error.type_name, error.message)
        case _:
            return peerwire.load_failed(*describe_error(error))


class _Body:
    """A value's message, in parts. It keeps the value until it is read or closed."""

    def __init__(self, view: ByteView) -> None:
        before, behind = peerwire.response_head(len(view))
        self.headers = [
            (b"Content-Type", peerwire.CONTENT_TYPE),
            _ABILITIES,
            *age_headers(view.ttl, dead_in(view), view.version),
            (b"Content-Length", b"%d" % (len(before) + len(view) + len(behind))),
        ]
        self._before = before
        self._chunks = view.chunks()
        view.release()

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        yield from self._chunks

    def close(self) -> None:
        self._chunks.close()


def _error_headers(response: peerwire.ErrorResponse) -> list[tuple[bytes, bytes]]:
    headers = [header for header in response.headers if header[0] != b"Connection"]  # which is the server's business
    return [*headers, _ABILITIES, (b"Content-Length", b"%d" % len(response.body))]


def wsgi(
    base_path: str, context: Context | None, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    """Answer one request."""

    def start(status: int, headers: list[tuple[bytes, bytes]]) -> None:
        texts = [(name.decode(), value.decode("latin-1")) for name, value in headers]
        start_response(f"{status} {HTTPStatus(status).phrase}", texts)

    asked = None
    try:
        _check_method(environ["REQUEST_METHOD"])
        raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
        path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1")
        headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
        asked = _read(base_path, context, raw and raw.encode("latin-1"), path, headers, environ.get("REMOTE_ADDR", ""))
        body = _Body(asked.group.serve(asked.key, asked.ctx, asked.timeout))
    except Exception as error:
        response = _explain(error, asked)
        start(response.status, _error_headers(response))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]
    start(200, body.headers)
    if environ["REQUEST_METHOD"] == "HEAD":
        body.close()
        return []
    return body


async def asgi(
    base_path: str,
    context: Context | None,
    scope: dict[str, Any],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer one request. Raises ``RuntimeError`` for another scope, such as a lifespan's: servers expect that."""
    if scope["type"] != "http":
        raise RuntimeError(f"HTTPPool.asgi: got a scope of type {scope['type']!r}, expected http")

    async def answer(status: int, headers: list[tuple[bytes, bytes]], parts: Iterable[bytes]) -> None:
        lower = [(name.lower(), value) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": lower})
        if scope["method"] != "HEAD":
            for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    asked = None
    try:
        _check_method(scope["method"])
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        remote = scope["client"][0] if scope.get("client") else ""
        asked = _read(base_path, context, scope.get("raw_path"), scope["path"].encode(), headers, remote)
        body = _Body(await asked.group.serve_async(asked.key, asked.ctx, asked.timeout))
    except Exception as error:
        response = _explain(error, asked)
        await answer(response.status, _error_headers(response), [response.body])
        return
    try:
        await answer(200, body.headers, body)
    finally:
        body.close()
