"""Chat servers that speak the OpenAI protocol, with every fault, over real HTTP to a server in another process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from chatting import KEY, PROMPT, ChatEndpoint, picture, question
from langchain_core.messages import AIMessage

from gems.authority import OPERATOR
from gems.errors import BackendError, InputError, MalformedAnswerError
from gems.faces import run_here
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsInput
from gems.memory.image_store import ImageStore
from gems.models.capabilities import capabilities_of
from gems.models.registry import init_mllm
from gems.models.structured import answer_in_form
from gems.models.thoughts import reasoning_of
from gems.nodes.decomposer import Requirements
from gems.nodes.prompt_checks import Plan
from gems.nodes.refiner import Refinement
from gems.nodes.retry import RETRY
from gems.options import ChatOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("impatient")]

SOON = RETRY._replace(initial_interval=0.01)
"""The usual tries of each node, sooner after another."""


def draw(chat: ChatEndpoint, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    graph = build_graph(images=ImageStore(tmp_path / "images"), retry=RETRY._replace(max_attempts=1))
    output: dict[str, Any] = graph.invoke(GemsInput(prompt=PROMPT), context=chat.context(**settings))
    return output


# --- the best way to request a form ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "ways"),
    [
        ("fine", ["json_schema"]),
        ("no-schema", ["json_schema", "tool"]),
        ("no-schema-no-tools", ["json_schema", "tool", "json_mode"]),
        ("text-only", ["json_schema", "tool", "json_mode", "text"]),
        ("router", ["json_schema", "tool", "json_mode"]),
    ],
)
def test_the_best_way_is_found_out_once(chat_server: str, behaviour: str, ways: list[str]) -> None:
    chat = ChatEndpoint(chat_server, behaviour)
    assert chat.fill(Plan).prompt
    assert chat.ways == ways
    assert chat.fill(Requirements).requirements
    assert chat.ways == [*ways, ways[-1]], "an unsupported way is not tried again"


@pytest.mark.parametrize("way", ["json_schema", "tool", "json_mode", "text"])
def test_a_way_can_be_chosen(chat_server: str, way: Any) -> None:
    chat = ChatEndpoint(chat_server, structured=way)
    for form in (Plan, Requirements, Refinement):
        chat.fill(form)
    assert [v.answer for v in chat.look()] == ["yes"] * 3
    assert set(chat.ways) == {way}


def test_no_other_way_is_tried_on_a_server_that_is_down(chat_server: str) -> None:
    chat = ChatEndpoint(chat_server, "no-schema-then-down")
    with pytest.raises(BackendError, match="answers 503: no worker left"):
        chat.fill(Plan)
    assert set(chat.ways) == {"json_schema", "tool"}


# --- confidence, images, reasoning ----------------------------------------------------------------------------------


def test_confidence_is_measured_where_the_server_gives_log_probabilities(chat_server: str) -> None:
    assert [v.confidence for v in ChatEndpoint(chat_server).look()] == [0.875] * 3


@pytest.mark.parametrize("behaviour", ["no-logprobs", "forbids-logprobs"])
def test_without_log_probabilities_the_stated_confidence_counts(chat_server: str, behaviour: str) -> None:
    chat = ChatEndpoint(chat_server, behaviour)
    assert all(v.answer == "yes" and v.confidence != 0.875 for v in chat.look())
    chat.look()
    assert [bool(entry["request"].get("logprobs")) for entry in chat.log] == [True, False, False]


def test_log_probabilities_can_be_turned_off(chat_server: str) -> None:
    chat = ChatEndpoint(chat_server, logprobs=False)
    chat.look()
    assert "logprobs" not in chat.log[0]["request"]


def test_images_are_shrunk_and_precede_the_questions(chat_server: str) -> None:
    large, small = ChatEndpoint(chat_server), ChatEndpoint(chat_server, image_size=128)
    large.look()
    small.look()

    def content_parts(chat: ChatEndpoint) -> list[Any]:
        [content] = [m["content"] for m in chat.log[0]["request"]["messages"] if isinstance(m["content"], list)]
        return list(content)

    assert [part["type"] for part in content_parts(small)] == ["image_url", "text"]
    assert len(str(content_parts(small))) < len(str(content_parts(large))) / 2 < len(picture()) * 2


def test_a_refiner_that_cannot_see_works_from_text(chat_server: str) -> None:
    chat = ChatEndpoint(chat_server, "blind", timeout=30)
    assert chat.fill(Refinement, blind=True).prompt
    before = len(chat.log)
    assert chat.fill(Refinement, blind=True).prompt
    assert len(chat.log) == before + 1, "images are not sent again"
    with pytest.raises(BackendError, match="image input is not supported"):
        ChatEndpoint(chat_server, "blind").look()


@pytest.mark.parametrize("behaviour", ["reasoning", "thinks-aloud"])
def test_reasoning_is_kept_apart_from_the_answer(chat_server: str, behaviour: str) -> None:
    chat = ChatEndpoint(chat_server, behaviour)
    model = chat.model
    message = run_here(answer_in_form(model, Plan, question(Plan), capabilities_of(model)))
    assert isinstance(message, AIMessage)
    assert reasoning_of(message).startswith(("Let me", "Maybe"))
    assert "something else" not in chat.fill(Plan).prompt


def test_an_answer_inside_the_reasoning_is_used(chat_server: str) -> None:
    assert ChatEndpoint(chat_server, "reasoning-only").fill(Requirements).requirements


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["busy", "shaky", "slow", "prose", "malformed-once"])
def test_transient_faults_cost_only_time(chat_server: str, behaviour: str) -> None:
    chat = ChatEndpoint(chat_server, behaviour)
    assert chat.fill(Requirements).requirements
    assert [v.answer for v in chat.look()] == ["yes"] * 3


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("broken", "answers 503: no GPU left at all"),
        ("page", r"answers 502 \(up to 3 tries"),
        ("invalid", "answers 422: body.model: no such model"),
        ("wrong-type", "no chat completion"),
        ("error-body", "no chat completion: the engine died"),
        ("no-choices", "no choices"),
        ("truncated", "at 127.0.0.1"),
        ("hung", "no answer"),
    ],
)
def test_a_permanent_fault_gives_a_one_line_error(chat_server: str, behaviour: str, says: str) -> None:
    chat = ChatEndpoint(chat_server, behaviour, timeout=0.5 if behaviour == "hung" else 20.0)
    with pytest.raises(BackendError, match=says) as caught:
        chat.fill(Plan)
    assert "\n" not in str(caught.value)
    assert "pocket at 127.0.0.1" in str(caught.value)


def test_a_redirect_is_not_followed(chat_server: str) -> None:
    """It could take prompts and images to any host."""
    chat = ChatEndpoint(chat_server, "moved")
    with pytest.raises(BackendError, match="answers 307"):
        chat.fill(Plan)
    with urlopen(f"{chat_server}/log/fine~moved-to") as answer:
        assert json.load(answer) == []


@pytest.mark.parametrize(("behaviour", "requests"), [("malformed", 3), ("cut", 2), ("refuses", 2)])
def test_an_invalid_answer_is_requested_only_a_few_times(chat_server: str, behaviour: str, requests: int) -> None:
    chat = ChatEndpoint(chat_server, behaviour)
    with pytest.raises(MalformedAnswerError, match="no valid Plan"):
        chat.fill(Plan)
    assert len(chat.log) == requests


def test_an_endless_list_is_deduplicated(chat_server: str) -> None:
    endless, fine = ChatEndpoint(chat_server, "endless"), ChatEndpoint(chat_server)
    assert endless.fill(Requirements) == fine.fill(Requirements)
    assert len(endless.log) == 1


def test_the_complete_items_of_a_list_that_is_cut_off_twice_are_used(chat_server: str) -> None:
    cut, fine = ChatEndpoint(chat_server, "cut"), ChatEndpoint(chat_server)
    whole, part = fine.fill(Requirements).requirements, cut.fill(Requirements).requirements
    assert part == whole[: len(part)]
    assert 0 < len(part) < len(whole)
    assert len(cut.log) == 2


def test_a_planner_without_tools_works_without_skills(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server, "no-schema-no-tools")
    for _ in range(2):
        assert draw(chat, tmp_path)["outcome"] == "solved"
    skills = [e for e in chat.log if "counting" in str(e["request"].get("tools"))]
    assert len(skills) == 1, "rejected tools are not offered again"


def test_an_invalid_address_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="is not the address of a server"):
        init_mllm("openai:x", ChatOptions(base_url="localhost:8000"), OPERATOR)


def test_an_unreachable_server(tmp_path: Path) -> None:
    output = draw(ChatEndpoint("http://127.0.0.1:9"), tmp_path, max_rounds=1)
    assert output["outcome"] == "failed"
    assert "pocket at 127.0.0.1:9" in output["errors"][0]


# --- answers in other shapes than OpenAI's ---------------------------------------------------------------------------

ODD_SHAPES = [
    "object-arguments",
    "doubled-arguments",
    "empty-arguments",
    "null-arguments",
    "flat-calls",
    "function-call",
    "content-parts",
    "parsed-content",
    "sparse",
    "null-usage",
]


@pytest.mark.parametrize("behaviour", ODD_SHAPES)
@pytest.mark.parametrize("way", ["json_schema", "tool", "json_mode", "text"])
def test_an_answer_in_another_shape_is_read_at_once(chat_server: str, behaviour: str, way: Any) -> None:
    chat = ChatEndpoint(chat_server, behaviour, structured=way)
    for form in (Plan, Requirements, Refinement):
        chat.fill(form)
    assert [v.answer for v in chat.look()] == ["yes"] * 3
    assert len(chat.log) == 4


@pytest.mark.parametrize("behaviour", ODD_SHAPES)
def test_a_run_with_answers_in_another_shape_is_solved(chat_server: str, behaviour: str, tmp_path: Path) -> None:
    output = draw(ChatEndpoint(chat_server, behaviour), tmp_path)
    assert (output["outcome"], output["errors"]) == ("solved", [])


@pytest.mark.parametrize(
    ("behaviour", "says", "retryable"),
    [
        ("choice-error", "stopped with an error: The provider's filter stopped this$", False),
        ("choice-error-passing", "stopped with an error: upstream$", True),
        ("error-text", "no chat completion: model is not loaded", False),
        ("error-body", "no chat completion: the engine died", True),
        ("null-choices", "no chat completion: it has id, model, choices$", True),
        ("null-message", "no choices", True),
    ],
)
@pytest.mark.parametrize("way", ["json_schema", "tool"])
def test_an_error_in_an_answer_is_told_and_classed(
    chat_server: str, behaviour: str, says: str, retryable: bool, way: Any
) -> None:
    chat = ChatEndpoint(chat_server, behaviour, structured=way)
    with pytest.raises(BackendError, match=says) as caught:
        chat.fill(Plan)
    assert caught.value.retryable is retryable
    assert len(chat.log) == 1


def test_an_error_that_does_not_pass_is_paid_once_by_each_role(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server, "choice-error")
    output = build_graph(images=ImageStore(tmp_path), retry=SOON).invoke(
        GemsInput(prompt=PROMPT), context=chat.context()
    )
    assert output["outcome"] == "failed"
    assert "filter stopped this" in output["errors"][0]
    assert len(chat.log) == 2, "the planner and the decomposer"


@pytest.mark.parametrize("behaviour", ["no-system", "no-system-template", "no-system-literal"])
def test_a_server_without_a_system_role_gets_the_instructions_from_the_user(
    chat_server: str, behaviour: str, tmp_path: Path
) -> None:
    chat = ChatEndpoint(chat_server, behaviour)
    for _ in range(2):
        output = draw(chat, tmp_path)
        assert (output["outcome"], output["errors"]) == ("solved", [])
    roles = [[message["role"] for message in entry["request"]["messages"]] for entry in chat.log]
    refused = [i for i, names in enumerate(roles) if "system" in names]
    assert len(refused) < len(roles) / 2
    assert max(refused) < len(roles) / 2, "the second run knows it"
    assert any("You break down what an image must show" in str(entry["request"]["messages"][0]) for entry in chat.log)
    assert any(entry["request"].get("tools") for entry in chat.log), "skills are still offered"


def test_a_server_that_refuses_log_probabilities_without_a_word_of_them_gives_verdicts(chat_server: str) -> None:
    chat = ChatEndpoint(chat_server, "strict~verdicts")
    assert all(verdict.answer != "unsure" for verdict in chat.look())
    first = len(chat.log)
    chat.look()
    assert len(chat.log) == first + 1, "what works is known"


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 4, 5])
@pytest.mark.parametrize("behaviour", ["page", "strict", "malformed", "cuts-connection"])
def test_tries_of_clients_do_not_exceed_a_limit_on_calls(
    chat_server: str, tmp_path: Path, behaviour: str, limit: int
) -> None:
    chat = ChatEndpoint(chat_server, behaviour)
    output = draw(chat, tmp_path, budget=Budget(chat_calls=limit))
    assert len(chat.log) == output["usage"].chat_calls <= limit


def test_a_whole_run_goes_through_a_server(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server)
    output = draw(chat, tmp_path)
    assert output["outcome"] == "solved"
    assert output["usage"].chat_calls == len(chat.log)
    assert output["usage"].prompt_tokens > 100
    assert {entry["key"] for entry in chat.log} == {f"Bearer {KEY}"}
    assert {entry["form"] for entry in chat.log} >= {"Plan", "Requirements", "Verdicts"}


def test_an_image_is_returned_when_the_verifier_fails(chat_server: str, tmp_path: Path) -> None:
    healthy, down = ChatEndpoint(chat_server), ChatEndpoint(chat_server, "broken")
    settings = healthy.context(max_rounds=2).model_dump() | {"mllm": "pocket", "verifier": "openai:pocket"}
    context = GemsContext.model_validate(settings | {"chat_options": down.options}).as_operator()
    output = build_graph(images=ImageStore(tmp_path), retry=SOON).invoke(GemsInput(prompt=PROMPT), context=context)
    assert output["outcome"] == "failed"
    assert output["image"] is not None
    assert any(error.startswith("verifier: ") and "no GPU left" in error for error in output["errors"])


def test_roles_can_have_models_of_their_own(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server)
    settings = chat.context().model_dump() | {"mllm": "pocket", "planner": "openai:pocket", "decomposer": "openai:x"}
    context = GemsContext.model_validate(settings | {"chat_options": chat.options}).as_operator()
    output = build_graph(images=ImageStore(tmp_path), retry=SOON).invoke(GemsInput(prompt=PROMPT), context=context)
    assert output["outcome"] == "solved"
    assert {(entry["form"], entry["request"]["model"]) for entry in chat.log} == {
        ("Plan", "pocket"),
        ("Requirements", "x"),
    }
