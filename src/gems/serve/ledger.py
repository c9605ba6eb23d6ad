"""The accepted runs, in SQLite. A run is written here before its client gets a response, so that none is lost."""

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
from gems.runs.record import RunRecord
from gems.serve.settings import AcceptedSettings

__all__ = ["ErrorKind", "Ledger", "Run", "Status"]

Status = Literal["queued", "running", "waiting", "done", "failed", "cancelled"]
"""``waiting``: for a person's review. ``failed``: it ended with an error and without an image."""

ErrorKind = Literal["input", "backend"]

_FINAL: Final = ("done", "failed", "cancelled")

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
"""


@dataclass(frozen=True, slots=True)
class Run:
    """An accepted run. Times are seconds since 1970."""

    sequence: int
    id: str
    user: str
    thread: str
    prompt: str
    settings: AcceptedSettings
    status: Status
    created_at: float
    started_at: float | None
    ended_at: float | None
    answer: dict[str, Any] | None
    """A person's ``Review`` that the run has not received yet."""
    review: dict[str, Any] | None
    """The question to a person, while the run waits."""
    record: RunRecord | None
    """The record of a run that ended. None if the run was cancelled before it began, or failed with an error."""
    error: str | None
    error_kind: ErrorKind | None

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in _FINAL


_COLUMNS: Final = tuple(Run.__dataclass_fields__)


class Ledger:
    """All runs of a service. Every method is one transaction, and is safe for threads.

    Args:
        path: The SQLite file, created if it does not exist.

    Raises:
        InputError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            # FULL: an accepted run survives a power failure, not only the process's death.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"cannot store runs in {path} ({error}); set GEMS_HOME to a writable folder with free space"
            ) from error
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
        settings: AcceptedSettings,
        reserved: Mapping[str, int],
        idempotency_key: str | None,
    ) -> Run:
        """Add a run.

        Args:
            user: The user that the run belongs to.
            thread: The user's name for related runs; empty for a thread of its own.
            prompt: The checked prompt.
            settings: The settings of the run.
            reserved: The most that the run may use, see ``max_usage``.
            idempotency_key: The idempotency key of the request, if it sent one.
        """
        name = f"run-{uuid.uuid4().hex}"
        values = {
            "id": name,
            "user": user,
            "thread": thread or name,
            "prompt": prompt,
            "settings": settings.model_dump_json(exclude_none=True),
            "status": "queued",
            "created_at": time.time(),
            "reserved": json.dumps(reserved),
            "idempotency_key": idempotency_key,
        }
        placeholders = ", ".join(f":{column}" for column in values)
        with self._lock:
            self._db.execute(f"INSERT INTO runs ({', '.join(values)}) VALUES ({placeholders})", values)  # noqa: S608
            return self._get(name)

    def get(self, user: str, run: str) -> Run | None:
        """A user's run. None if there is no such run, or it belongs to another user."""
        return self._find("user = ? AND id = ?", (user, run))

    def run(self, run: str) -> Run:
        """A run of any user."""
        with self._lock:
            return self._get(run)

    def by_key(self, user: str, idempotency_key: str) -> Run | None:
        """The run that a user's request with this key created."""
        return self._find("user = ? AND idempotency_key = ?", (user, idempotency_key))

    def latest_of(self, user: str, thread: str) -> Run | None:
        """The latest run of a user's thread."""
        return self._find("user = ? AND thread = ? ORDER BY sequence DESC LIMIT 1", (user, thread))

    def page(self, user: str, *, before: int | None, limit: int) -> list[Run]:
        """A user's runs, the latest first, without their records.

        Args:
            user: The user whose runs are listed.
            before: Only runs with a lower sequence number.
            limit: Maximum number of runs.
        """
        columns = ", ".join("NULL" if name == "record" else name for name in _COLUMNS)
        with self._lock:
            rows = self._db.execute(
                f"SELECT {columns} FROM runs WHERE user = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?",  # noqa: S608
                (user, before if before is not None else 2**62, limit),
            ).fetchall()
        return [_run(row) for row in rows]

    def unfinished(self) -> list[str]:
        """The ids of the runs that a service which starts has to resume, in order."""
        with self._lock:
            rows = self._db.execute("SELECT id FROM runs WHERE status IN ('queued', 'running') ORDER BY sequence")
            return [row[0] for row in rows]

    def begin(self, run: str) -> Run:
        """A worker begins with the run, or resumes it."""
        with self._lock:
            self._db.execute(
                "UPDATE runs SET status = 'running', started_at = coalesce(started_at, ?) WHERE id = ?",
                (time.time(), run),
            )
            return self._get(run)

    def park(self, run: str) -> None:
        """The run was stopped at a checkpoint, to be resumed when the service is started again."""
        self._update("UPDATE runs SET status = 'queued' WHERE id = ? AND status = 'running'", (run,))

    def ask(self, run: str, review: Mapping[str, Any]) -> None:
        """The run waits for a person's review."""
        self._update(
            "UPDATE runs SET status = 'waiting', review = ?, answer = NULL WHERE id = ?", (json.dumps(review), run)
        )

    def answer(self, run: str, answer: Mapping[str, Any]) -> bool:
        """Keep a person's review for the run. False if the run was not waiting: only the first answer counts."""
        return self._update(
            "UPDATE runs SET status = 'queued', answer = ?, review = NULL WHERE id = ? AND status = 'waiting'",
            (json.dumps(answer), run),
        )

    def cancel_queued(self, run: str) -> bool:
        """Cancel a run that has not begun. False if it has."""
        return self._update(
            "UPDATE runs SET status = 'cancelled', ended_at = ?, reserved = '{}' "
            "WHERE id = ? AND status = 'queued' AND started_at IS NULL",
            (time.time(), run),
        )

    def end(
        self,
        run: str,
        status: Status,
        *,
        record: RunRecord | None = None,
        usage: Usage | None = None,
        error: str | None = None,
        error_kind: ErrorKind | None = None,
    ) -> None:
        """The run ended. Its usage is written in the same statement, so that it is counted exactly once."""
        assert status in _FINAL
        usage = usage or Usage()
        self._update(
            "UPDATE runs SET status = ?, ended_at = ?, record = ?, images = ?, chat_calls = ?, tokens = ?, error = ?, "
            "error_kind = ?, reserved = '{}', answer = NULL, review = NULL WHERE id = ?",
            (
                status,
                time.time(),
                record.model_dump_json() if record is not None else None,
                usage.images,
                usage.chat_calls,
                usage.tokens,
                error,
                error_kind,
                run,
            ),
        )

    def used_today(self, user: str) -> dict[str, int]:
        """What a user's runs have used since midnight, UTC, with what is reserved for those that have not ended."""
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        with self._lock:
            row = self._db.execute(
                "SELECT coalesce(sum(images), 0), coalesce(sum(chat_calls), 0), coalesce(sum(tokens), 0) "
                "FROM runs WHERE user = ? AND (ended_at >= ? OR ended_at IS NULL)",
                (user, midnight),
            ).fetchone()
            reservations = self._db.execute(
                "SELECT reserved FROM runs WHERE user = ? AND ended_at IS NULL", (user,)
            ).fetchall()
        total = dict(zip(("images", "chat_calls", "tokens"), map(int, row), strict=True))
        for (text,) in reservations:
            for name, amount in json.loads(text).items():
                total[name] += amount
        return total

    def _update(self, statement: str, values: tuple[Any, ...]) -> bool:
        """Whether the statement changed the run."""
        with self._lock:
            return self._db.execute(statement, values).rowcount == 1

    def _find(self, condition: str, values: tuple[Any, ...]) -> Run | None:
        with self._lock:
            row = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE {condition}", values).fetchone()  # noqa: S608
        return _run(row) if row else None

    def _get(self, run: str) -> Run:
        """A run that exists. The caller holds the lock."""
        row = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE id = ?", (run,)).fetchone()  # noqa: S608
        return _run(row)


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_COLUMNS, row, strict=True))
    assert values["status"] in get_args(Status)
    for name in ("answer", "review"):
        values[name] = json.loads(values[name]) if values[name] is not None else None
    values["settings"] = AcceptedSettings.model_validate_json(values["settings"])
    if values["record"] is not None:
        values["record"] = RunRecord.model_validate_json(values["record"])
    return Run(**values)
