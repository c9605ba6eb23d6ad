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
    from langgraph.runtime import RunControl
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

    A lock ends with its database session, and so when the server is restarted. This process notices within a second,
    and takes its leases again. The server notices within half a minute that a machine has disappeared.

    Args:
        pool: Supplies the connection, and another one if it breaks.
        on_loss: Called with the name of a lease that another process has taken in between.
    """

    def __init__(
        self, pool: ConnectionPool[Connection[DictRow]], on_loss: Callable[[str], None] = lambda name: None
    ) -> None:
        self._pool, self._on_loss, self._lock = pool, on_loss, threading.Lock()
        self._connection: Connection[DictRow] | None = None
        self._sessions: list[DictRow] = []
        """The database session that holds the locks, after those that this process has lost its connection to."""
        self._held, self._untaken = set[str](), set[str]()
        """The leases, and those among them whose locks have ended with an earlier session."""
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def acquire(self, name: str) -> bool:
        """See ``Leases.acquire``."""
        with self._lock:
            is_ours = self._query(_TRY_LOCK, _number(name))
            if is_ours:
                self._held.add(name)
                if not self._watcher.ident:
                    self._watcher.start()
        return is_ours

    def release(self, name: str) -> None:
        """See ``Leases.release``."""
        with self._lock:
            if name in self._held:
                self._held.discard(name)
                self._query("SELECT pg_advisory_unlock(%s) AS ours", _number(name))

    def close(self) -> None:
        """See ``Leases.close``."""
        self._closed.set()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._pool.putconn(self._connection)
                self._connection = None

    def _watch(self) -> None:
        import psycopg

        while not self._closed.wait(_RETRY_SECONDS):
            with self._lock, suppress(psycopg.Error):  # the server is away: it is asked again
                if not self._closed.is_set():
                    self._query("SELECT %s IS NOT NULL AS ours", 0)

    def _query(self, statement: str, value: int) -> bool:
        import psycopg

        try:
            return self._execute(statement, value)
        except psycopg.OperationalError:  # the server was restarted, for example
            return self._execute(statement, value)

    def _execute(self, statement: str, value: int) -> bool:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._sessions += self._connection.execute(_OWN_SESSION).fetchall()
            self._untaken = set(self._held)
        if self._untaken:
            self._take_again(self._connection)
        return _answer(self._connection, statement, value)

    def _connect(self) -> Connection[DictRow]:
        if self._connection is not None:
            self._pool.putconn(self._connection)
            self._connection = None
        connection = self._pool.getconn()
        for setting, value in (("idle", "10"), ("interval", "5"), ("count", "3")):  # seconds, seconds, times
            connection.execute("SELECT set_config(%s, %s, false)", (f"tcp_keepalives_{setting}", value))
        return connection

    def _take_again(self, connection: Connection[DictRow]) -> None:
        """Take the locks of an earlier session again, and tell which ones another process has taken."""
        for session in self._sessions[:-1]:  # only the connection may have broken
            connection.execute(_END_SESSION, session)
        self._sessions = self._sessions[-1:]
        deadline = time.monotonic() + _RETRY_SECONDS
        while self._untaken:
            name = min(self._untaken)
            is_ours = _answer(connection, _TRY_LOCK, _number(name))
            if not is_ours and time.monotonic() < deadline:  # a session that is ended takes a moment
                time.sleep(_RETRY_SECONDS / 10)
                continue
            self._untaken.discard(name)
            if not is_ours:
                self._held.discard(name)
                self._on_loss(name)


_TRY_LOCK: Final = "SELECT pg_try_advisory_lock(%s) AS ours"
_OWN_SESSION: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END_SESSION: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %(pid)s AND backend_start = %(backend_start)s"
)
"""Ends a session of this process's own, and no other one that has its number since."""


def _answer(connection: Connection[DictRow], statement: str, value: int) -> bool:
    row = connection.execute(statement, (value,)).fetchone()
    return bool(row and row["ours"])


@contextmanager
def leased_in_database(database: str, name: str, refusal: str, control: RunControl) -> Iterator[None]:
    """Hold a lease in a PostgreSQL database for the duration of the block.

    Args:
        database: The database's address.
        name: Names what is worked on.
        refusal: What is said if another process, of any machine, holds the lease.
        control: Asked to end the work at its next step if another process takes the lease meanwhile, which can happen
            when the database is restarted: what it does next would be paid twice.

    Raises:
        InputError: Another process holds it, or has taken it meanwhile.
        BackendError: The database cannot be reached.
    """
    is_lost = threading.Event()

    def stop(_: str) -> None:
        is_lost.set()
        control.request_drain("another process has taken the lease")

    with database_pool(database) as pool, closing(DatabaseLeases(pool, stop)) as leases:
        import psycopg  # installed, or there would be no pool

        try:
            is_held = leases.acquire(name)
        except psycopg.Error as error:
            raise BackendError(f"cannot use the PostgreSQL database: {one_line(error)}", retryable=False) from None
        if not is_held:
            raise InputError(refusal)
        yield
        if is_lost.is_set():
            raise InputError(f"the database was away, and meanwhile {refusal}")


def _number(name: str) -> int:
    """A number of 62 bits for a name: PostgreSQL's locks, and the bytes of a file, have signed ones of 64 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
