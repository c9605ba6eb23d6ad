"""Trials: every learned skill has to pass one before it is used, and again as experience grows.

Prompts that no skill was drafted from are planned, drawn and checked twice, with the skill and without, with the same
seeds and the same number of images. What counts is the verifier's word, since a user has no other. A skill passes if
more prompts of its kind come out right with it, by an interval that excludes zero, and if it harms no kind of
requirement. Any other draft stays in quarantine with its figures, and a skill in use that does harm is retired.

Whoever tries often enough passes by chance. All drafts of one idea, which is a kind of requirement and an image model,
therefore share a chance of 5% that any of them passes without helping: attempt k spends 1/(k(k+1)) of it, which sums to
one (alpha spending). The first has to pass at 95%, as the lower bound alone counts; each later one has to be clearer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from langgraph.runtime import RunControl

from gems.bulk.batch import Stop, run_batch
from gems.bulk.jobs import Job
from gems.bulk.results import BatchRow, Tally, best_attempt_of, is_looked_at
from gems.errors import BackendError
from gems.graph.context import GemsContext
from gems.graph.events import RequirementFields
from gems.graph.state import Kind
from gems.learning.contrasts import is_held_out
from gems.learning.shelf import LearnedSkill, learned_skills, past_trials, write_figures
from gems.memory.image_store import ImageStore
from gems.memory.trajectory import Trajectory
from gems.runs.record import ModelRecord
from gems.seeds import seed_of_batch_prompt
from gems.skills.loader import load_skills
from gems.skills.snapshots import digest_of
from gems.stats import bootstrap_interval
from gems.wording import request_signature

__all__ = [
    "ProgressBar",
    "Runs",
    "TrialSettings",
    "attempt_of",
    "awaits_trial",
    "conclude_trial",
    "count_held_out",
    "held_out_prompts",
    "is_due",
    "judge_trial",
    "level_of",
    "run_trial",
]

Figures: TypeAlias = dict[str, Any]
ProgressBar: TypeAlias = Callable[
    [str, int], AbstractContextManager[tuple[Callable[[Tally], None], Callable[[BatchRow], None]]]
]
"""Opens a bar for (what, how many). Gives two functions to call: with the tally so far, and with each new result."""
Runs: TypeAlias = Sequence[tuple[str, Trajectory]]
"""Remembered runs, with their ids."""

_MIN_PROMPTS: Final = 20
"""Held-out prompts of its kind below which a skill cannot be tried."""
_MIN_OTHERS: Final = 10
"""Prompts with requirements of another kind below which harm to that kind is not judged."""
_ALPHA: Final = 0.05
"""Probability that any of all attempts at an idea passes although it does not help."""
_HARM: Final = 0.05
"""Loss in the rate of another kind's requirements that counts as harm even if its interval includes zero."""
_NO_PATIENCE_LIMIT: Final = 50


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """How a skill is tried."""

    prompts: int = 100
    """Most held-out prompts of its kind; half as many others are drawn to look for harm."""
    images: int = 1
    """Most images per prompt, with the skill and without."""
    seed: int = 0
    concurrency: int = 2


# --- which skills are tried, and on what ----------------------------------------------------------------------------


def awaits_trial(skill: LearnedSkill, generator: ModelRecord) -> bool:
    """Whether a draft for this image model has not been tried yet, because an earlier ``learn`` was stopped."""
    return skill.state == "quarantine" and not skill.figures and skill.suits(generator)


def is_due(skill: LearnedSkill, runs: Runs, generator: ModelRecord, settings: TrialSettings) -> bool:
    """Whether a promoted skill is to be tried again: as many new prompts have come as it was tried on."""
    if skill.state != "promoted" or not skill.figures or not skill.suits(generator):
        return False
    figures = skill.figures
    new_prompts = count_held_out(runs, skill.kind) - int(figures.get("known", figures["wishes"]))
    return new_prompts >= max(_MIN_PROMPTS, min(settings.prompts, int(figures["wishes"])))


def count_held_out(runs: Runs, kind: str) -> int:
    """The number of different requests with a requirement of this kind that are held out for trials."""
    return len({request_signature(run.prompt) for _, run in runs if is_held_out(run.prompt) and _has_kind(run, kind)})


def attempt_of(skill: LearnedSkill) -> int:
    """Which attempt at its idea a draft is, from 1: every other version for its kind and image model that was tried."""
    versions = {(t.name, t.version) for t in past_trials() if (t.kind, t.generator) == (skill.kind, skill.generator)}
    versions |= {
        (other.name, other.version)  # tried before trials were kept by version
        for other in learned_skills()
        if other.figures and (other.kind, other.generator) == (skill.kind, skill.generator)
    }
    return 1 + len(versions - {(skill.name, skill.version)})


def level_of(attempt: int, cohort: int) -> float:
    """The confidence level at which a draft's interval has to exclude zero.

    Args:
        attempt: Which attempt at its idea it is, from 1.
        cohort: The number of drafts tried together (Bonferroni).
    """
    return 1 - 2 * _ALPHA / (attempt * (attempt + 1)) / cohort  # half of the error is above the upper bound


def held_out_prompts(runs: Runs, kind: Kind | str, most: int, *, earlier: Figures) -> list[str]:
    """Prompts that no skill was drafted from: up to ``most`` with requirements of a kind, then half as many without.

    Args:
        runs: The runs whose prompts they are.
        kind: The kind of requirement.
        most: Maximum number of prompts that have such a requirement.
        earlier: The figures of an earlier trial, whose prompts are left out.
    """
    used_marks = set(earlier.get("tried", []))
    runs_by_request: dict[tuple[str, ...], Trajectory] = {}
    for _, run in runs:
        if is_held_out(run.prompt):
            runs_by_request.setdefault(
                request_signature(run.prompt), run
            )  # other words for it would not be independent
    fresh = {mark: run for run in runs_by_request.values() if (mark := _mark_of(run.prompt)) not in used_marks}
    candidates = [fresh[mark] for mark in sorted(fresh)]  # a random order that is always the same
    of_kind = [run.prompt for run in candidates if _has_kind(run, kind)]
    of_other_kinds = [run.prompt for run in candidates if not _has_kind(run, kind)]
    return [*_evenly_spaced(of_kind, most), *_evenly_spaced(of_other_kinds, most // 2)]


def _mark_of(prompt: str) -> str:
    """A short hash of what a prompt asks for."""
    return _mark(" ".join(request_signature(prompt)))


def _mark(text: str) -> str:
    """A short hash that stands for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _has_kind(run: Trajectory, kind: str) -> bool:
    return any(requirement.kind == kind for requirement in run.requirements)


def _evenly_spaced(prompts: Sequence[str], most: int) -> list[str]:
    return [prompts[i * len(prompts) // most] for i in range(most)] if len(prompts) > most else list(prompts)


# --- the trial ------------------------------------------------------------------------------------------------------


def run_trial(
    skill: LearnedSkill,
    prompts: Sequence[str],
    context: GemsContext,
    settings: TrialSettings,
    control: RunControl,
    bar: ProgressBar,
) -> tuple[list[BatchRow], list[BatchRow]] | None:
    """Run the prompts with the skill and without. None if it was stopped; killed or stopped, the same call resumes.

    The baseline uses the skills that are currently in use, including an earlier version of this draft if one is
    promoted. Only prompts for which the planner used the skill are run again: the others would come out the same. So
    are those that could not be drawn with it.

    Raises:
        BackendError: A model failed too often in a row. What was drawn is kept; the same call resumes.
    """
    earlier_folders = context.skills_dir or (str(Path("skills").absolute()) if Path("skills").is_dir() else None)
    with_skill = context.model_copy(
        update={
            "memory": False,
            "reuse": False,
            "max_rounds": settings.images,
            "candidates": 1,
            "skills": True,
            "patience": _NO_PATIENCE_LIMIT,
            "skills_dir": os.pathsep.join(filter(None, (earlier_folders, str(skill.folder)))),
        }
    ).as_operator()
    without_skill = with_skill.model_copy(
        update={"without_skills": (*with_skill.without_skills, skill.name)}
        if skill.state == "promoted"
        else {"skills_dir": earlier_folders}
    ).as_operator()
    library = load_skills(with_skill.skills_dir, builtin=with_skill.builtin_skills).skills
    digests = sorted(map(digest_of, library.values()))  # with other skills in use it is another trial
    identity = json.dumps([skill.version, list(prompts), with_skill.model_dump(mode="json"), settings.seed, digests])
    folder = skill.folder / "gate" / _mark(identity)
    images = ImageStore(folder / "images")

    def run(name: str, jobs: list[Job], context: GemsContext) -> list[BatchRow] | None:
        with bar(f"{skill.name}, {name}", len(jobs)) as (on_start, on_done):
            batch = run_batch(
                jobs,
                folder / name,
                context,
                concurrency=settings.concurrency,
                stop=Stop(control),
                on_start=on_start,
                on_done=on_done,
                images=images,
            )
        if batch.failure_message is not None:
            raise BackendError(f"the trial of {skill.name} cannot go on: {batch.failure_message}")
        return None if control.drain_requested else batch.rows()

    jobs = [Job(i, prompt, seed_of_batch_prompt(settings.seed, i)) for i, prompt in enumerate(prompts)]
    rows_with = run("with", jobs, with_skill)
    if rows_with is None:
        return None
    affected = {row["index"] for row in rows_with if skill.name in row.get("skills", []) or _cannot_be_drawn(row)}
    rows_without = run("without", [job for job in jobs if job.index in affected], without_skill)
    return None if rows_without is None else (rows_with, rows_without)


def judge_trial(
    kind: str, rows_with: Sequence[BatchRow], rows_without: Sequence[BatchRow], *, level: float = 0.95
) -> Figures:
    """The figures of a trial, and whether the skill passed it.

    Args:
        kind: The kind of requirement that the skill is about.
        rows_with: A result for every prompt, with the skill.
        rows_without: Results without it, for the prompts that it was used for; the others count as no difference.
        level: Confidence level of the interval that must exclude zero.
    """
    row_without = {row["index"]: row for row in rows_without}
    all_pairs = [(row, row_without.get(row["index"], row)) for row in rows_with]
    # A backend that fails says nothing about the skill, nor does an image that nobody has looked at; a prompt that
    # cannot be drawn with it, or without, does.
    pairs = [pair for pair in all_pairs if not any(map(_says_nothing, pair))]
    own_pairs = [pair for pair in pairs if kind in [r["kind"] for r in _requirements(pair)]]
    gains = [float(_is_right(a) - _is_right(b)) for a, b in own_pairs]
    figures: Figures = {
        "kind": kind,
        "wishes": len(own_pairs),
        "others": len(pairs) - len(own_pairs),
        "failed": len(all_pairs) - len(pairs),
        "used": sum(a is not b for a, b in pairs),
        "right_with": sum(_is_right(a) for a, _ in own_pairs),
        "right_without": sum(_is_right(b) for _, b in own_pairs),
        **_mean_of(gains, level),
        "interval95": _mean_of(gains)["interval"],
        "level": round(level, 6),
        "won": sum(gain > 0 for gain in gains),
        "lost": sum(gain < 0 for gain in gains),
        "images_with": sum(len(a.get("attempts", [])) for a, _ in pairs),
        "images_without": sum(len(b.get("attempts", [])) for _, b in pairs),
        "kinds": _by_kind(pairs),
    }
    harm = _harm_in(figures)
    reason = harm or _refusal(figures)
    return {
        **figures,
        "harm": harm,
        "passed": not reason,
        "reason": reason or "it helps, and harms nothing that was measured",
    }


def _says_nothing(row: BatchRow) -> bool:
    best = best_attempt_of(row)
    return row.get("error_kind") == "backend" or (best is not None and not is_looked_at(best))


def _cannot_be_drawn(row: BatchRow) -> bool:
    return row.get("error_kind") == "input"


def _requirements(pair: tuple[BatchRow, BatchRow]) -> list[RequirementFields]:
    """The requirements of a prompt's two results. One that failed may have none."""
    return next((row["requirements"] for row in pair if row.get("requirements")), [])


def _harm_in(figures: Figures) -> str:
    """What harm a skill does, to prompts of its kind or to any kind of requirement; empty if none was measured."""
    if figures["wishes"] >= _MIN_PROMPTS and figures["interval95"][1] < 0:
        return "it does harm"
    harmed_kinds = [
        kind
        for kind, f in figures["kinds"].items()
        if f["n"] >= _MIN_OTHERS and (f["interval"][1] < 0 or f["points"] < -100 * _HARM)
    ]
    return f"it harms requirements of kind {', '.join(harmed_kinds)}" if harmed_kinds else ""


def _refusal(figures: Figures) -> str:
    """Why a skill that does no harm does not pass; empty if it does."""
    if figures["wishes"] < _MIN_PROMPTS:
        return f"only {figures['wishes']} held-out prompts have its kind; at least {_MIN_PROMPTS} are needed"
    if not figures["used"]:
        return "the planner never used it"
    return "its gain cannot be distinguished from zero" if figures["interval"][0] <= 0 else ""


def _by_kind(pairs: Iterable[tuple[BatchRow, BatchRow]]) -> dict[str, Figures]:
    """For each kind of requirement, the difference in the rate at which it is met, over the prompts that have it."""
    differences: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        rates_with, rates_without = (_rates(row, _requirements(pair)) for row in pair)
        for kind in rates_with.keys() & rates_without.keys():
            differences[kind].append(rates_with[kind] - rates_without[kind])
    return {kind: {"n": len(values), **_mean_of(values)} for kind, values in sorted(differences.items())}


def _mean_of(differences: Sequence[float], level: float = 0.95) -> Figures:
    """The mean in percentage points, with its interval."""
    if not differences:
        return {"points": 0.0, "interval": [0.0, 0.0]}
    return {
        "points": round(100 * sum(differences) / len(differences), 2),
        "interval": [round(100 * x, 2) for x in bootstrap_interval(differences, level=level)],
    }


def _rates(row: BatchRow, requirements: Sequence[RequirementFields]) -> dict[str, float]:
    """By kind, the share of requirements that the returned image meets; none is met without an image."""
    best = best_attempt_of(row)
    verdicts = best["verdicts"] if best else {}
    answers: dict[str, list[bool]] = defaultdict(list)
    for requirement in row.get("requirements") or requirements:
        answer = verdicts.get(requirement["id"], ["unsure"])[0]
        answers[requirement["kind"]].append(answer == "yes")
    return {kind: sum(passes) / len(passes) for kind, passes in answers.items()}


def _is_right(row: BatchRow) -> int:
    """1 if every requirement of the user's was met, as the verifier sees it, else 0."""
    best = best_attempt_of(row)
    if best is None:
        return 0
    return int(best["total"] > 0 and best["passed"] == best["total"])


def conclude_trial(
    skill: LearnedSkill, figures: Figures, prompts: Sequence[str], settings: TrialSettings, *, promote: bool = True
) -> LearnedSkill:
    """Save a trial's figures, and promote or retire the skill by them.

    A skill in use is retired if it does harm, of whatever kind, or no longer gains anything. The images of the trial
    are deleted; its results are kept.
    """
    details = {
        **figures,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": skill.version,
        "images": settings.images,
        "seed": settings.seed,
        "tried": sorted({*skill.figures.get("tried", []), *map(_mark_of, prompts)}),
    }
    gains_nothing = figures["wishes"] >= _MIN_PROMPTS and figures["points"] <= 0
    state = skill.state
    if state == "promoted" and (figures["harm"] or gains_nothing):
        state = "retired"
    elif state == "quarantine" and figures["passed"] and promote:
        state = "promoted"
    skill = write_figures(skill, details, state)
    for folder in (skill.folder / "gate").glob("*"):
        shutil.rmtree(folder / "images", ignore_errors=True)
        for checkpoints in folder.glob("*/checkpoints.sqlite*"):
            checkpoints.unlink(missing_ok=True)
    return skill
