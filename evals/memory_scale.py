"""How the memory store does with many records: against the bare FAISS index, and against LangGraph's other stores.

    python -m gems.evals.memory_scale --records 1000000 --out /tmp/memory-scale
    python -m gems.evals.memory_scale --records 100000 --against --out /tmp/memory-scale-100k

Vectors have MiniLM's geometry without its cost: each mixes those of three real prompts, which are embedded first.
Queries are mixed the same way and are in no store. A tenth of the records lies in each of ten namespaces. Recall is
of the ten nearest, against comparison with all. Times are of one query after another, from one thread, and do not
hold the embedding of the query, which costs every store the same. Printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore, PutOp
from langgraph.store.memory import InMemoryStore
from numpy.typing import NDArray

from gems.evals.prompts import fresh_prompts
from gems.memory.care import size_of
from gems.memory.embedder import init_embedder
from gems.memory.store import FaissStore

NAMESPACES: Final = 10
QUERIES: Final = 300
K: Final = 10


class Prepared(Embeddings):
    """The n-th vector for the text "n"."""

    fingerprint = "prepared"

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Rows, as an array: a list of lists would be most of the work."""
        return self.vectors[[int(text) for text in texts]]  # type: ignore[return-value]

    def embed_query(self, text: str) -> list[float]:
        """One row."""
        return list(self.vectors[int(text)])


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", action="store_true", help="InMemoryStore and SqliteStore too")
    parser.add_argument("--out", type=Path, required=True, help="an empty or missing folder; removed at the end")
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty")

    count = given.records
    say(f"embedding prompts for {count} vectors")
    vectors = mixed(count + QUERIES, given.seed)
    embedder = Prepared(vectors)
    say("comparing with all, for recall")
    truth = {"everything": nearest(vectors[:count], vectors[count:], 1)}
    truth["a tenth"] = nearest(vectors[:count:NAMESPACES], vectors[count:], NAMESPACES)

    report: dict[str, Any] = {"records": count, "dims": vectors.shape[1], "queries": QUERIES, "stores": {}}
    makers: dict[str, Callable[[], Any]] = {"FaissStore": lambda: FaissStore(given.out / "faiss", embedder=embedder)}
    if given.against:
        index: Any = {"dims": vectors.shape[1], "embed": embedder, "fields": ["t"]}
        makers["InMemoryStore"] = lambda: InMemoryStore(index=index)
        if hasattr(sqlite3.Connection, "enable_load_extension"):
            makers["SqliteStore"] = lambda: sqlite_store(given.out / "sqlite.db", index)
        else:
            report["stores"]["SqliteStore"] = "cannot be run: this Python's sqlite3 loads no extensions"
    given.out.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        say(name)
        report["stores"][name] = measure(make, count, truth, durable=name != "InMemoryStore")
        report["stores"][name]["disk_mb"] = round(size_of(given.out) / 1e6, 1)
        if name == "FaissStore":
            report["bare_faiss"] = bare(given.out / "faiss", embedder, count)
        shutil.rmtree(given.out)
        given.out.mkdir()
    report["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    given.out.rmdir()
    print(json.dumps(report, indent=1))


def mixed(count: int, seed: int) -> NDArray[np.float32]:
    """So many unit vectors, each a mix of three prompts' own."""
    prompts = [p.prompt for p in fresh_prompts(3000, seed)]
    real = np.asarray(init_embedder().embed_documents(prompts), np.float32)
    dice = np.random.default_rng(seed)
    made = np.zeros((count, real.shape[1]), np.float32)
    for start in range(0, count, 50_000):
        part = made[start : start + 50_000]
        weights = dice.dirichlet((1, 1, 1), len(part)).astype(np.float32)
        for i in range(3):
            part += weights[:, i : i + 1] * real[dice.integers(0, len(real), len(part))]
        part += dice.normal(scale=0.01, size=part.shape).astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def nearest(vectors: NDArray[np.float32], queries: NDArray[np.float32], step: int) -> list[set[str]]:
    """By comparison with all: the keys of the ten nearest to each query."""
    best = [np.argpartition(-(vectors @ query), K)[:K] for query in queries]
    return [{str(i * step) for i in found} for found in best]


def measure(make: Callable[[], Any], count: int, truth: dict[str, list[set[str]]], *, durable: bool) -> dict[str, Any]:
    """Put everything, open it again, search it."""
    store: BaseStore = make()
    seconds: dict[str, float] = {}
    with clock(seconds, "put"):
        for start in range(0, count, 1000):
            store.batch(
                [
                    PutOp(("bench", str(i % NAMESPACES)), str(i), {"t": str(i), "half": i % 2}, ["t"])
                    for i in range(start, min(count, start + 1000))
                ]
            )
            if start % 100_000 == 0:
                say(f"  {start} put")
    one = []
    for i in range(200):
        begin = time.perf_counter()
        store.put(("bench", "0"), "0", {"t": "0", "half": 0, "n": i}, index=["t"])
        one.append(time.perf_counter() - begin)
    with clock(seconds, "finish_index"):
        if durable:
            close(store)
    with clock(seconds, "open"):
        store = make() if durable else store
    with clock(seconds, "first_search"):
        store.search(("bench",), query=str(count), limit=K)
    found: dict[str, Any] = {
        "put_per_s": round(count / seconds["put"]),
        "single_put_ms": spread(one),
        "finish_index_s": round(seconds["finish_index"], 2),
        "open_s": round(seconds["open"], 3),
        "first_search_s": round(seconds["first_search"], 3),
    }
    for name, prefix, condition in (
        ("everything", ("bench",), None),
        ("a tenth", ("bench", "0"), None),
        ("filter on half", ("bench",), {"half": 1}),
    ):
        times, recalls = [], []
        for n in range(QUERIES if count <= 200_000 or durable else 50):
            begin = time.perf_counter()
            items = store.search(prefix, query=str(count + n), limit=K, filter=condition)
            times.append(time.perf_counter() - begin)
            assert len(items) == K
            if name in truth:
                recalls.append(len({item.key for item in items} & truth[name][n]) / K)
            if sum(times) > 60:
                break
        found[name] = {"ms": spread(times), "searches": len(times)}
        if recalls:
            found[name]["recall_at_10"] = round(float(np.mean(recalls)), 4)
    close(store)
    return found


def bare(folder: Path, embedder: Prepared, count: int) -> dict[str, Any]:
    """The same searches straight on the store's own FAISS index, in turns with the store: what all around it costs."""
    store = FaissStore(folder, embedder=embedder)
    store.search(("bench",), query="0")
    index = store._index
    assert index is not None
    spaces = store._records.spaces("bench")
    straight, whole = [], []
    for n in range(QUERIES):
        begin = time.perf_counter()
        index.search(embedder.vectors[count + n], 32, spaces)
        middle = time.perf_counter()
        store.search(("bench",), query=str(count + n), limit=K)
        whole.append(time.perf_counter() - middle)
        straight.append(middle - begin)
    store.close()
    ratio = float(np.median(np.array(whole) / np.array(straight)))
    return {"ms": spread(straight), "store_ms": spread(whole), "median_ratio": round(ratio, 2)}


def sqlite_store(file: Path, index: Any) -> Any:
    """LangGraph's SqliteStore with sqlite-vec, over a connection of its own."""
    from langgraph.store.sqlite import SqliteStore

    store = SqliteStore(sqlite3.connect(file, check_same_thread=False, isolation_level=None), index=index)
    store.setup()
    return store


def close(store: Any) -> None:
    """Close a store, whatever it is."""
    if isinstance(store, FaissStore):
        store.close()
    elif connection := getattr(store, "conn", None):
        connection.close()


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long something took."""
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    array = np.asarray(seconds) * 1000
    return {"median": round(float(np.median(array)), 3), "p99": round(float(np.quantile(array, 0.99)), 3)}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
