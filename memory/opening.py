"""The store behind a place: a folder on this machine, or a PostgreSQL database that many machines share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore
from pydantic import SecretStr

from gems.graph.context import GemsContext
from gems.graph.errors import BackendError, InputError
from gems.memory.embedder import embedder_fingerprint
from gems.memory.home import home
from gems.models.secrets import one_line, remember_secret

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = ["database_of", "database_pool", "is_database", "memory_place", "open_store"]

_ABOUT: Final = ("gems", "about")
_SETTING_UP: Final = 0x67656D73
"""Of an advisory lock: two processes that open an empty database would both make its tables."""
_LARGEST_POOL: Final = 16


def memory_place(context: GemsContext) -> str | None:
    """Where these settings keep the memory: their own place, or ``GEMS_MEMORY``'s; None: ``$GEMS_HOME/memory``."""
    given = context.memory_url.get_secret_value() if context.memory_url else ""
    return given or os.environ.get("GEMS_MEMORY") or None


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

    dims = len(embedder.embed_query("how long is a vector?"))
    # Exact within a user's namespace: an approximate index over all users would miss most of one user's records.
    index: Any = {"dims": dims, "embed": embedder, "fields": ["prompt"], "ann_index_config": {"kind": "flat"}}
    try:
        with pool.connection() as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (_SETTING_UP,))
            try:
                first = PostgresStore(connection, index=index)
                first.setup()
                _bind(first, embedder, where)
                _check_dims(connection, dims, where)
            finally:
                connection.execute("SELECT pg_advisory_unlock(%s)", (_SETTING_UP,))
    except psycopg.Error as error:
        hint = ""
        if isinstance(error, psycopg.errors.FeatureNotSupported | psycopg.errors.UndefinedFile):
            hint = "; install pgvector on the server (Debian: postgresql-NN-pgvector)"
        elif isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = "; let an administrator run CREATE EXTENSION vector in it, and grant this user CREATE"
        raise InputError(f"cannot keep memory in {_shown(where)}: {one_line(error)}{hint}") from None
    return PostgresStore(pool, index=index)


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
        if password := conninfo_to_dict(where).get("password"):
            remember_secret(SecretStr(str(password)))
        psycopg.connect(where, connect_timeout=10).close()  # a pool would only say that it has waited
    except psycopg.ProgrammingError as error:
        raise InputError(f"cannot read the address of the memory: {one_line(error)}") from None
    except psycopg.OperationalError as error:
        # The server's own words have a code; without one it was never reached, or refused at the door.
        text = one_line(error)
        if any(word in text for word in ("authentication", "password", "does not exist")):
            raise InputError(f"{_shown(where)} does not let us in: {text}") from None
        raise BackendError(f"cannot reach the memory {_shown(where)}: {text}", retryable=False) from None
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    return ConnectionPool(where, min_size=1, max_size=_LARGEST_POOL, kwargs=kwargs, open=True)


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
