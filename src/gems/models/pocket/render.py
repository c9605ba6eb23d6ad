"""Draws scenes as pixels: a paper cut-out diorama of Twemoji drawings, one sprite for each object and attribute.

Drawing is deterministic: the same items, style and size give the same bytes. Depth shows in three ways: nearer things
are drawn over farther ones, cast a larger, softer and lower shadow, and are less veiled by the haze of the distance.
Twemoji graphics are CC BY 4.0 (https://github.com/jdecked/twemoji).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from gems.models.pocket.scene import Item
from gems.models.pocket.sprites import MARGIN, SHADOW_LEVELS, SPRITE_SIZE, shadow, sprite
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS

__all__ = ["draw_scene"]

# --- scenes ---------------------------------------------------------------------------------------------------------


def draw_scene(items: Sequence[Item], *, style: int = 0, size: int = 512) -> Image.Image:
    """Draw a scene.

    Args:
        items: The things to draw; the far ones are drawn first.
        style: Any non-negative integer; it selects the palette, the sun and the hills.
        size: Side of the image in pixels.

    Returns:
        An RGB image of ``size`` x ``size`` pixels.
    """
    image = _background(style, size).copy()
    haze = _PALETTES[style % len(_PALETTES)].haze
    for item in sorted(items, key=lambda i: (i.depth, i.y)):
        _draw_item(image, item, haze)
    return image


def _draw_item(image: Image.Image, item: Item, haze: tuple[int, int, int]) -> None:
    depth = min(max(item.depth, 0.0), 1.0)
    side = item.size * image.width
    outer = max(2, round(side * (1 + 2 * MARGIN / SPRITE_SIZE)))
    left, top = round(item.x * image.width - outer / 2), round(item.y * image.height - outer / 2)

    level = round(depth * (SHADOW_LEVELS - 1))
    drop = side * (0.01 + 0.1 * depth)
    twemoji, look = OBJECTS[item.object].twemoji, ATTRIBUTES[item.attribute]
    mask = shadow(twemoji, level).resize((outer, outer), Image.Resampling.BILINEAR)
    image.paste(_SHADOW_COLOR, (round(left + 0.6 * drop), round(top + drop)), mask)

    thing = sprite(twemoji, look).resize((outer, outer), Image.Resampling.BILINEAR)
    veiled = Image.blend(thing.convert("RGB"), Image.new("RGB", thing.size, haze), 0.3 * (1 - depth) ** 1.3)
    image.paste(veiled, (left, top), thing.getchannel("A"))


_SHADOW_COLOR: Final = (34, 30, 52)


# --- backgrounds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Palette:
    """Colours of a backdrop: sky from top to horizon, hills from far to near, and the haze that veils far things."""

    sky: tuple[tuple[int, int, int], tuple[int, int, int]]
    hills: tuple[tuple[int, int, int], ...]
    haze: tuple[int, int, int]


_PALETTES: Final = (
    _Palette(((150, 196, 220), (231, 239, 232)), ((186, 212, 190), (160, 195, 160), (137, 178, 140)), (214, 228, 226)),
    _Palette(((245, 190, 160), (251, 231, 205)), ((226, 190, 172), (206, 164, 152), (184, 142, 136)), (240, 214, 196)),
    _Palette(((176, 184, 216), (228, 226, 240)), ((190, 190, 216), (168, 170, 200), (148, 152, 186)), (214, 214, 232)),
    _Palette(((240, 224, 184), (250, 242, 220)), ((226, 206, 160), (212, 188, 138), (196, 170, 120)), (238, 226, 196)),
    _Palette(((138, 198, 196), (220, 240, 230)), ((156, 206, 200), (130, 188, 184), (106, 168, 166)), (200, 226, 220)),
    _Palette(((206, 180, 196), (240, 224, 226)), ((206, 178, 188), (186, 158, 172), (168, 140, 158)), (226, 208, 214)),
    _Palette(((204, 208, 206), (238, 238, 232)), ((206, 208, 200), (188, 192, 184), (172, 176, 168)), (222, 224, 218)),
    _Palette(((120, 146, 188), (208, 216, 226)), ((150, 172, 184), (128, 154, 164), (108, 136, 144)), (188, 200, 210)),
)


@lru_cache(maxsize=2)
def _background(style: int, size: int) -> Image.Image:
    """Sky, a pale sun and three soft hills cut from paper. The image is cached: copy it before drawing on it.

    Only a seed that is drawn again soon has the same style again, and an image has a mebibyte.
    """
    palette = _PALETTES[style % len(_PALETTES)]
    rng = np.random.default_rng(style)
    top, horizon = (np.array(c, dtype=np.float32) for c in palette.sky)
    rows = top + (horizon - top) * np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    column = Image.fromarray(np.round(rows).astype(np.uint8)[:, None, :])
    image = column.resize((size, size), Image.Resampling.BILINEAR)

    x, y, radius = rng.uniform(0.15, 0.85), rng.uniform(0.1, 0.3), rng.uniform(0.07, 0.12)
    sun = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(sun).ellipse([2 * size * v for v in (x - radius, y - radius, x + radius, y + radius)], fill=90)
    image.paste((255, 252, 238), (0, 0), sun.reduce(2))
    grid = np.linspace(0, 1, 65)
    for base, color in zip((0.50, 0.66, 0.83), palette.hills, strict=True):
        ridge = np.full_like(grid, base)
        for _ in range(3):
            ridge += rng.uniform(0.01, 0.045) * np.sin(2 * np.pi * (rng.uniform(0.4, 1.6) * grid + rng.random()))
        edge = [*zip(grid.tolist(), ridge.tolist(), strict=True), (1.0, 1.0), (0.0, 1.0)]
        rim = _polygon(edge, size).reduce(4).resize((size, size), Image.Resampling.BILINEAR)
        image.paste(_SHADOW_COLOR, (0, -round(size / 170)), rim.point([round(0.16 * v) for v in range(256)]))
        image.paste(color, (0, 0), _polygon(edge, 2 * size).reduce(2))
    return image


def _polygon(corners: Sequence[tuple[float, float]], size: int) -> Image.Image:
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).polygon([(size * x, size * y) for x, y in corners], fill=255)
    return mask
