"""How well the pocket vision model reads images: ``python benchmarks/pocket_vision.py --n 1000``.

Fresh scenes are drawn at 512 x 512, and the model answers the benchmark's questions about them. *Laid out* scenes show
what their prompt asks for: every true answer is yes. Others have *gone wrong* like images of a weak generator,
or consist of up to 24 things *strewn* at random; for these, "balanced" is more informative: the mean of the shares of
yes-questions and of no-questions answered correctly. Hidden things count as present, as they do for the oracle. A
*verdict* is about a whole prompt: a false pass accepts a wrong image, a false fail rejects a right one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gems.evals.oracle import check, kind_of
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Group, Item, SceneSpec, count_of, layout, sample_spec
from gems.models.pocket.vision import Sight, VisionModel
from gems.models.pocket.vocabulary import ATTRIBUTES, MAX_COUNT, OBJECTS, RELATIONS
from gems.models.pocket.weights import VISION, weights_folder

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))
# isort: split
from train_vision import gone_wrong, strewn

__all__ = ["Answer", "answers", "evaluate", "expected_calibration_error"]

KINDS: Final = ("object", "count", "attribute", "position", "verb")
Case = tuple[SceneSpec, list[Item]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question: the question's kind, the predicted probability of yes, and the truth."""

    kind: str
    p_yes: float
    truth: bool

    @property
    def right(self) -> bool:
        """Whether the answer, yes or no, is the true one."""
        return (self.p_yes >= 0.5) == self.truth


def answers(sight: Sight, spec: SceneSpec, items: Sequence[Item]) -> list[Answer]:
    """Answer a prompt's questions from pixels, and check them against what was drawn."""
    results = []
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
        results.append(Answer(kind, p, bool(truth)))
    return results


def laid_out_case(rng: np.random.Generator) -> Case:
    """A prompt and a scene that shows it correctly."""
    scene = layout(sample_spec(rng), rng)
    return scene.spec, scene.items


def gone_wrong_case(rng: np.random.Generator) -> Case:
    """A prompt and a scene that shows it with mistakes."""
    spec, items = laid_out_case(rng)
    return spec, gone_wrong(items, rng)


def strewn_case(rng: np.random.Generator) -> Case:
    """Things strewn at random, and a prompt about some of them."""
    items = strewn(rng)
    return _prompt_about(items, rng), items


SETS: Final = {"laid out": laid_out_case, "gone wrong": gone_wrong_case, "strewn": strewn_case}


def _prompt_about(items: Sequence[Item], rng: np.random.Generator) -> SceneSpec:
    """Two groups, mostly of things in the scene, with right and wrong counts and attributes and a random relation."""
    present = sorted({i.object for i in items})
    absent = [o for o in range(len(OBJECTS)) if o not in present]
    groups: list[Group] = []
    while len(groups) < 2:
        obj = int(rng.choice(present if rng.random() < 0.75 else absent))
        if any(g.object == obj for g in groups):
            present, absent = [*present, *absent], absent
            continue
        members = [i for i in items if i.object == obj]
        count = count_of(items, obj) + int(rng.choice([0, 0, -1, 1]))
        attribute = members[0].attribute if members and rng.random() < 0.6 else int(rng.integers(len(ATTRIBUTES)))
        groups.append(Group(min(max(count, 1), MAX_COUNT), attribute, obj))
    return SceneSpec(tuple(groups), (str(rng.choice(RELATIONS)),))


def expected_calibration_error(results: Sequence[Answer], bins: int = 10) -> float:
    """Mean gap between the confidence of the answers and how often they are right, over bins of equal width."""
    confidence = np.array([max(a.p_yes, 1 - a.p_yes) for a in results])
    right = np.array([a.right for a in results], dtype=float)
    bin_index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [abs(confidence[bin_index == b].sum() - right[bin_index == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(results))


def _figures(results: Sequence[Answer]) -> dict[str, float | int]:
    yes, no = ([a.right for a in results if a.truth is truth] for truth in (True, False))
    sides = [float(np.mean(side)) for side in (yes, no) if side]
    return {
        "questions": len(results),
        "accuracy": float(np.mean([a.right for a in results])),
        "balanced": float(np.mean(sides)),
        "yes": len(yes),
        "ece": expected_calibration_error(results),
    }


def evaluate(model: VisionModel, n: int = 1000, seed: int = 7) -> dict[str, Any]:
    """Figures for ``n`` scenes of each set: by kind of question, verdicts on whole prompts, and time per image."""
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
            results = answers(sight, spec, items)
            for answer in results:
                by_kind[answer.kind].append(answer)
            verdicts.append((all(a.p_yes >= 0.5 for a in results), all(a.truth for a in results)))
        report[name] = {
            **{kind: _figures(by_kind[kind]) for kind in KINDS},
            "all": _figures([a for kind in KINDS for a in by_kind[kind]]),
            "verdicts": _verdict_figures(verdicts),
        }
    median, p95 = np.quantile(seconds, [0.5, 0.95]).tolist()
    report["milliseconds"] = {"median": 1000 * median, "p95": 1000 * p95}
    return report


def _verdict_figures(verdicts: Sequence[tuple[bool, bool]]) -> dict[str, float | int | None]:
    """Shares of wrong verdicts, from pairs of whether an image passed and whether it was right."""
    false_passes = [passed for passed, right in verdicts if not right]
    false_fails = [not passed for passed, right in verdicts if right]
    return {
        "right_images": len(false_fails),
        "wrong_images": len(false_passes),
        "false_fail": float(np.mean(false_fails)) if false_fails else None,
        "false_pass": float(np.mean(false_passes)) if false_passes else None,
    }


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
    """Measure, print a table, and write the figures to a file if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="scenes of each set (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the scenes")
    parser.add_argument("--weights", type=Path, help="folder of weights (default: the package's)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    model = VisionModel.from_pretrained(args.weights or weights_folder(VISION))
    report = evaluate(model, args.n, args.seed)
    _print(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
