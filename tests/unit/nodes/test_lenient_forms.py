"""Forms that are filled in almost as asked: each item is read by itself, and nothing becomes a yes by accident."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from fakes import ScriptedChatModel
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from gems.errors import MalformedAnswerError
from gems.faces import run_here
from gems.graph.context import GemsContext
from gems.graph.state import Requirement, Usage, Verdict
from gems.learning.drafts import SkillDraft
from gems.memory.image_store import encode_png
from gems.models.form_reading import read_form
from gems.models.written_calls import written_calls
from gems.nodes.decomposer import MAX_REQUIREMENTS, Requirements
from gems.nodes.examiner import inspect_image
from gems.nodes.meter import Meter
from gems.nodes.prompt_checks import Plan
from gems.nodes.question_ids import question_of
from gems.nodes.refiner import Refinement, RefinementWithoutEdit
from gems.nodes.verdict_forms import Verdicts

QUESTIONS = [
    Requirement(id="r1", question="Are there any cars in the image?", kind="object"),
    Requirement(id="r2", question="Are there exactly two cars in the image?", kind="count"),
    Requirement(id="s1", question="Is the sign readable?", kind="text", skill="lettering"),
]


def answer_of(content: Any) -> AIMessage:
    return AIMessage(content if isinstance(content, str) else json.dumps(content))


def inspected(content: Any, questions: list[Requirement] = QUESTIONS) -> list[Verdict]:
    """The verdicts of a chat model that gives this answer."""
    from PIL import Image

    model = ScriptedChatModel(script=lambda schema, messages, index: answer_of(content))
    png = encode_png(Image.new("RGB", (8, 8)), {})
    return run_here(inspect_image(Meter(Usage(), GemsContext()), model, questions, png)).verdicts


def item(name: Any = "r1", answer: Any = "yes", confidence: Any = 0.9, reason: Any = "seen") -> dict[str, Any]:
    return {"id": name, "answer": answer, "confidence": confidence, "reason": reason}


GOOD = item("r2")


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        *[
            (word, "yes")
            for word in ("yes", "Yes", "YES.", " yes ", "**Yes**", '"yes"', True, 1, "1", "true", "y", "ｙｅｓ")
        ],
        *[(word, "no") for word in ("no", "No", "NO!", False, 0, "0", "False", "n")],
        *[
            (word, "unsure")
            for word in ("unsure", "Unsure.", "partially", "yes and no", "yes?", "!yes", "-1", "mostly")
        ],
        *[(word, "unsure") for word in (None, 0.7, 2, [], ["yes", "no"], {"yes": True}, "", "not yes", math.nan)],
    ],
)
def test_an_answer_is_read_by_its_meaning(word: Any, answer: str) -> None:
    first, second, _ = inspected({"verdicts": [item(answer=word), GOOD]})
    assert (first.answer, second.answer) == (answer, "yes")


@pytest.mark.parametrize(
    ("stated", "confidence"),
    [
        *[(0.95, 0.95), ("0.95", 0.95), ("95%", 0.95), ("95 %", 0.95), (95, 0.95), ("95", 0.95), ("0,95", 0.95)],
        *[("9/10", 0.9), ("9 out of 10", 0.9), ("95 percent", 0.95), (1, 1.0), (0, 0.0), ("High", 0.9), ("1%", 0.01)],
        *[(x, 0.5) for x in (None, True, -0.2, 8, 1.5, 130, math.nan, math.inf, "sure", "", [], {}, "9/0", "200%")],
    ],
)
def test_a_confidence_is_a_share_or_a_guess(stated: Any, confidence: float) -> None:
    [verdict, *_] = inspected({"verdicts": [item(confidence=stated)]})
    answer = "yes" if confidence >= 0.5 else "unsure"  # which is what a yes is that is less likely than a no
    assert (verdict.answer, verdict.confidence) == (answer, pytest.approx(confidence if answer == "yes" else 0.0))


def test_optional_fields_may_be_null_or_missing() -> None:
    content = {"verdicts": [item(reason=None), {"id": "r2", "answer": "no"}, {"ID": "s1", "Answer": "Yes", "x": [1]}]}
    assert [(v.answer, v.confidence, v.reason) for v in inspected(content)] == [
        ("yes", 0.9, ""),
        ("no", 0.5, ""),
        ("yes", 0.5, ""),
    ]


@pytest.mark.parametrize("reason", [3, 2.5, ["two", "cars"], "two\ncars"])
def test_a_reason_may_be_of_another_type(reason: Any) -> None:
    assert inspected({"verdicts": [item(reason=reason)]})[0].reason


@pytest.mark.parametrize(
    "name",
    [
        "R1",
        "r1.",
        " r 1 ",
        "r-1",
        "(r1)",
        "r01",
        "R_1",
        "r1: Are there any cars in the image?",
        "are there any cars in the image",
    ],
)
def test_an_id_in_another_spelling_belongs_to_its_question(name: str) -> None:
    assert question_of(name, QUESTIONS) == QUESTIONS[0]
    assert [v.answer for v in inspected({"verdicts": [item(name)]})] == ["yes", "unsure", "unsure"]


def test_a_bare_number_is_an_id_only_if_one_question_has_it() -> None:
    assert question_of("2", QUESTIONS) == QUESTIONS[1]
    assert question_of("Question 2", QUESTIONS) == QUESTIONS[1]
    assert question_of("1", QUESTIONS) is None, "r1 or s1"
    assert [v.answer for v in inspected({"verdicts": [item(2), item(1)]})] == ["unsure", "yes", "unsure"]


@pytest.mark.parametrize("name", ["r3", "", "x1", "r1, r2", "r1: Is there a dog?", "first"])
def test_another_id_belongs_to_no_question(name: str) -> None:
    assert question_of(name, QUESTIONS) is None


def test_answers_to_one_question_that_contradict_each_other_are_unsure() -> None:
    yes, no = item(confidence=0.6), item("R1", "no")
    assert inspected({"verdicts": [yes, no]})[0].answer == "unsure"
    assert inspected({"verdicts": [yes, item(answer=["no"])]})[0].answer == "unsure"
    assert inspected({"verdicts": [yes, item(answer=None)]})[0].answer == "yes", "null says nothing"
    agreed = inspected({"verdicts": [item(), yes]})[0]
    assert (agreed.answer, agreed.confidence) == ("yes", 0.6)


BY_ID = {"r1": {"answer": "Yes", "confidence": "90%"}, "r2": "no"}


@pytest.mark.parametrize(
    "content",
    [
        {"verdicts": BY_ID},
        BY_ID,
        {"Verdicts": BY_ID},
        {"result": {"verdicts": BY_ID}},
        {"answers": [item(), item("r2", "no")]},
        [item(), item("r2", "no")],
        [{"verdicts": [item(), item("r2", "no")]}],
        {"verdicts": json.dumps([item(), item("r2", "no")])},
        {"verdicts": [json.dumps(item()), json.dumps(item("r2", "no"))]},
        {"verdicts": ["r1: yes", "r2: no"]},
        {"verdicts": [{"r1": "yes"}, {"r2": {"answer": "no"}}]},
        f"{json.dumps(item())}\n{json.dumps(item('r2', 'no'))}",
        {"verdicts": {"Are there any cars in the image?": "yes", "Are there exactly two cars in the image?": "no"}},
        {"verdicts": [item(), item("r2", "no"), None, 3, "?", {}, {"unasked": 1}, [[]], ["", False], item(" ", "x")]},
    ],
)
def test_a_list_in_another_shape_is_read(content: Any) -> None:
    assert [v.answer for v in inspected(content)] == ["yes", "no", "unsure"]


def test_pieces_of_broken_json_are_used_if_the_second_answer_is_broken_too() -> None:
    broken = json.dumps({"verdicts": [item(), {"x": 1}, item("r2", "no")]}).replace('"x": 1', '"x" 1')
    with pytest.raises(MalformedAnswerError):
        read_form(answer_of(broken), Verdicts)
    assert [v.answer for v in inspected(broken)] == ["yes", "no", "unsure"]


def test_a_single_item_may_stand_without_its_list() -> None:
    assert [v.answer for v in inspected({"verdicts": item()})] == ["yes", "unsure", "unsure"]
    assert [v.answer for v in inspected(item())] == ["yes", "unsure", "unsure"]


def test_a_call_for_each_answer_is_one_list() -> None:
    calls = [
        {"name": "verdicts", "args": {"verdicts": [item(f"r{i}")]}, "id": f"c{i}", "type": "tool_call"} for i in (1, 2)
    ]
    assert [v.id for v in read_form(AIMessage("", tool_calls=calls), Verdicts).verdicts] == ["r1", "r2"]


@pytest.mark.parametrize(
    "content",
    [
        {"verdicts": "none"},
        {"verdicts": None},
        {"verdicts": [{"id": "r1", "outlook": "yes"}]},
        {"verdicts": [{"id": "r1", "answer": None}]},
        {"error": "no image"},
        Verdicts.model_json_schema(),
        Requirements.model_json_schema(),
    ],
)
def test_an_answer_without_one_readable_item_is_malformed(content: Any) -> None:
    with pytest.raises(MalformedAnswerError) as caught:
        read_form(answer_of(content), Verdicts)
    assert "\n" not in str(caught.value)


# --- the other forms ------------------------------------------------------------------------------------------------

ASKED = {"question": "Is there a cat?", "kind": "object"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("Count", "count"), (" COUNT ", "count"), ("counts", "count"), ("colour", "other"), (None, "other"), (3, "other")],
)
def test_a_kind_is_one_that_exists_or_other(kind: Any, expected: str) -> None:
    form = read_form(answer_of({"requirements": [{"question": "How many?", "kind": kind}]}), Requirements)
    assert [r.kind for r in form.requirements] == [expected]


@pytest.mark.parametrize(
    "content",
    [
        {"requirements": [ASKED, {"question": None, "kind": "count"}, {"kind": "count"}, 7, None]},
        {"requirements": [ASKED, {"question": "x" * 5000, "kind": "count"}]},
        {"requirements": [ASKED, {"question": {"text": "?"}, "kind": "count"}]},
        {"requirements": ASKED},
        {"requirements": {"r1": ASKED}},
        {"requirements": {"r1": "Is there a cat?"}},
        {"requirements": {"Is there a cat?": "object"}},
        {"requirements": ["Is there a cat?", "My notes:"]},
        {"requirements": json.dumps([ASKED])},
        {"Requirements": [ASKED]},
        {"output": {"requirements": [{"Question": "Is there a cat?", "Kind": "Object", "id": 1, "weight": None}]}},
    ],
)
def test_requirements_are_read_one_by_one(content: Any) -> None:
    form = read_form(answer_of(content), Requirements)
    assert [r.question for r in form.requirements] == ["Is there a cat?"]


def test_a_long_question_and_a_long_list_are_used() -> None:
    asked = [{"question": f"Is there thing {i}, {'so ' * 80}?", "kind": "object"} for i in range(MAX_REQUIREMENTS + 5)]
    assert len(read_form(answer_of({"requirements": asked}), Requirements).requirements) == MAX_REQUIREMENTS


@pytest.mark.parametrize("content", [{"requirements": []}, {"requirements": [{"kind": "count"}]}, ["r1", "?"], {}])
def test_no_requirement_is_malformed(content: Any) -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(answer_of(content), Requirements)


@pytest.mark.parametrize(
    ("content", "experience", "strategy", "prompt"),
    [
        ({"experience": {"x": 1}, "strategy": ["edit"], "prompt": "a cat"}, "", "rewrite", "a cat"),
        ({"experience": None, "strategy": "Rewrite", "prompt": "a cat"}, "", "rewrite", "a cat"),
        ({"strategy": "re-seed", "prompt": None, "experience": ["a", "b"]}, "a\nb", "reseed", ""),
        ({"prompt": "a cat"}, "", "rewrite", "a cat"),
        ({"lesson": "x", "Action": "Reseed", "newPrompt": "a cat"}, "x", "reseed", "a cat"),
        ({"experience": "x", "strategy": "anything", "prompt": "a cat"}, "x", "rewrite", "a cat"),
        ({"refinement": {"Strategy": "RESTART", "Prompt": "a cat"}}, "", "restart", "a cat"),
    ],
)
def test_a_refinement_is_read_field_by_field(content: Any, experience: str, strategy: str, prompt: str) -> None:
    form = read_form(answer_of(content), Refinement)
    assert (form.experience, form.strategy, form.prompt) == (experience, strategy, prompt)


def test_an_image_model_that_cannot_edit_is_never_asked_to() -> None:
    form = read_form(answer_of({"experience": "", "strategy": "edit", "prompt": "a cat"}), RefinementWithoutEdit)
    assert form.strategy == "rewrite"


@pytest.mark.parametrize(
    "content", [{"prompt": ["a cat", "a dog"]}, {"Final Prompt": "a cat\na dog"}, {"Plan": {"PROMPT": "a cat\na dog"}}]
)
def test_a_plan_is_read(content: Any) -> None:
    assert read_form(answer_of(content), Plan).prompt == "a cat\na dog"


@pytest.mark.parametrize(
    "content", [{"prompt": None}, {"prompt": ""}, {"prompt": "  "}, {"prompt": True}, {"prompt": {}}, {}]
)
def test_a_plan_without_words_is_malformed(content: Any) -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(answer_of(content), Plan)


def test_a_skill_may_be_written_as_a_list_of_steps() -> None:
    content = {
        "name": None,
        "description": "Use when the wish counts. Not else.",
        "body": ["1. Count the things.", "2. Say it."],
    }
    assert read_form(answer_of(content | {"name": "counting"}), SkillDraft).body == "1. Count the things.\n2. Say it."


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_arguments_of_a_written_call_are_an_object_or_its_text(arguments: Any) -> None:
    [call] = written_calls(answer_of({"name": "counting", "arguments": arguments}), {"counting"})
    assert call["args"] == {"a": 1}


# --- properties -----------------------------------------------------------------------------------------------------

_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
JUNK = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc -", max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Any JSON value."""

_IDS = st.sampled_from([lambda i: f"r{i}", lambda i: f"R{i}", lambda i: f" r {i}. ", lambda i: f"(r{i})", lambda i: i])
_YES = st.sampled_from(["yes", "Yes", "YES.", True, 1, "true"])
_NO = st.sampled_from(["no", "No", "NO!", False, 0, "false"])
_UNSURE = st.sampled_from(["unsure", "partially", "maybe", "yes and no", None, [], {}, 0.5])
_SHARES = st.one_of(st.floats(0, 1), st.integers(0, 100), st.sampled_from(["95%", "0.9", "high", None]), JUNK)


@st.composite
def answered(draw: st.DrawFn, number: int) -> tuple[str, dict[str, Any]]:
    """A meaning, and an item that has it."""
    meaning = draw(st.sampled_from(["yes", "no", "unsure"]))
    word = draw({"yes": _YES, "no": _NO, "unsure": _UNSURE}[meaning])
    fields = {"id": draw(_IDS)(number), "answer": word}
    if draw(st.booleans()):
        fields |= {"confidence": draw(_SHARES), "reason": draw(JUNK)}
    return meaning, fields


def _wrapped(draw: st.DrawFn, field: str, items: list[Any]) -> Any:
    shapes: list[Callable[[], Any]] = [
        lambda: {field: items},
        lambda: {field.title(): items, "note": None},
        lambda: {"result": {field: items}},
        lambda: {field: json.dumps(items)},
        lambda: f"Sure [1]!\n```json\n{json.dumps({field: items}, indent=1)}\n```\nAnything else?",
        lambda: items,
    ]
    return draw(st.sampled_from(shapes))()


@st.composite
def verdict_answers(draw: st.DrawFn) -> tuple[list[str], Any]:
    """The meanings of the answers to three questions, and an almost valid form that has them, with junk around them."""
    meanings, items = zip(*(draw(answered(number)) for number in (1, 2, 3)), strict=True)
    junk = draw(st.lists(JUNK.filter(lambda value: not isinstance(value, str)), max_size=3))
    mixed = draw(st.permutations([*items, *junk]))
    return list(meanings), _wrapped(draw, "verdicts", mixed)


THREE = [Requirement(id=f"r{i}", question=f"Is there thing {i}?", kind="object") for i in (1, 2, 3)]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(verdict_answers())
def test_every_readable_answer_survives_and_no_other_becomes_a_yes(case: tuple[list[str], Any]) -> None:
    meanings, content = case
    try:
        verdicts = inspected(content, THREE)
    except MalformedAnswerError:
        assert set(meanings) == {"unsure"}, "something could be read"
        return
    doubted = "yes, but with a confidence of "
    assert ["yes" if v.reason.startswith(doubted) else v.answer for v in verdicts] == meanings
    assert all(0 <= v.confidence <= 1 for v in verdicts)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(JUNK, max_size=4), st.sampled_from([Verdicts, Requirements, Refinement, Plan, SkillDraft]), st.data())
def test_junk_is_malformed_or_harmless(junk: list[Any], form: Any, data: st.DataObject) -> None:
    names = list(form.model_fields)
    fields = data.draw(st.dictionaries(st.sampled_from(names), st.one_of(JUNK, st.just(junk)), max_size=len(names)))
    filled = None
    with contextlib.suppress(MalformedAnswerError):
        filled = read_form(answer_of(fields), form)
    if isinstance(filled, Verdicts):
        assert all(v.answer in ("yes", "no", "unsure") and 0 <= v.confidence <= 1 for v in filled.verdicts)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["Is there a cat?", "Are there two?", "Is it red?"]), JUNK), min_size=1, max_size=4
    ),
    st.lists(JUNK, max_size=3),
    st.data(),
)
def test_every_readable_requirement_survives(
    asked: list[tuple[str, Any]], junk: list[Any], data: st.DataObject
) -> None:
    items = [{"question": question, "kind": kind} for question, kind in asked]
    junk = [value for value in junk if not isinstance(value, str)]
    content = _wrapped(data.draw, "requirements", data.draw(st.permutations([*items, *junk])))
    form = read_form(answer_of(content), Requirements)
    assert {question for question, _ in asked} <= {r.question for r in form.requirements}


@pytest.mark.parametrize(
    "text",
    [
        'Plan(prompt="two (red) cars")',
        "```python\nPlan(prompt='two (red) cars', parts=[])\n```",
        '[Plan(prompt="two (red) cars")]<|eot_id|>',
        'print(default_api.Plan(prompt="two (red) cars"))',
        "<tool_call>\n<function=Plan>\n<parameter=prompt>\ntwo (red) cars\n</parameter>\n</function>\n</tool_call>",
        '<invoke name="Plan"><parameter name="prompt">two (red) cars</parameter></invoke>',
        "<tool_call>Plan\n<arg_key>prompt</arg_key>\n<arg_value>two (red) cars</arg_value>\n</tool_call>",
    ],
)
def test_a_form_that_is_written_as_a_call_is_read(text: str) -> None:
    assert read_form(AIMessage(text), Plan).prompt == "two (red) cars"
    calls = written_calls(AIMessage(text.replace("Plan", "counting")), {"counting"})
    assert [(call["name"], call["args"]["prompt"]) for call in calls] == [("counting", "two (red) cars")]


@pytest.mark.parametrize(
    "text",
    [
        'Plan("two red cars")',
        "Plan(prompt=name)",
        "Plan(prompt=open('/etc/passwd').read())",
        'Plan(prompt="two red',
        'MyPlan(prompt="two red cars")',
        "<function=Other><parameter=prompt>two red cars</parameter></function>",
        "<tool_call>Other<arg_key>prompt</arg_key><arg_value>two red cars</arg_value></tool_call>",
        "```python\ncars = 2\n```",
    ],
)
def test_words_that_are_no_whole_call_are_no_form(text: str) -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(text), Plan)
