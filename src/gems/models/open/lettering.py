"""Reads the text on a label: finds its lines by their ink, and reads each line's letters from left to right.

The network reads a line of fixed height and tells a letter or none for each column; the letters follow by connectionist
temporal classification (Graves et al., ICML 2006).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from gems.models.open.slots import ALPHABET

__all__ = ["BLANK", "LINE_HEIGHT", "LINE_WIDTH", "LineReader", "lines_of", "read_lines"]

LINE_HEIGHT, LINE_WIDTH = 24, 192
BLANK: Final = 0
"""The class of a column without a letter; a letter's class is its place in the alphabet plus one."""


class LineReader(nn.Module):
    """Lines (batch, 1, LINE_HEIGHT, LINE_WIDTH) in [0, 1], ink is 1, to logits (batch, columns, letters + 1)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width // 2, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width // 2, width, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d((2, 1)),
            nn.Conv2d(width, 2 * width, (6, 3), 1, (0, 1)),
            nn.ReLU(),
        )
        self.mix = nn.Sequential(nn.Conv1d(2 * width, 2 * width, 5, 1, 2), nn.ReLU())
        self.out = nn.Conv1d(2 * width, len(ALPHABET) + 1, 1)

    def forward(self, lines: Tensor) -> Tensor:
        """Logits of each column, from left to right."""
        features = self.body(lines).squeeze(2)
        logits: Tensor = self.out(features + self.mix(features))
        return logits.transpose(1, 2)


def lines_of(label: Image.Image) -> list[NDArray[np.float32]]:
    """The lines of text on a label, each as ink in [0, 1] of shape (LINE_HEIGHT, LINE_WIDTH), from the top down."""
    grey = np.asarray(label.convert("L"), dtype=np.float32)
    if min(grey.shape) < 8:
        return []
    paper, darkest = float(np.quantile(grey, 0.8)), float(np.quantile(grey, 0.02))
    ink = ((paper - grey) / max(40.0, paper - darkest)).clip(0, 1)
    border = max(2, round(0.06 * ink.shape[0]))
    inner = ink[border:-border, border:-border]
    rows = (inner > 0.45).sum(axis=1) >= 2
    bands = [band for band in _runs(rows) if band[1] - band[0] >= 0.1 * len(rows)]
    return [line for top, bottom in bands[:3] if (line := _normal(inner[top:bottom])) is not None]


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _normal(ink: NDArray[np.float32]) -> NDArray[np.float32] | None:
    columns = np.flatnonzero((ink > 0.45).any(axis=0))
    if not len(columns):
        return None
    tight = ink[:, columns[0] : columns[-1] + 1]
    height = LINE_HEIGHT - 4
    width = min(LINE_WIDTH - 4, max(2, round(tight.shape[1] * height / tight.shape[0])))
    scaled = Image.fromarray((255 * tight).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    line = np.zeros((LINE_HEIGHT, LINE_WIDTH), dtype=np.float32)
    line[2 : 2 + height, 2 : 2 + width] = np.asarray(scaled, dtype=np.float32) / 255
    return line


@torch.inference_mode()
def read_lines(reader: LineReader, lines: list[NDArray[np.float32]]) -> tuple[str, float]:
    """The text of lines, joined by spaces, and the least probability of a column that was read as a letter."""
    if not lines:
        return "", 1.0
    probabilities = reader(torch.from_numpy(np.stack(lines))[:, None]).softmax(dim=-1).numpy()
    texts, sureness = [], 1.0
    for columns in probabilities:
        text, last = "", BLANK
        for best, p in zip(columns.argmax(axis=1).tolist(), columns.max(axis=1).tolist(), strict=True):
            if best not in (BLANK, last):
                text += ALPHABET[best - 1]
                sureness = min(sureness, p)
            last = best
        texts.append(" ".join(text.split()))
    return " ".join(t for t in texts if t), sureness
