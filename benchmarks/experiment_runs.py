"""What the experiments share: run prompts under settings that belong to no arm, and have the oracle judge them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.store.base import BaseStore

from gems.bulk.batch import run_batch
from gems.cli.console import batch_bar
from gems.evals.analysis import Judged, judge
from gems.evals.prompts import EvalPrompt
from gems.evals.runner import EvaluationPlan
from gems.evals.scorers import Oracle
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore

__all__ = ["judged_by_oracle", "run_pass"]


def run_pass(
    plan: EvaluationPlan, name: str, context: GemsContext, *, concurrency: int, store: BaseStore | None = None
) -> list[dict[str, Any]]:
    """Run a plan's prompts and seeds under these settings, in a folder of the pass's own, with a progress bar."""
    with batch_bar(len(plan.prompts), what=name, quiet=False) as (on_start, on_done):
        return run_batch(
            plan.jobs,
            plan.out / "arms" / name.replace(", ", "-").replace(" ", "-"),
            context,
            concurrency=concurrency,
            on_start=on_start,
            on_done=on_done,
            store=store,
            images=ImageStore(plan.out / "images"),
        ).rows()


def judged_by_oracle(
    prompts: Sequence[EvalPrompt], rows: Sequence[dict[str, Any]], oracle: Oracle, generator: str = "pocket"
) -> list[Judged]:
    """The results with the oracle's judgement of every attempt."""
    scores = {
        row["index"]: {
            i: oracle.score(prompts[row["index"]], generator, attempt)
            for i, attempt in enumerate(row.get("attempts", []))
        }
        for row in rows
    }
    return judge(prompts, rows, scores)
