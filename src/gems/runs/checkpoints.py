"""Checkpoints on disk: a SQLite file on this machine, or a PostgreSQL database for several machines."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

from gems.database import database_pool, setup_lock
from gems.errors import BackendError, InputError
from gems.foreign_tables import UNUSABLE, check_journal, check_schema
from gems.graph.state import checkpoint_types
from gems.paths import make_file
from gems.runs.checkpoint_checks import CheckedSaver
from gems.secrets import one_line

__all__ = ["delete_threads_without", "open_checkpoints", "read_checkpoints"]


_FORMS: Final = ("null", "bytes", "bytearray", "msgpack")


@contextmanager
def open_checkpoints(path: Path, database: str | None = None) -> Iterator[BaseCheckpointSaver[Any]]:
    """Open a checkpointer.

    Args:
        path: A SQLite file, created if it does not exist. Unused if there is a database.
        database: A PostgreSQL database.

    Raises:
        InputError: The file is not a database or is damaged, or the server refused the connection.
        BackendError: The file cannot be written to, because the disk is full or another process has locked it; or the
            server cannot be reached.
    """
    with _postgres(database) if database else _sqlite(path) as saver:
        yield saver


@contextmanager
def read_checkpoints(path: Path, database: str | None = None) -> Iterator[BaseCheckpointSaver[Any] | None]:
    """Open a checkpointer that is only read: nothing is locked or written, also while another process writes.

    Args:
        path: A SQLite file. If it does not exist, there are no checkpoints. Unused if there is a database.
        database: A PostgreSQL database.

    Raises:
        InputError: The file is not a database or is damaged, or the server refused the connection.
        BackendError: The server cannot be reached.
    """
    if database:
        with _postgres(database) as saver:
            yield saver
        return
    if not path.exists():
        yield None
        return
    wal = path.with_name(f"{path.name}-wal")
    # After a clean end, the file holds everything, and may be on a file system without locks or room.
    mode = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
    try:
        check_journal(path)
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, check_same_thread=False)
        with closing(connection):
            reader = _SqliteSaver(connection, path)
            reader.is_setup = True
            yield reader if _has_tables(connection) else None
    except UNUSABLE as error:
        raise InputError(f"the checkpoint file {path} cannot be read ({error})") from error


def _has_tables(connection: sqlite3.Connection) -> bool:
    """Whether there can be checkpoints: the process that made the file may have been killed at once."""
    try:
        check_schema(connection)
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:  # a file system on which nothing can be opened that was not closed well
        return False
    return {"checkpoints", "writes"} <= names


def delete_threads_without(saver: BaseCheckpointSaver[Any], threads_to_keep: AbstractSet[str]) -> None:
    """Delete all threads of a SQLite file but some.

    A process that was killed between the end of a run and the deletion of its checkpoints has left them behind.
    """
    if not isinstance(saver, SqliteSaver):
        return
    with saver.cursor(transaction=False) as cursor:
        threads = [name for (name,) in cursor.execute("SELECT DISTINCT thread_id FROM checkpoints")]
    for thread in threads:
        if thread not in threads_to_keep:
            saver.delete_thread(thread)


class _OwnForms(JsonPlusSerializer):
    """Reads the forms and types that this program writes, and no others.

    LangGraph's older forms build objects of other libraries, and so do types that nobody has listed, unless
    ``LANGGRAPH_STRICT_MSGPACK`` is set; a program that uses this package need not have set it.
    """

    def __init__(self) -> None:
        super().__init__(allowed_msgpack_modules=checkpoint_types())

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        # LangGraph asks of each error whether it is an array, of a NumPy that another thread may just be importing:
        # an import waits for that one.
        if "numpy" in sys.modules:
            import numpy  # noqa: F401, ICN001
        return super().dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] not in _FORMS:
            raise InputError(f"it has the form {data[0]!r}, which GEMS does not write")
        try:
            return super().loads_typed(data)
        except Exception as error:  # whatever a damaged text leads to
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"it is damaged: {reason}") from error


@contextmanager
def _postgres(database: str) -> Iterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres import PostgresSaver

    class Saver(CheckedSaver, PostgresSaver):
        pass

    with database_pool(database) as pool:
        import psycopg  # installed, or there would be no pool

        try:
            with pool.connection() as connection, setup_lock(connection):
                PostgresSaver(connection).setup()
            yield Saver(pool, serde=_OwnForms())
        except psycopg.Error as error:
            raise BackendError(f"cannot write checkpoints to PostgreSQL: {one_line(error)}", retryable=False) from None


class _SqliteSaver(CheckedSaver, SqliteSaver):
    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection, serde=_OwnForms())
        self.place, self.remedy = str(path), "move the file away"


@contextmanager
def _sqlite(path: Path) -> Iterator[SqliteSaver]:
    try:
        make_file(path)
        check_journal(path)
        connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        check_schema(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode a killed process loses nothing, and every step saves a disk flush.
        connection.execute("PRAGMA synchronous = NORMAL")
        saver = _SqliteSaver(connection, path)
        saver.setup()
    except sqlite3.OperationalError as error:
        raise _unwritable(path, error) from error
    except UNUSABLE as error:
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
    """The file is sound, the disk or the lock is not: do not suggest moving it away, which would lose its runs."""
    return BackendError(
        f"cannot write the checkpoint file {path} ({error}); check that the disk has free space and that no other "
        "process uses the file, then resume the run",
        retryable=False,
    )
