"""What is concluded about a chat model, and when: only what another way has shown on the same content."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from chatting import fill
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import BaseModel, PrivateAttr

from gems.errors import BackendError, MalformedAnswerError
from gems.faces import run_here
from gems.models import capabilities
from gems.models.capabilities import capabilities_of
from gems.models.endings import is_cut_off, is_refused
from gems.models.structured import answer_in_form


class Wish(BaseModel):
    """A wish."""

    text: str


WISH = '{"text": "a car"}'
QUESTION: list[BaseMessage] = [HumanMessage("What?")]


class Server(BaseChatModel):
    """Takes tools and log-probabilities unless ``fault`` raises; answers what ``says`` says of a way and a question."""

    logprobs: bool | None = None
    fault: Any = None
    says: Callable[[str, str], str] = lambda way, question: WISH
    _ways: list[str] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "server"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self.bind(tools=tools)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        way = ("tool" if kwargs.get("tools") else "text") + ("+logprobs" if kwargs.get("logprobs") else "")
        self._ways.append(way)
        if self.fault and (error := self.fault(way)):
            raise error
        answer = AIMessage(self.says(way, str(messages[0].content).partition("\n")[0]))
        return ChatResult(generations=[ChatGeneration(message=answer)])


def test_log_probabilities_are_left_out_before_a_way_is_given_up() -> None:
    model = Server(fault=lambda way: BackendError("unknown field", status_code=400) if "logprobs" in way else None)
    capabilities = capabilities_of(model, "text")
    for _ in range(2):
        run_here(answer_in_form(model, Wish, QUESTION, capabilities, logprobs=True))
    assert model._ways == ["text+logprobs", "text", "text"]


def test_a_package_that_knows_no_log_probabilities_loses_no_way() -> None:
    model = Server(fault=lambda way: TypeError("unexpected keyword argument 'logprobs'") if "logp" in way else None)
    capabilities = capabilities_of(model, "text")
    run_here(answer_in_form(model, Wish, QUESTION, capabilities, logprobs=True))
    assert not capabilities.logprobs


@pytest.mark.parametrize(
    "words", ["maximum context length exceeded", "flagged by our content policy", "Your input is inappropriate"]
)
def test_a_refusal_of_the_content_teaches_nothing(words: str) -> None:
    model = Server(fault=lambda _: BackendError(words, status_code=400))
    capabilities = capabilities_of(model)
    before = repr(capabilities)
    with pytest.raises(BackendError, match=words):
        run_here(answer_in_form(model, Wish, QUESTION, capabilities, logprobs=True))
    assert repr(capabilities) == before
    assert len(model._ways) == 1


def test_if_no_way_succeeds_nothing_is_learnt() -> None:
    model = Server(fault=lambda _: BackendError("unknown field", status_code=400))
    capabilities = capabilities_of(model)
    before = repr(capabilities)
    with pytest.raises(BackendError):
        run_here(answer_in_form(model, Wish, QUESTION, capabilities, logprobs=True))
    assert (capabilities.methods, capabilities.logprobs, capabilities.sees) == (("tool", "text"), True, True)
    assert before.startswith("Capabilities")


def test_a_way_whose_answers_cannot_be_read_is_given_up_once_another_is_read_on_the_same_content() -> None:
    model = Server(says=lambda way, question: "{}" if way == "tool" and question == "hard" else WISH)
    fill(model, Wish, [HumanMessage("easy")])
    fill(model, Wish, [HumanMessage("hard")])
    assert model._ways == ["tool", "tool", "tool", "text"]
    assert capabilities_of(model).methods == ("text",)


def test_a_form_that_was_never_read_is_asked_for_once_by_another_way_until_it_is() -> None:
    model = Server(says=lambda _, question: WISH if question == "3" else "{}")
    for question in range(5):
        with contextlib.suppress(MalformedAnswerError):
            fill(model, Wish, [HumanMessage(str(question))])
    asked = [*["tool", "tool", "text"], "tool", "text", "tool", *["tool", "tool", "text"]]
    assert model._ways == asked, "what is read makes three tries of use again, and the way in which it was comes first"
    assert capabilities_of(model).methods == ("tool", "text")


def test_a_content_that_no_way_can_do_costs_no_way() -> None:
    model = Server(says=lambda _, question: "{}" if question == "hard" else WISH)
    for _ in range(3):
        with pytest.raises(MalformedAnswerError):
            fill(model, Wish, [HumanMessage("hard")])
    assert model._ways[0] == "tool"
    assert model._ways[2] == "text"
    fill(model, Wish, [HumanMessage("easy")])
    assert model._ways[-1] == "tool"


def test_what_is_known_of_a_model_is_forgotten_with_age(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, capabilities._FORGET_SECONDS)
    now = next(clock)
    monkeypatch.setattr(capabilities, "_now", lambda: now)
    model = Server(fault=lambda way: BackendError("unknown field", status_code=400) if way == "tool" else None)
    run_here(answer_in_form(model, Wish, QUESTION, capabilities_of(model)))
    assert capabilities_of(model).methods == ("text",)
    now = next(clock)
    assert capabilities_of(model).methods == ("tool", "text")


@pytest.mark.parametrize(
    "metadata",
    [
        {"finish_reason": "length"},
        {"finish_reason": "MAX_TOKENS"},
        {"done_reason": "length"},
        {"stop_reason": "max_tokens"},
        {"stop_reason": "model_context_window_exceeded"},
        {"stopReason": "max_tokens"},
        {"finish_reason": "model_length"},
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
    ],
)
def test_a_cut_is_recognized_in_every_protocol(metadata: dict[str, Any]) -> None:
    message = AIMessage("{", response_metadata=metadata)
    assert is_cut_off(message)
    assert not is_refused(message)


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", response_metadata={"finish_reason": "content_filter"}),
        AIMessage("", response_metadata={"finish_reason": "SAFETY"}),
        AIMessage("", response_metadata={"finish_reason": "PROHIBITED_CONTENT"}),
        AIMessage("", response_metadata={"stop_reason": "refusal"}),
        AIMessage("", response_metadata={"stopReason": "guardrail_intervened"}),
        AIMessage("", response_metadata={"stopReason": "content_filtered"}),
        AIMessage("", response_metadata={"incomplete_details": {"reason": "content_filter"}}),
        AIMessage("", response_metadata={"prompt_feedback": {"block_reason": "PROHIBITED_CONTENT"}}),
        AIMessage("", additional_kwargs={"refusal": "I will not."}),
        AIMessage([{"type": "refusal", "refusal": "I will not."}]),
        AIMessage([{"type": "non_standard", "value": {"type": "refusal", "refusal": "I will not."}}]),
    ],
)
def test_a_refusal_is_recognized_in_every_protocol(message: AIMessage) -> None:
    assert is_refused(message)
    assert not is_cut_off(message)


@pytest.mark.parametrize("reason", ["stop", "STOP", "end_turn", "tool_use", "tool_calls"])
def test_a_normal_end_is_neither(reason: str) -> None:
    message = AIMessage("", response_metadata={"finish_reason": reason, "prompt_feedback": {"block_reason": None}})
    assert not is_cut_off(message)
    assert not is_refused(message)


@pytest.mark.parametrize(("module", "kind"), [("langchain_acme.chat", BackendError), ("my_models", KeyError)])
def test_whatever_a_package_raises_is_told_in_one_line_and_a_bug_of_ones_own_stays_one(
    module: str, kind: type[Exception]
) -> None:
    model = type("Chat", (Server,), {"__module__": module})(fault=lambda _: KeyError("choices"))
    with pytest.raises(kind, match="choices") as caught:
        fill(model, Wish, QUESTION)
    assert caught.type is kind
    assert "\n" not in str(caught.value)
