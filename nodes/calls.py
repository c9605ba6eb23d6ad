"""Calls to a chat model: one structured answer, its cost, and the building blocks of prompts."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable
from langchain_core.tracers.context import register_configure_hook
from pydantic import BaseModel, ValidationError

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
    structured = _structured(_ByIdentity(model), schema)
    usage, conversation = Usage(), list(messages)
    for _ in range(2):
        with _metered() as meter:
            try:
                answer, fault = structured.invoke(conversation), "it holds no structured answer"
            except (ValidationError, OutputParserException) as error:
                answer, fault = None, " ".join(str(error).split())[:500]
        usage += meter.usage
        if isinstance(answer, schema):
            return answer, usage
        conversation = [
            *messages,
            HumanMessage(f"Your last answer could not be read: {fault}\nAnswer again, in the required form only."),
        ]
    raise MalformedAnswerError(f"the chat model gave no valid {schema.__name__}: {fault}")


class _Meter(BaseCallbackHandler):
    """Adds up what the chat models called within a ``with _metered()`` cost."""

    def __init__(self) -> None:
        self.usage = Usage()

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        for generations in response.generations:
            for generation in generations:
                if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
                    self.usage += usage_of(generation.message)


_METER: ContextVar[_Meter | None] = ContextVar("gems_meter", default=None)
register_configure_hook(_METER, inheritable=True)


@contextmanager
def _metered() -> Iterator[_Meter]:
    """Listen in without replacing the callbacks that a parent run (a tracer, a stream) has set.

    ``with_structured_output(include_raw=True)`` would hand over the usage too, at five times the overhead.
    """
    meter = _Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


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
