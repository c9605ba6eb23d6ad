"""Reads a form from an answer, wherever the model put it.

Answers are parsed leniently, by whatever method they were asked for: weak models wrap JSON in prose, and some put it
where it does not belong.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from langchain_core.messages import AIMessage
from pydantic import BaseModel, ValidationError

from gems.errors import MalformedAnswerError
from gems.models.endings import is_cut_off, refusal_of
from gems.models.lenient import Form, field_name, form_name, is_all_json, is_broken_json, json_values, only_list
from gems.models.thoughts import answer_text, drafts_in, thinks_on
from gems.models.written_calls import calls_in_words
from gems.secrets import one_line

__all__ = ["read_form"]

Schema = TypeVar("Schema", bound=BaseModel)


def read_form(message: AIMessage, schema: type[Schema], *, pieces: bool = False) -> Schema:
    """The form in an answer, wherever the model put it.

    Args:
        message: The answer.
        schema: The form.
        pieces: Read what is whole in an answer whose JSON is broken, or in the thought of one that has no end. The rest
            is lost, so ask for it again first.

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
    # A draft is used only if there is no other JSON: some servers split off the answer with the reasoning.
    torn_calls = [str(call["args"] or "") for call in message.invalid_tool_calls]
    for text in (*torn_calls, answer_text(message), *_drafts(message, schema, pieces=pieces)):
        text = text if is_cut_off(message) else _with_last_brace(text)
        values = json_values(text)
        is_whole = not (is_cut_off(message) or is_broken_json(text))
        if is_whole and is_all_json(text):
            yield from _joined(values, schema)
        yield from (arguments for _, arguments in calls_in_words(text, names) if not is_cut_off(message))
        yield from _forms_in(values, schema, items=pieces or is_whole)


def _drafts(message: AIMessage, schema: type[BaseModel], *, pieces: bool) -> Sequence[str]:
    """The thoughts of an answer in which the form may be.

    A model that was still thinking, or had begun to answer, has not said that its draft is its answer.
    """
    is_unfinished = is_cut_off(message) or thinks_on(message) or is_broken_json(answer_text(message))
    is_usable = pieces and not (issubclass(schema, Form) and schema.is_judgement)
    return drafts_in(message) if is_usable or not is_unfinished else ()


def _with_last_brace(text: str) -> str:
    """A text with the brace that its JSON lacks at its end, if all else is there; a number there may lack digits."""
    whole = re.sub(r"\s*```\s*\Z", "", text).rstrip()
    with contextlib.suppress(ValueError, RecursionError):
        if whole.endswith(('"', "]", "}", "true", "false", "null")):
            json.loads(f"{whole[whole.index('{') :]}}}", strict=False, parse_int=str)
            return f"{whole}}}"
    return text


def _plain_name(name: str) -> str:
    """The name of a called tool without what servers put around it: "functions.Verdicts:0"."""
    return re.sub(r"^(?:functions?|tools?)\W|\W\d+$", "", name.strip().casefold()).strip(" _")


def _prose(message: AIMessage, schema: type[BaseModel]) -> Any:
    """What a form reads from an answer without JSON."""
    text = answer_text(message)
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
