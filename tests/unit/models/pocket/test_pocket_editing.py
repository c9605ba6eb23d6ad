"""Edits keep some parts of an image and redraw the others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from gems.evals.oracle import items_of
from gems.evals.prompts import EvalPrompt, Vqa
from gems.evals.scorers import Oracle
from gems.memory.image_store import ImageStore
from gems.models.generators import Edit, GeneratedImage, ImageRequest
from gems.models.pocket.editing import groups_of, kept_groups, kept_slots
from gems.models.pocket.pipeline import PocketPipeline
from gems.models.pocket.scene import Group
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS
from gems.models.pocket.weights import GENERATOR, weights_folder
from gems.models.registry import init_image_generator
from gems.nodes.generator import image_metadata

RICH = "exactly three red cars in a row at the top; one cat at the bottom left; two dogs at the bottom right"
OBJECT = {word.singular: i for i, word in enumerate(OBJECTS)}
CARS = ("Are there any cars in the image?", "Are there exactly three cars in the image?", "Are the cars red?")
CAT = ("Are there any cats in the image?", "Is there exactly one cat in the image?")
DOGS = ("Are there any dogs in the image?", "Are there exactly two dogs in the image?")


@pytest.fixture(scope="module")
def pipeline() -> PocketPipeline:
    pipeline = PocketPipeline.from_pretrained(str(weights_folder(GENERATOR)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "prompt", [RICH, "three red cars and a cat and two dogs", f"three red cars, a cat and two dogs: {RICH}"]
)
def test_groups_are_read_in_order_from_any_wording(prompt: str) -> None:
    red = ATTRIBUTES.index("red")
    assert groups_of(prompt) == [Group(3, red, OBJECT["car"]), Group(1, 0, OBJECT["cat"]), Group(2, 0, OBJECT["dog"])]


@pytest.mark.parametrize(
    ("keep", "fix", "stay"),
    [
        ((*CARS, *CAT), DOGS[1:], {"car", "cat"}),
        ((*CARS[:2], *CAT, *DOGS), CARS[2:], {"cat", "dog"}),
        ((*CARS, *CAT, *DOGS), ("Are the cars on top of the cat?",), {"car", "dog"}),
        ((*CAT, *DOGS[:1]), (*CARS, DOGS[1]), {"cat"}),
        ((), (*CARS, *CAT, *DOGS), set()),
        (("Is it pretty?",), ("Is there a moon?",), set()),
    ],
)
def test_a_group_stays_if_all_its_requirements_are_met(
    keep: tuple[str, ...], fix: tuple[str, ...], stay: set[str]
) -> None:
    assert kept_groups(groups_of(RICH), keep, fix) == {OBJECT[name] for name in stay}


def test_an_edit_does_not_move_what_is_right(pipeline: PocketPipeline) -> None:
    [image] = pipeline(RICH, generator=torch.Generator().manual_seed(1)).images
    edit_fields = {"image": image, "keep": (*CARS, *CAT), "fix": DOGS[1:]}
    _, known_slots = kept_slots(RICH, image, edit_fields["keep"], edit_fields["fix"])
    assert known_slots.tolist() == [True] * 4 + [False] * 20
    before, after = items_of(pipeline, RICH, 1), items_of(pipeline, RICH, 2, **edit_fields)
    other = items_of(pipeline, RICH, 2)
    for name, count in (("car", 3), ("cat", 1)):
        items_before, items_after = ([i for i in items if i.object == OBJECT[name]] for items in (before, after))
        assert len(items_before) == len(items_after) == count
        for a, b in zip(items_before, items_after, strict=True):
            assert (b.x, b.y, b.size) == pytest.approx((a.x, a.y, a.size), abs=0.03)
    assert [i for i in after if i.object == OBJECT["dog"]] != [i for i in before if i.object == OBJECT["dog"]]
    assert [i for i in other if i.object == OBJECT["car"]] != [i for i in after if i.object == OBJECT["car"]]


def test_where_nothing_is_right_an_edit_is_a_new_image(pipeline: PocketPipeline) -> None:
    [image] = pipeline(RICH, generator=torch.Generator().manual_seed(1)).images
    edited = items_of(pipeline, RICH, 2, image=image, keep=(), fix=CARS)
    assert edited == items_of(pipeline, RICH, 2)


def test_the_oracle_knows_the_truth_about_an_edit(tmp_path: Path, pipeline: PocketPipeline) -> None:
    generator, images = init_image_generator("pocket"), ImageStore(tmp_path / "images")
    assert generator.edits
    [first] = generator.generate([ImageRequest(RICH, 1)])
    assert isinstance(first, GeneratedImage)
    base = images.put(first.image, image_metadata(first.request, generator))
    edit = Edit(Image.open(io.BytesIO(images.read(base))), keep=(*CARS, *CAT), fix=DOGS[1:])
    [second] = generator.generate([ImageRequest(RICH, 2, edit)])
    assert isinstance(second, GeneratedImage)
    metadata = image_metadata(second.request, generator, edited_from=base.sha256)
    assert json.loads(metadata["gems"])["edit"]["from"] == base.sha256
    ref = images.put(second.image, metadata)

    prompt = EvalPrompt("three red cars and a cat", 4, tuple(Vqa(f"{i}?", "Yes", "object") for i in range(2)))
    attempt = {"prompt": RICH, "seed": 2, "image": ref.uri, "sha256": ref.sha256, "edited_from": base.sha256}
    items = items_of(pipeline, RICH, 2, image=edit.image, keep=edit.keep, fix=edit.fix)
    assert len([i for i in items if i.object == OBJECT["car"]]) == 3
    assert Oracle(tmp_path).score(prompt, "pocket", attempt) == [1.0, 1.0]
