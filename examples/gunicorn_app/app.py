"""The WSGI application: ``gunicorn -c examples/gunicorn_app/gunicorn.conf.py examples.gunicorn_app.app:app``"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from examples.gunicorn_app import cache, pages
from examples.gunicorn_app.storm import storm


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]) -> Iterable[bytes]:
    """Serve the page, its pictures, the counters, the changes and the storm."""
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if method == "GET" and (found := cache.find(path)) is not None:
        answer = cache.get(*found)
        start_response("200 OK", answer.headers)
        return answer.view.chunks()  # the bytes stay where they are until the server has sent them or closes this
    reply = _post(environ) if method == "POST" else pages.reply(path)
    start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", reply.headers)
    return [reply.body]


def _post(environ: dict[str, Any]) -> pages.Reply:
    match environ["PATH_INFO"].split("/", 2)[1:]:
        case ["remove", picture] if found := cache.find(f"/{picture}"):
            group, key = found
            return pages.json_reply({"removed": group.remove(key)})  # whether it was there
        case ["clear", kind] if kind in cache.GROUPS:
            cache.GROUPS[kind].clear()
            return pages.json_reply({"cleared": kind})
        case ["storm"]:
            return pages.json_reply(storm(environ["SERVER_NAME"], int(environ["SERVER_PORT"])))
    return pages.NOT_FOUND
