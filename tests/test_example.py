"""The example under real gunicorn: its pictures, what it tells of each request, and its storm."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from servers import Response, Server, is_asgi

from examples.gunicorn_app import pictures

EXAMPLE = Path(pictures.__file__).parent


def how(response: Response) -> str:
    """How a picture was answered."""
    match = re.fullmatch(r"cache;desc=(hit|load|wait);dur=[\d.]+", response.headers["Server-Timing"])
    assert match is not None
    return match[1]


@pytest.mark.parametrize("worker_class", ["gthread", "sync", "gevent", "asgi"])
def test_the_example_serves_its_page(serve: Callable[..., Server], worker_class: str) -> None:
    module = "asgi" if is_asgi(worker_class) else "app"
    application = f"examples.gunicorn_app.{module}:app"
    server = serve(worker_class, "--no-control-socket", application=application, config=EXAMPLE / "gunicorn.conf.py")
    page = server.request("/")
    assert page.headers["Content-Type"].startswith("text/html")
    for name in re.findall(rb'(?:href|src)="(page\.\w+)"', page.body):
        assert server.request(f"/{name.decode()}").body == (EXAMPLE / "static" / name.decode()).read_bytes()

    first, *others = (server.request("/tile/3/1/4.jpg") for _ in range(8))
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


@pytest.mark.parametrize("path", ["/tile/3/8/0.jpg", "/tile/41/0/0.jpg", "/thumbnail/none.jpg", "/../app.py", "/none"])
def test_what_does_not_exist_is_not_loaded(path: str) -> None:
    from examples.gunicorn_app import cache, pages

    assert cache.find(path) is None
    assert pages.reply(path).status == 404


def test_a_tile_on_the_coast_is_worth_a_look() -> None:
    with Image.open(io.BytesIO(pictures.render_tile(*pictures.random_coast_tile()))) as tile:
        assert tile.size == (pictures.TILE, pictures.TILE)
        assert len(tile.convert("L").getcolors() or []) > 100
