"""The pocket vision model: a small convolutional detector that reads a drawn scene back from its pixels.

One pass over the image, scaled to 256 x 256, predicts for each cell of a 32 x 32 grid whether a thing has its centre
there, and what that thing would be: object, attribute, exact place, size and depth ("Objects as Points",
arXiv 1904.07850). ``Sight`` answers questions about the detected things, with calibrated probabilities. Nothing here
depends on how an image was made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from math import erf, sqrt
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gems.models.pocket.scene import Item, relation_margin
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS, RELATIONS

__all__ = [
    "GRID",
    "INPUT_SIZE",
    "Calibration",
    "Detection",
    "Residual",
    "Sight",
    "VisionModel",
    "conv",
    "look",
    "pixels",
    "pretrained",
]

INPUT_SIZE: Final = 256
"""Side of the images that the network reads, in pixels."""

GRID: Final = 32
"""Cells on a side of the grid; each covers 8 x 8 pixels of the input."""

HEADS: Final[dict[str, int]] = {"heat": 1, "object": len(OBJECTS), "attribute": len(ATTRIBUTES), "offset": 2, "box": 2}
"""Output channels of each head. ``heat`` is the logit of a centre, ``object`` and ``attribute`` are class logits,
``offset`` is the centre's distance from the cell's middle in cells (x, y), ``box`` is size and depth, standardised by
BOX_*."""

BOX_MEAN: Final = (0.2, 0.5)
BOX_SCALE: Final = (0.08, 0.25)

_WEIGHTS: Final = "model.safetensors"
_CONFIG: Final = "config.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the network's raw outputs become calibrated probabilities; fitted on held-out scenes."""

    heat_scale: float = 1.0
    heat_shift: float = 0.0
    object_temperature: float = 1.0
    attribute_temperature: float = 1.0
    margin_bias: dict[str, float] = field(default_factory=dict)
    """By relation: the median of (detected - true) margin."""
    margin_error: dict[str, float] = field(default_factory=dict)
    """By relation: the standard deviation of (detected - true) margin."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected thing: what it most likely is, and how likely each class is.

    Attributes:
        item: The most likely thing: classes, place, size and depth.
        score: The probability that there is a thing at all.
        object_probabilities: Probabilities of OBJECTS, shape (40,), given that there is a thing.
        attribute_probabilities: Probabilities of ATTRIBUTES, shape (19,), given that there is a thing.
    """

    item: Item
    score: float
    object_probabilities: NDArray[np.float64]
    attribute_probabilities: NDArray[np.float64]


# --- the network ----------------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with batch normalisation and ReLU; with a stride, its patches do not overlap."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two convolutions beside a straight way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv(width, width, 3), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both, rectified."""
        return torch.relu(x + self.body(x))


class VisionModel(nn.Module):
    """The detector. Weights are float16 safetensors beside a ``config.json``."""

    def __init__(
        self,
        widths: tuple[int, int, int] = (32, 64, 160),
        head_width: int = 128,
        calibration: Calibration | None = None,
    ) -> None:
        """Make a network with random weights.

        Args:
            widths: Channels at strides 4, 8 and 16.
            head_width: Channels of the layer before the heads.
            calibration: How raw outputs become probabilities.
        """
        super().__init__()
        fine, middle, coarse = widths
        self.widths, self.head_width = widths, head_width
        self.calibration = calibration or Calibration()
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), conv(48, fine, 3), Residual(fine))
        self.middle = nn.Sequential(conv(fine, middle, 2, 2), Residual(middle), Residual(middle))
        self.coarse = nn.Sequential(conv(middle, coarse, 2, 2), Residual(coarse), Residual(coarse))
        self.up = nn.ConvTranspose2d(coarse, middle, 2, 2)
        self.merge = Residual(middle)
        self.trunk = conv(middle, head_width, 1)
        self.heads = nn.Conv2d(head_width, sum(HEADS.values()), 1)
        with torch.no_grad():
            self.heads.bias[0] = -4.0  # type: ignore[index]  # centres are rare: start by expecting none

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs by head, (batch, HEADS[name], GRID, GRID), for images (batch, 3, 256, 256) in [-1, 1]."""
        middle = self.middle(self.stem(images))
        merged = self.merge(torch.relu(middle + self.up(self.coarse(middle))))
        parts = self.heads(self.trunk(merged)).split(list(HEADS.values()), dim=1)
        return dict(zip(HEADS, parts, strict=True))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load weights and calibration from a folder; the model is then ready for detection."""
        config = json.loads((Path(folder) / _CONFIG).read_text())
        calibration = Calibration(**config["calibration"])
        model = cls(tuple(config["widths"]), config["head_width"], calibration)
        weights = load_file(Path(folder) / _WEIGHTS)
        model.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in weights.items()})
        return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def save_pretrained(self, folder: str | Path, **notes: Any) -> None:
        """Write weights and configuration, each atomically; ``notes`` are added to the configuration."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in self.state_dict().items()
        }
        draft = folder / f".{_WEIGHTS}.tmp"
        draft.write_bytes(save(state))
        draft.replace(folder / _WEIGHTS)
        config = {
            "model_type": "gems-pocket-vision",
            "widths": self.widths,
            "head_width": self.head_width,
            "calibration": asdict(self.calibration),
            **notes,
        }
        draft = folder / f".{_CONFIG}.tmp"
        draft.write_text(json.dumps(config, indent=2) + "\n")
        draft.replace(folder / _CONFIG)

    def detect(self, image: Image.Image) -> list[Detection]:
        """Detect the things in one image of any size and mode, most certain first."""
        return self.detect_many([image])[0]

    @torch.inference_mode()
    def detect_many(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Detect the things in each image, most certain first."""
        if not images:
            return []
        device = self.heads.weight.device
        batch = torch.from_numpy(np.stack([pixels(image) for image in images])).to(device)
        outputs = {name: value.float().cpu().numpy() for name, value in self(normalise(batch)).items()}
        return [
            decode({name: value[i] for name, value in outputs.items()}, self.calibration) for i in range(len(images))
        ]


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """An image as the network's input: RGB, scaled, uint8 of shape (256, 256, 3)."""
    rgb = image.convert("RGB")
    if rgb.size != (INPUT_SIZE, INPUT_SIZE):
        rgb = rgb.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def normalise(images: Tensor) -> Tensor:
    """Convert images (batch, height, width, 3) in 0 to 255 to the network's input: channels first, in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


# --- from grids to things -------------------------------------------------------------------------------------------

_FLOOR: Final = 0.03
"""Detections less likely than this are dropped."""

_REACH_SAME_OBJECT: Final = 0.20
_REACH_OTHER_OBJECT: Final = 0.05
"""Two detections are one thing if their distance is below this share of their mean size."""


def decode(outputs: dict[str, NDArray[np.float32]], calibration: Calibration) -> list[Detection]:
    """Detections from one image's raw outputs, each (HEADS[name], GRID, GRID): the most certain of each cluster."""
    scores = _sigmoid(calibration.heat_scale * outputs["heat"][0].astype(np.float64) + calibration.heat_shift)
    rows, columns = np.nonzero(scores >= _FLOOR)
    order = np.argsort(-scores[rows, columns], kind="stable")
    detections: list[Detection] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        cell = {name: value[:, row, column].astype(np.float64) for name, value in outputs.items()}
        detection = _read_cell(cell, row, column, float(scores[row, column]), calibration)
        if not any(_is_same(detection.item, other.item) for other in detections):
            detections.append(detection)
    return detections


def _read_cell(
    cell: dict[str, NDArray[np.float64]], row: int, column: int, score: float, calibration: Calibration
) -> Detection:
    objects = _softmax(cell["object"] / calibration.object_temperature)
    attributes = _softmax(cell["attribute"] / calibration.attribute_temperature)
    size, depth = (cell["box"] * BOX_SCALE + BOX_MEAN).tolist()
    x, y = ((column + 0.5 + cell["offset"][0]) / GRID, (row + 0.5 + cell["offset"][1]) / GRID)
    item = Item(
        object=int(objects.argmax()),
        attribute=int(attributes.argmax()),
        x=min(max(float(x), 0.0), 1.0),
        y=min(max(float(y), 0.0), 1.0),
        size=min(max(size, 0.03), 1.0),
        depth=min(max(depth, 0.0), 1.0),
    )
    return Detection(item, score, objects, attributes)


def _is_same(a: Item, b: Item) -> bool:
    reach = (_REACH_SAME_OBJECT if a.object == b.object else _REACH_OTHER_OBJECT) * (a.size + b.size) / 2
    return (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < reach**2


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float64)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum(), dtype=np.float64)


# --- answers --------------------------------------------------------------------------------------------------------

_SURE: Final = 0.5
"""The least probability at which a detection counts for places and looks."""


class Sight:
    """What the vision model detected in one image. Objects and attributes are indices into OBJECTS and ATTRIBUTES."""

    def __init__(self, detections: Sequence[Detection], calibration: Calibration | None = None) -> None:
        self.detections = tuple(detections)
        self._calibration = calibration or Calibration()

    def p_object(self, obj: int) -> float:
        """The probability that the image shows at least one ``obj``."""
        return 1.0 - float(self._count_distribution(obj)[0])

    def p_count(self, obj: int, n: int) -> float:
        """The probability that the image shows exactly ``n`` of ``obj``."""
        distribution = self._count_distribution(obj)
        return float(distribution[n]) if 0 <= n < len(distribution) else 0.0

    def count(self, obj: int) -> int:
        """The most likely number of ``obj``."""
        return int(self._count_distribution(obj).argmax())

    def p_attribute(self, obj: int, attribute: int) -> float:
        """The probability that there is an ``obj`` and that all of them have ``attribute``."""
        all_have = 1.0
        for detection in self.detections:
            present = detection.score * float(detection.object_probabilities[obj])
            all_have *= 1.0 - present * (1.0 - float(detection.attribute_probabilities[attribute]))
        none = float(self._count_distribution(obj)[0])
        return max(0.0, all_have - none)

    def p_relation(self, a: int, relation: str, b: int) -> float:
        """The probability that the image shows both and that "a RELATION b" holds between the two groups.

        Raises:
            ValueError: The relation is not one of RELATIONS.
        """
        if relation not in RELATIONS:
            raise ValueError(f"unknown relation {relation!r}; choose from: {', '.join(RELATIONS)}")
        both = self.p_object(a) * self.p_object(b)
        items_a, items_b = self.items(a), self.items(b)
        if not (items_a and items_b):
            return 0.5 * both  # nothing certain enough to measure: an even chance, if both are shown
        bias = self._calibration.margin_bias.get(relation, 0.0)
        error = self._calibration.margin_error.get(relation, 0.02)
        z = (relation_margin(relation, items_a, items_b) - bias) / error
        return both * 0.5 * (1.0 + erf(z / sqrt(2.0)))

    def items(self, obj: int) -> list[Item]:
        """The things that are more likely than not an ``obj``."""
        return [d.item for d in self.detections if d.score * d.object_probabilities[obj] >= _SURE]

    def attributes(self, obj: int) -> list[int]:
        """The likeliest attribute of each detected ``obj``."""
        return [item.attribute for item in self.items(obj)]

    def _count_distribution(self, obj: int) -> NDArray[np.float64]:
        """Probabilities of 0, 1, 2, ... things, with independent detections (a Poisson-binomial distribution)."""
        distribution = np.ones(1)
        for detection in self.detections:
            p = detection.score * float(detection.object_probabilities[obj])
            if p > 1e-4:
                distribution = np.convolve(distribution, [1.0 - p, p])
        return distribution


@cache
def pretrained() -> VisionModel:
    """The vision model that comes with the package, loaded once.

    Raises:
        BackendError: Its weights are missing.
    """
    from gems.models.pocket.weights import VISION, weights_folder

    return VisionModel.from_pretrained(weights_folder(VISION))


def look(image: Image.Image) -> Sight:
    """Look at an image with the weights that come with the package.

    Raises:
        BackendError: The package's weights are missing.
    """
    model = pretrained()
    return Sight(model.detect(image), model.calibration)
