"""Calls to a chat model: one structured answer, its cost, and the building blocks of prompts."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel

from gems.graph.errors import MalformedAnswerError
from gems.graph.state import Usage

__all__ = ["Stopwatch", "ask", "fence", "image_block", "usage_of"]

Schema = TypeVar("Schema", bound=BaseModel)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed wall-clock seconds."""
        return time.perf_counter() - self._start


def ask(model: BaseChatModel, schema: type[Schema], messages: Sequence[BaseMessage]) -> tuple[Schema, Usage]:
    """One structured call. An answer that does not fit the schema is sent back once to be put right.

    Returns:
        The parsed answer, and what was spent (both calls, if there were two).

    Raises:
        MalformedAnswerError: The second answer does not fit either.
    """
    structured = model.with_structured_output(schema, include_raw=True)
    usage, conversation = Usage(), list(messages)
    for _ in range(2):
        answer = cast(dict[str, Any], structured.invoke(conversation))
        usage += usage_of(answer["raw"])
        if isinstance(answer["parsed"], schema):
            return answer["parsed"], usage
        fault = " ".join(str(answer["parsing_error"] or "it holds no structured answer").split())[:500]
        conversation = [
            *messages,
            HumanMessage(f"Your last answer could not be read: {fault}\nAnswer again, in the required form only."),
        ]
    raise MalformedAnswerError(f"the chat model gave no valid {schema.__name__}: {fault}")


def usage_of(message: AIMessage) -> Usage:
    """What one answer cost, as its provider counts it."""
    tokens = message.usage_metadata
    return Usage(
        chat_calls=1,
        prompt_tokens=tokens["input_tokens"] if tokens else 0,
        completion_tokens=tokens["output_tokens"] if tokens else 0,
    )


def fence(tag: str, text: str) -> str:
    """Put data between tags, escaped so that nothing inside can close them: what is fenced is never an instruction."""
    return f"<{tag}>\n{html.escape(text, quote=False)}\n</{tag}>"


def image_block(png: bytes) -> dict[str, Any]:
    """A PNG as LangChain's provider-neutral image content block."""
    return {"type": "image", "base64": base64.b64encode(png).decode("ascii"), "mime_type": "image/png"}
