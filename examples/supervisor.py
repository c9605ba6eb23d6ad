"""A supervisor with two workers: a writer, and GEMS as the illustrator.

    python examples/supervisor.py "an advertisement for a toy shop"

The supervisor chooses which worker is next, and ends when both are done. GEMS is a node like any other: the
supervisor's state has a ``prompt`` and an ``image``, which are GEMS's input and output, so the compiled graph is added
as it is. It shares the parent's checkpointer, so one thread contains the work of all of them.
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


class Task(TypedDict, total=False):
    """The state of the graph."""

    task: str
    prompt: str
    image: ImageRef | None


def main() -> None:
    """Run the task of the command line."""
    parser = arguments(__doc__)
    parser.add_argument("task", nargs="?", default="an advertisement for a toy shop")
    args = parser.parse_args()
    model = language_model(args.mllm, AIMessage("three red cars in front of a yellow rabbit"))

    def supervisor(state: Task) -> Command[Literal["writer", "illustrator", "__end__"]]:
        goto = "writer" if "prompt" not in state else "illustrator" if "image" not in state else "__end__"
        print(f"supervisor: {goto.strip('_')}", flush=True)
        return Command(goto=goto)  # type: ignore[arg-type]

    def writer(state: Task) -> Task:
        return {"prompt": model.invoke([("system", WRITER), ("user", state["task"])]).text}

    graph = StateGraph(Task)
    graph.add_node("supervisor", supervisor)
    graph.add_node("writer", writer)
    graph.add_node("illustrator", build_graph(settings={"seed": args.seed, "max_rounds": 3}))
    graph.add_edge(START, "supervisor")
    graph.add_edge("writer", "supervisor")
    graph.add_edge("illustrator", "supervisor")
    state = graph.compile(checkpointer=InMemorySaver()).invoke(
        {"task": args.task}, {"configurable": {"thread_id": "task"}}
    )
    print(f"prompt: {state['prompt']}")
    print(f"image: {state['image'].uri if state['image'] else 'none could be made'}")


if __name__ == "__main__":
    guarded(main)
