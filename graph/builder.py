"""Builds the graph: every node and every normal edge is here.

Failure edges are the error handlers (``without_...``) beside their nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Final, TypeAlias

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import Checkpointer, RetryPolicy

from gems.graph.checkpointers import for_both_faces
from gems.graph.context import GemsContext
from gems.graph.context_schemas import RunContext
from gems.graph.parts import check_checkpointer, resources_of
from gems.graph.routing import (
    after_cross_check,
    after_generator,
    after_intake,
    after_planner,
    after_refiner,
    after_review,
    after_verifier,
)
from gems.graph.state import GemsInput, GemsOutput, GemsState
from gems.memory.image_store import ImageStore
from gems.models.generators import ImageGenerator
from gems.models.inspectors import Inspector
from gems.nodes.cross_check import make_cross_check
from gems.nodes.decomposer import make_decomposer, without_requirements
from gems.nodes.generator import make_editor, make_generator, without_image
from gems.nodes.intake import make_intake
from gems.nodes.planner import make_planner, make_skills, without_plan
from gems.nodes.refiner import make_refiner, without_refinement
from gems.nodes.resources import Node, Resources
from gems.nodes.retrieve_memory import make_retrieve_memory, without_memory
from gems.nodes.retry import RETRY
from gems.nodes.review import make_review
from gems.nodes.runnables import node_of, without_waits
from gems.nodes.store_memory import make_store_memory, unremembered
from gems.nodes.verifier import make_verifier, without_verdicts

__all__ = ["GemsGraph", "build_graph", "compile_graph"]

PURPOSES: Final = {
    "intake": "Checks the prompt and starts a run.",
    "retrieve_memory": "Finds earlier runs that bear on this prompt.",
    "planner": "Reads the skills that fit, and writes the first draft.",
    "skills": "Gives the planner the texts of the skills that it calls.",
    "decomposer": "Turns the prompt into yes/no requirements.",
    "cross_check": "Compares the draft with the requirements, and has each mended by the other.",
    "generator": "Draws a proposal's images from noise.",
    "editor": "Changes what is wrong in the best image.",
    "verifier": "Looks at each image and answers every requirement.",
    "review": "Asks a person.",
    "refiner": "Says what was learned, and writes the next draft.",
    "store_memory": "Remembers the run, and ends it.",
}
"""What each node is for; it becomes the node's metadata."""

GemsGraph: TypeAlias = CompiledStateGraph[GemsState, GemsContext, GemsInput, GemsOutput]
"""What ``build_graph`` returns: a compiled LangGraph graph with the input, output, state and context types of GEMS."""
_Graph: TypeAlias = StateGraph[GemsState, GemsContext, GemsInput, GemsOutput]


def build_graph(
    *,
    checkpointer: Checkpointer = None,
    store: BaseStore | str | PathLike[str] | None = None,
    mllm: BaseChatModel | str | None = None,
    planner: BaseChatModel | str | None = None,
    decomposer: BaseChatModel | str | None = None,
    verifier: BaseChatModel | str | None = None,
    refiner: BaseChatModel | str | None = None,
    generator: ImageGenerator | str | None = None,
    embedder: Embeddings | str | None = None,
    images: ImageStore | str | PathLike[str] | None = None,
    inspectors: Sequence[Inspector | str] | str = (),
    settings: Mapping[str, Any] | GemsContext | None = None,
    thumbnails: int = 0,
    retry: RetryPolicy = RETRY,
) -> GemsGraph:
    """Build the agent graph.

    Everything is optional. A part that is not given is made by its name in the run's ``GemsContext``. A name in place
    of an object is fixed for this graph, like a setting.

    Args:
        checkpointer: Persists every step, so that a killed run can be resumed. Leave it None inside a parent graph,
            whose checkpointer is then inherited.
        store: The memory: any LangGraph store, a folder, or a database's address. Inside a parent graph, the parent's
            store is used instead.
        mllm: A vision chat model for planner, decomposer, verifier and refiner, or its name, such as ``openai:gpt-5``.
        planner: Another chat model for the planner, or its name.
        decomposer: Another chat model for the decomposer, or its name.
        verifier: Another vision chat model for the verifier, or its name.
        refiner: Another chat model for the refiner, or its name.
        generator: An image generator, or its name.
        embedder: Embeds prompts for the memory that is opened when no store is given; or its name.
        images: The store of images, or its folder or address.
        inspectors: Your own tools that help the verifier, such as a detector that counts, and names of others.
        settings: Fields of ``GemsContext`` that are fixed for this graph, whatever the run's context says. Two graphs
            in one parent can thus differ. A model here can be your own code, ``python:MODULE:FACTORY``.
        thumbnails: Size in pixels of the small pictures of attempts in ``messages``; 0 for none.
        retry: How often, and after which errors, a node that calls a model is tried again.

    Returns:
        A compiled graph that takes ``GemsInput``, returns ``GemsOutput`` and has ``GemsContext`` as its context.

    Raises:
        InputError: A setting is unknown or out of bounds, or an argument is of the wrong type.
    """
    parts = {
        "store": store,
        "mllm": mllm,
        "planner": planner,
        "decomposer": decomposer,
        "verifier": verifier,
        "refiner": refiner,
        "generator": generator,
        "embedder": embedder,
        "images": images,
    }
    resources = resources_of(parts, inspectors, settings, thumbnails)
    return compile_graph(resources, context_schema=RunContext, checkpointer=checkpointer, retry=retry)


def compile_graph(
    resources: Resources,
    *,
    context_schema: type[Any],
    checkpointer: Checkpointer = None,
    retry: RetryPolicy = RETRY,
) -> GemsGraph:
    """The graph with these resources.

    Args:
        resources: Models, stores and fixed settings.
        context_schema: The class of the context that a caller gives to a run; see ``gems.graph.context_schemas``.
        checkpointer: As in ``build_graph``.
        retry: As in ``build_graph``.

    Raises:
        InputError: The checkpointer is none.
    """
    check_checkpointer(checkpointer)
    graph = StateGraph(GemsState, context_schema=context_schema, input_schema=GemsInput, output_schema=GemsOutput)
    _add_nodes(graph, resources, retry)
    _add_edges(graph)
    checkpointer = for_both_faces(checkpointer, resources.workers)
    return graph.compile(checkpointer=checkpointer, store=resources.store, name="gems")


def _add_nodes(graph: _Graph, resources: Resources, retry: RetryPolicy) -> None:
    # LangGraph's type hints do not know the error that a handler is given, hence Any.
    def add_with_handler(name: str, node: Node, handler: Any) -> None:
        metadata = {"description": PURPOSES[name]}
        graph.add_node(
            name,
            node_of(node, resources),
            metadata=metadata,
            retry_policy=retry,
            error_handler=without_waits(handler),
        )

    def add(name: str, node: Node, *, defer: bool = False) -> None:
        graph.add_node(name, node_of(node, resources), defer=defer, metadata={"description": PURPOSES[name]})

    add("intake", make_intake(resources))
    add_with_handler("retrieve_memory", make_retrieve_memory(resources), without_memory)
    add_with_handler("planner", make_planner(resources), without_plan)
    add("skills", make_skills(resources))
    add_with_handler("decomposer", make_decomposer(resources), without_requirements)
    # Deferred: it waits for both branches, however many turns the planner takes with its skills.
    add("cross_check", make_cross_check(resources), defer=True)
    add_with_handler("generator", make_generator(resources), without_image)
    add_with_handler("editor", make_editor(resources), without_image)
    add_with_handler("verifier", make_verifier(resources), without_verdicts)
    add("review", make_review(resources))
    add_with_handler("refiner", make_refiner(resources), without_refinement)
    add_with_handler("store_memory", make_store_memory(resources), unremembered)


def _add_edges(graph: _Graph) -> None:
    def add_choice(source: str, condition: Callable[[GemsState], Any], *ends: str) -> None:
        graph.add_conditional_edges(source, without_waits(condition), list(ends) or None)

    graph.add_edge(START, "intake")
    add_choice("intake", after_intake, "retrieve_memory", "decomposer", "store_memory")
    graph.add_edge("retrieve_memory", "planner")
    add_choice("planner", after_planner)
    graph.add_edge("skills", "planner")
    graph.add_edge("decomposer", "cross_check")
    add_choice("cross_check", after_cross_check, "generator", "store_memory")
    add_choice("generator", after_generator, "verifier", "store_memory")
    add_choice("editor", after_generator, "verifier", "store_memory")
    add_choice("verifier", after_verifier, "review", "refiner", "store_memory")
    add_choice("review", after_review, "generator", "verifier", "refiner", "store_memory")
    add_choice("refiner", after_refiner, "generator", "editor", "store_memory")
    graph.add_edge("store_memory", END)
