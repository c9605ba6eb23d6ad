"""Teach the open models new things without training them: ``python training/add_things.py``.

Write the things at the end of ``things.txt`` first, and their drawings if Twemoji has none. The generator reads and
draws a noun by its vector, and the vision model compares what it sees with each drawing's prototype; so a new thing
needs no more than these two. Those of the things before it stay as they are.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from embed_things import FILE, embedded, save
from export_open_models import WEIGHTS, prototypes
from safetensors.numpy import load_file

from gems.models.open.eyes import load_eyes, save_eyes
from gems.models.open.things import THINGS


def add_vectors() -> None:
    """Embed the names of the things that have no vector."""
    arrays = {name: array.astype(np.float64) for name, array in load_file(FILE).items()}
    earlier = arrays["things"]
    if added := [thing.name for thing in THINGS[len(earlier) :]]:
        new = embedded(added)
        vectors = (new - arrays["mean"]) @ arrays["basis"]
        # The basis was fitted to other names, so it shortens these; at full length they are as far apart as the others.
        length = np.median(np.linalg.norm(earlier, axis=1))
        things = np.concatenate([earlier, vectors * length / np.linalg.norm(vectors, axis=1, keepdims=True)])
        save(things, np.concatenate([arrays["full"], new]), arrays["mean"], arrays["basis"])


def add_prototypes(first: int) -> None:
    """Make the prototypes of the things from one on."""
    eyes = load_eyes(WEIGHTS / "vision")
    eyes.prototypes = torch.cat([eyes.prototypes[:first], prototypes(eyes.namer, range(first, len(THINGS)))])
    save_eyes(eyes, WEIGHTS / "vision")


if __name__ == "__main__":
    add_vectors()
    add_prototypes(next(k for k, thing in enumerate(THINGS) if not re.fullmatch("[0-9a-f-]+", thing.twemoji)))
