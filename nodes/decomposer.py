"""Turns the user's own words into atomic requirements that can be checked one by one."""

from __future__ import annotations

from typing import Final

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field

from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Kind, Requirement
from gems.nodes.calls import ask, fence
from gems.nodes.meter import metered
from gems.nodes.resources import Node, Resources
from gems.nodes.retry import Goto, report_failure

__all__ = ["MAX_REQUIREMENTS", "Requirements", "make_decomposer", "without_requirements"]

MAX_REQUIREMENTS: Final = 40


class AtomicQuestion(BaseModel):
    """One thing to check."""

    question: str = Field(min_length=1, max_length=500, description="A yes/no question; yes means it is met.")
    kind: Kind = Field(description="What the question is about.")


class Requirements(BaseModel):
    """Everything that the image must show, one atomic question each."""

    requirements: list[AtomicQuestion] = Field(min_length=1, max_length=MAX_REQUIREMENTS)


def make_decomposer(resources: Resources) -> Node:
    """The node that fills ``requirements``."""

    def decomposer(state: GemsState, runtime: Runtime[GemsContext]) -> GemsState:
        context = GemsContext.resolve(runtime.context)
        messages = [SystemMessage(DECOMPOSER), HumanMessage(fence("user_prompt", state["prompt"]))]
        with metered(state, "decomposer", context) as meter:
            answer = ask(meter, resources.chat(context, "decomposer"), Requirements, messages)
        questions = {" ".join(r.question.split()): r.kind for r in answer.requirements}  # each asked once, in order
        requirements = [
            Requirement(id=f"r{i}", question=question, kind=kind)
            for i, (question, kind) in enumerate(questions.items(), start=1)
        ]
        runtime.stream_writer({"event": "requirements", "requirements": [r.model_dump() for r in requirements]})
        return GemsState(requirements=requirements, usage=meter.usage)

    return decomposer


def without_requirements(state: GemsState, error: NodeError) -> Goto:
    """Without requirements nothing can be checked: the run ends before it spends an image."""
    return report_failure(state, error, "generator", outcome="failed")


DECOMPOSER = """\
You prepare the inspection of an image. Between user_prompt tags stands what the image must show. Break it down into \
atomic yes/no questions, each about one thing only, each answered "yes" exactly if the image is right:
- object: is each thing there at all?
- count: is there exactly the number asked for ("a" is exactly one)?
- attribute: does each thing have its colour, material or pattern? One question per attribute.
- position and verb: does each relation between two things hold?
- text, style, other: written words, the manner of drawing, everything else.
Ask only about what is written there: invent nothing, leave nothing out, ask nothing twice."""
