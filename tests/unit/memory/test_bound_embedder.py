"""A store recognises the embedder that wrote it, whatever it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from embedding import PointEmbeddings
from langchain_core.embeddings import Embeddings
from pydantic import BaseModel

from gems.errors import InputError
from gems.memory.embedder import CachedEmbedder
from gems.memory.store import FaissStore, reindex


class Nameless(Embeddings):
    """Makes the points of ``PointEmbeddings``; its settings stand in attributes that nobody knows."""

    def __init__(self, checkpoint: str, dims: int = 16, noise: float = 0, query_prefix: str = "") -> None:
        self.checkpoint, self.noise, self.query_prefix = checkpoint, noise, query_prefix
        self._points = PointEmbeddings(dims, checkpoint)
        self.is_reachable = True

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if not self.is_reachable:
            raise ConnectionError("no embeddings today")
        return [[number * 3 + self.noise for number in vector] for vector in self._points.embed_documents(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([self.query_prefix + text])[0]


class Named(Nameless):
    """Has a name that stays the same."""

    model = "text-embedding"


class Configured(BaseModel, Embeddings):
    """Has its settings in pydantic fields, as LangChain's embedders do."""

    model: str = "text-embedding"
    deployment: str

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return PointEmbeddings(16, self.deployment).embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def written(folder: Path, embedder: Embeddings) -> None:
    store = FaissStore(folder, embedder=embedder)
    store.put(("a",), "k", {"text": "two cats"}, index=["text"])
    store.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: Nameless("one"), lambda: Nameless("two")),
        (lambda: Named("one"), lambda: Named("two")),
        (lambda: Named("one"), lambda: Named("one", dims=24)),
        (lambda: Named("one"), lambda: Named("one", query_prefix="query: ")),
        (lambda: Configured(deployment="one"), lambda: Configured(deployment="two")),
        (lambda: CachedEmbedder(Named("one")), lambda: CachedEmbedder(Named("two"))),
    ],
    ids=["without a name", "of one name", "of other dimensions", "of other queries", "with fields", "cached"],
)
def test_an_embedder_that_makes_other_vectors_is_refused(
    tmp_path: Path, first: Callable[[], Embeddings], second: Callable[[], Embeddings]
) -> None:
    written(tmp_path, first())
    with pytest.raises(InputError, match="makes other vectors") as caught:
        FaissStore(tmp_path, embedder=second())
    assert "gems memory reindex" in str(caught.value)
    again = FaissStore(tmp_path, embedder=first())
    assert [item.key for item in again.search(("a",), query="two cats")] == ["k"]
    again.close()


def test_small_differences_are_no_other_embedder(tmp_path: Path) -> None:
    written(tmp_path, Named("one"))
    FaissStore(tmp_path, embedder=Named("one", noise=1e-3)).close()


def test_an_unreachable_embedder_is_recognised_once_it_is_used(tmp_path: Path) -> None:
    written(tmp_path, Named("one"))
    other, same = Named("two"), Named("one")
    for embedder in (other, same):
        embedder.is_reachable = False
    refused, accepted = (FaissStore(tmp_path, embedder=embedder) for embedder in (other, same))
    assert refused.get(("a",), "k") is not None, "reading a record needs no embedder"
    with pytest.raises(ConnectionError):
        accepted.search(("a",), query="two cats")
    for embedder in (other, same):
        embedder.is_reachable = True
    attempts: list[Callable[[], Any]] = [
        lambda: refused.search(("a",), query="two cats"),
        lambda: refused.put(("a",), "other", {"text": "two cats"}, index=["text"]),
    ]
    for attempt in attempts:
        with pytest.raises(InputError, match="makes other vectors"):
            attempt()
    assert [item.key for item in accepted.search(("a",), query="two cats")] == ["k"]
    for store in (refused, accepted):
        store.close()


def test_of_two_that_open_an_empty_store_the_first_to_write_keeps_it(tmp_path: Path) -> None:
    first, second = (FaissStore(tmp_path, embedder=Named(name)) for name in ("one", "two"))
    second.put(("a",), "k", {"text": "two cats"}, index=["text"])
    with pytest.raises(InputError, match="makes other vectors"):
        first.put(("a",), "l", {"text": "two dogs"}, index=["text"])
    assert second.get(("a",), "l") is None
    for store in (first, second):
        store.close()


def test_after_reindexing_the_new_embedder_is_recognised(tmp_path: Path) -> None:
    written(tmp_path, Named("one"))
    opened = FaissStore(tmp_path, embedder=Named("one"))
    opened.search(("a",), query="two cats")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(tmp_path, Named("two"), stop)
    with pytest.raises(InputError, match="half-way to another embedder called text-embedding"):
        reindex(tmp_path, Named("three"))
    reindex(tmp_path, Named("two"))
    with pytest.raises(InputError, match="makes other vectors"):
        opened.search(("a",), query="two cats")
    opened.close()
    again = FaissStore(tmp_path, embedder=Named("two"))
    assert [item.key for item in again.search(("a",), query="two cats")] == ["k"]
    again.close()
    with pytest.raises(InputError, match="makes other vectors"):
        FaissStore(tmp_path, embedder=Named("one"))


def test_an_embedder_with_a_fingerprint_is_not_asked_for_vectors(tmp_path: Path) -> None:
    written(tmp_path, PointEmbeddings())
    embedder = PointEmbeddings()
    store = FaissStore(tmp_path, embedder=CachedEmbedder(embedder))
    store.search(("a",), query="two cats")
    store.close()
    assert embedder.texts == 1


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_length_of_vectors_does_not_matter(scale: float, tmp_path: Path) -> None:
    """The squares of such numbers are none in 32 bits, of which NumPy would warn."""

    class Long(PointEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[scale * number for number in vector] for vector in super().embed_documents(texts)]

    results = []
    for embedder in (PointEmbeddings(), Long()):
        store = FaissStore(tmp_path / type(embedder).__name__, embedder=embedder)
        for key in ("cats", "dogs", "birds"):
            store.put(("memories",), key, {"text": f"{key} here"})
        results.append({item.key: item.score for item in store.search(("memories",), query="dogs there")})
        store.close()
    assert results[1] == pytest.approx(results[0], abs=1e-5)
