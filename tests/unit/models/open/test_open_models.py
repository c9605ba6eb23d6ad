"""The open models with the weights that come with the package: what is drawn, what is seen, what is answered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gems.errors import InputError
from gems.evals.open_oracle import holds, shown_items, truth_of
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.models.open.chat import judge_all
from gems.models.open.eyes import pretrained
from gems.models.open.open_pipeline import OpenPipeline
from gems.models.open.painting import draw
from gems.models.open.questions import questions_of
from gems.models.open.stage import layout
from gems.models.open.things import THINGS
from gems.models.open.weights import GENERATOR, open_weights
from gems.models.open.wish import Group, Wish
from gems.models.open.wish_reading import read

PROMPTS = (
    "a dragon in the snow",
    "two red apples",
    "three penguins at night",
    "a blue castle in a forest",
    "an owl and a guitar",
    "a dog on the beach",
    "four yellow taxis in the city",
    "a striped cat, without dogs",
)


@pytest.fixture(scope="module")
def pipeline() -> OpenPipeline:
    return OpenPipeline.from_pretrained(str(open_weights(GENERATOR)))


def test_most_plain_prompts_are_drawn_right_at_once(pipeline: OpenPipeline) -> None:
    right = []
    for seed, prompt in enumerate(PROMPTS * 3):
        truth = truth_of(pipeline, prompt, seed)
        right.append(all(holds(question, truth) for _, question in questions_of(read(prompt).wish)))
    assert np.mean(right) >= 0.5


def test_an_image_depends_on_its_prompt_and_seed_alone(pipeline: OpenPipeline) -> None:
    def images(prompts: list[str]) -> list[Image.Image]:
        result: list[Image.Image] = pipeline(
            prompts, generator=[torch.Generator().manual_seed(k) for k in range(len(prompts))]
        ).images
        return result

    alone, together = images(["a red fox"]), images(["a red fox", "two owls"])
    assert alone[0].tobytes() == together[0].tobytes() != together[1].tobytes()
    assert alone[0].size == (512, 512)


def test_another_language_draws_the_same(pipeline: OpenPipeline) -> None:
    english, german = (truth_of(pipeline, prompt, 4) for prompt in ("two red cats", "zwei rote Katzen"))
    assert english == german


def test_things_are_found_and_named_even_those_that_no_training_saw() -> None:
    rng, eyes = np.random.default_rng(11), pretrained()
    named: dict[bool, list[bool]] = {True: [], False: []}
    for is_seen in (True, False):
        pool = [k for k, thing in enumerate(THINGS) if thing.is_seen == is_seen]
        for _ in range(8):
            picks = [int(k) for k in rng.choice(pool, 2, replace=False)]
            scene = layout(Wish((Group(picks[0], 2), Group(picks[1]))), rng)
            sight = eyes.look(draw(scene.items, scene.background, style=1))
            for item in shown_items(scene.items):
                nearest = min(sight.detections, key=lambda d: np.hypot(d.item.x - item.x, d.item.y - item.y))
                named[is_seen].append(nearest.item.thing == item.thing)
    assert np.mean(named[True]) > 0.85
    assert np.mean(named[False]) > 0.6


def test_right_and_wrong_scenes_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    wish = read("three red apples to the left of a huge elephant, in a desert, without cats").wish
    questions = [question for _, question in questions_of(wish)]
    scene = layout(wish, rng)
    right = judge_all(pretrained().look(draw(scene.items, "desert")), questions)
    assert sum(p >= 0.5 for p, _ in right) >= len(questions) - 1
    mirrored = [type(i)(i.thing, 0, 1 - i.x, i.y, i.size, i.depth) for i in scene.items[1:]]
    wrong = dict(
        zip([q.kind for q in questions], judge_all(pretrained().look(draw(mirrored, "sea")), questions), strict=True)
    )
    assert wrong["background"][0] < 0.5
    assert wrong["relation"][0] < 0.5
    assert "not to the left of" in wrong["relation"][1]
    assert "elephant" in wrong["relation"][1]


def test_the_whole_agent_solves_plain_wishes_and_never_a_stand_in() -> None:
    graph = build_graph()
    context = GemsContext(generator="open", mllm="open", memory=False, max_rounds=4, seed=5)
    solved = {
        prompt: graph.invoke({"prompt": prompt}, context=context)["outcome"] == "solved"
        for prompt in (
            "two red apples in the snow",
            "drei blaue Fische",
            "un hibou la nuit",
            "a corgi",
            "a cat near a waterfall",
            "a duck on a pond",
            "a house with no animals",
        )
    }
    assert not solved["a corgi"]
    assert not solved["a cat near a waterfall"]
    assert not solved["a duck on a pond"]
    assert not solved["a house with no animals"]
    assert sum(solved.values()) >= 2


def test_a_prompt_beyond_the_world_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(InputError, match="unknown thing 'capybara'"):
        build_graph().invoke({"prompt": "a capybara"}, context=GemsContext(generator="open", mllm="open", memory=False))
