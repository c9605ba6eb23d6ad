"""The open models' world: wishes laid out, drawn, put into slots and asked about."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gems.evals.open_oracle import check, holds, shown_items
from gems.models.open.draft_wording import rich, terse
from gems.models.open.painting import draw
from gems.models.open.phrasebook import phrasebook
from gems.models.open.questions import parse_question, questions_of
from gems.models.open.slots import decode, encode, thing_vectors
from gems.models.open.stage import MAX_THINGS, Scene, layout, sample_wish
from gems.models.open.things import BACKGROUNDS, INDEX, THINGS
from gems.models.open.tokens import MAX_TOKENS, tokens_of_prompt
from gems.models.open.wish_reading import read


def scene_of(seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    return layout(sample_wish(rng, letters=lambda _: "OPEN 24"), rng)


def test_there_are_eight_hundred_different_things() -> None:
    assert len(THINGS) >= 800
    assert len(INDEX) == len({thing.twemoji for thing in THINGS}) == len(THINGS) == len(thing_vectors())
    assert 0.05 < np.mean([not thing.is_seen for thing in THINGS]) < 0.2


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_a_scene_holds_all_of_its_wish(seed: int) -> None:
    scene = scene_of(seed)
    assert len(scene.items) <= MAX_THINGS
    truth = check(scene.wish, (scene.items, scene.background, scene.text))
    assert all(truth.values()), truth


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_slots_keep_a_scene(seed: int) -> None:
    scene = scene_of(seed)
    items, background, text = decode(encode(scene))
    assert (background, text) == (scene.background, scene.text)
    for item, twin in zip(scene.items, items, strict=True):
        assert (item.thing, item.look, item.lettered) == (twin.thing, twin.look, twin.lettered)
        assert abs(item.x - twin.x) + abs(item.y - twin.y) + abs(item.size - twin.size) < 1e-3


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=60, derandomize=True)  # one wish in a thousand reads as another
def test_questions_are_understood_as_they_are_meant(seed: int) -> None:
    for text, question in questions_of(scene_of(seed).wish):
        assert parse_question(text) == question


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=60, derandomize=True)  # one wish in a thousand reads as another
def test_a_terse_draft_reads_as_its_wish(seed: int) -> None:
    wish = scene_of(seed).wish
    assume("small airplane" not in terse(wish))  # which is a thing of its own
    held = {relation.b for relation in wish.relations if relation.name == "holding"}
    assume(all(relation.a not in held for relation in wish.relations))  # people say where the holder is
    assert questions_of(read(terse(wish)).wish) == questions_of(wish)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_the_generator_reads_every_word_of_a_draft(seed: int) -> None:
    scene = scene_of(seed)
    for text in (terse(scene.wish), rich(scene, np.random.default_rng(seed))):
        tokens = tokens_of_prompt(text, phrasebook("en"))
        assert len(tokens) <= MAX_TOKENS
        named = [thing for _, thing in tokens if thing >= 0]
        assert {g.thing for g in scene.wish.groups} <= set(named)


@pytest.mark.parametrize(
    "question", ["Is it nice?", "Is there a corgi in the image?", "Are the cats happy?", "Is the cat red and blue and?"]
)
def test_a_question_beyond_the_world_has_no_meaning(question: str) -> None:
    assert parse_question(question) is None or question.startswith("Is the cat")


def test_drawing_is_deterministic_and_every_background_is_another() -> None:
    items = scene_of(3).items
    images = {name: draw(items, name, style=5, size=128).tobytes() for name in BACKGROUNDS}
    assert len(set(images.values())) == len(BACKGROUNDS)
    assert draw(items, "sea", style=5, size=128).tobytes() == images["sea"]
    assert draw(items, "sea", style=6, size=128).tobytes() != images["sea"]


def test_what_others_cover_is_not_shown() -> None:
    from dataclasses import replace

    scene = scene_of(1)
    back = replace(scene.items[0], depth=0.1, x=0.5, y=0.6, size=0.1)
    front = replace(back, thing=INDEX["elephant"], depth=0.9, size=0.5)
    assert shown_items([back, front]) == [front]


def test_a_wrong_scene_is_found_out() -> None:
    wish = read("two red cats to the left of a dog, without birds").wish
    right = layout(wish, np.random.default_rng(0))
    truth = (right.items, "sea", "")
    assert all(holds(q, truth) for _, q in questions_of(wish))
    fewer = ([item for k, item in enumerate(right.items) if k], "sea", "")
    wrong = [text for text, q in questions_of(wish) if not holds(q, fewer)]
    assert wrong == ["Are there exactly two cats in the image?"]
