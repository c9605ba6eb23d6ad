"""A supervisor with two workers: a writer, and GEMS as the illustrator.

    python examples/supervisor.py "an advertisement for a toy shop"

The supervisor says who is to work next, and ends when both have. GEMS is a node like any other: the supervisor's state
has a ``prompt`` and an ``image``, which are GEMS's input and output, so the compiled graph is added as it is. It shares
the parent's checkpointer, so one thread holds the work of all of them.
"""

from __future__ import annotations

from typing import Literal

from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from offline import arguments, guarded, language_model
from typing_extensions import TypedDict

from gems import ImageRef, build_graph

WRITER = "Write one sentence: what a picture for this task shows, plainly, with things, how many and where."


class Desk(TypedDict, total=False):
    """What lies on the supervisor's desk."""

    task: str
    prompt: str
    image: ImageRef | None


def main() -> None:
    """Have the task of the command line done."""
    parser = arguments(__doc__)
    parser.add_argument("task", nargs="?", default="an advertisement for a toy shop")
    given = parser.parse_args()
    model = language_model(given.mllm, AIMessage("three red cars in front of a yellow rabbit"))

    def supervisor(desk: Desk) -> Command[Literal["writer", "illustrator", "__end__"]]:
        goto = "writer" if "prompt" not in desk else "illustrator" if "image" not in desk else "__end__"
        print(f"supervisor: {goto.strip('_')}", flush=True)
        return Command(goto=goto)  # type: ignore[arg-type]

    def writer(desk: Desk) -> Desk:
        return {"prompt": model.invoke([("system", WRITER), ("user", desk["task"])]).text}

    graph = StateGraph(Desk)
    graph.add_node("supervisor", supervisor)
    graph.add_node("writer", writer)
    graph.add_node("illustrator", build_graph(settings={"seed": given.seed, "max_rounds": 3}))
    graph.add_edge(START, "supervisor")
    graph.add_edge("writer", "supervisor")
    graph.add_edge("illustrator", "supervisor")
    desk = graph.compile(checkpointer=InMemorySaver()).invoke(
        {"task": given.task}, {"configurable": {"thread_id": "desk"}}
    )
    print(f"prompt: {desk['prompt']}")
    print(f"image: {desk['image'].uri if desk['image'] else 'none could be made'}")


if __name__ == "__main__":
    guarded(main)
