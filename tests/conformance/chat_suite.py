"""The contract of every chat model that GEMS uses. A backend's tests subclass this and provide ``model``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from chatting import REQUIREMENTS, fill, look, question
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from pydantic import BaseModel

from gems.nodes.decomposer import Requirements
from gems.nodes.prompt_checks import Plan
from gems.nodes.refiner import Refinement
from gems.options import ChatOptions
from gems.skills.loader import load_skills
from gems.skills.tools import skill_tools


class ChatConformance:
    """Subclass it with a ``model`` fixture. Override ``options`` too if the model needs other options."""

    forms: ClassVar[tuple[type[BaseModel], ...]] = (Plan, Requirements, Refinement)
    """The forms that the model can fill in."""

    prompts: ClassVar[tuple[str, ...]] = ("two red cars", "a blue dog", "three birds", "a striped elephant")
    """Prompts that the model understands."""

    @pytest.fixture
    def model(self) -> BaseChatModel:
        raise NotImplementedError("a subclass must provide its model")

    @pytest.fixture
    def options(self) -> ChatOptions:
        return ChatOptions()

    @pytest.fixture
    def steady(self, model: BaseChatModel) -> BaseChatModel:
        """The same model at temperature 0."""
        return model

    def test_forms_are_filled_in_and_paid_for(self, model: BaseChatModel, options: ChatOptions) -> None:
        for form in self.forms:
            answer, usage = fill(model, form, options=options)
            assert type(answer.form) is form
            assert usage.chat_calls >= 1
            assert usage.prompt_tokens > 0
            assert usage.completion_tokens > 0

    def test_an_image_is_looked_at_question_by_question(self, model: BaseChatModel, options: ChatOptions) -> None:
        look(model, options)  # the first call finds out what the server does not support
        verdicts, usage = look(model, options)
        assert [v.requirement_id for v in verdicts] == [r.id for r in REQUIREMENTS]
        assert usage.prompt_tokens > 0

    def test_more_to_read_costs_more(self, steady: BaseChatModel) -> None:
        short = question(Plan)
        long = [HumanMessage("Some advice before we begin. " * 20), AIMessage("Go on."), *short[1:]]
        short_usage, long_usage = (
            steady.bind_tools([Plan]).invoke(messages).usage_metadata for messages in (short, long)
        )
        assert short_usage is not None
        assert long_usage is not None
        assert short_usage["input_tokens"] < long_usage["input_tokens"]
        assert long_usage["total_tokens"] == long_usage["input_tokens"] + long_usage["output_tokens"]

    def test_skills_can_be_offered_and_read(self, steady: BaseChatModel) -> None:
        tools = [*skill_tools(load_skills().skills.values()), Plan]
        offered = {"Plan", *(tool.name for tool in tools[:-1])}  # type: ignore[union-attr]
        bound = steady.bind_tools(tools)
        first = bound.invoke(question(Plan))
        assert isinstance(first, AIMessage)
        assert {call["name"] for call in first.tool_calls} <= offered
        call = {"name": "counting", "args": {}, "id": "c1", "type": "tool_call"}
        tool_call_message = AIMessage("", tool_calls=[call])
        advice = ToolMessage("Advice: name the number of things exactly.", tool_call_id="c1", name="counting")
        second = bound.invoke([*question(Plan), tool_call_message, advice])
        assert second.tool_calls or second.text

    def test_the_same_question_has_the_same_answer(self, steady: BaseChatModel) -> None:
        assert full_answer(steady, self.prompts[0]) == full_answer(steady, self.prompts[0])

    def test_threads_do_not_disturb_each_other(self, steady: BaseChatModel) -> None:
        alone = [full_answer(steady, prompt) for prompt in self.prompts]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda prompt: full_answer(steady, prompt), self.prompts))
        assert together == alone
        assert len(set(alone)) > 1, "equal answers would make this test meaningless"


def full_answer(model: BaseChatModel, prompt: str) -> str:
    """The text and the tool arguments of the model's answer when it may call a tool."""
    messages: list[BaseMessage] = question(Plan, prompt)
    answer = model.bind_tools([Plan]).invoke(messages)
    return f"{answer.text} {[call['args'] for call in answer.tool_calls]}"
