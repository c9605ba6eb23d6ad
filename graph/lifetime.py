"""When a graph's models are loaded, and when its models, threads and files are freed."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from langgraph.graph.state import CompiledStateGraph

from gems.errors import InputError
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.context import GemsContext
from gems.nodes.resources import Resources
from gems.nodes.runnables import resources_of_node

__all__ = ["close", "open_graph", "warm"]


class open_graph:  # noqa: N801 - used like a function
    """The agent graph for a ``with`` or ``async with`` block, after which its models, threads and files are freed.

    ::

        async with gems.open_graph(mllm="openai:gpt-5") as graph:
            result = await graph.ainvoke({"prompt": "three red cars"})

    Args:
        graph: A graph from ``build_graph``; None builds one.
        **parts: The arguments of ``build_graph`` for a graph that is built here.

    Raises:
        InputError: As ``build_graph`` does; or both a graph and parts are given.
    """

    def __init__(self, graph: GemsGraph | None = None, **parts: Any) -> None:
        if graph is not None and parts:
            raise InputError("give a graph, or the arguments of build_graph, not both")
        self._graph = graph if graph is not None else build_graph(**parts)
        resources_in(self._graph)

    def __enter__(self) -> GemsGraph:
        return self._graph

    def __exit__(self, *_: object) -> None:
        close(self._graph)

    async def __aenter__(self) -> GemsGraph:
        return self._graph

    async def __aexit__(self, *_: object) -> None:
        end: Future[None] = Future()
        thread = threading.Thread(target=self._close, args=(end,), name="gems-close")
        thread.start()
        await asyncio.wrap_future(end)
        thread.join()  # it has nothing left to do

    def _close(self, end: Future[None]) -> None:
        end.set_running_or_notify_cancel()  # who is cancelled meanwhile cancels only the wait
        try:
            close(self._graph)
        except BaseException as error:
            end.set_exception(error)
        else:
            end.set_result(None)


def close(graph: GemsGraph) -> None:
    """Free the models, threads and files of a graph, as far as no other graph uses them.

    Runs must have ended. What you gave as objects (models, stores, checkpointers) stays yours, and open. A graph that
    is used again opens all of it anew.

    Raises:
        InputError: The graph is none of ``build_graph``.
    """
    resources_in(graph).close()


def warm(graph: GemsGraph, context: GemsContext | None = None) -> None:
    """Load the models that a run would load, so that the first one does not wait for them.

    Args:
        graph: A graph from ``build_graph``.
        context: The settings of the runs to come.

    Raises:
        InputError: The graph is none of ``build_graph``, or a setting cannot be used.
        BackendError: A model cannot be loaded.
    """
    resources_in(graph).load(context)


def resources_in(graph: GemsGraph) -> Resources:
    """The models and stores of a graph; its copies have the same.

    Raises:
        InputError: The graph is none of ``build_graph``.
    """
    nodes = graph.builder.nodes if isinstance(graph, CompiledStateGraph) else {}
    resources = resources_of_node(nodes["intake"].runnable) if "intake" in nodes else None
    if resources is None:
        raise InputError("give a graph from gems.build_graph")
    return resources
