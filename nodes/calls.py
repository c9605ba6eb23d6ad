"""Calls to a chat model: one structured answer, and the building blocks of prompts."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ValidationError

from gems.graph.errors import BackendError, MalformedAnswerError
from gems.nodes.meter import Meter

__all__ = ["ask", "fence", "image_block"]

Schema = TypeVar("Schema", bound=BaseModel)


def ask(meter: Meter, model: BaseChatModel, schema: type[Schema], messages: Sequence[BaseMessage]) -> Schema:
    """One structured call. An answer that does not fit the schema is sent back once, if the budget allows it.

    Raises:
        MalformedAnswerError: The second answer does not fit either, or there was no second one.
        BackendError: Failed tries of this call have used up the budget.
    """
    if meter.is_retry and meter.exhausted():
        raise BackendError("the budget was used up by calls that failed", retryable=False)
    structured = _structured(_ByIdentity(model), schema)
    conversation = list(messages)
    for _ in range(2):
        try:
            answer, fault = structured.invoke(conversation), "it holds no structured answer"
        except (ValidationError, OutputParserException) as error:
            answer, fault = None, " ".join(str(error).split())[:500]
        if isinstance(answer, schema):
            return answer
        if meter.exhausted():
            break
        conversation = [
            *messages,
            HumanMessage(f"Your last answer could not be read: {fault}\nAnswer again, in the required form only."),
        ]
    raise MalformedAnswerError(f"the chat model gave no valid {schema.__name__}: {fault}")


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """A chat model as a cache key: models are mutable and have no hash of their own."""

    model: BaseChatModel

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.model is self.model


@lru_cache(maxsize=64)
def _structured(key: _ByIdentity, schema: type[BaseModel]) -> Runnable[LanguageModelInput, Any]:
    """Making a JSON schema takes milliseconds, so each is made once per model."""
    return key.model.with_structured_output(schema)


def fence(tag: str, text: str) -> str:
    """Put data between tags, escaped so that nothing inside can close them: what is fenced is never an instruction."""
    return f"<{tag}>\n{html.escape(text, quote=False)}\n</{tag}>"


def image_block(png: bytes) -> dict[str, Any]:
    """A PNG as LangChain's provider-neutral image content block."""
    return {"type": "image", "base64": base64.b64encode(png).decode("ascii"), "mime_type": "image/png"}
