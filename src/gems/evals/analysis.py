"""From results and scores to the figures of a report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gems.bulk.results import AttemptFields, BatchRow, best_attempt_of
from gems.evals.arms import Arm, Comparison
from gems.evals.prompts import EvalPrompt
from gems.evals.scorers import arithmetic_mean, geometric_mean
from gems.stats import bootstrap_interval, ratio_interval

__all__ = ["Judged", "analyse", "compare", "judge"]

Row: TypeAlias = BatchRow


@dataclass(frozen=True, slots=True)
class Judged:
    """One prompt's result in one arm, with scores.

    Attributes:
        prompt: The prompt.
        row: The result.
        scores: By index of an attempt, one score per question; all attempts, or the shipped one alone. Empty if the
            prompt failed.
    """

    prompt: EvalPrompt
    row: Row
    scores: dict[int, list[float]]

    @property
    def shipped(self) -> list[float]:
        """Scores of the image that the arm ended with; all 0 without one."""
        best = self.row.get("best")
        return self.scores.get(-1 if best is None else best, [0.0] * len(self.prompt.questions))

    @property
    def right(self) -> bool:
        """Whether everything in the shipped image is right."""
        return is_right(self.shipped)

    def best_within(self, images: int) -> int | None:
        """The attempt that would have been shipped, had the run ended after so many images."""
        attempts = self.row.get("attempts", [])[:images]
        return max(range(len(attempts)), key=lambda i: (*worth(attempts[i]), -i), default=None)


def worth(attempt: AttemptFields) -> tuple[bool, float]:
    """An attempt by the verifier's own word: one that passed wins, then the higher score, as in ``best_attempt``."""
    return 0 < attempt["total"] == attempt["passed"], attempt["score"]


def is_right(scores: Sequence[float]) -> bool:
    """All correct: every question at one half or above."""
    return min(scores) >= 0.5


def judge(
    prompts: Sequence[EvalPrompt], rows: Iterable[Row], scores: dict[int, dict[int, list[float]]]
) -> list[Judged]:
    """Put prompts, results and scores (by prompt, then attempt) together."""
    return [Judged(prompts[row["index"]], row, scores.get(row["index"], {})) for row in rows]


def analyse(arm: Arm, judged: Sequence[Judged], images: int, *, every_attempt: bool = True) -> dict[str, Any]:
    """The figures of one arm; ``every_attempt`` says whether all attempts have scores, or the shipped ones alone."""
    right = np.array([float(j.right) for j in judged])
    ran = [j for j in judged if "usage" in j.row]
    report = {
        "what": arm.what,
        "generator": arm.generator,
        "prompts": len(judged),
        "failed": sum("error" in j.row for j in judged),
        "all_correct": round(float(right.mean()), 4),
        "ci95": bootstrap_interval(right),
        "soft_tifa_am": _mean(arithmetic_mean(j.shipped) for j in judged),
        "soft_tifa_gm": _mean(geometric_mean(j.shipped) for j in judged),
        "images_per_prompt": _mean(j.row["usage"]["images"] for j in ran),
        "chat_calls_per_prompt": _mean(j.row["usage"]["chat_calls"] for j in ran),
        "tokens_per_prompt": _mean(j.row["usage"]["prompt_tokens"] + j.row["usage"]["completion_tokens"] for j in ran),
        "seconds_per_prompt": _mean(j.row["seconds"] for j in ran),
        "outcomes": dict(Counter(j.row["outcome"] for j in ran).most_common()),
        "by_atoms": _by((j.prompt.atoms, float(j.right)) for j in judged),
        "by_skill": _by((q.skill, s) for j in judged for q, s in zip(j.prompt.questions, j.shipped, strict=True)),
    }
    if every_attempt:
        report |= _by_attempt(judged, images)
    return report


def _by_attempt(judged: Sequence[Judged], images: int) -> dict[str, Any]:
    """What needs the truth about every attempt, not only about the one that was shipped."""
    attempts = [(j, i, a) for j in judged for i, a in enumerate(j.row.get("attempts", []))]
    verified = [(j, i, a) for j, i, a in attempts if a["total"]]
    curve: list[dict[str, Any]] = []
    rounds: list[dict[str, Any]] = []
    for n in range(1, images + 1):
        chosen = [(j, j.best_within(n)) for j in judged]
        spent = _mean(min(n, len(j.row.get("attempts", []))) for j in judged)
        rate = _mean(float(i is not None and is_right(j.scores[i])) for j, i in chosen)
        if not curve or curve[-1]["images_per_prompt"] != spent:
            curve.append({"images_per_prompt": spent, "all_correct": rate, "most_images": n})
        made = [is_right(j.scores[i]) for j, i, a in attempts if a["round"] == n]
        if made:
            rounds.append({"round": n, "images": len(made), "right": _mean(map(float, made))})
    strategies: dict[str, list[float]] = defaultdict(list)
    for j, i, a in attempts:
        strategies[a["strategy"]].append(float(is_right(j.scores[i])))
    shipped_worse = sum(
        max(map(worth, j.row["attempts"])) > worth(best) for j in judged if (best := best_attempt_of(j.row)) is not None
    )
    first = [float(bool(j.scores) and is_right(j.scores[0])) for j in judged]
    gained = [float(j.right) - was for j, was in zip(judged, first, strict=True)]
    missed = sum(not j.right and any(map(is_right, j.scores.values())) for j in judged)
    return {
        "curve": curve,
        "over_first_attempt": {
            "first_all_correct": _mean(first),
            "points": round(100 * sum(gained) / max(len(gained), 1), 2),
            "points_ci95": [round(100 * bound, 2) for bound in bootstrap_interval(gained)],
        },
        "by_round": rounds,
        "by_strategy": {name: {"images": len(v), "right": _mean(v)} for name, v in strategies.items()},
        "verifier": _verifier(verified) if verified else None,
        "worse_shipped_by_own_score": shipped_worse,
        "right_image_not_shipped": missed,
    }


def _verifier(verified: Sequence[tuple[Judged, int, AttemptFields]]) -> dict[str, Any]:
    """How far the verifier's word can be trusted: on whole images, and on single questions by kind."""
    said = np.array([worth(a)[0] for _, _, a in verified])
    true = np.array([is_right(j.scores[i]) for j, i, _ in verified])
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for j, i, attempt in verified:
        requirements = j.row["requirements"]
        if Counter(r["kind"] for r in requirements) != Counter(q.skill for q in j.prompt.questions):
            continue  # the decomposer asked other questions than the benchmark: they cannot be held against each other
        truth: dict[str, list[bool]] = defaultdict(list)
        for question, score in zip(j.prompt.questions, j.scores[i], strict=True):
            truth[question.skill].append(score >= 0.5)
        taken: Counter[str] = Counter()
        for requirement in requirements:
            kind = requirement["kind"]
            yes = attempt["verdicts"][requirement["id"]][0] == "yes"
            is_true = truth[kind][taken[kind]]
            taken[kind] += 1
            kinds[kind][f"{'true' if yes == is_true else 'false'} {'yes' if yes else 'no'}"] += 1
    return {
        "images": len(verified),
        "precision": _share(said & true, said),
        "recall": _share(said & true, true),
        "false_passes": int((said & ~true).sum()),
        "false_fails": int((~said & true).sum()),
        "by_kind": {
            kind: {
                "precision": _ratio(c["true yes"], c["true yes"] + c["false yes"]),
                "recall": _ratio(c["true yes"], c["true yes"] + c["false no"]),
                "false_yes": c["false yes"],
                "false_no": c["false no"],
            }
            for kind, c in sorted(kinds.items())
        },
    }


def compare(comparison: Comparison, arms: dict[str, list[Judged]]) -> dict[str, Any] | None:
    """The paired difference of two arms over the prompts that both have; None unless both were run."""
    if comparison.better not in arms or comparison.than not in arms:
        return None
    a, b = ({j.row["index"]: j for j in arms[name]} for name in (comparison.better, comparison.than))
    both = sorted(a.keys() & b.keys())
    difference = np.array([float(a[i].right) - float(b[i].right) for i in both])
    here, there = ([float(len(side[i].row.get("attempts", []))) for i in both] for side in (a, b))
    return {
        "better": comparison.better,
        "than": comparison.than,
        "question": comparison.question,
        "prompts": len(both),
        "points": round(100 * float(difference.mean()), 2),
        "points_ci95": [round(100 * bound, 2) for bound in bootstrap_interval(difference)],
        "won": int((difference > 0).sum()),
        "lost": int((difference < 0).sum()),
        "images_ratio": round(sum(here) / max(sum(there), 1), 4),
        "images_ratio_ci95": ratio_interval(here, there),
    }


def _mean(values: Iterable[float]) -> float:
    gathered = list(values)
    return round(sum(gathered) / len(gathered), 4) if gathered else 0.0


def _by(pairs: Iterable[tuple[Any, float]]) -> dict[str, dict[str, Any]]:
    groups: dict[Any, list[float]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {str(key): {"score": _mean(values), "n": len(values)} for key, values in sorted(groups.items())}


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _share(part: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> float | None:
    return _ratio(int(part.sum()), int(whole.sum()))
