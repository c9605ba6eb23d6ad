"""Embedders by name: cached, batched by length, loaded at the first use."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import langchain.embeddings
import numpy as np
import pytest
import torch
from embedding import PointEmbeddings
from langchain_core.embeddings import Embeddings
from servers.threaded import serving

from gems.errors import BackendError, InputError
from gems.memory import embedder as embedder_module
from gems.memory.embedder import CachedEmbedder, embedder_fingerprint, init_embedder
from gems.models import minilm
from gems.models.minilm import MiniLM


class Provider(Embeddings):
    """Embeds queries differently from documents, as some embedders do, and records its calls."""

    model = "provider-small"

    def __init__(self) -> None:
        self.requests: list[list[str]] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.requests.append(list(texts))
        return [[0.1 * len(text), 1.0] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.requests.append([f"query: {text}"])
        return [0.1 * len(text), -1.0]


def test_embedded_texts_are_cached() -> None:
    provider = Provider()
    cached = CachedEmbedder(provider)
    first = cached.embed_documents(["a", "bb", "a"])
    assert first == [[0.1, 1.0], [0.2, 1.0], [0.1, 1.0]]
    assert cached.embed_documents(["ccc", "bb", "a"]) == [[0.1 * 3, 1.0], [0.2, 1.0], [0.1, 1.0]]
    assert provider.requests == [["a", "bb"], ["ccc"]]
    assert cached.embed_documents([]) == []
    first[0][0] = 9
    assert cached.embed_documents(["a"]) == [[0.1, 1.0]], "a caller may change the vectors that it received"


def test_queries_and_documents_share_vectors_only_if_the_embedder_treats_them_alike() -> None:
    provider = Provider()
    cached = CachedEmbedder(provider)
    assert cached.embed_documents(["a"]) == [[0.1, 1.0]]
    assert cached.embed_query("a") == cached.embed_query("a") == [0.1, -1.0]
    assert provider.requests == [["a"], ["query: a"]]
    provider.symmetric = True  # type: ignore[attr-defined]
    alike = CachedEmbedder(provider)
    assert alike.embed_documents(["a"])[0] == alike.embed_query("a") == [0.1, 1.0]
    assert MiniLM.symmetric


def test_only_the_texts_used_last_are_kept() -> None:
    provider = Provider()
    cached = CachedEmbedder(provider, size=2)
    cached.embed_documents(["a", "b"])
    cached.embed_documents(["a"])
    cached.embed_documents(["c"])
    provider.requests.clear()
    cached.embed_documents(["a", "c"])
    assert provider.requests == []
    cached.embed_documents(["b"])
    assert provider.requests == [["b"]]
    assert len(cached.embed_documents(list("defgh"))) == 5, "one call may exceed the size of the cache"


def test_threads_share_a_cache() -> None:
    points = PointEmbeddings()
    cached = CachedEmbedder(points, size=20)
    texts = [f"word{i % 40} more" for i in range(400)]
    expected = points.points(texts)
    with ThreadPoolExecutor(4) as pool:
        vectors = list(pool.map(lambda text: cached.embed_documents([text])[0], texts))
    assert np.array_equal(np.asarray(vectors, np.float32), expected)


def test_an_embedder_that_gives_too_few_is_an_error() -> None:
    class Short(Provider):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return super().embed_documents(texts)[1:]

    cached = CachedEmbedder(Short())
    for _ in range(2):
        with pytest.raises(BackendError, match="provider-small gave 1 vectors for 2 texts"):
            cached.embed_documents(["a", "b"])


def test_a_failure_is_not_remembered() -> None:
    class Flaky(Provider):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[float("nan"), 1.0]] if len(self.requests) < 2 else super().embed_documents(texts)

        def embed_query(self, text: str) -> list[float]:
            if not self.requests:
                self.requests.append([])
                raise ConnectionError
            return super().embed_query(text)

    cached = CachedEmbedder(Flaky())
    with pytest.raises(BackendError, match="provider-small: ConnectionError"):
        cached.embed_query("a")
    with pytest.raises(BackendError, match="provider-small gave something else"):
        cached.embed_documents(["a"])
    assert cached.embed_query("a") == [0.1, -1.0]
    assert cached.embed_documents(["a"]) == [[0.1, 1.0]]


def test_names_share_one_embedder_and_keep_their_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    monkeypatch.setattr(langchain.embeddings, "init_embeddings", lambda name: provider)
    remote = init_embedder("some:provider-small")
    assert remote is init_embedder("some:provider-small")
    assert remote.embed_query("a") == remote.embed_query("a")
    assert provider.requests == [["query: a"]]
    assert embedder_fingerprint(remote) == embedder_fingerprint(provider) == "provider-small"
    assert init_embedder() is init_embedder("minilm") is init_embedder(name="minilm")
    assert embedder_fingerprint(init_embedder()) == "all-MiniLM-L6-v2@53aa51172d142c89"


@pytest.mark.parametrize(
    "vector", [None, [], [0.0, 0.0], [0.1, None], [0.1, float("inf")], ["0.1"], [[0.1]], "abcd", 10**400, [1e308, 0.1]]
)
def test_what_a_server_sends_in_place_of_a_vector_is_its_fault(vector: Any) -> None:
    class Odd(Provider):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vector for _ in texts]

    with pytest.raises(BackendError, match="gave something else than a vector of finite numbers"):
        CachedEmbedder(Odd()).embed_documents(["a"])


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("text/html", b"<!DOCTYPE html><html><body>Sign in</body></html>", "a page or another kind of document"),
        ("application/json", b'{"error": {"message": "model is loading"}}', "model is loading"),
        ("application/json", b'{"object": "error", "message": "no such model"}', "no such model"),
        ("application/json", b'{"data": null}', "it has none"),
    ],
)
def test_what_a_server_says_in_place_of_vectors_is_told(
    kind: str, body: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Embeddings, "answer", (kind, body))
    with serving(_Embeddings) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        embedder = embedder_module._embedder.__wrapped__("openai:bge-m3")
        with pytest.raises(BackendError, match=rf"bge-m3: 127\.0\.0\.1:\d+ answers with no vectors: {says}$"):
            embedder.embed_documents(["a car"])


class _Embeddings(BaseHTTPRequestHandler):
    inputs: ClassVar[list[Any]] = []
    status: ClassVar[int] = 200
    answer: ClassVar[tuple[str, bytes]] = ("application/json", b'{"data": [{"embedding": [0.5, 1.0]}]}')

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        self.inputs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"])
        self.send_response(self.status)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
        self.send_header("Content-Type", self.answer[0])
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has had enough
            self.wfile.write(self.answer[1])


def test_a_server_with_openais_protocol_gets_words_and_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the tokens of OpenAI's models, which are other words to another model."""
    monkeypatch.setattr(_Embeddings, "inputs", [])
    with serving(_Embeddings) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        embedder = embedder_module._embedder.__wrapped__("openai:bge-m3")
        assert embedder.embed_documents(["zwei Hunde"]) == [[0.5, 1.0]]
        monkeypatch.setattr(_Embeddings, "status", 307)
        with pytest.raises(Exception, match="307"):
            embedder.embed_documents(["drei Hunde"])
    assert _Embeddings.inputs == [["zwei Hunde"], ["drei Hunde"]]


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (400, "application/json; charset=punycode", b"a" * 2**20),
        (400, "application/json; charset=bz2", b"no"),
        (200, "application/json", b" " * (65 * 2**20)),
    ],
    ids=["slow codec", "no text", "much"],
)
def test_an_embedders_server_neither_holds_up_a_run_nor_fills_the_memory(
    status: int, kind: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Embeddings, "status", status)
    monkeypatch.setattr(_Embeddings, "answer", (kind, body))
    began = time.monotonic()
    with serving(_Embeddings) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        embedder = embedder_module._embedder.__wrapped__("openai:bge-m3")
        with pytest.raises(BackendError, match="bge-m3"):
            embedder.embed_documents(["zwei Hunde"])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("provider", ["openai", "ollama"])
def test_an_embedders_server_that_hangs_is_not_waited_for(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it asked again by a run, since its client has done so."""
    monkeypatch.setattr(embedder_module, "_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        monkeypatch.setenv("OLLAMA_HOST", address)
        embedder = embedder_module._embedder.__wrapped__(f"{provider}:bge-m3")
        began = time.monotonic()
        with pytest.raises(BackendError, match="the embedder bge-m3") as failure:
            embedder.embed_query("zwei Hunde")
    assert time.monotonic() - began < 10
    assert not failure.value.retryable


def test_vectors_of_different_lengths_are_the_servers_fault() -> None:
    class Odd(Provider):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[1.0] * (length + 1) for length in range(len(texts))]

    with pytest.raises(BackendError, match="provider-small gave vectors of different lengths"):
        CachedEmbedder(Odd()).embed_documents(["a", "b"])


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ((0, 1, 2), "abc"),
        ((2, 0, 1), "bca"),
        ((3, 2, 1), "cba"),
        ((0, 0, 0), "abc"),
        ((1, 0, 1), "abc"),
        ((5, 9, 1), "abc"),
        ((None, 1, 0), "abc"),
    ],
)
def test_vectors_belong_to_the_texts_that_they_name(
    indices: tuple[object, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may answer out of order, and says so; numbers that are no order say nothing."""
    vectors = {"a": [1.0, 0.5], "b": [2.0, 0.5], "c": [3.0, 0.5]}
    data = [{"index": i, "embedding": vector} for i, vector in zip(indices, vectors.values(), strict=True)]
    monkeypatch.setattr(_Embeddings, "answer", ("application/json", json.dumps({"data": data}).encode()))
    with serving(_Embeddings) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        embedder = embedder_module._embedder.__wrapped__("openai:bge-m3")
        assert embedder.embed_documents(["1", "2", "3"]) == [vectors[name] for name in expected]


def test_an_unknown_embedder_is_refused() -> None:
    with pytest.raises(InputError, match="minilm"):
        init_embedder("no-such-provider:x")


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_the_first_text() -> None:
    code = (
        "import sys, gems, gems.cli.main, gems.memory.store\n"
        "from gems.memory.embedder import init_embedder\n"
        "init_embedder()\n"
        "print({'torch', 'transformers', 'faiss'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.strip() == "set()"


# --- MiniLM ---------------------------------------------------------------------------------------------------------


def test_minilm_finds_similar_texts() -> None:
    embedder = init_embedder()
    cars, trucks, tax = np.array(
        embedder.embed_documents(["three blue cars", "two blue trucks", "the quarterly tax report"])
    )
    assert cars.shape == (384,)
    assert np.linalg.norm(cars) == pytest.approx(1, abs=1e-5)
    assert cars @ trucks > cars @ tax + 0.3


def test_minilm_embeds_texts_of_like_length_together_and_keeps_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "_BATCH", 3)
    model = MiniLM()
    texts = [("a cat " * count) + str(count) for count in (9, 1, 40, 2, 8, 39, 3)]
    batches: list[list[int]] = []
    whole = model._embed
    monkeypatch.setattr(model, "_embed", lambda some: batches.append([len(text) for text in some]) or whole(some))
    vectors = model.embed_documents(texts)
    assert batches == [[7, 13, 19], [49, 55, 236], [242]]
    assert np.allclose(vectors, [whole([text])[0] for text in texts], atol=1e-5)
    assert model.embed_query(texts[2]) == whole([texts[2]])[0]
    assert model.embed_documents([]) == []


@pytest.mark.slow
def test_minilm_gives_the_vectors_of_transformers_bit_by_bit() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = minilm._model_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = ["two red cars behind a dog", "Ein Bär, größer als ein Café! 日本語", "", "word " * 700, "[MASK]\n\tnaïve"]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).last_hidden_state
        states, mask = MiniLM()._loaded(texts)
    assert torch.equal(mask, batch["attention_mask"])
    assert torch.equal(states, expected)
