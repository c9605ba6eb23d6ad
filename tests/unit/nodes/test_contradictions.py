"""A yes that the rest of its own answer contradicts is unsure; one that is only written oddly stays a yes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import ScriptedChatModel
from langchain_core.messages import AIMessage
from PIL import Image

from gems.faces import run_here
from gems.graph.context import GemsContext
from gems.graph.state import Requirement, Usage
from gems.memory.image_store import encode_png
from gems.nodes.contradictions import denies, flaws_deny
from gems.nodes.examiner import inspect_image
from gems.nodes.meter import Meter

REQUIREMENTS = [
    Requirement(id="r1", question="Are there any cars in the image?", kind="object"),
    Requirement(id="r2", question="Are there exactly two cars in the image?", kind="count"),
]
COUNT = "Are there exactly two cars in the image?"


def item(**fields: Any) -> dict[str, Any]:
    return {"id": "r2", "answer": "yes", "confidence": 0.9, "reason": "two cars"} | fields


def form(second: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    first = {"id": "r1", "answer": "yes", "confidence": 0.9, "reason": "cars"}
    return {"verdicts": [first, second or item()], "quality": 0.9} | fields


def answers_of(content: object) -> list[str]:
    text = content if isinstance(content, str) else json.dumps(content)
    model = ScriptedChatModel(script=lambda schema, messages, index: AIMessage(text))
    png = encode_png(Image.new("RGB", (8, 8)), {})
    return [v.answer for v in run_here(inspect_image(Meter(Usage(), GemsContext()), model, REQUIREMENTS, png)).verdicts]


YES = json.dumps(form())
NO = json.dumps(form(item(answer="no")))


@pytest.mark.parametrize(
    "content",
    [
        f"{YES}\nReal: r2: no",
        f"{YES}\n\nr2: no - three cars",
        f"{YES}\nSo the answer to r2 is no, as there are three cars.",
        f"r2 is no: there are three cars.\n{YES}",
        form(notes="r2 is actually no, three cars"),
        form(failed=["r2"]),
        form(unmet=[{"id": "r2", "reason": "three"}]),
        form(item(overall="fail: three cars")),
        form(item(requirement_met=False)),
        form(item(match=False)),
        form(item(mismatch=True)),
        form(item(confidence=0)),
        form(item(confidence="10%")),
        form(item(reason="three cars")),
        form(item(reason="This is false. There are more.")),
        form(item(reason="The image does not show two cars")),
        f'{{"image_1": {YES}, "image_2": {NO}}}',
        f'{{"images": [{YES}, {NO}]}}',
        f"[{YES}, {NO}]",
        f"{YES}\nr2: three cars",
        f"{YES}\nr2: nein",
        form(failed={"r2": True}),
        form(failed="r2"),
        form(flaws="three cars instead of two", quality=0.5),
        form(flaws="wrong number of cars", quality=0.5),
        form(notes=["r2 fails: only one car is seen"]),
        form(issues=["r2: no, only one car"]),
        form(issues=["too many cars"]),
        form(corrections=["r2: no"]),
        form(review={"remarks": [{"text": "r2 is actually no"}]}),
        form(notes=[{"id": "r2", "text": "only one car"}]),
        form(reasons=["cars", "only one car"]),
        form(reasons={"r1": "cars", "r2": "I see only one car"}),
        form(reasons=[{"r1": "cars"}, {"r2": ["only one car"]}]),
        form(r2="no"),
        form(r2=False),
        {"r1": "yes", "r2": "yes", "r2_reason": "only one car"},
        {"r1": "yes", "r2": "yes", "reason_r2": "only one car"},
        {"answers": {"r1": "yes", "r2": "yes"}, "reasons": {"r2": "I see only one car"}},
        {"r1": {"answer": "yes"}, "r2": {"answer": "yes", "explanation": {"seen": "one car"}}},
        f'{YES}\n{{"note": ["r2 fails"]}}',
        YES.replace('"two cars"', '"two cars" // not really, only one car\n'),
        YES.replace("[{", "[ /* r2 fails */ {"),
        form(item(reason={"seen": "one car"})),
        form(item(observation="one car")),
        form(item(satisfied="partially")),
        form(item(missing=True)),
        form(item(contradiction=True)),
        form(item(expected=2, actual=1)),
        form(item(expected_count=2, observed_count=3)),
        form(item(**{"correct?": "no"})),
    ],
)
def test_a_yes_that_is_contradicted_is_unsure(content: object) -> None:
    assert answers_of(content) == ["yes", "unsure"]


@pytest.mark.parametrize(
    "fields",
    [{"overall": "fail: three cars"}, {"all_requirements_met": False}, {"pass": False}, {"summary": "Verdict: FAIL"}],
)
def test_a_yes_to_all_about_an_image_that_fails_is_unsure(fields: dict[str, Any]) -> None:
    assert answers_of(form(**fields)) == ["unsure", "unsure"]
    assert answers_of(form(item(answer="no"), **fields)) == ["yes", "no"]


@pytest.mark.parametrize(
    "content",
    [
        f"{YES}\nr2: yes, I see two cars. No problems.",
        f"Looking at the image: r1 yes, r2 yes.\n{YES}",
        f"r2: no wait, I see two. r2: yes\n{YES}",
        form(summary="The image matches the prompt. All requirements are met; no issues."),
        form(status="ok", error=False, failed=[]),
        form(failed=0, passed=2),
        form(overall="No issues"),
        form(verdict="pass", overall_quality="good"),
        form(item(occluded=False, present=True, match=True)),
        form(item(reason="one car left, one car right")),
        form(item(reason="no cars besides the two")),
        form(item(reason="a pair of cars, three windows")),
        f'{{"image_1": {YES}, "image_2": {YES}}}',
        f"r2: No other cars.\n{YES}",
        f"r2: no obstruction, two cars → yes\n{YES}",
        f"I took r2 for false at first, but r2 is true.\n{YES}",
        f"{YES}\nOverall, no concerns. Verdict: no violations.",
        f"{YES}\nIf the image does not match your expectations, tell me.",
        f"{YES}\nI did not see any image artefacts, and cannot see the image's metadata.",
        f"{YES}\nWait for the next image.",
        form(status="No people", failed={"r1": False, "r2": False}),
        form(flaws="The image does not match a real street", quality=0.5),
        form(flaws="one car has three wheels", quality=0.5),
        form(flaws="missing car door", quality=0.5),
        form(issues="none", notes=["none"], problems=[], errors=["no"], concerns="No, none."),
        form(notes=["r2: yes, two cars", "no other cars"]),
        form(reasons=["cars", "two cars"]),
        form(reasons={"r1": "cars", "r2": "two cars"}),
        form(r2="yes", r2_reason="two cars", r2_issues="no"),
        form(previous_answers=["no", "no"]),
        form(prompt="r2 is no"),
        form(item(expected=2, actual=2, count=2, occluded="no", issues="No, none.", contradiction="none")),
        form(item(missing=False, ambiguous=False, comment="no other cars", satisfied="fully", score=1)),
        form(item(observation=["two cars"], question="Are there exactly two cars in the image?", position=3)),
        json.dumps(form(item(reason="only one car"))) + f"\nI looked again.\n{YES}",
        YES.replace('"two cars"', '"two cars" // a pair\n'),
        YES.replace('"two cars"', '"two cars // no, one car"'),
    ],
)
def test_a_yes_that_is_written_oddly_stays_a_yes(content: object) -> None:
    assert answers_of(content) == ["yes", "yes"]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (COUNT, "3 cars are shown"),
        (COUNT, "There are three toy cars"),
        (COUNT, "one car visible"),
        (COUNT, "not exactly two; there are more"),
        (COUNT, "no cars"),
        ("Is there exactly one dog in the image?", "two dogs"),
        ("Are there exactly two boxes on the table?", "three brown boxes"),
        ("Is there a dog in the image?", "there is no dog"),
        ("Are there any cars in the image?", "No car can be seen in the image"),
        ("Are there any cars in the image?", "cars are absent"),
        ("Is the car red?", "No, it is blue"),
        ("Is the car red?", "it is blue, so the answer should be no"),
        ("Is the car red?", "Nein, es ist blau"),
        ("Is the car red?", "不是，是蓝色的"),
        ("Does the sign say 'OPEN'?", "No, it says CLOSED"),
        ("Are there no people in the image?", "no, a man stands there"),
        ("Are there two cars?", "yes, three cars"),
        (COUNT, "drei Autos"),
        (COUNT, "图中有三辆车"),
        (COUNT, "not two cars but several"),
        ("Are there any cars in the image?", "keine Autos zu sehen"),
        ("Are there any cars in the image?", "没有车"),
    ],
)
def test_a_reason_may_deny_its_yes(question: str, reason: str) -> None:
    assert denies(question, reason)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (COUNT, "two cars, three trees"),
        (COUNT, "one car left and another right"),
        (COUNT, "car 1 left, car 2 right"),
        (COUNT, "2 cars, 8 wheels"),
        (COUNT, ""),
        ("Is the beach free of people?", "no people visible"),
        ("Are there any dogs in the image?", "no dogs on the left, one on the right"),
        ("Are there any cars in the image?", "no car is hidden; cars visible"),
        ("Are there exactly three red cars on the left?", "five cars of which three are red"),
        ("Does the sign say 'no'?", "the sign says no"),
        ("Is the exam paper marked fail?", "failed stamp visible"),
        ("Does the image have a false ceiling?", "false ceiling visible"),
        ("Are there no people in the image?", "No, not a single person"),
        ("Are there no people in the image?", "no"),
        ("Is the beach free of people?", "no, nobody is there"),
        ("Is the dog not wearing a collar?", "nein, kein Halsband"),
        ("Does the sign say 'FALSE'?", "FALSE, in big letters"),
        (COUNT, "No. of cars: 2"),
        (COUNT, "no third car"),
        (COUNT, "two cars (not two trucks)"),
        (COUNT, "zwei Autos vor drei Bäumen"),
        (COUNT, "图中有两辆车，没有其他车"),
        ("Are there exactly three cats?", "two cats flanking a bigger cat"),
        ("Are there exactly three cats?", "Two cats. Behind them is a kitten."),
        ("Are there exactly three cats?", "zwei Katzen links und eine rechts"),
        ("Are there any cars in the image?", "the cars are missing wheels"),
        ("Are there any cars in the image?", "没有问题"),
        ("Are there no people in the image?", "没有人"),
    ],
)
def test_a_reason_with_odd_words_denies_nothing(question: str, reason: str) -> None:
    assert not denies(question, reason)


@pytest.mark.parametrize(
    ("question", "flaws", "is_denied"),
    [
        (COUNT, "too many cars", True),
        (COUNT, "extra car", True),
        ("Is there a dog in the image?", "no dog in the image", True),
        (COUNT, "too many wheels on one car", False),
        (COUNT, "extra wheel on the car", False),
        (COUNT, "two cars merge into one", False),
        ("Is there a dog in the image?", "the dog has five legs instead of four", False),
        ("Is there a dog in the image?", "no dog tag; blurred paws", False),
    ],
)
def test_flaws_deny_a_yes_only_if_they_are_about_what_was_asked(question: str, flaws: str, is_denied: bool) -> None:
    assert flaws_deny(question, flaws) == is_denied


@pytest.mark.parametrize(
    "reason",
    [
        *("tres coches", "Se ven tres coches rojos", "Hay tres coches en la imagen", "cuatro coches", "un solo coche"),
        *("drei Autos", "nur ein Auto", "trois voitures", "une seule voiture", "tre auto", "Há três carros"),
        *("Vejo três carros", "drie auto's", "trzy samochody", "üç araba", "три машины", "только одна машина"),
        *("三辆车", "图中有三辆汽车", "只有一辆车", "車が三台あります", "자동차 세 대", "तीन कारें", "ثلاث سيارات"),
    ],
)
def test_another_count_is_read_in_the_words_of_other_languages(reason: str) -> None:
    assert denies(COUNT, reason)


@pytest.mark.parametrize(
    "reason",
    [
        *("dos coches", "zwei Autos", "deux voitures", "due auto", "dois carros", "twee auto's", "dwa samochody"),
        *("iki araba", "две машины", "两辆车", "二台の車", "자동차 두 대", "दो कारें", "سيارتان"),
        *(
            "un coche rojo y otro azul",
            "ein rotes und ein blaues Auto",
            "Nur zwei Autos",
            "Hay dos coches y tres perros",
        ),
        *("Très belles voitures", "cars on the mat", "a DOS screen", "visible", "coches", "Autos", "une voiture"),
    ],
)
def test_the_count_that_was_asked_for_is_no_contradiction_in_any_language(reason: str) -> None:
    assert not denies(COUNT, reason)
