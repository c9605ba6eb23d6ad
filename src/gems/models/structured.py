"""Structured answers from any chat model, by the best means that it has.

Four ways, best first: a JSON schema that the server enforces, a tool call, JSON of any shape, and plain text with the
schema in words. What a model cannot do shows at its first call, and is not asked for again in this process. Whichever
way it was, an answer is read leniently: weak models wrap JSON in prose, and some put it where it does not belong.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, Literal, TypeVar

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall
from langchain_core.runnables import Runnable
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel, ValidationError

from gems.errors import MalformedAnswerError
from gems.secrets import one_line

__all__ = [
    "Answer",
    "Habits",
    "answer_in_form",
    "form_name",
    "habits_of",
    "is_cut_off",
    "is_not_understood",
    "read_form",
    "read_whole_part",
    "reasoning_of",
    "repeats_itself",
    "written_calls",
]

Schema = TypeVar("Schema", bound=BaseModel)
Way = Literal["json_schema", "tool", "json_mode", "text"]

_TOP_LOGPROBS: Final = 10
_CLIENT_ERRORS: Final = frozenset({400, 405, 415, 422, 501})
"""Statuses of a server that does not know what it was asked for."""
_UNSUPPORTED: Final = re.compile(
    r"not (?:\w+ )?support|unsupported|not implemented|unknown (?:parameter|field)|requires|mmproj"
    r"|endpoints found that support|not allowed to request logprobs",
    re.IGNORECASE,
)
"""How servers say the same with another status: llama.cpp with 500, OpenRouter with 404, OpenAI with 403."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Schema]):
    """A form that was filled in, and the message that it came in."""

    form: Schema
    message: AIMessage


# --- what a model can do --------------------------------------------------------------------------------------------


@dataclass
class Habits:
    """What was found out about one chat model. Threads may find out the same at the same time: no harm is done."""

    ways: tuple[Way, ...]
    logprobs: bool
    sees: bool = True
    tools: bool = True
    """Whether skills can be bound as tools."""

    def prefer(self, way: Way) -> None:
        """This way works: those that were tried before it do not."""
        self.ways = self.ways[self.ways.index(way) :] if way in self.ways else self.ways

    def distrust(self) -> None:
        """The first way brought an answer that could not be read, twice: begin with the next one from now on."""
        self.ways = self.ways[1:] or self.ways


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """A chat model as a cache key: models are mutable and have no hash of their own."""

    model: BaseChatModel

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.model is self.model


def habits_of(model: BaseChatModel, structured: Way | Literal["auto"] = "auto") -> Habits:
    """What is known about a model: at first, what its class and LangChain's profile of it tell."""
    return _habits(_ByIdentity(model), structured)


@lru_cache(maxsize=64)
def _habits(key: _ByIdentity, structured: Way | Literal["auto"]) -> Habits:
    kind, profile = type(key.model), getattr(key.model, "profile", None) or {}
    logprobs = "logprobs" in kind.model_fields
    if structured != "auto":
        return Habits((structured,), logprobs)
    ways: list[Way] = []
    if kind.with_structured_output is not BaseChatModel.with_structured_output:
        ways = ["json_schema", "json_mode"]
    if kind.bind_tools is not BaseChatModel.bind_tools:
        ways.insert(0 if profile.get("structured_output") is False else 1, "tool")
    return Habits((*ways, "text"), logprobs, sees=profile.get("image_inputs") is not False)


# --- asking ---------------------------------------------------------------------------------------------------------


def answer_in_form(
    model: BaseChatModel,
    schema: type[BaseModel],
    messages: Sequence[BaseMessage],
    habits: Habits,
    *,
    logprobs: bool = False,
    blind: bool = False,
) -> AIMessage:
    """One answer that should hold the form, by the first way that the model does not refuse.

    Args:
        model: Any chat model.
        schema: The form.
        messages: What it is asked.
        habits: What is known about the model; what is found out is noted there.
        logprobs: Ask for the log-probabilities of the answer's tokens too, if the model has them.
        blind: The question makes sense without its images: they are left out if the model cannot see.

    Raises:
        Exception: What the model raises: the first of its errors if it refuses every way, else the one that is no
            refusal.
    """
    first: Exception | None = None
    for way, measured, seeing in _attempts(habits, logprobs):
        asked = messages if seeing or not blind else [_without_images(m) for m in messages]
        try:
            runnable = _runnable(_ByIdentity(model), schema, way, measured)
        except (NotImplementedError, TypeError, ValueError) as error:  # a way that its package does not know
            first = first or error
            continue
        try:
            answer = runnable.invoke(_in_words(asked, schema, way))
        except Exception as error:
            if not is_not_understood(error):
                raise
            _learn(habits, error, blind)
            first = first or error
            continue
        habits.prefer(way)
        message = answer["raw"] if isinstance(answer, dict) else answer
        assert isinstance(message, AIMessage)
        return message
    assert first is not None
    raise first


def _attempts(habits: Habits, logprobs: bool) -> Iterator[tuple[Way, bool, bool]]:
    """Ways to try, each again while something new is learned by its failure."""
    for way in habits.ways:
        for _ in range(3):
            now = (way, logprobs and habits.logprobs and way != "tool", habits.sees)
            yield now
            if now == (way, logprobs and habits.logprobs and way != "tool", habits.sees):
                break


def _learn(habits: Habits, error: Exception, blind: bool) -> None:
    text = str(error).lower()
    if "logprob" in text:
        habits.logprobs = False
    if blind and re.search(r"image|vision|multi-?modal|mmproj", text):
        habits.sees = False


def is_not_understood(error: Exception) -> bool:
    """Whether the model refuses the manner of asking, rather than being out of reach."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        if status in _CLIENT_ERRORS:
            return True
        return (status in (403, 404) or status >= 500) and bool(_UNSUPPORTED.search(str(error)))
    return isinstance(error, NotImplementedError)


@lru_cache(maxsize=256)
def _runnable(
    key: _ByIdentity, schema: type[BaseModel], way: Way, logprobs: bool
) -> Runnable[LanguageModelInput, dict[str, Any] | AIMessage]:
    """Making a JSON schema takes milliseconds, so each is made once per model."""
    model: Any = key.model
    extra = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if logprobs else {}
    if way in ("json_schema", "json_mode"):
        # A schema, not the class: with the class, clients refuse what we would rather read leniently.
        runnable = model.with_structured_output(schema.model_json_schema(), method=way, include_raw=True, **extra)
    elif way == "tool":
        runnable = model.bind_tools([schema], tool_choice="any")
    else:
        runnable = model.bind(**extra) if extra else model
    found: Runnable[LanguageModelInput, dict[str, Any] | AIMessage] = runnable
    return found


def _in_words(messages: Sequence[BaseMessage], schema: type[BaseModel], way: Way) -> list[BaseMessage]:
    """The messages, with the schema at their end where it is said in no other way.

    It goes into the last message: many chat templates refuse two turns of the user in a row.
    """
    if way in ("json_schema", "tool"):
        return list(messages)
    words = IN_WORDS.format(schema=json.dumps(schema.model_json_schema(), separators=(",", ":")))
    *before, last = messages
    if not isinstance(last, HumanMessage):
        return [*messages, HumanMessage(words)]
    if isinstance(last.content, str):
        content: str | list[Any] = f"{last.content}\n\n{words}"
    else:
        content = [*last.content, {"type": "text", "text": words}]
    return [*before, last.model_copy(update={"content": content})]


def _without_images(message: BaseMessage) -> BaseMessage:
    if not isinstance(message.content, list):
        return message
    texts = [b if isinstance(b, str) else str(b.get("text", "")) for b in message.content if _is_text(b)]
    return message.model_copy(update={"content": "\n".join(texts)})


def _is_text(block: str | dict[str, Any]) -> bool:
    return isinstance(block, str) or block.get("type") == "text"


def form_name(schema: type[BaseModel]) -> str:
    """What a form is called in its JSON schema."""
    return str(schema.model_config.get("title") or schema.__name__)


# --- reading --------------------------------------------------------------------------------------------------------


def read_form(message: AIMessage, schema: type[Schema]) -> Schema:
    """The form in an answer, wherever it was put.

    Raises:
        MalformedAnswerError: There is none, or it does not fit the schema; the message says what is wrong.
    """
    fault = _why_empty(message)
    for found in _candidates(message, schema):
        try:
            return schema.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"{'.'.join(map(str, first['loc'])) or schema.__name__}: {first['msg']}"
    raise MalformedAnswerError(fault)


def written_calls(message: AIMessage, names: Collection[str]) -> list[ToolCall]:
    """Calls of these tools that a weak model wrote down as JSON in its text, rather than making them."""
    said = str(message.text).rpartition("</think>")[2]
    written = [item for found in _objects(said) for item in (found if isinstance(found, list) else [found])]
    calls: list[ToolCall] = []
    for call in written:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(inner, dict) and inner.get("name") in names:
            args = inner.get("arguments") or inner.get("parameters")
            args = args if isinstance(args, dict) else {}
            calls.append(ToolCall(name=inner["name"], args=args, id=f"written_{uuid.uuid4().hex[:12]}"))
    return calls


def reasoning_of(message: AIMessage) -> str:
    """What a reasoning model thought before it answered, where its provider tells; else empty."""
    blocks = [b for b in message.content_blocks if b["type"] == "reasoning"]
    told = "\n".join(str(b.get("reasoning", "")) for b in blocks).strip()
    # LangChain knows OpenAI's own reasoning only as blocks, never what other servers of its protocol tell.
    return told or str(message.additional_kwargs.get("reasoning_content") or "").strip()


def read_whole_part(message: AIMessage, schema: type[Schema]) -> Schema | None:
    """The form in what came whole of an answer that was cut off; None if that is too little to be one.

    The value in which it was cut is left out, and a list keeps what it says twice once: weak models find no end.
    """
    said = _said(message)
    start = _OPENING.search(said)
    if not is_cut_off(message) or start is None:
        return None
    try:
        return schema.model_validate(_whole(parse_partial_json(said[start.start() :])))
    except (ValueError, RecursionError):  # a ValidationError is a ValueError
        return None


def is_cut_off(message: AIMessage) -> bool:
    """Whether a limit on its length ended an answer, rather than the model."""
    told = message.response_metadata
    return (told.get("finish_reason") or told.get("stop_reason")) in ("length", "max_tokens")


def repeats_itself(message: AIMessage) -> bool:
    """Whether an answer that was cut off holds an object twice: it had said everything, and found no end."""
    objects = [json.dumps(found) for found in _objects(_said(message))]  # those inside one that is not closed
    return is_cut_off(message) and len(set(objects)) < len(objects)


def _said(message: AIMessage) -> str:
    """An answer as JSON that came to no end: its text, or the tool call that it began."""
    return str(message.text) or next((call["args"] or "" for call in message.invalid_tool_calls), "")


def _whole(cut: Any) -> Any:
    """A JSON value without its innermost last one, which may be a part of one; lists hold nothing twice."""
    if isinstance(cut, list):
        return list({json.dumps(item): item for item in cut[:-1]}.values())
    if not isinstance(cut, dict) or not cut:
        return None
    *before, (key, last) = cut.items()
    inner = _whole(last)
    return dict(before) if inner is None else {**dict(before), key: inner}


def _why_empty(message: AIMessage) -> str:
    """What is wrong with an answer that holds nothing of use."""
    if refusal := message.additional_kwargs.get("refusal"):
        return f'it is a refusal: "{one_line(refusal, 200)}"'
    if is_cut_off(message):
        return "it was cut off before its end (the chat option max_tokens, or the model's own limit)"
    return "it holds no structured answer"


def _candidates(message: AIMessage, schema: type[BaseModel]) -> Iterator[Any]:
    """Everything in an answer that may be the form, the likeliest first."""
    name = form_name(schema)
    for call in message.tool_calls:
        if call["name"] in (name, schema.__name__):
            yield call["args"]
    for broken in message.invalid_tool_calls:
        yield from _objects(broken["args"] or "")
    # What a model drafts while it thinks aloud is not its answer, unless there is no other.
    thought, _, said = str(message.text).rpartition("</think>")
    # Servers that take reasoning apart from the answer at times take the answer with it.
    for found in (*_objects(said), *_last_first(thought), *_last_first(reasoning_of(message))):
        yield from _unwrapped(found, schema, name)


def _last_first(thought: str) -> Iterator[Any]:
    yield from reversed(list(_objects(thought)))


def _unwrapped(found: Any, schema: type[BaseModel], name: str) -> Iterator[Any]:
    fields = list(schema.model_fields)
    if isinstance(found, list):  # the list that the form is there to hold; an empty one may be anything
        if found and len(fields) == 1:
            yield {fields[0]: found}
        return
    if not isinstance(found, dict):
        return
    yield found
    for key in (name, "arguments", "parameters", "properties"):  # a tool call in words, or an echo of the schema
        if isinstance(found.get(key), dict):
            yield found[key]


def _objects(text: str) -> Iterator[Any]:
    """The JSON objects and arrays in a text, outermost first; what stands around them does not matter."""
    decoder, at = json.JSONDecoder(strict=False), 0
    while match := _OPENING.search(text, at):
        try:
            found, at = decoder.raw_decode(text, match.start())
        except RecursionError:  # a thousand brackets: a model that repeats itself, and says nothing more
            return
        except ValueError:
            at = match.end()
            continue
        yield found


_OPENING: Final = re.compile(r"[{\[]")

IN_WORDS = """\
Answer with one JSON object that fits this JSON schema, and with nothing else:
{schema}"""
