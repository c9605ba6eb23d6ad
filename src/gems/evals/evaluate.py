"""A whole evaluation: run every arm, score the images, write the report."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from pydantic import BaseModel, ConfigDict, Field

from gems import __version__
from gems.bulk.results import BatchRow, Tally
from gems.errors import BackendError, GemsError, InputError
from gems.evals.analysis import Judged, analyse, compare, judge
from gems.evals.arms import Arm, comparisons
from gems.evals.identity import differences, mark_as_mixed, skill_digests
from gems.evals.runner import (
    ArmPass,
    EvaluationPlan,
    image_paths,
    interrupted_of,
    locked_folder,
    prepare_folder,
    run_arm,
)
from gems.evals.scorers import Oracle, Scorer
from gems.evals.summary import write_report
from gems.files import read_regular, write_atomically
from gems.json_text import parse_model, strict_json
from gems.secrets import one_line
from gems.stopping import stopping

__all__ = ["evaluate"]

ProgressBar: TypeAlias = Callable[
    [str, int], AbstractContextManager[tuple[Callable[[Tally], None], Callable[[BatchRow], None]]]
]
"""Opens a bar for (what, how many). Gives two functions to call: with the tally so far, and with each new result."""
Scores = dict[int, dict[int, list[float]]]
"""By prompt and attempt, a score per question."""


def evaluate(
    plan: EvaluationPlan, scorer: Scorer, *, concurrency: int, control: RunControl, bar: ProgressBar, command: str
) -> dict[str, Any] | None:
    """Run, score and report. Returns the report, or None if it was stopped; the same call resumes.

    Raises:
        InputError: The folder holds another evaluation, another process works on it, or a setting cannot be used.
        BackendError: Weights, the judge or the disk failed.
    """
    with locked_folder(plan):
        with suppress(GraphDrained), stopping(lambda: control.drain_requested):
            scorer.check(plan.prompts)
        if control.drain_requested:
            return None
        return _evaluate(plan, scorer, concurrency, control, bar, command)


def _evaluate(
    plan: EvaluationPlan, scorer: Scorer, concurrency: int, control: RunControl, bar: ProgressBar, command: str
) -> dict[str, Any] | None:
    skills = prepare_folder(plan)
    rows: dict[ArmPass, list[BatchRow]] = {}
    for number, arm_pass in enumerate(plan.passes, start=1):
        with bar(f"{arm_pass.label} ({number} of {len(plan.passes)})", len(plan.prompts)) as (on_start, on_done):
            rows[arm_pass] = _run(plan, arm_pass, skills, concurrency, control, on_start, on_done)
        if control.drain_requested:
            return None
        _write(plan, arm_pass, "image_paths.json", image_paths(plan, rows[arm_pass]))
    judged: dict[str, list[Judged]] = {arm.name: [] for arm in plan.arms}
    for arm_pass in plan.passes:
        scored_rows, scores = _score(plan, arm_pass, rows[arm_pass], scorer, concurrency, control, bar)
        if control.drain_requested:
            return None
        results = judge(plan.prompts, scored_rows, scores, order=arm_pass.order)
        _write(plan, arm_pass, "score_lists.json", _score_lists(plan, results))
        judged[arm_pass.arm.name] += results
    report = _report(plan, judged, scorer, command)
    write_report(plan.out, report, judged)
    return report


def _write(plan: EvaluationPlan, arm_pass: ArmPass, name: str, content: Any) -> None:
    path = plan.folder(arm_pass.arm, arm_pass.order) / name
    write_atomically(path, strict_json(content, indent=1, ensure_ascii=False).encode())


def _score_lists(plan: EvaluationPlan, results: Sequence[Judged]) -> list[list[float]]:
    """Every prompt's scores, in the benchmark's order: what the benchmark's own analysis reads as ``--score_data``."""
    by_index = {j.row["index"]: j.returned_scores for j in results}
    return [by_index[i] for i in range(len(plan.prompts))]


def _report(plan: EvaluationPlan, judged: dict[str, list[Judged]], scorer: Scorer, command: str) -> dict[str, Any]:
    generators = list(dict.fromkeys(arm.generator for arm in plan.arms))
    compared = (compare(c, judged) for c in comparisons(generators, plan.images))
    return {
        "gems_version": __version__,
        "command": command,
        "benchmark": plan.benchmark,
        "prompts": len(plan.prompts),
        "seed": plan.seed,
        "most_images": plan.images,
        "scorer": scorer.name,
        "verifier": plan.context.chat_model("verifier"),
        "judge": scorer.judge,
        "judge_is_verifier": scorer.judge == plan.context.chat_model("verifier"),
        "skills": skill_digests(plan.context),
        "machine": f"{platform.machine()}, {_cores()} cores, Python {platform.python_version()}",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "arms": {arm.name: _figures(plan, arm, judged[arm.name], scorer) for arm in plan.arms},
        "comparisons": [c for c in compared if c is not None],
        "peak_memory_mb": round(_peak_memory_mb()),
    }


def _run(
    plan: EvaluationPlan,
    arm_pass: ArmPass,
    skills: dict[str, str],
    concurrency: int,
    control: RunControl,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
) -> list[BatchRow]:
    """Run an arm, and add the time to that of earlier calls.

    Raises:
        InputError: The skills have changed since the evaluation began, so that results would come from two sets.
    """
    arm, start_time, finished = arm_pass.arm, time.monotonic(), 0
    uses_skills = arm.settings is not None and plan.context_of(arm).skills
    changes = list[str]()

    def look_for_changes() -> None:
        if uses_skills and (change := differences(skills, skill_digests(plan.context))):
            changes.append(change)
            control.request_drain("the skills changed")

    def done(row: BatchRow) -> None:
        nonlocal finished
        finished += 1
        on_done(row)
        look_for_changes()

    look_for_changes()
    rows = run_arm(
        plan, arm, concurrency=concurrency, control=control, on_start=on_start, on_done=done, order=arm_pass.order
    )
    if changes:
        if finished:
            mark_as_mixed(plan.out, changes[0])
        raise InputError(f"the skills changed while it ran, at {arm_pass.label} ({changes[0]}); choose another --out")
    _add_time(plan.folder(arm, arm_pass.order) / "time.json", time.monotonic() - start_time, finished)
    return rows


class _WallTime(BaseModel):
    """``time.json``."""

    model_config = ConfigDict(strict=True)

    wall_seconds: float = Field(default=0.0, ge=0, le=2**53)
    prompts: int = Field(default=0, ge=0, le=2**53)


def _read_time(path: Path) -> _WallTime | None:
    try:
        return parse_model(_WallTime, read_regular(path, within=path.parent))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read ({reason}); delete it, and the time begins again at 0") from None


def _add_time(path: Path, seconds: float, prompts: int) -> None:
    """Add the wall time of the prompts that were finished to that of earlier calls."""
    if prompts:
        earlier = _read_time(path) or _WallTime()
        total = _WallTime(wall_seconds=round(earlier.wall_seconds + seconds, 1), prompts=earlier.prompts + prompts)
        write_atomically(path, strict_json(total.model_dump()).encode())


def _figures(plan: EvaluationPlan, arm: Arm, judged: list[Judged], scorer: Scorer) -> dict[str, Any]:
    """An arm's figures, and its wall time for those prompts whose calls were not killed."""
    time_ = _read_time(plan.folder(arm) / "time.json")
    figures = analyse(arm, judged, plan.images, every_attempt=_scores_all(scorer)) | interrupted_of(plan, arm)
    return figures | {"time": time_.model_dump()} if time_ else figures


def _scores_all(scorer: Scorer) -> bool:
    """The oracle scores every attempt; a judge that costs money only the one that was returned."""
    return scorer.name == Oracle.name


def _score(
    plan: EvaluationPlan,
    arm_pass: ArmPass,
    rows: list[BatchRow],
    scorer: Scorer,
    concurrency: int,
    control: RunControl,
    bar: ProgressBar,
) -> tuple[list[BatchRow], Scores]:
    """The results, and the scores of their attempts. A result whose image cannot be scored has failed."""

    def attempts_to_score(row: BatchRow) -> Iterator[int]:
        if _scores_all(scorer):
            yield from range(len(row.get("attempts", [])))
        elif (best := row.get("best")) is not None:
            yield best

    def score(row: BatchRow) -> tuple[BatchRow, dict[int, list[float]]]:
        if control.drain_requested:
            return row, {}
        prompt, generator = plan.prompts[row["index"]], arm_pass.arm.generator
        try:
            with stopping(lambda: control.drain_requested):
                return row, {i: scorer.score(prompt, generator, row["attempts"][i]) for i in attempts_to_score(row)}
        except GraphDrained:
            return row, {}
        except GemsError as error:
            if isinstance(error, BackendError) and error.retryable:
                raise
            return _unscored(row, error), {}

    scored_rows, scores = list[BatchRow](), Scores()
    with bar(f"scoring {arm_pass.label}", len(rows)) as (on_start, on_done), ThreadPoolExecutor(concurrency) as pool:
        on_start(Tally())
        for future in as_completed([pool.submit(score, row) for row in rows]):
            row, scores[row["index"]] = future.result()
            scored_rows.append(row)
            on_done(row)
    return sorted(scored_rows, key=lambda row: row["index"]), scores


def _unscored(row: BatchRow, error: GemsError) -> BatchRow:
    """A result as a failed one without images, because its image cannot be scored."""
    kind: Literal["input", "backend"] = "input" if isinstance(error, InputError) else "backend"
    return {**row, "error": f"not scored: {one_line(error)}", "error_kind": kind, "attempts": [], "best": None}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peak_memory_mb() -> float:
    """The process's largest resident size so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
