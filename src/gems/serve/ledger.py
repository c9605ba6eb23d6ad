"""The accepted runs, in SQLite. A run is written here before its client gets a response, so that none is lost."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import ValidationError

from gems.graph.state import ImageRef, Outcome, Usage
from gems.runs.record import RunRecord
from gems.serve.ledger_file import LedgerFile
from gems.serve.refusals import ConflictError
from gems.serve.settings import AcceptedSettings

__all__ = ["DayUsage", "ErrorKind", "Ledger", "NewRun", "Run", "Status"]

Status = Literal["queued", "running", "waiting", "done", "failed", "cancelled"]
"""``waiting``: for a person's review. ``failed``: it ended with an error and without an image."""

ErrorKind = Literal["input", "refused", "backend"]

_FINAL: Final = ("done", "failed", "cancelled")

_SEPARATOR, _AFTER_SEPARATOR = "\n", "\x0b"
"""A line break, which no header holds, and the character after it."""

_FIGURES: Final = ("images", "chat_calls", "tokens", "cost")
"""What daily limits count."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to accept.

    Attributes:
        user: The user that the run belongs to.
        prompt: The checked prompt.
        settings: The settings of the run.
        reserved: The most that the run may use of what daily limits count.
        thread: The user's name for related runs; empty for a thread of its own.
    """

    user: str
    prompt: str
    settings: AcceptedSettings
    reserved: Mapping[str, float]
    thread: str = ""


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What a user's runs have used since midnight, UTC.

    Attributes:
        settled: Used by runs that have ended.
        reserved: Reserved for runs that have not ended.
        unfinished: Number of runs that have not ended.
    """

    settled: dict[str, float]
    reserved: dict[str, float]
    unfinished: int


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
    outcome: Outcome | None
    """The record's, also where the record itself is not read."""
    score: float
    """Like ``outcome``; 0 without a record."""
    error: str | None
    error_kind: ErrorKind | None
    request: str | None
    """A hash of the request that created the run."""
    cancel_requested: bool
    """Whether the run is to be ended before its next step."""

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in _FINAL


_COLUMNS: Final = tuple(Run.__dataclass_fields__)
_SHORT_RECORD: Final = (
    "CASE WHEN json_valid(record) THEN json_set(record, '$.attempts', json('[]'), '$.best', NULL, "
    "'$.requirements', json('[]'), '$.checks', json('[]')) END"
)
"""A record of few bytes, with what its run has spent and noted."""


class Ledger:
    """All runs of a service. Every method is one transaction, and is safe for threads.

    Args:
        path: The SQLite file, created if it does not exist.

    Raises:
        InputError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.file = LedgerFile(path)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def accept(
        self, runs: Sequence[NewRun], *, idempotency_key: str | None = None, request: str | None = None
    ) -> list[Run]:
        """Add the runs of one request: all of them or, after an error, none.

        Args:
            runs: The runs.
            idempotency_key: The idempotency key of the request, if it sent one.
            request: A hash of the request, which a second request with the same key must have.
        """
        names = [f"run-{uuid.uuid4().hex}" for _ in runs]
        with self.file.transaction() as db:
            for position, (name, run) in enumerate(zip(names, runs, strict=True)):
                values = {
                    "id": name,
                    "user": run.user,
                    "thread": run.thread or name,
                    "prompt": run.prompt,
                    "settings": run.settings.model_dump_json(exclude_none=True),
                    "status": "queued",
                    "created_at": time.time(),
                    "reserved": json.dumps(dict(run.reserved)),
                    "idempotency_key": _key_of_run(idempotency_key, position),
                    "request": request,
                }
                placeholders = ", ".join(f":{column}" for column in values)
                db.execute(f"INSERT INTO runs ({', '.join(values)}) VALUES ({placeholders})", values)  # noqa: S608
        return [self.run(name) for name in names]

    def get(self, user: str, run: str) -> Run | None:
        """A user's run. None if there is no such run, or it belongs to another user."""
        return self._find("user = ? AND id = ? AND deleted_at IS NULL", (user, run))

    def run(self, run: str) -> Run:
        """A run of any user.

        Raises:
            ConflictError: It was deleted.
        """
        rows = self.file.query(f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE id = ?", (run,))  # noqa: S608
        if not rows:
            raise ConflictError(f"{run} was deleted")
        return _run(rows[0])

    def by_key(self, user: str, idempotency_key: str) -> list[Run]:
        """The runs that a user's request with this key created, in order."""
        rows = self.file.query(
            f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE user = ? AND (idempotency_key = ? OR "  # noqa: S608
            "(idempotency_key > ? AND idempotency_key < ?)) ORDER BY sequence",
            (user, idempotency_key, f"{idempotency_key}{_SEPARATOR}", f"{idempotency_key}{_AFTER_SEPARATOR}"),
        )
        return [_run(row) for row in rows]

    def latest_of(self, user: str, thread: str) -> Run | None:
        """The latest run of a user's thread."""
        return self._find(
            "user = ? AND thread = ? AND deleted_at IS NULL ORDER BY sequence DESC LIMIT 1", (user, thread)
        )

    def page(self, user: str, *, before: int | None, limit: int) -> list[Run]:
        """A user's runs, the latest first, each record without what makes it long: its attempts, and their questions.

        Args:
            user: The user whose runs are listed.
            before: Only runs with a lower sequence number.
            limit: Maximum number of runs.
        """
        columns = ", ".join(_SHORT_RECORD if name == "record" else name for name in _COLUMNS)
        rows = self.file.query(
            f"SELECT {columns} FROM runs WHERE user = ? AND sequence < ? AND deleted_at IS NULL "  # noqa: S608
            "ORDER BY sequence DESC LIMIT ?",
            (user, before if before is not None else 2**62, limit),
        )
        return [_listed(row) for row in rows]

    def unfinished(self) -> list[tuple[str, str]]:
        """The user and the id of each run that a service which starts has to resume, in order."""
        rows = self.file.query("SELECT user, id FROM runs WHERE status IN ('queued', 'running') ORDER BY sequence")
        return [(user, run) for user, run in rows]

    def open_runs(self) -> set[str]:
        """The ids of all runs that have not ended."""
        return {run for (run,) in self.file.query("SELECT id FROM runs WHERE ended_at IS NULL")}

    def begin(self, run: str) -> Run | None:
        """A worker begins with the run, or resumes it. None if the run has ended."""
        is_open = self.file.update(
            "UPDATE runs SET status = 'running', started_at = coalesce(started_at, ?) "
            "WHERE id = ? AND status IN ('queued', 'running')",
            (time.time(), run),
        )
        return self.run(run) if is_open else None

    def park(self, run: str) -> None:
        """The run was interrupted, to be resumed later."""
        self.file.update("UPDATE runs SET status = 'queued' WHERE id = ? AND status = 'running'", (run,))

    def ask(self, run: str, review: Mapping[str, Any]) -> None:
        """The run waits for a person's review."""
        self.file.update(
            "UPDATE runs SET status = 'waiting', review = ?, answer = NULL WHERE id = ?", (json.dumps(review), run)
        )

    def answer(self, run: str, answer: Mapping[str, Any]) -> bool:
        """Keep a person's review for the run. False if the run was not waiting: only the first answer counts."""
        return self.file.update(
            "UPDATE runs SET status = 'queued', answer = ?, review = NULL WHERE id = ? AND status = 'waiting'",
            (json.dumps(answer), run),
        )

    def request_cancel(self, run: str) -> None:
        """Write down that the run is to be ended before its next step, whatever happens to the service."""
        self.file.update("UPDATE runs SET cancel_requested = 1 WHERE id = ? AND ended_at IS NULL", (run,))

    def end(
        self,
        run: str,
        status: Status,
        *,
        record: RunRecord | None = None,
        usage: Usage | None = None,
        cost: float = 0.0,
        images: Sequence[ImageRef] = (),
        error: str | None = None,
        error_kind: ErrorKind | None = None,
    ) -> bool:
        """The run ended. Its usage is charged in the same transaction, so that it is counted exactly once.

        Args:
            run: The run's id.
            status: The final status.
            record: The run's record, if there is one.
            usage: What the run used.
            cost: What that cost.
            images: The images that the run refers to.
            error: The error that ended the run.
            error_kind: Whose fault the error was.

        Returns:
            False if the run had ended before.
        """
        assert status in _FINAL
        usage, now = usage or Usage(), time.time()
        figures = {
            "images": usage.images,
            "chat_calls": usage.chat_calls,
            "tokens": usage.counted_tokens,
            "cost": cost,
        }
        values = {
            **figures,
            "status": status,
            "ended_at": now,
            "record": record.model_dump_json() if record is not None else None,
            "outcome": record.outcome if record is not None else None,
            "score": record.score if record is not None else 0.0,
            "error": error,
            "error_kind": error_kind,
            "reserved": "{}",
            "answer": None,
            "review": None,
        }
        assignments = ", ".join(f"{name} = :{name}" for name in values)
        with self.file.transaction() as db:
            [(user,)] = db.execute("SELECT user FROM runs WHERE id = ?", (run,)).fetchall()
            statement = f"UPDATE runs SET {assignments} WHERE id = :id AND ended_at IS NULL"  # noqa: S608
            if db.execute(statement, {**values, "id": run}).rowcount == 0:
                return False
            sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in figures)
            db.execute(
                f"INSERT INTO spending (user, day, {', '.join(figures)}) VALUES (?, ?, ?, ?, ?, ?) "  # noqa: S608
                f"ON CONFLICT (user, day) DO UPDATE SET {sums}",
                (user, _day(now), *figures.values()),
            )
            db.executemany(
                "INSERT OR IGNORE INTO images (run, user, sha256, ref) VALUES (?, ?, ?, ?)",
                [(run, user, ref.sha256, ref.model_dump_json()) for ref in images],
            )
        return True

    def used_today(self, user: str) -> DayUsage:
        """What a user's runs have used since midnight, UTC, and what is reserved for those that have not ended."""
        figures = ", ".join(_FIGURES)
        rows = self.file.query(f"SELECT {figures} FROM spending WHERE user = ? AND day = ?", (user, _day(time.time())))  # noqa: S608
        sums = ", ".join(f"coalesce(sum(reserved ->> '$.{name}'), 0)" for name in _FIGURES)
        [(unfinished, *reserved)] = self.file.query(
            f"SELECT count(*), {sums} FROM runs WHERE user = ? AND ended_at IS NULL",  # noqa: S608
            (user,),
        )
        settled = rows[0] if rows else [0] * len(_FIGURES)
        return DayUsage(
            dict(zip(_FIGURES, settled, strict=True)), dict(zip(_FIGURES, reserved, strict=True)), unfinished
        )

    def _find(self, condition: str, values: tuple[Any, ...]) -> Run | None:
        rows = self.file.query(f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE {condition}", values)  # noqa: S608
        return _run(rows[0]) if rows else None


def _key_of_run(idempotency_key: str | None, position: int) -> str | None:
    """The key of one run of a request; the column is unique."""
    if idempotency_key is None or position == 0:
        return idempotency_key
    return f"{idempotency_key}{_SEPARATOR}{position}"


def _day(seconds: float) -> str:
    """The day of a time, in UTC, as SQLite writes it."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _listed(row: tuple[Any, ...]) -> Run:
    """A run of a list, which no record of an older version keeps from being shown."""
    try:
        return _run(row)
    except ValidationError:
        place = _COLUMNS.index("record")
        return _run((*row[:place], None, *row[place + 1 :]))


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_COLUMNS, row, strict=True))
    assert values["status"] in get_args(Status)
    for name in ("answer", "review"):
        values[name] = json.loads(values[name]) if values[name] is not None else None
    values["settings"] = AcceptedSettings.model_validate_json(values["settings"])
    if values["record"] is not None:
        values["record"] = RunRecord.model_validate_json(values["record"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Run(**values)
