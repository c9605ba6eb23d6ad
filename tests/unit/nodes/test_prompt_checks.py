"""Checks of a chat model's drafts: lost words, ungrounded questions and prompts that cannot be drawn."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from gems.faces import run_here
from gems.graph.context import GemsContext
from gems.graph.state import Budget, Usage
from gems.models.form_reading import read_form
from gems.nodes.agreement import is_invented
from gems.nodes.meter import Meter
from gems.nodes.prompt_checks import Part, Plan, drawable_prompt, form_for, lost_words, with_prompt
from gems.nodes.question_checks import Mapped, is_contradicted
from gems.nodes.refiner import Refinement, RefinementWithoutEdit

PROMPT = "two red cars behind a dog"


class PickyGenerator(PaintGenerator):
    """A guided image model that rejects some words."""

    guide = "Say it simply."

    def __init__(self, *unknown: str) -> None:
        super().__init__()
        self.unknown = unknown

    def objection(self, prompt: str) -> str:
        unknown_words = [word for word in self.unknown if word in prompt]
        return f"the image model cannot read {', '.join(unknown_words)}" if unknown_words else ""


class ShortGenerator(PaintGenerator):
    """A guided image model that reads so many words of a prompt."""

    guide = "Say it briefly."

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words

    def objection(self, prompt: str) -> str:
        return ""

    def excess(self, prompt: str) -> str:
        is_read = len(prompt.split()) <= self.words
        return "" if is_read else f"The model reads no further: write at most {self.words} words"


@pytest.mark.parametrize(
    ("user_prompt", "prompt", "missing_words"),
    [
        (PROMPT, "a dog in front; two red cars in the back", []),
        (PROMPT, "A DOG. Two cars, both Red, side by side", []),
        (PROMPT, "a red car and a dog", ["two"]),
        (PROMPT, "2 red cars and a dog", []),
        (PROMPT, "two automobiles", ["red", "dog"]),
        ("two cherries and a pony", "one cherry, ponies", ["two"]),
        ("a glass vase", "a glass", ["vase"]),
        ("a sparkling cat jumping", "a cat", ["sparkling"]),
        ("a monkey, boxes and a cherry", "monkeys, a box, cherries", []),
        ("please draw me a picture of a cat", "a cat", []),
        ("", "anything", []),
        ("ein grünes Haus", "ein grünes Haus am See", []),
        ("ein grünes Haus", "ein Haus", ["grünes"]),
        ("a T-shirt, a T-shirt", "a shirt", []),
        ("a wooden pier in the rain", "a pier made of wood on a rainy day", []),
        ("a sunflower, a sea shore", "a sun flower by the seashore", []),
        ('a sign that says "Bean There"', 'a sign reading "Been There"', ['"Bean There"']),
        ('a sign that says "Bean There"', "a sign reading «bean there»", []),
        ("a beach with no people", "a deserted beach", []),
        ("a beach with no people", "a beach without any people", []),
        ("a beach with no people", "a beach with many people", ["people"]),
        ("a red cube and a blue sphere", "a blue cube and a red sphere", ["red", "blue"]),
        ("two cats and three dogs", "three cats and two dogs", ["two", "three"]),
        ("Could you draw a fox for my shop? I love foxes.", "a fox", []),
        ("ein roter Fuchs mit 3 Hunden", "a red fox with three dogs", []),
        ("ein roter Fuchs mit 3 Hunden", "a red fox with four dogs", ["3"]),
        ("一只穿Nike鞋的猫", "a cat in sneakers", ["Nike"]),
    ],
)
def test_what_a_prompt_lost_without_a_mapping(user_prompt: str, prompt: str, missing_words: list[str]) -> None:
    assert lost_words(user_prompt, prompt) == missing_words


@pytest.mark.parametrize(
    ("words", "phrase", "missing_words"),
    [
        ("ein roter Fuchs", "a red fox", []),
        ("EIN ROTEN FUCHS", "Red Fox", []),
        ("ein roter Fuchs", "a blue fox", ["roter Fuchs"]),
        ("ein roter Fuchs", "a red wolf", ["roter Fuchs"]),
        ("ein Dachs", "a red fox", ["roter Fuchs"]),
        ("", "", ["roter Fuchs"]),
    ],
)
def test_a_mapping_counts_only_if_it_is_true(words: str, phrase: str, missing_words: list[str]) -> None:
    parts = [Part(words=words, phrase=phrase), Part(words="im Schnee", phrase="in the snow")]
    assert lost_words("ein roter Fuchs im Schnee", "a red fox in the snow", parts) == missing_words


@pytest.mark.parametrize("form", [Plan, Refinement, RefinementWithoutEdit])
def test_a_long_wish_has_room_in_the_form(form: type[Plan]) -> None:
    short, long = form_for(form, "a cat"), form_for(form, "a cat " * 300)
    assert short.model_json_schema()["properties"]["prompt"]["maxLength"] == 1000
    assert long.model_json_schema()["properties"]["prompt"]["maxLength"] == 4000
    assert convert_to_openai_tool(long)["function"] | {"parameters": {}} == convert_to_openai_tool(short)[
        "function"
    ] | {"parameters": {}}
    filled = read_form(AIMessage(json.dumps({"final_prompt": ["x" * 3999], "strategy": "Restart"})), long)
    assert filled.prompt == "x" * 3999


@pytest.mark.parametrize(
    "parts",
    [
        [{"words": "a dog", "phrase": "a terrier"}],
        [{"words": "a dog", "as": "a terrier"}, 7, None],
        {"a dog": "a terrier"},
    ],
)
def test_parts_are_read_in_several_forms(parts: Any) -> None:
    plan = read_form(AIMessage(json.dumps({"prompt": "a terrier", "parts": parts})), Plan)
    assert [(part.words, part.phrase) for part in plan.parts][:1] == [("a dog", "a terrier")]


@pytest.mark.parametrize("parts", [None, "none", [], [[]], 3, {"x": {"y": 1}}])
def test_a_plan_without_readable_parts_is_still_a_plan(parts: Any) -> None:
    assert read_form(AIMessage(json.dumps({"prompt": "a terrier", "parts": parts})), Plan).prompt == "a terrier"


def test_a_complete_prompt_is_not_changed() -> None:
    prompt = "two red cars in the back; a dog in front"
    assert with_prompt(PROMPT, prompt, PaintGenerator()) == prompt


def test_a_prompt_that_lost_a_word_gets_the_users_prompt_in_front() -> None:
    assert with_prompt(f"{PROMPT}. ", "a dog and cars", PaintGenerator()) == f"{PROMPT}: a dog and cars"


def test_a_prompt_that_the_image_model_cannot_read_is_not_put_in_front() -> None:
    assert with_prompt(PROMPT, "a dog and cars", PickyGenerator("red")) == "a dog and cars"


def test_a_prompt_is_not_put_in_front_if_the_draft_would_not_be_read() -> None:
    assert with_prompt(PROMPT, "a dog and cars", ShortGenerator(8)) == "a dog and cars"
    assert with_prompt(PROMPT, "a dog and cars", ShortGenerator(10)) == f"{PROMPT}: a dog and cars"


@pytest.mark.parametrize(
    ("question", "is_about"),
    [
        ("Are there any dogs in the image?", True),
        ("Are there exactly two cars?", True),
        ("Are the cars red?", True),
        ("Is the dog made of wood, in the style of Monet?", False),
        ("Is there a kite in the image?", False),
        ("Are the cars and the dog in the same style?", False),
        ("Is it there?", True),
    ],
)
def test_a_question_without_words_is_about_the_prompt_if_it_has_its_words(question: str, is_about: bool) -> None:
    """A weak model names no words, and asks about what is in its example."""
    q = Mapped(PROMPT, question)
    is_dropped = is_contradicted(q) or is_invented(q, [Mapped(PROMPT, "Are there cars?")], PROMPT)
    assert is_dropped is not is_about


def drawable(prompt: str, rewritten: str, generator: PaintGenerator, **budget: Any) -> tuple[str, ScriptedChatModel]:
    model = ScriptedChatModel(script=lambda schema, messages, index: {"prompt": rewritten})
    meter = Meter(Usage(chat_calls=1), GemsContext(budget=Budget(**budget)))
    messages = [SystemMessage("Write."), HumanMessage("a prompt")]
    return run_here(drawable_prompt(meter, model, messages, prompt, prompt=PROMPT, generator=generator))[0], model


GOOD_DRAFT = "two red cars, a dog"


def test_a_drawable_prompt_costs_no_call() -> None:
    prompt, model = drawable(GOOD_DRAFT, "unused", PickyGenerator("zeppelin"))
    assert prompt == GOOD_DRAFT
    assert model.calls == []


def test_a_prompt_is_put_on_one_line() -> None:
    assert drawable("two red  cars,\n\ta dog", "unused", PaintGenerator())[0] == GOOD_DRAFT


def test_a_prompt_that_is_not_read_to_its_end_is_shortened_once() -> None:
    prompt, model = drawable(f"{GOOD_DRAFT}, a long evening by the sea", GOOD_DRAFT, ShortGenerator(6))
    assert prompt == GOOD_DRAFT
    [(_, messages, _)] = model.calls
    assert messages[3].text == "The model reads no further: write at most 6 words. Write the prompt again."


def test_a_prompt_that_stays_too_long_is_drawn_all_the_same() -> None:
    long_draft = f"{GOOD_DRAFT}, a long evening by the sea"
    assert drawable(long_draft, long_draft, ShortGenerator(6))[0] == long_draft


def test_for_a_guided_image_model_lost_words_are_requested_once() -> None:
    prompt, model = drawable("two cars; a dog", GOOD_DRAFT, PickyGenerator("zeppelin"))
    assert prompt == GOOD_DRAFT
    [(_, messages, _)] = model.calls
    assert "has lost: red" in messages[3].text


def test_words_that_stay_lost_are_restored() -> None:
    prompt, model = drawable("two cars; a dog", "cars; a dog", PickyGenerator("zeppelin"))
    assert prompt == f"{PROMPT}: two cars; a dog", "the draft that lost less"
    assert len(model.calls) == 1


def test_an_image_model_without_a_guide_gets_the_same_repair() -> None:
    prompt, model = drawable("two cars; a dog", GOOD_DRAFT, PaintGenerator())
    assert prompt == GOOD_DRAFT
    assert len(model.calls) == 1


def test_a_repair_that_loses_more_is_not_used() -> None:
    prompt, _ = drawable("two cars; a dog", "a car", PaintGenerator())
    assert prompt == f"{PROMPT}: two cars; a dog"


def test_a_repair_that_cannot_be_read_leaves_the_first_draft() -> None:
    prompt, _ = drawable("two cars; a dog", "", PaintGenerator())
    assert prompt == f"{PROMPT}: two cars; a dog"


def test_a_wish_in_another_language_is_never_put_in_front() -> None:
    wish, draft = "ein roter Fuchs mit 3 Hunden", "a red fox"
    assert lost_words(wish, draft) == ["3"]
    assert with_prompt(wish, draft, PaintGenerator()) == draft


def test_a_repeated_prompt_is_not_drawn_twice() -> None:
    assert drawable(f"{PROMPT}; {GOOD_DRAFT}", "unused", PickyGenerator("zeppelin"))[0] == GOOD_DRAFT
    assert drawable(f"{PROMPT}; by night", "unused", PickyGenerator("zeppelin"))[0] == f"{PROMPT}; by night"


def test_a_prompt_that_the_image_model_rejects_is_rewritten_once() -> None:
    prompt, model = drawable("two red cars, a dog, a zeppelin", GOOD_DRAFT, PickyGenerator("zeppelin"))
    assert prompt == GOOD_DRAFT
    [(_, messages, _)] = model.calls
    assert [m.type for m in messages] == ["system", "human", "ai", "human"]
    assert messages[2].text == "two red cars, a dog, a zeppelin"
    assert "cannot read zeppelin" in messages[3].text


def test_a_second_rejected_prompt_is_dropped() -> None:
    prompt, model = drawable("a zeppelin", "a red zeppelin", PickyGenerator("zeppelin"))
    assert prompt == ""
    assert len(model.calls) == 1


def test_there_is_no_rewrite_without_a_budget() -> None:
    prompt, model = drawable("a zeppelin", GOOD_DRAFT, PickyGenerator("zeppelin"), chat_calls=1)
    assert prompt == ""
    assert model.calls == []


@pytest.mark.parametrize(
    ("prompt", "draft", "lost"),
    [
        ("two birds in the sky, one red and one blue", "one red bird; one blue bird; in the sky", []),
        ("three cats, two black and one white", "two black cats; one white cat", []),
        ("two birds in the sky, one red", "one red bird; in the sky", ["two"]),
        ("two birds and one red dog", "one bird; one red dog", ["two"]),
    ],
)
def test_a_number_that_is_shared_out_by_colour_is_not_lost(prompt: str, draft: str, lost: list[str]) -> None:
    assert lost_words(prompt, draft, [Part(words=prompt, phrase=draft)]) == lost
