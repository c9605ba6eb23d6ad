"""The rules by which seeds follow from one another, side by side. Recorded runs depend on their values.

All results are in [0, MAX_SEED], the range that every image generator takes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

__all__ = ["MAX_SEED", "seed_of_attempt", "seed_of_batch_prompt", "seed_of_file_prompt", "seed_of_request_image"]

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
    """The seed of one prompt of a fixed list, such as a benchmark's: a hash, so that neighbours are far apart.

    Args:
        seed: The list's seed.
        index: The prompt's index, from 0.
    """
    return _hashed(f"{seed}/{index}")


def seed_of_file_prompt(seed: int, prompt: str, prompt_id: str | None, copy: int) -> int:
    """The seed of a prompt in a file that users edit. It does not depend on the prompt's line.

    Args:
        seed: The batch's seed.
        prompt: The prompt.
        prompt_id: The user's id for the prompt.
        copy: How many earlier lines have the same prompt and id.
    """
    return _hashed(json.dumps([seed, prompt, prompt_id, copy]))


def seed_of_request_image(seed: int, index: int) -> int:
    """The seed of the run that makes one of several images of a request to the images endpoint.

    Args:
        seed: The request's seed.
        index: The image's index, from 0.
    """
    return (seed + _STEP_BETWEEN_REQUEST_IMAGES * index) % (MAX_SEED + 1)


def _hashed(text: str) -> int:
    """A seed that shares nothing with the seeds of similar texts, in later rounds neither."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & MAX_SEED
