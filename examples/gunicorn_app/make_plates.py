"""Make the source pictures of the example: ``python -m examples.gunicorn_app.make_plates``, a minute or two.

They are in the repository; this says where they come from. Each is drawn pixel by pixel from seeded noise or a formula,
so that the result is the same everywhere.
"""

from __future__ import annotations

import cmath
import math
from array import array
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

from PIL import Image, ImageChops, ImageFilter

Colour = tuple[float, float, float]
WIDTH, HEIGHT = 1200, 900  # pixels


class Noise:
    """Smooth random hills: layers of random dots, each finer and fainter, from 0 to 1 and without edges."""

    def __init__(self, seed: int, cells: int, layers: int = 7) -> None:
        random = Random(seed)
        total = array("f", bytes(4 * WIDTH * HEIGHT))
        for layer in range(layers):
            across, down = max(2, cells << layer), max(2, (cells << layer) * HEIGHT // WIDTH)
            dots = Image.frombytes("L", (across, down), random.randbytes(across * down)).convert("F")
            smooth = dots.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).tobytes()
            for at, height in enumerate(memoryview(smooth).cast("f")):
                total[at] += height / 2**layer
        low, high = min(total), max(total)
        self._heights = array("f", ((height - low) / (high - low) for height in total))

    def __call__(self, x: float, y: float) -> float:
        return self._heights[_mirrored(y, HEIGHT) * WIDTH + _mirrored(x, WIDTH)]


def _mirrored(at: float, size: int) -> int:
    """A place beyond the edge is as far inside: no seam shows."""
    inside = int(at) % (2 * size)
    return inside if inside < size else 2 * size - 1 - inside


def paint(colour_at: Callable[[int, int], Colour]) -> Image.Image:
    """Draw a picture; colours are from 0 to 1, and are cut to that."""
    pixels = bytearray()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            pixels += bytes(min(255, max(0, round(255 * channel))) for channel in colour_at(x, y))
    return Image.frombytes("RGB", (WIDTH, HEIGHT), bytes(pixels))


def ramp(at: float, *stops: tuple[float, str]) -> Colour:
    """The colour at a place between stops of ``(place, "rrggbb")``."""
    at = min(max(at, stops[0][0]), stops[-1][0])
    for (low, first), (high, second) in pairwise(stops):
        if at <= high:
            return mix(_parse(first), _parse(second), (at - low) / (high - low))
    return _parse(stops[-1][1])


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share


def _parse(colour: str) -> Colour:
    red, green, blue = bytes.fromhex(colour)
    return red / 255, green / 255, blue / 255


def archipelago() -> Image.Image:
    """A map: heights as colours, lit from the north-west."""
    height = Noise(7, 4)

    def colour_at(x: int, y: int) -> Colour:
        here = height(x, y)
        tint = ramp(here, (0.1, "0b2a4a"), (0.40, "1f6f9a"), (0.495, "8fd0cf"), (0.5, "e6d9a8"), (0.53, "9dbb6a"),
                    (0.62, "4f8a4b"), (0.74, "8a7350"), (0.86, "d8d2c8"), (0.95, "ffffff"))  # fmt: skip
        slope = height(x - 2, y - 2) - height(x + 2, y + 2)
        light = 1 - slope * (9 if here > 0.5 else 1.5)
        return tint[0] * light, tint[1] * light, tint[2] * light

    return paint(colour_at)


def ridges() -> Image.Image:
    """Mountains behind mountains in the evening, each farther one paler."""
    noise = [Noise(20 + i, 3 + i) for i in range(6)]
    tops = [[0.42 + 0.1 * i - (0.34 - 0.03 * i) * (noise[i](x, 97 * i) - 0.5) for x in range(WIDTH)] for i in range(6)]

    def colour_at(x: int, y: int) -> Colour:
        at = y / HEIGHT
        sky = ramp(at, (0.0, "26456e"), (0.22, "b6718a"), (0.38, "f6a96b"), (0.5, "ffe3a8"))
        far = math.hypot(x / WIDTH - 0.66, (at - 0.36) * HEIGHT / WIDTH)
        colour = mix(sky, (1.0, 0.96, 0.82), min(1.0, 0.0016 / far**2)) if far > 0.035 else (1.0, 0.97, 0.86)
        for i in range(6):
            if at > tops[i][x]:
                rock = mix(_parse("f2b58a"), _parse("141a33"), (i + 1) / 6.3)
                haze = min(1.0, (at - tops[i][x]) * 4)
                colour = mix(rock, _parse("f0b892"), 0.3 * haze / (i + 1))
        return colour

    return paint(colour_at).filter(ImageFilter.GaussianBlur(0.6))


def nebula() -> Image.Image:
    """Glowing clouds before stars."""
    clouds, dust, tint = Noise(31, 3), Noise(32, 5), Noise(33, 2)
    random = Random(34)
    stars = {}
    for _ in range(1500):
        x, y, brightness = random.randrange(WIDTH), random.randrange(HEIGHT), random.random() ** 4
        stars.update({(x + dx, y + dy): brightness for dx in (0, 1) for dy in (0, 1)})

    def colour_at(x: int, y: int) -> Colour:
        glow = max(0.0, clouds(x, y) - 0.28) * 2.1 * (1.25 - dust(x, y))
        hue = ramp(tint(x, y), (0.25, "3a4fd0"), (0.5, "c0407f"), (0.75, "ffb066"))
        star = stars.get((x, y), 0.0) * 1.6
        return tuple(0.02 + channel * glow + glow**3 * 0.8 + star for channel in hue)  # type: ignore[return-value]

    image = paint(colour_at)
    return ImageChops.screen(image, image.filter(ImageFilter.GaussianBlur(3)))


def agate() -> Image.Image:
    """A cut stone: rings whose places are pushed about by noise, which is pushed about by noise."""
    first, second, grain = Noise(41, 3, 5), Noise(42, 3, 5), Noise(43, 24, 4)

    def colour_at(x: int, y: int) -> Colour:
        across = x + 260 * first(x, y)
        down = y + 260 * second(x, y)
        depth = math.hypot(across - 760, (down - 560) * 1.2) / 520 + 0.55 * first(across, down)
        band = 0.5 + 0.5 * math.sin(depth * 34) * math.cos(depth * 9)
        stone = ramp(depth % 1.0, (0.0, "f4e7cf"), (0.25, "c9793f"), (0.45, "7c2d2b"), (0.6, "2f4a5f"), (0.8, "a9c7c4"),
                     (1.0, "f4e7cf"))  # fmt: skip
        light = 0.72 + 0.36 * band + 0.12 * (grain(x, y) - 0.5)
        return stone[0] * light, stone[1] * light, stone[2] * light

    return paint(colour_at)


def coral() -> Image.Image:
    """Turing's pattern: what is bright brightens its neighbourhood and darkens what is a little farther away."""
    field = Image.frombytes("L", (WIDTH // 2, HEIGHT // 2), Random(51).randbytes(WIDTH * HEIGHT // 4))
    for _ in range(40):
        near, far = field.filter(ImageFilter.GaussianBlur(2.6)), field.filter(ImageFilter.GaussianBlur(5.2))
        field = ImageChops.subtract(near, far, scale=0.07, offset=128)
    relief = field.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3)).tobytes()
    depth = Noise(52, 2, 4)

    def colour_at(x: int, y: int) -> Colour:
        here = relief[y * WIDTH + x] / 255
        behind, ahead = max(y - 3, 0) * WIDTH + max(x - 3, 0), min(y + 3, HEIGHT - 1) * WIDTH + min(x + 3, WIDTH - 1)
        slope = (relief[behind] - relief[ahead]) / 255
        reef = ramp(depth(x, y), (0.2, "e4572e"), (0.5, "f3a712"), (0.8, "ea7fa2"))
        body = mix(_parse("0d2b45"), reef, here)
        light = 1 - 0.5 * slope
        return body[0] * light, body[1] * light, body[2] * light

    return paint(colour_at)


def julia() -> Image.Image:
    """A Julia set, coloured by how fast and in which direction points leave."""
    c = complex(-0.7269, 0.1889)

    def colour_at(x: int, y: int) -> Colour:
        z = complex((x - WIDTH / 2) / 400, (y - HEIGHT / 2) / 400)
        for step in range(260):
            z = z * z + c
            if abs(z) > 32:
                speed = step + 1 - math.log2(math.log(abs(z)) / math.log(32))
                colour = ramp(math.log1p(max(speed, 0.0)) / math.log(261), (0.15, "0a1128"), (0.45, "154a7d"),
                              (0.6, "2f9fb5"), (0.7, "f5e6c8"), (0.82, "e08a4a"), (1.0, "7a1f4a"))  # fmt: skip
                return mix(colour, (1.0, 1.0, 1.0), 0.08 * math.cos(cmath.phase(z)))
        return 0.03, 0.03, 0.06

    return paint(colour_at)


if __name__ == "__main__":
    folder = Path(__file__).with_name("plates")
    folder.mkdir(exist_ok=True)
    for draw in (agate, archipelago, coral, julia, nebula, ridges):
        draw().save(folder / f"{draw.__name__}.jpg", quality=82, optimize=True, progressive=True)
