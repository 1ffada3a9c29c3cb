"""The application that tests serve with gunicorn. Its loaders tell of each load, and hold where a key says so.

Pages: ``/get/KEY`` and, under ASGI, ``/aget/KEY`` (an async loader's); ``/process`` and ``/stats`` tell of this process
and of the host; ``/warm`` is a value that was got at import, where ``TEST_WARM`` is set. What the loaders tell goes to
the file ``events`` in the directory ``TEST_DIRECTORY``.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workers import value_of

import mpgroupcache
from mpgroupcache.worker import process

DIRECTORY = Path(os.environ["TEST_DIRECTORY"])
PATIENCE = 30.0  # s; a test that has not released its loader by then has failed
IMPORTED_BY = os.getpid()


def tell(event: str, key: str) -> None:
    """Append to ``events``; one write of less than a page is never torn."""
    with (DIRECTORY / "events").open("ab", buffering=0) as file:
        file.write(f"{event} {os.getpid()} {key}\n".encode())


def held(key: str) -> bool:
    """Whether the loader of a ``hold:NAME`` key has to wait: until there is a file of that name."""
    return key.startswith("hold:") and not (DIRECTORY / key.removeprefix("hold:")).exists()


def load(_ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
    tell("load", key)
    deadline = time.monotonic() + PATIENCE
    while held(key) and time.monotonic() < deadline:
        time.sleep(0.005)  # the pace of looking
    dest.set_bytes(value_of(key))


async def load_async(_ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
    tell("load", key)
    async with asyncio.timeout(PATIENCE):
        while held(key):
            await asyncio.sleep(0.005)
    dest.set_bytes(value_of(key))


group = mpgroupcache.new_group("plain", "16MiB", load)
async_group = mpgroupcache.new_group("async", "16MiB", load_async)
warm = group.get("warm") if "TEST_WARM" in os.environ else None

Headers = list[tuple[str, str]]


def headers_for(length: int) -> Headers:
    return [("Content-Type", "text/plain"), ("Content-Length", str(length)), ("X-Worker", str(os.getpid()))]


def page(path: str) -> bytes:
    """What the other pages answer."""
    if path == "/warm":
        return bytes(warm or b"")
    if path == "/process":
        link = process.current().working_link
        threads = [thread.name for thread in threading.enumerate()]
        return json.dumps({"imported_by": IMPORTED_BY, "linked": link is not None, "threads": threads}).encode()
    assert path == "/stats", path
    return json.dumps({group.name: asdict(group.stats) for group in (group, async_group)}).encode()


def app(environ: dict[str, Any], start_response: Callable[[str, Headers], Any]) -> Iterable[bytes]:
    path: str = environ["PATH_INFO"]
    if path.startswith("/get/"):
        key = path.removeprefix("/get/")
        tell("ask", key)
        view = group.get(key)
        start_response("200 OK", headers_for(len(view)))
        return view.chunks()
    body = page(path)
    start_response("200 OK", headers_for(len(body)))
    return [body]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    path: str = scope["path"]
    body: bytes | memoryview
    if path.startswith(("/get/", "/aget/")):
        _, kind, key = path.split("/", 2)
        tell("ask", key)
        body = memoryview(await (async_group if kind == "aget" else group).aget(key))
    else:
        body = page(path)
    headers = [(name.lower().encode(), value.encode()) for name, value in headers_for(len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
