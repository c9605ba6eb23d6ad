"""Opens the store at a location: a folder on this machine, or a PostgreSQL database that many machines share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings
from langgraph.store.base import BaseStore

from gems.database import database_label, database_pool, is_database, setup_lock, without_password
from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.memory.embedder import embedder_fingerprint
from gems.memory.experience import EXPERIENCES
from gems.memory.trajectory import namespace
from gems.paths import home
from gems.secrets import one_line

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import DictRow
    from psycopg_pool import ConnectionPool

__all__ = ["database_of", "has_no_index", "memory_location", "open_store", "without_password"]

_ABOUT: Final = ("gems", "about")
"""Namespace of notes about the store itself."""
_CONNECTION_STRING: Final = re.compile(r"\b(host|dbname|password)\s*=")
"""Matches a connection string of psycopg's other form, which is not the name of a folder."""


def memory_location(context: GemsContext) -> str | None:
    """The location of the memory: from the settings, else from ``GEMS_MEMORY``; None means ``$GEMS_HOME/memory``."""
    from_environment = os.environ.get("GEMS_MEMORY")
    from_settings = context.memory_url.get_secret_value() if context.memory_url else ""
    # A run's record holds no password. If the environment names the same database, take the password from there.
    if from_environment and from_settings in ("", without_password(from_environment)):
        return from_environment
    return from_settings or None


def database_of(context: GemsContext) -> str | None:
    """The database that holds the memory, and with it the checkpoints; None if the memory is off or in a folder."""
    location = memory_location(context) if context.memory else None
    return location if location is not None and is_database(location) else None


def has_no_index(store: BaseStore, user: str) -> bool:
    """Whether a store keeps a user's experiences but cannot find them by meaning, so that none is ever recalled.

    A LangGraph store without an index ignores a query: its results have no score.
    """
    items = store.search(namespace(user, EXPERIENCES), query="an image", limit=1)
    return any(item.score is None for item in items)


def open_store(location: str | None, embedder: Embeddings) -> BaseStore:
    """The store at a location, created if it does not exist.

    In PostgreSQL this is LangGraph's ``PostgresStore`` with pgvector, which compares all vectors of a namespace.

    Args:
        location: A folder, or ``postgresql://USER@HOST/DATABASE``; None for ``$GEMS_HOME/memory``.
        embedder: Turns text into vectors. A store is bound to the embedder that first wrote to it.

    Raises:
        InputError: The location cannot be used, or another embedder wrote the store.
        BackendError: The server cannot be reached.
    """
    if location is not None and is_database(location):
        pool = database_pool(location)
        try:
            return _open_in(pool, embedder, location)
        except BaseException:
            pool.close()
            raise
    if location is not None and _CONNECTION_STRING.search(location):
        raise InputError("give the database as an address, postgresql://USER@HOST/DATABASE")
    if location is not None and "://" in location:
        scheme = location.partition("://")[0]
        raise InputError(f"cannot keep memory at {scheme}://: give a folder, or postgresql://USER@HOST/DATABASE")
    from gems.memory.store import FaissStore

    return FaissStore(Path(location).expanduser() if location else home() / "memory", embedder=embedder)


def _open_in(pool: ConnectionPool[Connection[DictRow]], embedder: Embeddings, url: str) -> BaseStore:
    import psycopg
    from langgraph.store.postgres import PostgresStore

    from gems.memory.database_store import DatabaseStore

    dims = len(embedder.embed_query("how long is a vector?"))
    # Exact search within a user's namespace: an approximate index over all users would miss most records of one user.
    index: Any = {"dims": dims, "embed": embedder, "fields": ["prompt"], "ann_index_config": {"kind": "flat"}}
    try:
        with pool.connection() as connection, setup_lock(connection):
            store = PostgresStore(connection, index=index)
            store.setup()
            _bind(store, embedder, url)
            _check_dims(connection, dims, url)
    except psycopg.Error as error:
        hint = ""
        if isinstance(error, psycopg.errors.FeatureNotSupported | psycopg.errors.UndefinedFile):
            hint = "; install pgvector on the server (Debian: postgresql-NN-pgvector)"
        elif isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = "; let an administrator run CREATE EXTENSION vector in it, and grant this user CREATE"
        raise InputError(f"cannot keep memory in {database_label(url)}: {one_line(error)}{hint}") from None
    return DatabaseStore(pool, index=index)


def _bind(store: BaseStore, embedder: Embeddings, url: str) -> None:
    """Bind a new database to this embedder, and refuse one that is bound to another."""
    from gems.memory.bound_embedder import needs_probe, probe_of, same_embedder

    fingerprint = embedder_fingerprint(embedder)
    probe = probe_of(embedder) if needs_probe(embedder) else None
    note = store.get(_ABOUT, "embedder")
    stored = note.value if note else {}
    if stored.get("fingerprint", fingerprint) != fingerprint:
        raise InputError(
            f"{database_label(url)} was written with the embedder {stored['fingerprint']}, not {fingerprint}: "
            "use that embedder or another database"
        )
    if probe and stored.get("probe") and not same_embedder(stored["probe"], probe):
        raise InputError(
            f"{database_label(url)} was written with another embedder, which was called {fingerprint} too but makes "
            "other vectors: use that embedder or another database"
        )
    if note is None or (probe and not stored.get("probe")):
        store.put(_ABOUT, "embedder", {"fingerprint": fingerprint} | ({"probe": probe} if probe else {}), index=False)


def _check_dims(connection: Connection[DictRow], dims: int, url: str) -> None:
    """Refuse a database in which another program keeps vectors of other dimensions."""
    row = connection.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'store_vectors'::regclass AND attname = 'embedding'"
    ).fetchone()
    stored_dims = row["atttypmod"] if row else dims
    if stored_dims != dims:
        raise InputError(
            f"{database_label(url)} holds vectors of {stored_dims} dimensions, not {dims}: use another database"
        )
