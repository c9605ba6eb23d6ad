"""Chat completions in OpenAI's protocol as servers really write them, brought into the form that OpenAI's own has."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gems.errors import BackendError, is_passing_status
from gems.models.lenient import without_half_characters
from gems.models.servers.error_texts import error_message, json_body
from gems.models.structured import is_unsupported
from gems.secrets import one_line

__all__ = ["read_completion", "server_error", "tidy_completion"]


def read_completion(body: bytes) -> object:
    """The JSON of an answer; the answer as a text if it contains none.

    Some servers stream although nobody asked them to, write comments before the answer to keep the connection open, or
    put the JSON into a text.
    """
    answer = json_body(body)
    if answer is None and body.strip() != b"null":
        text = body.decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if not line.startswith(":")]
        data = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
        events = [event for event in (json_body(part.encode()) for part in data) if isinstance(event, Mapping)]
        answer = _joined(events) if events else json_body("\n".join(lines).encode()) or text
    if isinstance(answer, str) and isinstance(inner := json_body(answer.encode("utf-8", "replace")), Mapping):
        return inner
    return answer


def _joined(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The completion that the events of a stream are the pieces of."""
    joined: dict[str, Any] = {}
    message: dict[str, Any] = {}
    calls: dict[object, dict[str, Any]] = {}
    finish_reason = None
    for event in events:
        choices = _choices(event) or []
        choice = choices[0] if choices and isinstance(choices[0], Mapping) else {}
        if event.get("error") or isinstance(choice.get("message"), Mapping):  # the whole answer, or why there is none
            return event
        joined |= {name: value for name, value in event.items() if value is not None}
        finish_reason = choice.get("finish_reason") or finish_reason
        delta = _raw_message(choice) or {}
        for name in ("content", "reasoning_content", "reasoning", "refusal"):
            if isinstance(piece := delta.get(name), str):
                message[name] = message.get(name, "") + piece
        pieces = delta.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else []:
            if isinstance(piece, Mapping):
                _add_piece(calls.setdefault(piece.get("index"), {}), piece)
    message["tool_calls"] = list(calls.values())
    return {**joined, "choices": [{"message": message, "finish_reason": finish_reason}]}


def _add_piece(call: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add a piece of a streamed tool call to the ones before it."""
    call["id"] = call.get("id") or piece.get("id")
    function = piece.get("function")
    part: Mapping[str, Any] = function if isinstance(function, Mapping) else {}
    call["name"] = call.get("name") or part.get("name")
    arguments, before = part.get("arguments"), call.get("arguments")
    if isinstance(arguments, str) and isinstance(before, str):
        call["arguments"] = before + arguments
    elif arguments is not None:
        call["arguments"] = arguments


def tidy_completion(answer: object, source: str) -> dict[str, Any]:
    """A chat completion in the form that ``ChatOpenAI`` reads.

    Args:
        answer: The JSON that a server answered with status 200.
        source: The model and server, for error messages.

    Raises:
        BackendError: The answer is an error, or contains no message.
    """
    if isinstance(answer, list) and len(answer) == 1:  # Gemini's OpenAI endpoint puts an error into a list
        answer = answer[0]
    if not isinstance(answer, Mapping):
        words = one_line(error_message(str(answer).encode())) or "a page or another kind of document"
        raise BackendError(f"{source} answers with no chat completion: {words}")
    if error := answer.get("error"):
        error = answer.get("message") or error if error is True else error
        raise server_error(f"{source} answers with no chat completion", error, was_understood=False)
    raw_choices = _choices(answer)
    if raw_choices is None:
        keys = ", ".join(map(str, answer)) or "nothing"
        words = error_message(json.dumps(answer).encode()) or f"it has {keys}"
        raise BackendError(f"{source} answers with no chat completion: {one_line(words)}")
    choices = [choice for choice in raw_choices if isinstance(choice, Mapping)]
    messages = [_message(choice) for choice in choices]
    tidy = [
        {**choice, "message": message, "logprobs": _if_object(choice.get("logprobs"))}
        for choice, message in zip(choices, messages, strict=True)
        if message is not None and not _error_of(choice)
    ]
    if not tidy:
        if error := next(filter(None, map(_error_of, choices)), None):
            raise server_error(f"{source} stopped with an error", error, was_understood=True)
        raise BackendError(f"{source} answers with no choices: it may have refused the question")
    # GEMS asks for one choice. LangChain would count the tokens once for each of them.
    best = next((c for c in tidy if c["message"]["content"] or c["message"].get("tool_calls")), tidy[0])
    texts = {name: answer[name] for name in _TEXTS if isinstance(answer.get(name), str)}
    return {**texts, "choices": [best], "usage": _usage(answer.get("usage"))}


_TEXTS: Final = ("id", "model", "object", "service_tier", "system_fingerprint")
"""The fields of a completion that are kept as they are."""


def _choices(answer: Mapping[str, Any]) -> list[Any] | None:
    """The choices of a completion, which may also be a single one, or stand without a list; None if there are none."""
    choices = answer.get("choices")
    if isinstance(choices, Mapping):
        return [choices] if _raw_message(choices) is not None else list(choices.values())
    if choices is None and isinstance(answer.get("message"), Mapping):  # as in Ollama's own protocol
        return [answer]
    return choices if isinstance(choices, list) else None


# --- errors ---------------------------------------------------------------------------------------------------------

_PASSING: Final = re.compile(
    r"overload|rate.?limit|too many|time[d]?.?out|unavailable|busy|capacity|try again|internal|server.?error|upstream",
    re.IGNORECASE,
)
"""What a server says of errors that may pass, if it gives no code."""


def server_error(what: str, error: object, *, was_understood: bool) -> BackendError:
    """The error in an answer with status 200, in the server's words.

    Args:
        what: What happened, for the message.
        error: The error as the server writes it: a text, or an object with a message, and a code or type.
        was_understood: Whether the server had begun to answer, so that another way of asking would be no better.
    """
    details: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": error}
    words = details.get("message") or details.get("detail") or details.get("type") or details.get("code")
    words = one_line(json.dumps(words) if isinstance(words, (Mapping, list)) else words or "no reason given")
    status = _status(details)
    if status is None and is_unsupported(words):
        status = 501
    kind = f"{details.get('type') or ''} {details.get('code') or ''} {words}"
    is_passing = is_passing_status(status) if status else bool(_PASSING.search(kind))
    return BackendError(f"{what}: {words}", retryable=is_passing, status_code=None if was_understood else status)


def _status(details: Mapping[str, Any]) -> int | None:
    for name in ("code", "status", "status_code"):
        text = str(details.get(name))
        if re.fullmatch("[45][0-9][0-9]", text):
            return int(text)
    return None


def _error_of(choice: Mapping[str, Any]) -> object:
    """The error inside a choice; None if there is none."""
    message = choice.get("message")
    inner = message.get("error") if isinstance(message, Mapping) else None
    error: object = choice.get("error") or inner
    if error or str(choice.get("finish_reason")).lower() != "error":
        return error or None
    native = choice.get("native_finish_reason")
    return (_content(message.get("content")) if isinstance(message, Mapping) else "") or native or "no reason given"


# --- messages -------------------------------------------------------------------------------------------------------


def _raw_message(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The message of a choice: as it should be, as of a stream's piece, or as of a completion without chat."""
    message = next((m for name in ("message", "delta", "text") if (m := choice.get(name)) is not None), None)
    if isinstance(message, str):
        return {"content": message}
    return message if isinstance(message, Mapping) else None


def _message(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    message = _raw_message(choice)
    if message is None:
        return None
    content, calls = _content(message.get("content")), []
    raw_calls = message.get("tool_calls") or message.get("function_call") or []
    for raw_call in raw_calls if isinstance(raw_calls, list) else [raw_calls]:
        call = _tool_call(raw_call)
        if call is not None:
            calls.append(call)
        elif not content and raw_call:  # it may hold the answer all the same
            content = raw_call if isinstance(raw_call, str) else json.dumps(raw_call)
    without_calls = {k: v for k, v in message.items() if k not in ("tool_calls", "function_call", "refusal")}
    refusal = message.get("refusal")
    return {
        **without_calls,
        "role": "assistant",
        "content": content,
        **({"tool_calls": calls} if calls else {}),
        **({"refusal": refusal} if isinstance(refusal, str) else {}),
    }


def _content(content: object) -> str:
    """The text of a message's content: of a text, of its parts, or of an answer that was parsed already."""
    if content is None or isinstance(content, str):
        return without_half_characters(content or "")
    if isinstance(content, list) and all(isinstance(part, (str, Mapping)) for part in content):
        texts = [part if isinstance(part, str) else part.get("text") for part in content]
        if any(isinstance(text, str) for text in texts):
            return without_half_characters("".join(text for text in texts if isinstance(text, str)))
    return json.dumps(content)


def _tool_call(raw: object) -> dict[str, Any] | None:
    """A call with its arguments as text; None if it has no name, or arguments that are no object."""
    if not isinstance(raw, Mapping):
        return None
    function = raw.get("function") if isinstance(raw.get("function"), Mapping) else raw
    assert isinstance(function, Mapping)
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    if not isinstance(name, str) or not name:
        return None
    text = _arguments(arguments)
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


def _if_object(value: object) -> object:
    return value if isinstance(value, Mapping) else None


def _usage(usage: object) -> dict[str, Any] | None:
    """The counts of tokens, 0 where there is none; None if the server does not count."""
    if not isinstance(usage, Mapping):
        return None
    counts = {name: _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")}
    details = {
        name: {key: _count(value) for key, value in part.items() if value is not None}
        for name in ("prompt_tokens_details", "completion_tokens_details")
        if isinstance(part := usage.get(name), Mapping)
    }
    return {**counts, "total_tokens": _count(usage.get("total_tokens")) or sum(counts.values()), **details}


_MOST_TOKENS: Final = 10**9
"""A count above this one is none."""


def _count(value: object) -> int:
    try:
        count = int(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0
    return count if 0 <= count <= _MOST_TOKENS else 0
