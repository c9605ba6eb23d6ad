"""The spellings in which chat models write verdicts and requirements: what is clearly meant is read, and no more."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from langchain_core.messages import AIMessage, InvalidToolCall

from gems.errors import MalformedAnswerError
from gems.graph.state import Requirement
from gems.models.form_reading import read_form
from gems.nodes.decomposer import Requirements
from gems.nodes.planner import Plan, _final_plan
from gems.nodes.question_ids import questions_of
from gems.nodes.refiner import Refinement
from gems.nodes.verdict_forms import Verdicts

QUESTIONS = [
    Requirement(id="r1", question="Are there any cars in the image?", kind="object"),
    Requirement(id="r2", question="Are there exactly two cars in the image?", kind="count"),
]


def verdicts(content: Any) -> dict[str, set[str]]:
    """The answers to each question, from a chat model's answer."""
    form = read_form(AIMessage(content if isinstance(content, str) else json.dumps(content)), Verdicts)
    questions = questions_of(list(dict.fromkeys(item.id for item in form.verdicts)), QUESTIONS)
    answers: dict[str, set[str]] = {}
    for item in form.verdicts:
        if item.id in questions:
            answers.setdefault(questions[item.id].id, set()).add(item.answer)
    return answers


def read_answer(answer: Any) -> str:
    """What one answer is read as; "unsure" where it cannot be read."""
    form = read_form(AIMessage(json.dumps({"verdicts": [{"id": "r1", "answer": answer}]})), Verdicts)
    return form.verdicts[0].answer


# --- words ----------------------------------------------------------------------------------------------------------

YES = (
    "yes, two red cars",
    "Yes — two cars",
    "Yes: two cars, both red",
    "yes - two cars",
    "Yes (two cars)",
    "Yes (95%)",
    "**Yes**, two cars",
    "**Yes.** Two cars.",
    "yes\nTwo cars are visible.",
    "Yes!",
    "Answer: yes",
    "correct",
    "Correct.",
    "true",
    "TRUE, two cars",
    "pass",
    "Passed",
    "met",
    "satisfied",
    "fulfilled",
    "✅",
    "✓",
    "✔️",
    "☑",
    "✅ yes",
    "✅ two red cars",
    "Yes ✅",
    "是",
    ["yes"],
    [True],
    {"value": "yes"},
    {"answer": "Yes", "confidence": 0.9},
    {"passed": True},
)
NO = (
    "no, there are three",
    "No. Three cars.",
    "No — only one car",
    "no: nothing red",
    "❌",
    "✗",
    "✘ three cars",
    "❌ No",
    "fail",
    "FAILED",
    "incorrect",
    "false, three cars",
    "not present",
    "Not met.",
    "not satisfied",
    "absent",
    "否",
    "Result: no",
    ["no"],
    {"verdict": "no"},
    {"passed": False},
)
UNSURE = (
    "yes, but only one is red",
    "yes, however one is missing",
    "Yes, although blurred",
    "yes, partially",
    "Yes, mostly",
    "yes, almost",
    "yes, except for the wheel",
    "Yes - not exactly",
    "yes, no",
    "yes and no",
    "yes/no",
    "yes or no",
    "yes|no",
    "yes-ish",
    "yes... ish",
    "yes?",
    "Yes? No.",
    "Yes. No.",
    "yes, maybe",
    "yes, probably",
    "yes, I think",
    "Yes, it seems so",
    "yes, hard to tell",
    "yes, there aren't any",
    "yes, there aren’t any",
    "yes, I can't see any",
    "yes, none",
    "yes (10%)",
    "yes (confidence 0.2)",
    "yes if you squint",
    "not yes",
    "not no",
    "not false",
    "not incorrect",
    "not sure",
    "not visible",
    "no idea",
    "no problem",
    "no text is visible",
    "no, wait, yes",
    "no... yes",
    "no, it is correct",
    "No, actually there are two",
    "no, maybe",
    "no - I cannot tell",
    "partially correct",
    "partly",
    "true and false",
    "pass/fail",
    "✅❌",
    "✅/❌",
    "✅ no",
    "❌ yes",
    "✅ partially",
    "right",
    "left",
    "present",
    "correct?",
    "1.5",
    "0.5",
    "0,7",
    "1, 0",
    "10",
    "y, n",
    "yes-no",
    "unsure, yes",
    "x",
    "☒",
    "Answer: yes or no",
    "",
    ["yes", "no"],
    ["yes", "yes, but"],
    [],
    {"yes": True},
    {"value": "maybe"},
    {"answer": "yes", "passed": False},
    {"value": {"value": {"value": "maybe"}}},
)


@pytest.mark.parametrize(
    ("answer", "meaning"), [*((a, "yes") for a in YES), *((a, "no") for a in NO), *((a, "unsure") for a in UNSURE)]
)
def test_an_answer_is_read_only_if_its_meaning_is_clear(answer: Any, meaning: str) -> None:
    try:
        assert read_answer(answer) == meaning
    except MalformedAnswerError:
        assert meaning == "unsure"


@pytest.mark.parametrize(
    "hedge", ["but", "however", "though", "nearly", "perhaps", "unclear", "not", "never", "sort of"]
)
@pytest.mark.parametrize("word", ["yes", "Yes", "**Yes**", "correct", "true", "passed", "✅"])
@pytest.mark.parametrize("joint", [", ", " - ", " — ", ": ", ". ", " (", "; "])
def test_a_yes_with_a_hedge_is_none(word: str, joint: str, hedge: str) -> None:
    assert read_answer(f"{word}{joint}two cars, {hedge} one is blue") == "unsure"


# --- names of fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "ID",
        "question_id",
        "questionId",
        "Question ID",
        "requirement_id",
        "requirementId",
        "qid",
        "req",
        "requirement",
        "number",
        "#",
        "question",
        "key",
        "r_id",
        "index",
    ],
)
@pytest.mark.parametrize(
    "answer", ["verdict", "result", "Status", "passed", "is_met", "value", "response", "judgement"]
)
def test_fields_have_other_names(name: str, answer: str) -> None:
    content = {"verdicts": [{name: "r1", answer: "yes"}, {name: "r2", answer: "no"}]}
    if name == "r_id":
        with pytest.raises(MalformedAnswerError):
            verdicts(content)
    else:
        assert verdicts(content) == {"r1": {"yes"}, "r2": {"no"}}


_FRAMED = {"item": {"id": "r1", "answer": "yes"}, "verdict": "no"}


@pytest.mark.parametrize(
    "answer",
    [
        _FRAMED,
        {"verdicts": [_FRAMED]},
        {"verdicts": _FRAMED},
        {"result": _FRAMED},
        {"verdicts": [{"question": {"id": "r1", "answer": "yes"}, "verdict": "no"}]},
        {"verdicts": [{"item": {"id": "r1", "answer": "yes"}, "final": {"verdict": "no"}}]},
        {"verdicts": [{"draft": {"id": "r1", "answer": "yes"}, "final": {"id": "r1", "answer": "no"}}]},
        {"verdicts": [{"id": "r1", "answer": "yes", "corrected_answer": "no"}]},
        {"verdicts": [{"id": "r1", "answer": "yes", "review": {"answer": "no"}}]},
    ],
)
def test_what_stands_around_an_answer_may_take_it_back(answer: Any) -> None:
    form = read_form(AIMessage(json.dumps(answer)), Verdicts)
    assert [(item.id, item.answer) for item in form.verdicts] == [("r1", "unsure")]


def test_what_stands_around_an_answer_may_confirm_it() -> None:
    answers = [_FRAMED | {"verdict": "yes"}, {"item": {"id": "r2", "answer": "no"}, "verdict": None}]
    form = read_form(AIMessage(json.dumps(answers)), Verdicts)
    assert [(item.id, item.answer) for item in form.verdicts] == [("r1", "yes"), ("r2", "no")]


def test_the_right_name_takes_precedence_and_a_contradiction_is_unsure() -> None:
    whole = {"id": "r1", "question": "Is there a car?", "answer": "no", "status": "done", "confidence": 0.7}
    assert verdicts({"verdicts": [whole]}) == {"r1": {"no"}}
    for other in ({"passed": False}, {"verdict": "no"}, {"result": "fail"}):
        assert verdicts({"verdicts": [{"id": "r1", "answer": "yes", **other}]}) == {"r1": {"unsure"}}
    assert verdicts({"verdicts": [{"id": "r1", "status": "done", "verdict": "yes"}]}) == {"r1": {"yes"}}
    assert verdicts({"verdicts": [{"id": "r1", "verdict": ["a", "b"]}, {"id": "r2", "answer": "no"}]})["r1"] == {
        "unsure"
    }


def test_a_reason_and_a_confidence_have_other_names() -> None:
    content = {"verdicts": [{"qid": 1, "verdict": "yes", "certainty": "95 %", "explanation": "two cars"}]}
    [item] = read_form(AIMessage(json.dumps(content)), Verdicts).verdicts
    assert (item.confidence, item.reason) == (0.95, "two cars")


# --- shapes of lists ------------------------------------------------------------------------------------------------

BOTH = {"r1": {"yes"}, "r2": {"no"}}


@pytest.mark.parametrize(
    "content",
    [
        "r1: yes\nr2: no",
        "1. yes\n2. no",
        "1) Yes, a car.\n2) No, three cars.",
        "**r1**: Yes — two cars\n**r2**: No — three cars",
        "- r1: yes\n- r2: no",
        "* **r1:** yes\n* **r2:** no",
        "Here is what I see:\n\nr1 - yes\nr2 - no\n\nAnything else?",
        "<think>r1: no\nr2: yes</think>\nr1: yes\nr2: no",
        "r1 = yes\nr2 = no",
        "r1 → ✅\nr2 → ❌",
        "#1: yes\n#2: no",
        "Q1: yes\nQ2: no",
        "R 1: Yes.\nR 2: No.",
        "(r1) yes\n(r2) no",
        "[r1] yes\n[r2] no",
        "r1,yes\nr2,no",
        "r1\tyes\tseen\nr2\tno\tthree",
        "r1: Are there any cars in the image? Yes\nr2: Are there exactly two cars in the image? No, three.",
        "Are there any cars in the image? Yes.\nAre there exactly two cars in the image? No.",
        "| ID | Answer | Reason |\n|----|:---:|---|\n| r1 | yes | two cars |\n| r2 | **No** | three |",
        "| # | Question | Verdict |\n|---|---|---|\n| 1 | Are there any cars? | ✅ |\n| 2 | Exactly two? | ❌ |",
        "```\nr1: yes\nr2: no\n```",
        "| r1 | yes |\n| r2 | no |",
        {"verdicts": ["r1 - yes", "r2 - no, three"]},
        {"verdicts": ["r1: Yes, a car: red", "**r2** — No"]},
        {"verdicts": "r1: yes\nr2: no"},
        {"verdicts": "r1: yes, r2: no"},
        {"verdicts": [[{"id": "r1", "answer": "yes"}], [{"id": "r2", "answer": "no"}]]},
        [[{"id": "r1", "answer": "yes"}], [{"id": "r2", "answer": "no"}]],
        {"verdicts": [["r1", "yes"], ["r2", "no", 0.9, "three"]]},
        {"r1": "yes", "r2": "no"},
        {"r1": True, "r2": False},
        {"verdicts": [{"r1": "yes", "confidence": 0.9}, {"r2": "no", "reason": "three"}]},
        "**Question r1:** Yes\n**Question r2:** No",
        "r1: **Yes**\n   - Reason: two cars\n   - Confidence: 0.95\nr2: **No**",
        {"r1": ["yes"], "r2": [{"answer": "no"}]},
        {"R1": {"answer": "yes"}, "R2": {"verdict": "no"}},
        "[THINK]r1: no\nr2: yes[/THINK]r1: yes\nr2: no",
        "<thinking>\nr1: no\nr2: yes\n</thinking>\n\nr1: yes\nr2: no",
        "<Reasoning>r1: no</Reasoning><reflection>r2: yes</reflection>r1: yes\nr2: no",
        "◁think▷r1: no◁/think▷r1: yes\nr2: no",
        "<|channel|>analysis<|message|>r1: no<|end|><|start|>assistant<|channel|>final<|message|>r1: yes\nr2: no",
        "<|channel|>analysis<|message|>r1: no<|end|>r1: yes\nr2: no",
        {"verdicts": [{"id": None, "verdict": "yes", "certainty": 0.9}, {"id": "", "verdict": "no"}]},
        {"verdicts": [{"result": "yes", "evidence": "a car"}, {"result": "no", "evidence": "three"}]},
        [
            {"id": "r2", "question": QUESTIONS[0].question, "answer": "yes"},
            {"id": "r1", "question": QUESTIONS[1].question, "answer": "no"},
        ],
        [
            {"id": 0, "question": QUESTIONS[1].question, "answer": "no"},
            {"id": 1, "question": QUESTIONS[0].question, "answer": "yes"},
        ],
        [{"id": 1, "question": "Any cars?", "answer": "yes"}, {"id": 2, "question": "Exactly two?", "answer": "no"}],
        "verdicts:\n- id: r1\n  answer: yes\n- id: r2\n  answer: no\nquality: 0.9\nflaws: none",
        "verdicts:\n- id: r2\n  answer: no\n- id: r1\n  answer: yes\nquality: 0.9\nflaws: none",
        "### r1: Are there any cars in the image?\n\n**Answer:** Yes\n\n### r2: Exactly two?\n\nr2: No",
        "<all><verdict><id>r1</id><answer>yes</answer></verdict><verdict><id>r2</id><answer>no</answer></verdict></all>",
        "<table><tr><th>id</th><th>answer</th></tr><tr><td>r1</td><td>yes</td></tr><tr><td>r2</td><td>no</td></tr></table>",
        "**Met:** r1\n**Not met:** r2",
        {"verdicts": [{"id": "r1", "antwort": "ja"}, {"id": "r2", "antwort": "nein"}]},
        "| 编号 | 答案 | 置信度 |\n|---|---|---|\n| r1 | 是 | 95% |\n| r2 | 否 | 90% |",
        "| Frage | Antwort |\n|---|---|\n| r1 | Ja |\n| r2 | Nein |",
        {"r1": "yes", "r2": "no", "status": "ok"},
        {"Q1": "yes", "#2": "no"},
        {"results": {"r1": {"passed": True}, "r2": {"passed": False}}},
        '{"id": "r1", "answer": "yes"}\n{"id": "r2", "answer": "no"}',
        '{"r1": "yes"}\n{"r2": "no"}',
        '{"verdicts": [{"id": "r1", "answer": "yes"}]}\n{"verdicts": [{"id": "r2", "answer": "no"}]}',
        '```json\n{"verdicts": [{"id": "r1", "answer": "yes"}]}\n```\n```json\n{"verdicts": {"r2": "no"}}\n```',
        {"yes": ["r1"], "no": ["r2"]},
        {"verdicts": {"Yes": ["R1"], "No": ["R2"], "Unsure": []}},
        {"met": "r1", "not_met": "r2"},
        {"pass": [{"id": "r1", "reason": "cars"}], "fail": [{"id": "r2", "reason": "three"}]},
        {"id": ["r1", "r2"], "answer": ["yes", "no"], "confidence": [0.9, 0.8]},
        {"verdicts": [{"verdict": {"id": "r1", "answer": "yes"}}, {"verdict": {"id": "r2", "answer": "no"}}]},
        {"verdicts": [{"id": "question r1", "answer": "yes"}, {"id": "ID r2", "Answer (yes/no)": "no"}]},
        {"verdicts": ["yes", "no"]},
        {"verdicts": [{"answer": "yes"}, {"answer": "no"}]},
        [True, False],
        "yes\nno",
        "yes: r1\nno: r2",
        "✅ r1: two cars\n❌ r2: three",
        "- [✓] r1\n- [✗] r2",
        f"✅ {QUESTIONS[0].question}\n❌ {QUESTIONS[1].question}",
        "**Yes** r1\n**No** r2",
        "r1 yes, r2 no",
        "r1: yes r2: no",
        "r1 is yes\nr2 is no",
        "Answer to r1: yes\nThe answer to r2 is no.",
        "r1 (object): yes\nr2 (count): no",
        "### r1\nYes\n\n### r2\nNo",
        "r1:\nyes\n\nr2:\nno",
        "- id: r1\n  answer: yes\n- id: r2\n  answer: no",
        f"Q: {QUESTIONS[0].question}\nA: yes\n\nQ: {QUESTIONS[1].question}\nA: no",
        '<verdict id="r1">yes</verdict>\n<verdict id="r2">no</verdict>',
        "<r1>yes</r1><r2>no</r2>",
        "r1：是\nr2：否",
        "r1: はい\nr2: いいえ",
        "r1: sim\nr2: não",
        "r1；是的\nr2；不是",
        "① yes\n② no",
        "r1;yes;0.9\nr2;no;0.8",
        "\\boxed{r1: yes, r2: no}",
        "{'verdicts': [{'id': 'r1', 'answer': 'yes'}, {'id': 'r2', 'answer': 'no'}]}",
        "{'r1': True, 'r2': False}",
        '{"verdicts": [{"id": "r1", "answer": "yes",}, {"id": "r2", "answer": "no",},]}',
        '{\n // cars\n "r1": "yes", /* two */\n "r2": "no" # three\n}',
        '{verdicts: [{id: "r1", answer: yes}, {id: "r2", answer: no}]}',
        "{“verdicts”: [{“id”: “r1”, “answer”: “yes”}, {“id”: “r2”, “answer”: “no”}]}",
        '{"verdicts": [{"id": "r1", "answer": "yes"}\n{"id": "r2", "answer": "no", "reason": "a "third" car"}]}',
        '{\\"r1\\": \\"yes\\", \\"r2\\": \\"no\\"}',
        json.dumps(json.dumps({"r1": "yes", "r2": "no"})),
        {"verdicts": [{"question": "r1", "answer": "yes"}, {"question": "r2", "answer": "no"}]},
        {"verdicts": [{"question": QUESTIONS[0].question, "answer": "yes"}, {"id": " R 2 ", "answer": "no"}]},
    ],
)
def test_a_list_has_another_shape(content: Any) -> None:
    assert verdicts(content) == BOTH


@pytest.mark.parametrize(("content", "answer"), [("Yes", "yes"), ("**No.**", "no"), ("是", "yes"), ("nein", "no")])
def test_one_word_answers_a_single_question(content: str, answer: str) -> None:
    form = read_form(AIMessage(content), Verdicts)
    assert questions_of([form.verdicts[0].id], QUESTIONS[1:])[form.verdicts[0].id].id == "r2"
    assert form.verdicts[0].answer == answer


def test_a_draft_is_not_joined_to_the_answer() -> None:
    draft, final = (
        {"verdicts": [{"id": "r1", "answer": word}, {"id": "r2", "answer": "no"}]} for word in ("no", "yes")
    )
    assert verdicts(f"{json.dumps(draft)}\n{json.dumps(final)}") == BOTH


@pytest.mark.parametrize(
    "content",
    [
        "Yes, I can see the image.",
        "1 car is visible.",
        "I see 2 cars, yes.",
        "Step 1: look at the image.",
        "There are two. Yes.",
        "r1, r2: yes",
        "all but r1, r2: yes",
        "r1: yes\n  but only in part",
        "r1: yes\n\nHowever, it may be a bus.",
        "The answer is yes.",
        "r1: yes or no?",
        "| A | B |\n|---|---|\n| r1 | yes |",
        '{"verdicts": [{"id": "r1", "ans',
        {"yes": ["r1"], "no": ["r1"]},
        {"yes": ["r1"], "unsure": ["r1"]},
        {"yes": [{"id": "r1", "answer": "no"}]},
        {"yes": 2, "no": 1},
        {"almost_passed": ["r1"]},
        ["yes"],
        ["yes", "no", "yes"],
        ["yes", None],
        {"verdicts": [{"answer": "yes"}, {"id": "r2", "answer": "no"}]},
        {"id": ["r1", "r2"], "answer": "yes"},
        "yes",
        "Yes no",
        "✅ r1: no cars",
        "✅ r1 ❌",
        "✅ r1\n  but only in part",
        "Yes: r1 and r2 fail",
        "Yes - 1 car is visible",
        "yes: 2 cars",
        "✅ 100%",
        "r1\nr2\nyes or no?",
        "r1\nyes\nbut only in part",
        "r1 is not yes",
        "r1: yes r1: no",
        "<r1>yes</r1><r1>no</r1>",
        "r1: Ja, fast",
        "r1: 是，但是",
        '{"r1": "no", "r1": "yes"}',
        '{"r1": "yes" or "no"}',
        '{"r1": yes, but only half}',
        "{r1: yes/no}",
        '{"verdicts": [{"id": "r1", "answer": "no", "answer": "yes"}]}',
        {"errors": ["r1 - missing"]},
        {"verdicts": [{"id": "r1", "failed": True}]},
        {"verdicts": [{"id": "r1", "present": True}]},
    ],
)
def test_prose_is_no_yes(content: Any) -> None:
    try:
        answers = verdicts(content)
    except MalformedAnswerError:
        return
    assert all(words != {"yes"} for words in answers.values()), answers  # two different answers are unsure


_NO_TO_BOTH = json.dumps({"verdicts": [{"id": "r1", "answer": "no"}, {"id": "r2", "answer": "no"}]})
_YES_TO_BOTH = json.dumps({"verdicts": [{"id": "r1", "answer": "yes"}, {"id": "r2", "answer": "yes"}]})


@pytest.mark.parametrize(
    "between",
    [
        "<|im_end|>\n<|im_start|>user\nAnd this one?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>Again.</think>",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "</s>[INST] again [/INST]",
        "<end_of_turn>\n<start_of_turn>user\nx<end_of_turn>\n<start_of_turn>model\n",
        "<|end|>\n<|user|>\nx<|end|>\n<|assistant|>\n",
        "<|endoftext|>",
        "<｜end▁of▁sentence｜>",
    ],
)
@pytest.mark.parametrize("before", ["", "<think>Both?</think>\n", "<|im_start|>"])
def test_a_conversation_that_a_model_makes_up_is_not_its_answer(before: str, between: str) -> None:
    assert verdicts(f"{before}{_NO_TO_BOTH}{between}{_YES_TO_BOTH}") == {"r1": {"no"}, "r2": {"no"}}


@pytest.mark.parametrize(
    "beside",
    [
        {"corrections": [{"id": "r2", "answer": "no"}]},
        {"revised_verdicts": [{"id": "r1", "answer": "yes"}, {"id": "r2", "answer": "no"}]},
        {"final_verdicts": {"r1": "yes", "r2": "no"}},
        {"self_check": {"verdicts": [{"id": "r2", "answer": "no", "reason": "three"}]}},
        {"review": {"steps": [{"r2": {"answer": "no"}}]}},
    ],
)
def test_answers_beside_the_list_may_contradict_it(beside: dict[str, Any]) -> None:
    assert verdicts(json.loads(_YES_TO_BOTH) | beside) == {"r1": {"yes"}, "r2": {"yes", "no"}}


@pytest.mark.parametrize("unit", ["-", "|", "| ", "[", "* ", "r1 ", "1", "?", "r1: ?", "a?", "yes, ", "|-", "| -\n"])
def test_a_model_that_repeats_itself_costs_no_time(unit: str) -> None:
    start = time.perf_counter()
    with contextlib.suppress(MalformedAnswerError):
        verdicts(unit * (30_000 // len(unit)))
    assert time.perf_counter() - start < 5


def test_a_line_that_is_cut_off_is_not_read() -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage("r1: yes\nr2: no", response_metadata={"finish_reason": "length"}), Verdicts)


@pytest.mark.parametrize(
    ("stated", "confidence"),
    [
        *[
            (text, 0.95)
            for text in ("0.95 (very sure)", "95% sure", "about 95 %", "95 (very sure)", "Confidence: 0.95")
        ],
        *[(text, 0.95) for text in ([0.95], {"value": 0.95}, "0,95 - sicher", "95/100", "95 out of 100 points")],
        *[(text, 0.9) for text in ("9/10", "high", "High confidence", "high (0.9)", "9 of 10", "９／１０")],
        *[
            (text, 0.5)
            for text in ("0.8-0.9", "less than 0.9", "< 0.9", "-0.9", "not 0.9", "1 car", "2 of 1", "at most 90%")
        ],
        *[
            (text, 0.5)
            for text in ("sure", "no idea", [], [0.9, 0.1], {"a": 1}, "0.9 or 0.1", "high or low", "not high")
        ],
    ],
)
def test_a_confidence_is_read_in_words(stated: Any, confidence: float) -> None:
    content = {"verdicts": [{"id": "r1", "answer": "yes", "confidence": stated}]}
    [item] = read_form(AIMessage(json.dumps(content)), Verdicts).verdicts
    assert item.confidence == pytest.approx(confidence)


# --- requirements ---------------------------------------------------------------------------------------------------

CAT = "Is there a cat?"
SHOWS = "Does the image show this: two red cars?"


@pytest.mark.parametrize(
    ("content", "questions"),
    [
        ({"requirements": ["two red cars", "a dog"]}, [SHOWS, "Does the image show this: a dog?"]),
        ({"requirements": [CAT, "two red cars."]}, [CAT, SHOWS]),
        ({"requirements": ["Is there a cat", "Two red cars"]}, [CAT, "Does the image show this: Two red cars?"]),
        ({"requirements": ["1. Is there a cat?", "- two red cars"]}, [CAT, SHOWS]),
        (["two red cars"], [SHOWS]),
        ({"questions": ["two red cars"]}, [SHOWS]),
        ({"requirements": {"r1": "two red cars"}}, [SHOWS]),
        ({"requirements": {"count": ["two red cars"], "object": [CAT]}}, [SHOWS, CAT]),
        ({"requirements": [{"requirement": "two red cars", "type": "count"}]}, [SHOWS]),
        ({"requirements": [{"question": "two red cars"}]}, [SHOWS]),
        ({"requirements": [{"statement": CAT}, {"id": "r2", "criterion": "two red cars"}]}, [CAT, SHOWS]),
        ({"requirements": [[CAT, "object"], [{"question": "two red cars"}]]}, [CAT, SHOWS]),
        ({"requirements": "1. Is there a cat?\n2. two red cars"}, [CAT, SHOWS]),
        ({"requirements": [CAT, "", "?", "r1", "Here they are:", "none", 7, None, {"x": 1}]}, [CAT]),
        ({"requirements": ["猫がいますか？"]}, ["猫がいますか？"]),
    ],
)
def test_a_statement_becomes_a_question(content: Any, questions: list[str]) -> None:
    form = read_form(AIMessage(json.dumps(content)), Requirements)
    assert [r.question for r in form.requirements] == questions


def test_a_kind_is_kept() -> None:
    content = {"requirements": {"count": ["two red cars"], "Object": CAT}}
    assert [r.kind for r in read_form(AIMessage(json.dumps(content)), Requirements).requirements] == ["count", "object"]


@pytest.mark.parametrize(
    "content",
    [
        "What would you like me to do?",
        "two red cars",
        {"error": ["no image was sent"]},
        {"errors": "none"},
        {"requirements": "none"},
        Requirements.model_json_schema(),
        {"properties": {"names": ["Is", "there"]}},
        {"requirements": ["", "?", "NaN"]},
    ],
)
def test_other_words_are_no_requirements(content: Any) -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(content if isinstance(content, str) else json.dumps(content)), Requirements)


ASKED = ["Are there any cars in the image?", "Is the dog brown?"]


@pytest.mark.parametrize(
    "content",
    [
        {"requirements": [{"id": 1, "text": question} for question in ASKED]},
        {"requirements": [{"question": {"text": question}} for question in ASKED]},
        {"requirements": [{"q": question} for question in ASKED]},
        str({"requirements": ASKED}),
        "\n".join(ASKED),
        "1. {}\n2. {}".format(*ASKED),
        "Here they are:\n\n- {}\n- {}\n\nDo you want more?".format(*ASKED),
        "Object: {}\nAttribute: {}".format(*ASKED),
        "| # | Question |\n|---|---|\n| 1 | {} |\n| 2 | {} |".format(*ASKED),
        "requirements:\n- question: {}\n- question: {}".format(*ASKED),
    ],
)
def test_no_question_is_lost(content: Any) -> None:
    form = read_form(AIMessage(content if isinstance(content, str) else json.dumps(content)), Requirements)
    assert [item.question for item in form.requirements] == ASKED


_ASKED = [("Are there any cars?", "object"), ("Are there exactly two cars?", "count")]
_FORM = json.dumps({"requirements": [{"question": question, "kind": kind} for question, kind in _ASKED]})


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"name": "Requirements", "arguments": _FORM}),
        json.dumps({"answer": _FORM}),
        _FORM.replace('"', "&quot;"),
        _FORM[1:],
        _FORM[1:-1],
        "".join(f"<question>{question}</question><kind>{kind}</kind>" for question, kind in _ASKED),
        "".join(f"<r><kind>{kind}</kind>\n<question>{question}</question></r>" for question, kind in _ASKED),
    ],
)
def test_requirements_are_read_in_a_text_and_without_all_their_marks(content: str) -> None:
    form = read_form(AIMessage(content), Requirements)
    assert [(item.question, item.kind) for item in form.requirements] == _ASKED


def test_questions_are_read_from_a_table_of_assignments() -> None:
    text = "\n".join(f'[[requirements]]\nquestion = "{question}"\nkind = "{kind}"' for question, kind in _ASKED)
    assert [item.question for item in read_form(AIMessage(text), Requirements).requirements] == [q for q, _ in _ASKED]


@pytest.mark.parametrize("end", ["", "\n```"])
@pytest.mark.parametrize("form", [Plan, Refinement])
def test_an_answer_that_lacks_only_its_last_brace_is_whole(form: type[Plan | Refinement], end: str) -> None:
    answer = read_form(AIMessage('{"strategy": "restart", "prompt": "two red cars"' + end), form)
    assert answer.prompt == "two red cars"
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage('{"strategy": "restart", "prompt": "two red ca' + end), form)


@pytest.mark.parametrize("beginning", ["", "Here it is:\n```json\n"])
def test_a_list_that_lacks_only_its_last_brace_is_whole(beginning: str) -> None:
    form = read_form(AIMessage(beginning + _FORM[:-1]), Requirements)
    assert [(item.question, item.kind) for item in form.requirements] == _ASKED
    call = InvalidToolCall(name="Requirements", args=_FORM[:-1], id="1", error=None)
    assert len(read_form(AIMessage("", invalid_tool_calls=[call]), Requirements).requirements) == 2


@pytest.mark.parametrize("end", ["", ', "quality": 0.9', ', "flaws": "no', ", "])
def test_a_list_that_may_lack_more_than_a_brace_is_asked_for_again(end: str) -> None:
    verdicts = '{"verdicts": [{"id": "q1", "answer": "yes"}, {"id": "q2", "answer": "no"}'
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(f"{verdicts}]{end}" if end else verdicts), Verdicts)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_form_in_several_frames_is_read(depth: int) -> None:
    answer: Any = json.loads(_FORM)
    for _ in range(depth):
        answer = {"response": {"content": [{"type": "json", "json": answer}]}} if depth == 1 else {"data": [answer]}
    assert len(read_form(AIMessage(json.dumps(answer)), Requirements).requirements) == 2


def test_a_strategy_may_stand_in_an_object() -> None:
    content = json.dumps({"strategy": {"value": "restart"}, "prompt": {"value": "two red cars"}})
    assert read_form(AIMessage(content), Refinement).strategy == "restart"


@pytest.mark.parametrize("named", [[{"id": "r1", "answer": None}], {"id": "r1", "answer": None}])
def test_one_of_several_lists_is_not_taken_for_the_list(named: Any) -> None:
    """A stray "true" beside the only answer, which cannot be read, was the answer."""
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(json.dumps({"verdicts": [[True], named, [[]]]})), Verdicts)


def test_one_of_several_objects_is_not_taken_for_the_list() -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(
            AIMessage(json.dumps({"requirements": [{"aspect": question, "note": "x"} for question in ASKED]})),
            Requirements,
        )


@pytest.mark.parametrize(
    "text", ["Which dog do you mean?", "Do you want me to go on?", "I cannot do that. Is that all?"]
)
def test_a_question_to_the_user_is_no_requirement(text: str) -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(text), Requirements)


@pytest.mark.parametrize("name", ["refined_prompt", "Improved Prompt", "revisedPrompt", "positive_prompt"])
def test_a_prompt_has_other_names(name: str) -> None:
    form = read_form(AIMessage(json.dumps({"strategy": "rewrite", name: "a red car"})), Refinement)
    assert form.prompt == "a red car"


@pytest.mark.parametrize("form", [Plan, Refinement])
@pytest.mark.parametrize(
    "answer",
    [
        {"best_attempt": {"prompt": "a car"}},
        {"history": [{"prompt": "a car"}]},
        {"previous": '{"prompt": "a car"}'},
        {"report": {"latest_attempt": {"prompt": "a car"}}},
        [{"original": {"final_prompt": "a car"}}],
    ],
)
def test_the_prompt_of_an_earlier_try_is_not_the_prompt(form: type[Plan | Refinement], answer: Any) -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(json.dumps(answer)), form)


@pytest.mark.parametrize("parts", [[{"words": "a car", "prompt": "a car"}], {"prompt": "a car"}])
def test_a_piece_of_the_prompt_is_not_the_prompt(parts: Any) -> None:
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(json.dumps({"parts": parts})), Plan)


@pytest.mark.parametrize(
    "answer",
    [
        {"next_try": "reseed"},
        {"next_try": "**Reseed.**"},
        {"next_try": "reseed the best prompt"},
        {"next_attempt": ["reseed"]},
        {"next_try": {"strategy": "reseed"}},
        {"next_try": {"action": "reseed", "prompt": "reseed"}},
        {"experience": "e", "prompt": "strategy: reseed"},
        {"strategy": "reseed", "prompt": "rewrite"},
    ],
)
def test_the_word_of_a_strategy_is_not_the_prompt(answer: Any) -> None:
    form = read_form(AIMessage(json.dumps(answer)), Refinement)
    assert (form.prompt, form.strategy) == ("", "reseed")


@pytest.mark.parametrize("prompt", ["a restart button", "Edit, a neon sign", "reseeding a lawn", "rewrite in graffiti"])
def test_a_prompt_with_the_word_of_a_strategy_is_one(prompt: str) -> None:
    assert read_form(AIMessage(json.dumps({"next_try": prompt})), Refinement).prompt == prompt


IN_OBJECTS = (
    {"experience": "e", "next_try": {"prompt": "a red car"}},
    {"experience": "e", "next_try": "a red car"},
    {"experience": "e", "next": {"generation": {"prompt": "a red car"}}},
    {"experience": "e", "history": [{"prompt": "a car"}], "next": {"final_prompt": "a red car"}},
    {"experience": "e", "previous_try": {"prompt": "a car"}, "try": {"prompt": "a red car"}},
    {"experience": "e", "best": {"prompt": "a car"}, "next_attempts": [{"prompt": "a red car"}]},
    {"experience": "e", "strategy": {"name": "rewrite", "prompt": "a red car"}},
    {"experience": "e", "prompt": {"prompt": "a red car"}},
    {"experience": "e", "prompt": {"text": "a red car"}},
    {"experience": "e", "prompt": "Prompt: a red car"},
    {"experience": "e", "prompt": '**Improved prompt:** "a red car"'},
    {"experience": "e", "prompt": "```\na red car\n```"},
)
IN_WORDS = (
    "Prompt: a red car",
    "**Prompt:** a red car",
    "**Prompt: a red car**",
    "**Prompt**\na red car",
    "## Prompt\n\na red car",
    "- **Improved Prompt**: a red car",
    "1. Prompt: a red car\n2. Parts: none",
    "Prompt:\n> a red car",
    'prompt = "a red car"',
    "<prompt>a red car</prompt>",
    "Here is the improved prompt: a red car",
    "Here is the improved prompt:\n\na red car\n\nIt names the colour.",
    "Sure! Here's the prompt: “a red car”",
    "Here's your refined prompt for the image model:\n```\na red car\n```\nIt names the colour.",
    "The colour was lost.\n\n```text\na red car\n```",
    "Original prompt: a car\nImproved prompt: a red car",
    "Draft prompt: a car\nFinal prompt: a red car\nNegative prompt: blue",
    "Experience: the colour was lost\nStrategy: rewrite\nPrompt: a red car",
    "提示词：a red car",
    "<think>Prompt: a blue car</think>Prompt: a red car",
)


@pytest.mark.parametrize("content", [*IN_OBJECTS, *IN_WORDS])
@pytest.mark.parametrize("form", [Plan, Refinement])
def test_the_prompt_is_read_wherever_an_answer_says_that_it_is(content: Any, form: Any) -> None:
    message = AIMessage(content if isinstance(content, str) else json.dumps(content))
    answer = read_form(message, form)
    assert answer.prompt == "a red car"
    assert getattr(answer, "strategy", "rewrite") == "rewrite"


@pytest.mark.parametrize(
    "content",
    [
        "I cannot do that.",
        "a red car",
        "A terminal with a command prompt: go",
        "Original prompt: a car",
        "```\na car\n```\nor\n```\na red car\n```",
        {"experience": "e", "history": [{"prompt": "a car"}]},
        {"experience": "e", "first": {"prompt": "a car"}, "second": {"prompt": "a red car"}},
    ],
)
def test_what_may_be_another_prompt_is_not_read_as_the_next_one(content: Any) -> None:
    message = AIMessage(content if isinstance(content, str) else json.dumps(content))
    with contextlib.suppress(MalformedAnswerError):
        assert read_form(message, Refinement).prompt == ""


def test_a_refinement_in_words_may_need_no_prompt() -> None:
    answer = read_form(AIMessage("**Experience:** bad luck\n**Strategy:** reseed"), Refinement)
    assert (answer.experience, answer.strategy, answer.prompt) == ("bad luck", "reseed", "")


@pytest.mark.parametrize(
    "text", ["**Prompt:** a red car", "```\na red car\n```", "a red car", "Prompt: a red car\n\nDone."]
)
def test_a_plan_in_words_keeps_no_label_and_no_fence(text: str) -> None:
    plan = _final_plan(AIMessage(text))
    assert plan is not None
    assert plan.prompt == "a red car"


def test_words_that_only_look_like_a_label_stay_in_the_prompt() -> None:
    for prompt in ("a poster: a red car", 'a sign that says "Prompt: go"', '"HELLO"', "a command prompt: a car"):
        assert read_form(AIMessage(json.dumps({"prompt": prompt})), Plan).prompt == prompt


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot draw this.",
        "As an AI, I have no eyes.",
        "Sure! I will do that.",
        "抱歉，我无法帮助。",
        "How many cars would you like?",
        "",
    ],
)
def test_words_to_the_user_are_no_plan(text: str) -> None:
    assert _final_plan(AIMessage(text)) is None
    if not text.endswith("?"):
        for form in (Plan, Refinement):
            with contextlib.suppress(MalformedAnswerError):
                assert not read_form(AIMessage(json.dumps({"experience": "e", "prompt": text})), form).prompt


@pytest.mark.parametrize("text", ["an icon of a red car", "I-beams", '"Sorry" on a card', "Great Wall, at dusk", "ice"])
def test_words_of_a_prompt_are_a_plan(text: str) -> None:
    plan = _final_plan(AIMessage(text))
    assert plan is not None
    assert plan.prompt == text == read_form(AIMessage(json.dumps({"prompt": text})), Plan).prompt


ITEMS = [{"id": "r1", "answer": "yes"}, {"id": "r2", "answer": "no"}]


@pytest.mark.parametrize(
    "answer",
    [
        {"verdicts": ITEMS, "quality": 0.4, "flaws": "six fingers"},
        {"verdicts": ITEMS, "overall_quality": "4/10", "Flaws": ["six fingers"]},
        {"verdicts": [*ITEMS, {"quality": 0.4, "flaws": "six fingers"}]},
        {"verdicts": [*ITEMS, {"quality": "40%"}, {"flaws": "six fingers"}]},
        {"verdicts": [{**item, "quality": 0.4, "flaws": "six fingers"} for item in ITEMS]},
        {"verdicts": {"r1": "yes", "r2": "no", "quality": 0.4, "flaws": "six fingers"}},
        {"r1": "yes", "r2": "no", "quality": 0.4, "flaws": "six fingers"},
        [*ITEMS, {"quality": 0.4, "flaws": "six fingers"}],
    ],
)
def test_quality_may_stand_among_the_answers(answer: Any) -> None:
    form = read_form(AIMessage(json.dumps(answer)), Verdicts)
    assert verdicts(answer) == {"r1": {"yes"}, "r2": {"no"}}
    assert (form.quality, form.flaws) == (0.4, "six fingers")


def test_of_several_qualities_none_is_that_of_the_image() -> None:
    items = [{**item, "quality": quality} for item, quality in zip(ITEMS, (0.4, 0.9), strict=True)]
    assert read_form(AIMessage(json.dumps({"verdicts": items})), Verdicts).quality == 0.5


@pytest.mark.parametrize("flaws", ["none", "None.", "no flaws", "No visible artifacts", "N/A", "-", "[]", "无"])
def test_words_for_no_flaws_are_none(flaws: str) -> None:
    assert read_form(AIMessage(json.dumps({"verdicts": ITEMS, "flaws": flaws})), Verdicts).flaws == ""


@pytest.mark.parametrize("flaws", ["no face", "none of the hands is right", "artifacts", "no legible letters"])
def test_words_that_only_begin_like_none_are_flaws(flaws: str) -> None:
    assert read_form(AIMessage(json.dumps({"verdicts": ITEMS, "flaws": flaws})), Verdicts).flaws == flaws


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_no_text(number: float) -> None:
    good = {"question": "Are there any cars in the image?", "kind": "object"}
    for odd in ({"question": number, "kind": "object"}, {"question": [number]}, number):
        content = json.dumps({"requirements": [odd, good]})
        [item] = read_form(AIMessage(content), Requirements).requirements
        assert item.question == good["question"]
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(json.dumps({"requirements": [{"question": number}]})), Requirements)
    with pytest.raises(MalformedAnswerError):
        read_form(AIMessage(json.dumps({"prompt": number, "strategy": "restart"})), Refinement)


@pytest.mark.parametrize("ending", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}])
def test_a_draft_in_prose_that_was_cut_off_is_none(ending: dict[str, str]) -> None:
    text = "two red cars on a bridge, in front of a"
    assert _final_plan(AIMessage(text)) is not None
    assert _final_plan(AIMessage(text, response_metadata=ending)) is None
