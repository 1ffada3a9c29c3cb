"""The work that is worth caching: map tiles of the Mandelbrot set, and thumbnails of the pictures in ``plates/``.

Nothing here knows of a cache. A picture takes some 10 to 200 ms of one core.
"""

from __future__ import annotations

import cmath
import io
import math
import random
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter

PLATES = {path.stem: path for path in sorted(Path(__file__).with_name("plates").glob("*.jpg"))}
"""The source pictures by name."""

TILE = 256  # pixels; what web maps use
MAX_ZOOM = 40  # a pixel is then 2**-46 wide: deeper, and neighbours are one double
THUMBNAIL = (320, 240)  # pixels

_LEFT, _TOP, _WIDTH = -2.65, -2.0, 4.0  # of what the one tile of zoom 0 shows; imaginary numbers grow downwards
_COMPUTED = 384  # pixels a side that a tile is computed with, and shrunk from: the coast is all fine detail
_STRIPS = 8  # that a tile is computed in


def has_tile(zoom: int, x: int, y: int) -> bool:
    """Whether the map has this tile: 4**zoom tiles cover the plane."""
    return 0 <= zoom <= MAX_ZOOM and 0 <= x < 1 << zoom and 0 <= y < 1 << zoom


def render_tile(zoom: int, x: int, y: int) -> bytes:
    """Compute a tile of the map, as JPEG."""
    span = _WIDTH / (1 << zoom)
    left, top = _LEFT + x * span, _TOP + y * span
    levels = Image.new("L", (_COMPUTED, _COMPUTED))
    # In strips because Pillow keeps the GIL while it computes one: in between, this worker's other threads have hits to
    # serve.
    size = _COMPUTED, _COMPUTED // _STRIPS
    for strip in range(_STRIPS):
        upper, lower = (top + span * (strip + i) / _STRIPS for i in (0, 1))
        part = Image.effect_mandelbrot(size, (left, upper, left + span, lower), _iterations(zoom))
        levels.paste(part, (0, strip * size[1]))
    levels.putpalette(_PALETTE)
    return _jpeg(levels.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))


def render_thumbnail(name: str) -> bytes:
    """Decode a source picture and make a thumbnail of it, as JPEG."""
    with Image.open(PLATES[name]) as plate:
        scale = max(THUMBNAIL[0] / plate.width, THUMBNAIL[1] / plate.height)
        small = plate.resize((round(plate.width * scale), round(plate.height * scale)), Image.Resampling.LANCZOS)
    left, top = (small.width - THUMBNAIL[0]) // 2, (small.height - THUMBNAIL[1]) // 2
    cut = small.crop((left, top, left + THUMBNAIL[0], top + THUMBNAIL[1]))
    return _jpeg(ImageEnhance.Color(cut.filter(ImageFilter.UnsharpMask(radius=1, percent=60))).enhance(1.1))


def random_coast_tile() -> tuple[int, int, int]:
    """Return a tile somewhere on the coast of the set, far enough in that hardly anybody has seen it."""
    zoom = random.randint(9, 15)
    span = _WIDTH / (1 << zoom)
    while True:
        coast = _random_coast()
        x, y = int((coast.real - _LEFT) / span), int((coast.imag - _TOP) / span)
        places = [complex(_LEFT + (x + i / 5) * span, _TOP + (y + j / 5) * span) for i in range(6) for j in range(6)]
        if sum(map(_escapes, places)) > 24:  # else most of the tile is land, which is black
            return zoom, x, y


def _random_coast() -> complex:
    """Walk from the middle of the set in some direction, halving the step, to where points begin to escape."""
    inside, outside = 0j, cmath.rect(2.0, random.uniform(0.0, math.tau))
    while abs(outside - inside) > 1e-12:
        middle = (inside + outside) / 2
        if _escapes(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _escapes(point: complex) -> bool:
    z = 0j
    for _ in range(400):
        z = z * z + point
        if abs(z) > 2:
            return True
    return False


def _iterations(zoom: int) -> int:
    """After so many steps a point counts as inside. The deeper, the longer the points beside the coast take."""
    return 160 + 24 * zoom


def _make_palette() -> list[int]:
    """256 colours from the open sea (quick escapes) to the coast; 0 is the set itself."""
    stops = [(6, 20, 48), (14, 62, 110), (46, 138, 168), (196, 226, 214), (250, 236, 190), (240, 164, 62),
             (150, 46, 40), (48, 16, 52), (20, 60, 104), (118, 190, 196), (252, 240, 206), (224, 128, 52),
             (92, 24, 52)]  # fmt: skip
    colours = [(8, 10, 18)]
    for level in range(1, 256):
        at = (level / 255) ** 0.55 * (len(stops) - 1)  # most of the plane escapes early: give that more colours
        low = min(int(at), len(stops) - 2)
        colours.append(tuple(round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True)))
    return [channel for colour in colours for channel in colour]


_PALETTE = _make_palette()


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
