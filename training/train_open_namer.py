"""Train the open vision model's namer: ``python training/train_open_namer.py --out DIR``.

Crops are composed in batches: a thing in a random look, size, place, light and sharpness before a random piece of a
background, partly covered by others. The network learns to embed a crop near the drawing of its noun, whatever its
look, and to tell the look. One thing in ten is held out. A stopped run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from train_open_generator import SEEN_THINGS, make_text

from gems.models.open import painting
from gems.models.open.backdrops import backdrop
from gems.models.open.namer import CONTEXT, CROP, EMBEDDING, Namer, prototype_image
from gems.models.open.stage import CARRIERS
from gems.models.open.things import BACKGROUNDS, LOOK_NAMES, THINGS
from gems.models.pocket.sprites import MARGIN, SPRITE_SIZE, sprite

SIDE: Final = 88
"""Side of a kept sprite, which stands for SPRITE_SIZE + 2 * MARGIN."""


def make_bank(path: Path, looks: int, seed: int = 0) -> dict[str, Tensor]:
    """Sprites (n, 4, SIDE, SIDE) uint8 with their things and looks, and backgrounds (m, 3, 256, 256) uint8."""
    bank = torch.load(path, weights_only=True) if path.exists() else {}
    present = set(bank["things"].tolist()) if bank else set()
    if present == set(SEEN_THINGS):
        return bank  # type: ignore[no-any-return]
    rng = np.random.default_rng(seed)
    sprites, things, which = [], [], []
    for thing in sorted(set(SEEN_THINGS) - present):
        for look in [0, *rng.permutation(np.arange(1, len(LOOK_NAMES)))[:looks]]:
            image = sprite(THINGS[thing].twemoji, LOOK_NAMES[look])
            if THINGS[thing].name in CARRIERS and rng.random() < 0.5:
                image = painting._lettered(image, make_text(rng))
            sprites.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)).transpose(2, 0, 1))
            things.append(thing)
            which.append(int(look))
    grounds = [
        np.asarray(backdrop(name, int(style), 256).image).transpose(2, 0, 1)
        for name in BACKGROUNDS
        for style in rng.integers(2**16, size=14)
    ]
    parts = {
        "sprites": torch.from_numpy(np.stack(sprites)),
        "things": torch.tensor(things),
        "looks": torch.tensor(which),
    }
    bank = {k: torch.cat([bank[k], v]) if bank else v for k, v in parts.items()} | {
        "grounds": torch.from_numpy(np.stack(grounds))
    }
    torch.save(bank, path)
    return bank


def compose(bank: dict[str, Tensor], n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (n, 3, CROP, CROP) in [-1, 1] with their things and looks."""
    rows = torch.randint(len(bank["sprites"]), (n,), generator=g)
    count = len(bank["grounds"])

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*(shape or (n,)), generator=g)

    picks = torch.randint(count, (n,), generator=g)
    zoom = uniform(0.08, 0.5)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-0.5, 0.5), uniform(-0.5, 0.5)
    canvas = _sample(bank["grounds"][picks].float() / 255, theta)

    thing_zoom = uniform(0.88, 1.14)
    dx, dy = uniform(-0.11, 0.11), uniform(-0.11, 0.11)
    haze = torch.where(torch.rand(n, generator=g) < 0.5, uniform(0, 0.26), torch.zeros(n))
    # things behind, the thing itself, things in front
    neighbours = torch.randint(len(bank["sprites"]), (n,), generator=g)
    away, turn = uniform(0.7, 1.7), uniform(0, 6.28)
    scale = uniform(0.6, 1.4)
    show = (torch.rand(n, generator=g) < 0.5).float()
    canvas = _paste(canvas, bank["sprites"][neighbours], scale, away * turn.cos(), away * turn.sin(), show, haze)
    canvas = _paste(canvas, bank["sprites"][rows], thing_zoom, dx, dy, torch.ones(n), haze)
    for share in (0.55, 0.3):
        near = torch.rand(n, generator=g) < share
        neighbours = torch.randint(len(bank["sprites"]), (n,), generator=g)
        neighbours = torch.where(torch.rand(n, generator=g) < 0.5, rows, neighbours)
        away, turn = uniform(0.52, 1.4), uniform(0, 6.28)
        x, y = away * turn.cos(), away * turn.sin()
        canvas = _paste(canvas, bank["sprites"][neighbours], uniform(0.7, 1.3), x, y, near.float(), haze)

    light = 1 + torch.where(torch.rand(n, 1, generator=g) < 0.3, uniform(-0.16, 0.04, n, 3), torch.zeros(n, 3))
    canvas = canvas * light[:, :, None, None]
    sharpness = int(torch.randint(4, (1,), generator=g))
    side = (64, 44, 32, 26)[sharpness]
    if side < CROP:
        canvas = F.interpolate(
            F.interpolate(canvas, size=side, mode="area"), size=CROP, mode="bilinear", align_corners=False
        )
    return canvas.clamp(0, 1) * 2 - 1, bank["things"][rows], bank["looks"][rows]


def _sample(images: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, [len(images), images.shape[1], CROP, CROP], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _paste(canvas: Tensor, sprites: Tensor, zoom: Tensor, x: Tensor, y: Tensor, show: Tensor, haze: Tensor) -> Tensor:
    """Paste sprites with their shadow; x and y are in halves of the crop, zoom in sides of a centred thing."""
    outer = (SPRITE_SIZE + 2 * MARGIN) / SPRITE_SIZE / CONTEXT
    scale = 1 / (zoom * outer)
    theta = torch.zeros(len(canvas), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = -x * scale, -y * scale
    layer = _sample(sprites.float() / 255, theta)
    shade = layer[:, 3:].roll((3, 2), (2, 3)) * 0.3 * show[:, None, None, None]
    canvas = canvas * (1 - shade)
    alpha = layer[:, 3:] * show[:, None, None, None]
    veil = torch.tensor([0.88, 0.92, 0.92])[None, :, None, None]
    color = layer[:, :3] + (veil - layer[:, :3]) * haze[:, None, None, None]
    return canvas * (1 - alpha) + color * alpha


class Run:
    """The network, its moving average, learned proxies of the seen things, and the optimizer."""

    def __init__(self, path: Path, steps: int, rate: float) -> None:
        torch.manual_seed(0)
        self.path, self.steps, self.rate, self.step, self.note = path, steps, rate, 0, ""
        self.model = Namer().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.proxies = nn.Parameter(0.1 * torch.randn(len(THINGS), EMBEDDING))
        self.average = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW([*self.model.parameters(), self.proxies], lr=rate, weight_decay=0.02)
        self.means = {"loss": 0.0, "proxy": 0.0, "pair": 0.0, "look": 0.0}
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.proxies.data[: len(state["proxies"])] = state["proxies"]
            if len(state["proxies"]) == len(self.proxies):
                self.optimizer.load_state_dict(state["optimizer"])

    def learn(self, bank: dict[str, Tensor], drawings: Tensor, batch: int) -> None:
        """One step: crops against proxies of all seen things and against the drawings of the batch's things."""
        g = torch.Generator().manual_seed(self.step + 1)
        rate = self.rate * min((self.step + 1) / 200, 0.5 * (1 + math.cos(math.pi * self.step / self.steps)) + 0.002)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        crops, things, looks = compose(bank, batch, g)
        kinds, inverse = things.unique(return_inverse=True)
        originals = drawings[kinds]
        both = torch.cat([crops, originals]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            embedded, look = self.model(both)
        embedded, look = F.normalize(embedded.float(), dim=1), look.float()
        crop_vectors, drawing_vectors = embedded[:batch], embedded[batch:]
        scale = self.model.scale.exp()
        seen_rows = torch.tensor(SEEN_THINGS)
        proxies = F.normalize(self.proxies[seen_rows], dim=1)
        position = torch.full((len(THINGS),), -1)
        position[seen_rows] = torch.arange(len(seen_rows))
        proxy = F.cross_entropy(scale * crop_vectors @ proxies.T, position[things])
        pair = F.cross_entropy(scale * crop_vectors @ drawing_vectors.T, inverse)
        back = F.cross_entropy(scale * drawing_vectors @ proxies.T, position[kinds])
        looking = F.cross_entropy(look[:batch], looks)
        loss = proxy + pair + 0.5 * back + 0.7 * looking
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        keep = min(0.998, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - keep)
        self.step += 1
        with torch.no_grad():
            right = (crop_vectors @ drawing_vectors.T).argmax(1) == inverse
            parts = {
                "loss": loss.item(),
                "proxy": ((crop_vectors @ proxies.T).argmax(1) == position[things]).float().mean().item(),
                "pair": right.float().mean().item(),
                "look": (look[:batch].argmax(1) == looks).float().mean().item(),
            }
        for name, value in parts.items():
            self.means[name] = value if self.step == 1 else 0.97 * self.means[name] + 0.03 * value

    def save(self) -> None:
        """Write the checkpoint."""
        draft = self.path.with_suffix(".tmp")
        torch.save(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "proxies": self.proxies.data,
                "optimizer": self.optimizer.state_dict(),
            },
            draft,
        )
        draft.replace(self.path)


def main() -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--looks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    bank = make_bank(options.out / "bank.pt", options.looks)
    drawings = (
        torch.from_numpy(np.stack([prototype_image(t) for t in range(len(THINGS))])).permute(0, 3, 1, 2).float() / 127.5
        - 1
    )
    run = Run(options.out / "namer.pt", options.steps, options.rate)
    start = saved = time.monotonic()
    first = run.step
    while run.step < options.steps:
        run.learn(bank, drawings, options.batch)
        if run.step % 50 == 0:
            pace = (time.monotonic() - start) / (run.step - first)
            print(run.step, f"{pace:.2f} s", {k: round(v, 3) for k, v in run.means.items()}, flush=True)
        if time.monotonic() - saved > 90:
            run.save()
            saved = time.monotonic()
    run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
