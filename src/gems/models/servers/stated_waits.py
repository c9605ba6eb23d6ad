"""How long a busy server asks to wait: in headers, in fields of its error, or in words."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
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
    """The first wait in seconds that an error asks for, in a field or in words; 0 if it asks for none."""
    if isinstance(error, str):
        return _wait_in_words(error[:_MOST_READ])
    if not depth:
        return 0.0
    if isinstance(error, list):
        waits = (wait_in(part, depth - 1) for part in error[:20])
    elif isinstance(error, Mapping):
        waits = (_of_field(str(name), value) or wait_in(value, depth - 1) for name, value in error.items())
    else:
        return 0.0
    return next(filter(None, waits), 0.0)


def _of_header(value: str) -> float:
    return _seconds(_number(value)) or _until(value)


def _number(value: object) -> float:
    """A finite number that is more than 0, or a text of one; else 0."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return max(0.0, number) if math.isfinite(number := float(value)) else 0.0
    return 0.0


_LATER_THAN: Final = 10**9
"""A number from here on is a time since 1970, in seconds or, a thousand times larger, in milliseconds."""


def _seconds(number: float) -> float:
    """The wait that a number of seconds means, which may be a point in time."""
    if number <= _LATER_THAN:
        return number
    return max(0.0, number / (1000 if number > _LATER_THAN * 100 else 1) - time.time())


def _until(date: str) -> float:
    """Seconds until a date, as HTTP or ISO 8601 write it; 0 if it is none, or past."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        with suppress(ValueError, TypeError, OverflowError):
            return max(0.0, read(date.strip()).timestamp() - time.time())
    return 0.0


_FIELDS: Final = {
    "retrydelay": 0.0,  # Google's RetryInfo: "19.8s"
    "retryafter": 0.0,
    "retryafterseconds": 1.0,
    "retryaftersec": 1.0,
    "retryafterms": 0.001,
    "estimatedtime": 1.0,  # of Hugging Face, while it loads a model
}
"""Fields of errors that state a wait, and what their numbers count, in seconds; 0 if they do not say it."""
_MOST_SECONDS: Final = 1000
"""From here on, a number whose unit is not told counts milliseconds, as those of JavaScript do."""
_LONGEST: Final = 3600.0
"""Seconds beyond which a number in an error is hardly a wait: another try costs less than giving up for it."""


def _of_field(name: str, value: object) -> float:
    unit = _FIELDS.get(re.sub(r"[\W_]", "", name.lower()))
    if unit is None:
        return 0.0
    if not (number := _number(value)):
        return (_duration(value) or _until(value)) if isinstance(value, str) else 0.0
    unit = unit or (0.001 if _MOST_SECONDS <= number <= _LATER_THAN else 1.0)
    seconds = _seconds(number) if number > _LATER_THAN else number * unit
    return seconds if seconds <= _LONGEST else 0.0


_UNITS: Final = {"ms": 0.001, "mil": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART: Final = (
    r"\d{1,9}(?:\.\d{1,9})? ?(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?![a-z])"
)
_TIME: Final = rf"(?P<time>{_PART}(?:[ ,]{{0,2}}{_PART}){{0,3}})"
_REQUEST: Final = r"(?: (?:it|your request|the request))?"
_WAIT: Final = re.compile(
    rf"\b(?:(?:try{_REQUEST} again|retry){_REQUEST} (?:in|after)|(?P<wait>(?P<asks>please )?wait)(?: for)?)"
    rf"(?: about| at least)? {_TIME}",
    re.IGNORECASE,
)
"""Matches how servers say it: "Please try again in 1m26.4s", "Please retry after 21 seconds", "retry in 320ms"."""
_ASKS: Final = re.compile(r"(?:must|should|need to|have to|kindly) \Z", re.IGNORECASE)
"""Matches what stands before "wait", where it asks for one."""
_BEFORE_A_TRY: Final = re.compile(
    r" (?:and|then|before|to|until)(?: you| the| your| making| sending| another| next){0,3}"
    r" (?:re)?(?:try|send|request)",
    re.IGNORECASE,
)
_PAST: Final = re.compile(
    r" ?(?:was |were |has |have |is )?(?:exceeded|timed out|elapsed|expired|passed)", re.IGNORECASE
)
_IF_IT_LASTS: Final = re.compile(r"\b(?:if|should)\b[^.!?\n]{0,80}\b(?:persist|continu|goes on|keeps)", re.IGNORECASE)


def _wait_in_words(text: str) -> float:
    """The first wait that a text asks for; how long something took, or what to do if it lasts, is none."""
    for match in _WAIT.finditer(text):
        before, after = text[max(0, match.start() - 150) : match.start()], text[match.end() : match.end() + 60]
        is_asked = not match["wait"] or match["asks"] or _ASKS.search(before) or _BEFORE_A_TRY.match(after)
        sentence = re.split(r"[.!?\n]", before)[-1]
        if is_asked and not _PAST.match(after) and not _IF_IT_LASTS.search(sentence):
            return _duration(match["time"])
    return 0.0


_WHOLE_TIME: Final = re.compile(rf"\s*{_TIME}\s*", re.IGNORECASE)
_PART_OF_TIME: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>ms|mil|[smhd])", re.IGNORECASE)


def _duration(text: str) -> float:
    """The seconds of a text that is nothing but a length of time; 0 if it is none."""
    if not _WHOLE_TIME.fullmatch(text[:100]):
        return 0.0
    parts = _PART_OF_TIME.finditer(text[:100])
    return sum(float(part["number"]) * _UNITS[part["unit"].lower()] for part in parts)


def _until_reset(headers: Mapping[str, str]) -> float:
    """Seconds until limits are reset of which headers say that nothing remains; each answer has the other ones too."""
    resets = {name.lower(): value for name, value in headers.items() if "ratelimit-reset" in name.lower()}
    return max(
        (
            _duration(value) or _of_header(value)
            for name, value in resets.items()
            if headers.get(name.replace("-reset", "-remaining"), "").strip() == "0"
        ),
        default=0.0,
    )
