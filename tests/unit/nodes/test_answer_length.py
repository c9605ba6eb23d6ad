"""Answers of a model that repeats itself to its limit, or of a hostile server, are read in a moment."""

from __future__ import annotations

from contextlib import suppress

import pytest
from langchain_core.messages import AIMessage

from gems.graph.state import Requirement
from gems.models.lenient import json_values
from gems.models.unfinished_answers import read_whole_part
from gems.models.written_calls import written_calls
from gems.models.yes_or_no import yes_or_no
from gems.nodes.answer_lines import answers_in
from gems.nodes.decomposer import Requirements
from gems.nodes.question_ids import question_of
from gems.nodes.verdict_forms import AnsweredQuestion, Verdicts

CARS = Requirement(id="r1", question="Are there any cars in the image?", kind="object")
LENGTH = 60_000
REPEATED = ["1", " ", "-", ".", '"', "\n", "?", "[", "{", "`", "0", "_", "1.", "- ", "1) ", "? ", ": ", "a ", "|", '{"']


@pytest.mark.parametrize("pump", REPEATED)
@pytest.mark.parametrize("end", ["", "x"])
def test_what_is_repeated_endlessly_is_read_in_a_moment(pump: str, end: str) -> None:
    """With a pattern that backtracks, each of these takes minutes, in which no other thread runs."""
    text = pump * (LENGTH // len(pump)) + end
    assert yes_or_no(f"yes, {text}") in ("yes", "unsure")
    assert question_of(f"r1{text}", [CARS]) in (None, CARS)
    assert question_of(f"{text}r1", [CARS]) in (None, CARS)
    json_values(text)
    fields = {"id": "r1", "answer": "yes", "confidence": f"1{text}"}
    assert AnsweredQuestion.model_validate(fields).answer == "yes"
    for key in (text, f"r1{text}"):
        with suppress(ValueError):
            AnsweredQuestion.from_pair(key, "yes")
    for statement in (text, f"a{text}", f"1{text}"):
        with suppress(ValueError):
            Requirements.model_validate({"requirements": [statement]})


CALLS = ["<function=plan>", "<function=plan><parameter=a>", "plan(x=1,", "plan(x=[", "plan(x=1)", "</function>"]


@pytest.mark.parametrize("pump", [*REPEATED, *CALLS])
def test_calls_that_are_repeated_endlessly_are_read_in_a_moment(pump: str) -> None:
    text = pump * (LENGTH // len(pump))
    for words in (text, f"{text}</function>", f"<function=plan>{text}", f"plan(x=1, {text}" + ")" * 100):
        assert len(written_calls(AIMessage(words), ["plan"])) <= LENGTH


@pytest.mark.parametrize("pump", [*REPEATED, "{}", "[]", '{"a": 1}', "[{", '{"a": ', '{"a" '])
@pytest.mark.parametrize("start", ["", '{"answers": [', '{"answers": [{"id": "r1", "answer": "'])
def test_what_was_cut_off_is_read_in_a_moment(start: str, pump: str) -> None:
    text = start + pump * (LENGTH // len(pump))
    part = read_whole_part(AIMessage(text, response_metadata={"finish_reason": "length"}), Verdicts)
    assert part is None or all(item.answer == "unsure" for item in part.verdicts)


@pytest.mark.parametrize("pump", [" ", "\t", "-", ": ", "* ", "? "])
@pytest.mark.parametrize("start", ["q1: ", "q: ", "yes: ", "answer to ", "question ", "✅ "])
def test_a_line_that_is_repeated_endlessly_is_read_in_a_moment(start: str, pump: str) -> None:
    assert len(answers_in(f"{start}{pump * (LENGTH // len(pump))}z")) <= 1
