"""What a SQLite file may hold before anything in it is read: it may be somebody else's, and a schema can compute."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from typing import Final

__all__ = ["check_schema"]

_COMPUTES: Final = re.compile(r"\b(?:virtual|generated|check|as)\b|\bdefault\b(?!\s*(?:''|null\b))", re.IGNORECASE)
"""Matches what lets a table compute what is read from it or written to it."""
_PLAIN_INDEX: Final = re.compile(
    r"create (?:unique )?index \w+ on \w+ \(\w+(?:, ?\w+)*\)(?: where \w+ is not null)?", re.IGNORECASE
)
"""Matches an index of columns."""


def check_schema(db: sqlite3.Connection, triggers: Iterable[str] = ()) -> None:
    """Refuse a database whose schema does more than hold values.

    Neither a view nor a trigger, nor a column that is computed, can reach beyond its file; but one that never ends
    would hold up whoever reads a row, and a few bytes of it could make a value of a gigabyte.

    Args:
        db: The database.
        triggers: The statements that create the triggers that it may have.

    Raises:
        sqlite3.DatabaseError: Its schema computes, or it is damaged.
    """
    own_triggers = {_words(trigger) for trigger in triggers}
    for kind, name, statement in db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
        text = _words(str(statement))
        is_plain = {
            "table": not _COMPUTES.search(text),
            "index": bool(_PLAIN_INDEX.fullmatch(text)),
            "trigger": text in own_triggers,
        }
        if not is_plain.get(kind, False):
            raise sqlite3.DatabaseError(f"its {kind} {str(name)[:80]!r} is not one that GEMS makes")


def _words(statement: str) -> str:
    return " ".join(statement.split()).rstrip("; ")
