"""The runs that were accepted, in SQLite: a run is in here before its client hears of it, so that none is lost."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from gems.errors import InputError
from gems.graph.state import Usage

__all__ = ["Ledger", "Run", "Status"]

Status = Literal["queued", "running", "waiting", "done", "failed", "cancelled"]
"""``waiting``: for a person's review. ``failed``: it ended with an error and without an image."""

ENDED: Final = ("done", "failed", "cancelled")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    thread TEXT NOT NULL,
    prompt TEXT NOT NULL,
    settings TEXT NOT NULL,
    status TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
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
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One accepted run, as it stands."""

    sequence: int
    id: str
    user: str
    thread: str
    prompt: str
    settings: dict[str, Any]
    status: Status
    created: float
    started: float | None
    ended: float | None
    answer: dict[str, Any] | None
    """A person's review that is still to be followed."""
    review: dict[str, Any] | None
    """What a person is asked, while it waits."""
    record: dict[str, Any] | None
    """See ``gems.runs.record.run_record``; once it ended."""
    error: str | None
    error_kind: str | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing will come of it any more."""
        return self.status in ENDED


_FIELDS: Final = tuple(Run.__dataclass_fields__)
_JSON: Final = ("settings", "answer", "review", "record")


class Ledger:
    """All runs of a service. Every method is one transaction, and may be called by any thread.

    Raises:
        InputError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            # FULL: an accepted run outlives the machine's power, not only this process.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"cannot keep runs in {path} ({error}); set GEMS_HOME to a folder with room") from error
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def accept(
        self,
        user: str,
        thread: str,
        prompt: str,
        settings: Mapping[str, Any],
        reserved: Mapping[str, int],
        idempotency_key: str | None,
    ) -> Run:
        """Write a new run down."""
        name = f"run-{uuid.uuid4().hex}"
        with self._lock:
            self._db.execute(
                "INSERT INTO runs (id, user, thread, prompt, settings, status, created, reserved, idempotency_key) "
                "VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?)",
                (
                    name,
                    user,
                    thread or name,
                    prompt,
                    json.dumps(settings),
                    time.time(),
                    json.dumps(reserved),
                    idempotency_key,
                ),
            )
            return self._one("id = ?", (name,))

    def get(self, user: str, run: str) -> Run | None:
        """A user's run; nobody else's."""
        return self._find("user = ? AND id = ?", (user, run))

    def run(self, run: str) -> Run:
        """A run, whoever it belongs to."""
        with self._lock:
            return self._one("id = ?", (run,))

    def by_key(self, user: str, idempotency_key: str) -> Run | None:
        """The run that a user's request with this key began."""
        return self._find("user = ? AND idempotency_key = ?", (user, idempotency_key))

    def latest_of(self, user: str, thread: str) -> Run | None:
        """The latest run of a user's thread."""
        return self._find("user = ? AND thread = ? ORDER BY sequence DESC LIMIT 1", (user, thread))

    def page(self, user: str, *, before: int | None, limit: int) -> list[Run]:
        """A user's runs, the latest first, without their records."""
        columns = ", ".join("NULL" if name == "record" else name for name in _FIELDS)
        with self._lock:
            rows = self._db.execute(
                f"SELECT {columns} FROM runs WHERE user = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?",  # noqa: S608
                (user, before if before is not None else 2**62, limit),
            ).fetchall()
        return [_run(row) for row in rows]

    def unfinished(self) -> list[str]:
        """Runs that a service which starts has to go on with, in their order."""
        with self._lock:
            return [
                row[0]
                for row in self._db.execute(
                    "SELECT id FROM runs WHERE status IN ('queued', 'running') ORDER BY sequence"
                )
            ]

    def begin(self, run: str) -> Run:
        """It is at work now."""
        with self._lock:
            self._db.execute(
                "UPDATE runs SET status = 'running', started = coalesce(started, ?) WHERE id = ?", (time.time(), run)
            )
            return self._one("id = ?", (run,))

    def park(self, run: str) -> None:
        """It was stopped at a checkpoint, and goes on when the service is there again."""
        with self._lock:
            self._db.execute("UPDATE runs SET status = 'queued' WHERE id = ? AND status = 'running'", (run,))

    def ask(self, run: str, review: Mapping[str, Any]) -> None:
        """It waits for a person."""
        with self._lock:
            self._db.execute(
                "UPDATE runs SET status = 'waiting', review = ?, answer = NULL WHERE id = ?", (json.dumps(review), run)
            )

    def answer(self, run: str, answer: Mapping[str, Any]) -> bool:
        """A person has answered. False if nobody was waiting: an answer counts once."""
        with self._lock:
            done = self._db.execute(
                "UPDATE runs SET status = 'queued', answer = ?, review = NULL WHERE id = ? AND status = 'waiting'",
                (json.dumps(answer), run),
            )
            return done.rowcount == 1

    def cancel_queued(self, run: str) -> bool:
        """It is not to begin. False if it has begun."""
        with self._lock:
            done = self._db.execute(
                "UPDATE runs SET status = 'cancelled', ended = ?, reserved = '{}' WHERE id = ? AND status = 'queued' "
                "AND started IS NULL",
                (time.time(), run),
            )
            return done.rowcount == 1

    def end(
        self,
        run: str,
        status: Status,
        *,
        record: Mapping[str, Any] | None = None,
        usage: Usage | None = None,
        error: str | None = None,
        error_kind: str | None = None,
    ) -> None:
        """It ended; what it spent is written down with it, in one stroke, so that it is charged once."""
        assert status in ENDED
        spent = usage or Usage()
        with self._lock:
            self._db.execute(
                "UPDATE runs SET status = ?, ended = ?, record = ?, images = ?, chat_calls = ?, tokens = ?, error = ?, "
                "error_kind = ?, reserved = '{}', answer = NULL, review = NULL WHERE id = ?",
                (
                    status,
                    time.time(),
                    json.dumps(record) if record is not None else None,
                    spent.images,
                    spent.chat_calls,
                    spent.tokens,
                    error,
                    error_kind,
                    run,
                ),
            )

    def spent_today(self, user: str) -> dict[str, int]:
        """What a user's runs have spent since midnight, UTC, and what those in flight may still spend."""
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        with self._lock:
            row = self._db.execute(
                "SELECT coalesce(sum(images), 0), coalesce(sum(chat_calls), 0), coalesce(sum(tokens), 0) "
                "FROM runs WHERE user = ? AND (ended >= ? OR ended IS NULL)",
                (user, midnight),
            ).fetchone()
            reserved = self._db.execute(
                "SELECT reserved FROM runs WHERE user = ? AND ended IS NULL", (user,)
            ).fetchall()
        total = dict(zip(("images", "chat_calls", "tokens"), map(int, row), strict=True))
        for (text,) in reserved:
            for name, amount in json.loads(text).items():
                total[name] += amount
        return total

    def _find(self, where: str, values: tuple[Any, ...]) -> Run | None:
        with self._lock:
            row = self._db.execute(f"SELECT {', '.join(_FIELDS)} FROM runs WHERE {where}", values).fetchone()  # noqa: S608
        return _run(row) if row else None

    def _one(self, where: str, values: tuple[Any, ...]) -> Run:
        """The lock is held."""
        row = self._db.execute(f"SELECT {', '.join(_FIELDS)} FROM runs WHERE {where}", values).fetchone()  # noqa: S608
        return _run(row)


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_FIELDS, row, strict=True))
    for name in _JSON:
        values[name] = json.loads(values[name]) if values[name] is not None else None
    assert values["status"] in get_args(Status)
    return Run(**values)
