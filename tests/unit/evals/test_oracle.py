from __future__ import annotations

import numpy as np

from gems.evals.oracle import all_correct, check, kind_of
from gems.models.pocket.scene import Group, Item, SceneSpec, layout, sample_spec
from gems.models.pocket.vocabulary import ATTRIBUTES, SINGULARS

BLUE, RED = ATTRIBUTES.index("blue"), ATTRIBUTES.index("red")
CAR, CAT = SINGULARS["car"], SINGULARS["cat"]
SPEC = SceneSpec((Group(2, BLUE, CAR), Group(1, 0, CAT)), ("to the left of",))


def car(x: float, attribute: int = BLUE) -> Item:
    return Item(CAR, attribute, x, 0.5, 0.1, 0.5)


def cat(x: float) -> Item:
    return Item(CAT, RED, x, 0.5, 0.1, 0.5)


def test_extra_things_do_not_make_a_right_scene_wrong() -> None:
    items = [car(0.1), car(0.3), cat(0.8), Item(SINGULARS["dog"], 0, 0.5, 0.5, 0.1, 0.5)]
    assert all_correct(SPEC, items)


def test_each_kind_of_mistake_is_found_alone() -> None:
    def wrong(items: list[Item]) -> set[str]:
        return {atom for atom, is_met in check(SPEC, items).items() if not is_met}

    assert wrong([car(0.1), cat(0.8)]) == {"count 0"}
    assert wrong([car(0.1), car(0.2), car(0.3), cat(0.8)]) == {"count 0"}
    assert wrong([car(0.1), car(0.3, RED), cat(0.8)]) == {"attribute 0"}
    assert wrong([car(0.7), car(0.9), cat(0.2)]) == {"position 0"}
    assert wrong([car(0.1), car(0.3)]) == {"object 1", "count 1", "position 0"}
    assert wrong([]) == {"object 0", "count 0", "attribute 0", "object 1", "count 1", "position 0"}


def test_laid_out_scenes_are_right() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = layout(sample_spec(rng), rng)
        assert all_correct(scene.spec, scene.items)


def test_atoms_have_a_kind() -> None:
    assert {kind_of(atom) for atom in check(SPEC, [])} == {"object", "count", "attribute", "position"}
