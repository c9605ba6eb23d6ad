"""Convert LangChain's messages to the turns that chat templates take, and a model's text back to a message."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, ToolCall
from PIL import Image

from gems.errors import BackendError, InputError
from gems.models.lenient import is_broken_json, json_values
from gems.models.servers.image_files import decode_image

__all__ = ["read_answer", "turns_of"]

_ROLES: Final = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}
"""The types of LangChain messages and their roles in chat templates."""

_THOUGHT: Final = re.compile(r"\s*<think>(?P<thought>.*?)(?:</think>|\Z)\s*", re.DOTALL)
_CALL: Final = re.compile(r"<tool_call>(?P<call>.*?)(?:</tool_call>|\Z)", re.DOTALL)


def turns_of(messages: Sequence[BaseMessage], words: str) -> list[dict[str, Any]]:
    """The turns of a conversation, with ``words`` added as the user's unless they are empty.

    Raises:
        InputError: The conversation contains something that the model cannot take.
    """
    turns = [_turn(message) for message in messages]
    if words and turns and turns[-1]["role"] == "user":  # many templates reject two user turns in a row
        turns[-1]["content"].append({"type": "text", "text": f"\n\n{words}"})
    elif words:
        turns.append({"role": "user", "content": [{"type": "text", "text": words}]})
    return turns


def _turn(message: BaseMessage) -> dict[str, Any]:
    if message.type not in _ROLES:
        raise InputError(f"a message of type {message.type!r} cannot be passed to a chat model")
    # Of the model's own messages, only the text and the tool calls are passed.
    blocks = [block for block in message.content_blocks if message.type != "ai" or block["type"] == "text"]
    turn: dict[str, Any] = {"role": _ROLES[message.type], "content": [_part(block) for block in blocks]}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    return turn


def _part(block: Mapping[str, Any]) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text", "text": block["text"]}
    if block["type"] == "image":
        return {"type": "image", "image": _image(block)}
    raise InputError(f"content of type {block['type']!r} cannot be passed to a vision chat model")


def _image(block: Mapping[str, Any]) -> Image.Image:
    encoded = block.get("base64") or block.get("url", "").partition(";base64,")[2]
    if not encoded:
        raise InputError("an image must be inside its message, as base64 or a data URL; addresses are not fetched")
    try:
        return decode_image(base64.b64decode(encoded, validate=True), "the message")
    except (BackendError, ValueError) as error:
        raise InputError(f"an image in the messages cannot be read: {error}") from error


def read_answer(text: str, *, may_call: bool) -> AIMessage:
    """Split an answer into a thought at its start, text, and, if tools were offered, tool calls."""
    reasoning = ""
    if thought := _THOUGHT.match(text):
        reasoning, text = thought["thought"].strip(), text[thought.end() :]
    calls = [_tool_call(match["call"].strip()) for match in _CALL.finditer(text)] if may_call else []
    return AIMessage(
        content=_CALL.sub("", text).strip() if calls else text,
        additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        tool_calls=[call for call in calls if call["type"] == "tool_call"],
        invalid_tool_calls=[call for call in calls if call["type"] == "invalid_tool_call"],
    )


def _tool_call(text: str) -> ToolCall | InvalidToolCall:
    call_id = f"call_{uuid.uuid4().hex[:12]}"
    call = next((value for value in json_values(text) if isinstance(value, dict)), {})
    call = call["function"] if isinstance(call.get("function"), dict) else call
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = next(iter(json_values(arguments)), None)
    if isinstance(name, str) and isinstance(arguments, dict) and not is_broken_json(text):
        return ToolCall(name=name, args=arguments, id=call_id, type="tool_call")
    fault = "it is no JSON object with a name and arguments"
    return InvalidToolCall(name=None, args=text, id=call_id, error=fault, type="invalid_tool_call")
