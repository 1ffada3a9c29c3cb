"""Look at the example that serves on a port: its page, and a tile that is loaded once and comes from the cache then."""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path


def get(path: str) -> tuple[HTTPMessage, bytes]:
    connection = HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, f"{path}: got status {response.status}, expected 200: {body!r}"
    return response.headers, body


_, page = get("/")
expected = Path("examples/gunicorn_app/static/page.html").read_bytes()
assert page == expected, f"got a page of {len(page)} bytes, expected page.html's {len(expected)}: {page!r}"

# The second may meet the value on its way to the coordinator.
for among in ({"load"}, {"hit", "wait"}):
    headers, tile = get("/tile/3/1/4.jpg")
    how = headers["Server-Timing"]
    assert any(f"desc={word};" in how for word in among), f"tile: got {how}, expected {' or '.join(sorted(among))}"
    assert tile.startswith(b"\xff\xd8"), f"tile: got {tile[:16]!r}, expected a JPEG"
print(f"The page and its tile are served; the tile's second answer: {how}")
