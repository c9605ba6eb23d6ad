"""Behaviour of the FAISS store beyond LangGraph's documentation, which ``conformance/test_stores.py`` tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from embedding import PointEmbeddings
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp

from gems.errors import InputError
from gems.memory.store import FaissStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaissStore]:
    opened = FaissStore(tmp_path / "m", embedder=PointEmbeddings())
    yield opened
    opened.close()


def test_records_are_listed_oldest_first(store: FaissStore) -> None:
    for i in range(12):
        store.put(("a",), f"k{i}", {"i": i}, index=False)
    store.put(("a",), "k3", {"i": 3}, index=False)
    assert [item.value["i"] for item in store.search(("a",), limit=20)] == list(range(12))


def test_a_negative_limit_returns_nothing(store: FaissStore) -> None:
    for i in range(3):
        store.put(("a", str(i)), "k", {"text": f"a cat {i}"}, index=["text"])
    for query in (None, "a cat"):
        assert store.search(("a",), query=query, limit=-1) == []
        assert len(store.search(("a",), query=query, limit=2, offset=-1)) == 2
    assert store.list_namespaces(limit=-1) == []
    assert store.list_namespaces(limit=2, offset=-1) == [("a", "0"), ("a", "1")]


@pytest.mark.parametrize(
    "op",
    [
        GetOp(("a.b",), "k"),
        PutOp(("a.b",), "k", None),
        SearchOp(("a.b",)),
        ListNamespacesOp((MatchCondition("prefix", ("a.b",)),)),
    ],
    ids=lambda op: type(op).__name__,
)
def test_a_batch_cannot_take_one_namespace_for_another(store: FaissStore, op: Op) -> None:
    store.put(("a", "b"), "k", {}, index=False)
    with pytest.raises(InvalidNamespaceError):
        store.batch([op])
    assert store.get(("a", "b"), "k") is not None


def test_a_value_that_is_no_json_writes_nothing(store: FaissStore) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.batch([PutOp(("a",), "k", {}, False), PutOp(("a",), "l", {"x": object()}, False)])
    assert store.search(()) == []


def test_an_empty_text_is_not_embedded(store: FaissStore) -> None:
    store.put(("a",), "k", {"text": ""}, index=["text"])
    [item] = store.search(("a",), query="a cat")
    assert item.score is None


def test_a_reader_gets_its_own_copy(store: FaissStore) -> None:
    value: dict[str, Any] = {"list": [1]}
    store.put(("a",), "k", value, index=False)
    value["list"].append(2)
    item = store.get(("a",), "k")
    assert item is not None
    item.value["list"].append(3)
    again = store.get(("a",), "k")
    assert again is not None
    assert again.value == {"list": [1]}


def test_vectors_of_unchanged_texts_are_kept(store: FaissStore) -> None:
    def ids() -> list[int]:
        return [number for (number,) in store._records._db.execute("SELECT id FROM vectors ORDER BY id")]

    store.put(("a",), "k", {"texts": ["a cat", "a dog"], "n": 0}, index=["texts[*]"])
    before = ids()
    for n in range(1, 4):
        store.put(("a",), "k", {"texts": ["a cat", "a dog"], "n": n}, index=["texts[*]"])
    assert ids() == before
    assert store._records.count("removed") == 0
    [item] = store.search(("a",), query="a cat")
    assert item.value["n"] == 3
    store.put(("a",), "k", {"texts": ["a dog", "a cat"]}, index=["texts[*]"])
    assert len(ids()) == 2
    assert not set(ids()) & set(before)
    store.put(("a",), "k", {"texts": ["a dog", "a cat"]}, index=False)
    assert ids() == []


def test_records_outlive_the_store_object(tmp_path: Path) -> None:
    first = FaissStore(tmp_path, embedder=PointEmbeddings())
    first.put(("a",), "k", {"text": "abba"}, index=["text"])
    first.close()
    embedder = PointEmbeddings()
    second = FaissStore(tmp_path, embedder=embedder)
    assert [item.key for item in second.search(("a",), query="abba")] == ["k"]
    assert embedder.texts == 1  # only the query: stored vectors are not computed again
    second.close()


@pytest.mark.slow
def test_records_of_another_process_are_seen(tmp_path: Path) -> None:
    opened = FaissStore(tmp_path, embedder=PointEmbeddings())
    opened.put(("a",), "mine", {"text": "quiz"}, index=["text"])
    assert [item.key for item in opened.search(("a",), query="abba")] == ["mine"]
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from embedding import PointEmbeddings\n"
        "from gems.memory.store import FaissStore\n"
        "s = FaissStore(sys.argv[1], embedder=PointEmbeddings())\n"
        "s.put(('a',), 'theirs', {'text': 'abba'}, index=['text']); s.delete(('a',), 'mine'); s.close()"
    )
    forked.run([sys.executable, "-c", code, tmp_path, Path(__file__).parents[2]], check=True)
    assert [item.key for item in opened.search(("a",), query="abba")] == ["theirs"]
    opened.close()


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    FaissStore(tmp_path, embedder=PointEmbeddings(fingerprint="one")).close()
    with pytest.raises(InputError, match="one, not two"):
        FaissStore(tmp_path, embedder=PointEmbeddings(fingerprint="two"))


def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "records.sqlite"
    file.write_bytes(b"these are not the records you are looking for" * 50)
    with pytest.raises(InputError, match=r"records\.sqlite"):
        FaissStore(tmp_path, embedder=PointEmbeddings())
    assert file.read_bytes().startswith(b"these are not")


def test_a_failed_embedding_writes_nothing(tmp_path: Path) -> None:
    class Broken(PointEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise ConnectionError("no embeddings today")

    store = FaissStore(tmp_path, embedder=Broken())
    with pytest.raises(ConnectionError):
        store.put(("a",), "k", {"text": "x"}, index=["text"])
    assert store.get(("a",), "k") is None
    store.close()
