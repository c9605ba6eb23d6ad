"""Structured answers from any chat model, by the best method that it supports.

There are four methods, best first: a JSON schema that the server enforces, a tool call, free-form JSON, and plain text
with the schema in the prompt. The answers are read by ``form_reading``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel

from gems.models.calling import reading_in_threads
from gems.models.capabilities import ByIdentity, Capabilities, Method, content_key
from gems.models.failures import reads_no_images, reason_of
from gems.models.lenient import form_name
from gems.models.system_messages import invoke
from gems.models.unsupported_requests import OF_IMAGES, OF_METHOD, is_not_understood, refuses_images

__all__ = ["answer_in_form"]

_TOP_LOGPROBS: Final = 10
"""Alternatives to each token that are requested with the log-probabilities."""


async def answer_in_form(
    model: BaseChatModel,
    schema: type[BaseModel],
    messages: Sequence[BaseMessage],
    capabilities: Capabilities,
    *,
    logprobs: bool = False,
    blind: bool = False,
) -> AIMessage:
    """One answer that should contain the form, by the first method that the model accepts.

    Args:
        model: Any chat model.
        schema: The form.
        messages: The prompt.
        capabilities: The model's capabilities as far as they are known; the calls update them.
        logprobs: Request the log-probabilities of the answer's tokens, if the model supports it.
        blind: The prompt makes sense without its images, which are left out if the model cannot see.

    Raises:
        Exception: The model's error. If the model does not support any method, its first error.
    """
    content, first_error = content_key(schema, messages), None
    blind = blind and any(isinstance(message.content, list) for message in messages)
    # What this call finds out is kept once it has succeeded: another reason may have been behind a refusal.
    trial, refused = replace(capabilities), list[Method]()
    for method in capabilities.methods_for(content, form_name(schema)):
        try:
            message = await _ask_by(model, schema, method, messages, trial, logprobs=logprobs, blind=blind)
        except Exception as error:
            if not is_not_understood(error) or (not blind and refuses_images(error, messages)):
                raise
            first_error = first_error or error
            refused.append(method)
            continue
        capabilities.logprobs, capabilities.sees = trial.logprobs, trial.sees
        capabilities.system_role = trial.system_role
        capabilities.give_up(refused)
        return message
    assert first_error is not None
    if not (blind and trial.sees) or OF_IMAGES.search(reason_of(first_error)):
        raise first_error
    try:  # the reason may be the images, although no refusal says so
        less = replace(capabilities, sees=False)
        blind_answer = await answer_in_form(model, schema, messages, less, logprobs=logprobs, blind=blind)
    except Exception:
        blind_answer = None
    if blind_answer is None:
        raise first_error  # with its own cause, in which a package keeps the server's words
    for habit in ("logprobs", "sees", "methods", "system_role"):
        setattr(capabilities, habit, getattr(less, habit))
    return blind_answer


async def _ask_by(
    model: BaseChatModel,
    schema: type[BaseModel],
    method: Method,
    messages: Sequence[BaseMessage],
    trial: Capabilities,
    *,
    logprobs: bool,
    blind: bool,
) -> AIMessage:
    """One answer by one method. What the model refuses is left out; ``trial`` notes it if that was the reason.

    Raises:
        Exception: The model's error at the first call by this method.
    """
    first_error: Exception | None = None
    before = trial.logprobs
    while True:
        options = _request_options(trial, method, logprobs)
        prompt = [_without_images(m) for m in messages] if blind and not options.images else messages
        try:
            runnable = _runnable(ByIdentity(model), schema, method, options.logprobs)
            answer = await invoke(runnable, _with_schema(prompt, schema, method), trial, f"{method} {options}", model)
        except Exception as error:
            first_error = first_error or error
            if not is_not_understood(error) or (not blind and refuses_images(error, prompt)):
                raise
            _learn(trial, error, blind, options)
            if _request_options(trial, method, logprobs) == options:
                break
            continue
        message = answer["raw"] if isinstance(answer, dict) else answer
        assert isinstance(message, AIMessage)
        return message
    trial.logprobs = before
    raise first_error


class _RequestOptions(NamedTuple):
    logprobs: bool
    images: bool


def _request_options(capabilities: Capabilities, method: Method, logprobs: bool) -> _RequestOptions:
    """What to send and to request in a call by a method; ``logprobs`` is what the caller wants."""
    return _RequestOptions(logprobs and capabilities.logprobs and method != "tool", capabilities.sees)


def _learn(trial: Capabilities, error: Exception, blind: bool, options: _RequestOptions) -> None:
    """Note what an error says the model does not support; if it does not say, log-probabilities are left out first."""
    text = reason_of(error)
    if blind and options.images and reads_no_images(error):
        trial.sees = False
    elif "logprob" in text.lower() or (options.logprobs and not OF_METHOD.search(text)):
        trial.logprobs = False
    elif blind and OF_IMAGES.search(text):
        trial.sees = False


@lru_cache(maxsize=256)
def _runnable(
    key: ByIdentity, schema: type[BaseModel], method: Method, logprobs: bool
) -> Runnable[LanguageModelInput, dict[str, Any] | AIMessage]:
    """The model, set up for a form. It is cached, since making a JSON schema takes milliseconds."""
    model: Any = key.model
    extra = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if logprobs else {}
    runnable: Runnable[LanguageModelInput, dict[str, Any] | AIMessage]
    if method in ("json_schema", "json_mode"):
        # The schema and not the class: with the class, clients reject answers that we can parse leniently.
        bound = model.with_structured_output(schema.model_json_schema(), method=method, include_raw=True, **extra)
        runnable = reading_in_threads(bound)
    elif method == "tool":
        runnable = model.bind_tools([schema], tool_choice="any")
    else:
        runnable = model.bind(**extra) if extra else model
    return runnable


def _with_schema(messages: Sequence[BaseMessage], schema: type[BaseModel], method: Method) -> list[BaseMessage]:
    """The messages, with the schema in words at the end if the method does not transmit it.

    It is added to the last message, since many chat templates refuse two user turns in a row.
    """
    if method in ("json_schema", "tool"):
        return list(messages)
    words = _in_words(schema)
    *before, last = messages
    if not isinstance(last, HumanMessage):
        return [*messages, HumanMessage(words)]
    if isinstance(last.content, str):
        content: str | list[Any] = f"{last.content}\n\n{words}"
    else:
        content = [*last.content, {"type": "text", "text": words}]
    return [*before, last.model_copy(update={"content": content})]


@lru_cache(maxsize=64)
def _in_words(schema: type[BaseModel]) -> str:
    """A request for a form, with its schema, whose making takes milliseconds."""
    return IN_WORDS.format(schema=json.dumps(schema.model_json_schema(), separators=(",", ":")))


def _without_images(message: BaseMessage) -> BaseMessage:
    if not isinstance(message.content, list):
        return message
    texts = [b if isinstance(b, str) else str(b.get("text", "")) for b in message.content if _is_text(b)]
    return message.model_copy(update={"content": "\n".join(texts)})


def _is_text(block: str | dict[str, Any]) -> bool:
    return isinstance(block, str) or block.get("type") == "text"


IN_WORDS = """\
Answer with one JSON object that fits this JSON schema, and with nothing else:
{schema}"""
