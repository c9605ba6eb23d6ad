"""One prompt is worked on by one process at a time, also when a cluster takes a worker for dead that is not."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow

__all__ = ["DatabaseLeases", "FileLeases", "Leases"]

_PATIENCE: Final = 1.0
"""Seconds between two looks at a lease that another process holds."""


class Leases(Protocol):
    """Hands out leases. They end with the process that holds them, however it ends."""

    def hold(self, batch: str, index: int) -> AbstractContextManager[None]:
        """Hold a prompt's lease; waits until no other process does."""
        ...


class FileLeases:
    """Locks on bytes of one file, for processes of one machine: byte N is the prompt at index N.

    Args:
        path: The file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    @contextmanager
    def hold(self, batch: str, index: int) -> Iterator[None]:
        """See ``Leases.hold``."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, index)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, index)


class DatabaseLeases:
    """PostgreSQL's advisory locks, for processes of many machines.

    Args:
        connection: Its own, in autocommit mode: the locks are the session's, and end with it.
    """

    def __init__(self, connection: Connection[DictRow]) -> None:
        self._connection, self._lock = connection, threading.Lock()

    @contextmanager
    def hold(self, batch: str, index: int) -> Iterator[None]:
        """See ``Leases.hold``."""
        key = (_signed(zlib.crc32(batch.encode())), index)
        while not self._ask("SELECT pg_try_advisory_lock(%s, %s) AS ours", key):
            time.sleep(_PATIENCE)
        try:
            yield
        finally:
            self._ask("SELECT pg_advisory_unlock(%s, %s) AS ours", key)

    def _ask(self, statement: str, key: tuple[int, int]) -> bool:
        with self._lock:
            row = self._connection.execute(statement, key).fetchone()
        return bool(row and row["ours"])


def _signed(value: int) -> int:
    """32 bits as PostgreSQL's integers have them."""
    return value - 2**32 if value >= 2**31 else value
