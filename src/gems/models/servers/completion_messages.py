"""Messages and tool calls as chat servers really write them, in the form that OpenAI's have."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

from gems.models.lenient import without_half_characters

__all__ = ["REASONING_FIELD", "THOUGHT_FIELDS", "raw_message", "read_content", "read_message", "says_something"]

THOUGHT_FIELDS: Final = ("reasoning_content", "reasoning", "thinking", "reasoning_text", "reasoning_details")
"""Names of the field in which servers write what a model thought."""
REASONING_FIELD: Final = "reasoning_field"
"""The field of a tidy message that holds the name which its server uses."""
_SAYING: Final = ("content", "text", "tool_calls", "function_call", "parsed", "refusal", *THOUGHT_FIELDS)
"""The fields of a message that may hold its answer."""


def says_something(message: object) -> bool:
    """Whether a message is not empty."""
    return any(message.get(name) for name in _SAYING) if isinstance(message, Mapping) else bool(message)


def raw_message(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The message of a choice: as it should be, as of a stream's piece, or as of a completion without chat.

    The choice may also be the message itself. Of several messages, the first that says something counts.
    """
    turns = choice.get("messages")
    candidates = [choice.get(name) for name in ("message", "delta", "text")]
    candidates += turns[-1:] if isinstance(turns, list) else []
    candidates += [choice] if "content" in choice or "tool_calls" in choice else []
    messages = [message for message in candidates if isinstance(message, (str, Mapping))]
    message = next(filter(says_something, messages), next(iter(messages), None))
    return {"content": message} if isinstance(message, str) else message


def read_message(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    """The message of a choice, in the form that OpenAI's have; None if there is none."""
    message = raw_message(choice)
    if message is None:
        return None
    parts = message.get("content")
    raw_calls = message.get("tool_calls") or message.get("function_call") or _calls_among(parts)
    content = "" if raw_calls and raw_calls == _calls_among(parts) and not _texts(parts) else read_content(parts)
    content = content or read_content(message.get("text"))
    if not content and message.get("parsed") is not None:
        content = json.dumps(message["parsed"])
    calls = []
    for raw_call in raw_calls if isinstance(raw_calls, list) else [raw_calls]:
        call = _tool_call(raw_call)
        if call is not None:
            calls.append(call)
        elif not content and raw_call:  # it may hold the answer all the same
            content = raw_call if isinstance(raw_call, str) else json.dumps(raw_call)
    rest = {k: v for k, v in message.items() if k not in ("tool_calls", "function_call", "refusal", *THOUGHT_FIELDS)}
    refusal = message.get("refusal")
    field, thought = next(
        ((name, text) for name in THOUGHT_FIELDS if (text := _reasoning(message.get(name)))), ("", "")
    )
    return {
        **rest,
        "role": "assistant",
        "content": content,
        **({"tool_calls": calls} if calls else {}),
        **({"refusal": refusal} if isinstance(refusal, str) else {}),
        **({"reasoning_content": thought} if thought else {}),
        **({REASONING_FIELD: field} if isinstance(message.get(field), str) else {}),
    }


def read_content(content: object) -> str:
    """The text of a message's content: of a text, of its parts, or of an answer that was parsed already."""
    if content is None or isinstance(content, str):
        return without_half_characters(content or "")
    if isinstance(content, Mapping) and isinstance(content.get("parts"), list):
        content = content["parts"]
    texts = _texts(content)
    return json.dumps(content) if texts is None else without_half_characters("".join(texts))


def _texts(content: object) -> list[str] | None:
    """The texts of a content's parts, without what is beside them; None if the content has no parts."""
    parts = content if isinstance(content, list) else [content]
    parts = [part for part in parts if part is not None]
    own_parts = [part for part in parts if not _is_other_part(part)]
    parts = own_parts or [
        part for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    ]  # some put all into the thought
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, (str, Mapping))]
    texts = [text.get("value") if isinstance(text, Mapping) else text for text in texts]  # as OpenAI's assistants do
    is_text = len(texts) == len(parts) and (any(isinstance(text, str) for text in texts) or not parts)
    return [text for text in texts if isinstance(text, str)] if is_text else None


_OTHER_PARTS: Final = re.compile(
    r".*(?:image|audio|video|file|think|thought|reason|refusal|citation|annotation).*", re.I
)
"""Matches the types of parts that are no text of an answer."""


def _is_other_part(part: object) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and bool(_OTHER_PARTS.fullmatch(kind))


def _calls_among(content: object) -> list[Any]:
    """The parts of a content that are tool calls."""
    kinds = ("tool_use", "tool_call", "function_call")
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") in kinds]


def _reasoning(value: object) -> str:
    is_text = isinstance(value, (str, list)) or (isinstance(value, Mapping) and "text" in value)
    return read_content(value) if is_text else ""


_ARGUMENTS: Final = ("arguments", "parameters", "input", "args", "params")
"""Names of a call's arguments in several protocols."""


def _tool_call(raw: object) -> dict[str, Any] | None:
    """A call with its arguments as text; None if it has no name, or arguments that are no object."""
    if not isinstance(raw, Mapping):
        return None
    inner = raw.get("function")
    fields = {**raw, **inner} if isinstance(inner, Mapping) else raw
    name = fields.get("name") or fields.get("tool_name") or inner
    if not isinstance(name, str) or not name:
        return None
    text = _arguments(next((fields[key] for key in _ARGUMENTS if fields.get(key) is not None), None))
    if text is None:
        return None
    call_id = raw.get("id")
    return {
        "id": call_id if isinstance(call_id, str) and call_id else f"call_{uuid.uuid4().hex[:12]}",
        "type": "function",
        "function": {"name": name, "arguments": text},
    }


def _arguments(arguments: object) -> str | None:
    """The arguments of a call as the text of an object; text that is not JSON stays as it is."""
    for _ in range(4):  # JSON may be in a text that is in JSON
        if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
            return "{}"
        if isinstance(arguments, Mapping):
            return json.dumps(arguments)
        if isinstance(arguments, list) and len(arguments) == 1:
            [arguments] = arguments
            continue
        if not isinstance(arguments, str):
            return None
        try:
            parsed = json.loads(arguments, strict=False)
        except (ValueError, RecursionError):
            return arguments
        if isinstance(parsed, Mapping):
            return arguments
        arguments = parsed
    return None
