"""Where a run goes next: the pure functions behind every conditional edge, and the rule that ends a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from langchain_core.messages import AIMessage

from gems.graph.context import GemsContext
from gems.graph.state import Attempt, GemsState, Outcome, Usage, best_attempt

__all__ = [
    "after_generator",
    "after_intake",
    "after_planner",
    "after_refiner",
    "after_review",
    "after_verifier",
    "asks_person",
    "awaits_comparison",
    "limit_of",
    "outcome_of",
]


def outcome_of(attempts: Sequence[Attempt], usage: Usage, context: GemsContext) -> Outcome | None:
    """Why the run should end now, or None for another round. Called after each verification."""
    best = best_attempt(attempts)
    if best is None:
        return "failed"
    last = attempts[-1]
    if best.flawless:
        return "solved"
    reason = limit_of(last, usage, context) or ("stalled" if last.round - best.round >= context.patience else None)
    return "solved" if reason and best.passed and best.judged != "rejected" else reason


def asks_person(context: GemsContext, outcome: Outcome | None) -> bool:
    """Whether a person is asked about the images that were just verified. A failed run ends without asking."""
    return outcome != "failed" and (context.review == "rounds" or (context.review == "end" and outcome is not None))


def limit_of(last: Attempt, usage: Usage, context: GemsContext) -> Outcome | None:
    """Why there cannot be another round, or None if there can."""
    if last.round >= context.max_rounds:
        return "rounds"
    # Another round costs one refinement, one image and one verification: do not start a round that cannot be finished.
    if not last.verified or context.budget.exhausted(usage, chat_calls=2, images=1):
        return "budget"
    return None


def after_intake(state: GemsState) -> Sequence[Literal["retrieve_memory", "decomposer", "store_memory"]]:
    """To memory and the decomposer, in parallel; straight to the end if an earlier run's image is reused."""
    return ["store_memory"] if state.get("outcome") else ["retrieve_memory", "decomposer"]


def after_planner(state: GemsState) -> Literal["skills", "cross_check"]:
    """To the skills while the planner calls them; to the comparison with the requirements once there is a draft."""
    planning = state.get("planning") or []
    last = planning[-1] if planning else None
    return "skills" if not state.get("draft") and isinstance(last, AIMessage) and last.tool_calls else "cross_check"


def awaits_comparison(state: GemsState) -> bool:
    """Whether the draft is still compared with the requirements, and the comparison will send the run on."""
    return state.get("compared") is False


def after_generator(state: GemsState) -> Sequence[Literal["verifier", "refiner", "store_memory"]]:
    """To the verifier with new images, to the refiner if the draft was refused, to the end if the run is over."""
    if awaits_comparison(state):
        return []
    if state.get("outcome"):
        return ["store_memory"]
    return ["refiner"] if state["draft"] in state["refused"] else ["verifier"]


def after_refiner(state: GemsState) -> Literal["generator", "editor"]:
    """To the editor to change the best image, to the generator for a new one."""
    return "editor" if state["strategy"] == "edit" else "generator"


def after_verifier(state: GemsState) -> Literal["review", "refiner", "store_memory"]:
    """To the person who reviews, to the refiner for another round, or to the end."""
    if state.get("in_review"):
        return "review"
    return "store_memory" if state.get("outcome") else "refiner"


def after_review(state: GemsState) -> Literal["generator", "verifier", "refiner", "store_memory"]:
    """Where the person's decision sends the run."""
    review = state.get("review")
    if state.get("outcome") or review is None:
        return "store_memory"
    if review.action == "edit_prompt":
        return "generator"
    return "verifier" if review.action == "edit_requirements" else "refiner"
