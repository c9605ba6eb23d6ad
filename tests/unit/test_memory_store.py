from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore, GetOp, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from gems.graph.errors import InputError
from gems.memory.embedder import init_embedder
from gems.memory.store import FaissStore

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class LetterCounts(Embeddings):
    """Texts are near when they share letters: no model, yet a meaning."""

    def __init__(self, fingerprint: str = "letters") -> None:
        self.fingerprint = fingerprint
        self.calls = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls += 1
        return [[float(text.lower().count(c)) + 0.01 for c in LETTERS] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.fixture(params=["faiss", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Both stores: what holds for LangGraph's own has to hold for ours."""
    if request.param == "memory":
        yield InMemoryStore(index={"dims": 26, "embed": LetterCounts(), "fields": ["$"]})
        return
    ours = FaissStore(tmp_path / "m", embedder=LetterCounts())
    yield ours
    ours.close()


def test_put_get_update_delete(store: BaseStore) -> None:
    assert store.get(("a",), "k") is None
    store.put(("a",), "k", {"n": 1, "deep": {"list": [1, "two", None]}})
    first = store.get(("a",), "k")
    assert first is not None
    assert (first.namespace, first.key, first.value) == (("a",), "k", {"n": 1, "deep": {"list": [1, "two", None]}})
    store.put(("a",), "k", {"n": 2})
    second = store.get(("a",), "k")
    assert second is not None
    assert second.value == {"n": 2}
    assert second.updated_at >= first.updated_at
    store.delete(("a",), "k")
    assert store.get(("a",), "k") is None
    store.delete(("a",), "never there")


def test_search_without_query_lists_in_order_with_limit_and_offset(store: BaseStore) -> None:
    for i in range(12):
        store.put(("a", "b"), f"k{i}", {"i": i}, index=False)
    assert [item.value["i"] for item in store.search(("a",))] == list(range(10))
    assert [item.value["i"] for item in store.search(("a", "b"), limit=3, offset=10)] == [10, 11]


def test_a_prefix_is_of_labels_not_of_letters(store: BaseStore) -> None:
    store.put(("user", "1"), "k", {"of": "1"}, index=False)
    store.put(("user", "10"), "k", {"of": "10"}, index=False)
    store.put(("user_1",), "k", {"of": "_"}, index=False)
    assert [item.value["of"] for item in store.search(("user", "1"))] == ["1"]
    assert {item.value["of"] for item in store.search(())} == {"1", "10", "_"}


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ({"color": "red"}, [0, 2]),
        ({"size": {"$gt": 1}}, [1, 2]),
        ({"size": {"$gte": 1, "$lt": 3}}, [0, 1]),
        ({"size": {"$lte": 1}}, [0]),
        ({"color": {"$ne": "red"}}, [1]),
        ({"color": {"$eq": "blue"}}, [1]),
        ({"tags": ["x", "y"]}, [1]),
        ({"nested": {"deep": 5}}, [2]),
        ({"color": "red", "size": 3}, [2]),
        ({"missing": "x"}, []),
    ],
)
def test_filters(store: BaseStore, condition: dict[str, Any], kept: list[int]) -> None:
    rows: list[dict[str, Any]] = [
        {"color": "red", "size": 1, "tags": ["x"], "nested": {"deep": 4, "more": 1}},
        {"color": "blue", "size": 2, "tags": ["x", "y"], "nested": None},
        {"color": "red", "size": 3, "tags": [], "nested": {"deep": 5, "more": 1}},
    ]
    for i, row in enumerate(rows):
        store.put(("a",), str(i), row, index=False)
    assert [int(item.key) for item in store.search(("a",), filter=condition)] == kept


def test_search_by_meaning_is_ranked_and_scored(store: BaseStore) -> None:
    for text in ("zebra", "abba", "baba yaga", "quiz"):
        store.put(("a",), text, {"text": text}, index=["text"])
    store.put(("a",), "unindexed", {"text": "abba"}, index=False)
    store.put(("other",), "abba", {"text": "abba"}, index=["text"])
    found = store.search(("a",), query="abba", limit=5)
    assert [item.key for item in found][:2] == ["abba", "baba yaga"]
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    scores = [item.score for item in found[:4]]
    assert scores == sorted(scores, key=lambda s: -(s or 0))
    assert (found[4].key, found[4].score) == ("unindexed", None)
    assert [i.key for i in store.search(("a",), query="abba", limit=1, offset=1)] == ["baba yaga"]


def test_the_best_of_several_vectors_counts(store: BaseStore) -> None:
    store.put(("a",), "two", {"names": ["zzz", "abba"]}, index=["names[*]"])
    store.put(("a",), "one", {"names": ["abyss"]}, index=["names[*]"])
    found = store.search(("a",), query="abba")
    assert [item.key for item in found] == ["two", "one"]
    assert found[0].score == pytest.approx(1.0, abs=1e-5)


def test_updates_and_deletes_reach_the_index(store: BaseStore) -> None:
    store.put(("a",), "k", {"text": "abba"}, index=["text"])
    assert (store.search(("a",), query="abba")[0].score or 0) > 0.99
    store.put(("a",), "k", {"text": "quiz"}, index=["text"])
    assert (store.search(("a",), query="abba")[0].score or 0) < 0.5
    store.delete(("a",), "k")
    assert store.search(("a",), query="abba") == []


def test_namespaces_are_listed(store: BaseStore) -> None:
    for namespace in (("a", "x"), ("a", "y", "z"), ("b", "x")):
        store.put(namespace, "k", {}, index=False)
    assert store.list_namespaces() == [("a", "x"), ("a", "y", "z"), ("b", "x")]
    assert store.list_namespaces(prefix=("a",)) == [("a", "x"), ("a", "y", "z")]
    assert store.list_namespaces(suffix=("x",)) == [("a", "x"), ("b", "x")]
    assert store.list_namespaces(prefix=("*", "x")) == [("a", "x"), ("b", "x")]
    assert store.list_namespaces(max_depth=1) == [("a",), ("b",)]
    assert store.list_namespaces(limit=1, offset=1) == [("a", "y", "z")]


def test_a_batch_reads_before_it_writes_and_the_last_put_wins(store: BaseStore) -> None:
    store.put(("a",), "k", {"n": 0}, index=False)
    results = store.batch(
        [
            PutOp(("a",), "k", {"n": 1}, False),
            GetOp(("a",), "k"),
            PutOp(("a",), "k", {"n": 2}, False),
            SearchOp(("a",)),
        ]
    )
    assert results[1].value == {"n": 0}  # type: ignore[union-attr]
    assert store.get(("a",), "k").value == {"n": 2}  # type: ignore[union-attr]


def test_async_is_the_same(store: BaseStore) -> None:
    async def go() -> Any:
        await store.aput(("a",), "k", {"text": "abba"}, index=["text"])
        return await store.asearch(("a",), query="abba")

    assert [item.key for item in asyncio.run(go())] == ["k"]


def test_what_was_put_outlives_the_store(tmp_path: Path) -> None:
    first = FaissStore(tmp_path, embedder=LetterCounts())
    first.put(("a",), "k", {"text": "abba"}, index=["text"])
    first.close()
    embedder = LetterCounts()
    second = FaissStore(tmp_path, embedder=embedder)
    assert [item.key for item in second.search(("a",), query="abba")] == ["k"]
    assert embedder.calls == 1  # the query's: stored vectors are not made again
    second.close()


def test_another_process_writes_and_is_seen(tmp_path: Path) -> None:
    ours = FaissStore(tmp_path, embedder=LetterCounts())
    ours.put(("a",), "mine", {"text": "quiz"}, index=["text"])
    assert [item.key for item in ours.search(("a",), query="abba")] == ["mine"]
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_memory_store import LetterCounts\n"
        "from gems.memory.store import FaissStore\n"
        "s = FaissStore(sys.argv[1], embedder=LetterCounts())\n"
        "s.put(('a',), 'theirs', {'text': 'abba'}, index=['text']); s.delete(('a',), 'mine'); s.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], check=True, timeout=60)
    assert [item.key for item in ours.search(("a",), query="abba")] == ["theirs"]
    ours.close()


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    FaissStore(tmp_path, embedder=LetterCounts("one")).close()
    with pytest.raises(InputError, match="one, not two"):
        FaissStore(tmp_path, embedder=LetterCounts("two"))


def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "records.sqlite"
    file.write_bytes(b"these are not the records you are looking for" * 50)
    with pytest.raises(InputError, match=r"records\.sqlite"):
        FaissStore(tmp_path, embedder=LetterCounts())
    assert file.read_bytes().startswith(b"these are not")


def test_a_failed_embedding_writes_nothing(tmp_path: Path) -> None:
    class Broken(LetterCounts):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise ConnectionError("no embeddings today")

    store = FaissStore(tmp_path, embedder=Broken())
    with pytest.raises(ConnectionError):
        store.put(("a",), "k", {"text": "x"}, index=["text"])
    assert store.get(("a",), "k") is None
    store.close()


def test_minilm_knows_what_is_alike() -> None:
    embedder = init_embedder()
    cars, trucks, tax = np.array(
        embedder.embed_documents(["three blue cars", "two blue trucks", "the quarterly tax report"])
    )
    assert cars.shape == (384,)
    assert np.linalg.norm(cars) == pytest.approx(1, abs=1e-5)
    assert cars @ trucks > cars @ tax + 0.3
    assert np.allclose(embedder.embed_query("three blue cars"), cars, atol=1e-5)


def test_an_unknown_embedder_is_refused() -> None:
    with pytest.raises(InputError, match="minilm"):
        init_embedder("no-such-provider:x")
