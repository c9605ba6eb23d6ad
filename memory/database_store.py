"""LangGraph's store in PostgreSQL, with errors that say in a line what became of the database."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from langgraph.store.base import Op, Result
from langgraph.store.postgres import PostgresStore
from psycopg_pool import PoolTimeout

from gems.errors import BackendError
from gems.secrets import one_line

__all__ = ["DatabaseStore"]


class DatabaseStore(PostgresStore):
    """A ``PostgresStore`` whose faults are backend errors: a node knows which of them are worth another try."""

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations together.

        Raises:
            BackendError: The server has gone, or refuses them.
        """
        try:
            return super().batch(ops)
        except psycopg.Error as error:
            # A connection that broke is made anew at once; a server that gives none for so long is gone.
            passing = isinstance(error, psycopg.OperationalError) and not isinstance(error, PoolTimeout)
            raise BackendError(f"the memory in PostgreSQL failed: {one_line(error)}", retryable=passing) from None
