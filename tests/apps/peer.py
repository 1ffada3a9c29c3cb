"""An application that serves peers itself: ``pool.wsgi`` and ``pool.asgi``, mounted beside a page of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mpgroupcache
from mpgroupcache.net.hooks import PeerRequest


def context(request: PeerRequest) -> dict[str, str]:
    if request.key == b"bad context":
        raise KeyError("x-who")
    return {"group": request.group, "who": request.headers.get("x-who", "nobody"), "remote": request.remote}


def load(ctx: Any, key: str | bytes, dest: mpgroupcache.Sink) -> None:
    """What Go peers of the tests load, but for some keys."""
    raw = key if isinstance(key, bytes) else key.encode()
    if raw.startswith(b"ctx"):
        dest.set_string(f"{ctx['group']} {ctx['who']} {ctx['remote']}")
    elif raw.startswith(b"fail:"):
        raise ValueError(raw[5:].decode())
    elif raw.startswith(b"none:"):
        raise mpgroupcache.NotFound(raw[5:].decode())
    elif raw.startswith(b"once:"):
        dest.set_bytes(raw, ttl=0)
    elif raw.startswith(b"size:"):
        dest.set_bytes(b"x" * int(raw[5:]))
    else:
        dest.set_bytes(b"V:g:" + raw)


async def load_async(ctx: Any, key: str | bytes, dest: mpgroupcache.Sink) -> None:
    load(ctx, key, dest)


pool = mpgroupcache.HTTPPool("http://127.0.0.1:1", context=context)
group = mpgroupcache.new_group("g", "16MiB", load)
aged = mpgroupcache.new_group("aged", "16MiB", load, ttl=1000, stale=9000, negative_ttl=1000)
plain = mpgroupcache.new_group("plain", "16MiB")
async_group = mpgroupcache.new_group("async", "16MiB", load_async)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"].startswith(pool.base_path):
        return pool.wsgi(environ, start_response)
    body = str(group.stats.server_requests).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http" and not scope["path"].startswith(pool.base_path):
        body = str(group.stats.server_requests).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    else:
        await pool.asgi(scope, receive, send)
