"""PostgreSQL: connection pools, set-up under a lock, and addresses that can be shown to a person."""

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
from gems.secrets import one_line, remember_secret

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = ["database_label", "database_pool", "is_database", "setting_up", "without_password"]


_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:/@?#\[\]]*)(:\d*)?")


def without_password(url: str) -> str:
    """A database's address as it may be written down: whatever could be part of a password is left out.

    Where a special character of a password was not percent-encoded, nobody can say where it ends: then nothing but
    ``SCHEME://`` is left. What is no URL is handed back.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "" if re.search(r"\bpassword\s*=", url) else url
    nothing = f"{scheme}://"
    try:
        parts = urlsplit(f"x://{rest}")
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        return nothing
    login, _, hosts = parts.netloc.rpartition("@")
    doubtful = "#" in rest or "@" in login + parts.path + parts.query
    if doubtful or not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        return nothing
    user = login.partition(":")[0]
    kept = urlencode([(name, value) for name, value in options if "pass" not in name.lower()], quote_via=quote)
    return f"{nothing}{user}{'@' if user else ''}{hosts}{parts.path}{'?' if kept else ''}{kept}"


_SETTING_UP: Final = 0x67656D73
"""Of an advisory lock: two processes that open an empty database would both make its tables."""


_LARGEST_POOL: Final = 16


_LONGEST_WAIT: Final = 10.0
"""Seconds until a server that has gone is given up."""


def is_database(where: str) -> bool:
    """Whether a place is a PostgreSQL database rather than a folder."""
    return where.startswith(("postgresql://", "postgres://"))


@contextmanager
def setting_up(connection: Connection[DictRow]) -> Iterator[None]:
    """Make tables alone: two processes that open an empty database would both make them.

    Asked for again and again, not waited for: PostgreSQL makes some indexes only once no other statement runs, and one
    that waits for a lock does.
    """
    for _ in range(600):
        row = connection.execute("SELECT pg_try_advisory_lock(%s) AS ours", (_SETTING_UP,)).fetchone()
        if row and row["ours"]:
            break
        time.sleep(0.1)
    else:
        raise BackendError("another process has been setting up the database for a minute; try again later")
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_SETTING_UP,))


def database_pool(where: str) -> ConnectionPool[Connection[DictRow]]:
    """Connections to a database, as LangGraph wants them.

    Raises:
        InputError: The package is missing, the address cannot be read, or the server does not let us in.
        BackendError: The server cannot be reached.
    """
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
        from psycopg.rows import dict_row
        from psycopg_pool import ConnectionPool
    except ImportError as error:
        raise InputError(
            f"a memory in PostgreSQL needs a package: pip install 'gems-graph[postgres]' ({error})"
        ) from error
    try:
        if without_password(where).endswith("://"):
            raise psycopg.ProgrammingError
        known = conninfo_to_dict(where)
    except psycopg.ProgrammingError:  # its own words show what it could not read, and that may be the password
        raise InputError(
            "cannot read the address of the memory: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, and what is "
            "special in a password as %2F for /, %40 for @, %23 for #, %25 for %"
        ) from None
    for password in (known.get("password"), os.environ.get("PGPASSWORD")):
        remember_secret(SecretStr(str(password)) if password else None)
    try:
        psycopg.connect(where, connect_timeout=10).close()  # a pool would only say that it has waited
    except psycopg.OperationalError as error:
        # The server's own words have a code; without one it was never reached, or refused at the door.
        text = one_line(error)
        if any(word in text for word in ("authentication", "password", "does not exist")):
            hint = "; give its password in GEMS_MEMORY, --memory or PGPASSWORD" if "no password" in text else ""
            raise InputError(f"{database_label(where)} does not let us in: {text}{hint}") from None
        raise BackendError(f"cannot reach the memory {database_label(where)}: {text}", retryable=False) from None
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())  # what it tries again is no news to a user
    pool: ConnectionPool[Connection[DictRow]] = ConnectionPool(
        where,
        min_size=0,
        max_size=_LARGEST_POOL,
        timeout=_LONGEST_WAIT,
        kwargs=kwargs,
        check=ConnectionPool.check_connection,  # one that a restarted server has forgotten is made again
        open=True,
    )
    atexit.register(pool.close)
    return pool


def database_label(where: str) -> str:
    """The address as a person may see it."""
    from psycopg.conninfo import conninfo_to_dict

    known = conninfo_to_dict(where)
    return f"PostgreSQL database {known.get('dbname') or known.get('user')} on {known.get('host') or 'this machine'}"
