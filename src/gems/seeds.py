"""The three rules by which seeds follow from one another, side by side. Recorded runs depend on their values.

All results are in [0, MAX_SEED], the range that every image generator takes.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["MAX_SEED", "seed_of_attempt", "seed_of_batch_prompt", "seed_of_request_image"]

MAX_SEED: Final = 2**31 - 1

_STEP_BETWEEN_REQUEST_IMAGES: Final = 1_000
"""More than the images that one run makes, so that the runs of one request share no seed."""


def seed_of_attempt(seed: int, *, round_: int, candidates: int, candidate: int) -> int:
    """The seed of one image of a run: consecutive from the run's seed, through its rounds and their candidates.

    Args:
        seed: The run's seed, which is that of its first image.
        round_: Number of the round, from 1.
        candidates: Images per round.
        candidate: Index in its round, from 0.
    """
    return (seed + (round_ - 1) * candidates + candidate) % (MAX_SEED + 1)


def seed_of_batch_prompt(seed: int, index: int) -> int:
    """The seed of a batch's prompt: a hash, so that neighbours are far apart and share no seed in later rounds.

    Args:
        seed: The batch's seed.
        index: The prompt's index in the file, from 0.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:4], "big") & MAX_SEED


def seed_of_request_image(seed: int, index: int) -> int:
    """The seed of the run that makes one of several images of a request to the images endpoint.

    Args:
        seed: The request's seed.
        index: The image's index, from 0.
    """
    return (seed + _STEP_BETWEEN_REQUEST_IMAGES * index) % (MAX_SEED + 1)
