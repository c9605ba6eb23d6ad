"""Parsing forms leniently, and learning what a model supports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import BaseModel, Field, PrivateAttr

from gems.errors import BackendError, MalformedAnswerError
from gems.models.registry import init_mllm
from gems.models.structured import (
    Capabilities,
    answer_in_form,
    capabilities_of,
    is_not_understood,
    read_form,
    read_whole_part,
    reasoning_of,
    repeats_itself,
)


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
def test_a_form_is_found_wherever_it_stands(content: str) -> None:
    assert read_form(AIMessage(content), Wish).text == "a car"


def test_line_ends_within_a_string_are_let_pass() -> None:
    assert read_form(AIMessage('{"text": "a\ncar"}'), Wish).text == "a\ncar"


def test_a_list_stands_for_the_form_that_holds_nothing_else() -> None:
    parts = [{"name": "wheel", "count": 4}, {"name": "door"}]
    assert read_form(AIMessage(f"The parts: {json.dumps(parts)}"), Parts) == Parts.model_validate({"parts": parts})
    with pytest.raises(MalformedAnswerError, match="no structured answer"):
        read_form(AIMessage(json.dumps(["a car"])), Wish)


def test_empty_brackets_are_no_form() -> None:
    complete = json.dumps({"parts": [{"name": "wheel"}]})
    assert len(read_form(AIMessage(f"- [] look at the car\n{complete}"), Parts).parts) == 1
    assert read_form(AIMessage('{"parts": []}'), Parts).parts == []


def test_a_tool_call_comes_before_words_and_another_tool_is_not_prompts() -> None:
    calls = [call("Other", {"text": "other"}), call("Wish", CAR)]
    assert read_form(AIMessage('{"text": "a dog"}', tool_calls=calls), Wish).text == "a car"
    assert read_form(AIMessage(CAR_JSON, tool_calls=calls[:1]), Wish).text == "a car"


def test_a_broken_tool_call_is_read_as_words() -> None:
    assert read_form(AIMessage("", invalid_tool_calls=[broken("Wish", CAR_JSON + '"}')]), Wish).text == "a car"


def test_an_answer_in_the_reasoning_is_taken_where_there_is_no_other() -> None:
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
def test_what_is_wrong_with_an_answer_is_said_in_one_line(message: AIMessage, says: str) -> None:
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
        ('Here: {"parts": [{"name": "a"}, {"name": "b', ["a"], ""),  # the b may be the beginning of more
        ('{"parts": [{"name": "a"}, {"name": "b"}], "note": "no en', ["a", "b"], ""),
        ('{"parts": [' + '{"name": "a"}, {"name": "b"}, ' * 9 + '{"name": ', ["a", "b"], ""),
        ('{"note": "all", "parts": [{"name": "a"}, {"name": "b"}', ["a"], "all"),
    ],
)
@pytest.mark.parametrize("by_tool", [False, True])
def test_what_came_whole_of_an_answer_that_was_cut_off(text: str, parts: list[str], note: str, by_tool: bool) -> None:
    calls = [broken("Report", text)] if by_tool else []
    message = AIMessage("" if by_tool else text, invalid_tool_calls=calls, response_metadata=CUT)
    assert read_whole_part(message, Report) == Report(parts=[Part(name=name) for name in parts], note=note)
    assert repeats_itself(message) is (text.count('"a"') > 1)
    assert read_whole_part(message.model_copy(update={"response_metadata": {}}), Report) is None


@pytest.mark.parametrize(
    "text",
    ["", "no", "{", "[", '{"parts": [{"name": "a', '{"parts": 3', '[{"name": "a"}', '{"a": ' * 3000, "[" * 30_000],
)
def test_too_little_of_an_answer_is_no_answer(text: str) -> None:
    assert read_whole_part(AIMessage(text, response_metadata=CUT), Report) is None


def test_reasoning_is_found_in_blocks_and_beside_them() -> None:
    blocks = AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": CAR_JSON}])
    beside = AIMessage(CAR_JSON, additional_kwargs={"reasoning_content": " Hm.\n"})
    openai = beside.model_copy(update={"response_metadata": {"model_provider": "openai"}})
    assert [reasoning_of(m) for m in (blocks, beside, openai, AIMessage(CAR_JSON))] == ["Hm.", "Hm.", "Hm.", ""]


# --- what a model supports -------------------------------------------------------------------------------------------


class Plain(BaseChatModel):
    """A model that takes text alone: no tools, no images; it raises what it is told to, once each."""

    raises: list[Exception] = Field(default_factory=list)
    _prompts: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "plain"

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        self._prompts.append(messages)
        if self.raises:
            raise self.raises.pop(0)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(CAR_JSON))])


class Tools(Plain):
    """One that takes tools as well, or says that it does."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools)


def refused(status: int, text: str = "what is that?") -> BackendError:
    return BackendError(text, status_code=status)


def test_the_ways_to_try_follow_from_the_class_and_its_profile() -> None:
    assert capabilities_of(Plain()).methods == ("text",)
    assert capabilities_of(Tools()).methods == ("tool", "text")
    assert capabilities_of(init_mllm("pocket")).methods == ("tool", "text")
    assert capabilities_of(Tools(), "text").methods == ("text",)
    assert not capabilities_of(Tools(profile={"image_inputs": False})).sees


def test_what_is_known_of_a_model_is_of_that_object() -> None:
    model, other = Tools(), Tools()
    capabilities_of(model).confirm("text")
    assert capabilities_of(model).methods == ("text",)
    assert capabilities_of(other).methods == ("tool", "text")


def test_the_form_is_described_in_the_last_message_of_a_model_that_takes_text_alone() -> None:
    model = Plain()
    prompt = [HumanMessage("What do you wish?")]
    assert read_form(answer_in_form(model, Wish, prompt, capabilities_of(model)), Wish).text == "a car"
    [[prompt_sent]] = model._prompts
    head, _, schema = prompt_sent.text.rpartition("\n")
    assert head.startswith("What do you wish?")
    assert json.loads(schema) == Wish.model_json_schema()
    assert prompt[0].text == "What do you wish?", "the caller's own message stays as it was"


def test_a_way_that_is_refused_is_not_tried_again() -> None:
    model = Tools(raises=[refused(400)])
    capabilities = capabilities_of(model)
    for _ in range(2):
        assert read_form(answer_in_form(model, Wish, [HumanMessage("?")], capabilities), Wish).text == "a car"
    assert len(model._prompts) == 3
    assert capabilities.methods == ("text",)


def test_a_fault_that_is_no_refusal_is_raised_at_once() -> None:
    model = Tools(raises=[refused(503, "busy")])
    capabilities = capabilities_of(model)
    with pytest.raises(BackendError, match="busy"):
        answer_in_form(model, Wish, [HumanMessage("?")], capabilities)
    assert len(model._prompts) == 1
    assert capabilities.methods == ("tool", "text"), "nothing was learned about the model"


def test_where_every_way_is_refused_the_first_refusal_is_told() -> None:
    model = Tools(raises=[refused(400, "first"), refused(422, "second")])
    with pytest.raises(BackendError, match="first"):
        answer_in_form(model, Wish, [HumanMessage("?")], capabilities_of(model))


def test_a_model_that_cannot_see_is_asked_in_words_where_words_are_enough() -> None:
    content: list[str | dict[str, Any]] = [
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        {"type": "text", "text": "What do you wish?"},
    ]
    model = Plain(raises=[refused(400, "this model has no vision")])
    capabilities = capabilities_of(model)
    answer_in_form(model, Wish, [HumanMessage(content)], capabilities, blind=True)
    assert [isinstance(messages[0].content, str) for messages in model._prompts] == [False, True]
    assert "What do you wish?" in model._prompts[1][0].text
    model.raises.append(refused(400, "this model has no vision"))
    with pytest.raises(BackendError, match="no vision"):
        answer_in_form(model, Wish, [HumanMessage(content)], Capabilities(("text",), logprobs=False))


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (refused(400), True),
        (refused(422), True),
        (refused(501), True),
        (refused(404, "No endpoints found that support tool use."), True),
        (refused(404, "The model x does not exist"), False),
        (refused(403, "You are not allowed to request logprobs from this model"), True),
        (refused(403, "Your account is closed"), False),
        (refused(500, "image input is not supported"), True),
        (refused(500, "worker died"), False),
        (refused(401), False),
        (refused(429), False),
        (BackendError("no answer"), False),
        (NotImplementedError(), True),
        (TimeoutError("late"), False),
        (TypeError("a bug"), False),
    ],
)
def test_refusing_the_manner_of_asking_is_told_from_being_out_of_reach(error: Exception, refusal: bool) -> None:
    assert is_not_understood(error) is refusal
