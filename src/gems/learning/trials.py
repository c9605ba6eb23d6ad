"""The gate: an experiment that every learned skill has to pass before it is used, and again as experience grows.

Wishes that no draft was made from are planned, drawn and checked twice, with the same seeds and as many images, with
the skill and without. What counts is the verifier's word, since a user has no other. A skill is promoted if, on wishes
of its kind, more come out right by an interval that excludes zero, and if it harms no kind of requirement. All else
stays in quarantine with its figures.
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
from typing import Any, Final

from langgraph.runtime import RunControl

from gems.bulk.batch import Stop, run_batch
from gems.bulk.jobs import Job
from gems.bulk.results import Tally
from gems.graph.context import GemsContext
from gems.graph.state import Kind
from gems.learning.contrasts import is_held_out
from gems.learning.shelf import Learned, move, write_gate
from gems.memory.image_store import ImageStore
from gems.memory.trajectory import Trajectory
from gems.seeds import seed_of_batch_prompt
from gems.stats import bootstrap_interval

__all__ = ["GateSettings", "held_out_wishes", "is_due", "judge_gate", "settle", "trial", "waits"]

Row = dict[str, Any]
Bar = Callable[[str, int], AbstractContextManager[tuple[Callable[[Tally], None], Callable[[Row], None]]]]
Runs = Sequence[tuple[str, Trajectory]]

_MIN_WISHES: Final = 20
"""Wishes of its kind, below which a skill cannot be gated."""
_MIN_OTHERS: Final = 10
_HARM: Final = 0.05
"""Loss in the rate of another kind's requirements that is harm, even where the interval still holds zero."""


@dataclass(frozen=True, slots=True)
class GateSettings:
    """How a skill is tried."""

    prompts: int = 100
    """Held-out wishes of its kind, at most; half as many others are tried for harm."""
    images: int = 1
    """Images a wish may cost, with the skill and without."""
    seed: int = 0
    concurrency: int = 2


def waits(one: Learned, context: GemsContext) -> bool:
    """Whether a draft for this image model has yet to go through the gate: a stopped ``learn`` goes on with it."""
    return one.state == "quarantine" and not one.gate and one.generator == context.generator


def is_due(one: Learned, runs: Runs, context: GemsContext, settings: GateSettings) -> bool:
    """Whether as many wishes as a promoted skill was tried on have come since, so that it has to show itself again."""
    if one.state != "promoted" or not one.gate or one.generator != context.generator:
        return False
    asking = {past.prompt for _, past in runs if _demands(past, one.kind)}
    fresh = asking.intersection(held_out_wishes(runs, one.kind, settings.prompts, but=one.gate))
    return len(fresh) >= max(_MIN_WISHES, min(settings.prompts, int(one.gate["wishes"])))


def held_out_wishes(runs: Runs, kind: Kind | str, most: int, *, but: Row) -> list[str]:
    """Wishes that no skill was drafted from: up to ``most`` that ask for this kind, then half as many that do not.

    Args:
        runs: Where they are from.
        kind: Of requirement.
        most: How many.
        but: A gate's figures: the wishes of that trial are left out.
    """
    tried = set(but.get("tried", []))
    wishes = {p.prompt: p for _, p in runs if is_held_out(p.prompt) and _mark(p.prompt) not in tried}
    in_order = sorted(wishes, key=_mark)  # by chance, and the same again
    asks = [wish for wish in in_order if _demands(wishes[wish], kind)]
    others = [wish for wish in in_order if not _demands(wishes[wish], kind)]
    return [*_evenly(asks, most), *_evenly(others, most // 2)]


def _mark(wish: str) -> str:
    return hashlib.sha256(wish.encode()).hexdigest()[:10]


def _demands(past: Trajectory, kind: str) -> bool:
    return any(requirement.kind == kind for requirement in past.requirements)


def _evenly(wishes: Sequence[str], most: int) -> list[str]:
    return [wishes[i * len(wishes) // most] for i in range(most)] if len(wishes) > most else list(wishes)


def trial(
    one: Learned, wishes: Sequence[str], context: GemsContext, settings: GateSettings, control: RunControl, bar: Bar
) -> tuple[list[Row], list[Row]] | None:
    """Run the wishes with the skill and without. Killed and called again, it goes on; None if it was stopped.

    Without a draft is with what is in use now, an earlier version of it too. Only those wishes are run again for which
    the planner took the skill: the others come out as they did.
    """
    own = str(one.folder)
    before = context.skills_dir or (str(Path("skills").absolute()) if Path("skills").is_dir() else None)
    once = {"memory": False, "reuse": False, "max_rounds": settings.images, "candidates": 1, "skills": True}
    shared = context.model_copy(
        update={**once, "patience": 50, "skills_dir": os.pathsep.join(filter(None, (before, own)))}
    )
    told = json.dumps([one.version, list(wishes), shared.model_dump(mode="json"), settings.seed])
    folder = one.folder / "gate" / _mark(told)
    images = ImageStore(folder / "images")
    jobs = [Job(i, wish, seed_of_batch_prompt(settings.seed, i)) for i, wish in enumerate(wishes)]

    def run(name: str, todo: list[Job], context: GemsContext) -> list[Row] | None:
        with bar(f"{one.skill.name}, {name}", len(todo)) as (on_start, on_done):
            rows = run_batch(
                todo,
                folder / name,
                context,
                concurrency=settings.concurrency,
                stop=Stop(control),
                on_start=on_start,
                on_done=on_done,
                images=images,
            ).rows()
        return None if control.drain_requested else rows

    with_it = run("with", jobs, shared)
    if with_it is None:
        return None
    used = {row["index"] for row in with_it if one.skill.name in row.get("skills", [])}
    bare = shared.model_copy(
        update={"without_skills": (*shared.without_skills, one.skill.name)}
        if one.state == "promoted"
        else {"skills_dir": before}
    )
    without = run("without", [job for job in jobs if job.index in used], bare)
    return None if without is None else (with_it, without)


def judge_gate(kind: str, with_it: Sequence[Row], without: Sequence[Row], *, level: float = 0.95) -> dict[str, Any]:
    """The gate's figures and its decision.

    Args:
        kind: What the skill is about.
        with_it: A result for every wish.
        without: Results of those wishes for which the skill was used; the others count as no difference.
        level: Of the interval that has to exclude zero.
    """
    other = {row["index"]: row for row in without}
    pairs = [(row, other.get(row["index"], row)) for row in with_it if "error" not in row]
    pairs = [(a, b) for a, b in pairs if "error" not in b]
    own = [(a, b) for a, b in pairs if kind in [r["kind"] for r in a["requirements"]]]
    gain = [float(_right(a) - _right(b)) for a, b in own]
    figures: dict[str, Any] = {
        "kind": kind,
        "wishes": len(own),
        "others": len(pairs) - len(own),
        "used": sum(a is not b for a, b in pairs),
        "right_with": sum(_right(a) for a, _ in own),
        "right_without": sum(_right(b) for _, b in own),
        **_mean_of(gain, level),
        "level": round(level, 4),
        "won": sum(x > 0 for x in gain),
        "lost": sum(x < 0 for x in gain),
        "images_with": sum(len(a["attempts"]) for a, _ in pairs),
        "images_without": sum(len(b["attempts"]) for _, b in pairs),
        "kinds": _by_kind(pairs),
    }
    reason = _refusal(figures)
    return {**figures, "passed": not reason, "reason": reason or "it helps, and harms nothing that was measured"}


def _refusal(figures: Row) -> str:
    """Why a skill does not pass; empty if it does."""
    if figures["wishes"] < _MIN_WISHES:
        return f"only {figures['wishes']} held-out wishes ask for its kind; at least {_MIN_WISHES} are needed"
    if not figures["used"]:
        return "the planner never took it"
    if figures["interval"][0] <= 0:
        return "its gain cannot be told from none" if figures["interval"][1] >= 0 else "it does harm"
    harmed = [
        kind
        for kind, f in figures["kinds"].items()
        if f["n"] >= _MIN_OTHERS and (f["interval"][1] < 0 or f["points"] < -100 * _HARM)
    ]
    return f"it harms requirements of kind {', '.join(harmed)}" if harmed else ""


def _by_kind(pairs: Iterable[tuple[Row, Row]]) -> dict[str, Row]:
    """For each kind of requirement, the difference in the rate at which it is met, over the wishes that ask for it."""
    differences: dict[str, list[float]] = defaultdict(list)
    for a, b in pairs:
        here, there = _rates(a), _rates(b)
        for kind in here.keys() & there.keys():
            differences[kind].append(here[kind] - there[kind])
    return {kind: {"n": len(found), **_mean_of(found)} for kind, found in sorted(differences.items())}


def _mean_of(differences: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """In percentage points, with its interval."""
    if not differences:
        return {"points": 0.0, "interval": [0.0, 0.0]}
    return {
        "points": round(100 * sum(differences) / len(differences), 2),
        "interval": [round(100 * x, 2) for x in bootstrap_interval(differences, level=level)],
    }


def _rates(row: Row) -> dict[str, float]:
    """By kind, the share of requirements that the returned image meets."""
    if row["best"] is None:
        return {}
    verdicts, met = row["attempts"][row["best"]]["verdicts"], defaultdict(list)
    for requirement in row["requirements"]:
        answer = verdicts.get(requirement["id"], ["unsure"])[0]
        met[requirement["kind"]].append(answer == "yes")
    return {kind: sum(found) / len(found) for kind, found in met.items()}


def _right(row: Row) -> int:
    """Whether every requirement of the user's was met, as the verifier sees it."""
    if row["best"] is None:
        return 0
    best = row["attempts"][row["best"]]
    return int(best["total"] > 0 and best["passed"] == best["total"])


def settle(
    one: Learned, figures: Row, wishes: Sequence[str], settings: GateSettings, *, promote: bool = True
) -> Learned:
    """Write the gate's figures down, and move the skill to where they say that it belongs.

    The images of the trial go; its results stay.
    """
    about = {
        **figures,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": one.version,
        "images": settings.images,
        "seed": settings.seed,
        "tried": sorted({*one.gate.get("tried", []), *map(_mark, wishes)}),
    }
    one = write_gate(one, about)
    for folder in (one.folder / "gate").glob("*"):
        shutil.rmtree(folder / "images", ignore_errors=True)
        for checkpoints in folder.glob("*/checkpoints.sqlite*"):
            checkpoints.unlink(missing_ok=True)
    if one.state == "promoted" and not figures["passed"] and figures["points"] <= 0:
        return move(one, "retired")
    if one.state == "quarantine" and figures["passed"] and promote:
        return move(one, "promoted")
    return one
