"""Draws scenes as pixels: a paper cut-out diorama of Twemoji drawings before a background.

Drawing is deterministic: the same scene, style and size give the same bytes. Depth shows in four ways: nearer things
are drawn over farther ones, stand lower, cast a larger and softer shadow, and are less veiled by the haze.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from gems.models.open.backdrops import Backdrop, backdrop
from gems.models.open.stage import HORIZON, Item
from gems.models.open.things import LOOK_NAMES, THINGS
from gems.models.pocket.sprites import MARGIN, SHADOW_LEVELS, SPRITE_SIZE, shadow, sprite

__all__ = ["draw", "plate", "plate_of"]

_SHADOW: Final = (34, 30, 52)


def draw(items: Sequence[Item], background: str, *, text: str = "", style: int = 0, size: int = 512) -> Image.Image:
    """Draw a scene.

    Args:
        items: The things to draw; the far ones are drawn first.
        background: One of BACKGROUNDS.
        text: What is written on the lettered things.
        style: Any non-negative integer; it selects how the background is drawn.
        size: Side of the image in pixels.

    Returns:
        An RGB image of ``size`` x ``size`` pixels.
    """
    scenery = backdrop(background, style, size)
    image = scenery.image.copy()
    ordered = sorted(items, key=lambda i: (i.depth, i.bottom))
    if background not in ("space", "sky"):
        for item in ordered:
            _draw_ground_shadow(image, item)
    for item in ordered:
        _draw_item(image, item, scenery, text)
    return image


def _draw_ground_shadow(image: Image.Image, item: Item) -> None:
    """The dark ellipse on the ground below a thing; fainter the higher the thing floats."""
    ground = HORIZON + 0.06 + 0.34 * item.depth
    lift = ground - item.bottom
    if not -0.08 < lift < 0.3 or THINGS[item.thing].home == "sky":
        return
    side = item.size * image.width
    width, height = round(0.86 * side), max(3, round(0.17 * side))
    strength = round(110 * (1 - max(0.0, lift) / 0.3) ** 2)
    bottom = (item.bottom - 0.035 * item.size if lift < 0.05 else ground) * image.height
    mask = _ellipse(max(4, width), height).point([round(v * strength / 255) for v in range(256)])
    image.paste(_SHADOW, (round(item.x * image.width - mask.width / 2), round(bottom - mask.height / 2)), mask)


@lru_cache(maxsize=256)
def _ellipse(width: int, height: int) -> Image.Image:
    pad = height
    mask = Image.new("L", (width + 2 * pad, height + 2 * pad))
    ImageDraw.Draw(mask).ellipse([pad, pad, pad + width, pad + height], fill=255)
    return mask.filter(ImageFilter.GaussianBlur(height / 3))


def _draw_item(image: Image.Image, item: Item, scenery: Backdrop, text: str) -> None:
    side = item.size * image.width
    outer = max(2, round(side * (1 + 2 * MARGIN / SPRITE_SIZE)))
    left, top = round(item.x * image.width - outer / 2), round(item.y * image.height - outer / 2)
    twemoji, look = THINGS[item.thing].twemoji, LOOK_NAMES[item.look]

    drop = side * (0.008 + 0.04 * item.depth)
    level = round(item.depth * (SHADOW_LEVELS - 1))
    mask = shadow(twemoji, level).resize((outer, outer), Image.Resampling.BILINEAR)
    image.paste(_SHADOW, (round(left + 0.6 * drop), round(top + drop)), mask)

    thing = sprite(twemoji, look)
    if item.lettered and text:
        thing = _lettered(thing, text)
    thing = thing.resize((outer, outer), Image.Resampling.BILINEAR)
    body = Image.blend(thing.convert("RGB"), Image.new("RGB", thing.size, scenery.haze), 0.26 * (1 - item.depth) ** 1.3)
    if scenery.light != (1.0, 1.0, 1.0):
        body = Image.merge(
            "RGB",
            [b.point([round(v * k) for v in range(256)]) for b, k in zip(body.split(), scenery.light, strict=True)],
        )
    image.paste(body, (left, top), thing.getchannel("A"))


# --- letters --------------------------------------------------------------------------------------------------------

_PLATE: Final = (0.08, 0.28, 0.92, 0.72)
"""The part of a thing's square that a text is written on: left, top, right and bottom."""


def plate_of(item: Item, width: int) -> tuple[int, int, int, int]:
    """Where a thing's text is written, or would be, in pixels of an image so wide: left, top, right and bottom."""
    x0, y0, x1, y1 = (
        round(width * v)
        for v in (item.x - item.size / 2, item.y - item.size / 2, item.x + item.size / 2, item.y + item.size / 2)
    )
    w, h = x1 - x0, y1 - y0
    return x0 + round(_PLATE[0] * w), y0 + round(_PLATE[1] * h), x0 + round(_PLATE[2] * w), y0 + round(_PLATE[3] * h)


def _lettered(thing: Image.Image, text: str) -> Image.Image:
    thing = thing.copy()
    left, top, right, bottom = (round(MARGIN + SPRITE_SIZE * v) for v in _PLATE)
    label = plate(text, right - left, bottom - top)
    thing.paste(label, (left, top), label.getchannel("A"))
    return thing


def plate(text: str, width: int, height: int) -> Image.Image:
    """A white paper label, RGBA, with a text of one or two lines as large as they fit."""
    scale = 3
    w, h = scale * width, scale * height
    image = Image.new("RGBA", (w, h))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle(
        [0, 0, w - 1, h - 1], radius=h // 7, fill=(252, 250, 244, 255), outline=(70, 66, 80, 255), width=scale
    )
    lines = _lines(text)
    widest = max(_font(100).getlength(line) for line in lines) / 100
    points = max(8, int(min(0.88 * w / (widest + 0.04), 0.92 * h / len(lines))))
    font, pitch = _font(points), points
    for k, line in enumerate(lines):
        y = h / 2 + (k - (len(lines) - 1) / 2) * pitch
        pen.text(
            (w / 2, y),
            line,
            font=font,
            fill=(34, 30, 44, 255),
            anchor="mm",
            stroke_width=points // 28,
            stroke_fill=(34, 30, 44, 255),
        )
    return image.reduce(scale)


@lru_cache(maxsize=64)
def _font(points: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font that comes with Pillow (Aileron, CC0)."""
    return ImageFont.load_default(points)


def _lines(text: str) -> list[str]:
    """One line for a short text, two about equally long ones for one of several words."""
    words = text.split()
    if len(words) < 2 or len(text) < 7:
        return [text]
    cut = min(range(1, len(words)), key=lambda k: abs(len(" ".join(words[:k])) - len(" ".join(words[k:]))))
    return [" ".join(words[:cut]), " ".join(words[cut:])]
