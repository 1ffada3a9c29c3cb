"""Twenty clients who want the same new picture at the same moment.

A browser sends six requests to one server at a time, so the storm is made here. It goes through the server's front
door: every request is HTTP, to whichever worker accepts it.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from examples.gunicorn_app import pictures

CLIENTS = 20
TIMEOUT = 20.0  # s

_TIMING = re.compile(r"cache;desc=(\w+);dur=([\d.]+)")


def storm(host: str, port: int) -> dict[str, Any]:
    """Ask this server ``CLIENTS`` times at once for one tile, and return how each request was answered."""
    path = "/tile/{}/{}/{}.jpg".format(*pictures.random_coast_tile())
    ready = threading.Barrier(CLIENTS)

    def ask(_: int) -> dict[str, Any]:
        connection = HTTPConnection(host, port, timeout=TIMEOUT)
        try:
            connection.connect()
            ready.wait(TIMEOUT)
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        finally:
            connection.close()
        match = _TIMING.search(response.headers["Server-Timing"])
        assert match is not None
        return {"how": match[1], "milliseconds": float(match[2]), "worker": response.headers["X-Worker"]}

    with ThreadPoolExecutor(CLIENTS) as pool:
        return {"path": path, "requests": list(pool.map(ask, range(CLIENTS)))}
