"""JSON as RFC 8259 has it: the one place where texts that anybody may have written are read, and ours are written.

Python's own reader takes ``NaN``, ``Infinity`` and ``1e400``, and its writer writes them: no other program reads that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

__all__ = ["MAX_TEXT", "check_texts", "first_fault", "parse_json", "parse_model", "strict_json"]

_Model = TypeVar("_Model", bound=BaseModel)

_HALF_A_PAIR: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""What may be half of a surrogate pair, once it is decoded."""
_MAX_DIGITS: Final = 308
"""More digits than this are beyond every number of eight bytes."""
MAX_TEXT: Final = 100_000
"""Characters of a text in a record: no run writes as many, and models may be paid for every one that is read."""


def parse_json(
    text: str | bytes,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    parse_int: Callable[[str], int] | None = None,
) -> Any:
    """The content of a JSON text. Every number in it is finite, and every text can be encoded.

    Args:
        text: The text.
        object_pairs_hook: As for ``json.loads``.
        parse_int: As for ``json.loads``. Default: any integer that a float can hold.

    Raises:
        ValueError: It is not JSON, is nested too deeply for this process, or has a number that is none or not finite,
            or half of a surrogate pair.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        content = json.loads(
            text,
            object_pairs_hook=object_pairs_hook,
            parse_int=parse_int or _integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
        if _HALF_A_PAIR.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair in a text") from None
    return content


def check_texts(content: object) -> None:
    """Check that no text in a record, which may be somebody else's, is longer than a run writes any.

    Raises:
        ValueError: One is.
    """
    pending = [content]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if len(part) > MAX_TEXT:
                raise ValueError(f"it has a text of {len(part):,} characters; the limit is {MAX_TEXT:,}")
        elif isinstance(part, list | tuple):
            pending += part
        elif isinstance(part, Mapping):
            pending += [*part, *part.values()]


def parse_model(model: type[_Model], text: str | bytes) -> _Model:
    """The content of a JSON text that has a model's form.

    Raises:
        ValueError: As for ``parse_json``, or the content has another form; the message is one line.
    """
    parse_json(text)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """The first fault as one line, without what was read: the field's path and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    location = ".".join(map(str, first["loc"]))
    message = first["msg"].splitlines()[0].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def strict_json(content: Any, **options: Any) -> str:
    """Content as a JSON text that every program reads.

    Args:
        content: The content.
        options: As for ``json.dumps``.

    Raises:
        ValueError: A number in it is not finite.
    """
    return json.dumps(content, allow_nan=False, **options)


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number that is too large ({digits[:20]}...)")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"it has a number that is too large ({digits[:20]})")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is not JSON")
