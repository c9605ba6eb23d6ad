"""Backgrounds cut from paper: a meadow, the sea, a forest, a city, the night, ... each a little different by style.

All have their horizon where the ground of ``gems.models.open.stage`` begins. They are drawn at twice the size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gems.models.open.stage import HORIZON

__all__ = ["Backdrop", "backdrop"]

Color = tuple[int, int, int]


class Backdrop(NamedTuple):
    """A background: the image, the colour that veils far things, and the light that falls on all of them."""

    image: Image.Image
    haze: Color
    light: tuple[float, float, float]


@lru_cache(maxsize=2)
def backdrop(name: str, style: int, size: int) -> Backdrop:
    """Draw a background.

    Args:
        name: One of BACKGROUNDS.
        style: Any non-negative integer; it selects colours, forms and places.
        size: Side in pixels.

    Returns:
        The backdrop, with an RGB image of ``size`` x ``size`` pixels. It is cached: copy it before drawing on it.
    """
    painter = _Painter(np.random.default_rng([style, len(name)]), 2 * size)
    haze, light = _SCENERY[name](painter)
    return Backdrop(painter.image.reduce(2), haze, light)


class _Painter:
    """A canvas with the shapes that backgrounds are made of. Coordinates are fractions of the canvas."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng, self.side = rng, side
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image, "RGBA")

    def vary(self, color: Color, amount: int = 8) -> Color:
        """A colour near the given one."""
        r, g, b = (int(np.clip(c + self.rng.integers(-amount, amount + 1), 0, 255)) for c in color)
        return r, g, b

    def choice(self, *options: Color) -> Color:
        """One of some colours, varied."""
        return self.vary(options[int(self.rng.integers(len(options)))])

    def sky(self, top: Color, bottom: Color, until: float = 1.0) -> None:
        """A gradient from the upper edge down to a height."""
        rows = max(2, round(self.side * until))
        ramp = np.linspace(0, 1, rows)[:, None]
        column = np.round(np.array(top) + (np.array(bottom) - np.array(top)) * ramp).astype(np.uint8)
        self.image.paste(Image.fromarray(column[:, None, :]).resize((self.side, rows)), (0, 0))

    def ground(self, top: Color, bottom: Color, start: float) -> None:
        """A gradient from a height down to the lower edge."""
        first = round(self.side * start)
        ramp = np.linspace(0, 1, self.side - first)[:, None]
        column = np.round(np.array(top) + (np.array(bottom) - np.array(top)) * ramp).astype(np.uint8)
        self.image.paste(Image.fromarray(column[:, None, :]).resize((self.side, self.side - first)), (0, first))

    def ridge(self, base: float, height: float, color: Color, waves: float = 1.0, rough: float = 0.0) -> None:
        """Hills or waves: all below a wavy line, with a soft shadow along its edge."""
        x = np.linspace(0, 1, 97)
        y = np.full_like(x, base)
        for _ in range(3):
            y -= (
                height
                * self.rng.uniform(0.15, 0.5)
                * np.sin(2 * np.pi * (waves * self.rng.uniform(0.4, 1.6) * x + self.rng.random()))
            )
        y += rough * self.rng.standard_normal(len(x))
        edge = [*zip(x.tolist(), y.tolist(), strict=True), (1.0, 1.0), (0.0, 1.0)]
        points = [(self.side * p, self.side * q) for p, q in edge]
        rim = Image.new("L", (self.side // 4, self.side // 4))
        ImageDraw.Draw(rim).polygon([(p / 4, q / 4 - self.side / 340) for p, q in points], fill=46)
        rim = rim.filter(ImageFilter.GaussianBlur(self.side / 500)).resize((self.side, self.side))
        self.image.paste((40, 36, 60), (0, 0), rim)
        self.polygon(points, color)

    def polygon(self, points: list[tuple[float, float]], color: Color | tuple[int, int, int, int]) -> None:
        """A filled shape, in pixels."""
        self.pen.polygon(points, fill=color)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color | tuple[int, int, int, int]) -> None:
        """A filled rectangle."""
        self.pen.rectangle([self.side * v for v in (x0, y0, x1, y1)], fill=color)

    def disc(
        self, x: float, y: float, radius: float, color: Color | tuple[int, int, int, int], flat: float = 1.0
    ) -> None:
        """A filled circle, or an ellipse that is flatter."""
        s = self.side
        corners = [s * (x - radius), s * (y - radius * flat), s * (x + radius), s * (y + radius * flat)]
        self.pen.ellipse(corners, fill=color)

    def glow(self, x: float, y: float, radius: float, color: Color, strength: int = 120) -> None:
        """A soft round light."""
        small = self.side // 8
        mask = Image.new("L", (small, small))
        ImageDraw.Draw(mask).ellipse(
            [small * v for v in (x - radius, y - radius, x + radius, y + radius)], fill=strength
        )
        mask = mask.filter(ImageFilter.GaussianBlur(small * radius / 2.2)).resize((self.side, self.side))
        self.image.paste(color, (0, 0), mask)

    def cloud(self, x: float, y: float, width: float, color: tuple[int, int, int, int]) -> None:
        """A paper cloud of a few discs on a flat base."""
        for dx, radius in ((-0.3, 0.2), (-0.08, 0.28), (0.17, 0.24), (0.36, 0.15)):
            self.disc(x + dx * width, y - radius * width * 0.5, radius * width, color, 0.8)
        self.box(x - 0.42 * width, y - 0.14 * width, x + 0.46 * width, y + 0.03 * width, color)

    def clouds(self, n: int, color: Color) -> None:
        """Some clouds in the sky."""
        for _ in range(n):
            x, y = self.rng.uniform(0.05, 0.95), self.rng.uniform(0.08, 0.36)
            self.cloud(float(x), float(y), float(self.rng.uniform(0.12, 0.24)), (*color, 225))

    def fir(self, x: float, base: float, height: float, color: Color) -> None:
        """A fir of three paper triangles."""
        s, width = self.side, 0.42 * height
        self.box(x - 0.04 * height, base - 0.12 * height, x + 0.04 * height, base, (92, 68, 52))
        for k in range(3):
            low, high = base - height * (0.08 + 0.25 * k), base - height * (0.5 + 0.25 * k)
            half = width * (0.5 - 0.11 * k)
            tint = tuple(min(255, c + 9 * k) for c in color)
            self.polygon([(s * (x - half), s * low), (s * (x + half), s * low), (s * x, s * high)], tint)  # type: ignore[arg-type]

    def round_tree(self, x: float, base: float, height: float, color: Color) -> None:
        """A tree with a round crown."""
        self.box(x - 0.05 * height, base - 0.45 * height, x + 0.05 * height, base, (104, 78, 58))
        self.disc(x, base - 0.66 * height, 0.34 * height, color)
        self.disc(x - 0.1 * height, base - 0.74 * height, 0.18 * height, tuple(min(255, c + 14) for c in color))  # type: ignore[arg-type]

    def stars(self, n: int, until: float) -> None:
        """Stars in the sky above a height."""
        for _ in range(n):
            x, y = self.rng.uniform(0, 1), self.rng.uniform(0, until)
            self.disc(float(x), float(y), float(self.rng.uniform(0.0012, 0.0034)), (255, 250, 226, 230))

    def tufts(self, n: int, color: Color) -> None:
        """Small strokes on the ground, larger towards the viewer."""
        s = self.side
        for y in sorted(self.rng.uniform(HORIZON + 0.04, 1.0, n)):
            x, near = float(self.rng.uniform(0, 1)), float((y - HORIZON) / (1 - HORIZON))
            h = 0.006 + 0.016 * near
            for lean in (-0.6, 0.0, 0.6):
                points = [(s * (x - 0.002), s * y), (s * (x + 0.002), s * y), (s * (x + lean * h), s * (y - h))]
                self.polygon(points, (*color, 130))


Scenery = tuple[Color, tuple[float, float, float]]

_DAY: Final = (1.0, 1.0, 1.0)


def _meadow(p: _Painter) -> Scenery:
    p.sky(p.choice((132, 190, 226), (150, 202, 224), (170, 206, 232)), p.vary((234, 242, 236)), 0.7)
    p.glow(float(p.rng.uniform(0.12, 0.88)), float(p.rng.uniform(0.1, 0.24)), 0.09, (255, 250, 226), 230)
    p.clouds(int(p.rng.integers(2, 5)), (255, 255, 252))
    p.ridge(HORIZON - 0.1, 0.09, p.vary((172, 204, 190)))
    p.ridge(HORIZON - 0.03, 0.07, p.vary((150, 196, 148)))
    for _ in range(int(p.rng.integers(2, 6))):
        p.round_tree(
            float(p.rng.uniform(0, 1)), HORIZON + 0.02, float(p.rng.uniform(0.07, 0.13)), p.vary((112, 164, 104))
        )
    p.ridge(HORIZON + 0.02, 0.035, p.choice((136, 190, 110), (150, 196, 112)))
    p.ridge(HORIZON + 0.2, 0.05, p.choice((120, 178, 96), (132, 184, 100)))
    p.tufts(46, (84, 140, 70))
    return (226, 238, 232), _DAY


def _sea(p: _Painter) -> Scenery:
    p.sky(p.vary((118, 186, 226)), p.vary((224, 240, 244)), 0.6)
    p.glow(float(p.rng.uniform(0.15, 0.85)), 0.16, 0.08, (255, 250, 228), 230)
    p.clouds(int(p.rng.integers(1, 4)), (255, 255, 255))
    if p.rng.random() < 0.6:
        p.ridge(HORIZON - 0.01, 0.05, p.vary((150, 190, 186)), 1.4)
    p.ground((104, 178, 206), (38, 116, 168), HORIZON)
    for k, color in enumerate(((88, 166, 200), (70, 150, 192), (54, 134, 182), (44, 120, 170))):
        p.ridge(HORIZON + 0.07 + 0.1 * k, 0.018 + 0.006 * k, p.vary(color, 5), 3.0)
    for y in sorted(p.rng.uniform(HORIZON + 0.04, 0.99, 26)):
        x, near = float(p.rng.uniform(0, 1)), float((y - HORIZON) / 0.44)
        p.disc(x, float(y), 0.014 + 0.03 * near, (235, 248, 252, 110), 0.09)
    return (216, 236, 242), _DAY


def _forest(p: _Painter) -> Scenery:
    p.sky(p.vary((170, 208, 200)), p.vary((226, 236, 214)), 0.7)
    p.glow(float(p.rng.uniform(0.3, 0.7)), 0.26, 0.2, (255, 252, 226), 150)
    for row, (base, height, color) in enumerate(
        (
            (HORIZON - 0.02, 0.3, (150, 186, 164)),
            (HORIZON + 0.02, 0.38, (104, 150, 120)),
            (HORIZON + 0.05, 0.46, (66, 116, 84)),
        )
    ):
        for x in np.linspace(-0.03, 1.03, 11 - 2 * row):
            if row < 2 or abs(x - 0.5) > 0.24:
                shift = float(p.rng.uniform(-0.035, 0.035))
                p.fir(float(x) + shift, base, height * float(p.rng.uniform(0.72, 1.08)), p.vary(color, 6))
    p.ridge(HORIZON + 0.04, 0.03, p.vary((122, 150, 88)))
    p.ridge(HORIZON + 0.2, 0.05, p.vary((104, 132, 76)))
    p.tufts(60, (70, 104, 54))
    return (206, 224, 206), (0.98, 1.0, 0.96)


def _desert(p: _Painter) -> Scenery:
    p.sky(p.vary((132, 192, 222)), p.vary((250, 230, 196)), 0.66)
    p.disc(float(p.rng.uniform(0.15, 0.85)), 0.16, 0.06, (255, 244, 206))
    p.ridge(HORIZON - 0.06, 0.1, p.vary((226, 186, 140)))
    p.ridge(HORIZON + 0.02, 0.07, p.vary((236, 198, 142)))
    p.ridge(HORIZON + 0.12, 0.07, p.vary((228, 184, 122)))
    p.ridge(HORIZON + 0.28, 0.06, p.vary((218, 170, 108)))
    return (248, 228, 196), (1.0, 0.99, 0.96)


def _snow(p: _Painter) -> Scenery:
    p.sky(p.vary((156, 184, 214)), p.vary((232, 238, 246)), 0.7)
    p.ridge(HORIZON - 0.12, 0.16, p.vary((194, 208, 226)), 1.6)
    p.ridge(HORIZON - 0.02, 0.05, p.vary((216, 226, 238)))
    for _ in range(int(p.rng.integers(5, 10))):
        x = float(p.rng.uniform(0, 1))
        height = float(p.rng.uniform(0.1, 0.2))
        p.fir(x, HORIZON + 0.04, height, p.vary((124, 158, 158)))
    p.ridge(HORIZON + 0.04, 0.03, p.vary((234, 240, 247), 4))
    p.ridge(HORIZON + 0.22, 0.05, p.vary((246, 249, 252), 3))
    for _ in range(90):
        x, y = p.rng.uniform(0, 1, 2)
        p.disc(float(x), float(y), float(p.rng.uniform(0.002, 0.006)), (255, 255, 255, 220))
    return (234, 240, 248), (0.98, 0.99, 1.0)


def _city(p: _Painter) -> Scenery:
    p.sky(p.choice((140, 180, 214), (186, 190, 214)), p.vary((240, 230, 218)), 0.7)
    p.clouds(2, (250, 250, 250))
    for base, tall, color, lit in ((0.0, 0.34, (182, 188, 204), 60), (0.02, 0.24, (136, 146, 172), 120)):
        x = -0.02
        while x < 1.0:
            width = float(p.rng.uniform(0.06, 0.12))
            height = float(p.rng.uniform(0.4, 1.0)) * tall
            top, tone = HORIZON + base - height, p.vary(color, 12)
            p.box(x, top, x + width - 0.004, HORIZON + 0.05, tone)
            for wy in np.arange(top + 0.02, HORIZON - 0.01, 0.032):
                for wx in np.arange(x + 0.012, x + width - 0.02, 0.024):
                    p.box(float(wx), float(wy), float(wx) + 0.011, float(wy) + 0.016, (255, 240, 200, lit + 60))
            x += width
    p.box(0, HORIZON + 0.03, 1, 1, (176, 176, 178))
    p.box(0, HORIZON + 0.03, 1, HORIZON + 0.075, (206, 202, 194))
    p.ground((146, 148, 154), (120, 122, 130), HORIZON + 0.075)
    for k in range(6):
        x = 0.04 + 0.18 * k
        p.box(x, 0.83, x + 0.09, 0.845, (240, 236, 216))
    p.box(0, 0.965, 1, 1, (196, 192, 186))
    return (226, 226, 228), _DAY


def _space(p: _Painter) -> Scenery:
    p.sky((14, 12, 38), (44, 26, 74))
    for _ in range(4):
        x, y = p.rng.uniform(0.1, 0.9, 2)
        color = p.choice((96, 52, 140), (38, 84, 150), (150, 62, 118))
        p.glow(float(x), float(y), float(p.rng.uniform(0.14, 0.26)), color, 90)
    p.stars(190, 1.0)
    return (60, 48, 96), (0.97, 0.97, 1.0)


def _night(p: _Painter) -> Scenery:
    p.sky(p.vary((18, 24, 62), 4), p.vary((70, 82, 132), 6), 0.7)
    p.stars(120, HORIZON)
    x = float(p.rng.uniform(0.15, 0.85))
    p.glow(x, 0.15, 0.1, (190, 196, 230), 110)
    p.disc(x, 0.15, 0.045, (248, 244, 224))
    p.ridge(HORIZON - 0.08, 0.09, p.vary((52, 66, 106), 5))
    p.ridge(HORIZON - 0.01, 0.06, p.vary((44, 62, 88), 5))
    for _ in range(6):
        p.fir(float(p.rng.uniform(0, 1)), HORIZON + 0.03, float(p.rng.uniform(0.1, 0.2)), p.vary((30, 48, 66), 4))
    p.ridge(HORIZON + 0.03, 0.03, p.vary((48, 70, 82), 5))
    p.ridge(HORIZON + 0.2, 0.05, p.vary((40, 60, 72), 5))
    p.tufts(40, (28, 44, 56))
    return (66, 78, 120), (0.84, 0.87, 1.0)


def _sunset(p: _Painter) -> Scenery:
    p.sky(p.choice((92, 76, 142), (120, 84, 138)), p.vary((252, 178, 108)), 0.6)
    x = float(p.rng.uniform(0.25, 0.75))
    p.glow(x, HORIZON - 0.06, 0.24, (255, 214, 130), 190)
    p.disc(x, HORIZON - 0.05, 0.085, (255, 236, 178))
    for _ in range(3):
        cx, cy = p.rng.uniform(0.05, 0.95), p.rng.uniform(0.1, 0.36)
        p.cloud(float(cx), float(cy), float(p.rng.uniform(0.14, 0.26)), (250, 168, 140, 150))
    p.ridge(HORIZON - 0.02, 0.07, p.vary((168, 100, 112)))
    p.ridge(HORIZON + 0.04, 0.04, p.vary((146, 92, 92)))
    p.ridge(HORIZON + 0.2, 0.05, p.vary((122, 80, 82)))
    p.tufts(36, (84, 54, 62))
    return (250, 190, 150), (1.0, 0.94, 0.88)


def _room(p: _Painter) -> Scenery:
    wall = p.choice((236, 222, 200), (208, 222, 220), (232, 208, 200), (214, 214, 232))
    p.box(0, 0, 1, 1, wall)
    shade = tuple(c - 10 for c in wall)
    for x in np.arange(0.04, 1.0, 0.12):
        p.box(float(x), 0, float(x) + 0.05, HORIZON, shade)  # type: ignore[arg-type]
    x = 0.12 if p.rng.random() < 0.5 else 0.6
    p.box(x - 0.015, 0.095, x + 0.285, 0.415, (250, 248, 242))
    p.box(x, 0.11, x + 0.27, 0.4, (176, 214, 236))
    p.cloud(x + 0.13, 0.24, 0.16, (255, 255, 255, 230))
    p.box(x, 0.33, x + 0.27, 0.4, (158, 198, 142))
    p.box(x + 0.128, 0.11, x + 0.142, 0.4, (250, 248, 242))
    p.box(x, 0.248, x + 0.27, 0.262, (250, 248, 242))
    p.box(0, HORIZON - 0.02, 1, HORIZON + 0.012, (250, 246, 238))
    floor = p.choice((196, 152, 108), (178, 134, 96), (206, 168, 126))
    p.box(0, HORIZON + 0.012, 1, 1, floor)
    for k, y in enumerate(np.geomspace(0.045, 0.44, 6)):
        p.box(0, HORIZON + float(y), 1, HORIZON + float(y) + 0.003, tuple(c - 22 for c in floor))  # type: ignore[arg-type]
        for j in range(4):
            at = (0.27 * j + 0.13 * (k % 2)) % 1
            p.box(at, HORIZON + float(y), at + 0.004, HORIZON + float(y) * 1.5, tuple(c - 22 for c in floor))  # type: ignore[arg-type]
    p.disc(0.5, 0.83, 0.36, (*p.choice((192, 96, 92), (92, 130, 160), (116, 150, 116)), 120), 0.28)
    return (238, 230, 218), _DAY


def _plain(p: _Painter) -> Scenery:
    color = p.choice((246, 243, 236), (240, 244, 246), (247, 240, 240))
    p.box(0, 0, 1, 1, color)
    p.ground(color, tuple(c - 18 for c in color), HORIZON)  # type: ignore[arg-type]
    return color, _DAY


def _sky(p: _Painter) -> Scenery:
    p.sky(p.vary((96, 168, 226)), p.vary((214, 236, 248)))
    p.glow(float(p.rng.uniform(0.15, 0.85)), 0.14, 0.09, (255, 252, 232), 230)
    for y in (0.2, 0.42, 0.62, 0.8, 0.95):
        for _ in range(2):
            p.cloud(
                float(p.rng.uniform(0, 1)), y + float(p.rng.uniform(-0.06, 0.06)), 0.16 + 0.2 * y, (255, 255, 255, 190)
            )
    return (226, 240, 250), _DAY


_SCENERY: Final[dict[str, Callable[[_Painter], Scenery]]] = {
    "meadow": _meadow,
    "sea": _sea,
    "forest": _forest,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "space": _space,
    "night": _night,
    "sunset": _sunset,
    "room": _room,
    "plain": _plain,
    "sky": _sky,
}
