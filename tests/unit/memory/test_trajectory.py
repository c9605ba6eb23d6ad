from __future__ import annotations

from typing import Any

import pytest

from gems.graph.state import Attempt, GemsState, ImageRef, Requirement, Usage, Verdict
from gems.memory.trajectory import Trajectory
from gems.nodes.reuse import _passed_attempt


def state(prompt: str, answers: str) -> GemsState:
    """The state after one attempt; each letter is a verdict, y or n."""
    requirements = [Requirement(id=f"r{i}", question=f"Question {i}?", kind="count") for i in range(len(answers))]
    verdicts = tuple(
        Verdict(requirement_id=f"r{i}", answer="yes" if a == "y" else "no", confidence=0.9)
        for i, a in enumerate(answers)
    )
    image = ImageRef(uri="file:///x.png", sha256="0" * 64, width=8, height=8)
    attempt = Attempt(
        round=1,
        candidate=0,
        prompt=f"better {prompt}",
        seed=1,
        image=image,
        verdicts=verdicts,
        experience="say exactly",
    )
    return GemsState(
        prompt=prompt,
        requirements=requirements,
        attempts=[attempt],
        skills=["counting"],
        outcome="solved",
        usage=Usage(images=1),
    )


def test_a_trajectory_keeps_facts_and_experience() -> None:
    past = Trajectory.from_state(state("two cats", "yn"), mllm="pocket", generator="pocket")
    assert (past.prompt, past.best_prompt, past.solved) == ("two cats", "better two cats", False)
    assert past.failed_questions == ["Question 1?"]
    assert past.experience == "say exactly"
    assert Trajectory.model_validate(past.model_dump(mode="json")) == past


@pytest.mark.parametrize("other", [{"judged": "rejected"}, {"quality": 0.2, "flaws": "three hands"}])
def test_what_is_reused_is_the_image_that_the_run_returned(other: dict[str, Any]) -> None:
    run = state("two cats", "yy")
    [best] = run["attempts"]
    run["attempts"] = [best.model_copy(update=other), best.model_copy(update={"round": 2, "prompt": "the best"})]
    past = Trajectory.model_validate(Trajectory.from_state(run, mllm="m", generator="g").model_dump(mode="json"))
    attempt = _passed_attempt(past)
    assert attempt is not None
    assert (past.solved, attempt.prompt, attempt.quality, attempt.flaws) == (True, "the best", 0.5, "")


def test_what_is_reused_says_how_it_was_drawn() -> None:
    run = state("two cats", "yy")
    drawn = {"negative_prompt": "people", "edited_from": "1" * 64, "seed": 7}
    run["attempts"] = [attempt.model_copy(update=drawn) for attempt in run["attempts"]]
    past = Trajectory.model_validate(Trajectory.from_state(run, mllm="m", generator="g").model_dump(mode="json"))
    attempt = _passed_attempt(past)
    assert attempt is not None
    assert attempt.model_dump(include=set(drawn)) == drawn


def test_an_image_that_a_person_has_rejected_solves_nothing() -> None:
    run = state("two cats", "yy")
    run["attempts"] = [attempt.model_copy(update={"judged": "rejected"}) for attempt in run["attempts"]]
    assert not Trajectory.from_state(run, mllm="m", generator="g").solved


def test_a_run_without_an_image_is_no_trajectory() -> None:
    empty: Any = {**state("x", "y"), "attempts": []}
    with pytest.raises(ValueError, match="without an image"):
        Trajectory.from_state(empty, mllm="m", generator="g")
