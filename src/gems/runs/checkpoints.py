"""Checkpoints on disk: a SQLite file on this machine, or a PostgreSQL database for several machines."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver

from gems.database import database_pool, setup_lock
from gems.errors import BackendError, InputError
from gems.secrets import one_line

__all__ = ["open_checkpoints"]


@contextmanager
def open_checkpoints(path: Path, database: str | None = None) -> Iterator[BaseCheckpointSaver[Any]]:
    """A checkpointer: in a PostgreSQL database, if there is one, else on a SQLite file, made if it is not there.

    Raises:
        InputError: The file is not a database, or is damaged; or the server does not let us in.
        BackendError: The file cannot be written to: the disk is full, or another process holds it; or the server
            cannot be reached.
    """
    with _postgres(database) if database else _sqlite(path) as saver:
        yield saver


@contextmanager
def _postgres(where: str) -> Iterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres import PostgresSaver

    with database_pool(where) as pool:
        import psycopg  # there, or there were no pool

        try:
            with pool.connection() as connection, setup_lock(connection):
                PostgresSaver(connection).setup()
            yield PostgresSaver(pool)
        except psycopg.Error as error:
            raise BackendError(f"cannot write checkpoints to PostgreSQL: {one_line(error)}", retryable=False) from None


@contextmanager
def _sqlite(path: Path) -> Iterator[SqliteSaver]:
    try:
        connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode this loses nothing when the process is killed, and saves a disk flush at every step.
        connection.execute("PRAGMA synchronous = NORMAL")
        saver = SqliteSaver(connection)
        saver.setup()
    except sqlite3.OperationalError as error:
        raise _unwritable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"cannot use the checkpoint file {path} ({error}); move it away and try again") from error
    try:
        yield saver
    except sqlite3.OperationalError as error:
        raise _unwritable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"the checkpoint file {path} is damaged ({error}); move it away and try again") from error
    finally:
        connection.close()


def _unwritable(path: Path, error: sqlite3.OperationalError) -> BackendError:
    """The disk or the lock is at fault, the file is sound: moving it away would lose runs that can still go on."""
    return BackendError(
        f"cannot write the checkpoint file {path} ({error}); see that the disk has room and no other process holds it, "
        "then go on with the same run",
        retryable=False,
    )
