"""The whole agent as a node of another graph, which writes one key of that graph's state and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from gems.errors import InputError
from gems.graph.builder import GemsGraph
from gems.graph.state import GemsInput, GemsOutput
from gems.graph.tool import graph_for

__all__ = ["as_node"]


def as_node(
    graph: GemsGraph | None = None,
    *,
    prompt: str = "prompt",
    output: str = "gems",
    settings: Mapping[str, Any] | None = None,
) -> Runnable[Any, dict[str, GemsOutput]]:
    """The agent as a node for ``add_node`` of your own graph.

    A compiled graph that is added as a node shares every key whose name is the same in both: it would overwrite a
    ``score`` or ``errors`` of yours. This node reads one key and writes one. It runs as a subgraph all the same, with
    the parent's checkpoints, store, context, interrupts and streams.

    Args:
        graph: A graph from ``build_graph``; None builds one.
        prompt: The key of your state that holds the prompt.
        output: The key of your state that gets the ``GemsOutput``.
        settings: Fields of ``GemsContext`` for a graph that is built here.

    Raises:
        InputError: A setting is unknown or out of bounds, both a graph and settings are given, or the graph is none.
    """
    drawing = graph_for(graph, settings, "as_node")

    def draw(state: Any, config: RunnableConfig) -> dict[str, GemsOutput]:
        result: Any = drawing.invoke(_input_of(state, prompt), config)
        return {output: result}

    async def adraw(state: Any, config: RunnableConfig) -> dict[str, GemsOutput]:
        result: Any = await drawing.ainvoke(_input_of(state, prompt), config)
        return {output: result}

    return RunnableLambda(draw, adraw, name="gems")


def _input_of(state: Any, key: str) -> GemsInput:
    """The input, from a parent's state of any kind: a mapping, or an object with attributes."""
    text = state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)
    if text is None:
        raise InputError(f"the state has no {key!r} to draw; name the prompt's key: as_node(prompt=...)")
    return GemsInput(prompt=text)
