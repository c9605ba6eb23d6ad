"""The facts of a finished run: the first of memory's two layers. The second, what was learned, is ``experience``."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from gems.graph.state import (
    Attempt,
    GemsState,
    ImageRef,
    Kind,
    Outcome,
    Requirement,
    Strategy,
    Verdict,
    best_attempt,
)

__all__ = ["SOLVED", "TRAJECTORIES", "PastAttempt", "Trajectory", "namespace", "user_of"]


class PastAttempt(BaseModel):
    """One attempt of a finished run."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    seed: int
    strategy: Strategy
    score: float = Field(ge=0, le=1)
    failed: list[str] = Field(description="Questions that it did not pass.")
    image: ImageRef
    verdicts: list[Verdict] = Field(default=[], description="Earlier versions kept none.")


class Trajectory(BaseModel):
    """One finished run."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    solved: bool
    outcome: Outcome
    score: float = Field(ge=0, le=1)
    best_prompt: str = Field(description="The generation prompt of the best attempt.")
    experience: str = Field(default="", description="What the refiner learned last, at most 100 words.")
    kinds: list[Kind] = Field(description="What kinds of requirements the prompt made, without repeats.")
    failed: list[str] = Field(description="Questions that the best attempt did not pass.")
    skills: list[str]
    rounds: int
    images: int
    mllm: str
    generator: str
    attempts: list[PastAttempt] = Field(default=[], description="In order; runs of the first version kept none.")
    requirements: list[Requirement] = Field(default=[], description="Earlier versions kept none.")
    recalled: list[str] = Field(default=[], description="Keys of the experiences that it was helped by.")

    @property
    def reward(self) -> float:
        """What the run was worth, in [0, 1]: one over the rounds that it took to solve it; 0 for what was not."""
        return 1 / self.rounds if self.solved and self.rounds else 0.0

    @classmethod
    def from_state(cls, state: GemsState, *, mllm: str, generator: str) -> Trajectory:
        """The record of a finished run.

        Raises:
            ValueError: The run made no image.
        """
        attempts = state["attempts"]
        best = best_attempt(attempts)
        if best is None:
            raise ValueError("a run without an image is not a trajectory")
        requirements = {r.id: r for r in state["requirements"]}
        return cls(
            prompt=state["prompt"],
            solved=best.passed,
            outcome=state.get("outcome") or "failed",
            score=best.score,
            best_prompt=best.prompt,
            experience=next((a.experience for a in reversed(attempts) if a.experience), ""),
            kinds=list(dict.fromkeys(r.kind for r in requirements.values())),
            failed=_failed(best, requirements),
            skills=state["skills"],
            rounds=attempts[-1].round,
            images=len(attempts),
            mllm=mllm,
            generator=generator,
            attempts=[
                PastAttempt(
                    prompt=attempt.prompt,
                    seed=attempt.seed,
                    strategy=attempt.strategy,
                    score=attempt.score,
                    failed=_failed(attempt, requirements),
                    image=attempt.image,
                    verdicts=list(attempt.verdicts),
                )
                for attempt in attempts
            ],
            requirements=state["requirements"],
            recalled=[memory.key for memory in state.get("memories") or []],
        )


def _failed(attempt: Attempt, requirements: dict[str, Requirement]) -> list[str]:
    return [requirements[v.requirement_id].question for v in attempt.verdicts if v.answer != "yes"]


TRAJECTORIES: Final = ("gems", "trajectories")
SOLVED: Final = ("gems", "solved")
"""By user, by a hash of prompt, models and settings: the run that solved them last."""


def namespace(user: str, layer: tuple[str, ...] = TRAJECTORIES) -> tuple[str, ...]:
    """Where a layer of one user's memory lies: no search ever crosses it."""
    return (*layer, user.replace("%", "%25").replace(".", "%2E"))  # no label may hold a period


def user_of(namespace: tuple[str, ...]) -> str:
    """Whose namespace it is."""
    return namespace[-1].replace("%2E", ".").replace("%25", "%")
