"""Finds the things in an image, whatever they are, and tells the background.

One pass over the image, scaled to 256 x 256, predicts for each cell of a 32 x 32 grid whether a thing has its centre
there, and the thing's exact place, size and depth ("Objects as Points", arXiv 1904.07850). What each thing is, the
namer tells from a crop of it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gems.models.open.things import BACKGROUNDS
from gems.models.pocket.vision import BOX_MEAN, BOX_SCALE, GRID, Residual, conv

__all__ = ["HEADS", "Finder", "Spot", "spots_of"]

HEADS: Final[dict[str, int]] = {"heat": 1, "offset": 2, "box": 2, "lettered": 1}
"""Output channels of each head, as in ``gems.models.pocket.vision``; ``lettered`` is the logit of a written text."""


class Finder(nn.Module):
    """The network. Its trunk is that of the pocket vision model, from whose weights its training starts."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 160), head_width: int = 128) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), conv(48, fine, 3), Residual(fine))
        self.middle = nn.Sequential(conv(fine, middle, 2, 2), Residual(middle), Residual(middle))
        self.coarse = nn.Sequential(conv(middle, coarse, 2, 2), Residual(coarse), Residual(coarse))
        self.up = nn.ConvTranspose2d(coarse, middle, 2, 2)
        self.merge = Residual(middle)
        self.trunk = conv(middle, head_width, 1)
        self.heads = nn.Conv2d(head_width, sum(HEADS.values()), 1)
        self.ground = nn.Sequential(nn.Linear(2 * coarse + 48, 64), nn.ReLU(), nn.Linear(64, len(BACKGROUNDS)))
        with torch.no_grad():
            self.heads.bias[0] = -4.0  # type: ignore[index]  # centres are rare: start by expecting none

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Raw outputs by head, (batch, HEADS[name], GRID, GRID), and logits of BACKGROUNDS, for images in [-1, 1]."""
        middle = self.middle(self.stem(images))
        coarse = self.coarse(middle)
        merged = self.merge(torch.relu(middle + self.up(coarse)))
        parts = self.heads(self.trunk(merged)).split(list(HEADS.values()), dim=1)
        colours = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        summary = torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3)), colours], dim=1)
        return dict(zip(HEADS, parts, strict=True)), self.ground(summary)


class Spot(NamedTuple):
    """What was found: the probability that it is a thing, where it is, and the probability of letters on it."""

    score: float
    x: float
    y: float
    size: float
    depth: float
    lettered: float


_FLOOR: Final = 0.06
_REACH: Final = 0.17
"""Two finds are one thing if their distance is below this share of their mean size."""


def spots_of(outputs: dict[str, NDArray[np.float32]], scale: float = 1.0, shift: float = 0.0) -> list[Spot]:
    """What one image's raw outputs, each (HEADS[name], GRID, GRID), have found, most certain first."""
    scores = 1 / (1 + np.exp(-(scale * outputs["heat"][0].astype(np.float64) + shift)))
    rows, columns = np.nonzero(scores >= _FLOOR)
    order = np.argsort(-scores[rows, columns], kind="stable")
    spots: list[Spot] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        size, depth = (outputs["box"][:, row, column] * BOX_SCALE + BOX_MEAN).tolist()
        dx, dy = outputs["offset"][:, row, column].tolist()
        spot = Spot(
            float(scores[row, column]),
            float(np.clip((column + 0.5 + dx) / GRID, 0, 1)),
            float(np.clip((row + 0.5 + dy) / GRID, 0, 1)),
            float(np.clip(size, 0.04, 1)),
            float(np.clip(depth, 0, 1)),
            float(1 / (1 + np.exp(-outputs["lettered"][0, row, column]))),
        )
        if not any(_is_same(spot, other) for other in spots):
            spots.append(spot)
    return spots


def _is_same(a: Spot, b: Spot) -> bool:
    reach = _REACH * min(a.size, b.size)
    return (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < reach**2
