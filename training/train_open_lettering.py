"""Train the open vision model's reader of labels: ``python training/train_open_lettering.py --out DIR``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812
from train_open_generator import make_text

from gems.models.open.lettering import BLANK, LineReader, lines_of, read_lines
from gems.models.open.painting import _lines, plate
from gems.models.open.slots import ALPHABET


def sample(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A label as it is found in an image: in any size and light, framed with an error of some pixels."""
    text = make_text(rng)
    side = int(rng.integers(150, 290))
    width, height = round(0.84 * side), round(0.44 * side)
    label = plate(text, round(0.84 * 192), round(0.44 * 192)).resize((width, height), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (width + 60, height + 60), tuple(int(v) for v in rng.integers(30, 240, 3)))
    canvas.paste(label, (30, 30), label)
    veil = Image.new("RGB", canvas.size, (230, 236, 236))
    canvas = Image.blend(canvas, veil, float(rng.uniform(0, 0.26)) * float(rng.random() < 0.6))
    canvas = canvas.point([min(255, round(v * rng.uniform(0.8, 1.0))) for v in range(256)] * 3)
    dx, dy = rng.normal(0, 0.015 * side, 2)
    grow = rng.normal(0, 0.03)
    box = (30 + dx - grow * width, 30 + dy - grow * height, 30 + dx + width * (1 + grow), 30 + dy + height * (1 + grow))
    return canvas.crop(tuple(round(v) for v in box)), text


def main() -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--threads", type=int, default=1)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    model = LineReader()
    if o.start:
        model.load_state_dict(torch.load(o.start, weights_only=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    start, mean = time.monotonic(), 0.0
    for step in range(o.steps):
        rng = np.random.default_rng([9, step])
        lines, targets = [], []
        while len(lines) < o.batch:
            label, text = sample(rng)
            line_images, line_texts = lines_of(label), _lines(text)
            if len(line_images) == len(line_texts):
                lines += line_images
                targets += [[ALPHABET.index(c) + 1 for c in line] for line in line_texts]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / 100, 0.5 * (1 + np.cos(np.pi * step / o.steps)) + 0.01)
        logits = model(torch.from_numpy(np.stack(lines))[:, None]).log_softmax(-1).transpose(0, 1)
        lengths = torch.tensor([len(t) for t in targets])
        loss = F.ctc_loss(
            logits,
            torch.tensor([letter for line in targets for letter in line]),
            torch.full((len(lines),), len(logits)),
            lengths,
            BLANK,
            zero_infinity=True,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        mean = loss.item() if step == 0 else 0.97 * mean + 0.03 * loss.item()
        if step % 100 == 99:
            right = found_wrong = 0
            test = np.random.default_rng(1)
            model.eval()
            for _ in range(60):
                label, text = sample(test)
                line_images = lines_of(label)
                found_wrong += len(line_images) != len(_lines(text))
                right += read_lines(model, line_images)[0] == text
            model.train()
            print(
                step + 1,
                f"{(time.monotonic() - start) / (step + 1):.2f} s",
                f"loss {mean:.3f}",
                f"right {right / 60:.2f}, lines wrong {found_wrong}",
                flush=True,
            )
            o.out.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), o.out / "lettering.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
