"""Looks at each new image and answers every requirement in one structured call."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from gems.faces import in_thread
from gems.graph.context import GemsContext
from gems.graph.routing import asks_person, images_of_round, is_drawn, outcome_of, outcome_without_images
from gems.graph.state import Attempt, GemsState, Requirement, best_attempt, round_of
from gems.nodes.ask import image_block
from gems.nodes.examiner import Examiner, ends_round, inspected, new_checks
from gems.nodes.meter import metered
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, report_failure

__all__ = ["make_verifier", "without_verdicts"]


def make_verifier(resources: Resources) -> Node:
    """The node that verifies the round's attempts, and decides whether the run ends here."""

    async def verifier(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        context, requirements = resources.context(runtime), state["requirements"]
        if not is_drawn(state):
            return GemsState()
        if not images_of_round(state):
            return GemsState(in_review=False, outcome=outcome_without_images(state, context))
        checks = new_checks(state.get("checks") or [], requirements)
        with metered(state, "verifier", context) as meter:
            examiner = await in_thread(Examiner, resources, context, meter, [*requirements, *checks], list[str]())
            attempts = list(state["attempts"])
            waiting = [index for index, attempt in enumerate(attempts) if not attempt.verified]
            while waiting and not any(map(ends_round, attempts)):
                wave = waiting[: context.verify_concurrency]
                inspections = await examiner.inspections([attempts[index] for index in wave])
                for index, inspection in zip(wave, inspections, strict=False):
                    attempts[index] = inspected(attempts[index], inspection, len(requirements), runtime)
                waiting = waiting[len(inspections) :] if inspections else []  # none: the budget has no room for more
            best = best_attempt(attempts)
            outcome = outcome_of(attempts, meter.total, context)
        if examiner.errors and outcome != "solved":
            outcome = "failed"
        return GemsState(
            attempts=attempts,
            checks=checks,
            in_review=asks_person(context, outcome),
            messages=await in_thread(_pictures, resources, context, examiner.requirements, state, attempts),
            image=best.image if best else None,
            score=best.score if best else 0.0,
            outcome=outcome,
            errors=[*examiner.errors, *dict.fromkeys(examiner.notes)],
            usage=meter.usage,
            refused=Overwrite(_still_refused(state)),  # type: ignore[typeddict-item]
        )

    return verifier


def _still_refused(state: GemsState) -> list[str]:
    """The refused prompts of which no image of this round was drawn: a provider may change its mind."""
    drawn_prompts = {attempt.prompt for attempt in images_of_round(state)}
    return [prompt for prompt in state["refused"] if prompt not in drawn_prompts]


def _pictures(
    resources: Resources,
    context: GemsContext,
    requirements: Sequence[Requirement],
    state: GemsState,
    attempts: Sequence[Attempt],
) -> list[BaseMessage]:
    """A small picture of each attempt that was just verified, here or as it arrived, with its verdicts in words."""
    if not resources.thumbnails:
        return []
    images = resources.images(context)
    return [
        AIMessage(
            [
                {"type": "text", "text": _in_words(attempt, requirements)},
                image_block(images.read(attempt.image), resources.thumbnails, "webp"),
            ],
            id=f"{attempt.round}.{attempt.candidate}-{attempt.image.sha256[:12]}",
        )
        for old, attempt in zip(state["attempts"], attempts, strict=True)
        if attempt.verified and (not old.verified or attempt.round == round_of(state))
    ]


def _in_words(attempt: Attempt, requirements: Sequence[Requirement]) -> str:
    questions = {r.id: r.question for r in requirements}
    lines = [
        f"{v.answer}: {questions[v.requirement_id]} {v.reason}".rstrip() for v in attempt.answers if v.answer != "yes"
    ]
    passed = len(attempt.answers) - len(lines)
    first = f"Round {attempt.round}: {passed} of {len(attempt.answers)} passed, score {attempt.score:.2f}"
    flaws = [f"Badly made: {attempt.flaws}"] if attempt.flaws else []
    return "\n".join([first, *lines, *flaws, f"Drawn from: {attempt.prompt}", f"/artifacts/{attempt.image.sha256}.png"])


def without_verdicts(state: GemsState, error: NodeError) -> Goto:
    """End the run after the verifier has failed for good. The images so far are still the result."""
    best = best_attempt(state["attempts"])
    return report_failure(state, error, "store_memory", outcome="failed", image=best.image if best else None)
