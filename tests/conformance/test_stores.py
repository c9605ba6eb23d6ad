"""Checks the documented behaviour of LangGraph stores on LangGraph's own store and on ours, sync and async.

To test another store, add a ``Kind``. ``differs`` names the tests that a store is known to fail, and why; such a test
must then fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from filter_cases import MATCHING_NUMBERS, MATCHING_ROWS, NUMBERS, ROWS, UNKNOWN_CONDITIONS
from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore, GetOp, InvalidNamespaceError, ListNamespacesOp, PutOp, SearchOp, TTLConfig
from langgraph.store.memory import InMemoryStore
from servers.waiting import wait_until

from gems.memory.store import FaissStore

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class LetterCounts(Embeddings):
    """An embedder without a model: texts that share letters are near each other."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(text.lower().count(c)) + 0.01 for c in LETTERS] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@dataclass(frozen=True)
class Kind:
    """A store under test.

    Attributes:
        open: Opens an empty store, given a folder, the fields to embed by default, and the default time to live.
        differs: Maps the name of a test function to the reason why the store fails it.
    """

    open: Callable[[Path, Sequence[str], TTLConfig | None], AbstractContextManager[BaseStore]]
    differs: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def in_memory(folder: Path, fields: Sequence[str], ttl: TTLConfig | None) -> Iterator[BaseStore]:
    yield InMemoryStore(index={"dims": len(LETTERS), "embed": LetterCounts(), "fields": list(fields)})


def faiss(folder: Path, fields: Sequence[str], ttl: TTLConfig | None) -> AbstractContextManager[BaseStore]:
    return closing(FaissStore(folder / "store", embedder=LetterCounts(), fields=fields, ttl=ttl))


KINDS = {
    "faiss": Kind(faiss),
    "memory": Kind(
        in_memory,
        {
            "test_a_record_written_again_keeps_its_creation_time": "a put creates a new item",
            "test_a_condition_that_is_not_understood_is_refused": "a condition is read only if a record has its field",
            "test_comparisons_ignore_values_that_are_not_numbers": "any value is passed to float()",
            "test_a_put_can_embed_the_whole_record": "the '$' of a put is read as a field name",
            "test_texts_that_are_no_longer_embedded_are_not_found": "vectors of paths that a later put omits are kept",
            "test_equal_texts_can_be_put_together": "vectors are compared with the number of paths, not of texts",
            "test_pages_include_each_record_without_a_vector_once": "an offset counts embedded records only",
            "test_a_namespace_without_records_is_not_listed": "a namespace is kept after it is read",
        },
    ),
}


class SyncCalls:
    """A store whose methods are called directly, or through their async versions if there is a runner."""

    def __init__(self, store: BaseStore, runner: asyncio.Runner | None) -> None:
        self.store, self._runner = store, runner

    def __getattr__(self, name: str) -> Any:
        runner = self._runner
        if runner is None:
            return getattr(self.store, name)
        method = getattr(self.store, f"a{name}")
        return lambda *args, **kwargs: runner.run(method(*args, **kwargs))


Opener = Callable[..., Any]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    store_kind = KINDS[request.param]
    if reason := store_kind.differs.get(request.node.originalname):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return store_kind


@pytest.fixture(params=["sync", "async"])
def open_store(request: pytest.FixtureRequest, kind: Kind, tmp_path: Path) -> Iterator[Opener]:
    """A function that opens the store under test, with the given fields and time to live."""
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if request.param == "async" else None

        def open_(fields: Sequence[str] = ("$",), ttl: TTLConfig | None = None) -> SyncCalls:
            return SyncCalls(stack.enter_context(kind.open(tmp_path, fields, ttl)), runner)

        yield open_


@pytest.fixture
def store(open_store: Opener) -> Any:
    return open_store()


def keys(items: Sequence[Any]) -> list[str]:
    return [item.key for item in items]


def embedded(store: Any, text: str) -> set[str]:
    """The keys of records that have a vector of exactly this text."""
    return {item.key for item in store.search((), query=text, limit=100) if (item.score or 0) > 0.9999}


# --- records --------------------------------------------------------------------------------------------------------


def test_a_record_is_put_read_and_deleted(store: Any) -> None:
    store.put(("a", "b"), "k", {"n": 1})
    item = store.get(("a", "b"), "k")
    assert (item.namespace, item.key, item.value) == (("a", "b"), "k", {"n": 1})
    assert item.created_at <= item.updated_at
    assert store.get(("a",), "k") is None
    store.delete(("a", "b"), "k")
    assert store.get(("a", "b"), "k") is None
    assert store.search(("a",)) == []


def test_a_missing_record_is_none_and_can_be_deleted(store: Any) -> None:
    assert store.get(("a",), "k") is None
    store.delete(("a",), "k")
    assert store.search(("a",), query="x") == store.search(()) == []
    assert store.search(("never",)) == []


def test_a_record_written_again_is_replaced_as_a_whole(store: Any) -> None:
    store.put(("a",), "k", {"n": 1, "more": True})
    first = store.get(("a",), "k")
    store.put(("a",), "k", {"n": 2})
    second = store.get(("a",), "k")
    assert second.value == {"n": 2}
    assert second.updated_at >= first.updated_at
    assert len(store.search(("a",))) == 1


def test_a_record_written_again_keeps_its_creation_time(store: Any) -> None:
    store.put(("a",), "k", {"n": 1})
    first = store.get(("a",), "k")
    store.put(("a",), "k", {"n": 2})
    assert store.get(("a",), "k").created_at == first.created_at


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"none": None, "yes": True, "no": False},
        {"whole": 2**53, "less": -1, "part": 0.1, "small": 1e-300},
        {"deep": {"list": [1, "two", None, [], {"x": [{"y": {}}]}]}},
        {"text": 'élan 東京 🐘 "quoted" \\ \n\t', "名": "name", "": "nameless", "a.b": "with a period"},
        {"long": "x" * 100_000},
    ],
    ids=["empty", "none", "numbers", "nested", "unicode", "long"],
)
def test_values_come_back_as_they_were(store: Any, value: dict[str, Any]) -> None:
    store.put(("a",), "k", value)
    assert store.get(("a",), "k").value == value
    [item] = store.search(("a",))
    assert item.value == value


def test_any_mapping_can_be_put(store: Any) -> None:
    store.put(("a",), "k", MappingProxyType({"text": "abba"}))
    assert store.get(("a",), "k").value == {"text": "abba"}


def test_keys_and_labels_hold_any_characters(store: Any) -> None:
    names = ["k", "K", " ", "a.b", "a/b", "*", "%", "_", "'", "東京", "x" * 500]
    for name in names:
        store.put(("a", name.replace(".", "·")), name, {"name": name}, index=False)
    for name in names:
        assert store.get(("a", name.replace(".", "·")), name).value == {"name": name}
    assert sorted(keys(store.search(("a",), limit=100))) == sorted(names)


# --- lists ----------------------------------------------------------------------------------------------------------


def test_records_are_listed_in_pages(store: Any) -> None:
    for i in range(12):
        store.put(("a", "b"), f"k{i}", {}, index=False)
    assert len(store.search(("a",))) == 10
    pages = [keys(store.search(("a", "b"), limit=5, offset=start)) for start in (0, 5, 10, 15)]
    assert [len(page) for page in pages] == [5, 5, 2, 0]
    assert {key for page in pages for key in page} == {f"k{i}" for i in range(12)}


@pytest.mark.parametrize("query", [None, "abba"], ids=["list", "query"])
def test_a_limit_of_zero_returns_nothing(store: Any, query: str | None) -> None:
    for i in range(3):
        store.put(("a",), f"k{i}", {"text": "abc"[i]}, index=["text"] if i else False)
    assert store.search(("a",), query=query, limit=0) == []
    assert store.search(("a",), query=query, limit=0, offset=1) == []


def test_an_empty_query_is_no_query(store: Any) -> None:
    store.put(("a",), "k", {"text": "abba"})
    [item] = store.search(("a",), query="")
    assert (item.key, item.score) == ("k", None)


def test_a_prefix_matches_whole_labels(store: Any) -> None:
    for namespace in (("user", "1"), ("user", "10"), ("user_1",), ("user",)):
        store.put(namespace, "k", {"of": "/".join(namespace)})
    for query in (None, "user"):
        matches = [item.value["of"] for item in store.search(("user", "1"), query=query)]
        assert matches == ["user/1"]
        assert len(store.search(("user",), query=query)) == 3
        assert len(store.search((), query=query)) == 4


# --- filters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "matching_rows"),
    MATCHING_ROWS,
    ids=str,
)
@pytest.mark.parametrize("query", [None, "abba"], ids=["list", "query"])
def test_filters(store: Any, condition: dict[str, Any], matching_rows: list[int], query: str | None) -> None:
    store.batch([PutOp(("a",), str(i), row, ["color"] if i == 1 else False) for i, row in enumerate(ROWS)])
    assert sorted(int(k) for k in keys(store.search(("a",), filter=condition, query=query))) == matching_rows
    assert keys(store.search(("b",), filter=condition, query=query)) == []


def test_filters_look_into_objects(store: Any) -> None:
    store.batch([PutOp(("a",), str(i), row, False) for i, row in enumerate(ROWS)])
    for condition, matching_keys in [
        ({"deep": 5}, ["2"]),
        ({"more": {"n": 1}}, ["0", "2"]),
        ({"deep": {"$lt": 5}, "more": {"n": {"$gte": 1}}}, ["0"]),
    ]:
        assert sorted(keys(store.search(("a",), filter={"nested": condition}))) == matching_keys


def test_comparisons_ignore_values_that_are_not_numbers(store: Any) -> None:
    for i, value in enumerate([{"n": 1}, {"n": None}, {}, {"n": "many"}, {"n": [2]}]):
        store.put(("a",), str(i), value, index=False)
    assert keys(store.search(("a",), filter={"n": {"$gt": 0}})) == ["0"]
    assert keys(store.search(("a",), filter={"n": {"$lte": 1}})) == ["0"]


def test_an_unknown_operator_is_refused(store: Any) -> None:
    store.put(("a",), "k", {"n": 1}, index=False)
    with pytest.raises(ValueError, match="near"):
        store.search(("a",), filter={"n": {"$near": 1}})


def test_a_condition_that_is_not_understood_is_refused(store: Any) -> None:
    for rows in ([], [{"m": 1}], [{"n": 1}]):  # whether or not a record has the field
        store.batch([PutOp(("a",), str(i), row, ["m"]) for i, row in enumerate(rows)])
        for condition in UNKNOWN_CONDITIONS:
            for query in (None, "abba"):
                with pytest.raises(ValueError, match=r"filter|compares with a number"):
                    store.search(("a",), filter=condition, query=query)


def test_numbers_are_compared_as_numbers(store: Any) -> None:
    for i, number in enumerate(NUMBERS):
        store.put(("a",), str(i), {"n": number}, index=False)
    for condition, matching_rows in MATCHING_NUMBERS:
        assert sorted(int(key) for key in keys(store.search(("a",), filter={"n": condition}))) == matching_rows


def test_a_limit_counts_records_that_pass_the_filter(store: Any) -> None:
    rows = {f"{i:02}": {"even": i % 2 == 0, "text": "b" * (i + 1) + "c"} for i in range(60)}
    store.batch([PutOp(("a",), key, row, ["text"]) for key, row in rows.items()])
    for query in (None, "b"):
        pages = [
            store.search(("a",), filter={"even": True}, query=query, limit=8, offset=start) for start in range(0, 40, 8)
        ]
        assert [len(page) for page in pages] == [8, 8, 8, 6, 0]
        assert sorted(key for page in pages for key in keys(page)) == [f"{i:02}" for i in range(0, 60, 2)]


# --- search by meaning ----------------------------------------------------------------------------------------------


def test_search_by_meaning_is_ranked_and_scored(store: Any) -> None:
    for text in ("zebra", "abba", "baba yaga", "quiz"):
        store.put(("a",), text, {"text": text}, index=["text"])
    store.put(("a",), "unindexed", {"text": "abba"}, index=False)
    store.put(("other",), "abba", {"text": "abba"}, index=["text"])
    items = store.search(("a",), query="abba", limit=5)
    assert keys(items)[:2] == ["abba", "baba yaga"]
    assert items[0].score == pytest.approx(1.0, abs=1e-5)
    scores = [item.score for item in items[:4]]
    assert scores == sorted(scores, reverse=True)
    assert (items[4].key, items[4].score) == ("unindexed", None)
    assert keys(store.search(("a",), query="abba", limit=1, offset=1)) == ["baba yaga"]


def test_pages_include_each_record_without_a_vector_once(store: Any) -> None:
    for i in range(7):
        store.put(("a",), str(i), {"text": "b" * i + "a"}, index=["text"] if i < 4 else False)
    pages = [keys(store.search(("a",), query="ab", limit=3, offset=start)) for start in (0, 3, 6, 9)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert sorted(key for page in pages for key in page) == [str(i) for i in range(7)]


def test_a_record_with_several_vectors_is_found_once_with_its_best_score(store: Any) -> None:
    store.put(("a",), "two", {"names": ["zzz", "abba", "baba"]}, index=["names[*]"])
    store.put(("a",), "one", {"names": ["abyss"]}, index=["names[*]"])
    items = store.search(("a",), query="abba")
    assert keys(items) == ["two", "one"]
    assert items[0].score == pytest.approx(1.0, abs=1e-5)
    assert keys(store.search(("a",), query="abba", limit=1, offset=1)) == ["one"]


DOCUMENT = {
    "title": "apple",
    "by": {"name": "bob", "at": {"city": "cork"}},
    "parts": [{"text": "dodo", "notes": [{"t": "ear"}, {"t": "fig"}]}, {"text": "gag"}],
    "tags": ["hush", "ivy"],
    "nothing": None,
}


@pytest.mark.parametrize(
    ("paths", "texts"),
    [
        (["title"], ["apple"]),
        (["by.name"], ["bob"]),
        (["by.at.city"], ["cork"]),
        (["parts[0].text"], ["dodo"]),
        (["parts[-1].text"], ["gag"]),
        (["parts[*].text"], ["dodo", "gag"]),
        (["parts[*].notes[*].t"], ["ear", "fig"]),
        (["tags[*]"], ["hush", "ivy"]),
        (["tags"], ['["hush", "ivy"]']),
        (["title", "by.name"], ["apple", "bob"]),
        (["missing", "title.more", "parts[9].text", "nothing"], []),
        (["missing", "title"], ["apple"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("paths_from", ["by the put", "by the store"])
def test_paths_select_what_is_embedded(open_store: Opener, paths_from: str, paths: list[str], texts: list[str]) -> None:
    store = open_store(fields=paths if paths_from == "by the store" else ["nowhere"])
    store.put(("a",), "k", DOCUMENT, index=paths if paths_from == "by the put" else None)
    for text in ["apple", "bob", "cork", "dodo", "ear", "fig", "gag", "hush", "ivy", '["hush", "ivy"]']:
        assert embedded(store, text) == ({"k"} if text in texts else set()), text
    [item] = store.search(("a",), query="apple")
    assert (item.score is not None) == bool(texts)


def test_a_record_is_embedded_as_a_whole_by_default(store: Any) -> None:
    store.put(("a",), "k", {"y": "élan", "x": 1})
    assert embedded(store, '{"x": 1, "y": "élan"}') == {"k"}


def test_a_put_can_embed_the_whole_record(open_store: Opener) -> None:
    store = open_store(fields=["title"])
    store.put(("a",), "k", {"y": "élan", "x": 1}, index=["$"])
    assert embedded(store, '{"x": 1, "y": "élan"}') == {"k"}


def test_a_put_can_skip_embedding(store: Any) -> None:
    store.put(("a",), "k", {"text": "abba"}, index=False)
    assert store.get(("a",), "k") is not None
    [item] = store.search(("a",), query="abba")
    assert (item.key, item.score) == ("k", None)


def test_updates_and_deletes_reach_the_index(store: Any) -> None:
    store.put(("a",), "k", {"text": "abba"}, index=["text"])
    assert embedded(store, "abba") == {"k"}
    store.put(("a",), "k", {"text": "quiz"}, index=["text"])
    assert (embedded(store, "abba"), embedded(store, "quiz")) == (set(), {"k"})
    store.delete(("a",), "k")
    assert store.search(("a",), query="quiz") == []


def test_texts_that_are_no_longer_embedded_are_not_found(store: Any) -> None:
    store.put(("a",), "k", {"texts": ["abba", "quiz"]}, index=["texts[*]"])
    store.put(("a",), "k", {"texts": ["abba"]}, index=["texts[*]"])
    assert embedded(store, "quiz") == set()
    store.put(("a",), "k", {"texts": ["abba"]}, index=False)
    assert embedded(store, "abba") == set()


def test_equal_texts_can_be_put_together(store: Any) -> None:
    store.batch([PutOp(("a",), key, {"x": "abba", "y": "abba"}, ["x", "y"]) for key in "kl"])
    assert embedded(store, "abba") == {"k", "l"}


# --- namespaces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", [("",), ("a", ""), ("a.b",), ("a", "b.c"), (1,), ("a\x00",)], ids=str)
def test_invalid_labels_are_refused(store: Any, namespace: Any) -> None:
    attempts: list[Callable[[], Any]] = [
        lambda: store.put(namespace, "k", {}),
        lambda: store.get(namespace, "k"),
        lambda: store.delete(namespace, "k"),
        lambda: store.search(namespace),
        lambda: store.list_namespaces(prefix=namespace),
        lambda: store.list_namespaces(suffix=namespace),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidNamespaceError):
            attempt()
    assert store.search(()) == []


@pytest.mark.parametrize("namespace", [(), ("langgraph",), ("langgraph", "a")], ids=str)
def test_the_root_and_langgraphs_own_namespaces_refuse_puts(store: Any, namespace: tuple[str, ...]) -> None:
    with pytest.raises(InvalidNamespaceError):
        store.put(namespace, "k", {})
    store.put(("a", "langgraph"), "k", {})
    assert len(store.search(("a", "langgraph"))) == 1


NAMESPACES = [
    ("a", "b", "c"),
    ("a", "b", "d", "e"),
    ("a", "b", "d", "i"),
    ("a", "b", "f"),
    ("a", "c", "f"),
    ("b", "a", "f"),
    ("z",),
]


@pytest.mark.parametrize(
    ("arguments", "namespaces"),
    [
        ({}, NAMESPACES),
        ({"prefix": ("a", "b")}, NAMESPACES[:4]),
        ({"prefix": ("a", "b", "f")}, [("a", "b", "f")]),
        ({"prefix": ("a", "b", "c", "d")}, []),
        ({"prefix": ("a", "*", "f")}, [("a", "b", "f"), ("a", "c", "f")]),
        ({"prefix": ("*", "a")}, [("b", "a", "f")]),
        ({"prefix": ("*",)}, NAMESPACES),
        ({"prefix": ("missing",)}, []),
        ({"suffix": ("f",)}, NAMESPACES[3:6]),
        ({"suffix": ("b", "*")}, [("a", "b", "c"), ("a", "b", "f")]),
        ({"suffix": ("c", "f")}, [("a", "c", "f")]),
        ({"prefix": ("a",), "suffix": ("f",)}, [("a", "b", "f"), ("a", "c", "f")]),
        ({"max_depth": 1}, [("a",), ("b",), ("z",)]),
        ({"max_depth": 2}, [("a", "b"), ("a", "c"), ("b", "a"), ("z",)]),
        ({"prefix": ("a", "b"), "max_depth": 3}, [("a", "b", "c"), ("a", "b", "d"), ("a", "b", "f")]),
        ({"max_depth": 9}, NAMESPACES),
        ({"limit": 2}, NAMESPACES[:2]),
        ({"limit": 2, "offset": 6}, NAMESPACES[6:]),
        ({"offset": 7}, []),
        ({"limit": 0}, []),
        ({"max_depth": 2, "limit": 2, "offset": 1}, [("a", "c"), ("b", "a")]),
    ],
    ids=str,
)
def test_namespaces_are_listed(store: Any, arguments: dict[str, Any], namespaces: list[tuple[str, ...]]) -> None:
    store.batch([PutOp(namespace, "k", {}, False) for namespace in reversed(NAMESPACES)])
    assert store.list_namespaces(**arguments) == namespaces


def test_a_namespace_without_records_is_not_listed(store: Any) -> None:
    store.put(("a",), "k", {}, index=False)
    store.put(("b",), "k", {}, index=False)
    store.get(("c",), "k")
    store.delete(("b",), "k")
    assert store.list_namespaces() == [("a",)]


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_returns_results_in_the_order_of_its_operations(store: Any) -> None:
    store.put(("a",), "k", {"n": 0}, index=False)
    get = GetOp(("a",), "k")
    results = store.batch(
        op for op in (get, PutOp(("b",), "k", {}, False), SearchOp(("a",)), ListNamespacesOp(), get, GetOp(("a",), "l"))
    )
    assert [results[0].value, results[1], keys(results[2]), results[3]] == [{"n": 0}, None, ["k"], [("a",)]]
    assert results[4] == results[0]
    assert results[5] is None
    assert store.batch([]) == []


def test_a_batch_reads_before_it_writes_and_the_last_put_wins(store: Any) -> None:
    store.put(("a",), "k", {"n": 0}, index=False)
    results = store.batch(
        [
            PutOp(("a",), "k", {"n": 1}, False),
            GetOp(("a",), "k"),
            PutOp(("a",), "k", {"n": 2}, False),
            SearchOp(("a",)),
            PutOp(("a",), "gone", {"n": 3}, False),
            PutOp(("a",), "gone", None),
        ]
    )
    assert len(results) == 6
    assert results[1].value == {"n": 0}
    assert [item.value for item in results[3]] == [{"n": 0}]
    assert store.get(("a",), "k").value == {"n": 2}
    assert store.get(("a",), "gone") is None


def test_a_large_batch(store: Any) -> None:
    puts = [
        PutOp(("a", str(i % 7)), str(i), {"text": f"{'b' * (i % 40 + 1)}{'c' * (i // 40 + 1)}"}) for i in range(1200)
    ]
    assert store.batch(puts) == [None] * 1200
    stored_items = store.batch([GetOp(op.namespace, op.key) for op in puts])
    assert [item.value for item in stored_items] == [op.value for op in puts]
    assert len(store.search(("a",), limit=5000)) == 1200
    items = store.search(("a",), query="bc", limit=5000)
    assert len(set(keys(items))) == 1200
    assert all(item.score is not None for item in items)


def test_an_unknown_operation_is_refused(store: Any) -> None:
    with pytest.raises(ValueError, match=r"[Uu]nknown operation"):
        store.batch([("a",)])


def test_concurrent_coroutines_are_all_served(kind: Kind, tmp_path: Path) -> None:
    async def write(store: BaseStore, i: int) -> Any:
        await store.aput(("a",), str(i), {"text": "b" * (i + 1) + "c"}, index=["text"])
        return await store.aget(("a",), str(i))

    async def go() -> None:
        with kind.open(tmp_path, ["$"], None) as store:
            items = await asyncio.gather(*(write(store, i) for i in range(20)))
            assert [item.key for item in items] == [str(i) for i in range(20)]
            assert len(await store.asearch(("a",), query="b", limit=50)) == 20

    asyncio.run(go())


# --- time to live ---------------------------------------------------------------------------------------------------


@pytest.fixture
def expiring_store(open_store: Opener) -> Any:
    """A store whose records expire after 1.5 seconds. Skips stores without a time to live, after they refuse one."""
    store = open_store(ttl={"default_ttl": 1.5 / 60, "omit_expired": True})
    if not store.store.supports_ttl:
        with pytest.raises(NotImplementedError):
            store.put(("a",), "k", {}, ttl=1)
        store.put(("a",), "k", {}, ttl=None)
        pytest.skip("this store has no time to live")
    return store


@pytest.mark.slow
def test_records_that_nobody_reads_expire(expiring_store: Any) -> None:
    names = ["read", "found", "left", "seen", "ever", "renewed", "long"]
    for name in names:
        lives = {"ever": {"ttl": None}, "long": {"ttl": 5}}.get(name, {})
        expiring_store.put((name,), "k", {"text": "abba"}, **lives)

    def unread_records_are_gone() -> bool:
        expiring_store.get(("read",), "k")
        expiring_store.search(("found",), query="abba")
        expiring_store.put(("renewed",), "k", {"text": "abba"})
        return not expiring_store.get(("left",), "k", refresh_ttl=False) and not expiring_store.search(
            ("seen",), refresh_ttl=False
        )

    wait_until(unread_records_are_gone, lambda: expiring_store.search(()), seconds=20)
    live_names = [name for name in names if expiring_store.get((name,), "k")]
    assert live_names == ["read", "found", "ever", "renewed", "long"]
    assert [n for (n,) in expiring_store.list_namespaces()] == sorted(live_names)
    assert len(expiring_store.search((), query="abba")) == 5
