"""Leases: one process at a time works on a run, even if a cluster has replaced a worker that is still alive."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
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


_SESSION: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END_SESSION: Final = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE pid = %(pid)s AND backend_start = %(backend_start)s"""
"""Ends a session and waits up to so many milliseconds until it has ended."""


class DatabaseLeases:
    """Leases for the processes of several machines: advisory locks in PostgreSQL.

    A lock ends with its database session. The server notices within half a minute that a machine has disappeared.

    Args:
        pool: Supplies the connection. If it breaks, as when the server is restarted, the pool supplies another, and
            the leases are acquired again, unless another process was faster. If the server has not noticed that, and
            still keeps the leases for the broken connection, its session is ended first.
    """

    def __init__(self, pool: ConnectionPool[Connection[DictRow]]) -> None:
        self._pool, self._lock = pool, threading.Lock()
        self._connection: Connection[DictRow] | None = None
        self._held: set[str] = set()
        self._session: DictRow | None = None
        """The database session of the connection."""

    def acquire(self, name: str) -> bool:
        """See ``Leases.acquire``."""
        with self._lock:
            is_held = self._query("SELECT pg_try_advisory_lock(%s) AS ours", (_number(name),))
            if is_held:
                self._held.add(name)
            return is_held

    def release(self, name: str) -> None:
        """See ``Leases.release``."""
        with self._lock:
            if name in self._held:
                self._held.remove(name)
                self._unlock(name)

    def holds(self, name: str) -> bool:
        """Whether this process still holds a lease that it has acquired.

        Raises:
            psycopg.Error: The database cannot be reached.
        """
        with self._lock:
            self._query("SELECT true AS ours", ())
            return name in self._held

    def close(self) -> None:
        """See ``Leases.close``."""
        if self._connection is not None:
            self._connection.close()
            self._pool.putconn(self._connection)
            self._connection = None

    def _unlock(self, name: str) -> None:
        import psycopg

        with suppress(psycopg.Error):  # a server that is down has forgotten it
            self._query("SELECT pg_advisory_unlock(%s) AS ours", (_number(name),))

    def _query(self, statement: str, values: tuple[int, ...]) -> bool:
        import psycopg

        try:
            return self._execute(statement, values)
        except psycopg.OperationalError:  # the server was restarted, for example
            if self._connection is not None:
                self._connection.close()
            return self._execute(statement, values)

    def _execute(self, statement: str, values: tuple[int, ...]) -> bool:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            lock = "SELECT pg_try_advisory_lock(%s) AS ours"
            self._held = {name for name in self._held if self._execute(lock, (_number(name),))}
        row = self._connection.execute(statement, values).fetchone()
        return bool(row and row["ours"])

    def _connect(self) -> Connection[DictRow]:
        if self._connection is not None:
            self._pool.putconn(self._connection)
            self._connection = None
        connection = self._pool.getconn()
        for setting, value in (("idle", "10"), ("interval", "5"), ("count", "3")):  # seconds, seconds, times
            connection.execute("SELECT set_config(%s, %s, false)", (f"tcp_keepalives_{setting}", value))
        if self._session is not None:
            connection.execute(_END_SESSION, self._session)
        self._session = connection.execute(_SESSION).fetchone()
        return connection


@contextmanager
def leased_in_database(database: str, name: str, refusal: str, stop: Callable[[str], None]) -> Iterator[None]:
    """Hold a lease in a PostgreSQL database for the duration of the block.

    A server that is restarted has forgotten its leases: this one is acquired again. If another process was faster, the
    work in the block is stopped, or both would pay for it.

    Args:
        database: The database's address.
        name: Names what is worked on.
        refusal: What is said if another process, of any machine, holds the lease.
        stop: Called, with the reason, to stop the work in the block.

    Raises:
        InputError: Another process holds it.
        BackendError: The database cannot be reached, or the lease was lost.
    """
    with database_pool(database) as pool, closing(DatabaseLeases(pool)) as leases:
        import psycopg  # installed, or there would be no pool

        try:
            is_held = leases.acquire(name)
        except psycopg.Error as error:
            raise BackendError(f"cannot use the PostgreSQL database: {one_line(error)}", retryable=False) from None
        if not is_held:
            raise InputError(refusal)
        is_over, is_lost = threading.Event(), threading.Event()

        def watch() -> None:
            while not is_lost.is_set() and not is_over.wait(_RETRY_SECONDS):
                with suppress(psycopg.Error):  # a server that is down gives the lease to nobody
                    if not leases.holds(name):
                        is_lost.set()
                        stop("the lease was lost")

        watcher = threading.Thread(target=watch, daemon=True, name="gems-lease")
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join(_RETRY_SECONDS)  # a query to a machine that has disappeared may hang
        if is_lost.is_set():
            raise BackendError(f"the PostgreSQL database has ended its sessions, and {refusal}", retryable=False)


def _number(name: str) -> int:
    """A number of 62 bits for a name: PostgreSQL's locks, and the bytes of a file, have signed ones of 64 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
