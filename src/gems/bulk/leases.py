"""One prompt is worked on by one process at a time, also when a cluster takes a worker for dead that is not."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = ["DatabaseLeases", "FileLeases", "Leases", "held"]

_PATIENCE: Final = 1.0
"""Seconds between two looks at a lease that another process holds."""


class Leases(Protocol):
    """Hands out leases. They end with the process that holds them, however it ends."""

    def take(self, batch: str, index: int) -> bool:
        """Take a prompt's lease; tells whether it is ours."""
        ...

    def give_back(self, batch: str, index: int) -> None:
        """Give it back."""
        ...


@contextmanager
def held(leases: Leases, batch: str, index: int, stopped: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold a prompt's lease; waits until no other process does. Gives False if it was stopped over that."""
    while not (ours := leases.take(batch, index)) and not stopped():
        time.sleep(_PATIENCE)
    try:
        yield ours
    finally:
        if ours:
            leases.give_back(batch, index)


class FileLeases:
    """Locks on bytes of one file, for processes of one machine: byte N is the prompt at index N.

    Args:
        path: The file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, batch: str, index: int) -> bool:
        """See ``Leases.take``."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def give_back(self, batch: str, index: int) -> None:
        """See ``Leases.give_back``."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, index)


class DatabaseLeases:
    """PostgreSQL's advisory locks, for processes of many machines.

    They are a session's, and end with it. A machine that is lost without a word is noticed within half a minute.

    Args:
        pool: Where it takes its connection from, and another one if that breaks: its leases were lost with it then.
    """

    def __init__(self, pool: ConnectionPool[Connection[DictRow]]) -> None:
        self._pool, self._lock = pool, threading.Lock()
        self._connection: Connection[DictRow] | None = None

    def take(self, batch: str, index: int) -> bool:
        """See ``Leases.take``."""
        return self._ask("SELECT pg_try_advisory_lock(%s, %s) AS ours", batch, index)

    def give_back(self, batch: str, index: int) -> None:
        """See ``Leases.give_back``."""
        self._ask("SELECT pg_advisory_unlock(%s, %s) AS ours", batch, index)

    def _ask(self, statement: str, batch: str, index: int) -> bool:
        import psycopg

        key = (_signed(zlib.crc32(batch.encode())), index)
        with self._lock:
            try:
                return self._ask_once(statement, key)
            except psycopg.OperationalError:  # the server was started again, say
                return self._ask_once(statement, key)

    def _ask_once(self, statement: str, key: tuple[int, int]) -> bool:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        row = self._connection.execute(statement, key).fetchone()
        return bool(row and row["ours"])

    def _connect(self) -> Connection[DictRow]:
        if self._connection is not None:
            self._pool.putconn(self._connection)
        connection = self._pool.getconn()
        for setting, value in (("idle", "10"), ("interval", "5"), ("count", "3")):  # seconds, seconds, times
            connection.execute("SELECT set_config(%s, %s, false)", (f"tcp_keepalives_{setting}", value))
        return connection


def _signed(value: int) -> int:
    """32 bits as PostgreSQL's integers have them."""
    return value - 2**32 if value >= 2**31 else value
