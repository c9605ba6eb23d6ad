"""Finds the experience of earlier runs that bears on this prompt."""

from __future__ import annotations

from typing import Final

from langgraph.errors import NodeError
from langgraph.runtime import Runtime

from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Usage
from gems.memory.experience import recall
from gems.memory.opening import has_no_index
from gems.nodes.memory_prompt import within_tokens
from gems.nodes.meter import Stopwatch
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, work_without

__all__ = ["NO_INDEX", "make_retrieve_memory", "without_memory"]


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
        # A parent's store can lack an index. It would never recall anything, and the run would not differ.
        is_blind = store is not None and context.memories > 0 and not memories and has_no_index(store, context.user)
        return GemsState(memories=memories, errors=[NO_INDEX] if is_blind else [], usage=Usage(seconds=watch.seconds))

    return retrieve_memory


NO_INDEX: Final = (
    "retrieve_memory: the store of this graph has no index, so earlier runs are kept but never recalled; give it one, "
    "such as InMemoryStore(index={'dims': 384, 'embed': gems.init_embedder()}), or set memory=False"
)


def without_memory(state: GemsState, error: NodeError) -> Goto:
    """Continue without memories: a memory that cannot be read never costs the run."""
    return work_without(state, error, "planner", memories=[])
