"""Reads JSON as strictly as all code behind it needs: what passes here breaks no parser, database or encoder later."""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

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
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the body is not UTF-8 (byte {error.start})") from None
    try:
        content = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error.msg} (character {error.pos})") from None
    except RecursionError:
        raise _too_deep() from None
    _check(content, _MAX_DEPTH)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise ValueError(f"the body has the key {twice[:100]!a} twice in one object")
    return {name: value for name, value in pairs if value is not None}


def _integer(digits: str) -> int:
    # Compared by length first: converting many digits takes quadratic time, and Python refuses it.
    if len(digits) > 20 or abs(int(digits)) > _MAX_INTEGER:
        raise ValueError(f"the body has an integer beyond 2^53: {digits[:20]}...")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the body has a number that is too large: {digits[:20]}")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the body has {name}, which is not JSON")


def _check(content: Any, depth: int) -> None:
    """Check what the parser lets through: depth, and half surrogate pairs, which no encoder takes."""
    if isinstance(content, str) and not _is_encodable(content):
        raise ValueError("the body has half of a surrogate pair in a text")
    if isinstance(content, dict | list):
        if depth == 0:
            raise _too_deep()
        for part in [*content, *content.values()] if isinstance(content, dict) else content:
            _check(part, depth - 1)


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _too_deep() -> ValueError:
    return ValueError(f"the body is nested more than {_MAX_DEPTH} levels deep")
