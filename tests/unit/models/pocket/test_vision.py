import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pocket_vision import Answer, answers, expected_calibration_error, laid_out_case
from train_vision import MAX_ITEMS, Settings, crowded, match, messy_items, train, visibility

from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Item, layout, sample_spec
from gems.models.pocket.vision import Calibration, Detection, Sight, VisionModel, look
from gems.models.pocket.vocabulary import ATTRIBUTES, OBJECTS
from gems.models.pocket.weights import VISION, weights_folder

CAR, DOG, CAT = (next(i for i, w in enumerate(OBJECTS) if w.singular == s) for s in ("car", "dog", "cat"))
RED, BLUE = ATTRIBUTES.index("red"), ATTRIBUTES.index("blue")


@pytest.fixture(scope="module")
def model():
    return VisionModel.from_pretrained(weights_folder(VISION))


def detection(obj, attribute, x=0.5, y=0.5, *, score=1.0, sure=1.0):
    objects = np.full(len(OBJECTS), (1 - sure) / (len(OBJECTS) - 1))
    objects[obj] = sure
    attributes = np.eye(len(ATTRIBUTES))[attribute]
    return Detection(Item(obj, attribute, x, y, 0.1, 0.5), score, objects, attributes)


# --- reading pixels -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fresh_scenes_are_read_back(model):
    rng = np.random.default_rng(123)
    right = []
    for _ in range(25):
        spec, items = laid_out_case(rng)
        sight = Sight(model.detect(draw_scene(items, style=int(rng.integers(99)))), model.calibration)
        right += [answer.right for answer in answers(sight, spec, items)]
    assert np.mean(right) > 0.93


def test_one_thing_is_found_where_it_stands(model):
    item = Item(DOG, BLUE, 0.3, 0.6, 0.25, 0.8)
    (detected,) = (d for d in model.detect(draw_scene([item], style=3)) if d.score > 0.5)
    assert (detected.item.object, detected.item.attribute) == (DOG, BLUE)
    assert (detected.item.x, detected.item.y, detected.item.size) == pytest.approx((0.3, 0.6, 0.25), abs=0.03)
    assert detected.item.depth == pytest.approx(0.8, abs=0.2)
    assert detected.object_probabilities.sum() == pytest.approx(1)
    assert detected.attribute_probabilities.shape == (len(ATTRIBUTES),)


def test_empty_backdrop_shows_nothing(model):
    assert all(d.score < 0.5 for d in model.detect(draw_scene([], style=5)))


def test_many_images_are_read_as_one_by_one(model):
    images = [draw_scene([Item(CAR, RED, 0.5, 0.5, 0.3, 0.5)], style=s) for s in range(3)]
    assert model.detect_many([]) == []
    for together, alone in zip(model.detect_many(images), map(model.detect, images), strict=True):
        assert [d.item.object for d in together] == [d.item.object for d in alone]
        assert [d.score for d in together] == pytest.approx([d.score for d in alone], abs=1e-4)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK"])
def test_any_mode_and_shape_is_read(model, mode):
    image = draw_scene([Item(CAR, RED, 0.5, 0.5, 0.4, 0.5)]).convert(mode).resize((300, 200))
    assert isinstance(model.detect(image), list)


def test_look_answers_with_the_packaged_weights():
    sight = look(draw_scene([Item(CAR, RED, 0.25, 0.5, 0.2, 0.5), Item(CAT, BLUE, 0.75, 0.5, 0.2, 0.5)]))
    assert (sight.count(CAR), sight.count(CAT), sight.count(DOG)) == (1, 1, 0)
    assert sight.p_count(CAR, 1) > 0.5 > sight.p_count(CAR, 2)
    assert sight.p_attribute(CAR, RED) > 0.5 > sight.p_attribute(CAR, BLUE)
    assert sight.p_relation(CAR, "to the left of", CAT) > 0.5 > sight.p_relation(CAT, "to the left of", CAR)
    assert sight.attributes(CAT) == [BLUE]


def test_saved_model_sees_the_same(model, tmp_path):
    model.save_pretrained(tmp_path, trained={"steps": 1})
    again = VisionModel.from_pretrained(tmp_path)
    image = draw_scene([Item(CAR, RED, 0.5, 0.5, 0.3, 0.5)])
    assert [d.item for d in again.detect(image)] == [d.item for d in model.detect(image)]
    assert again.calibration == model.calibration
    assert json.loads((tmp_path / "config.json").read_text())["trained"] == {"steps": 1}


# --- answering ------------------------------------------------------------------------------------------------------


def test_counts_follow_the_poisson_binomial_distribution():
    sight = Sight([detection(CAR, RED, score=0.9), detection(CAR, RED, score=0.5), detection(DOG, RED)])
    assert sight.p_count(CAR, 0) == pytest.approx(0.1 * 0.5)
    assert sight.p_count(CAR, 1) == pytest.approx(0.9 * 0.5 + 0.1 * 0.5)
    assert sight.p_count(CAR, 2) == pytest.approx(0.9 * 0.5)
    assert sight.p_object(CAR) == pytest.approx(0.95)
    assert sight.p_count(CAR, 9) == sight.p_count(CAR, -1) == 0
    assert sight.count(DOG) == 1


def test_doubt_about_the_kind_is_doubt_about_the_count():
    sight = Sight([detection(CAR, RED, sure=0.6)])
    assert sight.p_object(CAR) == pytest.approx(0.6)


def test_attribute_holds_only_where_all_have_it():
    both = Sight([detection(CAR, RED), detection(CAR, RED)])
    mixed = Sight([detection(CAR, RED), detection(CAR, BLUE)])
    assert both.p_attribute(CAR, RED) == pytest.approx(1)
    assert mixed.p_attribute(CAR, RED) == pytest.approx(0)
    assert both.p_attribute(DOG, RED) == pytest.approx(0)


def test_relation_is_surer_the_clearer_it_is():
    calibration = Calibration(margin_error={"to the left of": 0.05})
    p = [
        Sight([detection(CAR, RED, x=0.5 - d), detection(DOG, RED)], calibration).p_relation(CAR, "to the left of", DOG)
        for d in (-0.3, 0.07, 0.09, 0.3)
    ]
    assert p == sorted(p)
    assert p[0] < 0.01 < 0.4 < p[1] < 0.5 < p[2] < 0.6 < 0.99 < p[3]


def test_relation_with_an_absent_thing_is_not_believed():
    sight = Sight([detection(CAR, RED)])
    assert sight.p_relation(CAR, "behind", DOG) == 0
    with pytest.raises(ValueError, match="unknown relation"):
        sight.p_relation(CAR, "beside", DOG)


# --- measuring and training -----------------------------------------------------------------------------------------


def test_calibration_error_is_the_gap_between_confidence_and_success():
    answers = [Answer("object", 0.9, truth) for truth in [True] * 6 + [False] * 4]
    assert expected_calibration_error(answers) == pytest.approx(0.3)


def test_messy_scenes_stay_within_what_slots_can_hold():
    rng = np.random.default_rng(0)
    for _ in range(50):
        items = messy_items(rng)
        assert 1 <= len(items) <= MAX_ITEMS
        assert all(0 <= i.x <= 1 and 0 <= i.y <= 1 and 0.06 <= i.size <= 0.45 and 0 <= i.depth <= 1 for i in items)


def test_covered_thing_is_hidden_and_the_cover_is_not():
    far = Item(CAR, RED, 0.5, 0.5, 0.3, 0.2)
    assert visibility([far, replace(far, depth=0.9)]) == pytest.approx([0, 1], abs=0.05)
    assert visibility([replace(far, x=0.0)])[0] == pytest.approx(0.5, abs=0.1)


def test_each_true_thing_is_matched_once():
    a, b = Item(CAR, RED, 0.2, 0.5, 0.2, 0.5), Item(CAR, RED, 0.8, 0.5, 0.2, 0.5)
    assert match([b, a, a, Item(DOG, RED, 0.5, 0.9, 0.2, 0.5)], [a, b]) == [1, 0, -1, -1]


@pytest.mark.slow
def test_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, monkeypatch):
    settings = Settings(steps=4, batch=2, chunks=2, chunk=4, checkpoint_every=0, calibration_scenes=4)
    whole = train(tmp_path / "whole", settings)

    forward, calls = VisionModel.forward, []

    def dies_at_the_third_step(self, images):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(VisionModel, "forward", dies_at_the_third_step)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "broken", settings)
    resumed = train(tmp_path / "broken", settings, resume=True)

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert isinstance(VisionModel.from_pretrained(tmp_path / "broken").detect(Image.new("RGB", (64, 64))), list)


def test_a_crowded_scene_holds_the_same_things_nearer_together() -> None:
    rng = np.random.default_rng(4)
    nearer = 0
    for _ in range(40):
        items = layout(sample_spec(rng), rng).items
        crowded_items = crowded(items, rng)
        assert sorted((i.object, i.attribute) for i in crowded_items) == sorted((i.object, i.attribute) for i in items)
        nearer += spread(crowded_items) < spread(items)
    assert nearer > 30


def spread(items: Sequence[Item]) -> float:
    """Mean distance of things from the centre of their kind."""
    kinds = {i.object for i in items}
    middles = {k: np.mean([(i.x, i.y) for i in items if i.object == k], axis=0) for k in kinds}
    return float(np.mean([np.hypot(*(np.array((i.x, i.y)) - middles[i.object])) for i in items]))


def test_fine_tuning_starts_from_the_given_weights(tmp_path: Path) -> None:
    start = weights_folder(VISION)
    settings = Settings(steps=1, batch=2, learning_rate=1e-9, chunks=1, chunk=2, calibration_scenes=4, start=start)
    tuned = train(tmp_path, settings)
    for name, weight in VisionModel.from_pretrained(start).named_parameters():
        assert torch.allclose(dict(tuned.named_parameters())[name], weight, atol=1e-3), name
