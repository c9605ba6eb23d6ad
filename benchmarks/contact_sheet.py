"""Draw everything that the pocket decoder can draw, for inspection: ``python benchmarks/contact_sheet.py --out FILE``.

Writes two pictures: FILE shows every object with every attribute; FILE with ``-scenes`` in its name shows laid-out
scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from gems.models.pocket.captions import terse_caption
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Item, layout, sample_spec
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS

__all__ = ["scene_sheet", "sprite_sheet"]

_PAGE: Final = (247, 244, 238)
_INK: Final = (60, 56, 70)


def sprite_sheet(cell: int = 96) -> Image.Image:
    """All objects (rows) with all attributes (columns), each in its own scene of ``cell`` x ``cell`` pixels."""
    gutter, header = 84, 22
    sheet = Image.new("RGB", (gutter + cell * len(ATTRIBUTES), header + cell * len(OBJECTS)), _PAGE)
    pen = ImageDraw.Draw(sheet)
    for a, name in enumerate(ATTRIBUTES):
        pen.text((gutter + cell * a + 6, 5), name or "natural", fill=_INK)
    for o, word in enumerate(OBJECTS):
        pen.text((6, header + cell * o + cell // 2 - 6), word.singular, fill=_INK)
        for a in range(len(ATTRIBUTES)):
            tile = draw_scene([Item(o, a, 0.5, 0.5, 0.8, 0.5)], style=o, size=cell)
            sheet.paste(tile, (gutter + cell * a, header + cell * o))
    return sheet


def scene_sheet(n: int = 24, *, seed: int = 0, size: int = 384, columns: int = 6) -> Image.Image:
    """``n`` laid-out scenes, each under its terse caption."""
    rng = np.random.default_rng(seed)
    header, rows = 20, -(-n // columns)
    sheet = Image.new("RGB", (columns * size, rows * (size + header)), _PAGE)
    pen = ImageDraw.Draw(sheet)
    for k in range(n):
        scene = layout(sample_spec(rng), rng)
        x, y = k % columns * size, k // columns * (size + header)
        caption = terse_caption(scene.spec)
        pen.text((x + 6, y + 4), caption if len(caption) < size // 6 else f"{caption[: size // 6 - 3]}...", fill=_INK)
        sheet.paste(draw_scene(scene.items, style=k, size=size), (x, y + header))
    return sheet


def main() -> None:
    """Write the two sheets and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="path of the sprite sheet, a .png or .jpg file")
    parser.add_argument("--cell", type=int, default=96, help="side of one drawing on the sprite sheet, in pixels")
    parser.add_argument("--scenes", type=int, default=24, help="number of scenes on the second sheet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes")
    args = parser.parse_args()
    scenes = args.out.with_name(f"{args.out.stem}-scenes{args.out.suffix}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sprite_sheet(args.cell).save(args.out)
    scene_sheet(args.scenes, seed=args.seed).save(scenes)
    print(args.out, scenes, sep="\n")


if __name__ == "__main__":
    main()
