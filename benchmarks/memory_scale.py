"""How the memory store does with many records: against the bare FAISS index, and against other stores.

    python benchmarks/memory_scale.py --records 1000000 --out /tmp/memory-scale
    python benchmarks/memory_scale.py --records 100000 --against --table --out /tmp/memory-scale-100k

Vectors have MiniLM's geometry without its cost: each mixes those of three real prompts, which are embedded first.
Queries are mixed the same way and are in no store; another seed has other prompts, other vectors and other queries.
A tenth of the records lies in each of ten namespaces, but for a hundred that have a small one of their own. Recall is
of the ten nearest, against comparison with all. Times are of one query after another, from one thread, and do not hold
the embedding of the query, which costs every store the same. A store is opened again in the process that filled it.

Other stores are those of ``memory_stores``; one that cannot be run is named, with the reason. Where a search
is approximate and its effort can be chosen, each kind of search is made with the least effort whose recall, on queries
that are not measured, comes near to FaissStore's. Last, a process that puts records is killed three times, and what it
had been told was put is looked for. Printed as JSON, or as a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gems.evals.prompts import fresh_prompts
from gems.memory.care import size_of
from gems.memory.embedder import init_embedder
from gems.memory.store import FaissStore
from memory_stores import KINDS, NAMESPACES, Prepared, Record, Subject, survive

QUERIES: Final = 300
TRIALS: Final = 50
"""Queries by which an effort is chosen; they are not measured."""
K: Final = 10
OURS: Final = "FaissStore"
SMALL: Final = "small"
_FEWEST: Final = 400
"""Records from which on every search has ten to find."""
_NEAR: Final = 0.01
_AT_LEAST: Final = 0.95
_PATIENCE: Final = 60
"""Seconds after which a kind of search was measured often enough."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of search."""

    name: str
    namespace: str | None = None
    half: int | None = None

    def holds(self, record: Record) -> bool:
        """Whether a record can be found by it."""
        return self.namespace in (None, record.namespace) and self.half in (None, record.half)


CASES: Final = (
    Case("everything"),
    Case("a tenth", namespace="0"),
    Case("filter on half", half=1),
    Case("a small namespace", namespace=SMALL),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every store is measured with."""

    records: list[Record]
    embedder: Prepared
    truth: dict[str, list[set[str]]]
    """By case, for each query, the keys of the nearest."""

    @property
    def dims(self) -> int:
        """Of the vectors."""
        return int(self.embedder.vectors.shape[1])

    def query(self, n: int) -> str:
        """The text whose vector is the n-th query's; those behind the first ``QUERIES`` are for trials."""
        return str(len(self.records) + n)


def main() -> None:
    """Measure, and print."""
    given = _arguments()
    bench = prepare(given.records, given.seed)
    report: dict[str, Any] = {"records": given.records, "seed": given.seed, "dims": bench.dims, "queries": QUERIES}
    stores: dict[str, Any] = report.setdefault("stores", {})
    others = [] if given.against is None else given.against or list(KINDS)
    for name in dict.fromkeys([OURS, *others]):
        say(name)
        if reason := KINDS[name].missing():
            stores[name] = reason
            continue
        folder = given.out / "store"
        folder.mkdir(parents=True)
        stores[name] = measure(KINDS[name], folder, bench, stores.get(OURS, {}))
        if name == OURS:
            report["bare_faiss"] = bare(folder, bench)
        shutil.rmtree(given.out)
        if given.kills:
            stores[name]["after_kills"] = _after_kills(name, given)
    report["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    print(table(report) if given.table else json.dumps(report, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--against", nargs="*", choices=list(KINDS), metavar="STORE", help=f"other stores too: {'; '.join(KINDS)}"
    )
    parser.add_argument("--kills", type=int, default=3, help="how often a writing process is killed; 0 for not at all")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown, and the JSON on stderr")
    parser.add_argument("--out", type=Path, required=True, help="an empty or missing folder; removed at the end")
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty")
    if given.records < _FEWEST:
        parser.error(f"--records must be {_FEWEST} or more")
    return given


# --- what is searched -----------------------------------------------------------------------------------------------


def prepare(count: int, seed: int) -> Bench:
    """Records, queries, and what should be found."""
    say(f"embedding prompts for {count} vectors")
    vectors = mixed(count + QUERIES + TRIALS, seed)
    records = [Record(str(i), _namespace(i, count), str(i), i % 2) for i in range(count)]
    say("comparing with all, for recall")
    truth = {case.name: nearest(vectors, records, case) for case in CASES}
    return Bench(records, Prepared(vectors), truth)


def _namespace(i: int, count: int) -> str:
    return SMALL if i % (count // 100) == 3 else str(i % NAMESPACES)


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


def nearest(vectors: NDArray[np.float32], records: Sequence[Record], case: Case) -> list[set[str]]:
    """By comparison with all: the keys of the ten nearest to each query."""
    chosen = np.array([i for i, record in enumerate(records) if case.holds(record)])
    part = vectors[chosen]
    best = [np.argpartition(-(part @ query), K)[:K] for query in vectors[len(records) :]]
    return [{records[i].key for i in chosen[found]} for found in best]


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(kind: type[Subject], folder: Path, bench: Bench, ours: dict[str, Any]) -> dict[str, Any]:
    """Put everything, open it again, search it."""
    store = kind(folder, bench.embedder, bench.dims)
    seconds: dict[str, float] = {}
    with clock(seconds, "put"):
        for start in range(0, len(bench.records), 1000):
            store.load(bench.records[start : start + 1000])
            if start % 100_000 == 0:
                say(f"  {start} put")
    with clock(seconds, "finish"):
        store.finish()
    single = []
    for _ in range(200):
        begin = time.perf_counter()
        store.put(bench.records[0])
        single.append(time.perf_counter() - begin)
    with clock(seconds, "finish"):
        store.finish()
        if kind.durable:
            store.close()
    with clock(seconds, "open"):
        if kind.durable:
            store = kind(folder, bench.embedder, bench.dims)
    with clock(seconds, "first_search"):
        store.search(bench.query(0), K)
    found: dict[str, Any] = {
        "version": kind.version(),
        "put_per_s": round(len(bench.records) / seconds["put"]),
        "single_put_ms": spread(single),
        "finish_index_s": round(seconds["finish"], 2),
        "open_s": round(seconds["open"], 3),
        "first_search_s": round(seconds["first_search"], 3),
    }
    for case in CASES:
        say(f"  searching {case.name}")
        enough = max(_AT_LEAST, ours.get(case.name, {}).get("recall_at_10", 1) - _NEAR)
        effort = _enough_effort(store, case, bench, enough)
        found[case.name] = _search(store, case, bench, range(QUERIES)) | ({"effort": effort} if effort else {})
    store.close()
    found["disk_mb"] = round(size_of(folder) / 1e6, 1)
    return found


def _enough_effort(store: Subject, case: Case, bench: Bench, enough: float) -> Any:
    """The least effort whose recall is enough, or the greatest; the store goes on with it."""
    effort = None
    for effort in store.efforts:
        store.try_harder(effort)
        recall = _search(store, case, bench, range(QUERIES, QUERIES + TRIALS))["recall_at_10"]
        say(f"    effort {effort}: recall {recall}")
        if recall >= enough:
            break
    return effort


def _search(store: Subject, case: Case, bench: Bench, queries: Sequence[int]) -> dict[str, Any]:
    times, recalls = [], []
    for n in queries:
        begin = time.perf_counter()
        keys = store.search(bench.query(n), K, namespace=case.namespace, half=case.half)
        times.append(time.perf_counter() - begin)
        recalls.append(len(set(keys) & bench.truth[case.name][n]) / K)
        if sum(times) > _PATIENCE:
            break
    return {"ms": spread(times), "searches": len(times), "recall_at_10": round(float(np.mean(recalls)), 4)}


def bare(folder: Path, bench: Bench) -> dict[str, Any]:
    """The same searches straight on the store's own FAISS index, in turns with the store: what all around it costs."""
    store = FaissStore(folder, embedder=bench.embedder)
    store.search(("bench",), query="0")
    index = store._index.open()
    assert index is not None
    spaces = store._records.spaces("bench")
    straight, whole = [], []
    for n in range(QUERIES):
        begin = time.perf_counter()
        index.search(bench.embedder.vectors[len(bench.records) + n], 32, spaces)
        middle = time.perf_counter()
        store.search(("bench",), query=bench.query(n), limit=K)
        whole.append(time.perf_counter() - middle)
        straight.append(middle - begin)
    store.close()
    ratio = float(np.median(np.array(whole) / np.array(straight)))
    return {"ms": spread(straight), "store_ms": spread(whole), "median_ratio": round(ratio, 2)}


def _after_kills(name: str, given: argparse.Namespace) -> dict[str, Any] | str:
    if not KINDS[name].durable:
        return "loses everything: it is in memory only"
    say(f"  killing it {given.kills} times")
    try:
        return survive(name, given.out / "killed", given.kills, given.seed)
    finally:
        shutil.rmtree(given.out)


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long something took, in addition to what is noted under its name."""
    begin = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0) + time.perf_counter() - begin


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    array = np.asarray(seconds) * 1000
    return {"median": round(float(np.median(array)), 3), "p99": round(float(np.quantile(array, 0.99)), 3)}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


# --- telling --------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The stores as a table in Markdown: searches as median (99th percentile) milliseconds, and recall."""
    say(json.dumps(report, indent=1))
    heads = ["Store", "Puts/s", "One put, ms", "Index, s", "Open, s", "First search, s"]
    heads += [case.name[0].upper() + case.name[1:] for case in CASES] + ["Disk, MB", "After kills"]
    lines = [heads, ["---"] * len(heads)]
    lines += [_row(name, found) for name, found in report["stores"].items() if isinstance(found, dict)]
    notes = [f"{name}: {_note(found)}." for name, found in report["stores"].items()]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes])


def _note(found: dict[str, Any] | str) -> str:
    """What was measured and with which effort, or why it was not."""
    if isinstance(found, str):
        return found
    efforts = {case.name: found[case.name].get("effort") for case in CASES}
    told = ", ".join(f"{name} {effort}" for name, effort in efforts.items() if effort)
    return f"{found['version']}{f'; effort for {told}' if told else ''}"


def _row(name: str, found: dict[str, Any]) -> list[str]:
    cells = [name, f"{found['put_per_s']:,}", _times(found["single_put_ms"])]
    cells += [f"{found[key]:.3g}" for key in ("finish_index_s", "open_s", "first_search_s")]
    cells += [f"{_times(found[case.name]['ms'])}; {found[case.name]['recall_at_10']:.3f}" for case in CASES]
    return [*cells, f"{found['disk_mb']:.0f}", _kills(found.get("after_kills", "not tried"))]


def _times(ms: dict[str, float]) -> str:
    return f"{ms['median']:.3g} ({ms['p99']:.3g})"


def _kills(told: dict[str, Any] | str) -> str:
    if isinstance(told, str):
        return told
    if "error" in told:
        return f"cannot be opened: {told['error']}"
    searched = "" if told["found_first"] == told["asked"] else f", {told['found_first']} of {told['asked']} found"
    return f"{told['missing']} of {told['acknowledged']:,} missing{searched}"


if __name__ == "__main__":
    main()
