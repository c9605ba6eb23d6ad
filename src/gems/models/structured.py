"""Structured answers from any chat model, by the best method that it supports.

There are four methods, best first: a JSON schema that the server enforces, a tool call, free-form JSON, and plain text
with the schema in the prompt. What a model does not support shows at its first call, and is not requested again in this
process. Answers are parsed leniently, whatever the method: weak models wrap JSON in prose, and some put it where it
does not belong.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall
from langchain_core.runnables import Runnable
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel, ValidationError

from gems.errors import GemsError, MalformedAnswerError, is_unpaid
from gems.models.calling import call_model, reading_in_threads
from gems.models.deadlines import IN_ONE_TRY
from gems.models.endings import is_cut_off, refusal_of
from gems.models.failures import is_moderated, is_too_long, reason_of, status_of
from gems.models.lenient import (
    Form,
    field_name,
    is_all_json,
    is_broken_json,
    json_values,
    only_list,
    prose_after,
    prose_around,
)
from gems.models.tries import tries_of
from gems.models.written_calls import calls_in_words
from gems.secrets import one_line

__all__ = [
    "MOST_TRIES",
    "REQUESTS",
    "Answer",
    "Capabilities",
    "answer_in_form",
    "answered_objects",
    "capabilities_of",
    "content_key",
    "form_name",
    "invoke",
    "is_not_understood",
    "is_unsupported",
    "read_form",
    "read_whole_part",
    "reasoning_of",
    "repeats_itself",
    "words_after",
    "words_around",
    "written_calls",
]

Schema = TypeVar("Schema", bound=BaseModel)
T = TypeVar("T")
Method = Literal["json_schema", "tool", "json_mode", "text"]

REQUESTS: Final = "gems_requests"
"""The key in an answer's ``response_metadata`` of the requests that it took, where that is known."""
_TOP_LOGPROBS: Final = 10
"""Alternatives to each token that are requested with the log-probabilities."""
_UNSUPPORTED_STATUSES: Final = frozenset({400, 405, 415, 422, 501})
"""HTTP statuses of a server that does not understand a request."""
_UNSUPPORTED_TEXT: Final = re.compile(
    r"not (?:\w+ )?support|unsupported|not implemented|unknown (?:parameter|field)|requires|mmproj"
    r"|endpoints found that|grammar|not allowed to request logprobs",
    re.IGNORECASE,
)
"""The same in words, for servers that use other statuses: llama.cpp 500, OpenRouter 404, OpenAI 403."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Schema]):
    """A completed form, and the message that contained it."""

    form: Schema
    message: AIMessage


# --- what a model supports ------------------------------------------------------------------------------------------


@dataclass
class Capabilities:
    """What is known about one chat model at one server.

    A model's refusal of one way of asking, or an answer in it that cannot be read, teaches something only once another
    way has succeeded on the same content. It is not locked: if two threads learn the same thing at the same time, both
    write the same value.
    """

    methods: tuple[Method, ...]
    """The methods to try, best first; never empty."""
    logprobs: bool
    """Whether to request log-probabilities."""
    sees: bool = True
    """Whether to send images."""
    tools: bool = True
    """Whether to bind skills as tools."""
    system_role: bool = True
    """Whether to send the instructions as a system message, rather than in the user's first message."""
    refusals: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """How often another place for the instructions was tried after a kind of refusal that does not name its reason."""
    unread: dict[int, tuple[Method, ...]] = field(default_factory=dict)
    """By content (``content_key``), the methods whose answers could not be read, while no other has been read."""
    orders: dict[str, tuple[Method, ...]] = field(default_factory=dict)
    """By form, the methods in another order, since answers by the best one could not be read."""
    hopeless: set[str] = field(default_factory=set)
    """The forms that no answer to the last question could be read in."""
    unread_turns: int = 0
    """How many turns with skills in a row could not be read, where the same task without them could."""

    def give_up(self, methods: Collection[Method]) -> None:
        """Note that another method has worked where these did not."""
        self.methods = tuple(method for method in self.methods if method not in methods) or self.methods

    def methods_for(self, content: int, form: str) -> tuple[Method, ...]:
        """The methods to try on a content, best first; those whose answers to it could not be read come last."""
        unread = [method for method in self.unread.get(content, ()) if method in self.methods]
        in_order = sorted(self.methods, key=self.orders.get(form, self.methods).index)
        return (*(method for method in in_order if method not in unread), *unread)

    def tries_for(self, form: str) -> int:
        """How many answers to one question may be paid for until one can be read."""
        return 1 if form in self.hopeless else MOST_TRIES

    def doubt(self, content: int, form: str) -> None:
        """Try another method on this content next time: answers by the one in use could not be read."""
        method = self.methods_for(content, form)[0]
        self.unread[content] = (*(m for m in self.unread.get(content, ()) if m != method), method)
        while len(self.unread) > _MOST_CONTENTS:
            self.unread.pop(next(iter(self.unread)), None)

    def despair(self, content: int, form: str) -> None:
        """Note that no answer to this content could be read: the next question gets one try, by another method."""
        self.doubt(content, form)
        self.orders[form] = self.methods_for(content, form)
        self.hopeless.add(form)

    def note_turn(self, *, was_read: bool) -> None:
        """Note whether a turn with skills could be read; if two could not, skills are no longer offered."""
        self.unread_turns = 0 if was_read else self.unread_turns + 1
        self.tools = self.tools and self.unread_turns < 2

    def conclude(self, content: int, form: str) -> None:
        """Note that an answer to this content could be read: methods whose answers to it could not are given up."""
        self.give_up(self.unread.pop(content, ()))
        self.hopeless.discard(form)


MOST_TRIES: Final = 3
"""Answers to one question that are paid for until one can be read: the first, the one after it was sent back, and one
by another method."""

_MOST_CONTENTS: Final = 64
"""Contents whose unread answers are remembered."""


def content_key(schema: type[BaseModel], messages: Sequence[BaseMessage]) -> int:
    """Identifies a form and the conversation that asks for it, within this process."""
    return hash((form_name(schema), *(text for message in messages for text in _texts_in(message.content))))


def _texts_in(content: str | list[Any]) -> Iterator[str]:
    """The texts of a message, images included: as they are, since each keeps its hash, and a copy is large."""
    if isinstance(content, str):
        yield content
        return
    for block in content:
        values = block.values() if isinstance(block, dict) else (block,)
        yield from (value if isinstance(value, str) else str(value) for value in values)


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """A chat model as a cache key: models are mutable and cannot be hashed."""

    model: BaseChatModel

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.model is self.model


def capabilities_of(model: BaseChatModel, structured: Method | Literal["auto"] = "auto") -> Capabilities:
    """What is known about a model; at first, what its class and its LangChain profile say.

    It is forgotten every hour (``_FORGET_SECONDS``), since servers and models change.

    Args:
        model: Any chat model.
        structured: The only method to use, or "auto".
    """
    return _capabilities(_ByIdentity(model), structured, int(_now() // _FORGET_SECONDS))


_FORGET_SECONDS: Final = 3600.0
_now = time.monotonic


@lru_cache(maxsize=64)
def _capabilities(key: _ByIdentity, structured: Method | Literal["auto"], age: int) -> Capabilities:
    kind, profile = type(key.model), getattr(key.model, "profile", None) or {}
    # The Responses API has them only for plain text, and its client refuses the parameter.
    logprobs = "logprobs" in kind.model_fields and getattr(key.model, "use_responses_api", None) is not True
    if structured != "auto":
        return Capabilities((structured,), logprobs)
    methods: list[Method] = []
    if kind.with_structured_output is not BaseChatModel.with_structured_output:
        methods = ["json_schema", "json_mode"]
    if kind.bind_tools is not BaseChatModel.bind_tools:
        methods.insert(0 if profile.get("structured_output") is False else 1, "tool")
    return Capabilities((*methods, "text"), logprobs, sees=profile.get("image_inputs") is not False)


# --- asking ---------------------------------------------------------------------------------------------------------


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
            if not is_not_understood(error):
                raise
            first_error = first_error or error
            refused.append(method)
            continue
        capabilities.logprobs, capabilities.sees = trial.logprobs, trial.sees
        capabilities.system_role = trial.system_role
        capabilities.give_up(refused)
        return message
    assert first_error is not None
    if not (blind and trial.sees) or _OF_IMAGES.search(reason_of(first_error)):
        raise first_error
    try:  # the reason may be the images, although no refusal says so
        less = replace(capabilities, sees=False)
        message = await answer_in_form(model, schema, messages, less, logprobs=logprobs, blind=blind)
    except Exception:
        raise first_error from None
    for habit in ("logprobs", "sees", "methods", "system_role"):
        setattr(capabilities, habit, getattr(less, habit))
    return message


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
            runnable = _runnable(_ByIdentity(model), schema, method, options.logprobs)
            answer = await invoke(runnable, _with_schema(prompt, schema, method), trial, f"{method} {options}", model)
        except Exception as error:
            first_error = first_error or error
            if not is_not_understood(error):
                raise
            _learn(trial, error, blind, options)
            if _request_options(trial, method, logprobs) == options:
                trial.logprobs = before
                raise first_error from None
            continue
        message = answer["raw"] if isinstance(answer, dict) else answer
        assert isinstance(message, AIMessage)
        return message


def is_unsupported(text: str) -> bool:
    """Whether an error's text says that the model or server does not support the request."""
    return bool(_UNSUPPORTED_TEXT.search(text))


async def invoke(
    runnable: Runnable[Any, T],
    messages: Sequence[BaseMessage],
    capabilities: Capabilities,
    way: str,
    model: BaseChatModel,
) -> T:
    """Call a chat model. If it may refuse system messages, they become part of the user's first message.

    That it refuses them is remembered once the call without them has succeeded. A refusal that gives no reason is
    followed by such a call once for each way of asking, an error of the server by a single request in all, and not
    again if that was of no use.

    Args:
        runnable: The model, set up for the call.
        messages: The conversation.
        capabilities: The model's capabilities as far as they are known; the call may update them.
        way: How the model is asked, such as "tool".
        model: The model itself.

    Raises:
        Exception: The model's error; of two, the first, unless only that one was about the system message.
    """
    if not capabilities.system_role:
        return await call_model(runnable, _without_system_role(messages), model, is_not_understood)
    try:
        return await call_model(runnable, messages, model, is_not_understood)
    except Exception as error:
        names_role, status = _refuses_system_role(error), status_of(error) or 500
        kind = (way if status < 500 else "", str(status))
        may_guess = _gives_no_reason(error) and (status < 500 or _is_asked_once(model))
        may_mean_role = names_role or (may_guess and capabilities.refusals[kind] < _MOST_GUESSES)
        if not may_mean_role or not any(m.type == "system" for m in messages):
            raise
        first_error = error
    is_guess = IN_ONE_TRY.set(status >= 500 and not names_role)
    try:
        answer = await call_model(runnable, _without_system_role(messages), model, is_not_understood)
    except Exception as error:
        if names_role and not _refuses_system_role(error):
            raise
        capabilities.refusals[kind] = _MOST_GUESSES
        raise first_error from None
    finally:
        IN_ONE_TRY.reset(is_guess)
    capabilities.refusals[kind] += 1
    # A server that failed may be well again by chance.
    if names_role or status < 500 or capabilities.refusals[kind] == _MOST_GUESSES:
        capabilities.system_role = False
    return answer


def _is_asked_once(model: BaseChatModel) -> bool:
    """Whether a call of a model can be a single request, without further ones by its client."""
    return bool(tries_of(model)) or not getattr(model, "max_retries", None) or getattr(model, "heeds_one_try", False)


_MOST_GUESSES: Final = 2
"""After this many calls without a system message, it is known whether a kind of refusal was about that."""


def _without_system_role(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The conversation with the text of its system messages at the beginning of the user's first message."""
    instructions = "\n\n".join(str(m.text) for m in messages if m.type == "system")
    turns = [m for m in messages if m.type != "system"]
    first = next((i for i, m in enumerate(turns) if m.type == "human"), None)
    if not instructions:
        return turns
    if first is None:
        return [HumanMessage(instructions), *turns]
    content = turns[first].content
    if isinstance(content, str):
        joined: str | list[Any] = f"{instructions}\n\n{content}"
    else:
        joined = [{"type": "text", "text": instructions}, *content]
    turns[first] = turns[first].model_copy(update={"content": joined})
    return turns


_NO_SYSTEM_ROLE: Final = re.compile(
    r"\broles?\b|角色|raise_exception|['`\"]system['`\"]|first message"
    r"|\b(?:system|developer)\W{0,3}(?:message|prompt|instruction|turn)"
    r"|messages?\b\W*(?:of |type |is |was )*\W*system\b|(?:chat|jinja|prompt) ?template|template ?error",
    re.IGNORECASE,
)
"""How servers and chat templates say that they know no system messages, or none at that place. Whatever they say of
roles is a reason to try without; that costs one call, and nothing is concluded from it unless that call succeeds."""


def _refuses_system_role(error: Exception) -> bool:
    is_refusal = isinstance(error, GemsError) or status_of(error) is not None
    return is_refusal and bool(_NO_SYSTEM_ROLE.search(reason_of(error)))


_OTHER_REASONS: Final = re.compile(
    r"api.?key|auth|credential|permission|quota|budget|billing|balance|credit|payment"
    r"|rate.?limit|too (?:many|long|large)"
    r"|context|tokens?\b|policy|moderat|safety|filter|flagged|inappropriate|sensitive|model.{0,80}(?:exist|found|known)"
    r"|(?:no such|unknown|invalid) model|response_format|schema|json_object|json mode|tools?\b|tool_|function|grammar"
    r"|logprob|image|vision|multi-?modal|mmproj|param|field|max_|temperature"
    r"|died|crash|cuda|memory|engine|worker|overload|unavailable|time[d]? ?out|upstream|gateway"
    r"|余额|欠费|敏感|令牌|密钥",
    re.IGNORECASE,
)
"""What refusals are about that are not about roles."""


def _gives_no_reason(error: Exception) -> bool:
    """Whether a request was refused for a reason that its text does not tell, in any words that are known."""
    return status_of(error) in (400, 422, 500) and not _OTHER_REASONS.search(reason_of(error))


class _RequestOptions(NamedTuple):
    logprobs: bool
    images: bool


def _request_options(capabilities: Capabilities, method: Method, logprobs: bool) -> _RequestOptions:
    """What to send and to request in a call by a method; ``logprobs`` is what the caller wants."""
    return _RequestOptions(logprobs and capabilities.logprobs and method != "tool", capabilities.sees)


_OF_IMAGES: Final = re.compile(r"image|vision|multi-?modal|mmproj", re.IGNORECASE)
"""How servers say that a model does not see."""


_OF_METHOD: Final = re.compile(r"response_format|schema|json|tool|function|grammar", re.IGNORECASE)
"""How servers say that they do not know a method."""


def _learn(trial: Capabilities, error: Exception, blind: bool, options: _RequestOptions) -> None:
    """Note what an error says the model does not support; if it does not say, log-probabilities are left out first."""
    text = reason_of(error)
    if "logprob" in text.lower() or (options.logprobs and not _OF_METHOD.search(text)):
        trial.logprobs = False
    elif blind and _OF_IMAGES.search(text):
        trial.sees = False


def is_not_understood(error: Exception) -> bool:
    """Whether an error means that the model does not support the request, rather than that it cannot be reached.

    A question that is too long, or that moderation refuses, is understood: another way of asking is no better.
    """
    status = status_of(error)
    if status is None:  # the model's package does not support it, and says so before any request
        unsupported = isinstance(error, (TypeError, ValueError)) and not isinstance(error, GemsError)
        return isinstance(error, NotImplementedError) or (unsupported and bool(_NO_ARGUMENT.search(str(error))))
    if is_too_long(error) or is_moderated(error):
        return False
    if status in _UNSUPPORTED_STATUSES:
        return not is_unpaid(reason_of(error))
    return (status in (403, 404) or status >= 500) and is_unsupported(reason_of(error))


_NO_ARGUMENT: Final = re.compile(
    r"unexpected keyword|(?:unsupported|unrecognized|unknown|invalid) .{0,40}(?:argument|method|parameter|schema)"
    r"|not (?:\w+ )?support|must be|tool_choice",
    re.IGNORECASE,
)
"""How packages say that they do not know a parameter or a method."""


@lru_cache(maxsize=256)
def _runnable(
    key: _ByIdentity, schema: type[BaseModel], method: Method, logprobs: bool
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


def form_name(schema: type[BaseModel]) -> str:
    """The name of a form in its JSON schema."""
    return str(schema.model_config.get("title") or schema.__name__)


# --- parsing --------------------------------------------------------------------------------------------------------


def read_form(message: AIMessage, schema: type[Schema], *, pieces: bool = False) -> Schema:
    """The form in an answer, wherever the model put it.

    Args:
        message: The answer.
        schema: The form.
        pieces: Read what is whole in an answer whose JSON is broken. The rest is lost, so ask for it again first.

    Raises:
        MalformedAnswerError: The answer contains no form, or the form does not fit the schema; the message says why.
    """
    fault = _why_empty(message)
    for candidate in _candidates(message, schema, pieces=pieces):
        try:
            return schema.model_validate(candidate)
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"{'.'.join(map(str, first['loc'])) or schema.__name__}: {first['msg']}"
    with contextlib.suppress(ValidationError):
        return schema.model_validate(_prose(message, schema))
    raise MalformedAnswerError(one_line(fault))


def written_calls(message: AIMessage, names: Collection[str]) -> list[ToolCall]:
    """Calls of these tools that a weak model wrote as JSON in its text instead of making them."""
    text = _without_thoughts(str(message.text))
    items = [item for value in json_values(text) for item in (value if isinstance(value, list) else [value])]
    calls: list[ToolCall] = []
    for item in items:
        inner = item.get("function", item) if isinstance(item, dict) else None
        if isinstance(inner, dict) and inner.get("name") in names:
            args = next(filter(None, map(inner.get, ("arguments", "parameters", "input", "args"))), None)
            args = next(iter(json_values(args)), {}) if isinstance(args, str) else args
            args = args if isinstance(args, dict) else {}
            calls.append(ToolCall(name=inner["name"], args=args, id=f"written_{uuid.uuid4().hex[:12]}"))
    by_name = {name.casefold().replace("-", "_"): name for name in names}
    for name, arguments in calls_in_words(text, {*by_name, *map(str.casefold, names)}):
        tool = by_name[name.casefold().replace("-", "_")]
        calls.append(ToolCall(name=tool, args=arguments, id=f"written_{uuid.uuid4().hex[:12]}"))
    return calls


def reasoning_of(message: AIMessage) -> str:
    """What a reasoning model thought before it answered; empty if its provider does not return it."""
    blocks = [b for b in message.content_blocks if b["type"] == "reasoning"]
    reasoning = "\n".join(str(b.get("reasoning", "")) for b in blocks).strip()
    # LangChain makes blocks of OpenAI's own reasoning only, not of other servers with OpenAI's protocol.
    return reasoning or str(message.additional_kwargs.get("reasoning_content") or "").strip()


def words_around(message: AIMessage) -> str:
    """What an answer says around the JSON in it, without what the model thought."""
    return prose_around(_without_thoughts(str(message.text)))


def answered_objects(message: AIMessage) -> list[Any]:
    """The JSON in an answer: the arguments of its calls, or what stands in its text."""
    calls: list[Any] = [call["args"] for call in message.tool_calls]
    return calls or json_values(_without_thoughts(str(message.text)))


def words_after(message: AIMessage) -> str:
    """What an answer says after the JSON in it."""
    return prose_after(_without_thoughts(str(message.text)))


def read_whole_part(message: AIMessage, schema: type[Schema]) -> Schema | None:
    """The form in the complete part of an answer that was cut off; None if that part is too small.

    The value in which the answer was cut is left out, and repeated items of a list are dropped, since weak models may
    repeat themselves without end.
    """
    text = _unfinished_json(message)
    start = re.search(r"[{\[]", text)
    if start is None or not is_cut_off(message):
        return None
    try:
        return schema.model_validate(_complete_part(parse_partial_json(_until_fault(text[start.start() :]))))
    except (ValueError, RecursionError):  # a ValidationError is a ValueError
        return None


def _until_fault(text: str) -> str:
    """A text that begins with JSON, up to its end or first fault: behind that, the partial parser tries each one."""
    try:
        _, end = json.JSONDecoder(strict=False, parse_int=str).raw_decode(text)
    except json.JSONDecodeError as error:
        return text if error.msg.startswith("Unterminated string") else text[: error.pos + 1]
    return text[:end]


def repeats_itself(message: AIMessage) -> bool:
    """Whether an answer that was cut off contains an object twice, so that a longer answer would say no more."""
    objects = [json.dumps(value) for value in json_values(_unfinished_json(message))]  # the complete, inner ones
    return is_cut_off(message) and len(set(objects)) < len(objects)


def _unfinished_json(message: AIMessage) -> str:
    """The JSON of an answer that was cut off: its text, or its unfinished tool call."""
    return str(message.text) or next((call["args"] or "" for call in message.invalid_tool_calls), "")


def _complete_part(cut: Any) -> Any:
    """A JSON value without its last, innermost value, which may be incomplete; and without repeated items of lists."""
    if isinstance(cut, list):
        return list({json.dumps(item): item for item in cut[:-1]}.values())
    if not isinstance(cut, dict) or not cut:
        return None
    *before, (key, last) = cut.items()
    inner = _complete_part(last)
    return dict(before) if inner is None else {**dict(before), key: inner}


def _why_empty(message: AIMessage) -> str:
    """Why an answer contains nothing that can be parsed."""
    if refusal := refusal_of(message):
        return refusal
    if is_cut_off(message):
        return "it was cut off before its end (the chat option max_tokens, or the model's own limit)"
    return "it holds no structured answer"


def _candidates(message: AIMessage, schema: type[BaseModel], *, pieces: bool) -> Iterator[Any]:
    """Everything in an answer that may be the form, most likely first."""
    names = {form_name(schema).casefold(), schema.__name__.casefold()}
    calls = [call["args"] for call in message.tool_calls if _plain_name(call["name"]) in names]
    yield from _one_list(calls, schema)
    yield from _forms_in(calls, schema, items=True)
    # JSON in the reasoning is a draft, and used only if there is no other.
    text = str(message.text)
    answer = _without_thoughts(text)
    thought = _first_turn(text, _TURN_ENDS) if answer != text else ""
    # Some servers that split off the reasoning split off the answer with it.
    drafts = (thought, reasoning_of(message))
    for text in (*(str(call["args"] or "") for call in message.invalid_tool_calls), answer, *drafts):
        text = text if is_cut_off(message) else _with_last_brace(text)
        values = json_values(text)
        is_whole = not (is_cut_off(message) or is_broken_json(text))
        if is_whole and is_all_json(text):
            yield from _joined(values, schema)
        yield from (arguments for _, arguments in calls_in_words(text, names) if not is_cut_off(message))
        yield from _forms_in(values, schema, items=pieces or is_whole)


def _with_last_brace(text: str) -> str:
    """A text with the brace that its JSON lacks at its end, if all else is there; a number there may lack digits."""
    whole = re.sub(r"\s*```\s*\Z", "", text).rstrip()
    with contextlib.suppress(ValueError, RecursionError):
        if whole.endswith(('"', "]", "}", "true", "false", "null")):
            json.loads(f"{whole[whole.index('{') :]}}}", strict=False, parse_int=str)
            return f"{whole}}}"
    return text


def _without_thoughts(text: str) -> str:
    """A text without what was thought, before it or after it; chat templates may contain the opening tag."""
    text = _first_turn(text, _TURN_ENDS)
    text = _ANALYSIS.sub("", _BEFORE_FINAL.sub("", text))
    text = _THOUGHT_ENDS.sub("</think>", _THOUGHT_BEGINS.sub("<think>", text))
    return _first_turn(_THOUGHTS.sub("", text).rpartition("</think>")[2], _END)


def _first_turn(text: str, ends: re.Pattern[str]) -> str:
    """A text up to the end of its first turn that says something: what follows is a conversation that is made up."""
    return next((turn for turn in ends.split(text) if re.search(r"\w", turn)), text)


_TURN_ENDS: Final = re.compile(
    r"<\|(?:im_end|im_start|eot_id|endoftext|end_of_text|eom_id|return|start_header_id|user|endofturn)\|>"
    r"|</s>|<(?:end_of_turn|start_of_turn|eos)>|\[/?INST\]|<\|END_OF_TURN_TOKEN\|>|<｜(?:end▁of▁sentence|User)｜>"
)
"""How chat templates mark that a turn ends, where a server lets a model go on behind that."""
_END: Final = re.compile(r"<\|end\|>")
"""The same of Phi; in gpt-oss, it also ends what is thought."""


_THOUGHTS: Final = re.compile(r"<think>(?:(?!<think>).)*?(?:</think>|\Z)", re.DOTALL)
_THOUGHT_TAG: Final = r"(?:ant)?(?:thinking|thoughts?|reasoning|reflection|analysis|scratchpad)|seed:think|think"
_THOUGHT_BEGINS: Final = re.compile(
    rf"<(?:{_THOUGHT_TAG})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>", re.IGNORECASE
)
_THOUGHT_ENDS: Final = re.compile(
    rf"</(?:{_THOUGHT_TAG})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>", re.IGNORECASE
)
"""How chat models mark what they think, where their server does not split it off."""
_BEFORE_FINAL: Final = re.compile(r"\A.*<\|channel\|>final\b[^<]*<\|message\|>", re.DOTALL)
_ANALYSIS: Final = re.compile(r"<\|channel\|>analysis\b[^<]*<\|message\|>.*?(?:<\|end\|>|\Z)", re.DOTALL)
"""The same in the channels of gpt-oss."""


def _plain_name(name: str) -> str:
    """The name of a called tool without what servers put around it: "functions.Verdicts:0"."""
    return re.sub(r"^(?:functions?|tools?)\W|\W\d+$", "", name.strip().casefold()).strip(" _")


def _prose(message: AIMessage, schema: type[BaseModel]) -> Any:
    """What a form reads from an answer without JSON."""
    text = _without_thoughts(str(message.text))
    if not issubclass(schema, Form) or "{" in text or is_cut_off(message):
        return None
    return schema.from_prose(text)


def _one_list(calls: Sequence[dict[str, Any]], schema: type[BaseModel]) -> Iterator[Any]:
    """The items of a form with one list, if the model made a call for each of them."""
    field = only_list(schema)
    lists = [call[field] for call in calls if isinstance(call.get(field), list)] if field else []
    if len(lists) > 1:
        yield {field: list(itertools.chain.from_iterable(lists))}


def _joined(forms: Sequence[Any], schema: type[BaseModel]) -> Iterator[Any]:
    """The items of a form with one list, if there are several forms with nothing between them and other items each.

    Forms that have an item in common are drafts of the last one.
    """
    field = only_list(schema)
    lists = [form[field] for form in forms if isinstance(form, dict) and isinstance(form.get(field), (list, dict))]
    if not field or len(lists) < 2 or len(lists) < len(forms):
        return
    items = [item for part in lists for item in (part if isinstance(part, list) else [{k: v} for k, v in part.items()])]
    subjects = [_subject(item) for item in items]
    if len(set(subjects)) == len(subjects):
        yield {field: items}


def _subject(item: Any) -> str:
    """What an item is about: a text itself, the first value of an object, or its name if it has only one."""
    if isinstance(item, dict) and item:
        item = next(iter(item)) if len(item) == 1 else next(iter(item.values()))
    return json.dumps(item).casefold()


def _forms_in(values: Sequence[Any], schema: type[BaseModel], *, items: bool) -> Iterator[Any]:
    """What may be the form in some JSON values: the values themselves first, then what is inside them.

    Args:
        values: The JSON values of an answer.
        schema: The form.
        items: Whether they may also be the items of the form's only list, without the form around them.
    """
    list_field = only_list(schema)
    names = {list_field} if list_field else schema.model_fields.keys()
    objects = [value for value in values if isinstance(value, dict)]
    forms = [value for value in objects if not names.isdisjoint(value)]
    yield from reversed(forms)  # a model that thinks aloud writes its drafts first
    list_field = list_field if items else None
    if list_field and len(objects) > 1 and not forms:
        yield {list_field: objects}
    for value in values:
        yield from _unwrapped(value, list_field, schema.enters if issubclass(schema, Form) else lambda _: True)


_DEPTH: Final = 5
"""How deep a form may be inside of a JSON value."""


def _unwrapped(value: Any, list_field: str | None, enters: Callable[[str], bool], depth: int = _DEPTH) -> Iterator[Any]:
    """A JSON value, and what is inside it, as far as it may be the form, see ``Form.enters``."""
    if isinstance(value, dict):
        yield value
    inner_values = _inner_values(value, enters) if depth else []
    # An empty list may be anything, a text without JSON the name of a tool, and a list of texts a part of a schema.
    is_list = isinstance(value, list) and (depth == _DEPTH or not all(isinstance(item, str) for item in value))
    is_json = isinstance(value, str) and inner_values
    if list_field and value and (isinstance(value, dict) or is_list or is_json):
        yield {list_field: value}
    # One of several objects or lists is not the whole list: to take it for that would lose the others.
    is_one_of_many = isinstance(value, list) and sum(not isinstance(item, str) for item in value) > 1
    for inner in inner_values:  # a tool call in words, or an echo of the schema
        yield from _unwrapped(inner, None if is_one_of_many else list_field, enters, depth - 1)


def _inner_values(value: Any, enters: Callable[[str], bool]) -> list[Any]:
    if isinstance(value, str):
        return json_values(value)
    if isinstance(value, dict):
        return [inner for key, inner in value.items() if enters(field_name(key))]
    return value if isinstance(value, list) else []


IN_WORDS = """\
Answer with one JSON object that fits this JSON schema, and with nothing else:
{schema}"""
