"""What a SQLite file may hold before anything in it is read: it may be somebody else's.

A schema can compute, and a journal can name a file to be deleted.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["UNUSABLE", "check_journal", "check_schema"]

UNUSABLE: Final = (sqlite3.Error, UnicodeDecodeError)
"""What is raised about a file that cannot be used: SQLite quotes a damaged schema, which Python may not decode."""

_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
"""Begins a rollback journal, and ends one that names another file (sqlite.org/fileformat2.html)."""

_COMPUTES: Final = re.compile(r"\b(?:virtual|generated|check|as)\b|\bdefault\b(?!\s*(?:''|null\b))", re.IGNORECASE)
"""Matches what lets a table compute what is read from it or written to it."""
_PLAIN_INDEX: Final = re.compile(
    r"create (?:unique )?index \w+ on \w+ \(\w+(?:, ?\w+)*\)(?: where \w+ is not null)?", re.IGNORECASE
)
"""Matches an index of columns."""


def check_journal(file: Path) -> None:
    """Refuse a database whose rollback journal names another file, before SQLite opens it.

    Journals of transactions over several databases do so, and GEMS has none of these. Whoever opens such a database
    first rolls it back, and SQLite then deletes the file that the journal names, wherever it is.

    Args:
        file: The database, which need not exist.

    Raises:
        sqlite3.DatabaseError: The journal names another file, or is no file.
    """
    real = file.resolve()  # SQLite looks for the journal beside the file that a link leads to
    journal = real.with_name(f"{real.name}-journal")
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise sqlite3.DatabaseError(f"its journal cannot be read: {error.strerror}") from error
    try:
        end = os.fstat(descriptor).st_size - len(_JOURNAL_MAGIC)
        names_a_file = end > 0 and os.pread(descriptor, len(_JOURNAL_MAGIC), end) == _JOURNAL_MAGIC
    except OSError as error:  # it is a pipe or a folder
        raise sqlite3.DatabaseError(f"its journal cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if names_a_file:
        raise sqlite3.DatabaseError("its journal names another file, which SQLite would delete")


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
