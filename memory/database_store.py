"""LangGraph's store in PostgreSQL: one-line errors that say whether a retry may help, and filters as documented."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import psycopg
from langgraph.store.base import Op, Result, SearchOp
from langgraph.store.postgres import PostgresStore
from psycopg_pool import PoolTimeout

from gems.errors import BackendError
from gems.memory.filters import ORDER, check_filter
from gems.secrets import one_line

__all__ = ["DatabaseStore"]

_WHOLE: Final = "$whole"
"""Stands for a field's whole condition on the way through ``PostgresStore``, which would take it apart."""
_SQL_ORDER: Final = dict(zip(ORDER, (">", ">=", "<", "<="), strict=True))
_NUMBER: Final = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
"""Matches the text of a number, as a regular expression of PostgreSQL."""

_Sql = tuple[str, list[Any]]
"""A condition in SQL, and its parameters."""


class DatabaseStore(PostgresStore):
    """A ``PostgresStore`` that raises ``BackendError``, so that a node knows which errors are worth a retry.

    Its filters mean what they mean in LangGraph's own in-memory store: numbers are compared as numbers, nested objects
    and lists part by part.
    """

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations together.

        Raises:
            BackendError: The server cannot be reached, or refuses an operation.
            ValueError: A filter cannot be understood.
        """
        ops = [_with_whole_conditions(op) if isinstance(op, SearchOp) and op.filter else op for op in ops]
        try:
            return super().batch(ops)
        except psycopg.Error as error:
            # The pool replaces a broken connection at once. If it times out instead, the server is down: do not retry.
            retryable = isinstance(error, psycopg.OperationalError) and not isinstance(error, PoolTimeout)
            raise BackendError(f"the memory in PostgreSQL failed: {one_line(error)}", retryable=retryable) from None

    def _get_filter_condition(self, key: str, op: str, value: Any) -> _Sql:
        if op != _WHOLE:
            return super()._get_filter_condition(key, op, value)
        return _condition([key], value)


def _with_whole_conditions(op: SearchOp) -> SearchOp:
    conditions = op.filter or {}
    check_filter(conditions)
    return op._replace(filter={name: {_WHOLE: condition} for name, condition in conditions.items()})


def _condition(path: list[str], condition: Any) -> _Sql:
    """What ``filters.matches`` asks of the part of a value at a path, in SQL."""
    if isinstance(condition, Mapping) and any(name.startswith("$") for name in condition):
        return _all(_comparison(path, name, operand) for name, operand in condition.items())
    if isinstance(condition, Mapping):
        parts = (_condition([*path, name], part) for name, part in condition.items())
        return _all([("jsonb_typeof(value #> %s::text[]) = 'object'", [path]), *parts])
    if isinstance(condition, list | tuple):
        parts = (_condition([*path, str(number)], part) for number, part in enumerate(condition))
        is_array = "CASE WHEN jsonb_typeof(value #> %s::text[]) = 'array'"
        length = "THEN jsonb_array_length(value #> %s::text[]) = %s ELSE false END"
        return _all([(f"{is_array} {length}", [path, path, len(condition)]), *parts])
    return _comparison(path, "$eq", condition)


def _comparison(path: list[str], name: str, operand: Any) -> _Sql:
    if name in _SQL_ORDER:
        number = f"THEN (value #>> %s::text[])::numeric {_SQL_ORDER[name]} %s::numeric ELSE false END"
        return f"CASE WHEN value #>> %s::text[] ~ %s {number}", [path, _NUMBER, path, str(float(operand))]
    sign = "=" if name == "$eq" else "<>"
    return f"coalesce(value #> %s::text[], 'null'::jsonb) {sign} %s::jsonb", [path, json.dumps(operand)]


def _all(conditions: Iterable[_Sql]) -> _Sql:
    texts, parameters = [], list[Any]()
    for text, values in conditions:
        texts.append(text)
        parameters += values
    return f"({' AND '.join(texts)})", parameters
