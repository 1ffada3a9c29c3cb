"""The example under real gunicorn: its pictures, what it tells of each request, their ages, changes, and its storm."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from servers import Response, Server, is_asgi
from workers import advance, wait_until

from examples.gunicorn_app import pictures

EXAMPLE = Path(pictures.__file__).parent
TILE = "/tile/3/1/4.jpg"


@pytest.fixture
def serve_example(serve: Callable[..., Server]) -> Callable[[str], Server]:
    """Serve the example: ``serve_example(worker_class)``."""

    def start(worker_class: str) -> Server:
        application = f"examples.gunicorn_app.{'asgi' if is_asgi(worker_class) else 'app'}:app"
        return serve(worker_class, "--no-control-socket", application=application, config=EXAMPLE / "gunicorn.conf.py")

    return start


def how(response: Response) -> str:
    """How a picture was answered."""
    match = re.fullmatch(r"cache;desc=(hit|stale|load|wait);dur=[\d.]+", response.headers["Server-Timing"])
    assert match is not None
    return match[1]


def fresh_for(response: Response) -> float:
    """For how many seconds a picture is still fresh."""
    return float(response.headers["X-Fresh-For"])


def until_hit(server: Server, path: str) -> Response:
    """Ask for a picture until it is a hit. So soon after its load it may not have come to the coordinator yet."""
    response: Response = wait_until(lambda: how(answer := server.request(path)) == "hit" and answer, f"a hit of {path}")
    return response


@pytest.mark.parametrize("worker_class", ["gthread", "sync", "gevent", "asgi"])
def test_the_example_serves_its_page(serve_example: Callable[[str], Server], worker_class: str) -> None:
    server = serve_example(worker_class)
    page = server.request("/")
    assert page.headers["Content-Type"].startswith("text/html")
    for name in re.findall(rb'(?:href|src)="(page\.\w+)"', page.body):
        assert server.request(f"/{name.decode()}").body == (EXAMPLE / "static" / name.decode()).read_bytes()

    first, *others = (server.request(TILE) for _ in range(8))
    assert how(first) == "load"
    assert "load" not in {how(other) for other in others}
    assert how(others[-1]) == "hit"  # the first of them may have met the value on its way to the coordinator
    assert {response.body for response in (first, *others)} == {pictures.render_tile(3, 1, 4)}
    for name in server.page("/stats")["thumbnails"]:
        thumbnail = server.request(f"/thumbnail/{name}.jpg")
        with Image.open(io.BytesIO(thumbnail.body)) as image:
            assert image.size == pictures.THUMBNAIL

    answers = [request["how"] for request in server.page("/storm", "POST")["requests"]]
    assert (len(answers), answers.count("load")) == (20, 1)
    tiles = server.page("/stats")["groups"]["tile"]
    assert (tiles["local_loads"], tiles["main_items"], tiles["gets"]) == (2, 2, 28)
    assert tiles["cache_hits"] + tiles["loads_deduped"] == 26


@pytest.mark.parametrize("worker_class", ["gthread", "sync", "gevent", "asgi"])
def test_a_picture_grows_old(serve_example: Callable[[str], Server], worker_class: str) -> None:
    server = serve_example(worker_class)
    ttl, stale_for = server.page("/stats")["ages"].values()
    server.request(TILE)
    fresh = until_hit(server, TILE)
    assert 0 < fresh_for(fresh) <= ttl

    advance(server.socket_path, ttl + 1)  # more, since the clock of a hit is some milliseconds late
    stale = server.request(TILE)
    assert how(stale) == "stale"
    assert -stale_for < fresh_for(stale) <= 0
    assert (stale.body, stale.headers["ETag"]) == (fresh.body, fresh.headers["ETag"])
    renewed = until_hit(server, TILE)
    assert 0 < fresh_for(renewed) <= ttl
    assert renewed.headers["ETag"] != fresh.headers["ETag"]
    tiles = server.page("/stats")["groups"]["tile"]
    assert (tiles["refreshes"], tiles["local_loads"]) == (1, 2)  # however many have met it while it was stale
    assert tiles["stale_hits"] >= 1

    advance(server.socket_path, ttl + stale_for + 1)
    assert how(server.request(TILE)) == "load"


@pytest.mark.parametrize("worker_class", ["gthread", "asgi"])
def test_pictures_are_removed(serve_example: Callable[[str], Server], worker_class: str) -> None:
    server = serve_example(worker_class)
    others = ["/tile/3/2/4.jpg", "/thumbnail/agate.jpg"]
    versions = []
    for path in (TILE, *others):
        server.request(path)
        versions.append(until_hit(server, path).headers["ETag"])

    assert server.page(f"/remove{TILE}", "POST") == {"removed": True}
    assert server.page(f"/remove{TILE}", "POST") == {"removed": False}
    assert [how(server.request(path)) for path in (TILE, *others)] == ["load", "hit", "hit"]
    assert until_hit(server, TILE).headers["ETag"] not in versions

    assert server.page("/clear/tile", "POST") == {"cleared": "tile"}
    assert [how(server.request(path)) for path in (TILE, *others)] == ["load", "load", "hit"]
    groups = server.page("/stats")["groups"]
    assert (groups["tile"]["local_loads"], groups["thumbnail"]["local_loads"]) == (5, 1)
    assert (groups["tile"]["removals"], groups["thumbnail"]["removals"]) == (3, 0)

    until_hit(server, TILE)
    for request in [
        (f"/remove{TILE}", "GET"),
        ("/clear/tile", "GET"),
        (TILE, "POST"),
        ("/remove", "POST"),
        ("/remove/tile/3/8/0.jpg", "POST"),
        ("/clear/none", "POST"),
        (f"/clear{TILE}", "POST"),
    ]:
        assert server.request(*request, status=404).body == b"no such page\n"
    assert how(server.request(TILE)) == "hit"


@pytest.mark.parametrize("path", ["/tile/3/8/0.jpg", "/tile/41/0/0.jpg", "/thumbnail/none.jpg", "/../app.py", "/none"])
def test_what_does_not_exist_is_not_loaded(path: str) -> None:
    from examples.gunicorn_app import cache, pages

    assert cache.find(path) is None
    assert pages.reply(path).status == 404


def test_a_tile_on_the_coast_is_worth_a_look() -> None:
    with Image.open(io.BytesIO(pictures.render_tile(*pictures.random_coast_tile()))) as tile:
        assert tile.size == (pictures.TILE, pictures.TILE)
        assert len(tile.convert("L").getcolors() or []) > 100
