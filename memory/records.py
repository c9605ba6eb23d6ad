"""The records of a store: SQLite in WAL mode. What is committed here is what was acknowledged; all else is derived."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from gems.memory.index import Chunk

__all__ = ["Records", "Snapshot"]

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS namespaces (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    fields TEXT,
    ttl REAL,
    expires_at REAL,
    UNIQUE (namespace, key)
);
CREATE INDEX IF NOT EXISTS records_in_order ON records (namespace, id);
CREATE INDEX IF NOT EXISTS records_to_expire ON records (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    record INTEGER NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    space INTEGER NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS vectors_of_record ON vectors (record);
CREATE INDEX IF NOT EXISTS vectors_in_space ON vectors (space);
CREATE TABLE IF NOT EXISTS removed (id INTEGER PRIMARY KEY AUTOINCREMENT, vector INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS vector_removed AFTER DELETE ON vectors
    BEGIN INSERT INTO removed (vector) VALUES (old.id); END;
"""
_FROM_VERSION_0: Final = """
ALTER TABLE records ADD COLUMN fields TEXT;
ALTER TABLE records ADD COLUMN ttl REAL;
ALTER TABLE records ADD COLUMN expires_at REAL;
ALTER TABLE vectors ADD COLUMN space INTEGER NOT NULL DEFAULT 0;
CREATE TABLE namespaces (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
INSERT INTO namespaces (path) SELECT DISTINCT namespace FROM records ORDER BY namespace;
UPDATE vectors SET space = (
    SELECT namespaces.id FROM namespaces JOIN records ON records.namespace = path WHERE records.id = record);
UPDATE records SET fields = iif(json_extract(value, '$.prompt') IS NULL, '["$"]', '["prompt"]')
    WHERE id IN (SELECT record FROM vectors);
INSERT INTO meta SELECT 'dims', length(vector) / 4 FROM vectors LIMIT 1;
"""
"""The first stores kept no namespaces of their own, and not what was embedded; GEMS itself embedded prompts."""

_INSIDE: Final = (
    "({column} >= :prefix AND {column} < :prefix || '/'"
    " AND ({column} = :prefix OR substr({column}, length(:prefix) + 1, 1) = '.'))"
)
"""A prefix is of labels: what follows it begins with a period, and "/" is the character after that. An index serves."""
_ITEM: Final = (
    "records.id, records.namespace, records.key, records.value, records.created_at, records.updated_at, records.ttl"
)
_MANY: Final = 1000

Row = tuple[int, str, str, str, str, str, float | None]
"""Id, namespace, key, value as JSON, when made, when changed, minutes to live."""


def _inside(prefix: str, column: str = "records.namespace") -> str:
    return _INSIDE.format(column=column) if prefix else ":prefix = ''"


class Records:
    """One connection to the file. Not thread-safe: its store locks.

    Args:
        file: Made if it is not there.

    Raises:
        sqlite3.Error: It cannot be used, or is no SQLite file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._db = connect(file)
        try:
            version = self._one("PRAGMA user_version")
            if version > _VERSION:
                raise sqlite3.DatabaseError("a newer version of GEMS wrote it")
            if version < _VERSION:
                self._set_up()
        except BaseException:
            self._db.close()
            raise

    def _set_up(self) -> None:
        with self.writing():
            if self._one("PRAGMA user_version") == _VERSION:  # another process was faster
                return
            if self._one("SELECT count(*) FROM sqlite_master WHERE name = 'records'"):
                _execute_all(self._db, _FROM_VERSION_0)
            _execute_all(self._db, _SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self.rename()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that writes: all of it or nothing, on disk when it ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # on some errors SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reads that all see one moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    # --- what is known about the store ------------------------------------------------------------------------------

    def meta(self, name: str) -> str | None:
        """A note about the store itself."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else None

    def note(self, name: str, value: str | None) -> None:
        """Write such a note, or take it away."""
        if value is None:
            self._db.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def named(self) -> dict[str, str]:
        """The store's id and its embedder, by which an index tells whether it is of these records."""
        return {name: self.meta(name) or "" for name in ("store", "embedder")}

    def rename(self) -> None:
        """Give the store a new id: indexes that were made of what it held before are strangers from now on."""
        self.note("store", uuid.uuid4().hex)

    # --- records ----------------------------------------------------------------------------------------------------

    def put(
        self,
        namespace: str,
        key: str,
        value: Mapping[str, Any],
        *,
        fields: Sequence[str] | None,
        vectors: Sequence[bytes],
        ttl: float | None,
    ) -> None:
        """Write a record, in place of the one with its key; ``ttl`` in minutes."""
        now = datetime.now(UTC).isoformat()
        expires = None if ttl is None else time.time() + ttl * 60
        (record,) = self._db.execute(
            "INSERT INTO records (namespace, key, value, created_at, updated_at, fields, ttl, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value,"
            " updated_at = excluded.updated_at, fields = excluded.fields, ttl = excluded.ttl,"
            " expires_at = excluded.expires_at RETURNING id",
            (namespace, key, json.dumps(dict(value)), now, now, json.dumps(fields) if vectors else None, ttl, expires),
        ).fetchone()
        self.set_vectors(record, namespace, vectors)

    def set_vectors(self, record: int, namespace: str, vectors: Sequence[bytes]) -> None:
        """Give a record these vectors, and no others. Those that it has already stay: an index need not follow."""
        self._db.execute("INSERT OR IGNORE INTO namespaces (path) VALUES (?)", (namespace,))
        space = self._one("SELECT id FROM namespaces WHERE path = ?", namespace)
        held = self._db.execute("SELECT space, vector FROM vectors WHERE record = ? ORDER BY id", (record,)).fetchall()
        if held == [(space, vector) for vector in vectors]:
            return
        self._db.execute("DELETE FROM vectors WHERE record = ?", (record,))
        self._db.executemany(
            "INSERT INTO vectors (record, space, vector) SELECT id, ?, ? FROM records WHERE id = ?",
            [(space, vector, record) for vector in vectors],
        )

    def delete(self, namespace: str, key: str) -> None:
        """Remove a record, if it is there."""
        self._db.execute("DELETE FROM records WHERE namespace = ? AND key = ?", (namespace, key))

    def drop(self, record: int) -> None:
        """Remove a record by its id."""
        self._db.execute("DELETE FROM records WHERE id = ?", (record,))

    def rewrite(self, record: int, value: Mapping[str, Any]) -> None:
        """Change what a record says, but not what is embedded of it."""
        self._db.execute("UPDATE records SET value = ? WHERE id = ?", (json.dumps(value), record))

    def date(self, namespace: str, key: str, when: datetime) -> None:
        """Say when a record was written, if it was not now."""
        text = when.isoformat()
        self._db.execute(
            "UPDATE records SET created_at = min(created_at, ?), updated_at = ? WHERE namespace = ? AND key = ?",
            (text, text, namespace, key),
        )

    def get(self, namespace: str, key: str) -> Row | None:
        """One record."""
        query = f"SELECT {_ITEM} FROM records WHERE namespace = ? AND key = ?"  # noqa: S608 - constants only
        row: Row | None = self._db.execute(query, (namespace, key)).fetchone()
        return row

    def inside(self, prefix: str, *, unindexed: bool = False) -> Iterator[Row]:
        """The records of a namespace and those under it, oldest first in each; all, or those without a vector."""
        alone = " AND NOT EXISTS (SELECT 1 FROM vectors WHERE record = records.id)" if unindexed else ""
        yield from self._db.execute(
            f"SELECT {_ITEM} FROM records WHERE {_inside(prefix)}{alone} ORDER BY records.namespace, records.id",  # noqa: S608
            {"prefix": prefix},
        )

    def owners(self, vectors: Sequence[int], prefix: str) -> list[tuple[bytes, Row]]:
        """Those of these vectors that are there and inside a namespace, each with its record."""
        found: list[tuple[bytes, Any]] = []
        for start in range(0, len(vectors), _MANY):
            some = ",".join(map(str, vectors[start : start + _MANY]))
            rows = self._db.execute(
                f"SELECT vector, {_ITEM} FROM vectors JOIN records ON records.id = record"  # noqa: S608 - numbers only
                f" WHERE vectors.id IN ({some}) AND {_inside(prefix)}",
                {"prefix": prefix},
            )
            found += [(row[0], row[1:]) for row in rows]
        return found

    def everything(self) -> Iterator[tuple[Row, list[str] | None]]:
        """All records, oldest first, each with the paths of what is embedded of it."""
        for *row, fields in self._db.execute(f"SELECT {_ITEM}, fields FROM records ORDER BY id"):  # noqa: S608
            yield tuple(row), json.loads(fields) if fields else None

    def namespaces(self) -> list[str]:
        """Every namespace that holds a record."""
        return [path for (path,) in self._db.execute("SELECT DISTINCT namespace FROM records")]

    def spaces(self, prefix: str) -> list[int]:
        """The numbers of a namespace and of those under it."""
        inside = _inside(prefix, "path")
        rows = self._db.execute(f"SELECT id FROM namespaces WHERE {inside} ORDER BY id", {"prefix": prefix})  # noqa: S608
        return [number for (number,) in rows]

    def expire(self) -> None:
        """Remove what has outlived its time."""
        now = time.time()
        if self._one("SELECT EXISTS (SELECT 1 FROM records WHERE expires_at <= ?)", now):
            with self.writing():
                self._db.execute("DELETE FROM records WHERE expires_at <= ?", (now,))

    def touch(self, records: Iterable[int]) -> None:
        """Let these records live as long again as they were given when they were put."""
        now = time.time()
        with self.writing():
            self._db.executemany(
                "UPDATE records SET expires_at = ? + ttl * 60 WHERE id = ?", [(now, record) for record in records]
            )

    def indexed(self, after: int) -> list[tuple[int, str, dict[str, Any], list[str]]]:
        """Some records that have vectors, by rising id: id, namespace, value, and the paths of what is embedded."""
        rows = self._db.execute(
            "SELECT id, namespace, value, fields FROM records WHERE id > ? AND fields IS NOT NULL ORDER BY id LIMIT ?",
            (after, _MANY),
        )
        return [(i, space, json.loads(value), json.loads(fields)) for i, space, value, fields in rows]

    # --- what happened to the vectors -------------------------------------------------------------------------------

    def added(self, after: int) -> Iterator[Chunk]:
        """The vectors behind an id, by rising id."""
        rows = self._db.execute("SELECT id, vector, space FROM vectors WHERE id > ? ORDER BY id", (after,))
        while some := rows.fetchmany(10 * _MANY):
            ids, blobs, spaces = zip(*some, strict=True)
            matrix = np.frombuffer(b"".join(blobs), np.float32).reshape(len(some), -1)
            yield np.asarray(ids, np.int64), matrix, np.asarray(spaces, np.int32)

    def removed(self, after: int) -> tuple[int, NDArray[np.int64]]:
        """The number of the last removal, and the vectors that were removed after one."""
        rows = self._db.execute("SELECT id, vector FROM removed WHERE id > ? ORDER BY id", (after,)).fetchall()
        return (rows[-1][0] if rows else after), np.asarray([vector for _, vector in rows], np.int64)

    def is_behind(self, vector: int, more_than: int) -> bool:
        """Whether more than so many vectors lie behind an id."""
        last = int(self._one("SELECT coalesce(max(id), 0) FROM vectors"))
        # Only a bound: of a record that was often changed, one vector is left. Counting is for when it tells.
        return last - vector > more_than and (
            int(self._one("SELECT count(*) FROM (SELECT 1 FROM vectors WHERE id > ? LIMIT ?)", vector, more_than + 1))
            > more_than
        )

    def integrity(self) -> str:
        """What SQLite finds wrong with the file; ``ok`` if it is whole."""
        return "; ".join(text for (text,) in self._db.execute("PRAGMA integrity_check(3)"))

    def clean(self) -> bool:
        """Give back the room of what was removed, and overwrite it; False if other processes keep some of it alive."""
        with self.writing():
            self._db.execute("DELETE FROM namespaces WHERE path NOT IN (SELECT namespace FROM records)")
        self._db.execute("VACUUM")
        busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def count(self, table: str = "records") -> int:
        """How many rows a table holds."""
        return int(self._one(f"SELECT count(*) FROM {table}"))  # noqa: S608 - ours

    def _one(self, query: str, *values: Any) -> Any:
        return self._db.execute(query, values).fetchone()[0]


class Snapshot:
    """The records at one moment, over a connection of its own: what an index is made of, while others write on."""

    def __init__(self, file: Path, embedder: str) -> None:
        self._records = Records(file)
        self._db = self._records._db
        self.embedder = embedder
        self._db.execute("BEGIN")
        self.store = self._records.meta("store") or ""
        self.removals = int(self._records._one("SELECT coalesce(max(id), 0) FROM removed"))
        places = np.asarray(self._db.execute("SELECT id, space FROM vectors").fetchall(), np.int64).reshape(-1, 2)
        self._ids = places[:, 0]
        self.count = len(places)
        self.spaces: NDArray[np.int32] = np.full(int(self._ids.max(initial=-1)) + 1, -1, np.int32)
        self.spaces[self._ids] = places[:, 1]

    def sample(self, wanted: int) -> NDArray[np.float32]:
        """So many of the vectors, by chance, or all if there are no more."""
        chosen = np.random.default_rng(0).permutation(self._ids)[:wanted].tolist()
        blobs = []
        for start in range(0, len(chosen), _MANY):
            some = ",".join(map(str, chosen[start : start + _MANY]))
            blobs += [v for (v,) in self._db.execute(f"SELECT vector FROM vectors WHERE id IN ({some})")]  # noqa: S608
        return np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), -1)

    def chunks(self, after: int) -> Iterator[Chunk]:
        """The vectors behind an id, by rising id."""
        return self._records.added(after)

    def close(self) -> None:
        """Let go of the moment."""
        self._records.close()


@retry(
    retry=retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError) and "locked" in str(error)),
    stop=stop_after_delay(30),
    wait=wait_random_exponential(0.02, max=1),
    reraise=True,
)
def connect(file: Path) -> sqlite3.Connection:
    """A connection whose commits survive a crash of the machine."""
    db = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")  # which does not wait for others, whatever the timeout
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def _execute_all(db: sqlite3.Connection, script: str) -> None:
    """``executescript`` would commit first."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
