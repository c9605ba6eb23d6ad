"""Train the pocket vision model: ``python training/train_vision.py --out DIR``.

Scenes are drawn once, in chunks, and kept beside the checkpoint: laid-out ones, and messy ones like those of a weak
generator, so that the model is also right about wrong images. Each chunk and each step depends only on the seed and its
number. A run that is stopped at any moment and started again with ``--resume`` continues from its last checkpoint. The
moving average of the weights is exported at intervals, calibrated on fresh scenes, ready for use.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # PyTorch's own name for it

from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Item, count_of, layout, relation_margin, sample_spec
from gems.models.pocket.sprites import silhouette
from gems.models.pocket.vision import (
    BOX_MEAN,
    BOX_SCALE,
    GRID,
    INPUT_SIZE,
    Calibration,
    Sight,
    VisionModel,
    normalise,
    pixels,
)
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS, RELATIONS

__all__ = [
    "Settings",
    "calibrate",
    "crowded",
    "gone_wrong",
    "main",
    "match",
    "messy_items",
    "sample_items",
    "strewn",
    "train",
]

MAX_ITEMS: Final = 24
HIDDEN: Final = 0.2
"""Things with a smaller visible share are ignored: the model may detect them or not."""

# --- scenes ---------------------------------------------------------------------------------------------------------


def sample_items(rng: np.random.Generator, *, messy: float = 0.45) -> list[Item]:
    """The things of a random scene, which is messy with probability ``messy`` and laid out otherwise."""
    return messy_items(rng) if rng.random() < messy else layout(sample_spec(rng), rng).items


def messy_items(rng: np.random.Generator) -> list[Item]:
    """A scene like those of a weak generator: a laid-out one gone wrong or crowded, or things strewn at random."""
    roll = rng.random()
    if roll < 0.3:
        return strewn(rng)
    items = layout(sample_spec(rng), rng).items
    return (crowded(items, rng) if roll < 0.65 else gone_wrong(items, rng))[:MAX_ITEMS]


def crowded(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    """Move things of a kind together until they overlap, like a generator that cannot keep them apart."""
    crowd = []
    for kind in dict.fromkeys(i.object for i in items):
        group = [i for i in items if i.object == kind]
        x, y = (float(np.mean([getattr(i, axis) for i in group])) for axis in ("x", "y"))
        pull, jitter = rng.uniform(0.3, 1.0), rng.uniform(0, 0.03)
        dx, dy = rng.normal(0, 0.04, size=2)
        crowd += [
            _placed(
                i,
                x + dx + pull * (i.x - x) + rng.normal(0, jitter),
                y + dy + pull * (i.y - y) + rng.normal(0, jitter),
                i.size * float(np.exp(rng.normal(0, 0.08))),
                i.depth + rng.normal(0, 0.05),
            )
            for i in group
        ]
    return crowd


def gone_wrong(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    """Move, resize, drop, duplicate and confuse things, and add unrelated ones."""
    wander, drop, confuse = rng.uniform(0, 0.06), rng.uniform(0, 0.25), rng.uniform(0, 0.25)
    remaining = [i for i in items if rng.random() >= drop] or list(items)
    duplicates = [remaining[int(rng.integers(len(remaining)))] for _ in range(int(rng.integers(0, 3)))]
    shifted = [
        _placed(
            i,
            i.x + rng.normal(0, wander) + (rng.uniform(-0.3, 0.3) if i in duplicates else 0.0),
            i.y + rng.normal(0, wander) + (rng.uniform(-0.3, 0.3) if i in duplicates else 0.0),
            i.size * float(np.exp(rng.normal(0, 0.15))),
            i.depth + rng.normal(0, 0.1),
        )
        for i in [*remaining, *duplicates]
    ]
    confused = []
    for item in shifted:
        other = shifted[int(rng.integers(len(shifted)))]
        if rng.random() < confuse:
            attribute = other.attribute if rng.random() < 0.5 else int(rng.integers(len(ATTRIBUTES)))
            item = replace(item, attribute=attribute)
        if rng.random() < confuse / 2:
            item = replace(item, object=other.object if rng.random() < 0.5 else int(rng.integers(len(OBJECTS))))
        confused.append(item)
    strangers = strewn(rng, n=int(rng.integers(1, 4))) if rng.random() < 0.4 else []
    return [*confused, *strangers]


def strewn(rng: np.random.Generator, n: int | None = None) -> list[Item]:
    """Things at random places, of one to three kinds or each of its own kind."""
    n = n or int(rng.integers(1, MAX_ITEMS + 1))
    kinds = int(rng.integers(1, 4)) if rng.random() < 0.5 else n
    palette = [(int(rng.integers(len(OBJECTS))), int(rng.integers(len(ATTRIBUTES)))) for _ in range(kinds)]
    largest = max(0.12, min(0.4, 0.9 / math.sqrt(n)))
    base = rng.uniform(0.09, largest)
    items = []
    for _ in range(n):
        obj, attribute = palette[int(rng.integers(kinds))]
        attribute = attribute if rng.random() < 0.7 else int(rng.integers(len(ATTRIBUTES)))
        size = base * rng.uniform(0.8, 1.25)
        x, y = rng.uniform(0.04, 0.96, size=2)
        items.append(_placed(Item(obj, attribute, 0, 0, 0, 0), x, y, size, rng.uniform(0, 1)))
    return items


def _placed(item: Item, x: float, y: float, size: float, depth: float) -> Item:
    """Move and resize ``item`` within the limits of what slots can represent."""
    return replace(
        item,
        x=float(np.clip(x, 0, 1)),
        y=float(np.clip(y, 0, 1)),
        size=float(np.clip(size, 0.06, 0.45)),
        depth=float(np.clip(depth, 0, 1)),
    )


def visibility(items: Sequence[Item]) -> list[float]:
    """The share of each thing's silhouette that is on the canvas and not covered by things drawn later, in [0, 1]."""
    side = 128
    owner = Image.new("L", (side, side), 255)
    areas = [1.0] * len(items)
    for index in sorted(range(len(items)), key=lambda k: (items[k].depth, items[k].y)):
        item = items[index]
        mask = silhouette(OBJECTS[item.object].twemoji, max(2, round(item.size * side)))
        areas[index] = sum(mask.histogram()[128:])
        corner = (round(item.x * side - mask.width / 2), round(item.y * side - mask.height / 2))
        owner.paste(index, corner, mask.point(lambda v: 255 if v >= 128 else 0))
    visible_areas = owner.histogram()
    return [min(1.0, visible_areas[k] / max(1.0, areas[k])) for k in range(len(items))]


def draw_input(items: Sequence[Item], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A scene as the network's input, (256, 256, 3): drawn small or scaled down, sometimes compressed as JPEG."""
    size = 512 if rng.random() < 0.3 else INPUT_SIZE
    image = draw_scene(items, style=int(rng.integers(2**16)), size=size)
    if rng.random() < 0.1:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
        image = Image.open(buffer)
    return pixels(image)


# --- data -----------------------------------------------------------------------------------------------------------

Truth = NDArray[np.float32]
"""(scenes, MAX_ITEMS, 7): object, attribute, x, y, size, depth and visibility, in drawing order; -1 in unused rows."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Drawn scenes: pixels (scenes, 256, 256, 3) and the true things in them."""

    images: NDArray[np.uint8]
    truth: Truth

    @classmethod
    def cached(cls, folder: Path, number: int, seed: int, scenes: int) -> Chunk:
        """Chunk ``number`` stored in ``folder``, which is drawn first if it is missing."""
        image_file, truth_file = (folder / f"{kind}-{seed}-{scenes}-{number:03d}.npy" for kind in ("images", "truth"))
        if not (image_file.exists() and truth_file.exists()):
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([seed, number])
            images = np.empty((scenes, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
            truth = np.full((scenes, MAX_ITEMS, 7), -1, dtype=np.float32)
            for k in range(scenes):
                items = sample_items(rng)
                images[k], truth[k] = draw_input(items, rng), to_truth(items)
            for path, array in ((image_file, images), (truth_file, truth)):
                draft = path.with_suffix(".tmp.npy")
                np.save(draft, array)
                draft.replace(path)
        return cls(np.load(image_file, mmap_mode="r"), np.load(truth_file))


def to_truth(items: Sequence[Item]) -> Truth:
    """One scene's row of a chunk's truth, (MAX_ITEMS, 7)."""
    rows = np.full((MAX_ITEMS, 7), -1, dtype=np.float32)
    visible_shares = visibility(items)
    order = sorted(range(len(items)), key=lambda k: (items[k].depth, items[k].y))
    for row, k in zip(rows, order, strict=False):
        i = items[k]
        row[:] = (i.object, i.attribute, i.x, i.y, i.size, i.depth, visible_shares[k])
    return rows


@dataclass(frozen=True, slots=True)
class Targets:
    """The heads' targets by cell: (batch, GRID, GRID) each; (batch, 4, GRID, GRID) for ``place``, offset and box.

    ``heat_mask`` is 0 where the heat is not trained; ``weight`` is the weight of a cell in all other losses.
    """

    heat: Tensor
    heat_mask: Tensor
    weight: Tensor
    object: Tensor
    attribute: Tensor
    place: Tensor


def make_targets(truth: Truth) -> Targets:
    """Grids of targets from truth (batch, MAX_ITEMS, 7), at each centre and, with less weight, its eight neighbours."""
    n = len(truth)
    heat = np.zeros((n, GRID, GRID), dtype=np.float32)
    heat_mask = np.ones_like(heat)
    weight = np.zeros_like(heat)
    object_, attribute = (np.zeros((n, GRID, GRID), dtype=np.int64) for _ in range(2))
    place = np.zeros((n, 4, GRID, GRID), dtype=np.float32)
    for b, slot in zip(*np.nonzero(truth[..., 0] >= 0), strict=True):
        obj, attr, x, y, size, depth, visible_share = truth[b, slot].tolist()
        if not (0 <= x < 1 and 0 <= y < 1):
            continue
        column, row = int(x * GRID), int(y * GRID)
        rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        if visible_share < HIDDEN:
            heat_mask[b, rows, columns] = np.where(heat[b, rows, columns] == 1, 1.0, 0.0)
            continue
        dy = (y * GRID - 0.5 - np.arange(GRID, dtype=np.float32)[rows])[:, None]
        dx = (x * GRID - 0.5 - np.arange(GRID, dtype=np.float32)[columns])[None, :]
        near = np.exp(-(dx**2 + dy**2) / (2 * 0.7**2))
        # A neighbouring cell belongs to the nearest thing, a centre cell always to its own.
        is_nearest = near > weight[b, rows, columns]
        is_nearest &= heat[b, rows, columns] < 1
        is_nearest[row - rows.start, column - columns.start] = True
        heat[b, rows, columns] = np.maximum(heat[b, rows, columns], 0.99 * near)
        heat[b, row, column] = 1
        heat_mask[b, row, column] = 1
        weight[b, rows, columns] = np.where(is_nearest, near, weight[b, rows, columns])
        weight[b, row, column] = 1
        object_[b, rows, columns] = np.where(is_nearest, int(obj), object_[b, rows, columns])
        attribute[b, rows, columns] = np.where(is_nearest, int(attr), attribute[b, rows, columns])
        box = ((size - BOX_MEAN[0]) / BOX_SCALE[0], (depth - BOX_MEAN[1]) / BOX_SCALE[1])
        for channel, value in enumerate((dx + 0 * dy, dy + 0 * dx, box[0], box[1])):
            place[b, channel, rows, columns] = np.where(is_nearest, value, place[b, channel, rows, columns])
    return Targets(*(torch.from_numpy(a) for a in (heat, heat_mask, weight, object_, attribute, place)))


def augment(images: NDArray[np.uint8], truth: Truth, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Truth]:
    """Shift each image by a few pixels, and vary its brightness and contrast slightly."""
    reach = 12
    images, truth = images.copy(), truth.copy()
    for k in range(len(images)):
        dy, dx = rng.integers(-reach, reach + 1, size=2).tolist()
        padded = np.pad(images[k], ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        window = padded[reach - dy : reach - dy + INPUT_SIZE, reach - dx : reach - dx + INPUT_SIZE]
        table = (np.arange(256) - 128) * rng.uniform(0.92, 1.08) + 128 + rng.uniform(-10, 10)
        images[k] = table.clip(0, 255).astype(np.uint8)[window]
        truth[k, :, 2] += dx / INPUT_SIZE
        truth[k, :, 3] += dy / INPUT_SIZE
    return images, truth


# --- learning -------------------------------------------------------------------------------------------------------


def loss_of(outputs: dict[str, Tensor], targets: Targets) -> tuple[Tensor, dict[str, float]]:
    """The total loss and its parts: focal for centres, cross-entropy for classes, L1 for places, L2 for depth."""
    heat = outputs["heat"][:, 0].float()
    positive = targets.heat == 1
    p = heat.sigmoid()
    hit = -F.logsigmoid(heat) * (1 - p) ** 2
    miss = -F.logsigmoid(-heat) * p**2 * (1 - targets.heat) ** 4
    count = positive.sum().clamp(min=1)
    centre = (torch.where(positive, hit, miss) * targets.heat_mask).sum() / count

    where = targets.weight > 0.05
    weight = targets.weight[where]
    weight = weight / weight.sum()

    def classes(name: str, target: Tensor) -> Tensor:
        logits = outputs[name].float().permute(0, 2, 3, 1)[where]
        return (F.cross_entropy(logits, target[where], reduction="none") * weight).sum()

    place = torch.cat([outputs["offset"], outputs["box"]], dim=1).float().permute(0, 2, 3, 1)[where]
    error = (place - targets.place.permute(0, 2, 3, 1)[where]) * weight.sqrt()[:, None]
    parts = {
        "centre": centre,
        "object": classes("object", targets.object),
        "attribute": classes("attribute", targets.attribute),
        "place": (error[:, :3].abs() * weight.sqrt()[:, None]).sum(),
        # Most things have medium depth, so L1 would only teach the median; L2 teaches the mean.
        "depth": error[:, 3].square().sum(),
    }
    weights = {"centre": 1.0, "object": 1.0, "attribute": 1.0, "place": 0.5, "depth": 2.0}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, {name: float(part.detach()) for name, part in parts.items()}


def match(detected: Sequence[Item], truth: Sequence[Item]) -> list[int]:
    """For each detected thing, in order, the index of the nearest true thing not matched before, or -1."""
    free = set(range(len(truth)))
    matches = []
    for item in detected:
        distance = {k: math.hypot(item.x - truth[k].x, item.y - truth[k].y) / truth[k].size for k in free}
        best = min(distance, key=lambda k: distance[k] + 0.1 * (truth[k].object != item.object), default=-1)
        if best >= 0 and distance[best] > 0.35:
            best = -1
        free.discard(best)
        matches.append(best)
    return matches


def calibrate(model: VisionModel, *, scenes: int = 600, seed: int = 1_000_003) -> Calibration:
    """Fit calibrated probabilities on fresh scenes, half of them messy."""
    rng = np.random.default_rng(seed)
    model.calibration = Calibration(margin_error=dict.fromkeys(RELATIONS, 0.02))
    heat: list[tuple[float, float]] = []
    log_probabilities: dict[str, list[NDArray[np.float64]]] = {"object": [], "attribute": []}
    classes: dict[str, list[int]] = {"object": [], "attribute": []}
    margins: dict[str, list[float]] = {name: [] for name in RELATIONS}
    for start in range(0, scenes, 16):
        batch = [sample_items(rng, messy=0.5) for _ in range(min(16, scenes - start))]
        images = [Image.fromarray(draw_input(items, rng)) for items in batch]
        for items, detections in zip(batch, model.detect_many(images), strict=True):
            visible_shares = visibility(items)
            for d, k in zip(detections, match([d.item for d in detections], items), strict=True):
                logit = math.log(d.score / (1 - d.score)) if d.score < 1 - 1e-9 else 20.0
                if k < 0 or visible_shares[k] >= HIDDEN:
                    heat.append((logit, float(k >= 0)))
                if k >= 0 and visible_shares[k] >= HIDDEN:
                    log_probabilities["object"].append(np.log(d.object_probabilities + 1e-12))
                    classes["object"].append(items[k].object)
                    log_probabilities["attribute"].append(np.log(d.attribute_probabilities + 1e-12))
                    classes["attribute"].append(items[k].attribute)
            _add_margins(margins, items, Sight(detections))
    scale, shift = _fit_platt(heat)
    bias = {name: float(np.median(errors)) for name, errors in margins.items() if errors}
    return Calibration(
        heat_scale=scale,
        heat_shift=shift,
        object_temperature=_fit_temperature(log_probabilities["object"], classes["object"]),
        attribute_temperature=_fit_temperature(log_probabilities["attribute"], classes["attribute"]),
        margin_bias={name: round(value, 4) for name, value in bias.items()},
        margin_error={name: round(_spread(errors), 4) for name, errors in margins.items() if errors},
    )


def _spread(errors: Sequence[float]) -> float:
    """Standard deviation without the 2% outliers, which are wrong matches rather than wrong places; at least 0.004."""
    low, high = np.quantile(errors, [0.01, 0.99])
    return max(0.004, float(np.std(np.clip(errors, low, high))))


def _add_margins(margins: dict[str, list[float]], items: Sequence[Item], sight: Sight) -> None:
    """Add errors of the relation margins between the scene's first kinds whose counts were detected correctly."""
    kinds = sorted({i.object for i in items})[:3]
    for a in kinds:
        for b in kinds:
            if a == b or any(len(sight.items(k)) != count_of(items, k) for k in (a, b)):
                continue
            for relation, errors in margins.items():
                true = relation_margin(
                    relation, [i for i in items if i.object == a], [i for i in items if i.object == b]
                )
                if abs(true) < 0.3:
                    errors.append(relation_margin(relation, sight.items(a), sight.items(b)) - true)


def _fit_platt(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Scale and shift of a logit, by maximum likelihood: pairs of (logit, 0 or 1). (1, 0) without both classes."""
    if len({truth for _, truth in pairs}) < 2:
        return 1.0, 0.0
    logit, truth = torch.tensor(pairs, dtype=torch.float64).unbind(dim=1)
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        scaled = parameters[0] * logit + parameters[1]
        loss = F.binary_cross_entropy_with_logits(scaled, truth) + 1e-4 * (parameters[0] - 1) ** 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call,unused-ignore]
    scale, shift = parameters.detach().tolist()
    return round(scale, 4), round(shift, 4)


def _fit_temperature(log_probabilities: Sequence[NDArray[np.float64]], classes: Sequence[int]) -> float:
    """The temperature that makes the true classes likeliest, from log-probabilities (n, classes); 1 without data."""
    if not classes:
        return 1.0
    logits = torch.from_numpy(np.stack(log_probabilities))

    def surprise(temperature: float) -> float:
        scaled = (logits / temperature).log_softmax(dim=1)
        return float(-scaled[torch.arange(len(classes)), torch.tensor(classes)].mean())

    return round(float(min(np.geomspace(0.4, 4.0, 60), key=surprise)), 4)


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run. The learning rate falls by the clock if ``minutes`` is set, otherwise by the step."""

    steps: int = 5000
    minutes: float | None = None
    batch: int = 32
    learning_rate: float = 2.5e-3
    warmup: int = 100
    ema: float = 0.998
    chunks: int = 20
    chunk: int = 2048
    """Scenes in a chunk; 2048 scenes are 400 MB of pixels."""
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: float = 1.5
    export_every: float = 8.0
    """Minutes between checkpoints, and between exports."""
    calibration_scenes: int = 600
    start: Path | None = None
    """Folder of trained weights to start from: fine-tunes them."""


class _Run:
    """The state of a run, which a checkpoint stores."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        untrained = VisionModel() if settings.start is None else VisionModel.from_pretrained(settings.start)
        self.model = untrained.to(settings.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: VisionModel = copy.deepcopy(self.model).eval()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
        self.step = 0
        self.seconds = 0.0
        self.losses: dict[str, float] = {}

    @property
    def progress(self) -> float:
        """The share of the run that is complete, in [0, 1]."""
        minutes = self.settings.minutes
        return self.seconds / 60 / minutes if minutes is not None else self.step / self.settings.steps

    def learn(self, images: NDArray[np.uint8], truth: Truth) -> None:
        """One optimizer step."""
        began = time.monotonic()
        device = self.settings.device
        targets = make_targets(truth)
        targets = Targets(*(getattr(targets, name).to(device) for name in Targets.__slots__))
        inputs = normalise(torch.from_numpy(images).to(device)).contiguous(memory_format=torch.channels_last)
        warm = min(1.0, (self.step + 1) / self.settings.warmup)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, self.progress))
        rate = self.settings.learning_rate * warm * (0.01 + 0.99 * cosine)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            outputs = self.model(inputs)
        loss, parts = loss_of(outputs, targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        self.losses = {name: 0.98 * self.losses.get(name, value) + 0.02 * value for name, value in parts.items()}
        self.seconds += time.monotonic() - began

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        draft = path.with_suffix(".tmp")
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
            },
            draft,
        )
        draft.replace(path)

    def load(self, path: Path) -> None:
        """Restore the state of a checkpoint."""
        state = torch.load(path, map_location=self.settings.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def export(self, folder: Path) -> None:
        """Calibrate the averaged weights and save them for use."""
        self.average.calibration = calibrate(self.average, scenes=self.settings.calibration_scenes)
        self.average.save_pretrained(folder, trained={"steps": self.step, "batch": self.settings.batch})


def train(out: Path, settings: Settings, *, resume: bool = False) -> VisionModel:
    """Train for the number of steps or minutes, and return the averaged, calibrated model.

    Args:
        out: Folder of the weights; checkpoints and drawn scenes are in ``out/run``.
        settings: The settings of the run.
        resume: Continue from the checkpoint in ``out/run``, if there is one.
    """
    folder = out / "run"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    run = _Run(settings)
    if resume and checkpoint.exists():
        run.load(checkpoint)
    saved = exported = time.monotonic()
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, refresh_per_second=1) as bar:
        task = bar.add_task("training", total=1.0, note="")
        for images, truth in batches(folder, settings, run.step):
            if run.progress >= 1:
                break
            run.learn(images, truth)
            note = ", ".join(f"{name} {value:.3f}" for name, value in run.losses.items())
            bar.update(task, completed=run.progress, note=f"step {run.step}: {note}")
            now = time.monotonic()
            if now - saved >= 60 * settings.checkpoint_every:
                run.save(checkpoint)
                bar.console.print(f"step {run.step}: {note}")
                saved = now
            if now - exported >= 60 * settings.export_every:
                run.export(out)
                exported = now
    run.save(checkpoint)
    run.export(out)
    return run.average


def batches(folder: Path, settings: Settings, start: int) -> Iterator[tuple[NDArray[np.uint8], Truth]]:
    """All augmented batches from step ``start`` on, without end: chunk after chunk, each in an order of its own."""
    per_chunk = settings.chunk // settings.batch
    for number in itertools.count(start // per_chunk):
        chunk = Chunk.cached(folder, number % settings.chunks, settings.seed, settings.chunk)
        order = np.random.default_rng([settings.seed, 1, number]).permutation(settings.chunk)
        for step in range(max(start, number * per_chunk), (number + 1) * per_chunk):
            first = step % per_chunk * settings.batch
            rows = np.sort(order[first : first + settings.batch])
            yield augment(chunk.images[rows], chunk.truth[rows], np.random.default_rng([settings.seed, 2, step]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights; checkpoints are in its run/")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps (default %(default)s)")
    parser.add_argument("--minutes", type=float, help="train for this many minutes instead of a number of steps")
    parser.add_argument("--batch", type=int, default=defaults.batch, help="images per step (default %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=defaults.learning_rate, help="peak learning rate (default %(default)s)"
    )
    parser.add_argument("--start", type=Path, help="folder of trained weights to fine-tune")
    parser.add_argument(
        "--chunks", type=int, default=defaults.chunks, help="chunks of scenes to draw and cycle through"
    )
    parser.add_argument("--chunk", type=int, default=defaults.chunk, help="scenes in a chunk (default %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of scenes, weights and order")
    parser.add_argument("--device", default=defaults.device, help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice by default)")
    parser.add_argument("--export-every", type=float, default=defaults.export_every, help="minutes between exports")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the folder")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    out, resume, threads = options.pop("out"), options.pop("resume"), options.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    train(out, Settings(**options), resume=resume)
    sys.stderr.write(f"weights are in {out}\n")


if __name__ == "__main__":
    main()
