"""Ties the nodes together: every arrow of the machine is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import Checkpointer, RetryPolicy

from gems.graph.context import GemsContext
from gems.graph.routing import after_generator, after_planner, after_refiner, after_verifier
from gems.graph.state import GemsInput, GemsOutput, GemsState
from gems.memory.images import ImageStore
from gems.models.generators import ImageGenerator
from gems.models.inspectors import Inspector
from gems.nodes.decomposer import make_decomposer, without_requirements
from gems.nodes.generator import make_editor, make_generator, without_image
from gems.nodes.intake import intake
from gems.nodes.planner import make_planner, make_skills, without_plan
from gems.nodes.refiner import make_refiner, without_refinement
from gems.nodes.resources import Resources
from gems.nodes.retrieve_memory import make_retrieve_memory, without_memory
from gems.nodes.retry import RETRY
from gems.nodes.store_memory import make_store_memory, unremembered
from gems.nodes.verifier import make_verifier, without_verdicts

__all__ = ["GemsGraph", "build_graph"]

GemsGraph: TypeAlias = CompiledStateGraph[GemsState, GemsContext, GemsInput, GemsOutput]


def build_graph(
    *,
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
    mllm: BaseChatModel | None = None,
    generator: ImageGenerator | None = None,
    embedder: Embeddings | None = None,
    images: ImageStore | None = None,
    inspectors: Sequence[Inspector] = (),
    retry: RetryPolicy = RETRY,
) -> GemsGraph:
    """Build the agent graph.

    Everything is optional: what is not given is found by its name in the run's ``GemsContext``. What is given wins.

    Args:
        checkpointer: Persists every step, so that a killed run can go on. Leave it None inside a parent graph, whose
            checkpointer is then inherited.
        store: The memory, any LangGraph store; inside a parent graph, the parent's store wins.
        mllm: A vision chat model for planner, decomposer, verifier and refiner.
        generator: An image generator.
        embedder: Embeds prompts for the memory that is opened when no store is given.
        images: Where the images are kept.
        inspectors: Tools of your own that help the verifier: a detector for counts, a scorer of looks.
        retry: How often, and after which errors, a node that calls a model is tried again.

    Returns:
        A compiled graph: ``GemsInput`` in, ``GemsOutput`` out, ``GemsContext`` as context.
    """
    resources = Resources(
        mllm=mllm,
        image_generator=generator,
        embedder=embedder,
        store=store,
        image_store=images,
        own_inspectors=tuple(inspectors),
    )
    graph = StateGraph(GemsState, context_schema=GemsContext, input_schema=GemsInput, output_schema=GemsOutput)

    graph.add_node("intake", intake)
    graph.add_node("retrieve_memory", make_retrieve_memory(resources), retry_policy=retry, error_handler=without_memory)
    graph.add_node("planner", make_planner(resources), retry_policy=retry, error_handler=without_plan)
    graph.add_node("skills", make_skills(resources))
    graph.add_node("decomposer", make_decomposer(resources), retry_policy=retry, error_handler=without_requirements)
    # Deferred: it waits for both branches, however many turns the planner takes with its skills.
    graph.add_node("generator", make_generator(resources), defer=True, retry_policy=retry, error_handler=without_image)
    # Deferred like the generator: LangGraph plays a graph through to draw it, and would draw arrows that are not there.
    graph.add_node("editor", make_editor(resources), defer=True, retry_policy=retry, error_handler=without_image)
    graph.add_node("verifier", make_verifier(resources), retry_policy=retry, error_handler=without_verdicts)
    graph.add_node("refiner", make_refiner(resources), retry_policy=retry, error_handler=without_refinement)
    graph.add_node("store_memory", make_store_memory(resources), retry_policy=retry, error_handler=unremembered)

    graph.add_edge(START, "intake")
    graph.add_edge("intake", "retrieve_memory")
    graph.add_edge("intake", "decomposer")
    graph.add_edge("retrieve_memory", "planner")
    graph.add_conditional_edges("planner", after_planner)
    graph.add_edge("skills", "planner")
    graph.add_edge("decomposer", "generator")
    graph.add_conditional_edges("generator", after_generator)
    graph.add_conditional_edges("verifier", after_verifier)
    graph.add_conditional_edges("refiner", after_refiner)
    graph.add_conditional_edges("editor", after_generator)
    graph.add_edge("store_memory", END)
    return graph.compile(checkpointer=checkpointer, store=store, name="gems")
