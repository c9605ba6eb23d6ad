"""LangGraph's two query languages of a store: filters on values, and match conditions on namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.store.base import MatchCondition

__all__ = ["fits", "matches"]


def fits(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins (or ends) with a path, in which "*" stands for any label."""
    path = condition.path
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(pattern in ("*", label) for pattern, label in zip(path, part, strict=True))


def matches(value: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    """Whether a value meets all conditions: equality, nested objects and lists, and the $ operators."""
    return all(_equals(value.get(name), condition) for name, condition in conditions.items())


def _equals(value: Any, condition: Any) -> bool:
    if isinstance(condition, dict):
        if any(name.startswith("$") for name in condition):
            return all(_compare(value, operator, operand) for operator, operand in condition.items())
        return isinstance(value, dict) and all(_equals(value.get(name), c) for name, c in condition.items())
    if isinstance(condition, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(condition)
            and all(_equals(v, c) for v, c in zip(value, condition, strict=True))
        )
    return bool(value == condition)


def _compare(value: Any, operator: str, operand: Any) -> bool:
    if operator == "$eq":
        return bool(value == operand)
    if operator == "$ne":
        return bool(value != operand)
    if operator not in ("$gt", "$gte", "$lt", "$lte"):
        raise ValueError(f"unknown filter operator {operator!r}; choose from: $eq, $ne, $gt, $gte, $lt, $lte")
    b = float(operand)
    try:
        a = float(value)
    except (TypeError, ValueError):  # a missing value, or one that is not a number, fails every comparison
        return False
    return {"$gt": a > b, "$gte": a >= b, "$lt": a < b, "$lte": a <= b}[operator]
