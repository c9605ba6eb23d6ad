"""An embedder without a model: each text has its own point, the same in every process."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray


class PointEmbeddings(Embeddings):
    """Maps texts to random points on a sphere; texts with the same first word are near each other."""

    def __init__(self, dims: int = 16, fingerprint: str = "points") -> None:
        self.dims, self.fingerprint = dims, fingerprint
        self.texts = 0

    def points(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors as an array of n rows and ``dims`` columns."""
        vectors = np.stack([_point(self.fingerprint, self.dims, text) for text in texts])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        return self.points(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@lru_cache(maxsize=20_000)
def _point(fingerprint: str, dims: int, text: str) -> NDArray[np.float64]:
    """The point of one text, cached: tests that compare every pair of texts ask for each point thousands of times."""
    return _place(fingerprint, dims, text.split(" ")[0]) + 0.5 * _place(fingerprint, dims, text)


def _place(fingerprint: str, dims: int, text: str) -> NDArray[np.float64]:
    seed = zlib.crc32(f"{fingerprint} {text}".encode())
    return np.random.default_rng(seed).normal(size=dims)
