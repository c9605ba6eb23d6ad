"""Puts retrieved experience into a chat model's prompt: as data between tags, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages.utils import count_tokens_approximately

from gems.graph.state import Memory
from gems.models.fencing import fence

__all__ = ["memory_text", "within_tokens"]

_LONGEST = 600
"""Characters of one prompt or lesson: an earlier prompt may have the maximum length."""


def memory_text(memories: Sequence[Memory]) -> str:
    """The text for a chat model's prompt; empty without memories."""
    return fence("memory", "\n".join(map(_recollection, memories))) if memories else ""


def within_tokens(memories: Sequence[Memory], tokens: int) -> list[Memory]:
    """The first memories, as many as fit into about this many tokens."""
    fitting: list[Memory] = []
    for memory in memories:
        if count_tokens_approximately([memory_text([*fitting, memory])]) > tokens:
            break
        fitting.append(memory)
    return fitting


def _recollection(memory: Memory) -> str:
    outcome = "solved" if memory.solved else "not solved"
    parts = [f"Asked: {_cut(memory.prompt)}", f"Best generation prompt ({outcome}): {_cut(memory.best_prompt)}"]
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
