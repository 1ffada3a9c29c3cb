"""What the WSGI and the ASGI application have in common: everything but the pictures' way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from examples.gunicorn_app import cache, pictures

_STATIC = Path(__file__).with_name("static")
_FILES = {
    "/": ("text/html; charset=utf-8", (_STATIC / "page.html").read_bytes()),
    "/page.css": ("text/css; charset=utf-8", (_STATIC / "page.css").read_bytes()),
    "/page.js": ("text/javascript; charset=utf-8", (_STATIC / "page.js").read_bytes()),
}


class Reply(NamedTuple):
    """A whole response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def reply(path: str) -> Reply:
    """Answer a GET of anything that is no picture."""
    if path in _FILES:
        content_type, body = _FILES[path]
        return _reply(200, content_type, body)
    if path == "/stats":
        ages = {"ttl": cache.TTL, "stale": cache.STALE}
        return json_reply({"groups": cache.stats(), "thumbnails": list(pictures.PLATES), "ages": ages})
    return NOT_FOUND


def json_reply(content: Any) -> Reply:
    """Answer with JSON."""
    return _reply(200, "application/json", json.dumps(content).encode())


def _reply(status: int, content_type: str, body: bytes) -> Reply:
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    return Reply(status, headers, body)


NOT_FOUND = _reply(404, "text/plain", b"no such page\n")
