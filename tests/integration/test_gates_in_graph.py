"""The gates through the graph: good plans and questions are used as they are, bad ones are mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained

from gems.errors import BackendError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsOutput, Prices, TokenPrices
from gems.models.capabilities import capabilities_of
from gems.nodes.meter import unsettled

DATA = Path(__file__).parents[1] / "unit" / "nodes" / "wishes.jsonl"
WISHES = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
ONE_ROUND = GemsContext(memory=False, skills=False, seed=1, max_rounds=1)


class GuidedPainter(PaintGenerator):
    """An image model with a guide."""

    guide = "Write one sentence."

    def objection(self, prompt: str) -> str:
        return ""


def run(
    wish: str,
    plan: Callable[[int], Any],
    requirements: Callable[[int], list[dict[str, Any]]],
    context: GemsContext = ONE_ROUND,
    generator: PaintGenerator | None = None,
) -> tuple[GemsOutput, ScriptedChatModel]:
    """One round, with a chat model that plans and asks as told, and answers every question with yes."""

    def script(schema: str, messages: list[Any], index: int) -> Any:
        match schema:
            case "Plan":
                return plan(index)
            case "Requirements":
                return {"requirements": requirements(index)}
        ids = [line.split(":")[0] for line in messages[-1].text.splitlines() if line.startswith("r") and ":" in line]
        return {"verdicts": [{"id": i, "answer": "yes", "confidence": 0.9} for i in ids]}

    model = ScriptedChatModel(script=script)
    graph = build_graph(mllm=model, generator=generator or GuidedPainter())
    return graph.invoke({"prompt": wish}, context=context), model  # type: ignore[return-value]


def asked(items: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{**item, "kind": "object"} for item in items]


def questions_of(output: GemsOutput) -> list[str]:
    return [r.question for r in output["requirements"]]


@pytest.mark.parametrize("row", WISHES[::11], ids=lambda row: f"{row['kind']}: {row['wish'][:30]}")
@pytest.mark.parametrize("generator", [GuidedPainter, PaintGenerator])
def test_a_good_plan_is_drawn_as_it_is_and_every_question_is_checked(row: dict[str, Any], generator: Any) -> None:
    plan = {"prompt": row["prompt"], "parts": row["parts"]}
    output, model = run(row["wish"], lambda _: plan, lambda _: asked(row["questions"]), generator=generator())
    assert [a.prompt for a in output["attempts"]] == [row["prompt"]]
    assert model.count("Plan") == 1
    assert questions_of(output) == [item["question"] for item in row["questions"]]
    assert output["outcome"] == "solved"
    optional = [not item.get("must", True) for item in row["questions"]]
    assert all(r.must or may for r, may in zip(output["requirements"], optional, strict=True))


WISH = "zwei schwarze Katzen auf einem roten Sofa, keine Menschen"
PARTS = [
    {"words": "zwei schwarze Katzen", "phrase": "two black cats"},
    {"words": "auf einem roten Sofa", "phrase": "on a red sofa"},
    {"words": "keine Menschen", "phrase": "in an empty room"},
]
GOOD = {"prompt": "two black cats on a red sofa in an empty room", "parts": PARTS}
QUESTIONS = [
    {"question": "Are there exactly two cats?", "kind": "count", "words": "zwei Katzen"},
    {"question": "Are the cats black?", "kind": "attribute", "words": "schwarze Katzen"},
    {"question": "Are the cats on a sofa?", "kind": "position", "words": "auf einem Sofa"},
    {"question": "Is the sofa red?", "kind": "attribute", "words": "roten Sofa"},
    {"question": "Is nobody in the image?", "kind": "object", "words": "keine Menschen"},
]


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("three black cats on a red sofa in an empty room", "exactly two"),
        ("two white cats on a red sofa in an empty room", "black"),
        ("two black cats in an empty room", "Is the sofa red"),
        ("two black cats on a red sofa with people all around", "Menschen"),
    ],
)
def test_a_bad_plan_is_mended_by_one_call_that_names_what_is_lost(prompt: str, named: str) -> None:
    bad = {"prompt": prompt, "parts": [*PARTS[:2], {"words": "keine Menschen", "phrase": prompt.split("sofa ")[-1]}]}
    output, model = run(WISH, lambda index: GOOD if index else bad, lambda _: QUESTIONS)
    assert output["attempts"][0].prompt == GOOD["prompt"]
    [_, repair] = [messages for schema, messages, _ in model.calls if schema == "Plan"]
    assert named in repair[-1].text


def test_a_wish_in_another_language_is_not_put_in_front_of_a_plan_that_stays_bad() -> None:
    bad = {"prompt": "three black cats", "parts": PARTS}
    output, model = run(WISH, lambda _: bad, lambda _: QUESTIONS)
    assert output["attempts"][0].prompt == "three black cats"
    assert model.count("Plan") == 2


def test_what_no_question_stands_for_is_asked_for_once() -> None:
    output, model = run(WISH, lambda _: GOOD, lambda index: QUESTIONS[3:] if index else QUESTIONS[:3])
    assert questions_of(output) == [item["question"] for item in QUESTIONS]
    [_, repair] = [messages for schema, messages, _ in model.calls if schema == "Requirements"]
    assert "roten" in repair[-1].text
    assert "Menschen" in repair[-1].text


def test_a_repair_that_brings_nothing_is_not_repeated() -> None:
    output, model = run(WISH, lambda _: GOOD, lambda _: QUESTIONS[:3])
    assert questions_of(output) == [item["question"] for item in QUESTIONS[:3]]
    assert model.count("Requirements") == 2


def test_a_repair_may_say_that_nothing_is_missing() -> None:
    output, model = run(WISH, lambda _: GOOD, lambda index: [] if index else QUESTIONS[:3])
    assert questions_of(output) == [item["question"] for item in QUESTIONS[:3]]
    assert model.count("Requirements") == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"question": "Are there exactly five cats?", "words": "zwei schwarze Katzen"},
        {"question": "Is the sofa green?", "words": "roten Sofa"},
        {"question": "Are there any people?", "words": "keine Menschen"},
        {"question": "Is there a lamp?", "words": "eine Lampe"},
    ],
)
def test_a_bad_question_is_not_checked(bad: dict[str, str]) -> None:
    output, _ = run(WISH, lambda _: GOOD, lambda _: [*QUESTIONS, {**bad, "kind": "object"}])
    assert questions_of(output) == [item["question"] for item in QUESTIONS]


def test_a_repair_that_is_paid_counts_where_a_stop_interrupts_the_next_one() -> None:
    def plan(index: int) -> dict[str, Any]:
        if index == 1:
            raise GraphDrained("stopped while waiting for a server")
        return {"prompt": "three black cats", "parts": PARTS} if index == 0 else GOOD

    def script(schema: str, messages: list[Any], index: int) -> Any:
        if schema == "Plan":
            return plan(index)
        if schema == "Requirements":
            return {"requirements": QUESTIONS[3:] if index else QUESTIONS[:3]}
        ids = [line.split(":")[0] for line in messages[-1].text.splitlines() if line.startswith("r") and ":" in line]
        return {"verdicts": [{"id": i, "answer": "yes", "confidence": 0.9} for i in ids]}

    prices = Prices(roles={"decomposer": TokenPrices(prompt=1e5), "planner": TokenPrices(prompt=1e6)})
    context = ONE_ROUND.model_copy(update={"budget": Budget(prices=prices)})
    model, config = ScriptedChatModel(script=script), {"configurable": {"thread_id": "t"}}
    graph = build_graph(mllm=model, generator=GuidedPainter(), checkpointer=InMemorySaver())
    with pytest.raises(GraphDrained):
        graph.invoke({"prompt": WISH}, config, context=context)  # type: ignore[call-overload]
    values = graph.get_state(config).values  # type: ignore[arg-type]
    assert len(model.calls) == 4
    spent = sum(unsettled(values["run_id"]).values(), values["usage"])
    assert (spent.chat_calls, spent.tokens) == (4, 3 * 15)
    usage = graph.invoke(None, config, context=context)["usage"]  # type: ignore[call-overload]
    assert usage.chat_calls == len(model.calls)
    assert model.count("Requirements") == 2
    assert (usage.tokens, usage.extra_cost) == (15 * (len(model.calls) - 1), 10 * (2 * 0.1 + 2 * 1.0))


def test_repairs_stay_within_the_budget() -> None:
    bad = {"prompt": "three black cats", "parts": PARTS}
    for limit in range(2, 7):
        context = ONE_ROUND.model_copy(update={"budget": Budget(chat_calls=limit)})
        _, model = run(WISH, lambda _: bad, lambda _: QUESTIONS[:3], context)
        assert len(model.calls) <= limit


@pytest.mark.parametrize(("wish", "must"), [("a cat, ideally with a bell", False), ("a cat with a bell", True)])
def test_what_the_user_would_like_weighs_less(wish: str, must: bool) -> None:
    items = [
        {"question": "Is there a cat?", "kind": "object", "words": "a cat"},
        {"question": "Does the cat have a bell?", "kind": "attribute", "words": "with a bell", "must": False},
    ]
    output, _ = run(wish, lambda _: {"prompt": "a cat with a bell"}, lambda _: items)
    assert [(r.must, r.weight) for r in output["requirements"]] == [(True, 1.0), (must, 1.0 if must else 0.5)]
    assert output["outcome"] == "solved"


@pytest.mark.parametrize(("form", "first", "then"), [("Plan", 3, 1), ("Requirements", 3, 1), ("Verdicts", 4, 2)])
def test_a_form_that_can_never_be_read_is_paid_three_times_and_then_once(form: str, first: int, then: int) -> None:
    """Of two candidates, the second one's verdicts are asked for once."""

    def script(schema: str, messages: list[Any], index: int) -> Any:
        if schema == form:
            return "what do you mean?"
        return {
            "Plan": {"prompt": "a cat"},
            "Requirements": {"requirements": [{"question": "Is there a cat?"}]},
            "Verdicts": {"verdicts": [{"id": "r1", "answer": "yes"}]},
        }[schema]

    model = ScriptedChatModel(script=script)
    graph = build_graph(mllm=model, generator=PaintGenerator())
    context = GemsContext(memory=False, seed=1, max_rounds=2, candidates=2)
    counts = []
    for _ in range(3):
        output: Any = graph.invoke({"prompt": "a cat"}, context=context)  # type: ignore[call-overload]
        counts.append(model.count(form))
        assert output["usage"].chat_calls <= 3 + first
    assert counts == [first, first + then, first + 2 * then]


@pytest.mark.parametrize("limit", range(3, 9))
@pytest.mark.parametrize("form", ["Plan", "Requirements"])
@pytest.mark.parametrize("odd", ["?", BackendError("tools are not supported", status_code=400)])
def test_a_repair_always_leaves_a_call_for_the_first_look(limit: int, form: str, odd: Any) -> None:
    """The first answers can be read and have lost something; what mends them cannot, or is refused."""

    def script(schema: str, messages: list[Any], index: int) -> Any:
        if schema == form and index:
            return odd
        return {
            "Plan": {"prompt": "a black cat"},
            "Requirements": {
                "requirements": [{"question": "Is there a cat?", "kind": "object", "words": "a black cat"}]
            },
            "Verdicts": {"verdicts": [{"id": "r1", "answer": "yes", "confidence": 0.9}]},
        }[schema]

    model = ScriptedChatModel(script=script)
    context = ONE_ROUND.model_copy(update={"budget": Budget(chat_calls=limit)})
    output: Any = build_graph(mllm=model, generator=GuidedPainter()).invoke(
        {"prompt": "a black cat on two red sofas"},
        context=context,  # type: ignore[call-overload]
    )
    assert model.count("Verdicts") >= 1
    assert len(model.calls) == output["usage"].chat_calls <= limit


def test_a_repair_that_cannot_be_read_is_sent_back_once_and_spoils_no_later_plan() -> None:
    plans = iter([{"prompt": "a black cat"}, "?", "?"])
    output, model = run("a black cat on two red sofas", lambda _: next(plans), lambda _: QUESTIONS[:1])
    assert model.count("Plan") == 3
    assert output["outcome"] == "solved"
    assert "no valid Plan" in output["errors"][-1]
    assert capabilities_of(model).tries_for("Plan") == 3
