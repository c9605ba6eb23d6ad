"""A whole evaluation: run every arm, score the images, write the report."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, TypeAlias

from langgraph.runtime import RunControl

from gems import __version__
from gems.bulk.results import BatchRow, Tally
from gems.evals.analysis import Judged, analyse, compare, judge
from gems.evals.arms import Arm, comparisons
from gems.evals.runner import EvaluationPlan, image_paths, prepare_folder, run_arm
from gems.evals.scorers import Oracle, Scorer
from gems.evals.summary import write_report
from gems.files import write_atomically

__all__ = ["evaluate"]

ProgressBar: TypeAlias = Callable[
    [str, int], AbstractContextManager[tuple[Callable[[Tally], None], Callable[[BatchRow], None]]]
]
"""Opens a bar for (what, how many). Gives two functions to call: with the tally so far, and with each new result."""
Scores: TypeAlias = dict[int, dict[int, list[float]]]
"""By prompt and attempt, a score per question."""


def evaluate(
    plan: EvaluationPlan, scorer: Scorer, *, concurrency: int, control: RunControl, bar: ProgressBar, command: str
) -> dict[str, Any] | None:
    """Run, score and report. Returns the report, or None if it was stopped; the same call resumes.

    Raises:
        InputError: The folder holds another evaluation, or a setting cannot be used.
        BackendError: Weights, the judge or the disk failed.
    """
    prepare_folder(plan)
    rows: dict[str, list[BatchRow]] = {}
    for number, arm in enumerate(plan.arms, start=1):
        with bar(f"{arm.name} ({number} of {len(plan.arms)})", len(plan.prompts)) as (on_start, on_done):
            rows[arm.name] = _timed(plan, arm, concurrency, control, on_start, on_done)
        if control.drain_requested:
            return None
        paths = json.dumps(image_paths(rows[arm.name]), indent=1, ensure_ascii=False)
        write_atomically(plan.folder(arm) / "image_paths.json", paths.encode())
    scores: dict[str, Scores] = {}
    for arm in plan.arms:
        scores[arm.name] = _score(plan, arm, rows[arm.name], scorer, concurrency, control, bar)
        if control.drain_requested:
            return None
    judged = {arm.name: judge(plan.prompts, rows[arm.name], scores[arm.name]) for arm in plan.arms}
    generators = list(dict.fromkeys(arm.generator for arm in plan.arms))
    compared = (compare(c, judged) for c in comparisons(generators, plan.images))
    report = {
        "gems_version": __version__,
        "command": command,
        "benchmark": plan.benchmark,
        "prompts": len(plan.prompts),
        "seed": plan.seed,
        "most_images": plan.images,
        "scorer": scorer.name,
        "machine": f"{platform.machine()}, {_cores()} cores, Python {platform.python_version()}",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "arms": {arm.name: _figures(plan, arm, judged[arm.name], scorer) for arm in plan.arms},
        "comparisons": [c for c in compared if c is not None],
        "peak_memory_mb": round(_peak_memory_mb()),
    }
    write_report(plan.out, report, judged)
    return report


def _timed(
    plan: EvaluationPlan,
    arm: Arm,
    concurrency: int,
    control: RunControl,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
) -> list[BatchRow]:
    """Run an arm, and add the time to that of earlier calls."""
    start_time, before = time.monotonic(), 0

    def start(tally: Tally) -> None:
        nonlocal before
        before = tally.done
        on_start(tally)

    rows = run_arm(plan, arm, concurrency=concurrency, control=control, on_start=start, on_done=on_done)
    if len(rows) > before:
        path = plan.folder(arm) / "time.json"
        earlier = json.loads(path.read_bytes()) if path.exists() else {"wall_seconds": 0.0, "prompts": 0}
        now = {
            "wall_seconds": round(earlier["wall_seconds"] + time.monotonic() - start_time, 1),
            "prompts": earlier["prompts"] + len(rows) - before,
        }
        write_atomically(path, json.dumps(now).encode())
    return rows


def _figures(plan: EvaluationPlan, arm: Arm, judged: list[Judged], scorer: Scorer) -> dict[str, Any]:
    """An arm's figures, and its wall time for those prompts whose calls were not killed."""
    path = plan.folder(arm) / "time.json"
    wall_time = {"time": json.loads(path.read_bytes())} if path.exists() else {}
    return analyse(arm, judged, plan.images, every_attempt=_scores_all(scorer)) | wall_time


def _scores_all(scorer: Scorer) -> bool:
    """The oracle scores every attempt; a judge that costs money only the one that was returned."""
    return scorer.name == Oracle.name


def _score(
    plan: EvaluationPlan,
    arm: Arm,
    rows: list[BatchRow],
    scorer: Scorer,
    concurrency: int,
    control: RunControl,
    bar: ProgressBar,
) -> Scores:
    """The scores of an arm's attempts."""

    def attempts_to_score(row: BatchRow) -> Iterator[int]:
        if _scores_all(scorer):
            yield from range(len(row.get("attempts", [])))
        elif (best := row.get("best")) is not None:
            yield best

    def score(row: BatchRow) -> tuple[BatchRow, dict[int, list[float]]]:
        if control.drain_requested:
            return row, {}
        prompt = plan.prompts[row["index"]]
        return row, {i: scorer.score(prompt, arm.generator, row["attempts"][i]) for i in attempts_to_score(row)}

    scores: Scores = {}
    with bar(f"scoring {arm.name}", len(rows)) as (on_start, on_done), ThreadPoolExecutor(concurrency) as pool:
        on_start(Tally())
        for future in as_completed([pool.submit(score, row) for row in rows]):
            row, scores_of_attempts = future.result()
            scores[row["index"]] = scores_of_attempts
            on_done(row)
    return scores


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peak_memory_mb() -> float:
    """The process's largest resident size so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
