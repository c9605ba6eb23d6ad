"""The stores that ``memory_scale`` compares, each behind the same few calls, used as its own makers advise.

Chroma and LanceDB are no dependencies of GEMS: who wants them compared installs them, and who has not is told so.
SqliteStore needs a ``sqlite3`` that loads extensions; where Python's own does not, ``pysqlite3-binary`` brings one.

Run as a program it is one side of a trial: a process that puts records until it is killed, or one that looks
afterwards for what had been acknowledged.

    python benchmarks/memory_stores.py write Chroma FOLDER FIRST
    python benchmarks/memory_stores.py check Chroma FOLDER ACKNOWLEDGED
"""

from __future__ import annotations

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
"""Of the vectors in trials with kills; those of the measurement are as long as MiniLM's."""
_ROOT: Final = "bench"
_ASKED: Final = 50
_STRIDE: Final = 1000
"""A restarted writer leaves so many keys out, so that nothing which was on its way is put twice."""


class Record(NamedTuple):
    """What is put, whatever the store."""

    key: str
    namespace: str
    text: str
    """What the embedder makes the vector of."""
    half: int

    @property
    def value(self) -> dict[str, Any]:
        """What is stored beside the vector."""
        return {"t": self.text, "half": self.half}


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


class Numbered(Embeddings):
    """For a text such as "3:14" a unit vector that only its numbers decide: the same in every process."""

    fingerprint = "numbered"

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def vector(self, text: str) -> NDArray[np.float32]:
        """The vector of a text."""
        made = np.random.default_rng([int(number) for number in text.split(":")]).normal(size=self.dims)
        return np.asarray(made / np.linalg.norm(made), np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One row per text, as an array."""
        return np.stack([self.vector(text) for text in texts])  # type: ignore[return-value]

    def embed_query(self, text: str) -> list[float]:
        """One row."""
        return list(self.vector(text))


class Subject(ABC):
    """A store under measurement. Making one opens it.

    Args:
        folder: Its own.
        embedder: Turns texts into vectors.
        dims: Of the vectors.
    """

    package: ClassVar[str]
    """What is installed to have it."""
    durable: ClassVar[bool] = True
    efforts: ClassVar[Sequence[Any]] = ()
    """How hard an approximate search may try, rising; none where it cannot be chosen."""

    def __init__(self, folder: Path, embedder: Embeddings, dims: int) -> None:
        self.folder, self.embedder, self.dims = folder, embedder, dims
        self.open()

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be measured here; None if it can."""
        name = cls.package.partition("-")[0]
        return None if importlib.util.find_spec(name) else f"not installed: pip install {cls.package}"

    @classmethod
    def version(cls) -> str:
        """What is measured."""
        return f"{cls.package} {importlib.metadata.version(cls.package)}"

    @abstractmethod
    def open(self) -> None:
        """Open it, made if it is not there."""

    @abstractmethod
    def load(self, records: Sequence[Record]) -> None:
        """Put many records, none of which is there yet."""

    @abstractmethod
    def put(self, record: Record) -> None:
        """Put one record, in place of the one with its key."""

    def finish(self) -> None:  # noqa: B027 - most need nothing
        """What its makers advise after much was put."""

    def try_harder(self, effort: Any) -> None:  # noqa: B027 - exact ones have no effort
        """Search so from now on."""

    @abstractmethod
    def search(self, query: str, k: int, *, namespace: str | None = None, half: int | None = None) -> list[str]:
        """Keys of the nearest, nearest first; values are read too."""

    @abstractmethod
    def there(self, records: Sequence[Record]) -> set[str]:
        """Which of these keys it holds."""

    @abstractmethod
    def close(self) -> None:
        """Close it, as its makers advise."""

    def _vectors(self, records: Sequence[Record]) -> NDArray[np.float32]:
        return np.asarray(self.embedder.embed_documents([record.text for record in records]), np.float32)

    def _query(self, text: str) -> NDArray[np.float32]:
        return np.asarray(self.embedder.embed_query(text), np.float32)


# --- LangGraph's, and our own ---------------------------------------------------------------------------------------


class _OfLangGraph(Subject):
    store: BaseStore

    @classmethod
    def missing(cls) -> str | None:
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

    def there(self, records: Sequence[Record]) -> set[str]:
        items = self.store.batch([GetOp((_ROOT, r.namespace), r.key) for r in records])
        return {r.key for r, item in zip(records, items, strict=True) if item is not None}

    def close(self) -> None:
        pass


class OfFaiss(_OfLangGraph):
    """GEMS's own."""

    package = "faiss-cpu"
    store: FaissStore

    def open(self) -> None:
        """Open it."""
        self.store = FaissStore(self.folder, embedder=self.embedder)

    def close(self) -> None:
        """Close it."""
        self.store.close()


class OfMemory(_OfLangGraph):
    """LangGraph's InMemoryStore."""

    package = "langgraph-checkpoint"
    durable = False

    def open(self) -> None:
        """Begin an empty one."""
        self.store = InMemoryStore(index=self._index())


class OfSqlite(_OfLangGraph):
    """LangGraph's SqliteStore with sqlite-vec."""

    package = "langgraph-checkpoint-sqlite"

    @classmethod
    def missing(cls) -> str | None:
        """A SQLite that loads extensions."""
        if _sqlite() is None:
            return "cannot be run: this Python's sqlite3 loads no extensions; pip install pysqlite3-binary brings one"
        return None

    @classmethod
    def version(cls) -> str:
        """With the SQLite that it is run on."""
        return f"{super().version()}, SQLite {_sqlite().sqlite_version}"

    def open(self) -> None:
        """Open it over a connection such as ``from_conn_string`` makes."""
        store = importlib.import_module("langgraph.store.sqlite").SqliteStore
        file = self.folder / "store.db"
        self.connection = _sqlite().connect(str(file), check_same_thread=False, isolation_level=None)
        self.store = store(self.connection, index=self._index())
        self.store.setup()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close it."""
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


# --- others ---------------------------------------------------------------------------------------------------------


class OfChroma(Subject):
    """Chroma on disk, its HNSW index with cosine distance and the defaults; the namespace is metadata.

    An effort is ``ef_search``.
    """

    package = "chromadb"
    efforts = (100, 200, 400, 800)

    def open(self) -> None:
        """Open it; nothing is sent to its makers."""
        chroma = importlib.import_module("chromadb")
        settings = importlib.import_module("chromadb.config").Settings(anonymized_telemetry=False)
        self.client = chroma.PersistentClient(str(self.folder), settings=settings)
        self.collection = self.client.get_or_create_collection(
            _ROOT, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def load(self, records: Sequence[Record]) -> None:
        """Put many, no more at a time than it takes."""
        most = self.client.get_max_batch_size()
        for start in range(0, len(records), most):
            self.collection.add(**self._columns(records[start : start + most]))

    def put(self, record: Record) -> None:
        """Put one."""
        self.collection.upsert(**self._columns([record]))

    def _columns(self, records: Sequence[Record]) -> dict[str, Any]:
        return {
            "ids": [r.key for r in records],
            "embeddings": self._vectors(records),
            "metadatas": [{"namespace": r.namespace, "half": r.half} for r in records],
            "documents": [json.dumps(r.value) for r in records],
        }

    def try_harder(self, effort: Any) -> None:
        """Opened anew, because an open collection goes on as before."""
        self.collection.modify(configuration={"hnsw": {"ef_search": effort}})
        self.close()
        self.open()

    def search(self, query: str, k: int, *, namespace: str | None = None, half: int | None = None) -> list[str]:
        """Through the index."""
        chosen = {"namespace": namespace, "half": half}
        wanted: list[dict[str, Any]] = [{name: value} for name, value in chosen.items() if value is not None]
        where = {"$and": wanted} if len(wanted) > 1 else next(iter(wanted), None)
        found = self.collection.query(query_embeddings=[self._query(query)], n_results=k, where=where)
        return list(found["ids"][0])

    def there(self, records: Sequence[Record]) -> set[str]:
        """By id."""
        return set(self.collection.get(ids=[r.key for r in records], include=[])["ids"])

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class OfLance(Subject):
    """LanceDB with what its makers advise for searches with filters: IVF_PQ, refined, and bitmaps for the filters.

    An effort is how many partitions are looked into, and how many times ``k`` candidates are compared exactly.
    """

    package = "lancedb"
    efforts: ClassVar[Sequence[Any]] = ((20, 10), (20, 30), (50, 30), (100, 50), (200, 100), (400, 200))
    effort: tuple[int, int] = (20, 10)

    def open(self) -> None:
        """Open its only table."""
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
        """Append."""
        self.table.add(self._rows(records))

    def put(self, record: Record) -> None:
        """Merge one row in."""
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
        """Make the indexes, or bring them up to date."""
        if not self.table.list_indices():
            index = importlib.import_module("lancedb.index")
            self._index_vectors(index)
            for column, config in (("namespace", index.Bitmap()), ("half", index.Bitmap()), ("key", index.BTree())):
                self.table.create_index(column, config=config)
        self.table.optimize()

    def _index_vectors(self, index: Any) -> None:
        # Four dimensions a code: with the default of sixteen many more candidates would have to be compared.
        config = index.IvfPq(distance_type="cosine", num_sub_vectors=self.dims // 4)
        self.table.create_index("vector", config=config)

    def try_harder(self, effort: Any) -> None:
        """From the next search on."""
        self.effort = effort

    def search(self, query: str, k: int, *, namespace: str | None = None, half: int | None = None) -> list[str]:
        """Filtered first, then the nearest."""
        wanted = [] if namespace is None else [f"namespace = '{namespace}'"]
        wanted += [] if half is None else [f"half = {half}"]
        asked = self.table.search(self._query(query)).distance_type("cosine").limit(k)
        asked = self._with_effort(asked).select(["key", "value", "_distance"])
        if wanted:
            asked = asked.where(" AND ".join(wanted), prefilter=True)
        return [row["key"] for row in asked.to_list()]

    def _with_effort(self, asked: Any) -> Any:
        partitions, candidates = self.effort
        return asked.nprobes(partitions).refine_factor(candidates)

    def there(self, records: Sequence[Record]) -> set[str]:
        """Of all keys."""
        held = self.table.search().select(["key"]).limit(self.table.count_rows()).to_arrow()
        return set(held["key"].to_pylist()) & {r.key for r in records}

    def close(self) -> None:
        """Nothing stays open."""


class OfLanceExact(OfLance):
    """LanceDB without an index over vectors, which its makers advise up to about 100,000 of them."""

    efforts = ()

    def _index_vectors(self, index: Any) -> None:
        pass

    def _with_effort(self, asked: Any) -> Any:
        return asked


Kind: TypeAlias = type[Subject]
KINDS: Final[dict[str, Kind]] = {
    "FaissStore": OfFaiss,
    "InMemoryStore": OfMemory,
    "SqliteStore": OfSqlite,
    "Chroma": OfChroma,
    "LanceDB, IVF_PQ": OfLance,
    "LanceDB, no index": OfLanceExact,
}


# --- kills ----------------------------------------------------------------------------------------------------------


def survive(name: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Have a process put records and kill it, so many times; then look for what had been acknowledged."""
    folder.mkdir(parents=True)
    said, dice, first = folder.with_suffix(".acknowledged"), random.Random(seed), 0
    for _ in range(kills):
        before = said.stat().st_size if said.exists() else 0
        with said.open("ab") as journal:
            process = subprocess.Popen([*_OURSELVES, "write", name, str(folder), str(first)], stdout=journal)  # noqa: S603
        wait_for_more(said, before, process)
        time.sleep(0.5 + 2 * dice.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        first = max(_acknowledged(said), default=0) + _STRIDE
    told = {"kills": kills, "acknowledged": len(_acknowledged(said))}
    command = [*_OURSELVES, "check", name, str(folder), str(said)]
    try:  # a process of its own: a damaged store may take it down
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)  # noqa: S603
    except subprocess.TimeoutExpired:
        return {**told, "error": "looking for them did not end"}
    except subprocess.CalledProcessError as error:
        return {**told, "error": (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]}
    return {**told, **json.loads(done.stdout)}


def wait_for_more(file: Path, size: int, process: subprocess.Popen[Any]) -> None:
    """Wait until a process has written to its journal.

    Raises:
        RuntimeError: It ended before it did.
    """
    while file.stat().st_size <= size:
        if process.poll() is not None:
            raise RuntimeError(f"the writer ended by itself with {process.returncode}")
        time.sleep(0.02)


def _write(name: str, folder: Path, first: int) -> None:
    """Put records, one by one and in batches of a hundred, and say so when each is put; without end."""
    store, number = KINDS[name](folder, Numbered(DIMS), DIMS), first
    while True:
        many = 100 if (number // 20) % 2 else 1
        records = [_trial(n) for n in range(number, number + many)]
        if many == 1:
            store.put(records[0])
        else:
            store.load(records)
        os.write(1, "".join(f"{record.key}\n" for record in records).encode())
        number += many


def _check(name: str, folder: Path, said: Path) -> dict[str, Any]:
    """How many of the acknowledged are missing, and how many of some are found first by their own vector."""
    records = [_trial(number) for number in _acknowledged(said)]
    with closing(KINDS[name](folder, Numbered(DIMS), DIMS)) as store:
        there: set[str] = set()
        for start in range(0, len(records), 1000):
            there |= store.there(records[start : start + 1000])
        asked = random.Random(0).sample(records, min(_ASKED, len(records)))
        found = sum(store.search(record.text, 1) == [record.key] for record in asked)
    return {"missing": len(records) - len(there), "asked": len(asked), "found_first": found}


def _trial(number: int) -> Record:
    return Record(str(number), str(number % NAMESPACES), str(number), number % 2)


def _acknowledged(said: Path) -> list[int]:
    """The numbers in whole lines: what was cut off had not been said."""
    return [int(line) for line in _lines(said)]


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from (line for line in lines if line.endswith(b"\n"))


_OURSELVES: Final = [sys.executable, __file__]


def main() -> None:
    """One side of a trial with kills."""
    what, name, folder, last = sys.argv[1:]
    if what == "write":
        _write(name, Path(folder), int(last))
    else:
        print(json.dumps(_check(name, Path(folder), Path(last))))


if __name__ == "__main__":
    main()
