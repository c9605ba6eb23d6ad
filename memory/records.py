"""The records of a store, in SQLite (WAL mode). They are the truth: the index is derived from them."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from gems.errors import InputError
from gems.files import check_own_files
from gems.foreign_tables import UNUSABLE, check_journal, check_schema
from gems.json_text import parse_json, strict_json
from gems.memory.index import MAX_SPACE, Chunk, too_sparse
from gems.memory.vector_table import SOUND, VectorTable
from gems.paths import make_file

__all__ = [
    "MAX_TTL",
    "Records",
    "Row",
    "Snapshot",
    "Times",
    "aware_time",
    "existing_memory",
    "open_existing_records",
    "open_records",
    "open_snapshot",
]

_VERSION: Final = 1
"""Version of the schema, kept in SQLite's ``user_version``."""

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE namespaces (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE records (
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
CREATE INDEX records_in_order ON records (namespace, id);
CREATE INDEX records_to_expire ON records (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    record INTEGER NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    space INTEGER NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX vectors_of_record ON vectors (record);
CREATE INDEX vectors_in_space ON vectors (space);
CREATE TABLE removed (id INTEGER PRIMARY KEY AUTOINCREMENT, vector INTEGER NOT NULL);
"""
_TRIGGER: Final = """
CREATE TRIGGER vector_removed AFTER DELETE ON vectors
    BEGIN INSERT INTO removed (vector) VALUES (old.id); END;
"""

_HIDE_EXPIRED: Final = """
CREATE TEMP VIEW records AS SELECT * FROM main.records WHERE expires_at IS NULL OR expires_at > {now!r};
CREATE TEMP VIEW vectors AS SELECT * FROM main.vectors WHERE record IN (SELECT id FROM records);
"""
"""What stands for the tables in a connection that only reads."""
_INSIDE: Final = (
    "({column} >= :prefix AND {column} < :prefix || '/'"
    " AND ({column} = :prefix OR substr({column}, length(:prefix) + 1, 1) = '.'))"
)
"""A condition: the namespace is the prefix, or begins with it and a period. "/" follows "." in the alphabet, so that
the first two comparisons are a range that SQLite looks up in an index."""
_SOUND_SPACE: Final = f"typeof(id) = 'integer' AND id BETWEEN 1 AND {MAX_SPACE}"
"""A condition: GEMS can have given the number to the namespace."""
_COLUMNS: Final = (
    "records.id, records.namespace, records.key, records.value, records.created_at, records.updated_at, records.ttl"
)
"""The columns of a ``Row``."""
_FILES: Final = (
    *(f"records.sqlite{end}" for end in ("", "-wal", "-shm", "-journal")),
    "reindexing.lock",
    "index",
)
"""What a memory's folder holds."""
MAX_TTL: Final = 4e9
"""Minutes to live from which on a record never expires: its date would be too far away to be written."""
_MAX_DIGITS: Final = 19
"""Digits that no number of SQLite's has."""
_PAGE: Final = 1000
"""Rows read, or ids named, in one statement."""


_PATHS: Final = TypeAdapter(list[str])
_MAX_TIME: Final = 253_000_000_000
"""Seconds from 1970 to the year 9987."""
_NO_TEXT: Final = "typeof(namespace) <> 'text' OR typeof(key) <> 'text'"
"""A condition: no program can name the record."""
_UNREADABLE: Final = "the record {key!r} in {namespace} has {what} that cannot be read; `gems memory compact` mends it"


class Times(NamedTuple):
    """The times of a record that comes from elsewhere."""

    namespace: tuple[str, ...]
    key: str
    updated_at: datetime
    created_at: datetime | None = None
    """None: the time at which it was stored here, or ``updated_at`` if that is earlier."""
    expires_at: datetime | None = None
    """None: it expires as if it were written now."""


class Row(NamedTuple):
    """A record as SQLite holds it."""

    id: int
    namespace: str
    """The namespace's labels, joined by periods."""
    key: str
    value: str
    """The value, as JSON."""
    created_at: str
    updated_at: str
    ttl: float | None
    """Time to live in minutes, counted from the last write or read."""

    @property
    def content(self) -> dict[str, Any]:
        """The value.

        Raises:
            InputError: It is not JSON: another program has written the file.
        """
        try:
            content = parse_json(self.value)
            if not isinstance(content, dict):
                raise ValueError("it is no object")
        except (ValueError, TypeError) as error:
            raise InputError(
                f"the record {self.key!r} in {self.namespace} cannot be read: {error}; delete it from the store"
            ) from None
        return content

    @property
    def first_written_at(self) -> datetime:
        """The time of the first write; errors as for ``content``."""
        return self._time("created_at")

    @property
    def written_at(self) -> datetime:
        """The time of the last write; errors as for ``content``."""
        return self._time("updated_at")

    @property
    def labels(self) -> tuple[str, ...]:
        """The namespace's labels; errors as for ``content``."""
        for name in ("namespace", "key"):
            if not isinstance(getattr(self, name), str):
                raise self._unreadable(name)
        return tuple(self.namespace.split("."))

    def _time(self, name: str) -> datetime:
        try:
            return aware_time(getattr(self, name))
        except (ValueError, TypeError):
            raise self._unreadable(name) from None

    def _unreadable(self, name: str) -> InputError:
        return InputError(_UNREADABLE.format(key=self.key, namespace=self.namespace, what=name))

    def check(self) -> None:
        """Read all of it; errors as for ``content``."""
        if not isinstance(self.ttl, int | float | None) or self.ttl in (math.inf, -math.inf):
            raise self._unreadable("ttl")
        _ = self.labels, self.content, self.first_written_at, self.written_at


def _paths(namespace: str, key: str, fields: Any) -> list[str]:
    """The JSON paths of a record's embedded texts.

    Raises:
        InputError: They are none: another program has written the file.
    """
    try:
        return _PATHS.validate_json(fields, strict=True)
    except ValueError:
        raise InputError(_UNREADABLE.format(key=key, namespace=namespace, what="fields")) from None


def _time(row: Row, seconds: Any) -> float | None:
    """A POSIX time that a date can be made of; errors as for ``_paths``."""
    if seconds is None or (isinstance(seconds, int | float) and 0 <= seconds < _MAX_TIME):
        return seconds
    raise InputError(_UNREADABLE.format(key=row.key, namespace=row.namespace, what="expires_at"))


def _read_whole(row: Row, fields: Any, expires_at: Any) -> tuple[Row, list[str] | None, float | None]:
    """A record with its JSON paths and the time that it expires at; errors as for ``Row.content`` and ``_paths``."""
    row.check()
    return row, _paths(row.namespace, row.key, fields) if fields else None, _time(row, expires_at)


def _is_read(read: Callable[..., Any], *values: Any) -> bool:
    try:
        read(*values)
    except (ValueError, TypeError):
        return False
    return True


def aware_time(text: str) -> datetime:
    """A stored time. Earlier versions imported times without a zone."""
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _inside(prefix: str, column: str = "records.namespace") -> str:
    return _INSIDE.format(column=column) if prefix else ":prefix = ''"


class _Notes:
    """Notes about a store itself, in its file."""

    def __init__(self, file: Path, db: sqlite3.Connection) -> None:
        self.file: Final = file
        self._db: Final = db

    def meta(self, name: str) -> str | None:
        """A note about the store itself; None if there is none of that name."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else None

    def set_meta(self, name: str, value: str | None) -> None:
        """Write a note about the store; None deletes it."""
        if value is None:
            self._db.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def dims(self) -> int:
        """Dimensions of the vectors; 0 before the first one is written."""
        return self.number("dims")

    def number(self, name: str) -> int:
        """A note that is a number; 0 if there is none of that name.

        Raises:
            InputError: It is no number: another program has written the file.
        """
        text = self.meta(name) or "0"
        if not (text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS):
            raise InputError(f"{self.file} is damaged: its {name!r} is no number; restore it from a copy or an export")
        return int(text)

    def identity(self) -> dict[str, str]:
        """The ids of the store and of its saved index, and its embedder's fingerprint: no other index is used."""
        return {name: self.meta(name) or "" for name in ("store", "embedder", "index")}

    def renew_identity(self) -> None:
        """Give the store a new id, so that indexes made from its former content are no longer used."""
        self.set_meta("store", uuid.uuid4().hex)
        self.set_meta("index", None)


class _AllRecords(_Notes):
    """All records, as another program may have written them."""

    def everything(self) -> Iterator[tuple[Row, list[str] | None, float | None]]:
        """All records, oldest first, with the JSON paths of their embedded texts and the POSIX times they expire at."""
        with closing(self._rows()) as rows:  # whoever keeps an error does not keep the file open
            for columns in rows:
                yield _read_whole(*columns)

    def _rows(self) -> Generator[tuple[Row, Any, Any], None, None]:
        """All records, oldest first, with what the file holds as their fields and their time to expire."""
        query = f"SELECT {_COLUMNS}, fields, expires_at FROM records ORDER BY id"  # noqa: S608 - constants only
        with closing(self._db.execute(query)) as rows:
            for *columns, fields, expires_at in rows:
                yield Row._make(columns), fields, expires_at

    def mend_records(self) -> None:
        """Repair them as far as that can be done without knowing what they were; delete those that have no name."""
        self._db.execute(f"DELETE FROM records WHERE {_NO_TEXT}")  # noqa: S608 - constants only
        now = datetime.now(UTC).isoformat()
        for row, fields, expires_at in list(self._rows()):
            times = [value for value in (row.updated_at, row.created_at) if _is_read(aware_time, value)]
            created, updated = (times or [now])[-1], (times or [now])[0]
            ttl = row.ttl if _is_read(Row.check, row._replace(created_at=now, updated_at=now, value="{}")) else None
            expires = expires_at if _is_read(_time, row, expires_at) else None
            paths = fields if not fields or _is_read(_paths, row.namespace, row.key, fields) else None
            mended = (created, updated, ttl, expires, paths)
            if mended != (row.created_at, row.updated_at, row.ttl, expires_at, fields):
                self._db.execute(
                    "UPDATE records SET created_at = ?, updated_at = ?, ttl = ?, expires_at = ?, fields = ?"
                    " WHERE id = ?",
                    (*mended, row.id),
                )

    def faults(self) -> Iterator[str]:
        """What cannot be read of the records, one fault of each."""
        for row, fields, expires_at in self._rows():
            try:
                _read_whole(row, fields, expires_at)
            except InputError as error:
                yield str(error)


class Records(_AllRecords):
    """One connection to the file. Not thread-safe: its store locks.

    Args:
        file: Created if it does not exist, unless it is only read.
        read_only: Change nothing in the file's folder. Every write is refused, and renews no time to live.

    Raises:
        sqlite3.Error: The file cannot be used, or is not a SQLite file of ours.
    """

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        super().__init__(file, connect_to_read(file) if read_only else connect(file))
        self.read_only: Final = read_only
        self.vectors: Final = VectorTable(self._db)
        try:
            check_schema(self._db, [_TRIGGER])
            version = self._scalar("PRAGMA user_version")
            if version > _VERSION:
                raise sqlite3.DatabaseError("a newer version of GEMS wrote it")
            if version < _VERSION and read_only:
                raise sqlite3.DatabaseError("it holds no records yet")
            if version < _VERSION:
                self._create_tables()
        except BaseException:
            self._db.close()
            raise

    def _create_tables(self) -> None:
        with self.writing():
            if self._scalar("PRAGMA user_version") == _VERSION:  # another process was faster
                return
            _execute_all(self._db, _SCHEMA + _TRIGGER)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self.renew_identity()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that writes: committed to disk at its end, or rolled back as a whole.

        Raises:
            InputError: The records are open for reading only.
        """
        if self.read_only:
            raise InputError(f"{self.file} is open for reading only")
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
        """A transaction in which all reads see the same state."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def version(self) -> int:
        """A number that changes whenever another connection has changed the records."""
        return int(self._scalar("PRAGMA data_version"))

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
        """Write a record, replacing the one with the same key; ``ttl`` is in minutes, from ``MAX_TTL`` on for ever."""
        now = datetime.now(UTC).isoformat()
        if ttl is not None and not ttl < MAX_TTL:
            ttl = None
        expires = None if ttl is None else time.time() + ttl * 60
        (record,) = self._db.execute(
            "INSERT INTO records (namespace, key, value, created_at, updated_at, fields, ttl, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value,"
            " updated_at = excluded.updated_at, fields = excluded.fields, ttl = excluded.ttl,"
            " expires_at = excluded.expires_at RETURNING id",
            (namespace, key, strict_json(dict(value)), now, now, json.dumps(fields) if vectors else None, ttl, expires),
        ).fetchone()
        self.set_vectors(record, namespace, vectors)

    def set_vectors(self, record: int, namespace: str, vectors: Sequence[bytes]) -> None:
        """Replace the vectors of a record."""
        self.vectors.replace(record, self._space(namespace), vectors)

    def _space(self, namespace: str) -> int:
        """The number of a namespace, which it gets if it has none that GEMS can have given."""
        query = f"SELECT id FROM namespaces WHERE path = ? AND {_SOUND_SPACE}"  # noqa: S608 - constants only
        if self._db.execute(query, (namespace,)).fetchone() is None:
            last = f"SELECT coalesce(max(id), 0) + 1, ? FROM namespaces WHERE {_SOUND_SPACE}"  # noqa: S608 - constants only
            self._db.execute(f"INSERT OR REPLACE INTO namespaces (id, path) {last}", (namespace,))
        return int(self._scalar("SELECT id FROM namespaces WHERE path = ?", namespace))

    def delete(self, namespace: str, key: str) -> None:
        """Delete a record by its key, if it exists."""
        self._db.execute("DELETE FROM records WHERE namespace = ? AND key = ?", (namespace, key))

    def drop(self, record: int) -> None:
        """Delete a record by its id, if it exists."""
        self._db.execute("DELETE FROM records WHERE id = ?", (record,))

    def rewrite(self, record: int, value: Mapping[str, Any]) -> None:
        """Change the value of a record but not its vectors."""
        self._db.execute("UPDATE records SET value = ? WHERE id = ?", (strict_json(value), record))

    def backdate(self, times: Times) -> None:
        """Set the times of a record."""
        created = times.created_at and times.created_at.isoformat()
        updated = times.updated_at.isoformat()
        expires = times.expires_at and times.expires_at.timestamp()
        self._db.execute(
            "UPDATE records SET created_at = coalesce(?, min(created_at, ?)), updated_at = ?,"
            " expires_at = coalesce(?, expires_at) WHERE namespace = ? AND key = ?",
            (created, updated, updated, expires, ".".join(times.namespace), times.key),
        )

    def get(self, namespace: str, key: str) -> Row | None:
        """A record by its key; None if there is none."""
        query = f"SELECT {_COLUMNS} FROM records WHERE namespace = ? AND key = ?"  # noqa: S608 - constants only
        row = self._db.execute(query, (namespace, key)).fetchone()
        return Row._make(row) if row else None

    def embedded(self, namespace: str, key: str) -> tuple[dict[str, Any], list[str], list[bytes]] | None:
        """A record's value, the JSON paths of its embedded texts, and their vectors; None if it has none."""
        query = "SELECT id, fields FROM records WHERE namespace = ? AND key = ? AND fields IS NOT NULL"
        row, record = self._db.execute(query, (namespace, key)).fetchone(), self.get(namespace, key)
        if row is None or record is None:
            return None
        try:
            return record.content, _paths(namespace, key, row[1]), self.vectors.of(row[0])
        except InputError:  # another program has written the file
            return None

    def inside(self, prefix: str, *, unindexed: bool = False) -> Iterator[Row]:
        """The records of a namespace and of those below it, by namespace and age; all, or those without a vector."""
        condition = " AND NOT EXISTS (SELECT 1 FROM vectors WHERE record = records.id)" if unindexed else ""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM records WHERE {_inside(prefix)}{condition}"  # noqa: S608 - constants only
            " ORDER BY records.namespace, records.id",
            {"prefix": prefix},
        )
        return map(Row._make, rows)

    def owners(self, vectors: Sequence[int], prefix: str) -> list[tuple[bytes, Row]]:
        """For each of these vectors that exists below a namespace: the vector, and the record it belongs to."""
        pairs: list[tuple[bytes, Row]] = []
        for start in range(0, len(vectors), _PAGE):
            ids = ",".join(map(str, vectors[start : start + _PAGE]))
            rows = self._db.execute(
                f"SELECT vector, {_COLUMNS} FROM vectors JOIN records ON records.id = record"  # noqa: S608 - numbers only
                f" WHERE vectors.id IN ({ids}) AND {SOUND} AND {_inside(prefix)}",
                {"prefix": prefix},
            )
            pairs += [(vector, Row._make(columns)) for vector, *columns in rows]
        return pairs

    def namespaces(self) -> list[str]:
        """Every namespace that holds a record."""
        return [path for (path,) in self._db.execute("SELECT DISTINCT namespace FROM records") if isinstance(path, str)]

    def spaces(self, prefix: str) -> list[int]:
        """The numbers of a namespace and of those below it."""
        inside = _inside(prefix, "path")
        query = f"SELECT id FROM namespaces WHERE {inside} AND {_SOUND_SPACE} ORDER BY id"  # noqa: S608 - constants only
        rows = self._db.execute(query, {"prefix": prefix})
        return [number for (number,) in rows]

    def expire(self) -> None:
        """Delete the records whose time to live is over, or hide them if the file is only read."""
        now = time.time()
        if not self._scalar("SELECT EXISTS (SELECT 1 FROM records WHERE expires_at <= ?)", now):
            return
        if self.read_only:
            _execute_all(self._db, _HIDE_EXPIRED.format(now=now))
            return
        with self.writing():
            self._db.execute("DELETE FROM records WHERE expires_at <= ?", (now,))

    def touch(self, records: Iterable[int]) -> None:
        """Restart the time to live of these records, unless the file is only read."""
        if self.read_only:
            return
        now = time.time()
        with self.writing():
            self._db.executemany(
                "UPDATE records SET expires_at = ? + ttl * 60 WHERE id = ?", [(now, record) for record in records]
            )

    def indexed(self, after: int, limit: int = _PAGE) -> list[tuple[int, str, dict[str, Any], list[str]]]:
        """The next page of records with vectors after an id: id, namespace, value, JSON paths of embedded texts."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS}, fields FROM records"  # noqa: S608 - constants only
            " WHERE id > ? AND fields IS NOT NULL ORDER BY id LIMIT ?",
            (after, limit),
        )
        pairs = [(Row._make(columns), fields) for *columns, fields in rows]
        return [(row.id, row.namespace, row.content, _paths(row.namespace, row.key, fields)) for row, fields in pairs]

    # --- the file ---------------------------------------------------------------------------------------------------

    def integrity(self) -> str:
        """What SQLite's integrity check reports; ``ok`` if the file is undamaged."""
        return "; ".join(text for (text,) in self._db.execute("PRAGMA integrity_check(3)"))

    def clean(self) -> bool:
        """Free the space of deleted records and overwrite it; False if another process keeps old pages in use."""
        with self.writing():
            if self.meta("index") is None:
                self.vectors.forget_removals(self.vectors.last_removal())
            self._db.execute(
                "DELETE FROM vectors WHERE record NOT IN (SELECT id FROM records WHERE fields IS NOT NULL)"
            )
            self._db.execute("DELETE FROM namespaces WHERE path NOT IN (SELECT namespace FROM records)")
            self._db.execute(f"DELETE FROM namespaces WHERE NOT ({_SOUND_SPACE})")  # noqa: S608 - constants only
        self._db.execute("VACUUM")
        busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def mend(self) -> None:
        """Repair what another program has written, as far as that can be done."""
        with self.writing():
            if self.vectors.mend():
                self.renew_identity()
            self.mend_records()

    def count(self, table: str = "records") -> int:
        """The number of rows in a table."""
        return int(self._scalar(f"SELECT count(*) FROM {table}"))  # noqa: S608 - our own table names

    def _scalar(self, query: str, *values: Any) -> Any:
        return self._db.execute(query, values).fetchone()[0]


class Snapshot:
    """The vectors of a store within a reading transaction: what an index is built from, while other processes write.

    Args:
        records: The records, on which ``reading`` has begun.
        embedder: The fingerprint of the embedder that made the vectors.
    """

    def __init__(self, records: Records, embedder: str) -> None:
        self._vectors = records.vectors
        self.embedder = embedder
        self.store, self.index = records.meta("store") or "", records.meta("index") or ""
        self.removals = self._vectors.last_removal()
        ids_and_spaces = self._vectors.spaces()
        self._ids = ids_and_spaces[:, 0]
        self.count = len(self._ids)
        ids = int(self._ids.max(initial=-1)) + 1
        if too_sparse(ids, self.count):
            raise InputError(
                f"{records.file} has only {self.count} vectors for ids up to {ids}: export it and import it elsewhere, "
                "which gives them new ids"
            )
        self.spaces: NDArray[np.int32] = np.full(ids, -1, np.int32)
        self.spaces[self._ids] = ids_and_spaces[:, 1]

    def sample(self, count: int) -> NDArray[np.float32]:
        """A random sample of the vectors; all of them if there are no more than ``count``."""
        return self._vectors.read(np.random.default_rng(0).permutation(self._ids)[:count].tolist())

    def chunks(self, after: int) -> Iterator[Chunk]:
        """The vectors with ids greater than ``after``, in the order of their ids."""
        return self._vectors.added(after)


@contextmanager
def open_snapshot(file: Path, embedder: str) -> Iterator[Snapshot]:
    """A snapshot of a store's vectors, over a connection of its own."""
    with closing(Records(file)) as records, records.reading():
        yield Snapshot(records, embedder)


def existing_memory(folder: Path) -> Path:
    """The folder, if it holds a memory.

    Raises:
        InputError: It does not.
    """
    if not (folder / "records.sqlite").exists():
        raise InputError(f"there is no memory in {folder} yet: run gems generate to create one")
    return folder


def open_existing_records(folder: Path, *, read_only: bool = True, with_expired: bool = False) -> Records:
    """The records in a memory's folder.

    Args:
        folder: The memory's folder.
        read_only: Change nothing in the folder.
        with_expired: Leave the records whose time to live is over.

    Raises:
        InputError: The folder holds no memory, or cannot be used.
    """
    records = open_records(existing_memory(folder), read_only=read_only)
    if not with_expired:
        records.expire()
    return records


def open_records(folder: Path, *, read_only: bool = False) -> Records:
    """The records in a store's folder; both are created if they do not exist, unless they are only read.

    Raises:
        InputError: The folder or the file cannot be used.
    """
    check_own_files(folder, _FILES, depth=4)
    file = folder / "records.sqlite"
    try:
        if not read_only:
            make_file(file)
        return Records(file, read_only=read_only)
    except (OSError, *UNUSABLE) as error:
        is_full = any(text in str(error) for text in ("disk is full", "disk I/O error"))
        advice = "free some space" if is_full else "move it away or choose another folder"
        raise InputError(f"cannot use {file} as a memory store ({error}); {advice}") from error


@retry(
    retry=retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError)),
    stop=stop_after_delay(2),
    wait=wait_random_exponential(0.02, max=1),
    reraise=True,
)
def connect_to_read(file: Path) -> sqlite3.Connection:
    """A connection that changes no byte of the file and of those beside it, whether or not others write it."""
    parts = [file, *(file.with_name(f"{file.name}{end}") for end in ("-wal", "-journal"))]
    if file.with_name(f"{file.name}-shm").exists():  # others have it open, or were killed
        return _checked(file, "mode=ro&readonly_shm=1")
    if any(part.exists() and part.stat().st_size for part in parts[1:]):
        return _checked_copy(parts)
    if os.access(file, os.W_OK) and os.access(file.parent, os.W_OK):
        return _checked(file, "mode=rw")  # others may begin to write: it locks, and leaves nothing beside the file
    return _checked(file, "mode=ro&immutable=1")


def _checked(file: Path, how: str) -> sqlite3.Connection:
    """A connection that only reads, and has read once: some errors only show then."""
    check_journal(file)
    uri = f"{file.absolute().as_uri()}?{how}"
    db = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _checked_copy(parts: Iterable[Path]) -> sqlite3.Connection:
    """A connection to a copy of a file that was not closed: its last changes are beside it, to be written into it."""
    with TemporaryDirectory() as folder:
        first, *_ = [Path(shutil.copy(part, folder)) for part in parts if part.exists()]
        db = _checked(first, "mode=rw")
        db.execute("PRAGMA journal_mode = DELETE")  # now it is one file, which goes with the connection
        return db


@retry(
    retry=retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError) and "locked" in str(error)),
    stop=stop_after_delay(30),
    wait=wait_random_exponential(0.02, max=1),
    reraise=True,
)
def connect(file: Path) -> sqlite3.Connection:
    """A connection whose commits survive a crash of the machine."""
    check_journal(file)
    db = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")  # fails at once if another process holds a lock, whatever the timeout
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def _execute_all(db: sqlite3.Connection, script: str) -> None:
    """Execute a script within the current transaction, which ``executescript`` would commit first."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
