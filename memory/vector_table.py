"""The vectors of a store's records, in SQLite, with a log of removals that an index can follow."""

# ruff: noqa: S608 - statements are put together from constants and numbers only

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gems.errors import InputError
from gems.memory.index import MAX_SPACE, Chunk

__all__ = ["SOUND", "VectorTable"]

_MAX_NUMBER: Final = 2**53
"""No id and no number of a removal is as large."""
SOUND: Final = (
    f"(vectors.id BETWEEN 1 AND {_MAX_NUMBER} AND typeof(space) = 'integer' AND space BETWEEN 1 AND {MAX_SPACE}"
    " AND typeof(vector) = 'blob'"
    " AND length(vector) = 4 * (SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'dims'))"
)
"""A condition: GEMS can have written the vector. Another program may have written the file; what is not sound is as if
it were not there, and ``gems memory verify`` says so."""
_SOUND_NUMBER: Final = f"typeof({{0}}) = 'integer' AND {{0}} BETWEEN 0 AND {_MAX_NUMBER}"

_CHUNK: Final = 10_000
"""Vectors read at a time."""
_IDS_PER_QUERY: Final = 1000
"""Ids named in one statement."""


class VectorTable:
    """The tables ``vectors`` and ``removed``, over the connection of the records.

    Ids are never reused. A trigger logs every removal, so that an index can follow all changes by their numbers.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def replace(self, record: int, space: int, vectors: Sequence[bytes]) -> None:
        """Replace the vectors of a record. Equal vectors keep their ids, so that the index need not change."""
        stored = self._db.execute(
            "SELECT space, vector FROM vectors WHERE record = ? ORDER BY id", (record,)
        ).fetchall()
        if stored == [(space, vector) for vector in vectors]:
            return
        self._db.execute("DELETE FROM vectors WHERE record = ?", (record,))
        self._db.executemany(
            "INSERT INTO vectors (record, space, vector) SELECT id, ?, ? FROM records WHERE id = ?",
            [(space, vector, record) for vector in vectors],
        )

    def of(self, record: int) -> list[bytes]:
        """The vectors of a record, in the order of its texts."""
        return [
            v
            for (v,) in self._db.execute(
                f"SELECT vector FROM vectors WHERE record = ? AND {SOUND} ORDER BY id", (record,)
            )
        ]

    def added(self, after: int) -> Iterator[Chunk]:
        """The vectors with ids greater than ``after``, in the order of their ids."""
        rows = self._db.execute(f"SELECT id, vector, space FROM vectors WHERE id > ? AND {SOUND} ORDER BY id", (after,))
        while page := rows.fetchmany(_CHUNK):
            ids, blobs, spaces = zip(*page, strict=True)
            yield np.asarray(ids, np.int64), _matrix(blobs), np.asarray(spaces, np.int32)

    def removed(self, after: int) -> tuple[int, NDArray[np.int64] | None]:
        """The number of the last removal, and the ids of the vectors removed since removal number ``after``.

        The ids are None if the log no longer reaches back to that removal.
        """
        rows = self._db.execute("SELECT vector FROM removed WHERE id > ?", (after,)).fetchall()
        last = self.last_removal()
        ids = [vector for (vector,) in rows if isinstance(vector, int)]
        return last, np.asarray(ids, np.int64) if last - after <= len(rows) else None

    def last_removal(self) -> int:
        """The number of the last removal; 0 if there was none."""
        return int(
            self._scalar(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence"
                f" WHERE name = 'removed' AND {_SOUND_NUMBER.format('seq')}"
            )
        )

    def logged_removals(self) -> int:
        """Number of removals in the log."""
        first = self._scalar("SELECT min(id) FROM removed")
        return 0 if first is None else self.last_removal() - int(first) + 1

    def forget_removals(self, upto: int) -> None:
        """Delete the log of the removals up to this number. An index that needs them compares all ids instead."""
        self._db.execute("DELETE FROM removed WHERE id <= ?", (upto,))

    def ids(self) -> NDArray[np.int64]:
        """The ids of all vectors, ascending."""
        return np.asarray(
            [number for (number,) in self._db.execute(f"SELECT id FROM vectors WHERE {SOUND} ORDER BY id")], np.int64
        )

    def is_behind(self, vector: int, tolerance: int) -> bool:
        """Whether more than ``tolerance`` vectors have ids greater than ``vector``."""
        last = int(self._scalar("SELECT coalesce(max(id), 0) FROM vectors"))
        if last - vector <= tolerance:  # an upper bound only, since a record that changes often uses up many ids
            return False
        query = "SELECT count(*) FROM (SELECT 1 FROM vectors WHERE id > ? LIMIT ?)"
        return int(self._scalar(query, vector, tolerance + 1)) > tolerance

    def owners(self) -> list[int]:
        """For every vector filed under its record's namespace: the id of the record."""
        rows = self._db.execute(
            "SELECT record FROM vectors JOIN records ON records.id = record"
            " JOIN namespaces ON namespaces.id = space AND path = namespace"
        )
        return [record for (record,) in rows]

    def orphans(self) -> int:
        """The number of vectors without a record, or of a record without embedded texts."""
        embedded = "SELECT id FROM records WHERE fields IS NOT NULL"
        return int(self._scalar(f"SELECT count(*) FROM vectors WHERE record NOT IN ({embedded})"))

    def spaces(self) -> NDArray[np.int64]:
        """The id of every vector, and the number of its namespace: (n, 2)."""
        return np.asarray(
            self._db.execute(f"SELECT id, space FROM vectors WHERE {SOUND}").fetchall(), np.int64
        ).reshape(-1, 2)

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The vectors with these ids, in any order: (n, dims)."""
        blobs: list[bytes] = []
        for start in range(0, len(ids), _IDS_PER_QUERY):
            some_ids = ",".join(map(str, ids[start : start + _IDS_PER_QUERY]))
            blobs += [v for (v,) in self._db.execute(f"SELECT vector FROM vectors WHERE id IN ({some_ids})")]
        return _matrix(blobs)

    def damaged(self) -> int:
        """The number of vectors that GEMS cannot have written."""
        return int(self._scalar(f"SELECT count(*) FROM vectors WHERE NOT coalesce({SOUND}, 0)"))

    def has_odd_ids(self) -> bool:
        """Whether ids are larger than any that the file has given, or it has given more than it can have."""
        last = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'vectors'"
        query = f"SELECT coalesce(max(id) > coalesce(({last}), 0), 0) FROM vectors"
        odd = f"SELECT EXISTS (SELECT 1 FROM sqlite_sequence WHERE NOT ({_SOUND_NUMBER.format('seq')}))"
        return bool(self._scalar(query)) or bool(self._scalar(odd))

    def mend(self) -> bool:
        """Delete what has an impossible id, and let new ids follow those that there are; whether anything changed."""
        before = self._db.total_changes
        number = _SOUND_NUMBER.format("id")
        for table in ("vectors", "removed"):
            self._db.execute(f"DELETE FROM {table} WHERE NOT ({number} AND id > 0)")
        self._db.execute("DELETE FROM removed WHERE typeof(vector) <> 'integer'")
        for table in ("records", "vectors", "removed"):
            last = self._scalar(f"SELECT coalesce(max(id), 0) FROM {table}")
            numbers = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchall()
            if (not numbers and not last) or (len(numbers) == 1 and _is_sound(numbers[0][0], last)):
                continue
            self._db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            self._db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))
        return self._db.total_changes > before

    def _scalar(self, query: str, *values: Any) -> Any:
        return self._db.execute(query, values).fetchone()[0]


def _is_sound(number: Any, least: int) -> bool:
    return isinstance(number, int) and least <= number <= _MAX_NUMBER


def _matrix(blobs: Sequence[bytes]) -> NDArray[np.float32]:
    try:
        return np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), -1)
    except (ValueError, TypeError):  # another program has written the file
        raise InputError("the memory holds damaged vectors; gems memory reindex makes them again") from None
