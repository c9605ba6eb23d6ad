"""Compares the draft with the requirements before anything is drawn: two accounts of one prompt, from two calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, cast

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.runtime import Runtime

from gems.faces import in_thread
from gems.graph.context import GemsContext, Role
from gems.graph.state import GemsState, Requirement, proposals_of
from gems.models.failures import is_of_account
from gems.models.generators import guide_of
from gems.nodes.agreement import forgotten, is_invented, left_out
from gems.nodes.ask import ask
from gems.nodes.decomposer import (
    AddedRequirements,
    answer_of,
    decomposition,
    mapped,
    numbered,
    requirements_of,
    whole_wish,
)
from gems.nodes.meter import Meter, metered
from gems.nodes.planner import planning_task
from gems.nodes.prompt_checks import Part, Plan, form_for, in_front, lost_words, unreadable, without_prompt
from gems.nodes.proposing import announce, with_others
from gems.nodes.question_checks import Mapped, is_mapped, stands_for
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import describe, is_backend_failure

__all__ = ["make_cross_check"]

T = TypeVar("T")

_CALLS_AFTER: Final = 1
"""Chat calls that repairs must leave: the first look at an image."""


def make_cross_check(resources: Resources) -> Node:
    """The node between planning and drawing.

    A requirement of which neither the prompt nor the draft speaks is dropped. The decomposer is asked once for what the
    draft keeps of the prompt and no requirement asks for; the planner, for what a requirement asks for and the draft
    says nothing of.
    """

    async def cross_check(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        if state.get("outcome"):  # a branch before this one gave up
            return GemsState(compared=True)
        context, before = resources.context(runtime), state["requirements"]
        with metered(state, "cross_check", context) as meter:  # one for both repairs: a stop may come between them
            repairs = _Repairs(meter)
            requirements, notes = await _agreed_requirements(resources, context, state, repairs)
            draft = await _agreed_draft(resources, context, state, requirements, repairs)
        if repairs.locked_out:
            return GemsState(outcome="failed", compared=True, usage=meter.usage, errors=repairs.errors)
        if requirements != before:
            rows = [requirement.model_dump() for requirement in requirements]
            runtime.stream_writer({"event": "requirements", "requirements": rows, "notes": notes})
        earlier = proposals_of(state)
        first = earlier[0].model_copy(update={"prompt": draft})
        # Somebody who edits the state may have given several.
        proposals = [first, *earlier[1:]] if earlier[1:] else await with_others(first, resources, context, state)
        announce(runtime, 1, proposals, announced=earlier)
        return GemsState(
            requirements=requirements,
            proposals=proposals,
            compared=True,
            usage=meter.usage,
            errors=repairs.errors,
            notes=notes,
        )

    return cross_check


class _Repairs:
    """Makes calls that a run can do without.

    Attributes:
        errors: Those that failed, one line each.
        locked_out: Whether a chat model's key or account was refused.
    """

    def __init__(self, meter: Meter) -> None:
        self.errors, self.locked_out, self._meter = list[str](), False, meter

    async def make(self, role: Role, call: Callable[[Meter], Awaitable[T]], otherwise: T) -> T:
        """What the call returns; ``otherwise`` if the budget has no room for it, or it fails.

        What an interrupted try of the node has paid for is not asked for again.
        """
        meter = self._meter
        if role in meter.done:
            return cast(T, meter.done[role])
        meter.play(role)
        try:
            with meter.optional(_CALLS_AFTER):
                if meter.must_stop():
                    return otherwise
                meter.done[role] = result = await call(meter)
        except Exception as error:
            if not is_backend_failure(error):
                raise
            self.errors.append(describe(error, "cross_check"))
            self.locked_out |= is_of_account(error)
            return otherwise
        return result


async def _agreed_requirements(
    resources: Resources, context: GemsContext, state: GemsState, repairs: _Repairs
) -> tuple[list[Requirement], list[str]]:
    """The requirements without what was invented, and with what was left out; notes, if they may still lack some."""
    prompt, draft, parts = state["prompt"], proposals_of(state)[0].prompt, _parts(state)
    by_question = {mapped(prompt, requirement): requirement for requirement in state["requirements"]}
    questions = list(by_question)
    sound = [q for q in questions if not is_invented(q, [other for other in questions if other is not q], draft, parts)]
    sound = sound or questions
    requirements = numbered([by_question[q] for q in sound])
    missing = left_out(prompt, draft, parts, sound) if is_mapped(questions) else []
    if not missing:
        return requirements, []

    async def ask_for_more(meter: Meter) -> tuple[list[Requirement], bool]:
        request = HumanMessage(MISSING.format(words=", ".join(missing)))
        conversation = [*decomposition(prompt), AIMessage(answer_of(requirements)), request]
        model = await in_thread(resources.chat, context, "decomposer")
        answer = await ask(meter, model, AddedRequirements, conversation)
        additions = [
            added
            for added in requirements_of(prompt, answer.form)
            if stands_for(missing, q := mapped(prompt, added)) and not is_invented(q, sound, draft, parts)
        ]
        return additions, answer.in_part

    additions, is_cut = await repairs.make("decomposer", ask_for_more, (list[Requirement](), False))
    together = numbered([*requirements, *additions])
    return whole_wish(prompt, together) if is_cut else (together, [])


async def _agreed_draft(
    resources: Resources,
    context: GemsContext,
    state: GemsState,
    requirements: Sequence[Requirement],
    repairs: _Repairs,
) -> str:
    """The draft, written again if it has lost something; if that does not help, with the prompt in front of it."""
    prompt, draft, parts = state["prompt"], proposals_of(state)[0].prompt, _parts(state)
    if draft == prompt:
        return draft
    questions = [mapped(prompt, requirement) for requirement in requirements]
    generator, losses = await in_thread(resources.generator, context), _losses(prompt, draft, parts, questions)

    async def write_again(meter: Meter) -> tuple[str, list[Part]]:
        conversation = [
            *await in_thread(planning_task, state, generator),
            AIMessage(draft),
            HumanMessage(WRITE_AGAIN.format(losses="\n".join(f"- {line}" for line in losses))),
        ]
        model = await in_thread(resources.chat, context, "planner")
        plan = (await ask(meter, model, form_for(Plan, prompt), conversation, blind=True)).form
        return " ".join(plan.prompt.split()), plan.parts

    if losses:
        other, other_parts = await repairs.make("planner", write_again, (draft, parts))
        still_lost = _losses(prompt, other, other_parts, questions)
        if len(still_lost) < len(losses) and not await in_thread(unreadable, other, generator):
            draft, parts, losses = other, other_parts, still_lost
    if await in_thread(guide_of, generator):
        draft = without_prompt(prompt, draft, parts)
    return await in_thread(in_front, prompt, draft, generator) if losses else draft


def _losses(prompt: str, draft: str, parts: Sequence[Part], questions: Sequence[Mapped]) -> list[str]:
    """What a draft has lost: words of the prompt, and questions."""
    return [*lost_words(prompt, draft, parts), *(q.question for q in forgotten(prompt, draft, parts, questions))]


def _parts(state: GemsState) -> list[Part]:
    return [Part(words=words, phrase=phrase) for words, phrase in state.get("parts") or []]


MISSING: Final = "No question stands for: {words}. Add those that are missing, and hand in nothing else."
WRITE_AGAIN: Final = """\
The prompt has lost these words of the wish, or says nothing of what these questions ask:
{losses}

Write it again, with all of that. If it says so in other words, name those in parts."""
