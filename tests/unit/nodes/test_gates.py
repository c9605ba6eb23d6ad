"""What code checks of a prompt that a chat model wrote; and what hides keys in whatever is said."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import SecretStr

from gems.graph.context import GemsContext
from gems.graph.state import Budget, Usage
from gems.nodes.meter import Meter
from gems.nodes.prompt_checks import drawable_prompt, is_grounded, lost_words, with_prompt
from gems.secrets import conceal, remember_secret

WISH = "two red cars behind a dog"


class Picky(PaintGenerator):
    """An image model that cannot read some words."""

    guide = "Say it simply."

    def __init__(self, *unknown: str) -> None:
        super().__init__()
        self.unknown = unknown

    def objection(self, prompt: str) -> str:
        met = [word for word in self.unknown if word in prompt]
        return f"the image model cannot read {', '.join(met)}" if met else ""


@pytest.mark.parametrize(
    ("wish", "prompt", "lost"),
    [
        (WISH, "a dog in front; two red cars in the back", []),
        (WISH, "A DOG. Two cars, both Red, side by side", []),
        (WISH, "a red car and a dog", ["two"]),
        (WISH, "two automobiles", ["red", "cars", "dog"]),
        ("two cherries and a pony", "one cherry, ponies", ["two"]),
        ("a glass vase", "a glass", ["vase"]),
        ("three cats chasing a mouse", "three cats, a mouse", []),
        ("three cats chasing two mice playing", "three cats, two mice", []),
        ("a sparkling cat jumping", "a cat", ["sparkling"]),
        ("a monkey, boxes and a cherry", "monkeys, a box, cherries", []),
        ("please draw me a picture of a cat", "a cat", []),
        ("", "anything", []),
        ("ein grünes Haus", "ein grünes Haus am See", []),
        ("ein grünes Haus", "ein Haus", ["grünes"]),
        ("a T-shirt, a T-shirt", "a shirt", ["t-shirt"]),
    ],
)
def test_words_of_substance_that_a_prompt_lost(wish: str, prompt: str, lost: list[str]) -> None:
    assert lost_words(wish, prompt) == lost


def test_a_prompt_that_kept_the_wish_stays_as_it_is() -> None:
    prompt = "two red cars in the back; a dog in front"
    assert with_prompt(WISH, prompt, PaintGenerator()) == prompt


def test_a_prompt_that_lost_a_word_gets_the_wish_in_front() -> None:
    assert with_prompt(f"{WISH}. ", "a dog and cars", PaintGenerator()) == f"{WISH}: a dog and cars"


def test_a_wish_that_the_image_model_cannot_read_is_not_put_in_front() -> None:
    assert with_prompt(WISH, "a dog and cars", Picky("red")) == "a dog and cars"


@pytest.mark.parametrize(
    ("question", "grounded"),
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
def test_questions_about_what_nobody_named_are_told_apart(question: str, grounded: bool) -> None:
    assert is_grounded(question, WISH) is grounded


def drawable(prompt: str, rewritten: str, generator: PaintGenerator, **budget: Any) -> tuple[str, ScriptedChatModel]:
    model = ScriptedChatModel(script=lambda schema, messages, index: {"prompt": rewritten})
    meter = Meter(Usage(chat_calls=1), GemsContext(budget=Budget(**budget)))
    asked = [SystemMessage("Write."), HumanMessage("a wish")]
    return drawable_prompt(meter, model, asked, prompt, prompt=WISH, generator=generator), model


GOOD = "two red cars, a dog"


def test_a_prompt_that_can_be_drawn_costs_no_call() -> None:
    prompt, model = drawable(GOOD, "unused", Picky("zeppelin"))
    assert prompt == GOOD
    assert model.calls == []


def test_a_prompt_is_put_on_one_line() -> None:
    assert drawable("two red  cars,\n\ta dog", "unused", PaintGenerator())[0] == GOOD


def test_words_lost_before_an_image_model_with_its_own_ways_are_asked_for_once() -> None:
    prompt, model = drawable("two cars; a dog", GOOD, Picky("zeppelin"))
    assert prompt == GOOD
    [(_, messages, _)] = model.calls
    assert "has lost: red" in messages[3].text


def test_words_that_stay_lost_are_put_back() -> None:
    prompt, model = drawable("two cars; a dog", "cars; a dog", Picky("zeppelin"))
    assert prompt == f"{WISH}: cars; a dog"
    assert len(model.calls) == 1


def test_words_lost_before_any_other_image_model_cost_no_call() -> None:
    prompt, model = drawable("two cars; a dog", GOOD, PaintGenerator())
    assert prompt == f"{WISH}: two cars; a dog"
    assert model.calls == []


def test_a_wish_repeated_in_front_of_itself_is_not_drawn_twice() -> None:
    assert drawable(f"{WISH}; {GOOD}", "unused", Picky("zeppelin"))[0] == GOOD
    assert drawable(f"{WISH}; by night", "unused", Picky("zeppelin"))[0] == f"{WISH}; by night"


def test_what_the_image_model_objects_to_is_written_again_once() -> None:
    prompt, model = drawable("two red cars, a dog, a zeppelin", GOOD, Picky("zeppelin"))
    assert prompt == GOOD
    [(_, messages, _)] = model.calls
    assert [m.type for m in messages] == ["system", "human", "ai", "human"]
    assert messages[2].text == "two red cars, a dog, a zeppelin"
    assert "cannot read zeppelin" in messages[3].text


def test_a_chat_model_that_does_not_listen_is_given_up_on() -> None:
    prompt, model = drawable("a zeppelin", "a red zeppelin", Picky("zeppelin"))
    assert prompt == ""
    assert len(model.calls) == 1


def test_there_is_no_second_try_without_a_budget_for_it() -> None:
    prompt, model = drawable("a zeppelin", GOOD, Picky("zeppelin"), chat_calls=1)
    assert prompt == ""
    assert model.calls == []


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "GEMS_IMAGE_API_KEY", "HF_TOKEN", "X_APIKEY", "db_password", "KEY"])
def test_keys_in_the_environment_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "wrong key canary-11aa: Bearer canary-11aa"
    assert conceal(said) == said
    monkeypatch.setenv(name, " canary-11aa\r\n")
    assert conceal(said) == "wrong key [key]: Bearer [key]"


@pytest.mark.parametrize("name", ["MONKEY", "KEYBOARD_LAYOUT", "TOKENIZERS_PARALLELISM"])
def test_what_is_no_key_is_not_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary-22bb")
    assert conceal("say canary-22bb") == "say canary-22bb"


def test_a_key_that_begins_with_another_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "canary-33")
    monkeypatch.setenv("B_KEY", "canary-33-longer")
    assert conceal("canary-33-longer, canary-33") == "[key], [key]"


def test_keys_given_as_options_are_hidden_and_short_ones_are_words() -> None:
    remember_secret(SecretStr("canary-44dd\n"))
    remember_secret(SecretStr("none"))
    remember_secret(None)
    assert conceal("canary-44dd, or none") == "[key], or none"
