"""How long a busy server asks to wait: in headers, in fields of its error, or in words."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final

from gems.models.servers.error_texts import json_of_error, text_of

__all__ = ["name_wait", "retry_after", "wait_in"]

_MOST_READ: Final = 2**14
"""Bytes of an error that is no JSON in which a wait is looked for."""


def retry_after(headers: Mapping[str, str], body: bytes = b"") -> float:
    """Seconds that a server asks to wait before the next try; 0 if it asks for none.

    The header counts first, in either form (RFC 9110, 10.2.3); then what the error says; then when a limit that is
    used up is reset.
    """
    if seconds := _number(headers.get("retry-after-ms")) / 1000 or _of_header(headers.get("retry-after", "")):
        return seconds
    content = json_of_error(body)
    return wait_in(text_of(body[:_MOST_READ]) if content is None else content) or _until_reset(headers)


def name_wait(response: Any) -> None:
    """A hook of httpx: names the wait that an error states in the header, the only place where OpenAI's client looks.

    Args:
        response: An answer of httpx, or of the package that OpenAI's client uses.
    """
    is_named = not response.is_error or _of_header(response.headers.get("retry-after", ""))
    if not is_named and (seconds := retry_after(response.headers, response.read())):
        response.headers["retry-after"] = f"{seconds:.3f}"


def wait_in(error: object, depth: int = 6) -> float:
    """The longest wait in seconds that an error states, in a field or in words; 0 if it states none."""
    if isinstance(error, str):
        return max((_duration(match["time"]) for match in _WAIT.finditer(error[:_MOST_READ])), default=0.0)
    if not depth:
        return 0.0
    if isinstance(error, list):
        return _longest(wait_in(part, depth - 1) for part in error[:20])
    if isinstance(error, Mapping):
        return _longest(_of_field(str(name), value) or wait_in(value, depth - 1) for name, value in error.items())
    return 0.0


def _longest(waits: Iterable[float]) -> float:
    return max(waits, default=0.0)


def _of_header(value: str) -> float:
    if seconds := _number(value):
        return seconds
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _number(value: object) -> float:
    """A number that is more than 0, or a text of one; else 0."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return max(0.0, float(value))
    return 0.0


_FIELDS: Final = {
    "retrydelay": 1.0,  # Google's RetryInfo: "19.8s"
    "retryafter": 1.0,
    "retryafterseconds": 1.0,
    "retryaftersec": 1.0,
    "retryafterms": 0.001,
    "estimatedtime": 1.0,  # of Hugging Face, while it loads a model
}
"""Fields of errors that state a wait, and what their numbers count, in seconds."""


def _of_field(name: str, value: object) -> float:
    unit = _FIELDS.get(re.sub(r"[\W_]", "", name.lower()), 0.0)
    if not unit:
        return 0.0
    return _number(value) * unit or (_duration(value) if isinstance(value, str) else 0.0)


_UNITS: Final = {"ms": 0.001, "mil": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME: Final = (
    r"\d{1,9}(?:\.\d{1,9})? ?(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?![a-z])"
)
_WAIT: Final = re.compile(
    r"\b(?:try(?:ing)? (?:it )?again|retry(?:ing)?|wait)(?: your request| the request)?(?: in| after| for)?"
    rf"(?: about| at least)? (?P<time>{_TIME}(?:[ ,]{{0,2}}{_TIME}){{0,3}})",
    re.IGNORECASE,
)
"""Matches how servers say it: "Please try again in 1m26.4s", "Please retry after 21 seconds", "retry in 320ms"."""
_PART_OF_TIME: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>ms|mil|[smhd])", re.IGNORECASE)


def _duration(text: str) -> float:
    parts = _PART_OF_TIME.finditer(text[:100])
    return sum(float(part["number"]) * _UNITS[part["unit"].lower()] for part in parts)


_LATER_THAN: Final = 10**9
"""A number from here on is a time since 1970, in seconds or, a thousand times larger, in milliseconds."""


def _until_reset(headers: Mapping[str, str]) -> float:
    """Seconds until limits are reset of which headers say that nothing remains; each answer has the other ones too."""
    resets = {name.lower(): value for name, value in headers.items() if "ratelimit-reset" in name.lower()}
    return _longest(
        _time_left(value)
        for name, value in resets.items()
        if headers.get(name.replace("-reset", "-remaining"), "").strip() == "0"
    )


def _time_left(value: str) -> float:
    number = _number(value)
    if number > _LATER_THAN:
        return max(0.0, number / (1000 if number > _LATER_THAN * 100 else 1) - time.time())
    return number or _duration(value)
