from __future__ import annotations

from typing import Any

import pytest

from gems.graph.state import Attempt, GemsState, ImageRef, Requirement, Usage, Verdict
from gems.memory.trajectory import Trajectory


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


def test_a_run_without_an_image_is_no_trajectory() -> None:
    empty: Any = {**state("x", "y"), "attempts": []}
    with pytest.raises(ValueError, match="without an image"):
        Trajectory.from_state(empty, mllm="m", generator="g")
