"""Leases: one process at a time works on a run, even if a cluster has replaced a worker that is still alive."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from gems.database import database_pool
from gems.errors import BackendError, InputError
from gems.secrets import one_line

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = ["DatabaseLeases", "FileLeases", "Leases", "all_returned", "hold_lease", "leased_in_database"]

_RETRY_SECONDS: Final = 1.0
"""Seconds between two attempts to acquire a lease that another process holds."""


class Leases(Protocol):
    """Leases on runs. A lease ends with the process that holds it, however the process ends."""

    def acquire(self, name: str) -> bool:
        """Try to acquire a run's lease. Returns whether this process holds it now.

        Args:
            name: Names the run, among those of all batches.
        """
        ...

    def release(self, name: str) -> None:
        """Release a run's lease."""
        ...

    def close(self) -> None:
        """Release all leases."""
        ...


@contextmanager
def hold_lease(leases: Leases, name: str, is_stopped: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold a run's lease for the block, after waiting until no other process holds it.

    Yields:
        Whether the lease is held; False if ``is_stopped`` ended the wait.
    """
    while not (is_held := leases.acquire(name)) and not is_stopped():
        time.sleep(_RETRY_SECONDS)
    try:
        yield is_held
    finally:
        if is_held:
            leases.release(name)


class FileLeases:
    """Leases for the processes of one machine: locks on the bytes of a file, one byte for each run.

    Args:
        path: The file. It is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def acquire(self, name: str) -> bool:
        """See ``Leases.acquire``."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _number(name))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def release(self, name: str) -> None:
        """See ``Leases.release``."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _number(name))

    def close(self) -> None:
        """See ``Leases.close``."""
        os.close(self._file)


def all_returned(path: Path, seconds: float) -> bool:
    """Wait until no other process holds any lease in a file. Returns whether it came to that in time."""
    if not path.exists():
        return True
    deadline, descriptor = time.monotonic() + seconds, os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # all bytes
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_RETRY_SECONDS / 10)
            else:
                return True
    finally:
        os.close(descriptor)


class DatabaseLeases:
    """Leases for the processes of several machines: advisory locks in PostgreSQL.

    A lock ends with its database session. The server notices within half a minute that a machine has disappeared.

    Args:
        pool: Supplies the connection. If the connection breaks, its leases are lost, and the pool supplies another.
    """

    def __init__(self, pool: ConnectionPool[Connection[DictRow]]) -> None:
        self._pool, self._lock = pool, threading.Lock()
        self._connection: Connection[DictRow] | None = None

    def acquire(self, name: str) -> bool:
        """See ``Leases.acquire``."""
        return self._query("SELECT pg_try_advisory_lock(%s) AS ours", name)

    def release(self, name: str) -> None:
        """See ``Leases.release``."""
        self._query("SELECT pg_advisory_unlock(%s) AS ours", name)

    def close(self) -> None:
        """See ``Leases.close``."""
        if self._connection is not None:
            self._connection.close()
            self._pool.putconn(self._connection)
            self._connection = None

    def _query(self, statement: str, name: str) -> bool:
        import psycopg

        key = (_number(name),)
        with self._lock:
            try:
                return self._execute(statement, key)
            except psycopg.OperationalError:  # the server was restarted, for example
                return self._execute(statement, key)

    def _execute(self, statement: str, key: tuple[int]) -> bool:
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


@contextmanager
def leased_in_database(database: str, name: str, refusal: str) -> Iterator[None]:
    """Hold a lease in a PostgreSQL database for the duration of the block.

    Args:
        database: The database's address.
        name: Names what is worked on.
        refusal: What is said if another process, of any machine, holds the lease.

    Raises:
        InputError: Another process holds it.
        BackendError: The database cannot be reached.
    """
    with database_pool(database) as pool, closing(DatabaseLeases(pool)) as leases:
        import psycopg  # installed, or there would be no pool

        try:
            is_held = leases.acquire(name)
        except psycopg.Error as error:
            raise BackendError(f"cannot use the PostgreSQL database: {one_line(error)}", retryable=False) from None
        if not is_held:
            raise InputError(refusal)
        yield


def _number(name: str) -> int:
    """A number of 62 bits for a name: PostgreSQL's locks, and the bytes of a file, have signed ones of 64 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
