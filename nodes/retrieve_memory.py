"""Finds the experience of earlier runs that bears on this prompt."""

from __future__ import annotations

from langgraph.errors import NodeError
from langgraph.runtime import Runtime

from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Usage
from gems.memory.experience import recall
from gems.nodes.memory_prompt import within_tokens
from gems.nodes.meter import Stopwatch
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, work_without

__all__ = ["make_retrieve_memory", "without_memory"]


def make_retrieve_memory(resources: Resources) -> Node:
    """The node that fills ``memories``."""

    def retrieve_memory(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        watch, context = Stopwatch(), resources.context(runtime)
        store, memories = resources.memory(context, runtime), []
        if store is not None and context.memories:
            generator = resources.generator(context).name
            relevant = recall(store, context.user, state["prompt"], context.memories, generator=generator)
            memories = within_tokens(relevant, context.memory_tokens)
        runtime.stream_writer({"event": "memories", "count": len(memories)})
        return GemsState(memories=memories, usage=Usage(seconds=watch.seconds))

    return retrieve_memory


def without_memory(state: GemsState, error: NodeError) -> Goto:
    """Continue without memories: a memory that cannot be read never costs the run."""
    return work_without(state, error, "planner", memories=[])
