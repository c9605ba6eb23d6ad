"""Filters of a store, and what they match: the same in every store."""

from __future__ import annotations

from typing import Any

__all__ = ["MATCHING_NUMBERS", "MATCHING_ROWS", "NUMBERS", "ROWS", "UNKNOWN_CONDITIONS"]

ROWS: list[dict[str, Any]] = [
    {"color": "red", "size": 1, "new": True, "tags": ["x"], "nested": {"deep": 4, "more": {"n": 1}}},
    {"color": "blue", "size": 2, "new": False, "tags": ["x", "y"], "nested": None},
    {"color": "red", "size": 3.5, "tags": [], "nested": {"deep": 5, "more": {"n": 1}}},
]

MATCHING_ROWS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [0, 1, 2]),
    ({"color": "red"}, [0, 2]),
    ({"color": {"$eq": "blue"}}, [1]),
    ({"color": {"$ne": "red"}}, [1]),
    ({"size": {"$gt": 1}}, [1, 2]),
    ({"size": {"$gte": 2}}, [1, 2]),
    ({"size": {"$lt": 3.5}}, [0, 1]),
    ({"size": {"$lte": 1}}, [0]),
    ({"size": {"$gte": 1, "$lt": 3}}, [0, 1]),
    ({"color": "red", "size": {"$gt": 1}}, [2]),
    ({"new": True}, [0]),
    ({"tags": ["x", "y"]}, [1]),
    ({"tags": []}, [2]),
    ({"missing": "x"}, []),
    ({"color": "green"}, []),
    ({"tags": {"$eq": ["x", "y"]}}, [1]),
    ({"nested": {"$eq": {"deep": 4, "more": {"n": 1}}}}, [0]),
    ({"nested": None}, [1]),
    ({"nested": {}}, [0, 2]),
    ({"nested": {"deep": {"$lt": 5}, "more": {"n": {"$gte": 1}}}}, [0]),
    ({"missing": None}, [0, 1, 2]),
    ({"missing": {"$ne": 1}}, [0, 1, 2]),
    ({"new": {"$ne": True}}, [1, 2]),
    ({"tags": ["x", {"$ne": "z"}]}, [1]),
    ({"color": ["red"]}, []),
]
"""Filters, and the numbers of the rows that they match."""

NUMBERS: list[float] = [9, 10, 100, -3, 2.5e3, 1e-7]

MATCHING_NUMBERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"$gt": 9}, [1, 2, 4]),
    ({"$lte": 9}, [0, 3, 5]),
    ({"$gt": -5, "$lt": 1}, [3, 5]),
    ({"$lt": float("inf")}, [0, 1, 2, 3, 4, 5]),
    ({"$gt": "10"}, [2, 4]),
]
"""Conditions, and which of the numbers they match."""

UNKNOWN_CONDITIONS: list[dict[str, Any]] = [
    {"$or": [{"n": 1}, {"n": 2}]},
    {"$and": [{"n": 1}]},
    {"$not": {"n": 1}},
    {"$eq": 1},
    {"n": 1, "$or": [{"n": 1}]},
    {"n": {"$in": [1, 2]}},
    {"n": {"$gte": 1, "$near": 2}},
    {"n": {"$gte": 1, "near": 2}},
    {"n": {"$or": [{"$gt": 1}, {"$lt": 0}]}},
    {"n": {"deep": {"$exists": True}}},
    {"n": {"deep": {"deeper": {"$regex": "x"}}}},
    {"n": [{"$in": [1]}]},
    {"n": [1, {"deep": [{"$in": [1]}]}]},
    {"n": {"$gt": "many"}},
    {"n": {"$gt": None}},
    {"n": {"$lt": [1]}},
    {"n": {"$lte": float("nan")}},
]
"""Filters that no store understands."""
