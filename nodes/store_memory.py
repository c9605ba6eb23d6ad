"""Ends the run: reports the outcome and remembers the run."""

from __future__ import annotations

import zlib
from typing import Final

from langgraph.errors import NodeError
from langgraph.runtime import Runtime

from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsState, Usage, best_attempt
from gems.memory.experience import prune, remember
from gems.memory.trajectory import Trajectory
from gems.nodes.meter import Stopwatch
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, work_without
from gems.nodes.reuse import note_solved

__all__ = ["make_store_memory", "unremembered"]

_RUNS_PER_PRUNING: Final = 32
"""A memory is pruned to its limits after one run in this many on average, since that reads all of it. With a small
limit it is pruned more often: it is read in less time, and a few runs more would be much beyond the limit."""
_PRUNINGS_PER_LIMIT: Final = 32
"""A memory is pruned at least this often, on average, before it has grown by as much as its limit."""


def make_store_memory(resources: Resources) -> Node:
    """The node that every exit goes through."""

    def store_memory(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        watch, context = Stopwatch(), resources.context(runtime)
        runtime.stream_writer({"event": "outcome", "outcome": state["outcome"]})
        best = best_attempt(state["attempts"])
        store = resources.memory(context, runtime)
        # Nothing is learned from a run of whose image nothing is known, and a reused one was remembered before.
        is_known = best is not None and any(verdict.is_known for verdict in best.verdicts)
        if store is not None and best is not None and is_known and best.strategy != "reuse":
            run_id, generator = state["run_id"], resources.generator(context).name
            mllm = context.mllm if resources.mllm is None else type(resources.mllm).__name__
            trajectory = Trajectory.from_state(state, generator=generator, mllm=mllm)
            remember(store, context.user, run_id, trajectory)
            if trajectory.solved:
                note_solved(store, resources, context, state["prompt"], run_id, trajectory)
            if _is_due(run_id, context.memory_limit):
                prune(store, context.user, limit=context.memory_limit, days=context.memory_days)
        if store is not None:
            for attempt in state["attempts"]:  # another process may have forgotten a run with the same image
                resources.images(context).keep(attempt.image)
        return GemsState(usage=Usage(seconds=watch.seconds), errors=_uncounted(state, context.budget))

    return store_memory


def _uncounted(state: GemsState, budget: Budget) -> list[str]:
    """That no chat server has counted tokens, where a limit or a cost rests on them."""
    is_counted_on = budget.tokens is not None or budget.prices.dearest_token > 0
    has_answered = any(v.answer != "unsure" for attempt in state["attempts"] for v in attempt.answers)
    if not is_counted_on or not has_answered or state["usage"].tokens or not state["usage"].chat_calls:
        return []
    advice = "limit chat calls instead (--budget-chat-calls)"
    return [f"the chat server counts no tokens, so no limit on tokens holds, and their cost is unknown: {advice}"]


def _is_due(run_id: str, limit: int | None) -> bool:
    """Whether the memory is pruned after this run; the same run always gives the same answer."""
    runs = _RUNS_PER_PRUNING if limit is None else min(_RUNS_PER_PRUNING, limit // _PRUNINGS_PER_LIMIT)
    return zlib.crc32(run_id.encode()) % max(1, runs) == 0


def unremembered(state: GemsState, error: NodeError) -> Goto:
    """Keep the result: a memory that cannot be written to only costs later runs its help."""
    return work_without(state, error, "__end__", include_input_errors=True)
