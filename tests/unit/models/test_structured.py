"""Structured answers: what a model supports is found out, and it is asked by that."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import BaseModel, Field, PrivateAttr

from gems.errors import BackendError
from gems.faces import run_here
from gems.models.capabilities import Capabilities, capabilities_of
from gems.models.form_reading import read_form
from gems.models.registry import init_mllm
from gems.models.structured import answer_in_form
from gems.models.unsupported_requests import is_not_understood


class Wish(BaseModel):
    """Say the wish."""

    text: str = Field(min_length=1)
    more: str = ""


CAR_JSON = json.dumps({"text": "a car"})


# --- what a model supports -------------------------------------------------------------------------------------------


class Plain(BaseChatModel):
    """A model that accepts only text, no tools and no images; it raises each given error once."""

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
    """A model that accepts tools too, or claims to."""

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


def test_capabilities_belong_to_one_model_object() -> None:
    model, other = Tools(), Tools()
    capabilities_of(model).give_up(["tool"])
    assert capabilities_of(model).methods == ("text",)
    assert capabilities_of(other).methods == ("tool", "text")


def test_a_text_only_model_gets_the_form_in_the_last_message() -> None:
    model = Plain()
    prompt = [HumanMessage("What do you wish?")]
    assert read_form(run_here(answer_in_form(model, Wish, prompt, capabilities_of(model))), Wish).text == "a car"
    [[prompt_sent]] = model._prompts
    head, _, schema = prompt_sent.text.rpartition("\n")
    assert head.startswith("What do you wish?")
    assert json.loads(schema) == Wish.model_json_schema()
    assert prompt[0].text == "What do you wish?", "the caller's message must not change"


def test_a_refused_way_is_not_tried_again() -> None:
    model = Tools(raises=[refused(400)])
    capabilities = capabilities_of(model)
    for _ in range(2):
        assert read_form(run_here(answer_in_form(model, Wish, [HumanMessage("?")], capabilities)), Wish).text == "a car"
    assert len(model._prompts) == 3
    assert capabilities.methods == ("text",)


def test_other_faults_are_raised_at_once() -> None:
    model = Tools(raises=[refused(503, "busy")])
    capabilities = capabilities_of(model)
    with pytest.raises(BackendError, match="busy"):
        run_here(answer_in_form(model, Wish, [HumanMessage("?")], capabilities))
    assert len(model._prompts) == 1
    assert capabilities.methods == ("tool", "text"), "the fault says nothing about the model"


def test_if_every_way_is_refused_the_first_refusal_is_reported() -> None:
    model = Tools(raises=[refused(400, "first"), refused(422, "second")])
    with pytest.raises(BackendError, match="first"):
        run_here(answer_in_form(model, Wish, [HumanMessage("?")], capabilities_of(model)))


def test_a_model_that_cannot_see_gets_text_only_if_text_suffices() -> None:
    content: list[str | dict[str, Any]] = [
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        {"type": "text", "text": "What do you wish?"},
    ]
    model = Plain(raises=[refused(400, "this model has no vision")])
    capabilities = capabilities_of(model)
    run_here(answer_in_form(model, Wish, [HumanMessage(content)], capabilities, blind=True))
    assert [isinstance(messages[0].content, str) for messages in model._prompts] == [False, True]
    assert "What do you wish?" in model._prompts[1][0].text
    model.raises.append(refused(400, "this model has no vision"))
    with pytest.raises(BackendError, match="no vision"):
        run_here(answer_in_form(model, Wish, [HumanMessage(content)], Capabilities(("text",), logprobs=False)))


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (refused(400), True),
        (refused(422), True),
        (refused(501), True),
        (refused(404, "No endpoints found that support tool use."), True),
        (refused(404, "The model x does not exist"), False),
        (refused(400, "The chatCompletion operation does not work with the specified model, gpt-image-1."), False),
        (
            refused(400, "Azure OpenAI Responses API is enabled only for api-version 2025-03-01-preview and later"),
            False,
        ),
        (
            refused(400, "response_format value as json_schema is enabled only for api versions 2024-08-01 and later"),
            True,
        ),
        (refused(400, "tools do not work with this model"), True),
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
def test_a_refused_way_is_distinguished_from_an_unreachable_server(error: Exception, refusal: bool) -> None:
    assert is_not_understood(error) is refusal


# --- models without a system role ------------------------------------------------------------------------------------


class Server(Tools):
    """A model that refuses what it does not know, always in the same words."""

    refuses: Callable[[list[BaseMessage], dict[str, Any]], Exception | None]
    _seen: list[tuple[bool, bool]] = PrivateAttr(default_factory=list)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        self._seen.append((any(m.type == "system" for m in messages), bool(kw.get("tools"))))
        if error := self.refuses(messages, kw):
            raise error
        return super()._generate(messages, stop, run_manager, **kw)


SYSTEM = [SystemMessage("Obey."), HumanMessage("What do you wish?")]


def has_system(messages: list[BaseMessage]) -> bool:
    return any(m.type == "system" for m in messages)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Invalid value: 'system'. Supported values are: 'user' and 'assistant'."),
        (400, "Failed to deserialize: unknown variant `system`, expected `user` or `assistant`"),
        (400, "first message must be from user"),
        (422, "messages.0: Input should be 'user' or 'assistant'"),
        (400, "不支持system角色"),
        (400, "Bad Request"),
        (422, "Unprocessable Entity"),
        (400, ""),
        (400, "Ungültige Anfrage"),
        (500, "Value is not callable: raise_exception"),
        (500, "Conversation roles must alternate user/assistant/user/assistant/..."),
        (None, "the chat template says: System role not supported"),
    ],
)
def test_a_refusal_of_the_system_role_needs_no_known_words(status: int | None, words: str) -> None:
    error = BackendError(words, status_code=status)
    model = Server(refuses=lambda messages, _: error if has_system(messages) else None)
    capabilities = capabilities_of(model)
    for _ in range(3):
        assert read_form(run_here(answer_in_form(model, Wish, SYSTEM, capabilities)), Wish).text == "a car"
    assert model._seen == [(True, True), *[(False, True)] * 3]
    assert "Obey." in model._prompts[0][0].text


def test_a_server_error_must_go_away_twice_without_the_system_role() -> None:
    fails = [True, False, True, False]
    model = Server(refuses=lambda *_: refused(500, "Internal Server Error") if fails and fails.pop(0) else None)
    capabilities = capabilities_of(model)
    run_here(answer_in_form(model, Wish, SYSTEM, capabilities))
    run_here(answer_in_form(model, Wish, SYSTEM, capabilities))
    assert not capabilities.system_role
    sound = Server(refuses=lambda *_: refused(500, "Internal Server Error") if not sound._seen[1:] else None)
    for _ in range(3):
        run_here(answer_in_form(sound, Wish, SYSTEM, capabilities_of(sound)))
    assert capabilities_of(sound).system_role, "it may have been chance"


def test_neither_a_system_role_nor_tools_nor_a_reason() -> None:
    model = Server(refuses=lambda messages, kw: refused(400, "") if has_system(messages) or kw.get("tools") else None)
    capabilities = capabilities_of(model)
    for _ in range(2):
        assert read_form(run_here(answer_in_form(model, Wish, SYSTEM, capabilities)), Wish).text == "a car"
    assert model._seen == [(True, True), (False, True), (True, False), (False, False), (False, False)]
    assert (capabilities.methods, capabilities.system_role) == (("text",), False)


def test_a_refusal_for_another_reason_is_reported_and_costs_one_more_call_for_each_way() -> None:
    words = iter(f"first {i}" if i == 1 else "request 5f3 is bad" for i in range(1, 99))
    model = Server(refuses=lambda *_: refused(400, next(words)))
    capabilities = capabilities_of(model)
    with pytest.raises(BackendError, match="first 1"):
        run_here(answer_in_form(model, Wish, SYSTEM, capabilities))
    assert len(model._seen) == 4
    for _ in range(3):
        with pytest.raises(BackendError, match="5f3"):
            run_here(answer_in_form(model, Wish, SYSTEM, capabilities))
    assert len(model._seen) <= 4 + 1 + 3 * 2, "the other way is not tried again for each call"
    assert capabilities.system_role


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "who are you?"),
        (402, "pay"),
        (429, "slow down"),
        (503, "busy"),
        (500, "the engine died"),
        (500, "CUDA out of memory"),
        (400, "This model's maximum context length is 8192 tokens"),
        (400, "API key not valid. Please pass a valid API key."),
        (400, "insufficient_quota"),
        (400, "Your request was rejected by our content policy"),
        (400, "The model `x` does not exist"),
        (None, "no answer"),
    ],
)
def test_an_error_with_a_cause_is_not_blamed_on_the_system_role(status: int | None, words: str) -> None:
    model = Server(refuses=lambda *_: BackendError(words, status_code=status))
    with pytest.raises(BackendError, match=re.escape(words)):
        run_here(answer_in_form(model, Wish, SYSTEM, capabilities_of(model)))
    assert all(system for system, _ in model._seen)


class WithLogprobs(Server):
    """A model that can be asked for log-probabilities."""

    logprobs: bool | None = None


def test_neither_a_system_role_nor_log_probabilities_nor_a_reason() -> None:
    model = WithLogprobs(refuses=lambda m, kw: refused(400, "") if has_system(m) or kw.get("logprobs") else None)
    capabilities = capabilities_of(model, "text")
    run_here(answer_in_form(model, Wish, SYSTEM, capabilities, logprobs=True))
    assert (capabilities.system_role, capabilities.logprobs) == (False, False)
    first = len(model._seen)
    run_here(answer_in_form(model, Wish, SYSTEM, capabilities, logprobs=True))
    assert (first, len(model._seen)) == (4, 5)


def test_the_name_of_a_model_is_no_reason() -> None:
    error = BackendError("tool-vision at host answers 400: Bad Request", status_code=400, reason="Bad Request")
    model = Server(refuses=lambda messages, _: error if has_system(messages) else None)
    capabilities = capabilities_of(model)
    run_here(answer_in_form(model, Wish, SYSTEM, capabilities, blind=True))
    assert (capabilities.system_role, capabilities.sees) == (False, True)


def test_what_is_left_after_the_system_role_is_told() -> None:
    model = Server(
        refuses=lambda messages, _: refused(400, "no system role" if has_system(messages) else "context length is 8192")
    )
    with pytest.raises(BackendError, match="context length"):
        run_here(answer_in_form(model, Wish, SYSTEM, capabilities_of(model)))
