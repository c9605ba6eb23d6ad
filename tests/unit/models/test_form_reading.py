"""Lenient parsing of forms, whole and cut off."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel, Field

from gems.errors import MalformedAnswerError
from gems.models.form_reading import read_form
from gems.models.thoughts import reasoning_of
from gems.models.unfinished_answers import read_whole_part, repeats_itself
from gems.nodes.decomposer import Requirements


class Part(BaseModel):
    name: str
    count: int = 1


class Parts(BaseModel):
    """Name the parts."""

    parts: list[Part]


class Wish(BaseModel):
    """Say the wish."""

    text: str = Field(min_length=1)
    more: str = ""


def call(name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "args": args, "id": "c1", "type": "tool_call"}


def broken(name: str, args: str) -> dict[str, Any]:
    return {"name": name, "args": args, "id": "c1", "error": "no JSON", "type": "invalid_tool_call"}


CAR = {"text": "a car"}
CAR_JSON = json.dumps(CAR)


@pytest.mark.parametrize(
    "content",
    [
        CAR_JSON,
        f"```json\n{CAR_JSON}\n```",
        f"Here you are [1], {{sure}}:\n\n{CAR_JSON}\n\nAnything else?",
        '{"text": "a car", "unasked": true}',
        '{"name": "Wish", "arguments": {"text": "a car"}}',
        '<tool_call>{"name": "Wish", "parameters": {"text": "a car"}}</tool_call>',
        '{"Wish": {"text": "a car"}}',
        '{"Wish": {"text": "a car"}',
        '{"title": "Wish", "type": "object", "properties": {"text": "a car"}}',
        f'<think>\nMaybe {{"text": "a dog"}}?\n</think>\n\n{CAR_JSON}',
        f'Maybe {{"text": "a dog"}}?</think>{CAR_JSON}',
        f'<think>First {{"text": "a dog"}}, no: {CAR_JSON}</think>',
        '{"text": ""} is not allowed, so ' + CAR_JSON,
    ],
)
def test_a_form_is_found_anywhere_in_the_text(content: str) -> None:
    assert read_form(AIMessage(content), Wish).text == "a car"


def test_line_breaks_inside_a_string_are_accepted() -> None:
    assert read_form(AIMessage('{"text": "a\ncar"}'), Wish).text == "a\ncar"


def test_a_bare_list_fills_a_form_with_one_list() -> None:
    parts = [{"name": "wheel", "count": 4}, {"name": "door"}]
    assert read_form(AIMessage(f"The parts: {json.dumps(parts)}"), Parts) == Parts.model_validate({"parts": parts})
    with pytest.raises(MalformedAnswerError, match="no structured answer"):
        read_form(AIMessage(json.dumps(["a car"])), Wish)


def test_empty_braces_are_not_a_form() -> None:
    complete = json.dumps({"parts": [{"name": "wheel"}]})
    assert len(read_form(AIMessage(f"- [] look at the car\n{complete}"), Parts).parts) == 1
    assert read_form(AIMessage('{"parts": []}'), Parts).parts == []


def test_a_tool_call_takes_precedence_over_text_and_other_tools_are_ignored() -> None:
    calls = [call("Other", {"text": "other"}), call("Wish", CAR)]
    assert read_form(AIMessage('{"text": "a dog"}', tool_calls=calls), Wish).text == "a car"
    assert read_form(AIMessage(CAR_JSON, tool_calls=calls[:1]), Wish).text == "a car"


@pytest.mark.parametrize(
    "text",
    [
        "{car}<think>was it {draft}?</think>",
        "{car}<think>or {draft}",
        "<think>{draft}</think>{car}<think>or {draft}</think>",
        "{draft}</think>{car}",
        "<think>{draft}",
    ],
)
def test_what_is_thought_is_read_only_if_there_is_nothing_else(text: str) -> None:
    draft = '{"text": "a draft"}'
    form = read_form(AIMessage(text.replace("{car}", CAR_JSON).replace("{draft}", draft)), Wish)
    assert form.text == ("a car" if "{car}" in text else "a draft")


def test_a_broken_tool_call_is_read_as_text() -> None:
    assert read_form(AIMessage("", invalid_tool_calls=[broken("Wish", CAR_JSON + '"}')]), Wish).text == "a car"


def test_an_answer_in_the_reasoning_is_the_last_resort() -> None:
    thought = {"reasoning_content": f'Is it {{"text": "a dog"}}? No, {CAR_JSON}'}
    assert read_form(AIMessage("", additional_kwargs=thought), Wish).text == "a car"
    assert read_form(AIMessage('{"text": "a cat"}', additional_kwargs=thought), Wish).text == "a cat"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (AIMessage(""), "no structured answer"),
        (AIMessage("I would rather not."), "no structured answer"),
        (AIMessage('{"text": "a c'), "no structured answer"),
        (AIMessage("", invalid_tool_calls=[broken("Wish", '{"text": "a c')]), "no structured answer"),
        (AIMessage('{"text": 3}'), "text: Input should be a valid string"),
        (AIMessage("{}"), "text: Field required"),
        (AIMessage('{"a": ' * 3000), "no structured answer"),
        (AIMessage("[" * 30_000), "no structured answer"),
        (AIMessage("[" * 30_000 + "]" * 30_000), "no structured answer"),
        (AIMessage("", additional_kwargs={"refusal": "I'm sorry,\nno."}), 'it is a refusal: "I\'m sorry, no."'),
        (AIMessage('{"text": "a', response_metadata={"finish_reason": "length"}), "cut off .* max_tokens"),
        (AIMessage('{"text": "a', response_metadata={"stop_reason": "max_tokens"}), "cut off .* max_tokens"),
    ],
)
def test_an_invalid_answer_gives_a_one_line_error(message: AIMessage, says: str) -> None:
    with pytest.raises(MalformedAnswerError, match=says) as caught:
        read_form(message, Wish)
    assert "\n" not in str(caught.value)


CUT = {"finish_reason": "length"}


class Report(BaseModel):
    """Say what was seen."""

    parts: list[Part] = Field(min_length=1, max_length=3)
    note: str = ""


@pytest.mark.parametrize(
    ("text", "parts", "note"),
    [
        ('{"parts": [{"name": "a"}, {"name": "b"}, {"na', ["a", "b"], ""),
        ('Here: {"parts": [{"name": "a"}, {"name": "b', ["a"], ""),  # "b" may be the start of a longer name
        ('{"parts": [{"name": "a"}, {"name": "b"}], "note": "no en', ["a", "b"], ""),
        ('{"parts": [' + '{"name": "a"}, {"name": "b"}, ' * 9 + '{"name": ', ["a", "b"], ""),
        ('{"note": "all", "parts": [{"name": "a"}, {"name": "b"}', ["a"], "all"),
    ],
)
@pytest.mark.parametrize("by_tool", [False, True])
def test_the_complete_parts_of_a_truncated_answer_are_used(
    text: str, parts: list[str], note: str, by_tool: bool
) -> None:
    calls = [broken("Report", text)] if by_tool else []
    message = AIMessage("" if by_tool else text, invalid_tool_calls=calls, response_metadata=CUT)
    assert read_whole_part(message, Report) == Report(parts=[Part(name=name) for name in parts], note=note)
    assert repeats_itself(message) is (text.count('"a"') > 1)
    assert read_whole_part(message.model_copy(update={"response_metadata": {}}), Report) is None


@pytest.mark.parametrize(
    "text",
    ["", "no", "{", "[", '{"parts": [{"name": "a', '{"parts": 3', '[{"name": "a"}', '{"a": ' * 3000, "[" * 30_000],
)
def test_too_short_a_truncated_answer_is_invalid(text: str) -> None:
    assert read_whole_part(AIMessage(text, response_metadata=CUT), Report) is None


def test_reasoning_is_found_in_and_beside_content_blocks() -> None:
    blocks = AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": CAR_JSON}])
    beside = AIMessage(CAR_JSON, additional_kwargs={"reasoning_content": " Hm.\n"})
    openai = beside.model_copy(update={"response_metadata": {"model_provider": "openai"}})
    assert [reasoning_of(m) for m in (blocks, beside, openai, AIMessage(CAR_JSON))] == ["Hm.", "Hm.", "Hm.", ""]


@pytest.mark.parametrize("beginning", range(0, 60, 7))
def test_an_answer_that_lost_its_beginning_is_asked_for_again(beginning: int) -> None:
    """Its last items alone would be requirements that nobody misses."""
    questions = [{"question": f"Is there a {thing}?", "kind": "object"} for thing in ("car", "dog", "cat")]
    whole = json.dumps({"requirements": questions})
    message = AIMessage(whole[beginning:])
    if beginning == 0:
        assert len(read_form(message, Requirements).requirements) == 3
        return
    with pytest.raises(MalformedAnswerError):
        read_form(message, Requirements)
    assert read_form(message, Requirements, pieces=True).requirements


@pytest.mark.parametrize("end", ["}", "]", " }\n", "]}"])
def test_a_bracket_too_many_at_the_end_is_nothing_lost(end: str) -> None:
    form = json.dumps({"requirements": [{"question": "Is there a car?"}]})
    assert len(read_form(AIMessage(form + end), Requirements).requirements) == 1
