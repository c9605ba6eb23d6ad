"""Names what is seen: embeds a crop of an image, and compares it with prototypes embedded from each noun's own drawing.

A thing that was never in the training has a prototype like any other, so it can be named too.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gems.models.open.things import LOOK_NAMES, THINGS
from gems.models.pocket.sprites import MARGIN, SPRITE_SIZE, sprite
from gems.models.pocket.vision import Residual, conv

__all__ = ["CONTEXT", "CROP", "EMBEDDING", "Namer", "crop_of", "prototype_image"]

CROP: Final = 64
"""Side of a crop, in pixels."""

CONTEXT: Final = 1.2
"""Side of the square that is cropped, in sides of the thing's square."""

EMBEDDING: Final = 96


class Namer(nn.Module):
    """Crops to embeddings and looks."""

    def __init__(self, widths: tuple[int, int, int] = (64, 112, 192)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(4),
            conv(48, fine, 3),
            Residual(fine),
            conv(fine, middle, 2, 2),
            Residual(middle),
            conv(middle, coarse, 2, 2),
            Residual(coarse),
        )
        self.embedding = nn.Linear(2 * coarse, EMBEDDING)
        self.look = nn.Linear(2 * coarse, len(LOOK_NAMES))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (batch, EMBEDDING) and logits of looks, for crops (batch, 3, CROP, CROP) in [-1, 1]."""
        x = self.trunk(crops)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return F.normalize(self.embedding(pooled), dim=1), self.look(pooled)


def crop_of(image: Image.Image, x: float, y: float, size: float) -> Image.Image:
    """The square around a thing, scaled; what lies beyond the canvas is grey."""
    half = CONTEXT * size / 2
    box = [image.width * v for v in (x - half, y - half, x + half, y + half)]
    if min(box) < 0 or max(box) > image.width:
        image, box = _padded(image), [v + image.width // 2 for v in box]
    return image.transform((CROP, CROP), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


def _padded(image: Image.Image) -> Image.Image:
    wide = Image.new("RGB", (2 * image.width, 2 * image.height), (128, 128, 128))
    wide.paste(image, (image.width // 2, image.height // 2))
    return wide


def prototype_image(thing: int) -> NDArray[np.uint8]:
    """A thing's own drawing in natural colours before grey, (CROP, CROP, 3), framed as a crop of it is."""
    outer = (SPRITE_SIZE + 2 * MARGIN) / SPRITE_SIZE
    side = round(CROP * outer / CONTEXT)
    drawing = sprite(THINGS[thing].twemoji, "").resize((side, side), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (CROP, CROP), (176, 186, 180))
    corner = (CROP - side) // 2
    canvas.paste(drawing, (corner, corner), drawing)
    return np.asarray(canvas)
