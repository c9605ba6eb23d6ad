"""Does a dry run tell what a bulk run will cost?

    python benchmarks/bulk_forecast.py --prompts 300

Five different runs on the pocket models: of each, a random sample is run first, as ``gems batch --dry-run`` does, and
then the rest. Printed as JSON: what was foretold, the 95% interval, what it came to, and whether that lies within.
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
"""Settings, and prompts in flight."""

PRICES: Final = Prices(image=0.04, prompt=1.25, completion=10)


def main() -> None:
    """Foretell, run, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--sample", type=int, default=50)
    parser.add_argument("--seed", type=int, default=60)
    given = parser.parse_args()
    told = {}
    for number, (name, (settings, concurrency)) in enumerate(RUNS.items()):
        context = GemsContext.exactly({"memory": False, **settings})
        wishes = fresh_prompts(given.prompts, given.seed + number)
        jobs = [Job(i, wish.prompt, seed_of_batch_prompt(given.seed, i)) for i, wish in enumerate(wishes)]
        with tempfile.TemporaryDirectory() as folder:
            told[name] = _compare(Path(folder), jobs, context, concurrency, given.sample, given.seed)
        print(json.dumps({name: told[name]}), flush=True)
    held = [one["within"] for figures in told.values() for one in figures.values()]
    print(json.dumps({"figures": len(held), "within": sum(held)}))


def _compare(
    out: Path, jobs: list[Job], context: GemsContext, concurrency: int, size: int, seed: int
) -> dict[str, dict[str, Any]]:
    few = sample_of(jobs, size, seed)
    batch, first = _run(jobs, out, context, concurrency, sample=few)
    estimates = forecast(list(batch.record.rows(few)), len(jobs), concurrency, PRICES)
    batch, rest = _run(jobs, out, context, concurrency)
    spent = batch.record.usage
    came = {
        "images": spent.images,
        "chat_calls": spent.chat_calls,
        "tokens": spent.tokens,
        "cost": PRICES.cost(spent),
        "hours": (first + rest) / 3600,
    }
    return {
        name: {
            "expected": round(e.expected, 4),
            "low": round(e.low, 4),
            "high": round(e.high, 4),
            "came_to": round(came[name], 4),
            "within": e.low <= came[name] <= e.high,
        }
        for name, e in estimates.items()
    }


def _run(jobs: list[Job], out: Path, context: GemsContext, concurrency: int, **more: Any) -> tuple[Batch, float]:
    """A bulk run, and its seconds without loading."""
    began = 0.0

    def on_start(_: Tally) -> None:
        nonlocal began
        began = time.monotonic()

    batch = run_batch(jobs, out, context, concurrency=concurrency, on_start=on_start, on_done=lambda row: None, **more)
    return batch, time.monotonic() - began


if __name__ == "__main__":
    main()
