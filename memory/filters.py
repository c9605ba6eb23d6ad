"""LangGraph's two query languages of a store: filters on values, and match conditions on namespaces."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, Final

from langgraph.store.base import MatchCondition

__all__ = ["ORDER", "check_filter", "fits", "matches"]

ORDER: Final = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
"""The operators that compare numbers."""
_OPERATORS: Final = ("$eq", "$ne", *ORDER)


def fits(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins (or ends) with a path, in which "*" stands for any label."""
    path = condition.path
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(pattern in ("*", label) for pattern, label in zip(path, part, strict=True))


def check_filter(conditions: Mapping[str, Any]) -> None:
    """Check a filter before any record is read, since one that is not understood would match nothing.

    Raises:
        ValueError: It holds an unknown operator, an operator where a field has to be, or compares with no number.
    """
    if not isinstance(conditions, Mapping):
        raise ValueError(f"a filter maps fields to conditions, and {conditions!r} does not")
    if operators := [str(name) for name in conditions if str(name).startswith("$")]:
        raise ValueError(
            f"a filter begins with fields, not with {operators[0]!r}: all conditions have to hold; for either of two, "
            "search twice"
        )
    for condition in conditions.values():
        _check_condition(condition)


def _check_condition(condition: Any) -> None:
    if isinstance(condition, list | tuple):
        for part in condition:
            _check_condition(part)
    elif isinstance(condition, Mapping):
        has_operators = any(str(name).startswith("$") for name in condition)
        for name, part in condition.items():
            if not has_operators:
                _check_condition(part)
            elif name not in _OPERATORS:
                raise ValueError(f"unknown filter operator {name!r}; choose from: {', '.join(_OPERATORS)}")
            elif name in ORDER:
                _check_number(name, part)


def _check_number(name: str, operand: Any) -> None:
    try:
        is_number = not math.isnan(float(operand))
    except (TypeError, ValueError, OverflowError):
        is_number = False
    if not is_number:
        raise ValueError(f"{name} compares with a number, not with {operand!r}")


def matches(value: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    """Whether a value meets all conditions: equality, nested objects and lists, and the $ operators."""
    return all(_equals(value.get(name), condition) for name, condition in conditions.items())


def _equals(value: Any, condition: Any) -> bool:
    if isinstance(condition, Mapping):
        if any(name.startswith("$") for name in condition):
            return all(_compare(value, name, operand) for name, operand in condition.items())
        return isinstance(value, dict) and all(_equals(value.get(name), c) for name, c in condition.items())
    if isinstance(condition, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(condition)
            and all(_equals(v, c) for v, c in zip(value, condition, strict=True))
        )
    return bool(value == condition)


def _compare(value: Any, name: str, operand: Any) -> bool:
    if name == "$eq":
        return bool(value == operand)
    if name == "$ne":
        return bool(value != operand)
    try:
        return bool(ORDER[name](float(value), float(operand)))
    except (TypeError, ValueError, OverflowError):  # a missing value, or no number, fails every comparison
        return False
