"""A LangGraph store on disk: records in SQLite, vectors searched with FAISS."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock, Timeout
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
from rich.console import Console
from rich.progress import Progress

from gems.errors import InputError
from gems.memory.embedder import embedder_fingerprint, init_embedder
from gems.memory.filters import fits, matches
from gems.memory.index import EXACT_UP_TO, VectorIndex, build, newest, newest_index, publish, reach, remove
from gems.memory.records import Records, Row, Snapshot

__all__ = ["FaissStore", "open_records", "reindex"]

_LOG: Final = logging.getLogger(__name__)
_AT_LEAST: Final = 32
"""Candidates to begin with: approximate ranks are made exact among them."""
_MERGE_AT: Final = 8
"""The file is made again when an eighth of the vectors lies outside it."""
_PAUSE: Final = 60.0
"""Seconds until a file that could not be made is tried again."""


class FaissStore(BaseStore):
    """A durable store with semantic search, for any LangGraph graph.

    A put is on disk (SQLite, WAL) when it returns, and is seen by every process that has the store open. The FAISS
    index (``gems.memory.index``) is derived: it is made from the records, follows what this and other processes write,
    and is made again where it is missing or torn. It finds candidates; their scores, cosine similarities, are taken
    from the records' own vectors. Operations do what LangGraph documents of stores (``tests/conformance``); what has
    outlived its time to live is gone at once.

    Args:
        path: A folder of its own; made if it is not there.
        embedder: Turns text into vectors; default MiniLM. A store is bound to the embedder that first wrote to it.
        fields: What is embedded where a put does not say: JSON paths, as in LangGraph's ``IndexConfig``.
        ttl: Default time to live, and whether reading renews it, as LangGraph has it. Nothing needs to be swept.

    Raises:
        InputError: The folder cannot be used, its file is not a store, or it was written with another embedder.
    """

    supports_ttl = True

    def __init__(
        self,
        path: str | Path,
        *,
        embedder: Embeddings | None = None,
        fields: Sequence[str] = ("$",),
        ttl: TTLConfig | None = None,
    ) -> None:
        self._embedder = embedder or init_embedder()
        self._fingerprint = embedder_fingerprint(self._embedder)
        self._fields = list(fields)
        self.ttl_config = ttl
        self._folder = Path(path)
        self._lock = threading.RLock()
        self._index: VectorIndex | None = None
        self._worker = ThreadPoolExecutor(1, "gems-index")
        self._merging: Future[None] | None = None
        self._not_before = 0.0
        self._reached = 0
        """The last vector in the newest file, when that was looked up last."""
        self._records = open_records(self._folder)
        try:
            _bind(self._records, self._fingerprint)
            if self._records.meta("embedder") is None:
                with self._records.writing():
                    _bind(self._records, self._fingerprint)
                    self._records.note("embedder", self._fingerprint)
        except BaseException:
            self._records.close()
            raise

    def close(self) -> None:
        """Close the files, once an index that is being made is finished. The store cannot be used afterwards."""
        self._worker.shutdown()
        with self._lock:
            self._records.close()

    def compact(self) -> None:
        """Make the index anew and give back the room of what was removed; with a progress bar on a terminal."""
        with self._lock:
            if self._records.count("vectors") > EXACT_UP_TO:
                self._merge(wait=True, anew=True)
            else:
                remove(self._folder / "index")
            self._records.clean()
            self._index = None

    def date(self, when: Iterable[tuple[tuple[str, ...], str, datetime]]) -> None:
        """Say when records were written, where that was elsewhere and not now: namespace, key and time."""
        with self._lock, self._records.writing():
            for namespace, key, moment in when:
                self._records.date(".".join(namespace), key, moment)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations together: reads see the state before its writes; of two puts to a key, the last wins."""
        ops = list(ops)
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        for op in ops:  # those who call `batch` themselves have not been checked yet
            validate_op_namespace(op)
            if isinstance(op, PutOp) and not op.namespace:
                raise InvalidNamespaceError("a namespace cannot be empty")
        # Before the lock: embedding is the slow part.
        vectors = self._embed_puts(list(puts.values()))
        queries = {op.query for op in ops if isinstance(op, SearchOp) and op.query}
        wanted = {query: self._unit([self._embedder.embed_query(query)], 1)[0] for query in queries}
        with self._lock:
            _bind(self._records, self._fingerprint)  # it may have been embedded anew since it was opened
            self._records.expire()
            results = [self._read(op, wanted) for op in ops]
            if puts:
                with self._records.writing():
                    _bind(self._records, self._fingerprint)
                    for op, embedded in zip(puts.values(), vectors, strict=True):
                        self._write(op, embedded)
                self._merge_if_due()
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.batch, list(ops))

    # --- writing ----------------------------------------------------------------------------------------------------

    def _embed_puts(self, puts: Sequence[PutOp]) -> list[list[bytes]]:
        """Per put, the unit vectors of its indexed texts as float32 bytes."""
        texts = [_texts(op.value, self._paths(op)) if op.value is not None else [] for op in puts]
        flat = [text for several in texts for text in several]
        if not flat:
            return [[] for _ in puts]
        rows = iter(self._unit(self._embedder.embed_documents(flat), len(flat)))
        return [[next(rows).tobytes() for _ in several] for several in texts]

    def _paths(self, op: PutOp) -> list[str]:
        if op.index is False:
            return []
        return self._fields if op.index is None else list(op.index)

    def _unit(self, vectors: Sequence[Sequence[float]], count: int) -> NDArray[np.float32]:
        """So many vectors of unit length, n x dims.

        Raises:
            InputError: There are not so many, they have other dimensions than the store's, or hold what is no number.
        """
        unit = _unit(vectors, count)
        known = self._dims()
        if known and unit.shape[1] != known:
            raise InputError(
                f"the embedder {self._fingerprint} gave vectors of {unit.shape[1]} dimensions, {self._folder} holds "
                f"{known}: choose the embedder that it was written with"
            )
        return unit

    def _dims(self) -> int:
        with self._lock:
            return int(self._records.meta("dims") or 0)

    def _write(self, op: PutOp, vectors: Sequence[bytes]) -> None:
        namespace = ".".join(op.namespace)
        if op.value is None:
            self._records.delete(namespace, op.key)
            return
        if vectors and not self._records.meta("dims"):
            self._records.note("dims", str(len(vectors[0]) // 4))
        self._records.put(namespace, op.key, op.value, fields=self._paths(op), vectors=vectors, ttl=op.ttl)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, op: Op, wanted: dict[str, NDArray[np.float32]]) -> Result:
        if isinstance(op, SearchOp | ListNamespacesOp):  # at most so many, after so many: less than none is none
            op = op._replace(limit=max(op.limit, 0), offset=max(op.offset, 0))
        match op:
            case GetOp():
                row = self._records.get(".".join(op.namespace), op.key)
                self._renew(op, [row] if row else [])
                return Item(**_item(row)) if row else None
            case SearchOp():
                found = self._nearest(op, wanted[op.query]) if op.query else self._oldest(op)
                self._renew(op, [row for _, row in found])
                return [SearchItem(**_item(row), score=score) for score, row in found]
            case ListNamespacesOp():
                namespaces = [tuple(path.split(".")) for path in self._records.namespaces()]
                kept = {n[: op.max_depth] for n in namespaces if all(fits(n, c) for c in op.match_conditions or ())}
                return sorted(kept)[op.offset : op.offset + op.limit]
            case PutOp():
                return None
        raise ValueError(f"unknown operation {op!r}")

    def _renew(self, op: GetOp | SearchOp, rows: Sequence[Row]) -> None:
        mortal = [row[0] for row in rows if row[-1] is not None]
        if op.refresh_ttl and mortal:
            self._records.touch(mortal)

    def _oldest(self, op: SearchOp, *, unindexed: bool = False, skip: int | None = None) -> list[tuple[None, Row]]:
        found: list[tuple[None, Row]] = []
        skip = op.offset if skip is None else skip
        for row in self._records.inside(".".join(op.namespace_prefix), unindexed=unindexed):
            if len(found) >= skip + op.limit:
                break
            if _passes(row, op):
                found.append((None, row))
        return found[skip:]

    def _nearest(self, op: SearchOp, query: NDArray[np.float32]) -> list[tuple[float | None, Row]]:
        """Records by the best of their vectors; those without any come last, unscored."""
        index = self._opened()
        with self._records.reading():  # index and records at one moment, whoever else writes
            if index:
                self._take_in(index)
            page = self._page(op, query, index)
        self._merge_if_due()
        return page

    def _page(
        self, op: SearchOp, query: NDArray[np.float32], index: VectorIndex | None
    ) -> list[tuple[float | None, Row]]:
        prefix, needed = ".".join(op.namespace_prefix), op.offset + op.limit
        spaces = self._records.spaces(prefix)
        found: list[tuple[float, Row]] = []
        k = max(2 * needed, _AT_LEAST)
        while index:
            ids = index.search(query, k, spaces)
            found = [hit for hit in self._scored(ids, prefix, query) if _passes(hit[1], op)]
            if len(found) >= needed or len(ids) < k:
                break
            k *= 4
        page: list[tuple[float | None, Row]] = list(found[op.offset : needed])
        if len(found) < needed:
            page += self._oldest(op, unindexed=True, skip=max(0, op.offset - len(found)))[: op.limit - len(page)]
        return page

    def _scored(self, ids: Sequence[int], prefix: str, query: NDArray[np.float32]) -> list[tuple[float, Row]]:
        """The records of these vectors, each once, by exact cosine similarity, nearest first."""
        owners = self._records.owners(ids, prefix)
        if not owners:
            return []
        scores = np.frombuffer(b"".join(vector for vector, _ in owners), np.float32).reshape(len(owners), -1) @ query
        best: dict[int, tuple[float, Row]] = {}
        for score, (_, row) in zip(scores.tolist(), owners, strict=True):
            if row[0] not in best or best[row[0]][0] < score:
                best[row[0]] = score, row
        return sorted(best.values(), key=lambda hit: (-hit[0], hit[1][0]))

    # --- the index --------------------------------------------------------------------------------------------------

    def _opened(self) -> VectorIndex | None:
        """The index, as far as it was followed; None while there are no vectors.

        Where too many vectors lie in no file to be compared one by one, a file is made first.
        """
        if self._index is None and (dims := self._dims()):
            index = self._load()
            if index is None and self._records.count("vectors") > EXACT_UP_TO:
                _LOG.info("the index of %s is missing or not of these records: it is made again", self._folder)
                try:
                    self._merge(wait=True)
                except Exception as error:  # whatever it is, the records are there to be searched one by one
                    _LOG.warning("the index of %s cannot be made: %s", self._folder, error)
                    self._not_before = time.monotonic() + _PAUSE
                index = self._load()
            self._index = index or VectorIndex(dims)
        return self._index

    def _load(self) -> VectorIndex | None:
        return newest_index(self._folder / "index", **self._records.named())

    def _take_in(self, index: VectorIndex) -> None:
        for chunk in self._records.added(index.upto):
            index.add(chunk)
        index.removals, gone = self._records.removed(index.removals)
        if len(gone):
            index.remove(gone)

    def _merge_if_due(self) -> None:
        """Where too much lies outside our file: take a newer one that is there, or have one made in the background."""
        if self._merging is not None:
            if not self._merging.done():
                return
            if error := self._merging.exception():
                _LOG.warning("the index of %s could not be saved: %s", self._folder, error)
                self._not_before = time.monotonic() + _PAUSE
            self._merging = None
        if self._index is None:  # who only writes need not have it open
            mine = held = self._reached
        else:
            manifest = self._index.manifest
            mine, held = (manifest.upto, manifest.count) if manifest else (0, 0)
        if not self._records.is_behind(mine, max(EXACT_UP_TO, held // _MERGE_AT)):
            return
        self._reached = reach(self._folder / "index", **self._records.named())
        if self._reached > mine:
            self._index = self._load() if self._index else None
            if not self._records.is_behind(self._reached, max(EXACT_UP_TO, self._reached // _MERGE_AT)):
                return
        if time.monotonic() > self._not_before:
            with suppress(RuntimeError):  # closed by another thread: the next one who opens it will see to it
                self._merging = self._worker.submit(self._merge)

    def _merge(self, *, wait: bool = False, anew: bool = False) -> None:
        """Make a new file of all vectors, unless another process is about it."""
        folder = self._folder / "index"
        folder.mkdir(exist_ok=True)
        before = newest(folder)
        try:
            with FileLock(folder / "lock", timeout=-1 if wait else 0):
                if newest(folder) != before and not anew:  # another process made one while we waited
                    return
                for left in folder.glob("draft-*"):  # by one that was killed
                    shutil.rmtree(left, ignore_errors=True)
                with (
                    closing(Snapshot(self._records.file, self._fingerprint)) as snapshot,
                    Progress(console=Console(stderr=True), transient=True, disable=not wait) as bar,
                ):
                    task = bar.add_task("Indexing memory", total=snapshot.count)
                    draft = build(folder, snapshot, anew=anew, on_progress=lambda n: bar.advance(task, n))
                    with closing(Records(self._records.file)) as records:
                        if records.meta("store") == snapshot.store:
                            publish(draft)
                        else:  # something was forgotten that is still in it
                            shutil.rmtree(draft)
        except Timeout:
            return


def reindex(path: str | Path, embedder: Embeddings, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Embed every record of a store anew, with another embedder. Stopped half-way and called again, it goes on.

    Args:
        path: The store's folder. Those who have it open are refused from now on.
        embedder: The store is bound to it from now on.
        on_progress: Told how many records are done, of how many.

    Returns:
        How many records were embedded.

    Raises:
        InputError: The folder is not a store, or a reindexing with yet another embedder was begun.
    """
    fingerprint = embedder_fingerprint(embedder)
    with closing(open_records(Path(path))) as records, _alone(Path(path)):
        begun = records.meta("reindexing")
        if begun not in (None, fingerprint):
            raise InputError(f"{path} is half-way to the embedder {begun}: finish that first")
        with records.writing():
            records.note("reindexing", fingerprint)
        total, done, last = records.count(), 0, int(records.meta("reindexed") or 0)
        while rows := records.indexed(last):
            texts = [_texts(value, paths) for _, _, value, paths in rows]
            flat = [text for several in texts for text in several]
            vectors = iter(_unit(embedder.embed_documents(flat), len(flat)) if flat else ())
            with records.writing():
                for (record, namespace, _, _), several in zip(rows, texts, strict=True):
                    records.set_vectors(record, namespace, made := [next(vectors).tobytes() for _ in several])
                    if made:
                        records.note("dims", str(len(made[0]) // 4))
                last = rows[-1][0]
                records.note("reindexed", str(last))
            done += len(rows)
            if on_progress:
                on_progress(done, total)
        with records.writing():
            records.note("embedder", fingerprint)
            records.note("reindexing", None)
            records.note("reindexed", None)
            records.rename()
        remove(Path(path) / "index")
    return done


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / "reindexing.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"{folder} is being embedded anew by another process") from None


def open_records(folder: Path) -> Records:
    """The records in a store's folder, made if they are not there.

    Raises:
        InputError: They cannot be used.
    """
    file = folder / "records.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Records(file)
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"cannot use {file} as a memory store ({error}); move it away or choose another folder"
        ) from error


def _bind(records: Records, mine: str) -> None:
    """Refuse a store of another embedder."""
    if begun := records.meta("reindexing"):
        raise InputError(
            f"{records.file} is half-way to the embedder {begun}: give that one to `gems memory reindex` to finish"
        )
    theirs = records.meta("embedder")
    if theirs not in (None, mine):
        raise InputError(
            f"{records.file} was written with the embedder {theirs}, not {mine}: choose that one, another memory "
            "folder, or embed everything anew with `gems memory reindex`"
        )


def _unit(vectors: Sequence[Sequence[float]], count: int) -> NDArray[np.float32]:
    try:
        array = np.asarray(vectors, dtype=np.float32)
    except ValueError:
        array = np.empty(0, np.float32)
    if array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
        raise InputError(f"the embedder gave no {count} vectors of finite numbers, all equally many")
    return np.asarray(array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _texts(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    return [text for path in paths for text in get_text_at_path(value, path) if text]


def _passes(row: Row, op: SearchOp) -> bool:
    return not op.filter or matches(json.loads(row[3]), op.filter)


def _item(row: Row) -> dict[str, Any]:
    _, namespace, key, value, created, updated, _ = row
    return {
        "namespace": tuple(namespace.split(".")),
        "key": key,
        "value": json.loads(value),
        "created_at": datetime.fromisoformat(created),
        "updated_at": datetime.fromisoformat(updated),
    }
