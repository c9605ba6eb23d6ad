"""How chat models are told of what was retrieved: as data between tags, and within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages.utils import count_tokens_approximately

from gems.graph.state import Memory
from gems.models.fencing import fence

__all__ = ["tell", "within"]

_LONGEST = 600
"""Characters of one prompt or lesson: a past prompt may be as long as a prompt can be."""


def tell(memories: Sequence[Memory]) -> str:
    """What is put into a chat model's prompt; empty without memories."""
    return fence("memory", "\n".join(map(_recollection, memories))) if memories else ""


def within(memories: Sequence[Memory], tokens: int) -> list[Memory]:
    """The first of them that can be told in about so many tokens."""
    kept: list[Memory] = []
    for memory in memories:
        if count_tokens_approximately([tell([*kept, memory])]) > tokens:
            break
        kept.append(memory)
    return kept


def _recollection(memory: Memory) -> str:
    ended = "solved" if memory.solved else "not solved"
    parts = [f"Asked: {_cut(memory.prompt)}", f"Best generation prompt ({ended}): {_cut(memory.best_prompt)}"]
    if memory.count > 1:
        parts.append(f"Solved in {memory.solved_count} of {memory.count} runs")
    for failure in memory.avoid:
        if failure.prompt != memory.best_prompt:
            parts.append(f"Did not work: {_cut(failure.prompt)} (missed: {_cut(' '.join(failure.missed))})")
        elif failure.missed:
            parts.append(f"It missed: {_cut(' '.join(failure.missed))}")
    if memory.experience:
        parts.append(f"Learned: {_cut(memory.experience)}")
    return "- " + " | ".join(parts)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."
