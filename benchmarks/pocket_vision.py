"""How well the pocket vision model reads images: ``python benchmarks/pocket_vision.py --n 1000``.

Fresh scenes are drawn at 512 x 512 and asked the benchmark's questions. *Laid out* scenes are what their prompt asks
for: every true answer is yes. Others have *gone wrong* as a weak generator's do, or are up to 24 things *strewn* at
random; there "balanced", the mean of the shares of yes-questions and of no-questions answered rightly, says more.
Hidden things count in the truth, as they do for the oracle. A *verdict* is on a whole prompt: a false pass lets a
wrong image through, a false fail rejects a right one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from train_vision import gone_wrong, strewn

from gems.evals.oracle import check, kind_of
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Group, Item, SceneSpec, count_of, layout, sample_spec
from gems.models.pocket.vision import Sight, VisionModel
from gems.models.pocket.vocabulary import ATTRIBUTES, MAX_COUNT, OBJECTS, RELATIONS
from gems.models.pocket.weights import VISION, weights_folder

__all__ = ["Answer", "answers", "evaluate", "expected_calibration_error"]

KINDS: Final = ("object", "count", "attribute", "position", "verb")
Case = tuple[SceneSpec, list[Item]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question: its kind, the probability of yes that was given, and the truth."""

    kind: str
    p_yes: float
    truth: bool

    @property
    def right(self) -> bool:
        """Whether the given answer, yes or no, is the true one."""
        return (self.p_yes >= 0.5) == self.truth


def answers(sight: Sight, spec: SceneSpec, items: Sequence[Item]) -> list[Answer]:
    """A prompt's questions, answered from pixels and checked against what was drawn."""
    found = []
    for atom, truth in check(spec, items).items():
        kind, i = kind_of(atom), int(atom.split()[1])
        group = spec.groups[i]
        if kind == "object":
            p = sight.p_object(group.object)
        elif kind == "count":
            p = sight.p_count(group.object, group.count)
        elif kind == "attribute":
            p = sight.p_attribute(group.object, group.attribute)
        else:
            p = sight.p_relation(group.object, spec.relations[i] or "", spec.groups[i + 1].object)
        found.append(Answer(kind, p, bool(truth)))
    return found


def laid_out_case(rng: np.random.Generator) -> Case:
    """A prompt and a scene that is right."""
    scene = layout(sample_spec(rng), rng)
    return scene.spec, scene.items


def gone_wrong_case(rng: np.random.Generator) -> Case:
    """A prompt and a scene that it went wrong in."""
    spec, items = laid_out_case(rng)
    return spec, gone_wrong(items, rng)


def strewn_case(rng: np.random.Generator) -> Case:
    """Things strewn at random, and a prompt about some of them."""
    items = strewn(rng)
    return _prompt_about(items, rng), items


SETS: Final = {"laid out": laid_out_case, "gone wrong": gone_wrong_case, "strewn": strewn_case}


def _prompt_about(items: Sequence[Item], rng: np.random.Generator) -> SceneSpec:
    """Two groups, mostly of things that are there, with right and wrong counts and attributes and any relation."""
    there = sorted({i.object for i in items})
    absent = [o for o in range(len(OBJECTS)) if o not in there]
    groups: list[Group] = []
    while len(groups) < 2:
        obj = int(rng.choice(there if rng.random() < 0.75 else absent))
        if any(g.object == obj for g in groups):
            there, absent = [*there, *absent], absent
            continue
        members = [i for i in items if i.object == obj]
        count = count_of(items, obj) + int(rng.choice([0, 0, -1, 1]))
        attribute = members[0].attribute if members and rng.random() < 0.6 else int(rng.integers(len(ATTRIBUTES)))
        groups.append(Group(min(max(count, 1), MAX_COUNT), attribute, obj))
    return SceneSpec(tuple(groups), (str(rng.choice(RELATIONS)),))


def expected_calibration_error(given: Sequence[Answer], bins: int = 10) -> float:
    """Mean gap between the confidence of the given answers and how often they are right, over equal-width bins."""
    confidence = np.array([max(a.p_yes, 1 - a.p_yes) for a in given])
    right = np.array([a.right for a in given], dtype=float)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [abs(confidence[which == b].sum() - right[which == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(given))


def _figures(given: Sequence[Answer]) -> dict[str, float | int]:
    yes, no = ([a.right for a in given if a.truth is truth] for truth in (True, False))
    sides = [float(np.mean(side)) for side in (yes, no) if side]
    return {
        "questions": len(given),
        "accuracy": float(np.mean([a.right for a in given])),
        "balanced": float(np.mean(sides)),
        "yes": len(yes),
        "ece": expected_calibration_error(given),
    }


def evaluate(model: VisionModel, n: int = 1000, seed: int = 7) -> dict[str, Any]:
    """Figures for ``n`` scenes of each set, by kind of question, with verdicts and time per image."""
    report: dict[str, Any] = {"n": n, "seed": seed}
    seconds: list[float] = []
    for name, make in SETS.items():
        rng = np.random.default_rng([seed, len(name)])
        by_kind: dict[str, list[Answer]] = defaultdict(list)
        verdicts: list[tuple[bool, bool]] = []
        for _ in range(n):
            spec, items = make(rng)
            image = draw_scene(items, style=int(rng.integers(2**16)))
            began = time.perf_counter()
            sight = Sight(model.detect(image), model.calibration)
            seconds.append(time.perf_counter() - began)
            given = answers(sight, spec, items)
            for answer in given:
                by_kind[answer.kind].append(answer)
            verdicts.append((all(a.p_yes >= 0.5 for a in given), all(a.truth for a in given)))
        everything = [a for kind in KINDS for a in by_kind[kind]]
        passed_wrong = [passed for passed, truth in verdicts if not truth]
        failed_right = [not passed for passed, truth in verdicts if truth]
        report[name] = {
            **{kind: _figures(by_kind[kind]) for kind in KINDS},
            "all": _figures(everything),
            "verdicts": {
                "right_images": len(failed_right),
                "wrong_images": len(passed_wrong),
                "false_fail": float(np.mean(failed_right)) if failed_right else None,
                "false_pass": float(np.mean(passed_wrong)) if passed_wrong else None,
            },
        }
    median, p95 = np.quantile(seconds, [0.5, 0.95]).tolist()
    report["milliseconds"] = {"median": 1000 * median, "p95": 1000 * p95}
    return report


def _print(report: dict[str, Any]) -> None:
    print(f"{'':12}{'kind':12}{'questions':>10}{'yes':>7}{'accuracy':>10}{'balanced':>10}{'ECE':>8}")
    for name in SETS:
        for kind in (*KINDS, "all"):
            f = report[name][kind]
            figures = f"{100 * f['accuracy']:9.2f}%{100 * f['balanced']:9.2f}%{f['ece']:8.3f}"
            print(f"{name:12}{kind:12}{f['questions']:10}{f['yes']:7}{figures}")
        v = report[name]["verdicts"]
        print(f"{name:12}verdicts: {_share(v['false_fail'], v['right_images'])} of right images fail, ", end="")
        print(f"{_share(v['false_pass'], v['wrong_images'])} of wrong images pass")
    print(
        "time per image: {median:.1f} ms median, {p95:.1f} ms at the 95th percentile".format(**report["milliseconds"])
    )


def _share(value: float | None, n: int) -> str:
    return "none" if value is None else f"{100 * value:.2f}% (of {n})"


def main() -> None:
    """Measure, print a table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="scenes of each sort (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the scenes")
    parser.add_argument("--weights", type=Path, help="another folder of weights than the package's")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    model = VisionModel.from_pretrained(args.weights or weights_folder(VISION))
    report = evaluate(model, args.n, args.seed)
    _print(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
