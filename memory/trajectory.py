"""The facts of a finished run: the first of memory's two layers. The second, the lessons, is in ``experience``."""

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

    # Memory records hold `failed`, the alias.
    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    prompt: str
    negative_prompt: str = Field(default="", exclude_if=lambda prompt: not prompt)
    seed: int
    strategy: Strategy
    score: float = Field(ge=0, le=1)
    failed_questions: list[str] = Field(alias="failed", description="Questions that the image did not pass.")
    image: ImageRef
    edited_from: str = Field(
        default="",
        exclude_if=lambda sha256: not sha256,
        description="SHA-256 of the image that this one is an edit of, if it is one.",
    )
    verdicts: list[Verdict] = Field(default=[], description="The verifier's answers to all requirements.")
    quality: float = Field(default=0.5, ge=0, le=1, exclude_if=lambda quality: quality == 0.5)
    flaws: str = Field(default="", exclude_if=lambda flaws: not flaws)


class Trajectory(BaseModel):
    """One finished run."""

    # Memory records hold `failed`, the alias.
    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    prompt: str
    solved: bool
    outcome: Outcome
    score: float = Field(ge=0, le=1)
    best_prompt: str = Field(description="The generation prompt of the best attempt.")
    experience: str = Field(default="", description="The refiner's last lesson, at most 100 words.")
    kinds: list[Kind] = Field(description="The kinds of the prompt's requirements, each once.")
    failed_questions: list[str] = Field(alias="failed", description="Questions that the best attempt did not pass.")
    skills: list[str]
    rounds: int = Field(ge=0, le=10**9)
    images: int = Field(ge=0, le=10**9)
    mllm: str
    generator: str
    attempts: list[PastAttempt] = Field(default=[], description="All attempts, in order.")
    best: int | None = Field(default=None, ge=0, description="Index of the attempt that the run returned.")
    requirements: list[Requirement] = Field(default=[], description="What the user asked for, as questions.")
    recalled: list[str] = Field(default=[], description="Keys of the experiences that the run recalled.")

    @property
    def reward(self) -> float:
        """The value of the run, in [0, 1]: one divided by its number of rounds; 0 if it solved nothing."""
        return 1 / self.rounds if self.solved and self.rounds else 0.0

    @classmethod
    def from_state(cls, state: GemsState, *, mllm: str, generator: str) -> Trajectory:
        """The record of a finished run.

        Raises:
            ValueError: The run produced no image.
        """
        attempts = state["attempts"]
        best = best_attempt(attempts)
        if best is None:
            raise ValueError("a run without an image is not a trajectory")
        requirements = {r.id: r for r in state["requirements"]}
        return cls(
            prompt=state["prompt"],
            solved=best.passed and best.judged != "rejected",
            outcome=state.get("outcome") or "failed",
            score=best.score,
            best_prompt=best.prompt,
            experience=next((a.experience for a in reversed(attempts) if a.experience), ""),
            kinds=list(dict.fromkeys(r.kind for r in requirements.values())),
            failed_questions=_failed_questions(best, requirements),
            skills=state["skills"],
            rounds=attempts[-1].round,
            images=len(attempts),
            mllm=mllm,
            generator=generator,
            attempts=[
                PastAttempt(
                    prompt=attempt.prompt,
                    negative_prompt=attempt.negative_prompt,
                    seed=attempt.seed,
                    strategy=attempt.strategy,
                    score=attempt.score,
                    failed_questions=_failed_questions(attempt, requirements),
                    image=attempt.image,
                    edited_from=attempt.edited_from,
                    verdicts=list(attempt.verdicts),
                    quality=attempt.quality,
                    flaws=attempt.flaws,
                )
                for attempt in attempts
            ],
            best=attempts.index(best),
            requirements=state["requirements"],
            recalled=[memory.key for memory in state.get("memories") or []],
        )


def _failed_questions(attempt: Attempt, requirements: dict[str, Requirement]) -> list[str]:
    return [requirements[v.requirement_id].question for v in attempt.verdicts if v.answer != "yes" and v.is_known]


TRAJECTORIES: Final = ("gems", "trajectories")
"""Namespace of the runs, before the user's label; the keys are run ids."""
SOLVED: Final = ("gems", "solved")
"""Namespace of the solved prompts, before the user's label: for a hash of prompt, models and settings, the last run."""


def namespace(user: str, layer: tuple[str, ...] = TRAJECTORIES) -> tuple[str, ...]:
    """The namespace of one layer of a user's memory. No search crosses it."""
    return (*layer, user.replace("%", "%25").replace(".", "%2E"))  # LangGraph forbids periods in labels


def user_of(namespace: tuple[str, ...]) -> str:
    """The user that a namespace belongs to."""
    return namespace[-1].replace("%2E", ".").replace("%25", "%")
