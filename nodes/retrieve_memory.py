"""Finds past runs whose prompts are near to this one."""

from __future__ import annotations

from langgraph.errors import NodeError
from langgraph.runtime import Runtime

from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Usage
from gems.memory.trajectory import recall
from gems.nodes.meter import Stopwatch
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, work_without

__all__ = ["make_retrieve_memory", "without_memory"]


def make_retrieve_memory(resources: Resources) -> Node:
    """The node that fills ``memories``."""

    def retrieve_memory(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        watch, context = Stopwatch(), GemsContext.resolve(runtime.context)
        store = resources.memory(context, runtime)
        memories = recall(store, context.user, state["prompt"], context.memories) if store else []
        runtime.stream_writer({"event": "memories", "count": len(memories)})
        return GemsState(memories=memories, usage=Usage(seconds=watch.seconds))

    return retrieve_memory


def without_memory(state: GemsState, error: NodeError) -> Goto:
    """A memory that cannot be read costs its help, never the run."""
    return work_without(state, error, "planner", memories=[])
