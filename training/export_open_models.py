"""Put the trained open models together: ``python training/export_open_models.py --runs DIR``.

``--runs`` has the folders gen, finder, namer and letters of the four trainings. Prototypes of what is seen are embedded
from the things' drawings; probabilities are calibrated on fresh scenes, two thirds of them made by the
generator, that is with its mistakes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from train_open_generator import SEEN_THINGS, make_text
from train_vision import _fit_platt, _fit_temperature, _spread

from gems.evals.open_oracle import Truth, holds, shown_items
from gems.models.open.chat import expected_of
from gems.models.open.draft_wording import rich, terse
from gems.models.open.eyes import save_eyes
from gems.models.open.finder import Finder
from gems.models.open.lettering import LineReader
from gems.models.open.namer import Namer, prototype_image
from gems.models.open.network import OpenModel
from gems.models.open.open_pipeline import OpenPipeline
from gems.models.open.painting import draw
from gems.models.open.questions import Who, questions_of
from gems.models.open.sight import Calibration, Eyes, Sight
from gems.models.open.slots import decode
from gems.models.open.stage import Item, layout, relation_margin, sample_wish
from gems.models.open.things import BACKGROUNDS, LOOK_NAMES, RELATIONS, THINGS
from gems.models.open.wish import Wish
from gems.models.pocket.vision import normalise

WEIGHTS: Final = Path(__file__).resolve().parents[1] / "src/gems/models/open/weights"

_Scene = tuple[Image.Image, Truth, Wish]


def export_generator(folder: Path) -> OpenPipeline:
    """The generator of a training's moving average, saved."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    names = ("width", "layers", "heads", "text_width", "text_layers")
    network = {name: state["settings"][name] for name in names}
    model = OpenModel(**network)
    model.load_state_dict(state["average"])
    pipeline = OpenPipeline(model)
    pipeline.save_pretrained(WEIGHTS / "generator", network)
    return pipeline


def assemble_eyes(runs: Path) -> Eyes:
    """The vision model of three trainings, not yet calibrated."""
    finder, namer, reader = Finder(), Namer(), LineReader()
    finder.load_state_dict(torch.load(runs / "finder/finder.pt", weights_only=True)["average"])
    namer.load_state_dict(torch.load(runs / "namer/namer.pt", weights_only=True)["average"])
    reader.load_state_dict(torch.load(runs / "letters/lettering.pt", weights_only=True))
    namer.eval()
    return Eyes(finder, namer, prototypes(namer, range(len(THINGS))).numpy(), reader, Calibration())


def prototypes(namer: Namer, things: range) -> torch.Tensor:
    """What the namer makes of things' drawings, (things, EMBEDDING)."""
    drawings = torch.from_numpy(np.stack([prototype_image(thing) for thing in things]))
    with torch.inference_mode():
        return torch.cat([namer(normalise(part))[0] for part in drawings.split(64)])


def scenes(pipeline: OpenPipeline, count: int, seed: int) -> Iterator[_Scene]:
    """Scenes of things that training saw: laid out, or drawn from a draft; with what was asked for."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        scene = layout(sample_wish(rng, SEEN_THINGS, make_text), rng)
        items, background, text = scene.items, scene.background, scene.text
        if k % 3:
            generator = torch.Generator().manual_seed(seed + k)
            draft = terse(scene.wish) if k % 3 == 1 else rich(scene, rng)
            slots = pipeline(draft, generator=generator, output_type="slots").images[0]
            items, background, text = decode(np.asarray(slots))
        image = draw(items, background, text=text, style=int(rng.integers(2**16)))
        yield image, (items, background, text), _wish_asked(scene.wish, rng)


def _wish_asked(wish: Wish, rng: np.random.Generator) -> Wish:
    """What is asked of an image that was made for a wish: in a third of the cases something else, as images fail."""
    roll = rng.random()
    if roll < 0.15:
        return sample_wish(rng, SEEN_THINGS)
    if roll > 0.35:
        return wish
    k = int(rng.integers(len(wish.groups)))
    group = wish.groups[k]
    if rng.random() < 0.5:
        group = replace(group, count=group.count - 1 if group.count > 2 and rng.random() < 0.5 else group.count + 1)
    else:
        group = replace(group, look=int(rng.integers(1, len(LOOK_NAMES))))
    return replace(wish, groups=(*wish.groups[:k], group, *wish.groups[k + 1 :]))


def calibrate(eyes: Eyes, pipeline: OpenPipeline, count: int, seed: int = 1_000_003) -> Calibration:
    """Fit calibrated probabilities."""
    heat: list[tuple[float, float]] = []
    names: tuple[list[NDArray[np.float64]], list[int]] = ([], [])
    looks: tuple[list[NDArray[np.float64]], list[int]] = ([], [])
    grounds: tuple[list[NDArray[np.float64]], list[int]] = ([], [])
    masks: tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]] = ([], [])
    margins: dict[str, list[float]] = {name: [] for name in RELATIONS}
    for image, (items, background, _), wish in scenes(pipeline, count, seed):
        sight = eyes.look(image)
        grounds[0].append(np.log(sight.backgrounds + 1e-12))
        grounds[1].append(BACKGROUNDS.index(background))
        partners = list(shown_items(items))
        for d in sight.detections:
            logit = math.log(d.score / (1 - d.score)) if d.score < 1 - 1e-9 else 20.0
            near = [i for i in partners if math.hypot(i.x - d.item.x, i.y - d.item.y) < 0.35 * i.size]
            twin = min(near, key=lambda i: abs(i.x - d.item.x) + abs(i.y - d.item.y), default=None)
            heat.append((logit, float(twin is not None)))
            if twin is None:
                continue
            partners.remove(twin)
            names[0].append(np.log(d.names + 1e-12))
            names[1].append(twin.thing)
            masks[0].append(np.isin(np.arange(len(THINGS)), [g.thing for g in wish.groups]))
            own = [g.look for g in wish.groups if g.thing == twin.thing]
            masks[1].append(np.isin(np.arange(len(LOOK_NAMES)), own))
            looks[0].append(np.log(d.looks + 1e-12))
            looks[1].append(twin.look)
        _add_margins(margins, items, sight)
    scale, shift = _fit_platt(heat)
    name_temperature, expected_odds = _fit_expectation(*names, masks[0])
    look_temperature, look_odds = _fit_expectation(*looks, masks[1])
    return Calibration(
        heat_scale=scale,
        heat_shift=shift,
        name_temperature=name_temperature,
        expected_odds=expected_odds,
        look_odds=look_odds,
        look_temperature=look_temperature,
        background_temperature=_fit_temperature(*grounds),
        margin_error={name: round(_spread(errors), 4) for name, errors in margins.items() if len(errors) > 20},
    )


def _fit_expectation(
    log_probabilities: list[NDArray[np.float64]], classes: list[int], masks: list[NDArray[np.bool_]]
) -> tuple[float, float]:
    """The temperature, and the odds of what was asked for, that make the true names or looks likeliest.

    A few finds are matched with the wrong thing; what they say counts for no more than a guess would.
    """
    logits, mask = torch.from_numpy(np.stack(log_probabilities)), torch.from_numpy(np.stack(masks))
    rows, truth = torch.arange(len(classes)), torch.tensor(classes)

    def surprise(temperature: float, odds: float) -> float:
        scaled = (logits / temperature + mask * math.log(odds)).log_softmax(dim=1)
        return float(-(_MATCHED * scaled[rows, truth].exp() + (1 - _MATCHED) / 20).log().mean())

    grid = [(t, o) for t in np.geomspace(0.5, 6.0, 30) for o in np.geomspace(1, 100_000, 26)]
    temperature, odds = min(grid, key=lambda pair: surprise(*pair))
    return round(float(temperature), 4), round(float(odds), 1)


_MATCHED: Final = 0.95
"""The share of finds that are matched with the thing that they show; the rest lie where things cover each other."""


def fit_count_odds(eyes: Eyes, pipeline: OpenPipeline, count: int, seed: int = 1_000_003) -> float:
    """The odds of the number that was asked for that make the right answers about numbers likeliest."""
    answers: list[tuple[float, bool]] = []
    for image, (items, background, text), wish in scenes(pipeline, count, seed):
        truth = (shown_items(items), background, text)
        questions = [question for _, question in questions_of(wish)]
        sight = eyes.look(image).expecting(expected_of(questions))
        counts = (question for question in questions if question.kind == "count")
        answers += [(sight.p_count(q.who, q.count), holds(q, truth)) for q in counts]
    p, right = (np.array(column, dtype=float) for column in zip(*answers, strict=True))

    def surprise(odds: float) -> float:
        q = np.clip(odds * p / (odds * p + 1 - p), 0.01, 0.99)
        return float(-np.mean(np.where(right > 0, np.log(q), np.log(1 - q))))

    return round(float(min(np.geomspace(0.3, 100, 40), key=surprise)), 2)


def _add_margins(margins: dict[str, list[float]], items: list[Item], sight: Sight) -> None:
    """Errors of margins between groups whose things were all seen."""
    kinds = sorted({i.thing for i in items})[:3]
    for a in kinds:
        for b in kinds:
            groups = [[i for i in items if i.thing == kind] for kind in (a, b)]
            found_groups = [sight.items(Who(kind)) for kind in (a, b)]
            if a == b or [len(g) for g in groups] != [len(g) for g in found_groups]:
                continue
            for relation, errors in margins.items():
                if relation != "between":
                    true = relation_margin(relation, *groups)
                    if abs(true) < 0.25:
                        errors.append(relation_margin(relation, *found_groups) - true)


def main() -> int:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the four trainings")
    parser.add_argument("--scenes", type=int, default=300, help="scenes to calibrate on (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = export_generator(options.runs / "gen")
    eyes = assemble_eyes(options.runs)
    calibration = calibrate(eyes, pipeline, options.scenes)
    eyes.calibration = calibration
    calibration = replace(calibration, count_odds=fit_count_odds(eyes, pipeline, options.scenes))
    sys.stdout.write(f"{calibration}\n")
    eyes.calibration = calibration
    save_eyes(eyes, WEIGHTS / "vision")
    return 0


if __name__ == "__main__":
    sys.exit(main())
