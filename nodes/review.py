"""Asks a person: accept, reject with a comment, edit the prompt, edit the requirements, or stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from langgraph.runtime import Runtime
from langgraph.types import Overwrite, interrupt
from pydantic import ValidationError

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.routing import limit_of
from gems.graph.state import Attempt, GemsState, Proposal, Requirement, Review, all_asked, best_attempt
from gems.models.generators import ImageGenerator, objection_to
from gems.nodes.proposing import announce
from gems.nodes.resources import Node, Resources

__all__ = ["make_review"]

_FORM: Final = Review.model_json_schema()
_NAMES: Final = {"str": "a text", "list": "a list", "bool": "a truth value", "int": "a number", "float": "a number"}
"""What a person calls JSON's types."""


def make_review(resources: Resources) -> Node:
    """The node that shows the image in question, waits for a ``Review``, and carries it out."""

    def review(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        context, attempts = resources.context(runtime), state["attempts"]
        limit = limit_of(attempts, state["usage"], context)
        subject = _attempt_in_question(state)
        question, fault = _question(state, subject, ends=limit is not None), ""
        while True:
            # The schema as a dict: with the class, LangGraph would end the call with an error instead of asking again.
            response = interrupt({**question, "fault": fault}, response_schema=_FORM)
            try:
                answer = _read(response)
            except InputError as error:
                fault = str(error)
                continue
            fault = _fault(answer, question["actions"], attempts, lambda: resources.generator(context))
            if not fault:
                break
        if answer.action == "stop":
            return GemsState(outcome="cancelled", in_review=False)
        if answer.action == "accept":
            choice = next((a for a in attempts if a.image.sha256 == answer.image), subject)
            return _judged(state, choice, "accepted") | GemsState(outcome="accepted")
        if answer.action == "edit_requirements":
            return _with_requirements(state, answer)
        update = _judged(state, subject, "rejected") | GemsState(outcome=None, review=answer)
        if answer.action == "edit_prompt":
            draft = " ".join(answer.prompt.split())
            round_, proposals = attempts[-1].round + 1, [Proposal(prompt=draft, strategy="person")]
            update |= GemsState(round=round_, proposals=proposals, undrawn=Overwrite([]))  # type: ignore[typeddict-item]
            announce(runtime, round_, proposals)
        return update

    return review


def _attempt_in_question(state: GemsState) -> Attempt:
    """The best of the latest round or, if the run would end, the best of all."""
    attempts = state["attempts"]
    candidates = attempts if state.get("outcome") else [a for a in attempts if a.round == attempts[-1].round]
    best = best_attempt(candidates)
    assert best is not None
    return best


def _question(state: GemsState, subject: Attempt, *, ends: bool) -> dict[str, Any]:
    """The question to the person, as JSON."""
    another_round = [] if ends else ["reject", "edit_prompt"]
    return {
        "kind": "gems_review",
        "prompt": state["prompt"],
        "round": subject.round,
        "image": subject.image.model_dump(mode="json"),
        "generation_prompt": subject.prompt,
        "score": subject.score,
        "requirements": [r.model_dump(mode="json") for r in all_asked(state)],
        "verdicts": [v.model_dump(mode="json") for v in subject.answers],
        "would_end": state.get("outcome"),
        "actions": ["accept", *another_round, "edit_requirements", "stop"],
    }


def _read(response: Any) -> Review:
    """The person's answer as a review.

    Raises:
        InputError: It is none.
    """
    if not isinstance(response, Review | Mapping):
        kind = type(response).__name__
        raise InputError(f"the answer is {_NAMES.get(kind, kind)}; give an object, such as {{'action': 'accept'}}")
    if isinstance(response, Mapping):  # a form may send every field, and null stands for an empty one
        response = {name: value for name, value in response.items() if value is not None}
    try:
        return Review.model_validate(response)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"the answer's {location}: {reason}" if location else reason) from None


def _fault(
    answer: Review, actions: Sequence[str], attempts: Sequence[Attempt], generator: Callable[[], ImageGenerator]
) -> str:
    """Why the answer cannot be carried out, so that the person is asked again; empty if it can."""
    if answer.action not in actions:
        return f"{answer.action} needs another round, and none is left; choose {', '.join(actions)}"
    if answer.action == "accept" and answer.image and answer.image not in [a.image.sha256 for a in attempts]:
        return f"no attempt of this run has the image {answer.image[:12]}..."
    return (objection_to(generator(), answer.prompt) or "") if answer.action == "edit_prompt" else ""


def _judged(state: GemsState, attempt: Attempt, decision: str) -> GemsState:
    attempts = [a.model_copy(update={"judged": decision}) if a == attempt else a for a in state["attempts"]]
    best = best_attempt(attempts)
    assert best is not None
    return GemsState(attempts=attempts, image=best.image, score=best.score, in_review=False)


def _with_requirements(state: GemsState, answer: Review) -> GemsState:
    """Replace the requirements. Every image is verified again, so that the images can be compared."""
    requirements = [
        Requirement(id=f"r{n}", question=" ".join(requirement.question.split()), kind=requirement.kind)
        for n, requirement in enumerate(answer.requirements, 1)
    ]
    cleared = {"verdicts": (), "checks": (), "score": 0.0}
    attempts = [a.model_copy(update=cleared) for a in state["attempts"]]
    return GemsState(requirements=requirements, attempts=attempts, outcome=None, review=answer, in_review=False)
