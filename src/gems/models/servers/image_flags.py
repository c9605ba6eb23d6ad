"""What an image server says of its filter: a black, blurred or exchanged image is not the one that was drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from gems.models.endings import finish_reason
from gems.models.lenient import field_name

__all__ = ["filter_reason", "is_flagged"]

_FILTERED: Final = frozenset(
    {"filtered", "is_filtered", "content_filtered", "nsfw_filtered", "safety_filtered", "censored", "is_censored"}
)
"""Names of what is true of an image that a server has withheld, blurred or exchanged."""
_FLAGGED: Final = frozenset(
    {"nsfw", "is_nsfw", "has_nsfw", "has_nsfw_concept", "has_nsfw_concepts", "nsfw_content", "nsfw_detected"}
    | {"nsfw_content_detected", "nsfw_concepts_detected", "contains_nsfw", "flagged", "unsafe", "is_unsafe"}
)
"""Names of what is true of an image that a filter has found something in; some servers hand it out all the same."""
_SAFE: Final = frozenset({"safe", "is_safe", "respect_moderation"})
_DEPTH: Final = 6


def filter_reason(answer: object) -> str:
    """Why an answer's image was not drawn or not handed out, in the server's word; empty if the answer does not say."""
    for name, value in _fields(answer):
        if name in _FILTERED and _is_true(value):
            return name
        is_ending = name == "finish_reason" and finish_reason(value) == "content_filter"
        if is_ending or (name == "block_reason" and isinstance(value, str) and value):
            return str(value)
    return ""


def is_flagged(answer: object) -> bool:
    """Whether an answer says that a filter has found something in its image."""
    return any(
        (name in _FLAGGED and _is_true(value)) or (name in _SAFE and value is False) for name, value in _fields(answer)
    )


def _fields(answer: object, depth: int = _DEPTH) -> Iterator[tuple[str, object]]:
    if isinstance(answer, Mapping) and depth:
        for key, value in answer.items():
            yield field_name(key), value
            yield from _fields(value, depth - 1)
    elif isinstance(answer, list) and depth and not (answer and isinstance(answer[0], (int, str))):
        for item in answer:
            yield from _fields(item, depth - 1)


def _is_true(value: object) -> bool:
    """Whether a flag is set, for all images if it is a list; some servers write it as a text or a number."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_true, value))
    return value is True or (type(value) is int and value == 1) or str(value).lower() == "true"
