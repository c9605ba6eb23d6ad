"""The thing that is nearest in meaning to an unknown noun, by the sentence embeddings of names."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gems.models.open.things import THINGS, WORDS_FOLDER

if TYPE_CHECKING:
    from gems.models.minilm import MiniLM

__all__ = ["nearest_thing"]

_NEAR: Final = 0.58
"""The least cosine of two names that mean nearly the same; chosen on prompts that are not reported."""


@cache
def nearest_thing(noun: str) -> str | None:
    """The name of the thing that an English noun is nearest to; None if none is near enough.

    Raises:
        BackendError: The embedder's weights are missing.
    """
    vector = np.asarray(_embedder().embed_query(noun))
    cosines = _names() @ vector
    best = int(cosines.argmax())
    return THINGS[best].name if cosines[best] >= _NEAR else None


@cache
def _embedder() -> MiniLM:
    from gems.models.minilm import MiniLM  # heavy, and most prompts name known things only

    return MiniLM()


@cache
def _names() -> NDArray[np.float32]:
    full: NDArray[np.float32] = load_file(WORDS_FOLDER / "vectors.safetensors")["full"].astype(np.float32)
    return full
