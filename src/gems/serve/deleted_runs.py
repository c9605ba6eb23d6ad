"""The runs in the ledger that are being deleted, and the images that nothing else in it refers to."""

from __future__ import annotations

import time

from gems.graph.state import ImageRef
from gems.serve.ledger_file import LedgerFile

__all__ = ["DeletedRuns"]


class DeletedRuns:
    """Marks runs as deleted, and drops them in the end. Every method is one transaction, and is safe for threads.

    Args:
        file: The ledger's file.
    """

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def mark(self, run: str) -> None:
        """Mark a run that has ended. From now on, nobody sees it, and the idempotency key of its request is free."""
        self._mark("id = ?", run)

    def mark_older(self, ended_before: float) -> None:
        """Mark all runs that ended before a time, in seconds since 1970, as ``mark`` does."""
        self._mark("ended_at < ?", ended_before)

    def _mark(self, condition: str, value: str | float) -> None:
        """Mark the runs that meet a condition and have ended."""
        which = f"{condition} AND ended_at IS NOT NULL AND deleted_at IS NULL"
        with self._file.transaction() as db:
            keys = db.execute(
                f"SELECT user, idempotency_key FROM runs WHERE {which} AND idempotency_key IS NOT NULL",  # noqa: S608
                (value,),
            ).fetchall()
            db.execute(f"UPDATE runs SET deleted_at = ? WHERE {which}", (time.time(), value))  # noqa: S608
            # A request's runs share its key: some of them are no answer to a second request.
            for user, first in {(user, key.partition("\n")[0]) for user, key in keys}:
                db.execute(
                    "UPDATE runs SET idempotency_key = NULL WHERE user = ? AND "
                    "(idempotency_key = ? OR (idempotency_key > ? AND idempotency_key < ?))",
                    (user, first, f"{first}\n", f"{first}\x0b"),
                )

    def marked(self) -> list[tuple[str, str]]:
        """The user and the id of each marked run."""
        rows = self._file.query("SELECT user, id FROM runs WHERE deleted_at IS NOT NULL ORDER BY sequence")
        return [(user, run) for user, run in rows]

    def is_drawn_again(self, run: str) -> bool:
        """Whether a run with the same prompt is in progress: with the same seed, it makes the same images."""
        statement = (
            "SELECT 1 FROM runs AS deleted JOIN runs AS other USING (user, prompt) "
            "WHERE deleted.id = ? AND other.status = 'running' LIMIT 1"
        )
        return bool(self._file.query(statement, (run,)))

    def own_images(self, run: str) -> list[ImageRef]:
        """The images of a run that no other run which has ended refers to."""
        rows = self._file.query(
            "SELECT ref FROM images AS own WHERE run = ? AND NOT EXISTS (SELECT 1 FROM images AS other "
            "WHERE other.user = own.user AND other.sha256 = own.sha256 AND other.run != own.run)",
            (run,),
        )
        return [ImageRef.model_validate_json(ref) for (ref,) in rows]

    def unfinished_of(self, user: str) -> list[str]:
        """The ids of a user's runs that have not ended."""
        rows = self._file.query("SELECT id FROM runs WHERE user = ? AND ended_at IS NULL", (user,))
        return [run for (run,) in rows]

    def drop(self, run: str) -> None:
        """Remove a marked run from the ledger. What it used stays charged."""
        with self._file.transaction() as db:
            db.execute("DELETE FROM images WHERE run = ?", (run,))
            db.execute("DELETE FROM runs WHERE id = ? AND deleted_at IS NOT NULL", (run,))
