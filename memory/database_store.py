"""LangGraph's store in PostgreSQL, with one-line errors that say whether a retry may help."""

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
    """A ``PostgresStore`` that raises ``BackendError``, so that a node knows which errors are worth a retry."""

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations together.

        Raises:
            BackendError: The server cannot be reached, or refuses an operation.
        """
        try:
            return super().batch(ops)
        except psycopg.Error as error:
            # The pool replaces a broken connection at once. If it times out instead, the server is down: do not retry.
            retryable = isinstance(error, psycopg.OperationalError) and not isinstance(error, PoolTimeout)
            raise BackendError(f"the memory in PostgreSQL failed: {one_line(error)}", retryable=retryable) from None
