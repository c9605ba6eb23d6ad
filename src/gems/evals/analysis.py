"""Figures of a report, from results and scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gems.bulk.faults import faults_of
from gems.bulk.limits import usage_of
from gems.bulk.results import AttemptFields, BatchRow, best_attempt_of, is_looked_at
from gems.evals.arms import Arm, Comparison
from gems.evals.prompts import EvalPrompt
from gems.evals.scorers import arithmetic_mean, geometric_mean
from gems.graph.state import Usage
from gems.stats import bootstrap_interval, ratio_interval

__all__ = ["Judged", "analyse", "compare", "judge"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One prompt's result in one arm, with scores.

    Attributes:
        prompt: The prompt.
        row: The result.
        scores: By index of an attempt, one score per question, for all attempts or only for the one that
            was returned. Empty if the prompt failed.
        order: Which order of the prompts the result is from; several only in arms with a memory.
    """

    prompt: EvalPrompt
    row: BatchRow
    scores: dict[int, list[float]]
    order: int = 1

    @property
    def attempts(self) -> list[AttemptFields]:
        """The attempts; none if the prompt failed before it was drawn."""
        return self.row.get("attempts", [])

    @property
    def returned_scores(self) -> list[float]:
        """Scores of the image that was returned; all 0 if there is none."""
        best = self.row.get("best")
        return self.scores.get(-1 if best is None else best, [0.0] * len(self.prompt.questions))

    @property
    def all_correct(self) -> bool:
        """Whether everything in the returned image is right."""
        return is_right(self.returned_scores)

    def best_within(self, images: int) -> int | None:
        """The attempt that would have been returned if the run had ended after this many images."""
        attempts = self.attempts[:images]
        return max(range(len(attempts)), key=lambda i: (*worth(attempts[i]), -i), default=None)


def worth(attempt: AttemptFields) -> tuple[bool, float]:
    """An attempt's rank by the verifier's answers: passed before failed, then by score, as in ``best_attempt``."""
    return 0 < attempt["total"] == attempt["passed"], attempt["score"]


def is_right(scores: Sequence[float]) -> bool:
    """All correct: every question at one half or above."""
    return min(scores) >= 0.5


def judge(
    prompts: Sequence[EvalPrompt],
    rows: Iterable[BatchRow],
    scores: dict[int, dict[int, list[float]]],
    *,
    order: int = 1,
) -> list[Judged]:
    """Join prompts, results and scores (by prompt, then attempt)."""
    return [Judged(prompts[row["index"]], row, scores.get(row["index"], {}), order) for row in rows]


def analyse(arm: Arm, judged: Sequence[Judged], images: int, *, every_attempt: bool = True) -> dict[str, Any]:
    """The figures of one arm.

    Args:
        arm: The arm whose results these are.
        judged: The results of the arm, with scores.
        images: Maximum number of images per prompt.
        every_attempt: Whether all attempts have scores, or only the returned ones.
    """
    right = _by_prompt(judged, lambda j: float(j.all_correct))
    usages = [usage_of(j.row) for j in judged]
    usage_in_all = sum(usages, Usage())
    failures = [j.row for j in judged if j.row.get("error")]
    report = {
        "what": arm.what,
        "generator": arm.generator,
        "prompts": len(right),
        "failed": len(failures),
        "failed_by_kind": dict(Counter(row["error_kind"] for row in failures).most_common()),
        "errors": faults_of(j.row for j in judged),
        "first_error": failures[0]["error"] if failures else None,
        "all_correct": round(sum(right) / len(right), 4),
        "ci95": bootstrap_interval(right),
        "soft_tifa_am": arithmetic_mean([arithmetic_mean(j.returned_scores) for j in judged]),
        "soft_tifa_gm": arithmetic_mean([geometric_mean(j.returned_scores) for j in judged]),
        "images_per_prompt": _mean(usage.images for usage in usages),
        "chat_calls_per_prompt": _mean(usage.chat_calls for usage in usages),
        "tokens_per_prompt": _mean(usage.tokens for usage in usages),
        "seconds_per_prompt": _mean(j.row.get("seconds", 0.0) for j in judged),
        "outcomes": dict(Counter(j.row.get("outcome", "failed") for j in judged).most_common()),
        "by_atoms": _by((j.prompt.atoms, geometric_mean(j.returned_scores)) for j in judged),
        "by_skill": _by(
            (q.skill, s) for j in judged for q, s in zip(j.prompt.questions, j.returned_scores, strict=True)
        ),
    }
    if usage_in_all.lost_tokens:
        report["tokens_of_lost_answers_about"] = usage_in_all.lost_tokens
        report |= {"cost_of_lost_answers_about": round(usage_in_all.lost_cost, 4)} if usage_in_all.lost_cost else {}
    if any(j.prompt.stratum for j in judged):
        report["by_stratum"] = _by((j.prompt.stratum, float(j.all_correct)) for j in judged)
    if arm.ordered:
        report["orders"] = _by_order(judged)
    if every_attempt:
        report |= _by_attempt(judged, images)
    return report


def _by_prompt(judged: Iterable[Judged], value: Callable[[Judged], float]) -> list[float]:
    """A value for each prompt: the mean over its results. An arm that is run in several orders has several."""
    values: dict[int, list[float]] = defaultdict(list)
    for j in judged:
        values[j.row["index"]].append(value(j))
    return [sum(values[i]) / len(values[i]) for i in sorted(values)]


def _by_order(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The figures of an arm with a memory in each order of the prompts: how far they depend on the order."""
    results: dict[int, list[Judged]] = defaultdict(list)
    for j in judged:
        results[j.order].append(j)
    return [
        {
            "order": order,
            "all_correct": _mean(float(j.all_correct) for j in results[order]),
            "images_per_prompt": _mean(len(j.attempts) for j in results[order]),
        }
        for order in sorted(results)
    ]


def _by_attempt(judged: Sequence[Judged], images: int) -> dict[str, Any]:
    """Figures that need the truth about every attempt, not only about the returned one."""
    attempts = [(j, i, a) for j in judged for i, a in enumerate(j.attempts)]
    verified = [(j, i, a) for j, i, a in attempts if is_looked_at(a)]
    by_strategy: dict[str, list[float]] = defaultdict(list)
    for j, i, a in attempts:
        by_strategy[a["strategy"]].append(float(is_right(j.scores[i])))
    by_round: dict[int, list[float]] = defaultdict(list)
    for j, i, a in attempts:
        by_round[a["round"]].append(float(is_right(j.scores[i])))
    return {
        "curve": _curve(judged, images),
        "over_first_attempt": _over_first_attempt(judged),
        "by_round": [
            {"round": n, "images": len(by_round[n]), "right": _mean(by_round[n])}
            for n in range(1, images + 1)
            if n in by_round
        ],
        "by_strategy": {name: {"images": len(rights), "right": _mean(rights)} for name, rights in by_strategy.items()},
        "verifier": _verifier(verified) if verified else None,
        "worse_shipped_by_own_score": sum(map(_is_worse_shipped, judged)),
        "right_image_not_shipped": sum(not j.all_correct and any(map(is_right, j.scores.values())) for j in judged),
    }


def _curve(judged: Sequence[Judged], images: int) -> list[dict[str, Any]]:
    """The rate of right images if every run had ended after 1, 2, ... images, against the images spent until then."""
    curve: list[dict[str, Any]] = []
    for n in range(1, images + 1):
        images_per_prompt = _mean(min(n, len(j.attempts)) for j in judged)
        if not curve or curve[-1]["images_per_prompt"] != images_per_prompt:
            best_attempts = [(j, j.best_within(n)) for j in judged]
            rate = _mean(float(i is not None and is_right(j.scores[i])) for j, i in best_attempts)
            curve.append({"images_per_prompt": images_per_prompt, "all_correct": rate, "most_images": n})
    return curve


def _over_first_attempt(judged: Sequence[Judged]) -> dict[str, Any]:
    """The gain of the returned image over the first one."""
    first = _by_prompt(judged, lambda j: float(bool(j.scores) and is_right(j.scores[0])))
    final = _by_prompt(judged, lambda j: float(j.all_correct))
    gains = [b - a for a, b in zip(first, final, strict=True)]
    return {
        "first_all_correct": _mean(first),
        "points": round(100 * sum(gains) / max(len(gains), 1), 2),
        "points_ci95": [round(100 * bound, 2) for bound in bootstrap_interval(gains)],
    }


def _is_worse_shipped(judged: Judged) -> bool:
    """Whether an image was returned that the verifier rated below another one of the run."""
    best = best_attempt_of(judged.row)
    return best is not None and max(map(worth, judged.row["attempts"])) > worth(best)


def _verifier(verified: Sequence[tuple[Judged, int, AttemptFields]]) -> dict[str, Any]:
    """How far the verifier can be trusted: on whole images, and on single questions by kind."""
    passed = np.array([worth(a)[0] for _, _, a in verified])
    true = np.array([is_right(j.scores[i]) for j, i, _ in verified])
    return {
        "images": len(verified),
        "precision": _share(passed & true, passed),
        "recall": _share(passed & true, true),
        "false_passes": int((passed & ~true).sum()),
        "false_fails": int((~passed & true).sum()),
        "by_kind": {
            kind: {
                "precision": _ratio(c["true yes"], c["true yes"] + c["false yes"]),
                "recall": _ratio(c["true yes"], c["true yes"] + c["false no"]),
                "false_yes": c["false yes"],
                "false_no": c["false no"],
            }
            for kind, c in sorted(_answers_by_kind(verified).items())
        },
    }


def _answers_by_kind(verified: Sequence[tuple[Judged, int, AttemptFields]]) -> dict[str, Counter[str]]:
    """By kind of question, how many of the verifier's answers were "true yes", "false yes", "true no", "false no"."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for j, i, attempt in verified:
        requirements = j.row.get("requirements", [])
        if Counter(r.get("kind") for r in requirements) != Counter(q.skill for q in j.prompt.questions):
            continue  # the decomposer asked other questions than the benchmark, so they cannot be compared
        truth: dict[str, list[bool]] = defaultdict(list)
        for question, score in zip(j.prompt.questions, j.scores[i], strict=True):
            truth[question.skill].append(score >= 0.5)
        remaining = {kind: iter(answers) for kind, answers in truth.items()}
        for requirement in requirements:
            kind = requirement["kind"]
            yes = attempt["verdicts"].get(requirement["id"], ["unsure"])[0] == "yes"
            is_true = yes == next(remaining[kind])
            kinds[kind][f"{'true' if is_true else 'false'} {'yes' if yes else 'no'}"] += 1
    return kinds


def compare(comparison: Comparison, arms: dict[str, list[Judged]]) -> dict[str, Any] | None:
    """The paired difference of two arms over the prompts that both have. None if one of them was not run.

    Of an arm that was run in several orders, a prompt counts with its mean.
    """
    if comparison.better not in arms or comparison.than not in arms:
        return None
    sides = arms[comparison.better], arms[comparison.than]
    both = set.intersection(*({j.row["index"] for j in side} for side in sides))
    a, b = ([j for j in side if j.row["index"] in both] for side in sides)
    right_a, right_b = (_by_prompt(side, lambda j: float(j.all_correct)) for side in (a, b))
    images_a, images_b = (_by_prompt(side, lambda j: float(len(j.attempts))) for side in (a, b))
    difference = np.array(right_a) - np.array(right_b)
    return {
        "better": comparison.better,
        "than": comparison.than,
        "question": comparison.question,
        "prompts": len(both),
        "points": round(100 * float(difference.mean()), 2),
        "points_ci95": [round(100 * bound, 2) for bound in bootstrap_interval(difference)],
        "won": int((difference > 0).sum()),
        "lost": int((difference < 0).sum()),
        "images_ratio": round(sum(images_a) / max(sum(images_b), 1), 4),
        "images_ratio_ci95": ratio_interval(images_a, images_b),
    }


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 4) if numbers else 0.0


def _by(pairs: Iterable[tuple[Any, float]]) -> dict[str, dict[str, Any]]:
    groups: dict[Any, list[float]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {str(key): {"score": arithmetic_mean(values), "n": len(values)} for key, values in sorted(groups.items())}


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _share(part: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> float | None:
    return _ratio(int(part.sum()), int(whole.sum()))
