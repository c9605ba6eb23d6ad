"""What the open models can do, part by part: ``python benchmarks/open_models.py --n 300 --seed 7``.

generator: the share of terse and of rich drafts that are drawn all right, by the oracle, for things that training saw
and for things that it did not. vision: the share of right answers about laid-out scenes, by kind of question, and how
far probabilities are off (expected calibration error, ten bins). texts: the share of texts that an OCR reads letter for
letter, which no verifier of the open models uses (needs the extra ``ocr``). people: what becomes of prompts that people
wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gems.errors import InputError
from gems.evals.open_oracle import check, holds, shown_items, truth_of
from gems.models.open.chat import judge_all
from gems.models.open.draft_wording import rich, terse
from gems.models.open.eyes import pretrained
from gems.models.open.neighbours import nearest_thing
from gems.models.open.open_pipeline import OpenPipeline
from gems.models.open.painting import draw
from gems.models.open.questions import questions_of
from gems.models.open.stage import layout, sample_wish
from gems.models.open.things import THINGS
from gems.models.open.weights import GENERATOR, open_weights
from gems.models.open.wish_reading import read

PEOPLE = Path(__file__).parent / "people_prompts.txt"
_TEXTS = ("OPEN", "HELLO", "STOP", "SALE", "BE KIND", "FREE HUGS", "NO ENTRY", "BAKERY")


def measure_generator(n: int, seed: int, pool: Sequence[int]) -> dict[str, Any]:
    """The rates of terse and rich drafts, and of each kind of question under terse ones."""
    pipeline = OpenPipeline.from_pretrained(str(open_weights(GENERATOR)))
    rng = np.random.default_rng(seed)
    right: dict[str, list[bool]] = {"terse": [], "rich": []}
    kinds: dict[str, list[bool]] = defaultdict(list)
    seconds = 0.0
    for k in range(n):
        scene = layout(sample_wish(rng, pool, lambda g: str(g.choice(_TEXTS))), rng)
        for wording, draft in (("terse", terse(scene.wish)), ("rich", rich(scene, rng))):
            begin = time.perf_counter()
            truth = truth_of(pipeline, draft, seed + k)
            seconds += time.perf_counter() - begin
            right[wording].append(all(check(scene.wish, truth).values()))
            if wording == "terse":
                for _, question in questions_of(scene.wish):
                    kinds[question.kind].append(holds(question, truth))
    return {
        **{w: _rate(v) for w, v in right.items()},
        "kinds": {k: _rate(v) for k, v in sorted(kinds.items())},
        "seconds": round(seconds / n / 2, 3),
    }


def measure_vision(n: int, seed: int, pool: Sequence[int]) -> dict[str, Any]:
    """The rates of right answers by kind, of right names and looks of what shows, and the calibration error."""
    rng, eyes = np.random.default_rng(seed), pretrained()
    rates: dict[str, list[bool]] = defaultdict(list)
    answers: list[tuple[float, bool]] = []
    seconds = 0.0
    for _ in range(n):
        scene = layout(sample_wish(rng, pool, lambda g: str(g.choice(_TEXTS))), rng)
        other = sample_wish(rng, pool, None)
        image = draw(scene.items, scene.background, text=scene.text, style=int(rng.integers(2**16)))
        begin = time.perf_counter()
        sight = eyes.look(image)
        seconds += time.perf_counter() - begin
        truth = (scene.items, scene.background, scene.text)
        for wish in (scene.wish, other):
            questions = [question for _, question in questions_of(wish)]
            for question, (p, _) in zip(questions, judge_all(sight, questions), strict=True):
                answer = holds(question, truth)
                answers.append((p, answer))
                if wish is scene.wish:
                    rates[question.kind].append((p >= 0.5) == answer)
        for item in shown_items(scene.items):
            near = [d for d in sight.detections if np.hypot(d.item.x - item.x, d.item.y - item.y) < 0.3 * item.size]
            rates["found"].append(bool(near))
            if near:
                nearest = min(near, key=lambda d: np.hypot(d.item.x - item.x, d.item.y - item.y))
                rates["named"].append(nearest.item.thing == item.thing)
                rates["looks"].append(nearest.item.look == item.look)
    return {
        **{k: _rate(v) for k, v in sorted(rates.items())},
        "calibration_error": _calibration_error(answers),
        "seconds": round(seconds / n, 3),
    }


def measure_texts(n: int, seed: int, pool: Sequence[int]) -> dict[str, Any]:
    """How often the text that was asked for is in the first image of a rich draft, by the oracle and by an OCR."""
    from gems.models.ocr import OcrInspector, similarity

    pipeline, ocr = OpenPipeline.from_pretrained(str(open_weights(GENERATOR))), OcrInspector()
    rng = np.random.default_rng([seed, 5])
    right: list[bool] = []
    readable: list[bool] = []
    while len(right) < n:
        wish = sample_wish(rng, pool, lambda g: str(g.choice(_TEXTS)))
        texts = [group.text for group in wish.groups if group.text]
        if not texts:
            continue
        truth = truth_of(pipeline, rich(layout(wish, rng), rng), seed + len(right))
        items, background, text = truth
        image = draw(items, background, text=text, style=int(rng.integers(2**16)))
        right.append(all(holds(q, truth) for _, q in questions_of(wish) if q.kind == "text"))
        readable.append(similarity(texts[0], ocr.read(image)[0]) == 1)
    return {"oracle": _rate(right), "ocr": _rate(readable)}


def measure_people() -> dict[str, Any]:
    """What becomes of the prompts that people wrote."""
    fates: Counter[str] = Counter()
    for prompt in PEOPLE.read_text(encoding="utf-8").splitlines():
        if not prompt or prompt.startswith("#"):
            continue
        try:
            reading = read(prompt, nearest_thing)
        except InputError:
            fates["refused"] += 1
            continue
        fates[
            "stand-in"
            if reading.stand_ins
            else "a thing is missing"
            if reading.missing
            else "words left out"
            if reading.left_out
            else "all understood"
        ] += 1
    return dict(fates.most_common())


def _rate(values: Sequence[bool]) -> list[float]:
    """The mean, a 95% Wilson interval, and the number."""
    n, p, z = len(values), float(np.mean(values)), 1.96
    middle, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n),
    )
    return [round(v, 3) for v in (p, middle - half, middle + half)] + [n]


def _calibration_error(answers: Sequence[tuple[float, bool]]) -> float:
    p, answer = (np.array(column, dtype=float) for column in zip(*answers, strict=True))
    bins = np.minimum((10 * p).astype(int), 9)
    return round(
        float(
            sum(abs(p[bins == b].mean() - answer[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))
        ),
        4,
    )


def main() -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300, help="scenes of each part (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--parts", default="generator,vision,texts,people", help="which parts (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = [k for k, thing in enumerate(THINGS) if thing.is_seen]
    unseen = [k for k, thing in enumerate(THINGS) if not thing.is_seen]
    for part in options.parts.split(","):
        for name, pool in (("seen", trained), ("unseen", unseen)):
            if part == "generator":
                result = measure_generator(options.n, options.seed, pool)
            elif part == "texts":
                result = measure_texts(options.n, options.seed, pool)
            elif part == "vision":
                result = measure_vision(options.n, options.seed, pool)
            elif name == "seen":
                result = measure_people()
            else:
                continue
            sys.stdout.write(f"{part} {name if part != 'people' else ''}\n{json.dumps(result, indent=1)}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
