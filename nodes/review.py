"""Asks a person: accept, reject with a comment, edit the prompt, edit the requirements, or stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from gems.graph.context import GemsContext
from gems.graph.routing import limit_of
from gems.graph.state import Attempt, GemsState, Requirement, Review, all_asked, best_attempt
from gems.models.generators import ImageGenerator, objection_to
from gems.nodes.resources import Node, Resources

__all__ = ["make_review"]


def make_review(resources: Resources) -> Node:
    """The node that shows what was made, waits for a ``Review``, and does what it says."""

    def review(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        context, attempts = resources.context(runtime), state["attempts"]
        limit = limit_of(attempts[-1], state["usage"], context)
        shown = _shown(state)
        question, fault = _question(state, shown, ends=limit is not None), ""
        while True:
            answer = interrupt({**question, "fault": fault}, response_schema=Review)
            fault = _fault(answer, question["actions"], attempts, resources.generator(context))
            if not fault:
                break
        if answer.action == "stop":
            return GemsState(outcome="cancelled", in_review=False)
        if answer.action == "accept":
            taken = next((a for a in attempts if a.image.sha256 == answer.image), shown)
            return _judged(state, taken, "accepted") | GemsState(outcome="accepted")
        if answer.action == "edit_requirements":
            return _asking(state, answer)
        told = _judged(state, shown, "rejected") | GemsState(outcome=None, review=answer)
        if answer.action == "edit_prompt":
            prompt = " ".join(answer.prompt.split())
            told |= GemsState(draft=prompt, strategy="person")
            event = {"event": "prompt", "round": attempts[-1].round + 1, "strategy": "person", "prompt": prompt}
            runtime.stream_writer(event)
        return told

    return review


def _shown(state: GemsState) -> Attempt:
    """The image in question: the latest round's best, or what the run would end with."""
    attempts = state["attempts"]
    latest = attempts if state.get("outcome") else [a for a in attempts if a.round == attempts[-1].round]
    shown = best_attempt(latest)
    assert shown is not None
    return shown


def _question(state: GemsState, shown: Attempt, *, ends: bool) -> dict[str, Any]:
    """What the person is told, as JSON."""
    further = [] if ends else ["reject", "edit_prompt"]
    return {
        "kind": "gems_review",
        "prompt": state["prompt"],
        "round": shown.round,
        "image": shown.image.model_dump(mode="json"),
        "generation_prompt": shown.prompt,
        "score": shown.score,
        "requirements": [r.model_dump(mode="json") for r in all_asked(state)],
        "verdicts": [v.model_dump(mode="json") for v in shown.answers],
        "would_end": state.get("outcome"),
        "actions": ["accept", *further, "edit_requirements", "stop"],
    }


def _fault(answer: Review, actions: Sequence[str], attempts: Sequence[Attempt], generator: ImageGenerator) -> str:
    """Why the answer cannot be followed, so that the person is asked again; empty if it can."""
    if answer.action not in actions:
        return f"{answer.action} needs another round, and there is none left: {', '.join(actions)}"
    if answer.action == "accept" and answer.image and answer.image not in [a.image.sha256 for a in attempts]:
        return f"no attempt of this run has the image {answer.image[:12]}..."
    return (objection_to(generator, answer.prompt) or "") if answer.action == "edit_prompt" else ""


def _judged(state: GemsState, attempt: Attempt, word: str) -> GemsState:
    attempts = [a.model_copy(update={"judged": word}) if a == attempt else a for a in state["attempts"]]
    best = best_attempt(attempts)
    assert best is not None
    return GemsState(attempts=attempts, image=best.image, score=best.score, in_review=False)


def _asking(state: GemsState, answer: Review) -> GemsState:
    """Other requirements: every image is looked at anew, so that they can be compared."""
    requirements = [
        Requirement(id=f"r{n}", question=" ".join(asked.question.split()), kind=asked.kind)
        for n, asked in enumerate(answer.requirements, 1)
    ]
    cleared = {"verdicts": (), "checks": (), "score": 0.0}
    attempts = [a.model_copy(update=cleared) for a in state["attempts"]]
    return GemsState(requirements=requirements, attempts=attempts, outcome=None, review=answer, in_review=False)
