"""Does a dry run predict what a bulk run will cost?

    python benchmarks/bulk_forecast.py --prompts 300

Five different runs on the pocket models. In each, a random sample runs first, as with ``gems batch --dry-run``, and the
rest afterwards. Printed as JSON for each figure: the prediction, its 95% interval, the actual value, and whether that
is within the interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from gems.bulk.batch import Batch, run_batch
from gems.bulk.jobs import Job, sample_of
from gems.bulk.limits import forecast
from gems.bulk.results import Tally
from gems.evals.prompts import fresh_prompts
from gems.graph.context import GemsContext
from gems.graph.state import Prices
from gems.seeds import seed_of_batch_prompt

RUNS: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "the whole loop": ({"max_rounds": 5}, 8),
    "no plan, two candidates": ({"plan": False, "candidates": 2, "max_rounds": 3}, 4),
    "one image each": ({"max_rounds": 1}, 16),
    "pocket-large": ({"generator": "pocket-large", "max_rounds": 5}, 8),
    "at most three images": ({"budget": {"images": 3}, "skills": False, "max_rounds": 5}, 2),
}
"""The settings and the number of prompts in flight, by name."""

PRICES: Final = Prices(image=0.04, prompt=1.25, completion=10)


def main() -> None:
    """Predict, run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--sample", type=int, default=50)
    parser.add_argument("--seed", type=int, default=60)
    args = parser.parse_args()
    reports = {}
    for number, (name, (settings, concurrency)) in enumerate(RUNS.items()):
        context = GemsContext.exactly({"memory": False, **settings})
        prompts = fresh_prompts(args.prompts, args.seed + number)
        jobs = [Job(i, prompt.prompt, seed_of_batch_prompt(args.seed, i)) for i, prompt in enumerate(prompts)]
        with tempfile.TemporaryDirectory() as folder:
            reports[name] = _compare(Path(folder), jobs, context, concurrency, args.sample, args.seed)
        print(json.dumps({name: reports[name]}), flush=True)
    hits = [figure["within"] for figures in reports.values() for figure in figures.values()]
    print(json.dumps({"figures": len(hits), "within": sum(hits)}))


def _compare(
    out: Path, jobs: list[Job], context: GemsContext, concurrency: int, size: int, seed: int
) -> dict[str, dict[str, Any]]:
    sample = sample_of(jobs, size, seed)
    batch, sample_seconds = _run(jobs, out, context, concurrency, sample=sample)
    estimates = forecast(list(batch.record.rows(sample)), len(jobs), concurrency, PRICES)
    batch, rest_seconds = _run(jobs, out, context, concurrency)
    usage = batch.record.usage
    actual = {
        "images": usage.images,
        "chat_calls": usage.chat_calls,
        "tokens": usage.tokens,
        "cost": PRICES.cost(usage),
        "hours": (sample_seconds + rest_seconds) / 3600,
    }
    return {
        name: {
            "expected": round(e.expected, 4),
            "low": round(e.low, 4),
            "high": round(e.high, 4),
            "came_to": round(actual[name], 4),
            "within": e.low <= actual[name] <= e.high,
        }
        for name, e in estimates.items()
    }


def _run(jobs: list[Job], out: Path, context: GemsContext, concurrency: int, **options: Any) -> tuple[Batch, float]:
    """A bulk run, and the seconds it took without loading."""
    began = 0.0

    def on_start(_: Tally) -> None:
        nonlocal began
        began = time.monotonic()

    options |= {"concurrency": concurrency, "on_start": on_start, "on_done": lambda row: None}
    batch = run_batch(jobs, out, context, **options)
    return batch, time.monotonic() - began


if __name__ == "__main__":
    main()
