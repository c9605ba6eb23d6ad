"""Finds the things in an image, whatever they are, and tells the background.

One pass over the image, scaled to 256 x 256, predicts for each cell of a 32 x 32 grid whether a thing has its centre
there, and the thing's exact place, size and depth ("Objects as Points", arXiv 1904.07850). What each thing is, the
namer tells from a crop of it.
"""

from __future__ import annotations

from math import exp, hypot, log
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
_REACH: Final = 0.2
"""How far a find throws doubt on weaker ones, in sides of the smaller of the two."""


def spots_of(outputs: dict[str, NDArray[np.float32]], scale: float = 1.0, shift: float = 0.0) -> list[Spot]:
    """What one image's raw outputs, each (HEADS[name], GRID, GRID), have found, most certain first.

    A find close to a stronger one is probably the same thing, and loses most of its score (Gaussian soft non-maximum
    suppression, arXiv 1704.04503). ``scale`` and ``shift`` calibrate the logits of what remains.
    """
    scores = 1 / (1 + np.exp(-outputs["heat"][0].astype(np.float64)))
    rows, columns = np.nonzero(scores >= _LEAST)
    order = np.argsort(-scores[rows, columns], kind="stable")
    spots: list[Spot] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        spot = _spot(outputs, row, column, float(scores[row, column]))
        rest = float(np.prod([1 - exp(-(_distance(spot, other) ** 2) / (2 * _REACH**2)) for other in spots]))
        if spot.score * rest >= _LEAST:
            spots.append(spot._replace(score=spot.score * rest))
    calibrated = [spot._replace(score=_calibrated(spot.score, scale, shift)) for spot in spots]
    return sorted((spot for spot in calibrated if spot.score >= _FLOOR), key=lambda spot: -spot.score)


_LEAST: Final = 0.03


def _spot(outputs: dict[str, NDArray[np.float32]], row: int, column: int, score: float) -> Spot:
    size, depth = (outputs["box"][:, row, column] * BOX_SCALE + BOX_MEAN).tolist()
    dx, dy = outputs["offset"][:, row, column].tolist()
    return Spot(
        score,
        float(np.clip((column + 0.5 + dx) / GRID, 0, 1)),
        float(np.clip((row + 0.5 + dy) / GRID, 0, 1)),
        float(np.clip(size, 0.04, 1)),
        float(np.clip(depth, 0, 1)),
        float(1 / (1 + np.exp(-outputs["lettered"][0, row, column]))),
    )


def _distance(a: Spot, b: Spot) -> float:
    """Between two centres, in sides of the smaller."""
    return hypot(a.x - b.x, a.y - b.y) / min(a.size, b.size)


def _calibrated(score: float, scale: float, shift: float) -> float:
    return 1 / (1 + exp(-(scale * log(score / (1 - min(score, 1 - 1e-9))) + shift)))
