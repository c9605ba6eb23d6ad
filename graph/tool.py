"""The whole agent as one tool of another agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import BaseModel, Field

from gems.errors import GemsError, InputError
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.state import GemsInput, GemsOutput, best_attempt

__all__ = ["as_tool"]

DESCRIPTION: Final = (
    "Draw an image. Say in one plain sentence or two what it shows: things, how many, how they look and where they "
    "are. The image is checked against every one of these, and drawn again until it is right or the budget is spent."
)


class Drawing(BaseModel):
    """What the tool is given."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000, description="What the image shows, in plain words.")]


def as_tool(
    graph: GemsGraph | None = None,
    *,
    name: str = "generate_image",
    description: str = DESCRIPTION,
    settings: Mapping[str, Any] | None = None,
) -> BaseTool:
    """The agent as a tool, for ``create_agent``, a ``ToolNode`` or a call of your own.

    Called within a graph, it runs as a subgraph: checkpoints, store, context, interrupts and streams are the parent's.

    Args:
        graph: From ``build_graph``; built anew if not given.
        name: What the calling model calls it.
        description: What the calling model is told of it.
        settings: Fields of ``GemsContext`` for a graph that is built here.

    Returns:
        A tool that takes ``prompt``, answers with JSON (image, outcome, score, what did not pass), and has the
        ``GemsOutput`` as its message's artifact. A prompt that cannot be drawn, and models that fail, are told to the
        calling model as an error.

    Raises:
        InputError: A setting is not known or out of its bounds, or the graph that is given has settings of its own.
    """
    if graph is not None and settings is not None:
        raise InputError("give as_tool a graph or settings: a graph has its own, from build_graph(settings=...)")
    drawing = graph if graph is not None else build_graph(settings=settings)

    def draw(prompt: str, config: RunnableConfig) -> tuple[str, GemsOutput]:
        try:
            result = drawing.invoke(GemsInput(prompt=prompt), config)
        except GemsError as error:
            raise ToolException(str(error)) from error
        return _told(result)

    async def adraw(prompt: str, config: RunnableConfig) -> tuple[str, GemsOutput]:
        try:
            result = await drawing.ainvoke(GemsInput(prompt=prompt), config)
        except GemsError as error:
            raise ToolException(str(error)) from error
        return _told(result)

    return StructuredTool.from_function(
        draw,
        adraw,
        name=name,
        description=description,
        args_schema=Drawing,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


def _told(result: Any) -> tuple[str, GemsOutput]:
    """What the calling model reads, and what its program gets."""
    best = best_attempt(result["attempts"])
    questions = {r.id: r.question for r in result["requirements"]}
    told = {
        "image": result["image"].uri if result["image"] else None,
        "outcome": result["outcome"],
        "score": round(result["score"], 3),
        "did_not_pass": [questions[v.requirement_id] for v in best.verdicts if v.answer != "yes"] if best else [],
        "images_made": result["usage"].images,
        **({"errors": result["errors"]} if result["errors"] else {}),
    }
    return json.dumps(told, ensure_ascii=False), result
