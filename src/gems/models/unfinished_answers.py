"""Reads what is complete in an answer that was cut off."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from langchain_core.messages import AIMessage
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel

from gems.models.endings import is_cut_off
from gems.models.lenient import is_broken_json, json_values
from gems.models.thoughts import answer_text

__all__ = ["may_lack_items", "read_whole_part", "repeats_itself"]

Schema = TypeVar("Schema", bound=BaseModel)


def read_whole_part(message: AIMessage, schema: type[Schema]) -> Schema | None:
    """The form in the complete part of an answer that was cut off; None if that part is too small.

    The value in which the answer was cut is left out, and repeated items of a list are dropped, since weak models may
    repeat themselves without end.
    """
    text = _unfinished_json(message)
    start = re.search(r"[{\[]", text)
    if start is None or not is_cut_off(message):
        return None
    try:
        return schema.model_validate(_complete_part(parse_partial_json(_until_fault(text[start.start() :]))))
    except (ValueError, RecursionError):  # a ValidationError is a ValueError
        return None


def _until_fault(text: str) -> str:
    """A text that begins with JSON, up to its end or first fault: behind that, the partial parser tries each one."""
    try:
        _, end = json.JSONDecoder(strict=False, parse_int=str).raw_decode(text)
    except json.JSONDecodeError as error:
        return text if error.msg.startswith("Unterminated string") else text[: error.pos + 1]
    return text[:end]


def repeats_itself(message: AIMessage) -> bool:
    """Whether an answer that was cut off contains an object twice, so that a longer answer would say no more."""
    objects = [json.dumps(value) for value in json_values(_unfinished_json(message))]  # the complete, inner ones
    return is_cut_off(message) and len(set(objects)) < len(objects)


def may_lack_items(message: AIMessage) -> bool:
    """Whether a form that was read from an answer may lack what the model did not come to.

    The arguments of a call that was cut off are closed by some servers, and by the packages of others.
    """
    return is_cut_off(message) and (bool(message.tool_calls) or is_broken_json(answer_text(message)))


def _unfinished_json(message: AIMessage) -> str:
    """The JSON of an answer that was cut off: its text without thoughts, or its unfinished tool call."""
    return answer_text(message) or next((call["args"] or "" for call in message.invalid_tool_calls), "")


def _complete_part(cut: Any) -> Any:
    """A JSON value without its last, innermost value, which may be incomplete; and without repeated items of lists."""
    if isinstance(cut, list):
        return list({json.dumps(item): item for item in cut[:-1]}.values())
    if not isinstance(cut, dict) or not cut:
        return None
    *before, (key, last) = cut.items()
    inner = _complete_part(last)
    return dict(before) if inner is None else {**dict(before), key: inner}
