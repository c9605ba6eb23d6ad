"""Sentence embedders by name: MiniLM from an installed package by default, or any embedder that LangChain knows."""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from langchain_core.embeddings import Embeddings

from gems.errors import BackendError, InputError
from gems.models.failures import as_backend_error, causes_of
from gems.models.local_weights import load_now
from gems.models.minilm import MiniLM
from gems.models.servers.error_texts import error_message, json_body
from gems.secrets import one_line
from gems.shared import shared

__all__ = ["CachedEmbedder", "check_embedder_name", "embedder_fingerprint", "init_embedder"]

_CACHE_SIZE: Final = 2048
"""Texts whose vectors are kept: 6 MB with MiniLM, 50 MB with the longest common vectors (3,072 numbers)."""
_LARGEST: Final = 3.4028234e38
"""The largest number in a vector, since stores keep them in 32 bits."""
_TIMEOUT: Final = 60.0
"""Seconds for one try of a server, which a run waits for twice: before it plans, and at its end."""


_FORMS: Final = 'use "minilm" or PROVIDER:MODEL, such as openai:text-embedding-3-small'


def check_embedder_name(name: str) -> None:
    """Check the form of an embedder's name. Nothing is loaded or contacted.

    Raises:
        InputError: No embedder can have this name.
    """
    provider, _, model = name.partition(":")
    if name != "minilm" and not (provider and model):
        raise InputError(f"unknown embedder {name!r}; {_FORMS}")


def init_embedder(name: str = "minilm") -> Embeddings:
    """The embedder with a name, ``"minilm"`` or ``"PROVIDER:MODEL"``; one per process and name.

    All users of a name share one cache of recently embedded texts.

    Raises:
        InputError: The provider is unknown, or its package or key is missing.
    """
    return _embedder(name)


@shared  # around a function without defaults: with and without a default, a call would be two entries
def _embedder(name: str) -> Embeddings:
    if name == "minilm":
        return CachedEmbedder(MiniLM())
    from langchain.embeddings import init_embeddings

    try:
        return CachedEmbedder(init_embeddings(name, **_settings_for(name.partition(":")[0])))
    except Exception as error:  # each provider's package raises its own errors, all of them before any request
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot use the embedder {name!r}: {reason}; {_FORMS}") from error


def _settings_for(provider: str) -> dict[str, Any]:
    """What a provider's embedder is told besides its name.

    OpenAI's would turn texts into the tokens of OpenAI's models, which means other words to another server at
    ``OPENAI_BASE_URL``, and would download the tables for that. Its client would follow redirects to any host, and read
    an answer of any size by any codec, and take vectors in the order in which they arrive, whatever their ``index``.
    OpenAI's waits half an hour for a server that hangs, and Ollama's for ever.
    """
    if provider == "ollama":
        return {"client_kwargs": {"timeout": _TIMEOUT}}
    if provider not in ("openai", "azure_openai"):
        return {}
    import openai

    from gems.models.servers.bodies import keep_whole
    from gems.models.servers.stated_waits import name_wait

    hooks: dict[str, list[Callable[..., Any]]] = {"response": [keep_whole, _require_vectors, _sort, name_wait]}

    return {
        "check_embedding_ctx_length": False,
        "timeout": _TIMEOUT,
        "max_retries": 1,
        "http_client": openai.DefaultHttpxClient(follow_redirects=False, event_hooks=hooks),
        "http_async_client": openai.DefaultAsyncHttpxClient(follow_redirects=False),
    }


def _require_vectors(response: Any) -> None:
    """Tell what a server says in place of vectors, over which OpenAI's client would stumble without a word of it.

    Args:
        response: An answer that ``keep_whole`` has read.
    """
    if response.is_success:
        body = b"".join(response.stream)
        answer = json_body(body)
        if not (isinstance(answer, Mapping) and isinstance(answer.get("data"), list)):
            kind = "it has none" if isinstance(answer, Mapping) else "a page or another kind of document"
            words = one_line(error_message(body)) or kind
            raise BackendError(f"{response.request.url.netloc.decode()} answers with no vectors: {words}", reason=words)


def _sort(response: Any) -> None:
    """Put the vectors of an answer into the order of their texts, where each says which text it is of.

    Args:
        response: An answer that ``keep_whole`` has read.
    """
    body = b"".join(response.stream)
    places = [int(place) for place in _INDEX.findall(body)]
    ordered = sorted(places)
    # Gateways that join answers, or number nothing, repeat numbers: those say nothing.
    if places == ordered or ordered != list(range(ordered[0], ordered[0] + len(ordered))):
        return
    with suppress(ValueError, TypeError, KeyError):
        answer = json.loads(body)
        answer["data"].sort(key=lambda item: item["index"])
        response.stream = type(response)(200, content=json.dumps(answer).encode()).stream


_INDEX: Final = re.compile(rb'"index"\s*:\s*(\d{1,9})(?=\s*[,}])')


def embedder_fingerprint(embedder: Embeddings) -> str:
    """The name of an embedder. Vectors of different names cannot be compared; those of one name may still differ.

    An attribute ``fingerprint`` has to identify the vectors, weights included, as MiniLM's does. Any other name is only
    a label: a store also compares vectors, see ``embedder_probe``.
    """
    for attribute in ("fingerprint", "model_name", "model"):
        value = getattr(embedder, attribute, None)
        if isinstance(value, str) and value:
            return value
    return type(embedder).__name__


class CachedEmbedder(Embeddings):
    """An embedder that caches the vectors of recent texts. It is thread-safe.

    Queries and documents are cached separately, since some providers embed them differently.

    Args:
        embedder: Embeds the texts that are not in the cache.
        size: Number of texts in the cache.
    """

    def __init__(self, embedder: Embeddings, *, size: int = _CACHE_SIZE) -> None:
        self.fingerprint = embedder_fingerprint(embedder)
        self.wrapped = embedder
        self._size = size
        self._query_kind = "document" if getattr(embedder, "symmetric", False) else "query"
        self._cache: OrderedDict[tuple[str, str], array[float]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self) -> None:
        """Load the weights now, if the embedder has any, rather than at the first text."""
        load_now(self.wrapped)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text. Equal texts are embedded once.

        Raises:
            BackendError: The embedder failed, or returned more or fewer vectors than it got texts, or no vectors.
        """
        return self._embed("document", texts, self.wrapped.embed_documents)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._embed(self._query_kind, [text], lambda _: [self.wrapped.embed_query(text)])[0]

    def _embed(
        self, kind: str, texts: Sequence[str], embed: Callable[[list[str]], list[list[float]]]
    ) -> list[list[float]]:
        vectors = self._cached(kind, texts)
        if new_texts := [text for text in dict.fromkeys(texts) if text not in vectors]:
            # Without the lock: two threads may embed the same text, but no thread waits for another one's texts.
            try:
                embedded = embed(new_texts)
            except Exception as error:  # of a provider's package, which has tried again already
                failure = next((cause for cause in causes_of(error) if isinstance(cause, BackendError)), None)
                if failure is not None:  # of the hook that reads answers, which does not know the model
                    words = f"the embedder {self.fingerprint}: {failure}"
                    raise BackendError(words, retryable=failure.retryable, reason=failure.reason) from error
                raise as_backend_error(error, f"the embedder {self.fingerprint}", has_retried=True) from error
            if len(embedded) != len(new_texts):
                raise BackendError(
                    f"the embedder {self.fingerprint} gave {len(embedded)} vectors for {len(new_texts)} texts"
                )
            new_vectors = dict(zip(new_texts, map(self._numbers, embedded), strict=True))
            if len({len(vector) for vector in new_vectors.values()}) > 1:
                raise BackendError(f"the embedder {self.fingerprint} gave vectors of different lengths")
            self._store(kind, new_vectors)
            vectors |= new_vectors
        return [vectors[text].tolist() for text in texts]

    def _numbers(self, vector: list[float]) -> array[float]:
        """A vector as a server has sent it.

        Raises:
            BackendError: It is none, holds what is no finite 32-bit number, or zeros alone: a run goes on without
                memory.
        """
        try:
            numbers = array("d", vector)
        except (TypeError, ValueError, OverflowError):
            numbers = array("d")
        if not (any(numbers) and all(-_LARGEST <= number <= _LARGEST for number in numbers)):  # NaN is in no range
            raise BackendError(f"the embedder {self.fingerprint} gave something else than a vector of finite numbers")
        return numbers

    def _cached(self, kind: str, texts: Sequence[str]) -> dict[str, array[float]]:
        vectors = {}
        with self._lock:
            for text in texts:
                if (vector := self._cache.get((kind, text))) is not None:
                    self._cache.move_to_end((kind, text))
                    vectors[text] = vector
        return vectors

    def _store(self, kind: str, vectors: dict[str, array[float]]) -> None:
        with self._lock:
            for text, vector in vectors.items():
                self._cache[kind, text] = vector
            while len(self._cache) > self._size:
                self._cache.popitem(last=False)
