"""The stores that ``memory_scale`` compares, behind one interface, each used as its documentation recommends.

Chroma and LanceDB are not dependencies of GEMS: they are compared only if they are installed. SqliteStore needs a
``sqlite3`` that loads extensions; if Python's own does not, ``pysqlite3-binary`` provides one.

Run as a program, this module is one side of a trial with kills: a process that puts records until it is killed, or one
that looks for the acknowledged records afterwards.

    python benchmarks/memory_stores.py write Chroma FOLDER FIRST
    python benchmarks/memory_stores.py check Chroma FOLDER JOURNAL
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore, GetOp, PutOp
from langgraph.store.memory import InMemoryStore
from numpy.typing import NDArray

from gems.memory.store import FaissStore

NAMESPACES: Final = 10
DIMS: Final = 384
"""Dimensions of the vectors in trials with kills. Measurements use MiniLM's own dimensions."""
_ROOT: Final = "bench"
_SEARCHES_AFTER_KILLS: Final = 50
_STRIDE: Final = 1000
"""Keys that a restarted writer skips, so that no record in flight at the kill is put twice."""


class Record(NamedTuple):
    """A record, whatever the store."""

    key: str
    namespace: str
    text: str
    """The text that the embedder turns into the vector."""
    half: int

    @property
    def value(self) -> dict[str, Any]:
        """The value stored with the vector."""
        return {"t": self.text, "half": self.half}


class Prepared(Embeddings):
    """An embedder that returns the n-th prepared vector for the text "n"."""

    fingerprint = "prepared"

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One row per text, as an array: a list of lists would take most of the time."""
        return self.vectors[[int(text) for text in texts]]  # type: ignore[return-value]

    def embed_query(self, text: str) -> list[float]:
        """One row, as a list."""
        return list(self.vectors[int(text)])


class Numbered(Embeddings):
    """An embedder that derives a unit vector from a text's numbers, such as "3:14": the same in every process."""

    fingerprint = "numbered"

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def vector(self, text: str) -> NDArray[np.float32]:
        """The vector of a text."""
        vector = np.random.default_rng([int(number) for number in text.split(":")]).normal(size=self.dims)
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One row per text, as an array."""
        return np.stack([self.vector(text) for text in texts])  # type: ignore[return-value]

    def embed_query(self, text: str) -> list[float]:
        """One row, as a list."""
        return list(self.vector(text))


class Subject(ABC):
    """A store under measurement. Creating an instance opens the store.

    Args:
        folder: The store's own folder.
        embedder: Turns texts into vectors.
        dims: Dimensions of the vectors.
    """

    package: ClassVar[str]
    """The package that provides the store."""
    durable: ClassVar[bool] = True
    efforts: ClassVar[Sequence[Any]] = ()
    """The settings for the effort of an approximate search, ascending; empty if it cannot be chosen."""

    def __init__(self, folder: Path, embedder: Embeddings, dims: int) -> None:
        self.folder, self.embedder, self.dims = folder, embedder, dims
        self.open()

    @classmethod
    def why_unavailable(cls) -> str | None:
        """Why the store cannot be measured here; None if it can."""
        name = cls.package.partition("-")[0]
        return None if importlib.util.find_spec(name) else f"not installed: pip install {cls.package}"

    @classmethod
    def version(cls) -> str:
        """The name and version of the package."""
        return f"{cls.package} {importlib.metadata.version(cls.package)}"

    @abstractmethod
    def open(self) -> None:
        """Open the store; create it if it does not exist."""

    @abstractmethod
    def load(self, records: Sequence[Record]) -> None:
        """Put many new records."""

    @abstractmethod
    def put(self, record: Record) -> None:
        """Put one record, replacing any record with the same key."""

    def finish(self) -> None:  # noqa: B027 - most stores need nothing
        """Do what the documentation recommends after bulk writes."""

    def set_effort(self, effort: Any) -> None:  # noqa: B027 - exact searches have no effort
        """Use this effort from the next search on."""

    @abstractmethod
    def search(self, query: str, k: int, *, namespace: str | None = None, half: int | None = None) -> list[str]:
        """The keys of the nearest records, nearest first. Their values are read too."""

    @abstractmethod
    def stored_keys(self, records: Sequence[Record]) -> set[str]:
        """Which of these records' keys the store contains."""

    @abstractmethod
    def close(self) -> None:
        """Close the store as its documentation recommends."""

    def _vectors(self, records: Sequence[Record]) -> NDArray[np.float32]:
        return np.asarray(self.embedder.embed_documents([record.text for record in records]), np.float32)

    def _query(self, text: str) -> NDArray[np.float32]:
        return np.asarray(self.embedder.embed_query(text), np.float32)


# --- LangGraph's stores, and ours -------------------------------------------------------------------------------------


class _LangGraphSubject(Subject):
    store: BaseStore

    @classmethod
    def why_unavailable(cls) -> str | None:
        return None

    def _index(self) -> Any:
        return {"dims": self.dims, "embed": self.embedder, "fields": ["t"]}

    def load(self, records: Sequence[Record]) -> None:
        self.store.batch([PutOp((_ROOT, r.namespace), r.key, r.value, ["t"]) for r in records])

    def put(self, record: Record) -> None:
        self.store.put((_ROOT, record.namespace), record.key, record.value, index=["t"])

    def search(self, query: str, k: int, *, namespace: str | None = None, half: int | None = None) -> list[str]:
        prefix = (_ROOT,) if namespace is None else (_ROOT, namespace)
        condition = None if half is None else {"half": half}
        return [item.key for item in self.store.search(prefix, query=query, limit=k, filter=condition)]

    def stored_keys(self, records: Sequence[Record]) -> set[str]:
        items = self.store.batch([GetOp((_ROOT, r.namespace), r.key) for r in records])
        return {r.key for r, item in zip(records, items, strict=True) if item is not None}

    def close(self) -> None:
        pass


class FaissSubject(_LangGraphSubject):
    """GEMS's FaissStore."""

    package = "faiss-cpu"
    store: FaissStore

    def open(self) -> None:
        """Open the store."""
        self.store = FaissStore(self.folder, embedder=self.embedder)

    def close(self) -> None:
        """Close the store."""
        self.store.close()


class InMemorySubject(_LangGraphSubject):
    """LangGraph's InMemoryStore."""

    package = "langgraph-checkpoint"
    durable = False

    def open(self) -> None:
        """Create an empty store."""
        self.store = InMemoryStore(index=self._index())


class SqliteSubject(_LangGraphSubject):
    """LangGraph's SqliteStore with sqlite-vec."""

    package = "langgraph-checkpoint-sqlite"

    @classmethod
    def why_unavailable(cls) -> str | None:
        """Whether there is no SQLite that loads extensions."""
        if _sqlite() is None:
            return "unavailable: this Python's sqlite3 loads no extensions; pip install pysqlite3-binary"
        return None

    @classmethod
    def version(cls) -> str:
        """The versions of the package and of SQLite."""
        return f"{super().version()}, SQLite {_sqlite().sqlite_version}"

    def open(self) -> None:
        """Open the store over a connection like that of ``from_conn_string``."""
        store = importlib.import_module("langgraph.store.sqlite").SqliteStore
        file = self.folder / "store.db"
        self.connection = _sqlite().connect(str(file), check_same_thread=False, isolation_level=None)
        self.store = store(self.connection, index=self._index())
        self.store.setup()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the store."""
        self.connection.close()


def _sqlite() -> Any:
    for name in ("sqlite3", "pysqlite3"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module.Connection, "enable_load_extension"):
            return module
    return None


# --- other stores -----------------------------------------------------------------------------------------------------


class ChromaSubject(Subject):
    """Chroma on disk, its HNSW index with cosine distance and the defaults; the namespace is metadata.

    An effort is ``ef_search``.
    """

    package = "chromadb"
    efforts = (100, 200, 400, 800)

    def open(self) -> None:
        """Open the store, without telemetry."""
        chroma = importlib.import_module("chromadb")
        settings = importlib.import_module("chromadb.config").Settings(anonymized_telemetry=False)
        self.client = chroma.PersistentClient(str(self.folder), settings=settings)
        self.collection = self.client.get_or_create_collection(
            _ROOT, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def load(self, records: Sequence[Record]) -> None:
        """Put many records in batches of the largest size allowed."""
        size = self.client.get_max_batch_size()
        for start in range(0, len(records), size):
            self.collection.add(**self._columns(records[start : start + size]))

    def put(self, record: Record) -> None:
        """Put one record."""
        self.collection.upsert(**self._columns([record]))

    def _columns(self, records: Sequence[Record]) -> dict[str, Any]:
        return {
            "ids": [r.key for r in records],
            "embeddings": self._vectors(records),
            "metadatas": [{"namespace": r.namespace, "half": r.half} for r in records],
            "documents": [json.dumps(r.value) for r in records],
        }

    def set_effort(self, effort: Any) -> None:
        """Reopen the store, because an open collection keeps its settings."""
        self.collection.modify(configuration={"hnsw": {"ef_search": effort}})
        self.close()
        self.open()

    def search(self, query: str, k: int, *, namespace: str | None = None, half: int | None = None) -> list[str]:
        """Search through the index."""
        values = {"namespace": namespace, "half": half}
        conditions: list[dict[str, Any]] = [{name: value} for name, value in values.items() if value is not None]
        where = {"$and": conditions} if len(conditions) > 1 else next(iter(conditions), None)
        answer = self.collection.query(query_embeddings=[self._query(query)], n_results=k, where=where)
        return list(answer["ids"][0])

    def stored_keys(self, records: Sequence[Record]) -> set[str]:
        """Look the keys up by id."""
        return set(self.collection.get(ids=[r.key for r in records], include=[])["ids"])

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class LanceSubject(Subject):
    """LanceDB as its documentation recommends for filtered searches: IVF_PQ with refinement, and bitmap indexes.

    An effort is the number of partitions probed, and the multiple of ``k`` candidates that are compared exactly.
    """

    package = "lancedb"
    efforts: ClassVar[Sequence[Any]] = ((20, 10), (20, 30), (50, 30), (100, 50), (200, 100), (400, 200))
    effort: tuple[int, int] = (20, 10)

    def open(self) -> None:
        """Open the only table."""
        lance, arrow = importlib.import_module("lancedb"), importlib.import_module("pyarrow")
        self.schema = arrow.schema(
            {
                "key": arrow.string(),
                "namespace": arrow.string(),
                "half": arrow.int32(),
                "value": arrow.string(),
                "vector": arrow.list_(arrow.float32(), self.dims),
            }
        )
        self.table = lance.connect(str(self.folder)).create_table(_ROOT, schema=self.schema, exist_ok=True)

    def load(self, records: Sequence[Record]) -> None:
        """Append the records."""
        self.table.add(self._rows(records))

    def put(self, record: Record) -> None:
        """Merge one row into the table."""
        merge = self.table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(self._rows([record]))

    def _rows(self, records: Sequence[Record]) -> Any:
        arrow = importlib.import_module("pyarrow")
        flat = arrow.array(self._vectors(records).ravel())
        columns = [
            [r.key for r in records],
            [r.namespace for r in records],
            [r.half for r in records],
            [json.dumps(r.value) for r in records],
            arrow.FixedSizeListArray.from_arrays(flat, self.dims),
        ]
        return arrow.table(columns, schema=self.schema)

    def finish(self) -> None:
        """Create or update the indexes."""
        if not self.table.list_indices():
            index = importlib.import_module("lancedb.index")
            self._index_vectors(index)
            for column, config in (("namespace", index.Bitmap()), ("half", index.Bitmap()), ("key", index.BTree())):
                self.table.create_index(column, config=config)
        self.table.optimize()

    def _index_vectors(self, index: Any) -> None:
        # Four dimensions per code: with the default of sixteen, many more candidates would have to be compared.
        config = index.IvfPq(distance_type="cosine", num_sub_vectors=self.dims // 4)
        self.table.create_index("vector", config=config)

    def set_effort(self, effort: Any) -> None:
        """Use this effort from the next search on."""
        self.effort = effort

    def search(self, query: str, k: int, *, namespace: str | None = None, half: int | None = None) -> list[str]:
        """Filter first, then search for the nearest."""
        conditions = [] if namespace is None else [f"namespace = '{namespace}'"]
        conditions += [] if half is None else [f"half = {half}"]
        request = self.table.search(self._query(query)).distance_type("cosine").limit(k)
        request = self._with_effort(request).select(["key", "value", "_distance"])
        if conditions:
            request = request.where(" AND ".join(conditions), prefilter=True)
        return [row["key"] for row in request.to_list()]

    def _with_effort(self, request: Any) -> Any:
        partitions, candidates = self.effort
        return request.nprobes(partitions).refine_factor(candidates)

    def stored_keys(self, records: Sequence[Record]) -> set[str]:
        """Compare with all keys of the table."""
        rows = self.table.search().select(["key"]).limit(self.table.count_rows()).to_arrow()
        return set(rows["key"].to_pylist()) & {r.key for r in records}

    def close(self) -> None:
        """LanceDB keeps nothing open."""


class ExactLanceSubject(LanceSubject):
    """LanceDB without a vector index, as its documentation recommends for up to about 100,000 vectors."""

    efforts = ()

    def _index_vectors(self, index: Any) -> None:
        pass

    def _with_effort(self, request: Any) -> Any:
        return request


Kind: TypeAlias = type[Subject]
KINDS: Final[dict[str, Kind]] = {
    "FaissStore": FaissSubject,
    "InMemoryStore": InMemorySubject,
    "SqliteStore": SqliteSubject,
    "Chroma": ChromaSubject,
    "LanceDB, IVF_PQ": LanceSubject,
    "LanceDB, no index": ExactLanceSubject,
}


# --- kills ----------------------------------------------------------------------------------------------------------


def survive(name: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Start and kill a process that puts records, ``kills`` times; then look for the acknowledged records."""
    folder.mkdir(parents=True)
    journal_file, dice, next_key = folder.with_suffix(".acknowledged"), random.Random(seed), 0
    for _ in range(kills):
        before = journal_file.stat().st_size if journal_file.exists() else 0
        with journal_file.open("ab") as journal:
            process = subprocess.Popen([*_THIS_PROGRAM, "write", name, str(folder), str(next_key)], stdout=journal)  # noqa: S603
        wait_for_more(journal_file, before, process)
        time.sleep(0.5 + 2 * dice.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        next_key = max(_acknowledged(journal_file), default=0) + _STRIDE
    report = {"kills": kills, "acknowledged": len(_acknowledged(journal_file))}
    command = [*_THIS_PROGRAM, "check", name, str(folder), str(journal_file)]
    try:  # in a separate process: a damaged store may crash it
        checker = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)  # noqa: S603
    except subprocess.TimeoutExpired:
        return {**report, "error": "the search for them did not end within ten minutes"}
    except subprocess.CalledProcessError as error:
        return {**report, "error": (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]}
    return {**report, **json.loads(checker.stdout)}


def wait_for_more(file: Path, size: int, process: subprocess.Popen[Any]) -> None:
    """Wait until a process has written to its journal.

    Raises:
        RuntimeError: The process ended before that.
    """
    while file.stat().st_size <= size:
        if process.poll() is not None:
            raise RuntimeError(f"the writer ended by itself with {process.returncode}")
        time.sleep(0.02)


def _write(name: str, folder: Path, first: int) -> None:
    """Put records endlessly, singly and in batches of a hundred, and print the keys of those acknowledged."""
    store, number = KINDS[name](folder, Numbered(DIMS), DIMS), first
    while True:
        size = 100 if (number // 20) % 2 else 1
        records = [_trial(n) for n in range(number, number + size)]
        if size == 1:
            store.put(records[0])
        else:
            store.load(records)
        os.write(1, "".join(f"{record.key}\n" for record in records).encode())
        number += size


def _check(name: str, folder: Path, journal: Path) -> dict[str, Any]:
    """Count the acknowledged records that are missing, and the samples found first by their own vector."""
    records = [_trial(number) for number in _acknowledged(journal)]
    with closing(KINDS[name](folder, Numbered(DIMS), DIMS)) as store:
        stored_keys: set[str] = set()
        for start in range(0, len(records), 1000):
            stored_keys |= store.stored_keys(records[start : start + 1000])
        samples = random.Random(0).sample(records, min(_SEARCHES_AFTER_KILLS, len(records)))
        hits = sum(store.search(record.text, 1) == [record.key] for record in samples)
    return {"missing": len(records) - len(stored_keys), "asked": len(samples), "found_first": hits}


def _trial(number: int) -> Record:
    return Record(str(number), str(number % NAMESPACES), str(number), number % 2)


def _acknowledged(journal: Path) -> list[int]:
    """The numbers in complete lines; an incomplete one was not acknowledged."""
    return [int(line) for line in _lines(journal)]


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from (line for line in lines if line.endswith(b"\n"))


_THIS_PROGRAM: Final = [sys.executable, __file__]


def main() -> None:
    """Run one side of a trial with kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides = parser.add_subparsers(dest="side", required=True)
    writer = sides.add_parser("write", help="put records until killed")
    checker = sides.add_parser("check", help="look for acknowledged records")
    for side in (writer, checker):
        side.add_argument("store", choices=list(KINDS))
        side.add_argument("folder", type=Path)
    writer.add_argument("first", type=int, help="number of the first record")
    checker.add_argument("journal", type=Path, help="file with the output of the writers")
    args = parser.parse_args()
    if args.side == "write":
        _write(args.store, args.folder, args.first)
    else:
        print(json.dumps(_check(args.store, args.folder, args.journal)))


if __name__ == "__main__":
    main()
