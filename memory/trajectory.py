"""What is remembered of a run, and how it is found again."""

from __future__ import annotations

from typing import Final

from langgraph.store.base import BaseStore
from pydantic import BaseModel, ConfigDict, Field

from gems.graph.state import (
    Attempt,
    GemsState,
    ImageRef,
    Kind,
    Memory,
    Outcome,
    Requirement,
    Strategy,
    best_attempt,
)

__all__ = ["MIN_SIMILARITY", "TRAJECTORIES", "PastAttempt", "Trajectory", "namespace", "recall", "remember", "user_of"]

MIN_SIMILARITY: Final = 0.35
"""Cosine similarity below which a past prompt has little to say: with MiniLM, unrelated short sentences lie mostly
under 0.3, and prompts that share an object and a relation above 0.5."""


class PastAttempt(BaseModel):
    """One attempt of a finished run."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    seed: int
    strategy: Strategy
    score: float = Field(ge=0, le=1)
    failed: list[str] = Field(description="Questions that it did not pass.")
    image: ImageRef


class Trajectory(BaseModel):
    """One finished run: the facts, and what was learned from them."""

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
                )
                for attempt in attempts
            ],
        )


def _failed(attempt: Attempt, requirements: dict[str, Requirement]) -> list[str]:
    return [requirements[v.requirement_id].question for v in attempt.verdicts if v.answer != "yes"]


TRAJECTORIES: Final = ("gems", "trajectories")


def namespace(user: str) -> tuple[str, ...]:
    """Where one user's trajectories lie: no search ever crosses it."""
    return (*TRAJECTORIES, user.replace("%", "%25").replace(".", "%2E"))  # no label may hold a period


def user_of(namespace: tuple[str, ...]) -> str:
    """Whose namespace it is."""
    return namespace[-1].replace("%2E", ".").replace("%25", "%")


def remember(store: BaseStore, user: str, run_id: str, trajectory: Trajectory) -> None:
    """Write a trajectory under its run's id: writing it again, after a crash, changes nothing."""
    store.put(namespace(user), run_id, trajectory.model_dump(mode="json"), index=["prompt"])


def recall(store: BaseStore, user: str, prompt: str, limit: int) -> list[Memory]:
    """The user's past runs nearest in meaning to a prompt, nearest first; none from a store without an index."""
    if limit < 1:
        return []
    memories = []
    for item in store.search(namespace(user), query=prompt, limit=limit):
        if item.score is None or item.score < MIN_SIMILARITY:
            continue
        past = Trajectory.model_validate(item.value)
        memories.append(
            Memory(
                key=item.key,
                similarity=round(item.score, 4),
                prompt=past.prompt,
                solved=past.solved,
                best_prompt=past.best_prompt,
                experience=past.experience,
            )
        )
    return memories
