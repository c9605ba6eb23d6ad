"""How often the pocket generator gets everything right at the first attempt, judged by the oracle.

    python benchmarks/pocket_generator.py --n 500 --seed 7

Fresh specs of the grammar, each worded twice: tersely, as in the benchmark, and richly, with places and arrangements of
a fresh layout. Reported are all-correct rates with 95% bootstrap intervals over prompts, the paired difference, and
rates by number of atoms and by kind of atom. Settings are tuned on seeds other than those reported.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from gems.evals.oracle import check, items_of, kind_of
from gems.models.pocket.captions import rich_caption, terse_caption
from gems.models.pocket.pipeline import PocketPipeline
from gems.models.pocket.scene import layout, sample_spec
from gems.models.pocket.weights import GENERATOR, weights_folder
from gems.stats import bootstrap_interval


def measure(pipeline: PocketPipeline, n: int, seed: int, **settings: Any) -> dict[str, Any]:
    """Figures over n specs. ``settings`` are the pipeline's (guidance_scale, num_inference_steps)."""
    rng = np.random.default_rng(seed)
    right: dict[str, list[float]] = {"terse": [], "rich": []}
    by_atoms: dict[str, dict[int, list[bool]]] = {name: defaultdict(list) for name in right}
    by_kind: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in right}
    for number in track(range(n), description="drawing", disable=not sys.stderr.isatty()):
        spec = sample_spec(rng)
        wordings = {"terse": terse_caption(spec), "rich": rich_caption(layout(spec, rng), rng)}
        for name, prompt in wordings.items():
            truth = check(spec, items_of(pipeline, prompt, seed * 1_000_003 + number, **settings))
            right[name].append(float(all(truth.values())))
            by_atoms[name][spec.atoms].append(all(truth.values()))
            for atom, is_correct in truth.items():
                by_kind[name][kind_of(atom)].append(is_correct)
    difference = np.array(right["rich"]) - np.array(right["terse"])
    report: dict[str, Any] = {"n": n, "seed": seed, **settings}
    for name, values in right.items():
        report[name] = {
            "all_correct": round(float(np.mean(values)), 4),
            "ci95": bootstrap_interval(np.array(values)),
            "by_atoms": {k: [round(float(np.mean(v)), 3), len(v)] for k, v in sorted(by_atoms[name].items())},
            "by_kind": {k: [round(float(np.mean(v)), 3), len(v)] for k, v in sorted(by_kind[name].items())},
        }
    report["rich_minus_terse"] = {
        "difference": round(float(difference.mean()), 4),
        "ci95": bootstrap_interval(difference),
    }
    report["parameters"] = sum(
        p.numel() for part in (pipeline.transformer, pipeline.text_encoder) for p in part.parameters()
    )
    return report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=None, help="folder of a pipeline (default: the package's)")
    parser.add_argument("--n", type=int, default=500, help="number of specs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--guidance-scale", type=float, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pipeline = PocketPipeline.from_pretrained(str(args.weights or weights_folder(GENERATOR)))
    pipeline.set_progress_bar_config(disable=True)
    settings = {"guidance_scale": args.guidance_scale, "num_inference_steps": args.steps}
    report = measure(pipeline, args.n, args.seed, **{k: v for k, v in settings.items() if v is not None})
    if args.json:
        print(json.dumps(report))
        return
    for key, value in report.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, figure in value.items():
                print(f"    {name}: {figure}")
        else:
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
