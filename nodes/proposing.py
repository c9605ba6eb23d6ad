"""What a round draws: one prompt of the planner's or the refiner's, and others beside it that cost no chat call."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from langgraph.runtime import Runtime

from gems.faces import in_thread
from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Proposal, best_attempt
from gems.models.generators import objection_to
from gems.nodes.resources import Resources

__all__ = ["announce", "with_others"]


async def with_others(first: Proposal, resources: Resources, context: GemsContext, state: GemsState) -> list[Proposal]:
    """A round's proposals: the first one and, if the settings want more, the best prompt so far and the user's own."""
    if context.proposals == 1:
        return [first]
    return await in_thread(_several, first, resources, context, state)


def _several(first: Proposal, resources: Resources, context: GemsContext, state: GemsState) -> list[Proposal]:
    best, words = best_attempt(state["attempts"]), state["prompt"]
    other_proposals = [Proposal(prompt=best.prompt, strategy="reseed")] if best else []
    if not objection_to(resources.generator(context), words):
        other_proposals.append(Proposal(prompt=words, strategy="asked"))
    proposals = [first]
    for other in other_proposals:
        # An edit may have the prompt of the best attempt: from noise, that makes another image.
        prompts = [proposal.prompt for proposal in proposals if proposal.strategy != "edit"]
        if other.prompt not in (*prompts, *state["refused"]):
            proposals.append(other)
    return proposals[: context.proposals]


def announce(
    runtime: Runtime[GemsContext], round_: int, proposals: Sequence[Proposal], announced: Collection[Proposal] = ()
) -> None:
    """Stream an event for each proposal, but those that were announced."""
    for place, proposal in enumerate(proposals):
        if proposal not in announced:
            fields = {"strategy": proposal.strategy, "prompt": proposal.prompt}
            runtime.stream_writer({"event": "prompt", "round": round_, "proposal": place, **fields})
