"""The store behind a place: a folder on this machine, or a PostgreSQL database that many machines share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore

from gems.database import database_label, database_pool, is_database, setting_up, without_password
from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.memory.embedder import embedder_fingerprint
from gems.paths import home
from gems.secrets import one_line

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = ["database_of", "memory_place", "open_store", "without_password"]

_ABOUT: Final = ("gems", "about")
_CONNECTION: Final = re.compile(r"\b(host|dbname|password)\s*=")
"""How psycopg's other way of naming a database looks: no folder is meant."""


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

    from gems.memory.database_store import DatabaseStore

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
        raise InputError(f"cannot keep memory in {database_label(where)}: {one_line(error)}{hint}") from None
    return DatabaseStore(pool, index=index)


def _bind(store: BaseStore, embedder: Embeddings, where: str) -> None:
    """Refuse a database of another embedder."""
    mine = embedder_fingerprint(embedder)
    known = store.get(_ABOUT, "embedder")
    if known is None:
        store.put(_ABOUT, "embedder", {"fingerprint": mine}, index=False)
    elif known.value["fingerprint"] != mine:
        raise InputError(
            f"{database_label(where)} was written with the embedder {known.value['fingerprint']}, not {mine}: "
            "choose that one, or another database"
        )


def _check_dims(connection: Connection[DictRow], dims: int, where: str) -> None:
    """Another program's store may lie there."""
    row = connection.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'store_vectors'::regclass AND attname = 'embedding'"
    ).fetchone()
    there = row["atttypmod"] if row else dims
    if there != dims:
        raise InputError(
            f"{database_label(where)} holds vectors of {there} dimensions, not {dims}: choose another database"
        )
