"""Why an answer ended, in every provider's words: it was cut off, filtered, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from langchain_core.messages import AIMessage

from gems.secrets import one_line

__all__ = ["ABORTED", "NORMAL", "finish_reason", "has_ended", "is_cut_off", "is_refused", "refusal_of"]

ABORTED: Final = frozenset({"abort", "aborted", "cancel", "cancelled", "canceled"})
"""Reasons of answers that somebody stopped."""
NORMAL: Final = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})
"""The reasons that OpenAI's protocol has."""
_REASONS: Final = {
    **dict.fromkeys(("eos", "eos_token", "end", "end_turn", "stop_sequence", "complete", "completed", "done"), "stop"),
    **dict.fromkeys(("max_tokens", "max_length", "model_length", "max_output_tokens", "token_limit"), "length"),
    "model_context_window_exceeded": "length",
    **dict.fromkeys(("safety", "sensitive", "content_filtered", "recitation", "blocklist"), "content_filter"),
    **dict.fromkeys(("prohibited_content", "image_safety", "image_prohibited_content", "spii"), "content_filter"),
    **dict.fromkeys(("guardrail_intervened", "image_recitation", "jailbreak", "refusal"), "content_filter"),
    **dict.fromkeys(("tool_use", "tool_call"), "tool_calls"),
    **dict.fromkeys(ABORTED, "length"),
}
"""Names of other protocols; what was aborted is cut off."""


def finish_reason(reason: object) -> str | None:
    """Why an answer ended, in the words of OpenAI's protocol if it has one for that."""
    if not isinstance(reason, str):
        return None
    word = reason.lower()
    return word if word in NORMAL else _REASONS.get(word, reason)


def is_cut_off(message: AIMessage) -> bool:
    """Whether a length limit ended an answer, rather than the model."""
    return any(finish_reason(reason) == "length" for reason in _reasons(message))


def has_ended(message: AIMessage) -> bool:
    """Whether the server says that the model ended its answer by itself."""
    return any(finish_reason(reason) == "stop" for reason in _reasons(message))


def is_refused(message: AIMessage) -> bool:
    """Whether the model or its provider will not answer, so that asking again in the same words is of no use."""
    return bool(refusal_of(message))


def refusal_of(message: AIMessage) -> str:
    """That an answer was refused or filtered, with the reason given; empty if it was not."""
    words = message.additional_kwargs.get("refusal") or next(_refusal_blocks(message), "")
    if words:
        return f'it is a refusal: "{one_line(words, 200)}"'
    feedback = message.response_metadata.get("prompt_feedback")  # of Gemini, which then gives no answer at all
    blocked = feedback.get("block_reason") if isinstance(feedback, Mapping) else None
    if blocked:
        return f"the provider's content filter stopped the question ({one_line(getattr(blocked, 'name', blocked), 60)})"
    reason = next((r for r in _reasons(message) if finish_reason(r) == "content_filter"), None)
    if reason is None:
        return ""
    if reason.lower() == "refusal":
        text = one_line(message.text, 200)
        return f"the model refused to answer{text and f': {text}'}"
    return f"the provider's content filter stopped it{'' if reason in NORMAL else f' ({one_line(reason, 60)})'}"


def _reasons(message: AIMessage) -> Iterator[str]:
    """Why the answer ended, as each protocol has it: OpenAI and Gemini, Anthropic, Bedrock, Ollama, and Responses."""
    metadata: dict[str, Any] = message.response_metadata
    details = metadata.get("incomplete_details")
    reasons = [metadata.get(name) for name in ("finish_reason", "stop_reason", "stopReason", "done_reason")]
    reasons.append(details.get("reason") if isinstance(details, Mapping) else None)
    return (reason for reason in reasons if isinstance(reason, str))


def _refusal_blocks(message: AIMessage) -> Iterator[str]:
    """Refusals among an answer's blocks, as the Responses API has them, also inside of LangChain's own blocks."""
    for block in message.content if isinstance(message.content, list) else []:
        inner = block.get("value", block) if isinstance(block, dict) else None
        if isinstance(inner, dict) and isinstance(refusal := inner.get("refusal"), str):
            yield refusal
