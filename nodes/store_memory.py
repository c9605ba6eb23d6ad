"""Ends the run: remembers it, and says how it went."""

from __future__ import annotations

from langgraph.errors import NodeError
from langgraph.runtime import Runtime

from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Usage, best_attempt
from gems.memory.trajectory import Trajectory, remember
from gems.nodes.meter import Stopwatch
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, work_without

__all__ = ["make_store_memory", "unremembered"]


def make_store_memory(resources: Resources) -> Node:
    """The node that every exit goes through."""

    def store_memory(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        watch, context = Stopwatch(), GemsContext.resolve(runtime.context)
        runtime.stream_writer({"event": "outcome", "outcome": state["outcome"]})
        best = best_attempt(state["attempts"])
        store = resources.memory(context, runtime)
        # Only what was looked at is worth remembering.
        if store is not None and best is not None and best.verified:
            trajectory = Trajectory.from_state(state, generator=context.generator, mllm=context.mllm)
            remember(store, context.user, state["run_id"], trajectory)
        return GemsState(usage=Usage(seconds=watch.seconds))

    return store_memory


def unremembered(state: GemsState, error: NodeError) -> Goto:
    """A memory that cannot be written to costs the next run its help, never this run its result."""
    return work_without(state, error, "__end__")
