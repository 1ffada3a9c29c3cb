"""The same application for asyncio.

``WORKER_CLASS=asgi gunicorn -c examples/gunicorn_app/gunicorn.conf.py examples.gunicorn_app.asgi:app``
"""

from __future__ import annotations

import asyncio
from typing import Any

from examples.gunicorn_app import cache, pages
from examples.gunicorn_app.storm import storm


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve the page, its pictures, the counters, the changes and the storm."""
    if scope["type"] != "http":  # an error is how a server learns that there is no lifespan to be managed
        raise NotImplementedError(f"scope: got {scope['type']!r}, expected 'http'")
    method, path = scope["method"], scope["path"]
    if method == "GET" and (found := cache.find(path)) is not None:
        answer = await cache.aget(*found)  # a hit comes back without a turn of the loop
        await _send(send, 200, answer.headers, memoryview(answer.view))  # not copied; kept while anybody refers to it
        return
    await _send(send, *(await _post(scope) if method == "POST" else pages.reply(path)))


async def _post(scope: dict[str, Any]) -> pages.Reply:
    match scope["path"].split("/", 2)[1:]:
        case ["remove", picture] if found := cache.find(f"/{picture}"):
            group, key = found
            return pages.json_reply({"removed": await group.aremove(key)})  # whether it was there
        case ["clear", kind] if kind in cache.GROUPS:
            await cache.GROUPS[kind].aclear()
            return pages.json_reply({"cleared": kind})
        case ["storm"]:
            return pages.json_reply(await asyncio.to_thread(storm, *scope["server"]))
    return pages.NOT_FOUND


async def _send(send: Any, status: int, headers: list[tuple[str, str]], body: bytes | memoryview) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
