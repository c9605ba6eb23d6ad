"""A LangGraph store on disk: records in SQLite, vectors searched with FAISS."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from langchain_core.embeddings import Embeddings
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    get_text_at_path,
    validate_op_namespace,
)
from numpy.typing import NDArray

from gems.errors import InputError
from gems.files import held_alone
from gems.memory.bound_embedder import BoundEmbedder, needs_probe, probe_of, same_embedder, unit_vectors
from gems.memory.embedder import embedder_fingerprint, init_embedder
from gems.memory.filters import check_filter, fits, matches
from gems.memory.index import VectorIndex, remove
from gems.memory.live_index import LiveIndex
from gems.memory.records import Records, Row, Times, open_records
from gems.paths import make_file

__all__ = ["FaissStore", "reindex"]

_MIN_CANDIDATES: Final = 32
"""Fewest vectors that a search takes from the index, whose order is approximate, to rank them exactly."""


_EMBEDDED_AT_ONCE: Final = 64
"""Records that reindexing embeds before it writes their vectors: a kill loses what was paid for so many at most."""

_Hit: TypeAlias = tuple[float | None, Row, dict[str, Any]]
"""A record's score, the record, and what is returned of it."""


class FaissStore(BaseStore):
    """A durable store with semantic search, for any LangGraph graph.

    A put is on disk (SQLite, WAL) when it returns, and visible to every process that has the store open. The FAISS
    index (``gems.memory.index``) is derived: it is built from the records, follows what this and other processes write,
    and is built again if it is missing or damaged. The index finds candidates; their scores, cosine similarities, are
    computed from the vectors in the records. Operations behave as LangGraph documents them (``tests/conformance``).
    Records disappear the moment their time to live is over.

    Args:
        path: A folder for this store alone; created if it does not exist.
        embedder: Turns text into vectors; default MiniLM. A store is bound to the embedder that first wrote to it. It
            recognises it by its ``fingerprint``, or else by its name and the vectors of a few texts.
        fields: JSON paths of the texts to embed if a put does not name any, as in LangGraph's ``IndexConfig``.
        ttl: Default time to live, and whether reading renews it, as in LangGraph. There is no sweeper to start.
        read_only: Change nothing in the folder, which must hold a store: puts are refused, reading renews no time to
            live, and no index is saved.

    Raises:
        InputError: The folder cannot be used, its file is not a store, or another embedder wrote it.
    """

    supports_ttl = True

    def __init__(
        self,
        path: str | Path,
        *,
        embedder: Embeddings | None = None,
        fields: Sequence[str] = ("$",),
        ttl: TTLConfig | None = None,
        read_only: bool = False,
    ) -> None:
        self._embedder = BoundEmbedder(embedder or init_embedder())
        self._fields = list(fields)
        self.ttl_config = ttl
        self._folder = Path(path)
        self._lock = threading.RLock()
        self._records = open_records(self._folder, read_only=read_only)
        try:
            self._embedder.bind(self._records)
        except BaseException:
            self._records.close()
            raise
        self._index = LiveIndex(self._folder / "index", self._records, self._embedder.fingerprint)

    def close(self) -> None:
        """Wait for an index that is being saved, then close the files. The store cannot be used afterwards."""
        self._index.close()
        with self._lock, closing(self._records), suppress(sqlite3.Error):  # whoever closes the store next can do it too
            self._index.trim_log()

    def compact(self) -> None:
        """Rebuild the index and free the space of deleted records; shows a progress bar on a terminal."""
        with self._lock:
            self._records.mend()
            self._index.rebuild()
            self._records.clean()

    def backdate(self, times: Iterable[Times | tuple[tuple[str, ...], str, datetime]]) -> None:
        """Set the times of stored records: namespace, key and last write of each, or ``Times``."""
        with self._lock, self._records.writing():
            for entry in times:
                self._records.backdate(Times(*entry))

    def restore(self, puts: Iterable[PutOp], times: Iterable[Times]) -> None:
        """Put records that come from elsewhere, with their times: all of them or none."""
        self._run(list(puts), list(times))

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations together: reads see the state before the writes; of two puts to a key, the last one wins.

        A text whose vector is in the record already is not embedded again.
        """
        return self._run(list(ops))

    def _run(self, ops: Sequence[Op], times: Sequence[Times] = ()) -> list[Result]:
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        for op in ops:  # callers of `batch` skip the checks of `put`, `get` and `search`
            validate_op_namespace(op)
            if isinstance(op, PutOp) and not op.namespace:
                raise InvalidNamespaceError("a namespace cannot be empty")
            if isinstance(op, SearchOp) and op.filter:
                check_filter(op.filter)
        # Embed before taking the lock, since it is the slow part.
        vectors = self._embed_puts(list(puts.values()))
        queries = {op.query for op in ops if isinstance(op, SearchOp) and op.query}
        query_vectors = {query: self._checked(self._embedder.query(query))[0] for query in queries}
        with self._lock:
            self._embedder.check(self._records)  # another process may have reindexed the store
            self._records.expire()
            results = [self._read(op, query_vectors) for op in ops]
            if puts:
                with self._records.writing():
                    self._embedder.check(self._records)
                    for op, op_vectors in zip(puts.values(), vectors, strict=True):
                        self._write(op, op_vectors)
                    for entry in times:
                        self._records.backdate(entry)
                    if any(vectors):
                        self._embedder.leave_probe(self._records)
                self._index.save_if_due()
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As ``batch``, in another thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.batch, list(ops))

    # --- writing ----------------------------------------------------------------------------------------------------

    def _embed_puts(self, puts: Sequence[PutOp]) -> list[list[bytes]]:
        """Per put, the unit vectors of its texts as float32 bytes."""
        texts_per_put = [_texts(op.value, self._paths(op)) if op.value is not None else [] for op in puts]
        with self._lock:
            self._embedder.check(self._records)
            stored = [_stored_vectors(self._records, op, texts) for op, texts in zip(puts, texts_per_put, strict=True)]
        new_texts = [
            text for texts, vectors in zip(texts_per_put, stored, strict=True) for text in texts if text not in vectors
        ]
        rows = iter(self._checked(self._embedder.documents(new_texts)) if new_texts else ())
        return [
            [vectors[text] if text in vectors else next(rows).tobytes() for text in texts]
            for texts, vectors in zip(texts_per_put, stored, strict=True)
        ]

    def _paths(self, op: PutOp) -> list[str]:
        if op.index is False:
            return []
        return self._fields if op.index is None else list(op.index)

    def _checked(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors, if they have as many dimensions as the store's.

        Raises:
            InputError: They have not.
        """
        with self._lock:
            dims = self._records.dims()
        if dims and vectors.shape[1] != dims:
            raise InputError(
                f"the embedder {self._embedder.fingerprint} returned vectors of {vectors.shape[1]} dimensions, "
                f"{self._folder} holds {dims}: use the embedder that wrote it"
            )
        return vectors

    def _write(self, op: PutOp, vectors: Sequence[bytes]) -> None:
        namespace = ".".join(op.namespace)
        if op.value is None:
            self._records.delete(namespace, op.key)
            return
        if vectors and not self._records.dims():
            self._records.set_meta("dims", str(len(vectors[0]) // 4))
        self._records.put(namespace, op.key, op.value, fields=self._paths(op), vectors=vectors, ttl=op.ttl)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, op: Op, query_vectors: Mapping[str, NDArray[np.float32]]) -> Result:
        if isinstance(op, GetOp):
            return self._get(op)
        if isinstance(op, SearchOp):
            return self._search(op, query_vectors)
        if isinstance(op, ListNamespacesOp):
            return self._list_namespaces(op)
        if isinstance(op, PutOp):
            return None
        raise ValueError(f"unknown operation {op!r}")

    def _get(self, op: GetOp) -> Item | None:
        row = self._records.get(".".join(op.namespace), op.key)
        if row is None:
            return None
        self._renew(op, [row])
        return Item(**_item(row))

    def _search(self, op: SearchOp, query_vectors: Mapping[str, NDArray[np.float32]]) -> list[SearchItem]:
        # A negative limit or offset counts as 0.
        offset, limit = max(op.offset, 0), max(op.limit, 0)
        hits: list[_Hit]
        if op.query:
            hits = self._nearest(op, query_vectors[op.query], offset, limit)
        else:
            hits = self._oldest(op, offset, limit)
        self._renew(op, [row for _, row, _ in hits])
        return [SearchItem(**item, score=score) for score, _, item in hits]

    def _list_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        offset, limit = max(op.offset, 0), max(op.limit, 0)
        namespaces = [tuple(path.split(".")) for path in self._records.namespaces()]
        conditions = op.match_conditions or ()
        matching = {n[: op.max_depth] for n in namespaces if all(fits(n, condition) for condition in conditions)}
        return sorted(matching)[offset : offset + limit]

    def _renew(self, op: GetOp | SearchOp, rows: Sequence[Row]) -> None:
        """Restart the time to live of records, as reading does by default."""
        expiring = [row.id for row in rows if row.ttl is not None]
        if op.refresh_ttl and expiring:
            self._records.touch(expiring)

    def _oldest(self, op: SearchOp, offset: int, limit: int, *, unindexed: bool = False) -> list[_Hit]:
        """A page of the records that pass the filter, oldest first; all records, or those without vectors."""
        rows = self._records.inside(".".join(op.namespace_prefix), unindexed=unindexed)
        return list(islice(_passing(((None, row) for row in rows), op), offset, offset + limit))

    def _nearest(self, op: SearchOp, query: NDArray[np.float32], offset: int, limit: int) -> list[_Hit]:
        """A page of records, by the best of their vectors; records without vectors come last, without a score."""
        index = self._index.open()
        with self._records.reading():  # index and records as of one moment, whatever other processes write
            if index:
                self._index.catch_up(index)
            hits = self._ranked(op, query, index, offset + limit) if index else []
            page = hits[offset : offset + limit]
            if len(hits) < offset + limit:
                rest = self._oldest(op, max(0, offset - len(hits)), limit, unindexed=True)
                page += rest[: limit - len(page)]
        self._index.save_if_due()
        return page

    def _ranked(self, op: SearchOp, query: NDArray[np.float32], index: VectorIndex, count: int) -> list[_Hit]:
        """``count`` records that pass the filter, if there are so many, nearest first, with their scores."""
        prefix = ".".join(op.namespace_prefix)
        spaces = self._records.spaces(prefix)
        k = max(2 * count, _MIN_CANDIDATES)
        while True:
            ids = index.search(query, k, spaces)
            hits = list(islice(_passing(self._scored(ids, prefix, query), op), count))
            if len(hits) >= count or len(ids) < k:
                return hits
            k *= 4

    def _scored(self, ids: Sequence[int], prefix: str, query: NDArray[np.float32]) -> list[tuple[float, Row]]:
        """The records of these vectors, each once, by exact cosine similarity, nearest first."""
        owners = self._records.owners(ids, prefix)
        if not owners:
            return []
        scores = np.frombuffer(b"".join(vector for vector, _ in owners), np.float32).reshape(len(owners), -1) @ query
        best: dict[int, tuple[float, Row]] = {}
        for score, (_, row) in zip(scores.tolist(), owners, strict=True):
            if row.id not in best or best[row.id][0] < score:
                best[row.id] = score, row
        return sorted(best.values(), key=lambda hit: (-hit[0], hit[1].id))


def reindex(path: str | Path, embedder: Embeddings, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Embed every record of a store again, with another embedder. If interrupted, the next call continues.

    Args:
        path: The store's folder. Processes that have the store open get errors from now on.
        embedder: The new embedder, to which the store is bound from now on.
        on_progress: Called with the number of records done in this call, and the number of all records.

    Returns:
        The number of embedded records.

    Raises:
        InputError: The folder is not a store, or reindexing with a third embedder has not been finished.
    """
    fingerprint = embedder_fingerprint(embedder)
    probe = probe_of(embedder) if needs_probe(embedder) else None
    with closing(open_records(Path(path))) as records, _reindexing_lock(Path(path)):
        unfinished = records.meta("reindexing")
        if unfinished not in (None, fingerprint):
            raise InputError(f"{path} is half-way to the embedder {unfinished}: finish that first")
        stored = records.meta("probe") if unfinished else None
        if probe and stored and not same_embedder(stored, probe):
            raise InputError(f"{path} is half-way to another embedder called {fingerprint}: finish that first")
        with records.writing():
            records.set_meta("reindexing", fingerprint)
            records.set_meta("probe", probe)
        total, count, last = records.count(), 0, records.number("reindexed")
        while page := records.indexed(last, _EMBEDDED_AT_ONCE):
            last = _embed_page(records, page, embedder)
            count += len(page)
            if on_progress:
                on_progress(count, total)
        with records.writing():
            records.set_meta("embedder", fingerprint)
            records.set_meta("reindexing", None)
            records.set_meta("reindexed", None)
            records.renew_identity()
        remove(Path(path) / "index")
    return count


def _embed_page(
    records: Records, page: Sequence[tuple[int, str, dict[str, Any], list[str]]], embedder: Embeddings
) -> int:
    """Embed some records again; returns the id of the last one."""
    texts_per_record = [_texts(value, paths) for _, _, value, paths in page]
    texts = [text for record_texts in texts_per_record for text in record_texts]
    rows = iter(unit_vectors(embedder.embed_documents(texts), len(texts)) if texts else ())
    last = page[-1][0]
    with records.writing():
        for (record, namespace, _, _), record_texts in zip(page, texts_per_record, strict=True):
            vectors = [next(rows).tobytes() for _ in record_texts]
            records.set_vectors(record, namespace, vectors)
            if vectors:
                records.set_meta("dims", str(len(vectors[0]) // 4))
        records.set_meta("reindexed", str(last))
    return last


@contextmanager
def _reindexing_lock(folder: Path) -> Iterator[None]:
    make_file(folder / "reindexing.lock")
    with held_alone(folder / "reindexing.lock", f"another process is reindexing {folder}; wait for it to finish"):
        yield


def _stored_vectors(records: Records, op: PutOp, texts: Sequence[str]) -> dict[str, bytes]:
    """The vectors of texts that the record which a put replaces holds, by text."""
    replaced = records.embedded(".".join(op.namespace), op.key) if texts else None
    if replaced is None:
        return {}
    value, paths, vectors = replaced
    stored_texts = _texts(value, paths)
    return dict(zip(stored_texts, vectors, strict=True)) if len(stored_texts) == len(vectors) else {}


def _texts(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    return [text for path in paths for text in get_text_at_path(value, path) if text]


def _passing(rows: Iterable[tuple[float | None, Row]], op: SearchOp) -> Iterator[_Hit]:
    """The records that pass a search's filter. One that cannot be read passes none: the others are found."""
    for score, row in rows:
        with suppress(InputError):
            item = _item(row)
            if not op.filter or matches(item["value"], op.filter):
                yield score, row, item


def _item(row: Row) -> dict[str, Any]:
    return {
        "namespace": row.labels,
        "key": row.key,
        "value": row.content,
        "created_at": row.first_written_at,
        "updated_at": row.written_at,
    }
