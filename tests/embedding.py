"""An embedder without a model: each text is a point of its own, the same in every process."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray


class Points(Embeddings):
    """Texts lie at random places on a sphere; those with the same first word lie near to each other."""

    def __init__(self, dims: int = 16, fingerprint: str = "points") -> None:
        self.dims, self.fingerprint = dims, fingerprint
        self.texts = 0

    def points(self, texts: list[str]) -> NDArray[np.float32]:
        """n x dims, of unit length."""
        found = np.stack([_point(self.fingerprint, self.dims, text) for text in texts])
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        return self.points(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@lru_cache(maxsize=20_000)
def _point(fingerprint: str, dims: int, text: str) -> NDArray[np.float64]:
    """Tests that compare with every other text ask for the same points thousands of times."""
    return _place(fingerprint, dims, text.split(" ")[0]) + 0.5 * _place(fingerprint, dims, text)


def _place(fingerprint: str, dims: int, text: str) -> NDArray[np.float64]:
    seed = zlib.crc32(f"{fingerprint} {text}".encode())
    return np.random.default_rng(seed).normal(size=dims)
