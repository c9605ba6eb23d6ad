"""The exact truth about a finished ``gems batch`` on the pocket generator: first attempts against what was shipped.

    gems batch prompts.jsonl --out DIR
    python -m gems.evals.batch_oracle DIR

Every image is made again as slots from its recorded prompt and seed, and held against the user's prompt by the oracle:
is every atom right? Reported are both all-correct rates, their paired difference with a 95% bootstrap interval, the
verifier's precision and recall on whole images, and what a prompt cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gems.evals.oracle import all_correct, items_of
from gems.models.pocket.grammar import parse_prompt
from gems.models.pocket.pipeline import PocketPipeline
from gems.models.pocket.weights import GENERATOR, weights_folder


def bootstrap_interval(values: NDArray[np.float64], resamples: int = 10_000, seed: int = 0) -> list[float]:
    """95% percentile bootstrap interval of a mean over prompts: of a rate, or of paired differences."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), size=len(values))].mean() for _ in range(resamples)]
    return [round(float(bound), 4) for bound in np.percentile(means, [2.5, 97.5])]


def evaluate(folder: Path, weights: Path) -> dict[str, Any]:
    """The figures of one batch folder."""
    pipeline = PocketPipeline.from_pretrained(str(weights))
    pipeline.set_progress_bar_config(disable=True)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("best")]

    def right(row: dict[str, Any], which: str) -> bool:
        attempt = row[which]
        return all_correct(parse_prompt(row["prompt"]), items_of(pipeline, attempt["prompt"], attempt["seed"]))

    first = np.array([right(row, "first") for row in rows])
    best = np.array([right(row, "best") for row in rows])
    said = np.array([row["outcome"] == "solved" for row in rows])
    return {
        "prompts": len(rows),
        "first_attempt_all_correct": round(float(first.mean()), 4),
        "loop_all_correct": round(float(best.mean()), 4),
        "difference": round(float(best.mean() - first.mean()), 4),
        "difference_ci95": bootstrap_interval(best.astype(float) - first.astype(float)),
        "verifier_precision": round(float((said & best).sum() / max(said.sum(), 1)), 4),
        "verifier_recall": round(float((said & best).sum() / max(best.sum(), 1)), 4),
        "images_per_prompt": round(statistics.mean(row["usage"]["images"] for row in rows), 3),
        "chat_calls_per_prompt": round(statistics.mean(row["usage"]["chat_calls"] for row in rows), 3),
        "seconds_per_prompt_median": round(statistics.median(row["seconds"] for row in rows), 3),
    }


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --out folder of a finished gems batch")
    parser.add_argument("--weights", type=Path, default=None, help="pocket generator folder (default: the shipped one)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = evaluate(args.folder, args.weights or weights_folder(GENERATOR))
    print(json.dumps(result) if args.json else "\n".join(f"{key:>28}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
