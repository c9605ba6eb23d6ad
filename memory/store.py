"""A LangGraph store on disk: records in SQLite, vectors searched with FAISS."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from langchain_core.embeddings import Embeddings
from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    get_text_at_path,
    tokenize_path,
)
from numpy.typing import NDArray

from gems.graph.errors import InputError
from gems.memory.embedder import embedder_fingerprint, init_embedder

__all__ = ["FaissStore"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (namespace, key)
);
CREATE TABLE IF NOT EXISTS vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    record INTEGER NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    vector BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS vectors_of_record ON vectors (record);
"""
_IN_NAMESPACE: Final = (
    "(:prefix = '' OR namespace = :prefix OR substr(namespace, 1, length(:prefix) + 1) = :prefix || '.')"
)
_ITEM: Final = "namespace, key, value, created_at, updated_at"


class FaissStore(BaseStore):
    """A durable store with semantic search, for any LangGraph graph.

    Every acknowledged put is in SQLite (WAL). The FAISS index is exact (inner product of unit vectors, so cosine
    similarity), lives in memory, and is made from the records: it is filled when first searched and follows the
    writes of this and of other processes. Operations behave as ``InMemoryStore``'s do. No TTL.

    Args:
        path: A folder of its own; made if it is not there.
        embedder: Turns text into vectors; default MiniLM. A store is bound to the embedder that first wrote to it.
        fields: What is embedded where a put does not say: JSON paths, as in LangGraph's ``IndexConfig``.

    Raises:
        InputError: The folder cannot be used, its file is not a store, or it was written with another embedder.
    """

    supports_ttl = False

    def __init__(self, path: str | Path, *, embedder: Embeddings | None = None, fields: Sequence[str] = ("$",)) -> None:
        self._embedder = embedder or init_embedder()
        self._fields = list(fields)
        self._file = Path(path) / "records.sqlite"
        self._lock = threading.RLock()
        self._index: Any = None
        self._indexed: set[int] = set()
        self._version = -1
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._file, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
            self._bind_embedder()
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"cannot use {self._file} as a memory store ({error}); move it away or choose another folder"
            ) from error

    def close(self) -> None:
        """Close the file. The store cannot be used afterwards."""
        with self._lock:
            self._db.close()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations together: reads see the state before its writes; of two puts to a key, the last wins."""
        ops = list(ops)
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        vectors = self._embed_puts(list(puts.values()))  # before the lock: embedding is the slow part
        with self._lock:
            results = [self._read(op) for op in ops]
            if puts:
                with self._transaction():
                    for op, embedded in zip(puts.values(), vectors, strict=True):
                        self._write(op, embedded)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.batch, list(ops))

    # --- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _bind_embedder(self) -> None:
        mine = embedder_fingerprint(self._embedder)
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('embedder', ?)", (mine,))
        (theirs,) = self._db.execute("SELECT value FROM meta WHERE name = 'embedder'").fetchone()
        if theirs != mine:
            raise InputError(
                f"{self._file} was written with the embedder {theirs}, not {mine}: "
                "choose that one, or another memory folder"
            )

    def _embed_puts(self, puts: Sequence[PutOp]) -> list[list[bytes]]:
        """Per put, the unit vectors of its indexed texts as float32 bytes."""
        texts = [self._texts(op) for op in puts]
        flat = [text for several in texts for text in several]
        if not flat:
            return [[] for _ in puts]
        rows = iter(_unit(np.asarray(self._embedder.embed_documents(flat), dtype=np.float32)))
        return [[next(rows).tobytes() for _ in several] for several in texts]

    def _texts(self, op: PutOp) -> list[str]:
        if op.value is None or op.index is False:
            return []
        paths = self._fields if op.index is None else list(op.index)
        return [text for path in paths for text in get_text_at_path(op.value, tokenize_path(path)) if text]

    def _write(self, op: PutOp, vectors: Sequence[bytes]) -> None:
        namespace = ".".join(op.namespace)
        if op.value is None:
            self._db.execute("DELETE FROM records WHERE namespace = ? AND key = ?", (namespace, op.key))
        else:
            now = datetime.now(UTC).isoformat()
            (record,) = self._db.execute(
                "INSERT INTO records (namespace, key, value, created_at, updated_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at"
                " RETURNING id",
                (namespace, op.key, json.dumps(op.value), now, now),
            ).fetchone()
            self._db.execute("DELETE FROM vectors WHERE record = ?", (record,))
            self._db.executemany(
                "INSERT INTO vectors (record, vector) VALUES (?, ?)", [(record, vector) for vector in vectors]
            )
        self._version = -1  # our own writes do not show in data_version

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, op: Op) -> Result:
        match op:
            case GetOp():
                row = self._db.execute(
                    f"SELECT {_ITEM} FROM records WHERE namespace = ? AND key = ?",  # noqa: S608 - constants only
                    (".".join(op.namespace), op.key),
                ).fetchone()
                return Item(**_fields_of(row)) if row else None
            case SearchOp():
                return self._search_by_meaning(op) if op.query else self._search_all(op)
            case ListNamespacesOp():
                return self._list_namespaces(op)
            case PutOp():
                return None
        raise ValueError(f"unknown operation {op!r}")

    def _search_all(self, op: SearchOp) -> list[SearchItem]:
        rows = self._db.execute(
            f"SELECT {_ITEM} FROM records WHERE {_IN_NAMESPACE} ORDER BY id",  # noqa: S608 - constants only
            {"prefix": ".".join(op.namespace_prefix)},
        )
        found = [SearchItem(**fields) for row in rows if _matches((fields := _fields_of(row))["value"], op.filter)]
        return found[op.offset : op.offset + op.limit]

    def _search_by_meaning(self, op: SearchOp) -> list[SearchItem]:
        """Every record of the namespace by the best of its vectors; those without any come last, unscored."""
        self._follow()
        rows = self._db.execute(
            f"SELECT records.id, vectors.id, {_ITEM} FROM records LEFT JOIN vectors ON vectors.record = records.id"  # noqa: S608
            f" WHERE {_IN_NAMESPACE} ORDER BY records.id",
            {"prefix": ".".join(op.namespace_prefix)},
        ).fetchall()
        owner = {vector: record for record, vector, *_ in rows if vector is not None}
        scores: dict[int, float] = {}
        for vector, score in self._nearest(op.query or "", list(owner)):
            scores.setdefault(owner[vector], score)
        items = {record: row for record, _, *row in rows}
        ranked = [*scores, *(record for record in items if record not in scores)]
        found = [
            SearchItem(**fields, score=scores.get(record))
            for record in ranked
            if _matches((fields := _fields_of(items[record]))["value"], op.filter)
        ]
        return found[op.offset : op.offset + op.limit]

    def _nearest(self, query: str, among: Sequence[int]) -> list[tuple[int, float]]:
        """Vector ids among the given ones with their cosine similarity to the query, nearest first."""
        import faiss

        if not among:
            return []
        wanted = _unit(np.asarray([self._embedder.embed_query(query)], dtype=np.float32))
        selector = faiss.IDSelectorBatch(np.asarray(among, dtype=np.int64))
        scores, ids = self._index.search(wanted, len(among), params=faiss.SearchParameters(sel=selector))  # type: ignore[call-arg]
        return [(int(i), float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0]

    def _follow(self) -> None:
        """Bring the index up to the records, whoever changed them."""
        import faiss

        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return
        stored = {vector for (vector,) in self._db.execute("SELECT id FROM vectors")}
        if gone := self._indexed - stored:
            self._index.remove_ids(np.asarray(sorted(gone), dtype=np.int64))
        new = sorted(stored - self._indexed)
        for start in range(0, len(new), 1000):
            ids = new[start : start + 1000]
            marks = ",".join("?" * len(ids))
            rows = self._db.execute(f"SELECT id, vector FROM vectors WHERE id IN ({marks})", ids).fetchall()  # noqa: S608
            matrix = np.stack([np.frombuffer(blob, dtype=np.float32) for _, blob in rows])
            if self._index is None:
                self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(matrix.shape[1]))
            self._index.add_with_ids(matrix, np.asarray([i for i, _ in rows], dtype=np.int64))
        self._indexed = stored
        self._version = version

    def _list_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        rows = self._db.execute("SELECT DISTINCT namespace FROM records")
        namespaces = [tuple(namespace.split(".")) for (namespace,) in rows]
        kept = {n[: op.max_depth] for n in namespaces if all(_fits(n, c) for c in op.match_conditions or ())}
        return sorted(kept)[op.offset : op.offset + op.limit]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.asarray(vectors / norms, dtype=np.float32)


def _fields_of(row: Sequence[str]) -> dict[str, Any]:
    namespace, key, value, created, updated = row
    return {
        "namespace": tuple(namespace.split(".")),
        "key": key,
        "value": json.loads(value),
        "created_at": datetime.fromisoformat(created),
        "updated_at": datetime.fromisoformat(updated),
    }


def _fits(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins (or ends) with a path in which "*" stands for any label."""
    path = condition.path
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


def _matches(value: Any, wanted: Any) -> bool:
    """LangGraph's filter language: equality, nested objects and lists, and the $ operators."""
    if wanted is None:
        return True
    return all(_equals(value.get(name), condition) for name, condition in wanted.items())


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        if any(name.startswith("$") for name in wanted):
            return all(_compare(value, operator, operand) for operator, operand in wanted.items())
        return isinstance(value, dict) and all(_equals(value.get(name), w) for name, w in wanted.items())
    if isinstance(wanted, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(wanted)
            and all(_equals(v, w) for v, w in zip(value, wanted, strict=True))
        )
    return bool(value == wanted)


def _compare(value: Any, operator: str, operand: Any) -> bool:
    if operator == "$eq":
        return bool(value == operand)
    if operator == "$ne":
        return bool(value != operand)
    if operator not in ("$gt", "$gte", "$lt", "$lte"):
        raise ValueError(f"unknown filter operator {operator!r}; one of $eq $ne $gt $gte $lt $lte")
    if value is None:  # what a record does not have is neither more nor less than anything
        return False
    a, b = float(value), float(operand)
    return {"$gt": a > b, "$gte": a >= b, "$lt": a < b, "$lte": a <= b}[operator]
