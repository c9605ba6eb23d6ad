"""Builds past runs for tests of the memory."""

from __future__ import annotations

from typing import Any

from gems.graph.state import ImageRef, Requirement, Verdict
from gems.memory.trajectory import PastAttempt, Trajectory

IMAGE = ImageRef(uri="file:///x.png", sha256="0" * 64, width=8, height=8)


def past(prompt: str, *attempts: str, solved: bool = True, generator: str = "g", **facts: Any) -> Trajectory:
    """A run whose attempts used these prompts. The last attempt is the best; it passed if the run is solved."""
    attempts = attempts or (f"better {prompt}",)
    requirements = [Requirement(id="r1", question=f"Is it {prompt}?", kind="count")]
    past_attempts = []
    for i, attempt_prompt in enumerate(attempts):
        is_solved = solved and i == len(attempts) - 1
        verdict = Verdict(requirement_id="r1", answer="yes" if is_solved else "no", confidence=0.9)
        failed_questions = [] if is_solved else [requirements[0].question]
        past_attempts.append(
            PastAttempt(
                prompt=attempt_prompt,
                seed=i,
                strategy="plan",
                score=0.5,
                failed=failed_questions,
                image=IMAGE,
                verdicts=[verdict],
            )
        )
    values: dict[str, Any] = {
        "prompt": prompt,
        "solved": solved,
        "outcome": "solved" if solved else "rounds",
        "score": 0.9 if solved else 0.3,
        "best_prompt": attempts[-1],
        "experience": "say it twice" if len(attempts) > 1 else "",
        "kinds": ["count"],
        "failed": [] if solved else [requirements[0].question],
        "skills": [],
        "rounds": len(attempts),
        "images": len(attempts),
        "mllm": "m",
        "generator": generator,
        "attempts": past_attempts,
        "requirements": requirements,
    }
    return Trajectory(**{**values, **facts})
