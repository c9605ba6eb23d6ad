"""Answers of other protocols than OpenAI's chat completions, which some servers and gateways give at the same path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["in_other_words", "with_plain_text"]


def in_other_words(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The completion in an answer of the Responses API or of Gemini, and why it ended; None if it is none."""
    choice = _of_responses(answer) or _of_gemini(answer)
    return {**answer, "choices": [choice]} if choice else None


def with_plain_text(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The completion in an answer that has a text under another name, such as Anthropic's. None if it has none."""
    if answer.get("error") or answer.get("errors"):
        return None
    for place in (answer, *(answer.get(name) for name in ("result", "output"))):
        fields = place if isinstance(place, Mapping) else {}
        texts = (fields.get(name) for name in ("generated_text", "response", "output_text", "text", "content"))
        if content := next(filter(None, texts), None):
            reason = next(filter(None, map(fields.get, ("finish_reason", "stop_reason", "done_reason"))), None)
            return {**answer, "choices": [{"message": {"content": content}, "finish_reason": reason}]}
    return None


def _of_responses(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The items that OpenAI's Responses API puts out, as one message: what was thought is left out."""
    items = _objects(answer.get("output"))
    messages = [item for item in items if item.get("type") == "message"]
    if answer.get("object") != "response" and not messages:
        return None
    parts = [part for message in messages for part in _parts(message.get("content"))]
    calls = [item for item in items if item.get("type") == "function_call"]
    refusal = next((part["refusal"] for part in parts if isinstance(part.get("refusal"), str)), None)
    details = answer.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, Mapping) else None
    if not (parts or calls or reason):  # nothing is put out yet, or for a reason that stands elsewhere
        return None
    message = {"content": [part for part in parts if "refusal" not in part] + calls or None, "refusal": refusal}
    return {"message": message, "finish_reason": reason or "stop"}


def _of_gemini(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Gemini's first candidate; without one, that its filter stopped the question."""
    feedback = answer.get("promptFeedback")
    if isinstance(feedback, Mapping) and feedback.get("blockReason"):
        return {"message": {"content": ""}, "finish_reason": "content_filter"}
    candidate = next(iter(_objects(answer.get("candidates"))), None)
    if candidate is None:
        return None
    content = candidate.get("content")
    parts = _parts(content.get("parts") if isinstance(content, Mapping) else content)
    answer_parts = [_without_gemini_s_call(part) for part in parts if not part.get("thought")]
    return {"message": {"content": answer_parts or None}, "finish_reason": candidate.get("finishReason")}


def _without_gemini_s_call(part: Mapping[str, Any]) -> Mapping[str, Any]:
    call = part.get("functionCall")
    return {"type": "function_call", **call} if isinstance(call, Mapping) else part


def _parts(content: object) -> list[Mapping[str, Any]]:
    return [{"text": content}] if isinstance(content, str) else _objects(content)


def _objects(values: object) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []
