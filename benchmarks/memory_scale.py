"""The performance of the memory store with many records, against the bare FAISS index and against other stores.

    python benchmarks/memory_scale.py --records 1000000 --out /tmp/memory-scale
    python benchmarks/memory_scale.py --records 100000 --against --table --out /tmp/memory-scale-100k

Vectors have MiniLM's geometry without its cost: each is a mix of the vectors of three real prompts, which are embedded
first. Queries are mixed in the same way and are in no store; another seed gives other prompts, vectors and queries.
Each of ten namespaces contains a tenth of the records, except for a hundred in a small namespace of their own. Recall
is that of the ten nearest, against an exhaustive comparison. Times are for one query after another in one thread,
without the embedding of the query, which costs every store the same. A store is reopened in the process that filled it.

The other stores are those of ``memory_stores``; one that is unavailable is listed with the reason. If a search is
approximate and its effort can be chosen, each kind of search uses the least effort whose recall, on queries that are
not measured, is close to FaissStore's. Last, a process that puts records is killed three times, and the acknowledged
records are looked for. Printed as JSON, or as a table in Markdown.
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
from memory_stores import KINDS, NAMESPACES, Prepared, Record, Subject, survive
from numpy.typing import NDArray

from gems.evals.prompts import fresh_prompts
from gems.memory.care import size_of
from gems.memory.embedder import init_embedder
from gems.memory.store import FaissStore

QUERIES: Final = 300
TRIALS: Final = 50
"""Queries for choosing an effort; they are not measured."""
K: Final = 10
REFERENCE: Final = "FaissStore"
SMALL: Final = "small"
_LEAST_RECORDS: Final = 400
"""With this many records, every search has at least ten to find."""
_RECALL_TOLERANCE: Final = 0.01
_LEAST_RECALL: Final = 0.95
_MAX_SECONDS: Final = 60
"""Seconds after which no further searches of a kind are measured."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of search."""

    name: str
    namespace: str | None = None
    half: int | None = None

    def holds(self, record: Record) -> bool:
        """Whether this kind of search can return a record."""
        return self.namespace in (None, record.namespace) and self.half in (None, record.half)


CASES: Final = (
    Case("everything"),
    Case("a tenth", namespace="0"),
    Case("filter on half", half=1),
    Case("a small namespace", namespace=SMALL),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """The data that every store is measured with."""

    records: list[Record]
    embedder: Prepared
    truth: dict[str, list[set[str]]]
    """By case, the keys of the nearest records to each query."""

    @property
    def dims(self) -> int:
        """Dimensions of the vectors."""
        return int(self.embedder.vectors.shape[1])

    def query(self, n: int) -> str:
        """The text of the n-th query; those after the first ``QUERIES`` are for choosing an effort."""
        return str(len(self.records) + n)


def main() -> None:
    """Measure, and print."""
    args = _arguments()
    bench = prepare(args.records, args.seed)
    report: dict[str, Any] = {"records": args.records, "seed": args.seed, "dims": bench.dims, "queries": QUERIES}
    stores: dict[str, Any] = report.setdefault("stores", {})
    names = [] if args.against is None else args.against or list(KINDS)
    for name in dict.fromkeys([REFERENCE, *names]):
        say(name)
        if reason := KINDS[name].why_unavailable():
            stores[name] = reason
            continue
        folder = args.out / "store"
        folder.mkdir(parents=True)
        stores[name] = measure(KINDS[name], folder, bench, stores.get(REFERENCE, {}))
        if name == REFERENCE:
            report["bare_faiss"] = bare(folder, bench)
        shutil.rmtree(args.out)
        if args.kills:
            stores[name]["after_kills"] = _after_kills(name, args)
    report["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    print(table(report) if args.table else json.dumps(report, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--against",
        nargs="*",
        choices=list(KINDS),
        metavar="STORE",
        help=f"also measure other stores (all, if none is named): {'; '.join(KINDS)}",
    )
    parser.add_argument("--kills", type=int, default=3, help="how often to kill a writing process; 0 for never")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown, and the JSON on stderr")
    parser.add_argument("--out", type=Path, required=True, help="an empty or missing folder; it is removed at the end")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty")
    if args.records < _LEAST_RECORDS:
        parser.error(f"--records must be {_LEAST_RECORDS} or more")
    return args


# --- the data ---------------------------------------------------------------------------------------------------------


def prepare(count: int, seed: int) -> Bench:
    """Make records and queries, and determine what should be found."""
    say(f"embedding prompts for {count} vectors")
    vectors = mixed(count + QUERIES + TRIALS, seed)
    records = [Record(str(i), _namespace(i, count), str(i), i % 2) for i in range(count)]
    say("comparing with all, for recall")
    truth = {case.name: nearest(vectors, records, case) for case in CASES}
    return Bench(records, Prepared(vectors), truth)


def _namespace(i: int, count: int) -> str:
    return SMALL if i % (count // 100) == 3 else str(i % NAMESPACES)


def mixed(count: int, seed: int) -> NDArray[np.float32]:
    """``count`` unit vectors, each a mix of the vectors of three prompts."""
    prompts = [p.prompt for p in fresh_prompts(3000, seed)]
    real = np.asarray(init_embedder().embed_documents(prompts), np.float32)
    dice = np.random.default_rng(seed)
    vectors = np.zeros((count, real.shape[1]), np.float32)
    for start in range(0, count, 50_000):
        part = vectors[start : start + 50_000]
        weights = dice.dirichlet((1, 1, 1), len(part)).astype(np.float32)
        for i in range(3):
            part += weights[:, i : i + 1] * real[dice.integers(0, len(real), len(part))]
        part += dice.normal(scale=0.01, size=part.shape).astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def nearest(vectors: NDArray[np.float32], records: Sequence[Record], case: Case) -> list[set[str]]:
    """The keys of the ten nearest records to each query, by exhaustive comparison."""
    candidates = np.array([i for i, record in enumerate(records) if case.holds(record)])
    part = vectors[candidates]
    best = [np.argpartition(-(part @ query), K)[:K] for query in vectors[len(records) :]]
    return [{records[i].key for i in candidates[indices]} for indices in best]


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(kind: type[Subject], folder: Path, bench: Bench, reference: dict[str, Any]) -> dict[str, Any]:
    """Fill a store, reopen it and search it. ``reference`` has the figures of the store to compare recall with."""
    store = kind(folder, bench.embedder, bench.dims)
    seconds: dict[str, float] = {}
    with clock(seconds, "put"):
        for start in range(0, len(bench.records), 1000):
            store.load(bench.records[start : start + 1000])
            if start % 100_000 == 0:
                say(f"  {start} put")
    with clock(seconds, "finish"):
        store.finish()
    single_puts = []
    for _ in range(200):
        begin = time.perf_counter()
        store.put(bench.records[0])
        single_puts.append(time.perf_counter() - begin)
    with clock(seconds, "finish"):
        store.finish()
        if kind.durable:
            store.close()
    with clock(seconds, "open"):
        if kind.durable:
            store = kind(folder, bench.embedder, bench.dims)
    with clock(seconds, "first_search"):
        store.search(bench.query(0), K)
    figures: dict[str, Any] = {
        "version": kind.version(),
        "put_per_s": round(len(bench.records) / seconds["put"]),
        "single_put_ms": spread(single_puts),
        "finish_index_s": round(seconds["finish"], 2),
        "open_s": round(seconds["open"], 3),
        "first_search_s": round(seconds["first_search"], 3),
    }
    for case in CASES:
        say(f"  searching {case.name}")
        recall_goal = max(_LEAST_RECALL, reference.get(case.name, {}).get("recall_at_10", 1) - _RECALL_TOLERANCE)
        effort = _least_effort(store, case, bench, recall_goal)
        figures[case.name] = _search(store, case, bench, range(QUERIES)) | ({"effort": effort} if effort else {})
    store.close()
    figures["disk_mb"] = round(size_of(folder) / 1e6, 1)
    return figures


def _least_effort(store: Subject, case: Case, bench: Bench, recall_goal: float) -> Any:
    """Set and return the least effort whose recall reaches the goal, or else the greatest."""
    effort = None
    for effort in store.efforts:
        store.set_effort(effort)
        recall = _search(store, case, bench, range(QUERIES, QUERIES + TRIALS))["recall_at_10"]
        say(f"    effort {effort}: recall {recall}")
        if recall >= recall_goal:
            break
    return effort


def _search(store: Subject, case: Case, bench: Bench, queries: Sequence[int]) -> dict[str, Any]:
    times, recalls = [], []
    for n in queries:
        begin = time.perf_counter()
        keys = store.search(bench.query(n), K, namespace=case.namespace, half=case.half)
        times.append(time.perf_counter() - begin)
        recalls.append(len(set(keys) & bench.truth[case.name][n]) / K)
        if sum(times) > _MAX_SECONDS:
            break
    return {"ms": spread(times), "searches": len(times), "recall_at_10": round(float(np.mean(recalls)), 4)}


def bare(folder: Path, bench: Bench) -> dict[str, Any]:
    """The same searches directly on the store's FAISS index, alternating with the store, to measure the overhead."""
    store = FaissStore(folder, embedder=bench.embedder)
    store.search(("bench",), query="0")
    index = store._index.open()
    assert index is not None
    spaces = store._records.spaces("bench")
    index_times, store_times = [], []
    for n in range(QUERIES):
        begin = time.perf_counter()
        index.search(bench.embedder.vectors[len(bench.records) + n], 32, spaces)
        middle = time.perf_counter()
        store.search(("bench",), query=bench.query(n), limit=K)
        store_times.append(time.perf_counter() - middle)
        index_times.append(middle - begin)
    store.close()
    ratio = float(np.median(np.array(store_times) / np.array(index_times)))
    return {"ms": spread(index_times), "store_ms": spread(store_times), "median_ratio": round(ratio, 2)}


def _after_kills(name: str, args: argparse.Namespace) -> dict[str, Any] | str:
    if not KINDS[name].durable:
        return "loses everything: it is in memory only"
    say(f"  killing it {args.kills} times")
    try:
        return survive(name, args.out / "killed", args.kills, args.seed)
    finally:
        shutil.rmtree(args.out)


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the duration of the block to the seconds recorded under a name."""
    begin = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0) + time.perf_counter() - begin


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    array = np.asarray(seconds) * 1000
    return {"median": round(float(np.median(array)), 3), "p99": round(float(np.quantile(array, 0.99)), 3)}


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


# --- the table --------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The stores as a table in Markdown: searches as median (99th percentile) milliseconds, and recall."""
    say(json.dumps(report, indent=1))
    heads = ["Store", "Puts/s", "One put, ms", "Index, s", "Open, s", "First search, s"]
    heads += [case.name[0].upper() + case.name[1:] for case in CASES] + ["Disk, MB", "After kills"]
    lines = [heads, ["---"] * len(heads)]
    lines += [_row(name, figures) for name, figures in report["stores"].items() if isinstance(figures, dict)]
    notes = [f"{name}: {_note(figures)}." for name, figures in report["stores"].items()]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes])


def _note(figures: dict[str, Any] | str) -> str:
    """The version measured and its efforts, or why it was not measured."""
    if isinstance(figures, str):
        return figures
    efforts = {case.name: figures[case.name].get("effort") for case in CASES}
    choices = ", ".join(f"{name} {effort}" for name, effort in efforts.items() if effort)
    return f"{figures['version']}{f'; effort for {choices}' if choices else ''}"


def _row(name: str, figures: dict[str, Any]) -> list[str]:
    cells = [name, f"{figures['put_per_s']:,}", _times(figures["single_put_ms"])]
    cells += [f"{figures[key]:.3g}" for key in ("finish_index_s", "open_s", "first_search_s")]
    cells += [f"{_times(figures[case.name]['ms'])}; {figures[case.name]['recall_at_10']:.3f}" for case in CASES]
    return [*cells, f"{figures['disk_mb']:.0f}", _kills(figures.get("after_kills", "not tried"))]


def _times(ms: dict[str, float]) -> str:
    return f"{ms['median']:.3g} ({ms['p99']:.3g})"


def _kills(report: dict[str, Any] | str) -> str:
    if isinstance(report, str):
        return report
    if "error" in report:
        return f"cannot be opened: {report['error']}"
    searched = (
        "" if report["found_first"] == report["asked"] else f", {report['found_first']} of {report['asked']} found"
    )
    return f"{report['missing']} of {report['acknowledged']:,} missing{searched}"


if __name__ == "__main__":
    main()
