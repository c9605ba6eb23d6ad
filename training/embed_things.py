"""Make the vectors of the open models' things: ``python training/embed_things.py``.

The name of each thing is embedded by MiniLM, and the embeddings are reduced to their first principal components. The
largest components are damped, so that things of one kind ("dog", "wolf") stay apart, and yet nearer than others.
The generator and the vision model have to be trained again afterwards; ``add_things.py`` adds things without that.
"""

from __future__ import annotations

import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gems.models.minilm import MiniLM
from gems.models.open.slots import VECTOR
from gems.models.open.things import THINGS, WORDS_FOLDER

DAMPING: Final = 0.35
"""Variances are raised to one minus this."""

FILE: Final = (WORDS_FOLDER / "things.txt").resolve().parent / "vectors.safetensors"


def embedded(names: list[str]) -> NDArray[np.float64]:
    """The sentence embeddings of names, (names, 384)."""
    return np.asarray(MiniLM().embed_documents(names), dtype=np.float64)


def save(
    things: NDArray[np.float64], full: NDArray[np.float64], mean: NDArray[np.float64], basis: NDArray[np.float64]
) -> None:
    """Write the vectors of all things, and tell how far apart they are."""
    arrays = {"things": things.astype(np.float16), "full": full.astype(np.float16)}
    save_file({**arrays, "mean": mean.astype(np.float32), "basis": basis.astype(np.float32)}, FILE)
    gaps = np.sqrt(((things[:, None] - things[None]) ** 2).sum(-1)) + 1e9 * np.eye(len(things))
    nearest = gaps.min(axis=1)
    sys.stdout.write(f"distance to the nearest other: median {np.median(nearest):.2f}, least {nearest.min():.2f}\n")


def projection(full: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of embeddings (things, 384), and the basis (384, VECTOR) that reduces them."""
    mean = full.mean(axis=0)
    _, spread, axes = np.linalg.svd(full - mean, full_matrices=False)
    deviation = spread[:VECTOR] / np.sqrt(len(full))
    basis = axes[:VECTOR].T / deviation**DAMPING
    return mean, basis / np.sqrt(np.mean(((full - mean) @ basis) ** 2))


if __name__ == "__main__":
    names = embedded([thing.name for thing in THINGS])
    save((names - (fit := projection(names))[0]) @ fit[1], names, *fit)
