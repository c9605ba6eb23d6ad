"""The SQLite file of the service's ledger: its tables, and transactions that are safe for threads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gems.errors import InputError
from gems.foreign_tables import UNUSABLE, check_journal
from gems.paths import private_file

__all__ = ["LedgerFile"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    thread TEXT NOT NULL,
    prompt TEXT NOT NULL,
    settings TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    reserved TEXT NOT NULL,
    idempotency_key TEXT,
    answer TEXT,
    review TEXT,
    record TEXT,
    images INTEGER NOT NULL DEFAULT 0,
    chat_calls INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    error_kind TEXT,
    UNIQUE (user, idempotency_key)
);
CREATE INDEX IF NOT EXISTS runs_by_user ON runs (user, sequence);
CREATE INDEX IF NOT EXISTS runs_by_status ON runs (status, sequence);
CREATE INDEX IF NOT EXISTS unfinished_by_user ON runs (user) WHERE ended_at IS NULL;
"""

_ADDED_COLUMNS: Final = {
    "request": "TEXT",
    "cost": "REAL NOT NULL DEFAULT 0",
    "cancel_requested": "INTEGER NOT NULL DEFAULT 0",
    "deleted_at": "REAL",
    "outcome": "TEXT",
    "score": "REAL NOT NULL DEFAULT 0",
}
"""Columns that files of version 0.1.0 do not have."""

_OUTCOMES: Final = """
UPDATE runs SET outcome = record ->> '$.outcome', score = coalesce(record ->> '$.score', 0) WHERE record IS NOT NULL;
"""
"""Fills the columns that a list of runs shows in place of the records."""

_SPENDING_TABLE: Final = """
CREATE TABLE spending (
    user TEXT NOT NULL,
    day TEXT NOT NULL,
    images INTEGER NOT NULL,
    chat_calls INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    cost REAL NOT NULL,
    PRIMARY KEY (user, day)
);
INSERT INTO spending
    SELECT user, date(ended_at, 'unixepoch'), sum(images), sum(chat_calls), sum(tokens), sum(cost)
    FROM runs WHERE ended_at IS NOT NULL GROUP BY 1, 2;
"""
"""What each user's runs used, by the day in UTC on which they ended. It outlives the runs, which can be deleted."""

_IMAGES_TABLE: Final = """
CREATE TABLE images (
    run TEXT NOT NULL,
    user TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    ref TEXT NOT NULL,
    PRIMARY KEY (run, sha256)
);
CREATE INDEX images_by_hash ON images (user, sha256);
INSERT OR IGNORE INTO images
    SELECT runs.id, runs.user, attempt.value ->> '$.image.sha256', attempt.value -> '$.image'
    FROM runs, json_each(runs.record, '$.attempts') AS attempt WHERE runs.record IS NOT NULL;
"""
"""The images that runs which ended refer to."""


class LedgerFile:
    """One connection to the file, which is created if it does not exist.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._lock, self._in_transaction = threading.RLock(), False
        try:
            private_file(path)
            check_journal(path)
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            # FULL: an accepted run survives a power failure, not only the process's death.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            self._add_what_is_new()
        except (OSError, *UNUSABLE) as error:
            raise InputError(
                f"cannot store runs in {path} ({error}); set GEMS_HOME to a writable folder with free space"
            ) from error

    def _add_what_is_new(self) -> None:
        columns = {row[1] for row in self._db.execute("PRAGMA table_info(runs)")}
        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        script = [f"ALTER TABLE runs ADD COLUMN {n} {kind};" for n, kind in _ADDED_COLUMNS.items() if n not in columns]
        script += [] if "outcome" in columns else [_OUTCOMES]
        script += [] if "spending" in tables else [_SPENDING_TABLE]
        script += [] if "images" in tables else [_IMAGES_TABLE]
        if script:
            self._db.executescript("\n".join(["BEGIN IMMEDIATE;", *script, "COMMIT;"]))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: on disk at its end, or rolled back as a whole. Inside another one, it is part of that."""
        with self._lock:
            if self._in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            self._in_transaction = True
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = False

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a SELECT."""
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    def update(self, statement: str, values: Sequence[Any] = ()) -> bool:
        """Execute one statement. Whether it changed exactly one row."""
        with self._lock:
            return self._db.execute(statement, values).rowcount == 1
