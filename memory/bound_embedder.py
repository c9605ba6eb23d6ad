"""Binds a store to the embedder that first wrote to it, and recognises that embedder by its vectors.

A name is not enough: it can be missing, shared, or stay the same when the model changes. A store therefore keeps the
vectors of a few fixed texts. An embedder that makes other vectors of them is another embedder, whatever it is called.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from gems.errors import InputError
from gems.memory.embedder import CachedEmbedder, embedder_fingerprint
from gems.memory.records import Records

__all__ = ["BoundEmbedder", "needs_probe", "probe_of", "same_embedder", "unit_vectors"]

_TEXTS: Final = ["how long is a vector?", "Three RED cats left of 2 dogs, at night", "ein Käfer auf 桌子"]
_LARGEST_PEAK: Final = 1e12
_TOLERANCE: Final = 0.045
"""Greatest distance between unit vectors of one text: a cosine of 0.999. Servers do not repeat themselves exactly."""


class BoundEmbedder:
    """The embedder of an open store. It is checked against the records each time that it is used.

    Args:
        embedder: Turns text into vectors.
    """

    def __init__(self, embedder: Embeddings) -> None:
        self._embedder = embedder
        self.fingerprint = embedder_fingerprint(embedder)
        self._probe = ""
        """The vectors by which to recognise it; empty if it needs none, or has not embedded anything yet."""

    def bind(self, records: Records) -> None:
        """Bind new records to this embedder.

        Raises:
            InputError: As for ``check``.
        """
        self.check(records)
        if records.meta("embedder") is None and not records.read_only:
            with records.writing():
                self.check(records)
                records.set_meta("embedder", self.fingerprint)
        if records.meta("probe") is not None:
            with suppress(Exception):  # an embedder that cannot be reached now is recognised when it is used
                self._recognise()
            self.check(records)

    def check(self, records: Records) -> None:
        """Refuse records that another embedder wrote.

        Raises:
            InputError: Another embedder wrote them, or reindexing them has not been finished.
        """
        if unfinished := records.meta("reindexing"):
            raise InputError(
                f"{records.file} is half-way to the embedder {unfinished}: finish with `gems memory reindex` and that "
                "embedder"
            )
        writer, probe = records.meta("embedder"), records.meta("probe")
        advice = "use that embedder or another memory folder, or embed everything again with `gems memory reindex`"
        if writer not in (None, self.fingerprint):
            raise InputError(f"{records.file} was written with the embedder {writer}, not {self.fingerprint}: {advice}")
        if self._probe and probe not in (None, self._probe) and not same_embedder(probe, self._probe):
            raise InputError(
                f"{records.file} was written with another embedder, which was called {self.fingerprint} too but makes "
                f"other vectors: {advice}"
            )

    def leave_probe(self, records: Records) -> None:
        """Write down the vectors by which to recognise this embedder, unless they are there already."""
        if self._probe and records.meta("probe") is None:
            records.set_meta("probe", self._probe)

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of texts to store, (n, dims).

        Raises:
            InputError: The embedder did not return one vector per text, or they hold NaN or infinity.
        """
        self._recognise()
        return unit_vectors(self._embedder.embed_documents(list(texts)), len(texts))

    def query(self, text: str) -> NDArray[np.float32]:
        """The unit vector of a query, (1, dims); errors as for ``documents``."""
        self._recognise()
        return unit_vectors([self._embedder.embed_query(text)], 1)

    def _recognise(self) -> None:
        """Let the embedder make the vectors by which it is recognised, once."""
        if not self._probe and needs_probe(self._embedder):
            self._probe = probe_of(self._embedder)


def needs_probe(embedder: Embeddings) -> bool:
    """Whether an embedder has to be recognised by its vectors; not if it has a ``fingerprint`` that identifies them."""
    if isinstance(embedder, CachedEmbedder):
        embedder = embedder.wrapped
    return not isinstance(getattr(embedder, "fingerprint", None), str)


def probe_of(embedder: Embeddings) -> str:
    """The vectors by which to recognise an embedder, as text. Documents and queries may be embedded differently."""
    vectors = [*embedder.embed_documents(_TEXTS), embedder.embed_query(_TEXTS[0])]
    return base64.b64encode(unit_vectors(vectors, len(_TEXTS) + 1).astype(np.float16).tobytes()).decode()


def same_embedder(probe: str, other: str) -> bool:
    """Whether two results of ``probe_of`` are of the same embedder."""
    try:
        a, b = (np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32) for text in (probe, other))
    except ValueError:  # another program has written the file
        return False
    if a.size != b.size:
        return False
    distances = np.linalg.norm((a - b).reshape(len(_TEXTS) + 1, -1), axis=1)
    return bool((distances <= _TOLERANCE).all())


def unit_vectors(vectors: Sequence[Sequence[float]], count: int) -> NDArray[np.float32]:
    """Vectors scaled to unit length, (count, dims).

    Raises:
        InputError: There are more or fewer, they are of different lengths, or hold NaN or infinity.
    """
    try:
        numbers = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if numbers.ndim != 2 or len(numbers) != count or not np.isfinite(numbers).all():
        raise InputError(f"the embedder did not return {count} vectors of equal length with finite numbers")
    peaks = np.abs(numbers).max(axis=1, keepdims=True, initial=0.0)
    # The square of such a number is none in 32 bits.
    is_extreme = (peaks > 0) & ((peaks > _LARGEST_PEAK) | (peaks < 1 / _LARGEST_PEAK))
    array = (numbers / np.where(is_extreme, peaks, 1.0)).astype(np.float32)
    return np.asarray(array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12), dtype=np.float32)
