"""The whole agent as a tool of another agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.pregel.protocol import PregelProtocol
from pydantic import BaseModel, Field

from gems.errors import GemsError, InputError
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.state import GemsInput, GemsOutput, best_attempt

__all__ = ["as_tool", "graph_for"]

DESCRIPTION: Final = (
    "Draw an image. Say in one plain sentence or two what it shows: things, how many, how they look and where they "
    "are. The image is checked against every one of these, and drawn again until it is right or the budget is spent."
)


class Drawing(BaseModel):
    """The tool's argument."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000, description="What the image shows, in plain words.")]


def as_tool(
    graph: GemsGraph | None = None,
    *,
    name: str = "generate_image",
    description: str = DESCRIPTION,
    settings: Mapping[str, Any] | None = None,
) -> BaseTool:
    """The agent as a tool for ``create_agent``, a ``ToolNode`` or your own call.

    Called within a graph, it runs as a subgraph with the parent's checkpoints, store, context, interrupts and streams.

    Args:
        graph: A graph from ``build_graph``; None builds one.
        name: The tool's name for the calling model.
        description: The tool's description for the calling model.
        settings: Fields of ``GemsContext`` for a graph that is built here.

    Returns:
        A tool that takes ``prompt``, answers with JSON (image, outcome, score, what did not pass), and has the
        ``GemsOutput`` as its message's artifact. The calling model gets an error message if the prompt cannot be drawn
        or a model fails; if the run ended without an image, that is the JSON, which says why.

    Raises:
        InputError: A setting is unknown or out of bounds, both a graph and settings are given, or the graph is none.
    """
    drawing = graph_for(graph, settings, "as_tool")

    def draw(prompt: str, config: RunnableConfig) -> tuple[str, GemsOutput]:
        try:
            result = drawing.invoke(GemsInput(prompt=prompt), config)
        except GemsError as error:
            raise ToolException(str(error)) from error
        return _message_of(result)

    async def adraw(prompt: str, config: RunnableConfig) -> tuple[str, GemsOutput]:
        try:
            result = await drawing.ainvoke(GemsInput(prompt=prompt), config)
        except GemsError as error:
            raise ToolException(str(error)) from error
        return _message_of(result)

    return StructuredTool.from_function(
        draw,
        adraw,
        name=name,
        description=description,
        args_schema=Drawing,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


def graph_for(graph: GemsGraph | None, settings: Mapping[str, Any] | None, caller: str) -> GemsGraph:
    """The graph that is given, or one with these settings.

    Raises:
        InputError: Both are given, or either cannot be used.
    """
    if graph is None:
        return build_graph(settings=settings)
    if settings is not None:
        raise InputError(
            f"{caller} takes a graph or settings, not both: give the settings to build_graph(settings=...)"
        )
    if not isinstance(graph, PregelProtocol):
        raise InputError(
            f"{caller} takes a graph from build_graph, not {type(graph).__name__}; a model's name is a setting: "
            f"{caller}(settings={{'mllm': ...}})"
        )
    return graph


def _message_of(result: Any) -> tuple[str, GemsOutput]:
    """The text for the calling model, and the artifact for its program.

    Raises:
        ToolException: There is no image, which the calling model must not take for a success.
    """
    best = best_attempt(result["attempts"])
    questions = {r.id: r.question for r in result["requirements"]}
    is_checked = best is not None and best.verified  # an image that nobody has looked at did not pass everything
    message = {
        "image": result["image"].uri if result["image"] else None,
        "outcome": result["outcome"],
        "score": round(result["score"], 3) if is_checked or not best else None,
        "did_not_pass": [questions[v.requirement_id] for v in best.verdicts if v.answer != "yes"] if best else [],
        **({} if is_checked or not best else {"not_checked": list(questions.values())}),
        "images_made": result["usage"].images,
        **{name: result[name] for name in ("errors", "notes") if result[name]},
    }
    text = json.dumps(message, ensure_ascii=False)
    if not result["image"]:
        raise ToolException(text)
    return text, result
