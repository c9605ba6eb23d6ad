"""Train the open vision model's finder: ``python training/train_open_finder.py --out DIR``.

It starts from the pocket vision model's trunk. Scenes are drawn in chunks and kept: laid-out ones, and messy ones like
those of a weak generator, so that the finder is also right about wrong images. A stopped run continues.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from train_open_generator import SEEN_THINGS, sample_scene

from gems.models.open.finder import Finder
from gems.models.open.painting import draw
from gems.models.open.stage import MAX_THINGS, Item
from gems.models.open.things import BACKGROUNDS, LOOK_NAMES, THINGS
from gems.models.pocket.sprites import silhouette
from gems.models.pocket.vision import BOX_MEAN, BOX_SCALE, GRID, INPUT_SIZE, normalise, pretrained

CHUNK: Final = 500
HIDDEN: Final = 0.2


def sample_items(rng: np.random.Generator) -> tuple[list[Item], str, str]:
    """The things, background and text of a random scene; almost half are like a weak generator's."""
    scene = sample_scene(rng, attached=0.3)
    items = scene.items
    if rng.random() < 0.45:
        items = messy(items, rng)
    return items[:MAX_THINGS], scene.background, scene.text


def messy(items: list[Item], rng: np.random.Generator) -> list[Item]:
    """Things pulled together, copy_of, resized, dropped, doubled and confused."""
    roll = rng.random()
    if roll < 0.25:
        n = int(rng.integers(1, MAX_THINGS))
        base = rng.uniform(0.08, max(0.12, min(0.4, 0.9 / np.sqrt(n))))
        kinds = [int(rng.choice(SEEN_THINGS)) for _ in range(int(rng.integers(1, 5)))]
        return [
            Item(
                int(rng.choice(kinds)) if rng.random() < 0.7 else int(rng.choice(SEEN_THINGS)),
                int(rng.integers(len(LOOK_NAMES))) if rng.random() < 0.5 else 0,
                *rng.uniform(0.04, 0.96, 2).tolist(),
                float(base * rng.uniform(0.7, 1.3)),
                float(rng.uniform(0, 1)),
            )
            for _ in range(n)
        ]
    pull, wander, drop = rng.uniform(0, 0.7), rng.uniform(0, 0.06), rng.uniform(0, 0.2)
    result = []
    for thing in {i.thing for i in items}:
        group = [i for i in items if i.thing == thing]
        x, y = (float(np.mean([getattr(i, axis) for i in group])) for axis in ("x", "y"))
        for i in group:
            if rng.random() < drop:
                continue
            copy_of = replace(
                i,
                x=float(np.clip(i.x - pull * (i.x - x) * (roll < 0.6) + rng.normal(0, wander), 0, 1)),
                y=float(np.clip(i.y - pull * (i.y - y) * (roll < 0.6) + rng.normal(0, wander), 0, 1)),
                size=float(np.clip(i.size * np.exp(rng.normal(0, 0.12)), 0.06, 0.55)),
                depth=float(np.clip(i.depth + rng.normal(0, 0.08), 0, 1)),
            )
            result.append(copy_of)
            if rng.random() < 0.06:
                result.append(replace(copy_of, x=float(rng.uniform(0.1, 0.9)), y=float(rng.uniform(0.1, 0.9))))
    return result or items


def visibility(items: list[Item]) -> list[float]:
    """The share of each thing's silhouette that is on the canvas and not covered by things drawn later."""
    side = 128
    owner = Image.new("L", (side, side), 255)
    areas = [1.0] * len(items)
    for index in sorted(range(len(items)), key=lambda k: (items[k].depth, items[k].bottom)):
        item = items[index]
        mask = silhouette(THINGS[item.thing].twemoji, max(2, round(item.size * side)))
        areas[index] = sum(mask.histogram()[128:])
        corner = (round(item.x * side - mask.width / 2), round(item.y * side - mask.height / 2))
        owner.paste(index, corner, mask.point(lambda v: 255 if v >= 128 else 0))
    pixels_of = owner.histogram()
    return [min(1.0, pixels_of[k] / max(1.0, areas[k])) for k in range(len(items))]


def make_chunk(folder: Path, number: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Images (CHUNK, 256, 256, 3), and truth (CHUNK, MAX_THINGS + 1, 6): x, y, size, depth, lettered and visible share.

    The first number of the last row is the background.
    """
    path = folder / f"drawn-{number:03d}.npz"
    if not path.exists():
        rng = np.random.default_rng([77, number])
        images = np.empty((CHUNK, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
        truth = np.full((CHUNK, MAX_THINGS + 1, 6), -1, dtype=np.float32)
        for k in range(CHUNK):
            items, background, text = sample_items(rng)
            images[k] = np.asarray(draw(items, background, text=text, style=int(rng.integers(2**16)), size=INPUT_SIZE))
            shares = visibility(items)
            for row, (i, visible) in enumerate(zip(items, shares, strict=True)):
                truth[k, row] = (i.x, i.y, i.size, i.depth, i.lettered and bool(text), visible)
            truth[k, -1, 0] = BACKGROUNDS.index(background)
        draft = path.with_suffix(".tmp.npz")
        np.savez(draft, images=images, truth=truth)
        draft.replace(path)
    with np.load(path) as arrays:
        return arrays["images"], arrays["truth"]


def targets_of(truth: NDArray[np.float32]) -> tuple[Tensor, ...]:
    """Heat, its mask, weights (batch, GRID, GRID), places (batch, 5, GRID, GRID): offsets, size, depth and lettered."""
    n = len(truth)
    heat, weight = np.zeros((2, n, GRID, GRID), dtype=np.float32)
    mask = np.ones((n, GRID, GRID), dtype=np.float32)
    place = np.zeros((n, 5, GRID, GRID), dtype=np.float32)
    for b, slot in zip(*np.nonzero(truth[:, :-1, 2] > 0), strict=True):
        x, y, size, depth, lettered, visible = truth[b, slot].tolist()
        if not (0 <= x < 1 and 0 <= y < 1):
            continue
        column, row = int(x * GRID), int(y * GRID)
        rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        if visible < HIDDEN:
            mask[b, rows, columns] = np.where(heat[b, rows, columns] == 1, 1.0, 0.0)
            continue
        dy = (y * GRID - 0.5 - np.arange(GRID, dtype=np.float32)[rows])[:, None]
        dx = (x * GRID - 0.5 - np.arange(GRID, dtype=np.float32)[columns])[None, :]
        near = np.exp(-(dx**2 + dy**2) / (2 * 0.7**2))
        nearest = (near > weight[b, rows, columns]) & (heat[b, rows, columns] < 1)
        nearest[row - rows.start, column - columns.start] = True
        heat[b, rows, columns] = np.maximum(heat[b, rows, columns], 0.99 * near)
        heat[b, row, column] = mask[b, row, column] = 1
        weight[b, rows, columns] = np.where(nearest, near, weight[b, rows, columns])
        weight[b, row, column] = 1
        box = ((size - BOX_MEAN[0]) / BOX_SCALE[0], (depth - BOX_MEAN[1]) / BOX_SCALE[1])
        for channel, value in enumerate((dx + 0 * dy, dy + 0 * dx, *box, lettered)):
            place[b, channel, rows, columns] = np.where(nearest, value, place[b, channel, rows, columns])
    return tuple(torch.from_numpy(a) for a in (heat, mask, weight, place))


def loss_of(model: Finder, images: NDArray[np.uint8], truth: NDArray[np.float32]) -> tuple[Tensor, dict[str, float]]:
    """The total loss and its parts."""
    heat_t, mask, weight, place_t = targets_of(truth)
    inputs = normalise(torch.from_numpy(images)).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, ground = model(inputs)
    outputs, ground = {name: value.float() for name, value in outputs.items()}, ground.float()
    heat = outputs["heat"][:, 0]
    p, positive = heat.sigmoid(), heat_t == 1
    hit, miss = -F.logsigmoid(heat) * (1 - p) ** 2, -F.logsigmoid(-heat) * p**2 * (1 - heat_t) ** 4
    centre = (torch.where(positive, hit, miss) * mask).sum() / positive.sum().clamp(min=1)
    where = weight > 0.05
    share = weight[where] / weight[where].sum()
    place = torch.cat([outputs["offset"], outputs["box"]], dim=1).permute(0, 2, 3, 1)[where]
    target = place_t.permute(0, 2, 3, 1)[where]
    error = place - target[:, :4]
    lettered = F.binary_cross_entropy_with_logits(outputs["lettered"][:, 0][where], target[:, 4], reduction="none")
    parts = {
        "centre": centre,
        "place": (error[:, :3].abs() * share[:, None]).sum(),
        "depth": (error[:, 3].square() * share).sum(),
        "lettered": (lettered * share).sum(),
        "ground": F.cross_entropy(ground, torch.from_numpy(truth[:, -1, 0]).long()),
    }
    total = (
        parts["centre"] + 0.6 * parts["place"] + 1.0 * parts["depth"] + 0.5 * parts["lettered"] + 0.4 * parts["ground"]
    )
    return total, {name: float(value.detach()) for name, value in parts.items()}


def augment(
    images: NDArray[np.uint8], truth: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mirror half of the images, shift them by a few pixels and vary brightness."""
    reach, images, truth = 12, images.copy(), truth.copy()
    for k in range(len(images)):
        if rng.random() < 0.5:
            images[k] = images[k, :, ::-1]
            truth[k, :-1, 0] = np.where(truth[k, :-1, 2] > 0, 1 - truth[k, :-1, 0], truth[k, :-1, 0])
        dy, dx = rng.integers(-reach, reach + 1, size=2).tolist()
        padded = np.pad(images[k], ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        window = padded[reach - dy : reach - dy + INPUT_SIZE, reach - dx : reach - dx + INPUT_SIZE]
        table = (np.arange(256) - 128) * rng.uniform(0.92, 1.08) + 128 + rng.uniform(-10, 10)
        images[k] = table.clip(0, 255).astype(np.uint8)[window]
        truth[k, :-1, 0] += dx / INPUT_SIZE
        truth[k, :-1, 1] += dy / INPUT_SIZE
    return images, truth


def main() -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=14)
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("--start", type=Path, help="checkpoint of a finder to begin from, instead of the pocket trunk")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    o.out.mkdir(parents=True, exist_ok=True)
    if o.draw_only:
        for number in range(o.chunks):
            make_chunk(o.out, number)
            print("chunk", number, flush=True)
        return 0
    torch.manual_seed(0)
    model = Finder()
    trunk = {k: v for k, v in pretrained().state_dict().items() if not k.startswith("heads.")}
    model.load_state_dict(torch.load(o.start, weights_only=True)["average"] if o.start else trunk, strict=False)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average, optimizer, step = (
        copy.deepcopy(model),
        torch.optim.AdamW(model.parameters(), lr=o.rate, weight_decay=0.02),
        0,
    )
    path = o.out / "finder.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        step = state["step"]
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    means: dict[str, float] = {}
    saved = start = time.monotonic()
    first, per_chunk = step, CHUNK // o.batch
    while step < o.steps:
        images, truth = make_chunk(o.out, step // per_chunk % o.chunks)
        order = np.random.default_rng([5, step // per_chunk]).permutation(CHUNK)
        rows = order[step % per_chunk * o.batch :][: o.batch]
        for group in optimizer.param_groups:
            group["lr"] = o.rate * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / o.steps)) + 0.005)
        model.train()
        loss, parts = loss_of(model, *augment(images[rows], truth[rows], np.random.default_rng([6, step])))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        keep = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - keep)
        means = {k: 0.97 * means.get(k, v) + 0.03 * v for k, v in parts.items()}
        if step % 25 == 0:
            print(
                step,
                f"{(time.monotonic() - start) / (step - first):.2f} s",
                {k: round(v, 4) for k, v in means.items()},
                flush=True,
            )
        if time.monotonic() - saved > 90 or step == o.steps:
            draft = path.with_suffix(".tmp")
            torch.save(
                {
                    "step": step,
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                draft,
            )
            draft.replace(path)
            saved = time.monotonic()
    return 0


if __name__ == "__main__":
    sys.exit(main())
