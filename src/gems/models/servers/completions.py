"""Chat completions in OpenAI's protocol as servers really write them, brought into the form that OpenAI's own has."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic_core import from_json

from gems.errors import BackendError
from gems.models.endings import finish_reason
from gems.models.lenient import json_values
from gems.models.servers.completion_errors import error_of_choice, error_of_completion, server_error
from gems.models.servers.completion_messages import raw_message, read_content, read_message
from gems.models.servers.completion_usage import tokens_of
from gems.models.servers.error_texts import error_message, json_body, text_of
from gems.models.servers.other_protocols import in_other_words, with_plain_text
from gems.secrets import one_line

__all__ = ["read_completion", "tidy_completion", "told_error"]


def read_completion(body: bytes) -> object:
    """The JSON of an answer; the answer as a text if it contains none.

    Some servers stream although nobody asked them to, write comments before the answer to keep the connection open, or
    put the JSON into a text.
    """
    answer = json_body(body)
    if answer is None and body.strip() != b"null":
        text = text_of(body)
        lines = [line for line in text.splitlines() if not line.startswith(":")]
        data = [line.removeprefix("data:").strip() for line in lines if line.startswith(("data:", "{"))]
        events = _objects(data) or _objects(map(_data_of, re.split(r"(?:\r?\n){2,}", text)))
        error = _error_event(text)
        is_ended = _END_OF_STREAM in text and not error
        answer = json_body("\n".join(lines).encode()) or (
            _joined(events, is_ended=is_ended) if events else _whole_in(text)
        )
        answer = answer or ({"error": error} if error else text)
    if isinstance(answer, str) and isinstance(inner := json_body(answer.encode("utf-8", "replace")), Mapping):
        return inner
    return answer


def _objects(parts: Iterable[str]) -> list[Mapping[str, Any]]:
    return [
        event for event in (json_body(part.encode("utf-8", "replace")) for part in parts) if isinstance(event, Mapping)
    ]


def _data_of(event: str) -> str:
    """What the lines of data in one event of a stream make up."""
    return "\n".join(line.removeprefix("data:") for line in event.splitlines() if line.startswith("data:"))


_IS_ERROR: Final = re.compile(r"^event:[ \t]*error[ \t\r]*$", re.MULTILINE | re.IGNORECASE)


def _error_event(text: str) -> object:
    """What an event of the kind "error" in a stream says; None if there is none."""
    block = next(filter(_IS_ERROR.search, re.split(r"(?:\r?\n){2,}", text)), None) if _IS_ERROR.search(text) else None
    if block is None:
        return None
    data = _data_of(block).strip()
    content = json_body(data.encode("utf-8", "replace"))
    return (content.get("error") or content) if isinstance(content, Mapping) else data or "no reason given"


_END_OF_STREAM: Final = "[DONE]"
_TORN: Final = "it is torn: it has no end"


def _whole_in(text: str) -> Mapping[str, Any] | None:
    """What came of a torn completion, if its message is there from its beginning to its end; else None."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        torn = from_json(text, allow_partial=True)
    except ValueError:
        return None
    choices = (_choices(torn) if isinstance(torn, Mapping) else None) or []
    messages = (read_message(choice) for choice in choices if isinstance(choice, Mapping))
    return torn if any(map(_is_whole, messages)) else None


def _is_cut(text: str) -> bool:
    """Whether JSON in a text has no end."""
    start = re.search(r"[{\[]", text)
    if start is None or json_body(text[start.start() :].encode("utf-8", "replace")) is not None:
        return False
    try:
        from_json(text[start.start() :], allow_partial=True)
    except ValueError:  # it has an end, or another fault
        return False
    return True


def _joined(events: Sequence[Mapping[str, Any]], *, is_ended: bool) -> Mapping[str, Any] | None:
    """The completion that the events of a stream are the pieces of; None if it breaks off amid an answer.

    Args:
        events: The pieces.
        is_ended: The stream says that it has come to its end.
    """
    joined: dict[str, Any] = {}
    texts = defaultdict[str, list[str]](list)
    calls: dict[object, dict[str, Any]] = {}
    reason = None
    if not any(_choices(event) is not None for event in events):  # an event that tells of an error
        return next((event for event in events if error_message(json.dumps(event).encode())), events[-1])
    whole = [event for event in events if "choices" in event and isinstance(_choice(event).get("message"), Mapping)]
    for event in events:
        choice = _choice(event)
        if event.get("error") or [event] == whole:  # the whole answer, or why there is none
            return event
        usage = _most(joined.get("usage"), choice.get("usage") or event.get("usage"))
        joined |= {name: value for name, value in event.items() if value is not None} | {"usage": usage}
        is_ended = is_ended or event.get("done") is True  # as in Ollama's own protocol
        reason = choice.get("finish_reason") or choice.get("done_reason") or reason
        delta = raw_message(choice) or {}
        for name in ("content", "reasoning_content", "reasoning", "thinking", "refusal"):
            if piece := delta.get(name):
                texts[name].append(read_content(piece))
        pieces = delta.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else []:
            if isinstance(piece, Mapping):
                _add_piece(calls.setdefault(piece.get("index"), {}), piece)
    message = {name: _whole_text(pieces) for name, pieces in texts.items()}
    arguments = [_whole_text(call["arguments"]) for call in calls.values()]
    if not (reason or is_ended) and not _has_all([message.get("content", ""), *arguments]):
        return None
    whole_calls = [{**call, "arguments": _whole_text(call["arguments"])} for call in calls.values()]
    return {**joined, "choices": [{"message": {**message, "tool_calls": whole_calls}, "finish_reason": reason}]}


def _has_all(parts: Sequence[object]) -> bool:
    """Whether the JSON in a stream without an end is whole; of prose alone, nobody knows how much is missing."""
    texts = [part if isinstance(part, str) else json.dumps(part) for part in parts]
    values = itertools.chain.from_iterable(map(json_values, texts))
    return not any(map(_is_cut, texts)) and any(isinstance(v, Mapping) or (v and isinstance(v[0], str)) for v in values)


def _most(counts: object, report: object) -> object:
    """The higher counts of two reports of a stream: the last one may tell of its own piece alone."""
    if not (isinstance(counts, Mapping) and isinstance(report, Mapping)):
        return report or counts
    return {**counts, **{name: value for name, value in report.items() if not _is_less(value, counts.get(name))}}


def _is_less(value: object, other: object) -> bool:
    numbers = isinstance(value, (int, float)) and isinstance(other, (int, float))
    return (value is None and other is not None) or (numbers and value < other)  # type: ignore[operator]


def _choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = _choices(event)
    return choices[0] if choices and isinstance(choices[0], Mapping) else {}


_REPEATED: Final = 8
"""Characters at the beginning of a piece that are no chance repetition of what came before it."""


def _whole_text(pieces: Sequence[Any]) -> Any:
    """The text that a stream's pieces make up. Some servers repeat the whole text so far in each piece, or in the last.

    What is no text, such as arguments that are an object, is whole by itself.
    """
    if objects := [piece for piece in pieces if piece is not None and not isinstance(piece, str)]:
        return objects[-1]
    *before, last = list(filter(None, pieces)) or [""]
    grows = all(text.startswith(shorter) for shorter, text in itertools.pairwise([*before, last]))
    repeated = "".join(before) if grows or "".join(before) == last else ""
    is_readable = isinstance(json_body(last.encode("utf-8", "replace")), (Mapping, list))
    is_repetition = len(repeated) >= _REPEATED or (bool(repeated) and is_readable)
    return last if is_repetition else "".join([*before, last])


def _add_piece(call: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add a piece of a streamed tool call to the ones before it."""
    call["id"] = call.get("id") or piece.get("id")
    function = piece.get("function")
    part: Mapping[str, Any] = function if isinstance(function, Mapping) else {}
    call["name"] = call.get("name") or part.get("name")
    call.setdefault("arguments", []).append(part.get("arguments"))


def tidy_completion(answer: object, source: str) -> dict[str, Any]:
    """A chat completion in the form that ``ChatOpenAI`` reads.

    Args:
        answer: The JSON that a server answered with status 200.
        source: The model and server, for error messages.

    Raises:
        BackendError: The answer is an error, or contains no message.
    """
    answer = _first_object(answer)
    if not isinstance(answer, Mapping):
        raise _no_object(answer, source)
    whole_answer, answer = answer, _inner(answer)
    if error := _told_error(answer, source):
        raise error
    raw_choices = _choices(answer)
    if raw_choices is None:
        keys = ", ".join(map(str, answer)) or "nothing"
        raise BackendError(f"{source} answers with no chat completion: it has {one_line(keys)}")
    tidy = _tidy_choices(raw_choices)
    if not tidy:
        raise BackendError(f"{source} answers with no choices: it may have refused the question")
    # GEMS asks for one choice. LangChain would count the tokens once for each of them.
    best = next((c for c in tidy if c["message"]["content"] or c["message"].get("tool_calls")), tidy[0])
    texts = {name: answer[name] for name in _TEXTS if isinstance(answer.get(name), str)}
    return {**texts, "choices": [best], "usage": tokens_of(answer, best, whole_answer)}


def told_error(answer: object, source: str) -> BackendError | None:
    """The error that an answer with status 200 is, or has in place of its message; None if it has none.

    Args:
        answer: The answer, see ``read_completion``, in any provider's protocol.
        source: The model and server, for the message.
    """
    answer = _first_object(answer)
    if isinstance(answer, Mapping):
        inner = _inner(answer)
        if answer.get("done_reason") in ("load", "unload"):  # of Ollama, in place of an answer
            return BackendError(f"{source} has no answer yet: it says only that it has loaded its model")
        # The ends of other protocols' answers are for their packages to tell: Gemini's after a call that it got wrong.
        is_for_package = _choices(inner) and "choices" not in answer and not answer.get("error")
        return None if is_for_package else _told_error(inner, source)
    return None if _is_torn(answer) else _no_object(answer, source)  # a package may use the part that is there


def _told_error(answer: Mapping[str, Any], source: str) -> BackendError | None:
    choices = _choices(answer) or []
    if error := error_of_completion(answer, has_choices=bool(choices)):
        return server_error(f"{source} answers with no chat completion", error, was_understood=False)
    errors = (error_of_choice(choice) for choice in choices if isinstance(choice, Mapping))
    error = next(filter(None, errors), None) if not _tidy_choices(choices) else None
    return server_error(f"{source} stopped with an error", error, was_understood=True) if error else None


def _no_object(answer: object, source: str) -> BackendError:
    """The error about an answer that is no object."""
    kind = "a page or another kind of document" if answer else "it is empty"
    words = _TORN if _is_torn(answer) else one_line(error_message(str(answer or "").encode())) or kind
    return BackendError(f"{source} answers with no chat completion: {words}")


def _is_torn(answer: object) -> bool:
    return isinstance(answer, str) and answer.lstrip("\ufeff \r\n\t").startswith(("{", "[", "data:"))


def _first_object(answer: object) -> object:
    """The first object of a list, as errors of Gemini's endpoint are; the answer itself if it is no such list."""
    return answer[0] if isinstance(answer, list) and answer and isinstance(answer[0], Mapping) else answer


def _tidy_choices(raw_choices: Sequence[Any]) -> list[dict[str, Any]]:
    """The choices that have a message, and no error in its place."""
    choices = [choice for choice in raw_choices if isinstance(choice, Mapping)]
    tidy = [
        {
            **choice,
            "message": message,
            "finish_reason": finish_reason(choice.get("finish_reason")),
            "logprobs": _if_object(choice.get("logprobs")),
        }
        for choice in choices
        if (message := read_message(choice)) is not None and not error_of_choice(choice)
    ]
    # An error at the very end, or a connection that was lost there, does not undo an answer that is whole.
    return tidy or [{"message": m, "finish_reason": "stop"} for c in choices if _is_whole(m := read_message(c))]


def _is_whole(message: Mapping[str, Any] | None) -> bool:
    """Whether a message is one JSON object, from its beginning to its end, that is no error."""
    value = json_body(str((message or {}).get("content") or "").encode("utf-8", "replace"))
    return isinstance(value, Mapping) and bool(value) and not error_message(json.dumps(value).encode())


_TEXTS: Final = ("id", "model", "object", "service_tier", "system_fingerprint")
"""The fields of a completion that are kept as they are."""


def _inner(answer: Mapping[str, Any], depth: int = 4) -> Mapping[str, Any]:
    """The completion inside of a gateway's report on it; the answer itself if it is one."""
    if _choices(answer) is not None:
        return answer
    if completion := in_other_words(answer):
        return completion
    for name in ("data", "result", "results", "output", "outputs", "response", "body", "completion"):
        report = answer.get(name)
        report = json_body(report.encode("utf-8", "replace")) if isinstance(report, str) else report
        report = report[0] if isinstance(report, list) and report else report
        if depth and isinstance(report, Mapping) and _choices(inner := _inner(report, depth - 1)):
            return inner
    return with_plain_text(answer) or answer


def _choices(answer: Mapping[str, Any]) -> list[Any] | None:
    """The choices of a completion, which may also be a single one, or stand without a list; None if there are none."""
    choices = answer.get("choices") or answer.get("Choices", answer.get("choices"))
    if isinstance(choices, Mapping):
        return [choices] if raw_message(choices) is not None else list(choices.values())
    if choices is None and isinstance(answer.get("message"), Mapping):  # as in Ollama's own protocol
        return [answer]
    return choices if isinstance(choices, list) else None


def _if_object(value: object) -> object:
    return value if isinstance(value, Mapping) else None
