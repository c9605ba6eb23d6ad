"""Inspection tools that assist the verifier's chat model, in the whole graph."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fakes import PaintGenerator, ScriptedChatModel
from PIL import Image, ImageDraw, ImageFont

from gems import build_graph
from gems.errors import BackendError
from gems.graph.context import GemsContext
from gems.graph.state import GemsOutput, Kind, Requirement
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.inspectors import Finding

LAMPS = {"question": "Are there exactly two lamps?", "kind": "count"}
QUESTIONS = [{"question": 'Does the sign read "OPEN"?', "kind": "text"}, LAMPS]
PROMPT = 'a sign that says "OPEN", a board and two lamps'
NOTHING_TO_READ = [{"question": "Is there a board?", "kind": "object"}, LAMPS]
"""Reading an image takes a second."""


class SignPainter(PaintGenerator):
    """Writes a word on a board: SHUT in the first round, OPEN in later rounds."""

    def generate(self, requests: Sequence[ImageRequest], **_: Any) -> list[GeneratedImage | BackendError]:
        results: list[GeneratedImage | BackendError] = []
        for request in requests:
            image = Image.new("RGB", (320, 160), "white")
            word = "SHUT" if not self.requests else "OPEN"
            ImageDraw.Draw(image).text((160, 80), word, "black", ImageFont.load_default(60), anchor="mm")
            self.requests.append(request)
            results.append(GeneratedImage(request, image))
        return results


class LampCounter:
    """A user's own detector."""

    name = "lamps"
    kinds: frozenset[Kind] = frozenset({"count"})

    def __init__(self, probability: float | None = None, fault: Exception | None = None) -> None:
        self.probability, self.fault = probability, fault
        self.questions: list[str] = []

    def inspect(self, image: Image.Image, requirements: Sequence[Requirement]) -> list[Finding]:
        self.questions += [r.question for r in requirements]
        if self.fault:
            raise self.fault
        return [Finding(r.id, f"sees 2 lamps in {image.width} pixels", self.probability) for r in requirements]


def scripted(answers: dict[str, str], questions: Sequence[dict[str, str]]) -> Callable[[str, Any, int], Any]:
    def script(schema: str, messages: Any, index: int) -> Any:
        match schema:
            case "Requirements":
                return {"requirements": questions}
            case "Plan":
                return {"prompt": PROMPT}
            case "Refinement":
                return {"experience": "try again", "strategy": "reseed", "prompt": ""}
        return {"verdicts": [{"id": i, "answer": a, "confidence": 0.8, "reason": "so"} for i, a in answers.items()]}

    return script


def run(
    answers: dict[str, str], questions: Sequence[dict[str, str]] = QUESTIONS, **graph: Any
) -> tuple[GemsOutput, ScriptedChatModel]:
    model = ScriptedChatModel(script=scripted(answers, questions))
    settings = GemsContext(max_rounds=2, memory=False, skills=False)
    output = build_graph(mllm=model, generator=SignPainter(), **graph).invoke({"prompt": PROMPT}, context=settings)
    return output, model


def questions_asked(model: ScriptedChatModel) -> list[str]:
    return [messages[-1].content[-1]["text"] for schema, messages, _ in model.calls if schema == "Verdicts"]


@pytest.mark.slow
def test_a_text_reader_settles_questions_that_the_chat_model_is_unsure_of() -> None:
    output, model = run({"r1": "unsure", "r2": "yes"})
    wrong, right = output["attempts"]
    assert [v.answer for v in wrong.verdicts] == ["no", "yes"]
    assert [v.answer for v in right.verdicts] == ["yes", "yes"]
    assert right.verdicts[0].reason == 'ocr reads "OPEN", 100% like what is asked for'
    assert output["outcome"] == "solved"
    # A settled question is not asked again.
    assert model.count("Verdicts") == 2


@pytest.mark.slow
def test_the_chat_model_sees_the_evidence_and_may_overrule_it() -> None:
    output, model = run({"r1": "yes", "r2": "yes"}, inspectors=[LampCounter(0.01)])
    assert output["outcome"] == "solved"
    [question_text] = questions_asked(model)
    assert 'r1: ocr reads "SHUT"' in question_text
    assert "r2: lamps sees 2 lamps in 320 pixels" in question_text


@pytest.mark.slow
def test_a_tool_is_asked_about_its_own_kinds_only() -> None:
    counter = LampCounter(0.99)
    run({"r1": "yes", "r2": "yes"}, inspectors=[counter])
    assert counter.questions == ["Are there exactly two lamps?"]


@pytest.mark.parametrize(("probability", "answer"), [(0.97, "yes"), (0.02, "no"), (0.7, "unsure"), (None, "unsure")])
def test_only_a_sure_tool_decides(probability: float | None, answer: str) -> None:
    output, _ = run({"r1": "yes", "r2": "unsure"}, NOTHING_TO_READ, inspectors=[LampCounter(probability)])
    assert output["attempts"][0].verdicts[1].answer == answer


def test_a_tool_that_breaks_is_noted_and_costs_no_more() -> None:
    broken = LampCounter(fault=ZeroDivisionError("no lamps"))
    output, _ = run({"r1": "yes", "r2": "yes"}, NOTHING_TO_READ, inspectors=[broken])
    assert output["outcome"] == "solved"
    assert output["errors"] == ["verifier: lamps: no lamps"]


@pytest.mark.parametrize(
    "findings",
    [
        lambda: None,
        lambda: [None],
        lambda: [{"requirement_id": "r2", "evidence": "2 lamps"}],
        lambda: [Finding("r2", "2 lamps", float("nan"))],
        lambda: [Finding("r2", "97 percent", 97.0)],
        lambda: [Finding("r2", "surely not", -1.0)],
        lambda: [Finding("r2", None)],  # type: ignore[arg-type]
        lambda: (1 / 0 for _ in "ab"),
    ],
)
def test_whatever_a_tool_returns_loses_no_image_and_decides_nothing(findings: Any) -> None:
    counter = LampCounter()
    counter.inspect = lambda image, requirements: findings()  # type: ignore[method-assign]
    output, _ = run({"r1": "yes", "r2": "unsure"}, NOTHING_TO_READ, inspectors=[counter])
    assert output["attempts"][0].verdicts[1].answer == "unsure"
    assert all(error.startswith("verifier: lamps: ") for error in output["errors"])
    assert output["errors"]


def test_a_finding_is_about_one_requirement() -> None:
    finding = Finding("r1", 'reads "OPEN\nr2: yes"', np.float32(0.5))  # type: ignore[arg-type]
    assert (finding.evidence, type(finding.probability)) == ('reads "OPEN r2: yes"', float)


@pytest.mark.parametrize("is_async", [False, True])
def test_inspectors_work_at_the_same_time(is_async: bool) -> None:
    class Meeting(LampCounter):
        """Waits until the other one is at work too."""

        def inspect(self, image: Image.Image, requirements: Sequence[Requirement]) -> list[Finding]:
            together.wait(20)
            return super().inspect(image, requirements)

    together = threading.Barrier(2)
    model = ScriptedChatModel(script=scripted({"r1": "yes", "r2": "unsure"}, NOTHING_TO_READ))
    settings = GemsContext(max_rounds=1, memory=False, skills=False)
    inspectors = [Meeting(0.97), Meeting(0.02)]
    graph = build_graph(mllm=model, generator=SignPainter(), inspectors=inspectors)
    if is_async:
        output = asyncio.run(graph.ainvoke({"prompt": PROMPT}, context=settings))
    else:
        output = graph.invoke({"prompt": PROMPT}, context=settings)
    assert output["attempts"][0].verdicts[1].answer == "no", "the surer of the two"
