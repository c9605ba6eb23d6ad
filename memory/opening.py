"""The store behind a place: a folder on this machine, or a PostgreSQL database that many machines share."""

from __future__ import annotations

import atexit
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore
from pydantic import SecretStr

from gems.graph.context import GemsContext, without_password
from gems.graph.errors import BackendError, InputError
from gems.memory.embedder import embedder_fingerprint
from gems.memory.home import home
from gems.models.secrets import one_line, remember_secret

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = [
    "database_of",
    "database_pool",
    "is_database",
    "memory_place",
    "open_store",
    "setting_up",
    "without_password",
]

_ABOUT: Final = ("gems", "about")
_SETTING_UP: Final = 0x67656D73
"""Of an advisory lock: two processes that open an empty database would both make its tables."""
_LARGEST_POOL: Final = 16
_CONNECTION: Final = re.compile(r"\b(host|dbname|password)\s*=")
"""How psycopg's other way of naming a database looks: no folder is meant."""
_LONGEST_WAIT: Final = 10.0
"""Seconds until a server that has gone is given up."""


def memory_place(context: GemsContext) -> str | None:
    """Where these settings keep the memory: their own place, or ``GEMS_MEMORY``'s; None: ``$GEMS_HOME/memory``."""
    named = os.environ.get("GEMS_MEMORY")
    given = context.memory_url.get_secret_value() if context.memory_url else ""
    # A run's record holds no password: where the environment names the same database, it has it.
    return named if named and given in ("", without_password(named)) else given or None


def database_of(context: GemsContext) -> str | None:
    """The database that these settings keep the memory in, and with it the checkpoints; None if it is a folder."""
    where = memory_place(context) if context.memory else None
    return where if where is not None and is_database(where) else None


def is_database(where: str) -> bool:
    """Whether a place is a PostgreSQL database rather than a folder."""
    return where.startswith(("postgresql://", "postgres://"))


def open_store(where: str | None, embedder: Embeddings) -> BaseStore:
    """The store in a place, made if it is not there.

    In PostgreSQL this is LangGraph's ``PostgresStore`` with pgvector, which compares all vectors of a namespace.

    Args:
        where: A folder, or ``postgresql://USER@HOST/DATABASE``; None: ``$GEMS_HOME/memory``.
        embedder: What its vectors are made with; a store is bound to the one that first wrote to it.

    Raises:
        InputError: The place cannot be used, or was written with another embedder.
        BackendError: The server cannot be reached.
    """
    if where is None or not is_database(where):
        if where is not None and _CONNECTION.search(where):
            raise InputError("write the database as an address, postgresql://USER@HOST/DATABASE")
        if where is not None and "://" in where:
            scheme = where.partition("://")[0]
            raise InputError(f"there is no memory in {scheme}://: give a folder, or postgresql://USER@HOST/DATABASE")
        from gems.memory.store import FaissStore

        return FaissStore(Path(where).expanduser() if where else home() / "memory", embedder=embedder)
    pool = database_pool(where)
    try:
        return _open_in(pool, embedder, where)
    except BaseException:
        pool.close()
        raise


def _open_in(pool: ConnectionPool[Connection[DictRow]], embedder: Embeddings, where: str) -> BaseStore:
    import psycopg
    from langgraph.store.postgres import PostgresStore

    from gems.memory.postgres import DatabaseStore

    dims = len(embedder.embed_query("how long is a vector?"))
    # Exact within a user's namespace: an approximate index over all users would miss most of one user's records.
    index: Any = {"dims": dims, "embed": embedder, "fields": ["prompt"], "ann_index_config": {"kind": "flat"}}
    try:
        with pool.connection() as connection, setting_up(connection):
            first = PostgresStore(connection, index=index)
            first.setup()
            _bind(first, embedder, where)
            _check_dims(connection, dims, where)
    except psycopg.Error as error:
        hint = ""
        if isinstance(error, psycopg.errors.FeatureNotSupported | psycopg.errors.UndefinedFile):
            hint = "; install pgvector on the server (Debian: postgresql-NN-pgvector)"
        elif isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = "; let an administrator run CREATE EXTENSION vector in it, and grant this user CREATE"
        raise InputError(f"cannot keep memory in {_shown(where)}: {one_line(error)}{hint}") from None
    return DatabaseStore(pool, index=index)


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
            raise InputError(f"{_shown(where)} does not let us in: {text}{hint}") from None
        raise BackendError(f"cannot reach the memory {_shown(where)}: {text}", retryable=False) from None
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


def _bind(store: BaseStore, embedder: Embeddings, where: str) -> None:
    """Refuse a database of another embedder."""
    mine = embedder_fingerprint(embedder)
    known = store.get(_ABOUT, "embedder")
    if known is None:
        store.put(_ABOUT, "embedder", {"fingerprint": mine}, index=False)
    elif known.value["fingerprint"] != mine:
        raise InputError(
            f"{_shown(where)} was written with the embedder {known.value['fingerprint']}, not {mine}: choose that one, "
            "or another database"
        )


def _check_dims(connection: Connection[DictRow], dims: int, where: str) -> None:
    """Another program's store may lie there."""
    row = connection.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'store_vectors'::regclass AND attname = 'embedding'"
    ).fetchone()
    there = row["atttypmod"] if row else dims
    if there != dims:
        raise InputError(f"{_shown(where)} holds vectors of {there} dimensions, not {dims}: choose another database")


def _shown(where: str) -> str:
    """The address as a person may see it."""
    from psycopg.conninfo import conninfo_to_dict

    known = conninfo_to_dict(where)
    return f"PostgreSQL database {known.get('dbname') or known.get('user')} on {known.get('host') or 'this machine'}"
