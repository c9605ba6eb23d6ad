"""PostgreSQL: connection pools, a lock for creating tables, and addresses without passwords."""

from __future__ import annotations

import atexit
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import SecretStr

from gems.errors import BackendError, InputError
from gems.extras import how_to_install
from gems.secrets import one_line, remember_secret

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = ["database_label", "database_pool", "is_database", "setup_lock", "without_password"]

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:/@?#\[\]]*)(:\d*)?")
"""A host name or address, and a port."""

_SETUP_LOCK: Final = 0x67656D73
"""Key of the advisory lock for creating tables."""
_SETUP_TRIES: Final = 600
"""Number of tries to take the lock, ten per second, before giving up."""

_MAX_CONNECTIONS: Final = 16
"""Connections per pool."""

_CONNECT_TIMEOUT: Final = 10
"""Seconds to wait for a connection."""


def without_password(url: str) -> str:
    """A database's address without anything that could be part of a password.

    If a special character of a password was not percent-encoded, it is unclear where the password ends, and only
    ``SCHEME://`` is left. A text that is not a URL is returned as it is, unless it holds ``password=``.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "" if re.search(r"\bpassword\s*=", url) else url
    scheme_only = f"{scheme}://"
    try:
        parts = urlsplit(f"x://{rest}")
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        return scheme_only
    login, _, hosts = parts.netloc.rpartition("@")
    is_ambiguous = "#" in rest or "@" in login + parts.path + parts.query
    if is_ambiguous or not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        return scheme_only
    user = login.partition(":")[0]
    harmless = [(name, value) for name, value in options if "pass" not in name.lower()]
    query = urlencode(harmless, quote_via=quote)
    return f"{scheme_only}{user}{'@' if user else ''}{hosts}{parts.path}{'?' if query else ''}{query}"


def is_database(location: str) -> bool:
    """Whether a location is a PostgreSQL database rather than a folder."""
    return location.startswith(("postgresql://", "postgres://"))


@contextmanager
def setup_lock(connection: Connection[DictRow]) -> Iterator[None]:
    """Let one process at a time create tables: two that open an empty database would both try.

    Polls instead of blocking: CREATE INDEX CONCURRENTLY waits for all running statements, and a blocked lock request
    is one.

    Raises:
        BackendError: Another process has held the lock for a minute.
    """
    for _ in range(_SETUP_TRIES):
        row = connection.execute("SELECT pg_try_advisory_lock(%s) AS acquired", (_SETUP_LOCK,)).fetchone()
        if row and row["acquired"]:
            break
        time.sleep(0.1)
    else:
        raise BackendError("another process has been setting up the database for a minute; try again later")
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_SETUP_LOCK,))


def database_pool(url: str) -> ConnectionPool[Connection[DictRow]]:
    """A pool of connections with the settings that LangGraph needs.

    Raises:
        InputError: The package is missing, the address cannot be read, or the server refuses the connection.
        BackendError: The server cannot be reached.
    """
    try:
        from psycopg.rows import dict_row
        from psycopg_pool import ConnectionPool
    except ImportError as error:
        raise InputError(f"a memory in PostgreSQL needs a package ({error}): {how_to_install('postgres')}") from error
    _check_connection(url)
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())  # retries of the pool do not concern the user
    pool: ConnectionPool[Connection[DictRow]] = ConnectionPool(
        url,
        min_size=0,
        max_size=_MAX_CONNECTIONS,
        timeout=_CONNECT_TIMEOUT,
        kwargs=kwargs,
        check=ConnectionPool.check_connection,  # replaces connections that a restarted server no longer knows
        open=True,
    )
    atexit.register(pool.close)
    return pool


def _check_connection(url: str) -> None:
    """Connect once: the error of a pool would only say that it has waited."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        if without_password(url).endswith("://"):
            raise psycopg.ProgrammingError
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its message would quote the part that cannot be read, maybe a password
        raise InputError(
            "cannot read the address of the memory: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special "
            "characters of the password as %2F for /, %40 for @, %23 for #, %25 for %"
        ) from None
    for password in (parameters.get("password"), os.environ.get("PGPASSWORD")):
        remember_secret(SecretStr(str(password)) if password else None)
    try:
        psycopg.connect(url, connect_timeout=_CONNECT_TIMEOUT).close()
    except psycopg.OperationalError as error:
        # The error has no code that tells a refused login from an unreachable server.
        text = one_line(error)
        if any(word in text for word in ("authentication", "password", "does not exist")):
            hint = "; give its password in GEMS_MEMORY, --memory or PGPASSWORD" if "no password" in text else ""
            raise InputError(f"{database_label(url)} refused the connection: {text}{hint}") from None
        raise BackendError(f"cannot reach the memory {database_label(url)}: {text}", retryable=False) from None


def database_label(url: str) -> str:
    """A description of a database for error messages, without its login."""
    from psycopg.conninfo import conninfo_to_dict

    parameters = conninfo_to_dict(url)
    name, host = parameters.get("dbname") or parameters.get("user"), parameters.get("host") or "this machine"
    return f"PostgreSQL database {name} on {host}"
