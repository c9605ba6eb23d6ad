"""Where a run goes next: the pure functions behind every conditional edge, and the rule that ends a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from langchain_core.messages import AIMessage
from langgraph.types import Send

from gems.graph.context import GemsContext
from gems.graph.state import (
    Assignment,
    Attempt,
    GemsState,
    Outcome,
    Usage,
    best_attempt,
    proposals_of,
    round_of,
)

__all__ = [
    "after_cross_check",
    "after_generator",
    "after_intake",
    "after_planner",
    "after_refiner",
    "after_review",
    "after_verifier",
    "asks_person",
    "awaits_comparison",
    "drawing_of",
    "images_of_round",
    "is_drawn",
    "limit_of",
    "outcome_of",
    "outcome_without_images",
]


def outcome_of(attempts: Sequence[Attempt], usage: Usage, context: GemsContext) -> Outcome | None:
    """Why the run should end now, or None for another round. Called after each verification."""
    best = best_attempt(attempts)
    if best is None:
        return "failed"
    if best.flawless:
        return "solved"
    is_stalled = attempts[-1].round - best.round >= context.patience
    reason = limit_of(attempts, usage, context) or ("stalled" if is_stalled else None)
    return "solved" if reason and best.passed and best.judged != "rejected" else reason


def asks_person(context: GemsContext, outcome: Outcome | None) -> bool:
    """Whether a person is asked about the images that were just verified. A failed run ends without asking."""
    return outcome != "failed" and (context.review == "rounds" or (context.review == "end" and outcome is not None))


def limit_of(attempts: Sequence[Attempt], usage: Usage, context: GemsContext) -> Outcome | None:
    """Why there cannot be another round, or None if there can."""
    last = attempts[-1]
    # A flawless image ends the looks at its neighbours, too; a person may reject it.
    is_cut_short = not last.verified and not any(attempt.flawless for attempt in attempts)
    if last.round >= context.max_rounds:
        return "rounds"
    # Another round costs one refinement, one image and one verification: do not start a round that cannot be finished.
    if is_cut_short or context.budget.exhausted(usage, chat_calls=2, images=1):
        return "budget"
    return None


def after_intake(state: GemsState) -> Sequence[Literal["retrieve_memory", "decomposer", "store_memory"]]:
    """To memory and the decomposer, in parallel; straight to the end if an earlier run's image is reused.

    A run that is reopened since its decomposer had failed may have the planner's draft already.
    """
    if state.get("outcome"):
        return ["store_memory"]
    return ["decomposer"] if proposals_of(state) else ["retrieve_memory", "decomposer"]


def drawing_of(state: GemsState) -> list[Send]:
    """The drawing of a round: edits of the best image are sent to the editor, other proposals to the generator."""
    proposals, best = proposals_of(state), best_attempt(state["attempts"])
    assignments = [
        Assignment(
            run_id=state["run_id"],
            seed=state["seed"],
            round=round_of(state),
            proposal=proposal,
            place=place,
            places=len(proposals),
            edit_from=best if proposal.strategy == "edit" else None,
            requirements=state["requirements"],
            checks=state.get("checks") or [],
            usage=state["usage"],
        )
        for place, proposal in enumerate(proposals)
    ]
    return [Send("editor" if assignment["edit_from"] else "generator", assignment) for assignment in assignments]


def after_planner(state: GemsState) -> Literal["skills", "cross_check"]:
    """To the skills while the planner calls them; to the comparison with the requirements once there is a draft."""
    planning = state.get("planning") or []
    last = planning[-1] if planning else None
    return "skills" if not proposals_of(state) and isinstance(last, AIMessage) and last.tool_calls else "cross_check"


def after_cross_check(state: GemsState) -> list[Send | Literal["store_memory"]]:
    """To the drawing of each proposal; to the end if a branch gave up."""
    return ["store_memory"] if state.get("outcome") else [*drawing_of(state)]


def awaits_comparison(state: GemsState) -> bool:
    """Whether the draft is still compared with the requirements, and the comparison will send the run on."""
    return state.get("compared") is False


def after_generator(state: GemsState) -> Sequence[Literal["verifier", "store_memory"]]:
    """To the verifier once there are images, or reasons why there are none.

    A generator that was handed the whole state has drawn nothing; it has sent what is to be drawn, or the comparison
    will.
    """
    if state.get("outcome"):
        return ["store_memory"]
    return ["verifier"] if state.get("undrawn") or images_of_round(state) else []


def images_of_round(state: GemsState) -> list[Attempt]:
    """The attempts of the round that is drawn or was drawn last."""
    return [attempt for attempt in state["attempts"] if attempt.round == round_of(state)]


def is_drawn(state: GemsState) -> bool:
    """Whether every proposal of the round has an image, or a reason why it has none.

    One that has neither was sent again, when a run went on after an error, and brings the run back to the verifier.
    """
    if not state.get("round"):  # an older version has drawn it, all in one task
        return True
    places = len(proposals_of(state))
    drawn_places = {attempt.candidate % max(1, places) for attempt in images_of_round(state)}
    return len(drawn_places) + len(state.get("undrawn") or []) >= places


def outcome_without_images(state: GemsState, context: GemsContext) -> Outcome | None:
    """Why a run ends in whose round nothing was drawn; None if the refiner may reword what was refused.

    A refused round counts as one.
    """
    undrawn, attempts = state.get("undrawn") or [], state["attempts"]
    if set(undrawn) == {"refused"}:
        rounds = len(state["refused"]) + (attempts[-1].round if attempts else 0)
        return None if rounds < context.max_rounds else "rounds" if attempts else "failed"
    return "failed" if "failed" in undrawn else "budget"


def after_refiner(state: GemsState) -> list[Send | Literal["store_memory"]]:
    """To the drawing of each proposal; to the end if no prompt can mend what failed."""
    return ["store_memory"] if state.get("outcome") else [*drawing_of(state)]


def after_verifier(state: GemsState) -> Sequence[Literal["review", "refiner", "store_memory"]]:
    """To the person who reviews, to the refiner for another round, or to the end."""
    if not is_drawn(state):
        return []
    if state.get("in_review"):
        return ["review"]
    return ["store_memory" if state.get("outcome") else "refiner"]


def after_review(state: GemsState) -> list[Send | Literal["verifier", "refiner", "store_memory"]]:
    """Where the person's decision sends the run."""
    review = state.get("review")
    if state.get("outcome") or review is None:
        return ["store_memory"]
    if review.action == "edit_prompt":
        return [*drawing_of(state)]
    return ["verifier" if review.action == "edit_requirements" else "refiner"]
