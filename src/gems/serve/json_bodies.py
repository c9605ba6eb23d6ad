"""Reads JSON as strictly as all code behind it needs: what passes here breaks no parser, database or encoder later."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from gems.json_text import parse_json, strict_json

__all__ = ["clean_json"]

_MAX_DEPTH: Final = 32
_MAX_INTEGER: Final = 2**53
"""Larger integers are not exact in JSON (RFC 8259, section 6)."""


def clean_json(body: bytes) -> bytes:
    """The body with each field that is null left out, since null means that the client does not set the field.

    Raises:
        ValueError: The body is not JSON in UTF-8, or holds what JSON parsers disagree about (RFC 8259): a key twice,
            NaN, an infinite or inexact number, half of a surrogate pair, or deep nesting. The message says which.
    """
    try:
        content = parse_json(body, object_pairs_hook=_object, parse_int=_integer)
        _check_depth(content, _MAX_DEPTH)
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error.msg} (character {error.pos})") from None
    except ValueError as error:
        raise ValueError(f"the body {str(error).removeprefix('it ')}") from None
    return strict_json(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"it has the key {twice[:100]!a} twice in one object")
    return {name: value for name, value in pairs if value is not None}


def _integer(digits: str) -> int:
    # Compared by length first: converting many digits takes quadratic time, and Python refuses it.
    if len(digits) > 20 or abs(int(digits)) > _MAX_INTEGER:
        raise ValueError(f"it has an integer beyond 2^53: {digits[:20]}...")
    return int(digits)


def _check_depth(content: Any, depth: int) -> None:
    if isinstance(content, dict | list):
        if depth == 0:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        for part in content.values() if isinstance(content, dict) else content:
            _check_depth(part, depth - 1)
