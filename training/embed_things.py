"""Make the vectors of the open models' things: ``python training/embed_things.py``.

The name of each thing is embedded by MiniLM, and the embeddings are reduced to their first principal components. The
largest components are damped, so that things of one kind ("dog", "wolf") stay apart, and yet nearer than others.
Vectors that there are already stay as they are, since models were trained with them: only things that were added get
new ones, by the same projection. ``--anew`` makes all of them again; then the generator has to be trained again.
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gems.models.minilm import MiniLM
from gems.models.open.slots import VECTOR
from gems.models.open.things import THINGS, WORDS_FOLDER

DAMPING: Final = 0.35
"""Variances are raised to one minus this."""

FILE: Final = (WORDS_FOLDER / "things.txt").resolve().parent / "vectors.safetensors"


def projection(full: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of embeddings (things, 384), and the basis (384, VECTOR) that reduces them."""
    mean = full.mean(axis=0)
    _, spread, axes = np.linalg.svd(full - mean, full_matrices=False)
    deviation = spread[:VECTOR] / np.sqrt(len(full))
    basis = axes[:VECTOR].T / deviation**DAMPING
    return mean, basis / np.sqrt(np.mean(((full - mean) @ basis) ** 2))


def main() -> int:
    """Write ``vectors.safetensors`` beside the tables of words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", action="store_true", help="make all vectors again, for a new training")
    full = np.asarray(MiniLM().embed_documents([thing.name for thing in THINGS]), dtype=np.float64)
    if parser.parse_args().anew or not FILE.exists():
        mean, basis = projection(full)
        things = (full - mean) @ basis
    else:
        earlier = load_file(FILE)
        mean, basis = earlier["mean"].astype(np.float64), earlier["basis"].astype(np.float64)
        added = (full[len(earlier["things"]) :] - mean) @ basis
        things = np.concatenate([earlier["things"].astype(np.float64), added])
    arrays = {"things": things.astype(np.float16), "full": full.astype(np.float16)}
    save_file({**arrays, "mean": mean.astype(np.float32), "basis": basis.astype(np.float32)}, FILE)
    gaps = np.sqrt(((things[:, None] - things[None]) ** 2).sum(-1)) + 1e9 * np.eye(len(things))
    nearest = gaps.min(axis=1)
    sys.stdout.write(f"distance to the nearest other: median {np.median(nearest):.2f}, least {nearest.min():.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
