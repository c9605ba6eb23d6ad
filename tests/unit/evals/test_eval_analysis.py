"""The figures of a report, computed from hand-written results."""

from __future__ import annotations

from typing import Any

import pytest

from gems.errors import InputError
from gems.evals.analysis import analyse, compare, judge
from gems.evals.arms import Arm, Comparison, choose_arms, comparisons
from gems.evals.prompts import EvalPrompt, Vqa
from gems.stats import bootstrap_interval, ratio_interval

PROMPTS = [
    EvalPrompt(f"prompt {i}", 3, (Vqa("How many cats are in the image?", "two", "count"), Vqa("Any?", "Yes", "object")))
    for i in range(4)
]


def attempt(round_: int, passed: int, score: float, strategy: str = "rewrite") -> dict[str, Any]:
    answers = ["yes"] * passed + ["no"] * (2 - passed)
    return {
        "round": round_,
        "candidate": 0,
        "strategy": strategy,
        "prompt": "p",
        "seed": round_,
        "score": score,
        "passed": passed,
        "total": 2,
        "verdicts": {"r1": [answers[1], 0.9], "r2": [answers[0], 0.9]},
        "image": "",
        "sha256": "",
    }


def row(index: int, best: int, *attempts: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": index,
        "prompt": f"prompt {index}",
        "outcome": "solved",
        "rounds": len(attempts),
        "requirements": [
            {"id": "r1", "question": "exactly two?", "kind": "count"},
            {"id": "r2", "question": "any?", "kind": "object"},
        ],
        "attempts": list(attempts),
        "best": best,
        "usage": {"chat_calls": 4, "prompt_tokens": 10, "completion_tokens": 2, "images": len(attempts), "seconds": 1},
        "seconds": 2.0,
    }


RIGHT, WRONG = [1.0, 1.0], [0.0, 1.0]


def test_the_figures_of_an_arm() -> None:
    rows = [
        row(0, 0, attempt(1, 2, 0.9, "plan")),  # right and recognised
        row(1, 1, attempt(1, 1, 0.3, "plan"), attempt(2, 2, 0.8)),  # wrong, then right
        row(2, 0, attempt(1, 1, 0.5, "plan"), attempt(2, 1, 0.4)),  # right but not recognised, then wrong
        {"index": 3, "prompt": "prompt 3", "error": "bad", "error_kind": "input"},
    ]
    scores = {0: {0: RIGHT}, 1: {0: WRONG, 1: RIGHT}, 2: {0: RIGHT, 1: WRONG}}
    report = analyse(Arm("loop", "what"), judge(PROMPTS, rows, scores), images=3)
    assert report["all_correct"] == 0.75
    assert report["failed"] == 1
    assert report["images_per_prompt"] == 5 / 4, "a prompt that failed without an image counts as one of none"
    assert [(p["most_images"], p["all_correct"]) for p in report["curve"]] == [(1, 0.5), (2, 0.75)]
    assert report["over_first_attempt"]["first_all_correct"] == 0.5
    assert report["over_first_attempt"]["points"] == 25.0
    assert report["by_round"] == [
        {"round": 1, "images": 3, "right": 0.6667},
        {"round": 2, "images": 2, "right": 0.5},
    ]
    assert report["by_strategy"]["rewrite"] == {"images": 2, "right": 0.5}
    verifier = report["verifier"]
    assert (verifier["precision"], verifier["recall"]) == (1.0, 0.6667)
    assert (verifier["false_passes"], verifier["false_fails"]) == (0, 1)
    assert verifier["by_kind"]["count"]["false_no"] == 1
    assert report["worse_shipped_by_own_score"] == 0
    assert report["right_image_not_shipped"] == 0
    assert report["soft_tifa_gm"] == 0.75  # a prompt that failed counts as 0
    assert report["by_skill"]["object"] == {"score": 0.75, "n": 4}


def test_several_orders_of_a_prompt_are_one_observation() -> None:
    arm = Arm("loop+memory", "what", settings={"memory": True})
    rows = [row(i, 0, attempt(1, 2, 0.9)) for i in range(4)]
    first = judge(PROMPTS, rows, {i: {0: RIGHT} for i in range(4)})
    second = judge(PROMPTS, rows, {i: {0: RIGHT if i < 2 else WRONG} for i in range(4)}, order=2)
    report = analyse(arm, [*first, *second], images=1)
    assert (report["prompts"], report["all_correct"]) == (4, 0.75)
    assert [entry["all_correct"] for entry in report["orders"]] == [1.0, 0.5]
    assert report["ci95"] == bootstrap_interval([1.0, 1.0, 0.5, 0.5])
    alone = judge(PROMPTS, rows, {i: {0: WRONG} for i in range(4)})
    difference = compare(Comparison("a", "b", "?"), {"a": [*first, *second], "b": alone})
    assert difference is not None
    assert (difference["prompts"], difference["points"]) == (4, 75.0)


def test_results_without_any_attempt_have_figures_too() -> None:
    rows = [{"index": i, "prompt": f"prompt {i}", "error": "bad", "error_kind": "backend"} for i in range(4)]
    report = analyse(Arm("single", "what"), judge(PROMPTS, rows, {}), images=2)
    assert (report["failed"], report["all_correct"], report["soft_tifa_gm"]) == (4, 0.0, 0.0)
    assert (report["outcomes"], report["first_error"]) == ({"failed": 4}, "bad")


def test_an_arm_that_returns_the_worse_image_is_detected() -> None:
    rows = [row(0, 1, attempt(1, 2, 0.9), attempt(2, 1, 0.4))]
    report = analyse(Arm("loop", "what"), judge(PROMPTS, rows, {0: {0: RIGHT, 1: WRONG}}), images=2)
    assert report["worse_shipped_by_own_score"] == 1
    assert report["right_image_not_shipped"] == 1
    assert report["all_correct"] == 0.0


def test_differences_are_paired() -> None:
    better_arm = judge(PROMPTS, [row(i, 0, attempt(1, 2, 0.9)) for i in range(4)], {i: {0: RIGHT} for i in range(4)})
    worse_arm = judge(
        PROMPTS,
        [row(i, 0, attempt(1, 2, 0.9), attempt(2, 2, 0.8)) for i in range(4)],
        {i: {0: WRONG if i else RIGHT, 1: WRONG} for i in range(4)},
    )
    difference = compare(Comparison("a", "b", "?"), {"a": better_arm, "b": worse_arm})
    assert difference is not None
    assert (difference["points"], difference["won"], difference["lost"], difference["images_ratio"]) == (
        75.0,
        3,
        0,
        0.5,
    )
    assert difference["points_ci95"][0] > 0
    assert difference["images_ratio_ci95"] == [0.5, 0.5]
    assert compare(Comparison("a", "c", "?"), {"a": better_arm}) is None


def test_intervals() -> None:
    assert bootstrap_interval([1.0] * 30) == [1.0, 1.0]
    low, high = bootstrap_interval([0.0, 1.0] * 200)
    # The normal approximation gives 0.5 +- 0.049.
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) == [2.0, 2.0]


def test_arms_by_name() -> None:
    assert [a.name for a in choose_arms(["loop", "best-of-n"], ["pocket"], 4)] == ["best-of-4", "loop"]
    both = choose_arms(["all"], ["pocket", "pocket-large"], 5)
    assert len(both) == 18
    assert {a.generator for a in both if "@" in a.name} == {"pocket-large"}
    names = {a.name for a in both}
    assert all({c.better, c.than} <= names for c in comparisons(["pocket", "pocket-large"], 5))
    with pytest.raises(InputError, match="unknown arm 'lop'"):
        choose_arms(["lop"], ["pocket"], 5)
