"""The agent inside other people's graphs: as a node, in a node, as a tool, many at once, and over the network."""

from __future__ import annotations

import asyncio
import operator
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.errors import GraphDrained
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import RunControl
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from gems import GemsContext, ImageRef, InputError, as_tool, build_graph
from gems.memory.trajectory import namespace

QUICK = {"seed": 3, "memory": False, "max_rounds": 2}
REVIEWED = {**QUICK, "review": "end"}


class Shared(TypedDict, total=False):
    """A parent that has some of our keys, and gathers some of its own under the names of ours."""

    prompt: str
    image: ImageRef | None
    messages: Annotated[list[AnyMessage], add_messages]
    planning: Annotated[list[str], operator.add]


class Other(TypedDict, total=False):
    """A parent that has none of them."""

    wish: str
    pictures: Annotated[list[str], operator.add]


def wrapped(graph: Any) -> Any:
    def illustrate(state: Other) -> Other:
        result = graph.invoke({"prompt": state["wish"]})
        return {"pictures": [result["image"].uri]}

    return illustrate


def parent_of(node: Any, schema: Any = Shared, **compiled: Any) -> Any:
    parent = StateGraph(schema, context_schema=dict)
    parent.add_node("gems", node)
    parent.add_edge(START, "gems")
    parent.add_edge("gems", END)
    return parent.compile(**compiled)


def config(thread: str = "t") -> Any:
    return {"configurable": {"thread_id": thread}}


def test_as_a_node_it_adds_nothing_to_what_the_parent_gathers() -> None:
    parent = parent_of(build_graph(thumbnails=64), checkpointer=InMemorySaver())
    mine = {"messages": [("user", "hello")], "planning": ["my plan"]}
    out = parent.invoke({"prompt": "two red cars", **mine}, config(), context=QUICK)
    assert out["image"].uri.endswith(".png")
    assert [m.content for m in out["messages"]] == ["hello"]
    assert out["planning"] == ["my plan"]
    again = parent.invoke({"prompt": "a green dog"}, config(), context=QUICK)
    assert again["image"] != out["image"]
    assert [m.content for m in again["messages"]] == ["hello"]


@pytest.mark.parametrize("kind", ["node", "wrapper", "tool"])
@pytest.mark.parametrize("saver", ["memory", "sqlite"])
def test_a_review_passes_through_the_parent(kind: str, saver: str, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "c.sqlite", check_same_thread=False)
    checkpointer: Any = InMemorySaver() if saver == "memory" else SqliteSaver(connection)
    graph, tool = build_graph(), as_tool()

    def by_tool(state: Other) -> Other:
        told = tool.invoke({"type": "tool_call", "id": "1", "name": tool.name, "args": {"prompt": state["wish"]}})
        return {"pictures": [told.artifact["image"].uri]}

    parents = {
        "node": lambda: parent_of(graph, checkpointer=checkpointer),
        "wrapper": lambda: parent_of(wrapped(graph), Other, checkpointer=checkpointer),
        "tool": lambda: parent_of(by_tool, Other, checkpointer=checkpointer),
    }
    parent = parents[kind]()
    given = {"prompt": "two red cars"} if kind == "node" else {"wish": "two red cars"}
    asked = parent.invoke(given, config(), context=REVIEWED)
    [question] = asked["__interrupt__"]
    assert question.value["kind"] == "gems_review"
    [task] = parent.get_state(config(), subgraphs=True).tasks
    if kind == "node":
        assert task.state.values["attempts"][0].image.sha256 == question.value["image"]["sha256"]
    rejected = parent.invoke(Command(resume={"action": "reject"}), config(), context=REVIEWED)
    assert rejected["__interrupt__"][0].value["round"] == 2
    out = parent.invoke(Command(resume={"action": "accept"}), config(), context=REVIEWED)
    assert "__interrupt__" not in out
    picture = out["image"].uri if kind == "node" else out["pictures"]
    assert rejected["__interrupt__"][0].value["image"]["uri"] in picture
    connection.close()


def test_the_parents_store_is_the_memory(own_home: Path) -> None:
    store = InMemoryStore()
    parent = parent_of(build_graph(), store=store)
    parent.invoke({"prompt": "two red cars"}, context={**QUICK, "memory": True, "user": "ann"})
    assert [item.value["prompt"] for item in store.search(namespace("ann"))] == ["two red cars"]
    assert not (own_home / "memory").exists()


@dataclass
class TheirContext:
    """A parent's own: one of its fields has the name of one of ours, and means something else."""

    budget: float = 9.99
    tenant: str = "acme"
    gems: dict[str, Any] = field(default_factory=lambda: {**QUICK, "max_rounds": 1, "candidates": 2})


def test_a_context_of_another_class_carries_ours() -> None:
    parent = StateGraph(Other, context_schema=TheirContext)
    graph = build_graph()
    seen: list[Any] = []

    def illustrate(state: Other) -> Other:
        seen.append(graph.invoke({"prompt": state["wish"]}))
        return {}

    parent.add_node("illustrate", illustrate)
    parent.add_edge(START, "illustrate")
    parent.compile().invoke({"wish": "two red cars"}, context=TheirContext())
    assert len(seen[0]["attempts"]) == 2
    assert seen[0]["attempts"][0].seed == 3


def test_what_happens_inside_is_streamed_with_where() -> None:
    parent = parent_of(build_graph())
    events = list(
        parent.stream({"prompt": "two red cars"}, context=QUICK, stream_mode=["custom", "updates"], subgraphs=True)
    )
    inside = [(path, data) for path, mode, data in events if mode == "custom"]
    assert all(len(path) == 1 and path[0].startswith("gems:") for path, _ in inside)
    assert {"prompt", "image", "verdict", "outcome"} <= {data["event"] for _, data in inside}
    updated = {name for path, mode, data in events if mode == "updates" and path for name in data}
    assert {"planner", "generator", "verifier"} <= updated


def test_a_budget_holds_in_the_parent() -> None:
    parent = parent_of(build_graph())
    context = {**QUICK, "max_rounds": 5, "budget": {"images": 1}}
    seen = [
        d
        for _, d in parent.stream(
            {"prompt": "seven wooden koalas"}, context=context, stream_mode="custom", subgraphs=True
        )
    ]
    assert sum(event["event"] == "image" for event in seen) == 1


def test_a_stop_of_the_parent_stops_it_at_the_next_step() -> None:
    parent = parent_of(build_graph(), checkpointer=InMemorySaver())
    control, seen = RunControl(), list[str]()
    given: Any = {"prompt": "two red cars"}
    stream = parent.stream(given, config(), context=QUICK, stream_mode="custom", subgraphs=True, control=control)

    def follow() -> None:
        for _, event in stream:
            seen.append(event["event"])
            if event["event"] == "step":
                control.request_drain("stop")

    with pytest.raises(GraphDrained):
        follow()
    assert "image" not in seen
    assert parent.invoke(None, config(), context=QUICK)["image"] is not None


def test_a_cancelled_task_goes_no_further() -> None:
    parent, seen = parent_of(build_graph(), checkpointer=InMemorySaver()), []

    async def go() -> None:
        async for _, event in parent.astream(
            {"prompt": "two red cars"}, config(), context=QUICK, stream_mode="custom", subgraphs=True
        ):
            seen.append(event["event"])
            if event["event"] == "image":
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(go())
    assert "outcome" not in seen
    assert parent.invoke(None, config(), context=QUICK)["image"] is not None


class Both(TypedDict, total=False):
    wish: str
    results: Annotated[list[Any], operator.add]


def test_two_with_settings_of_their_own_do_not_disturb_each_other() -> None:
    one = build_graph(settings={"candidates": 1, "max_rounds": 1, "generator": "pocket", "seed": 11})
    two = build_graph(settings={"candidates": 3, "max_rounds": 1, "generator": "pocket-large", "seed": 22})
    parent = StateGraph(Both, context_schema=dict)
    for name, graph in (("one", one), ("two", two)):
        parent.add_node(name, lambda state, graph=graph: {"results": [graph.invoke({"prompt": state["wish"]})]})
        parent.add_edge(START, name)
    out = parent.compile().invoke({"wish": "two red cars"}, context={"memory": False, "seed": 1, "candidates": 2})
    made = {len(result["attempts"]): [a.seed for a in result["attempts"]] for result in out["results"]}
    assert made == {1: [11], 3: [22, 23, 24]}
    with pytest.raises(InputError, match="max_round"):
        build_graph(settings={"max_round": 1})
    with pytest.raises(InputError, match="nonsense"):
        build_graph(settings={"nonsense": 1})


def test_ten_prompts_at_once_come_back_each_with_its_own() -> None:
    graph = build_graph()
    things = ["dog", "cat", "cow", "horse", "koala", "giraffe", "elephant", "car", "guitar", "bicycle"]

    def fan_out(state: Both) -> Sequence[Send]:
        return [Send("draw", {"wish": f"a red {thing}"}) for thing in things]

    def draw(state: Both) -> Both:
        return {"results": [(state["wish"], graph.invoke({"prompt": state["wish"]}))]}

    parent = StateGraph(Both, context_schema=dict)
    parent.add_node("draw", draw)
    parent.add_conditional_edges(START, fan_out, ["draw"])
    out = parent.compile(checkpointer=InMemorySaver()).invoke({}, config(), context=QUICK)
    assert len(out["results"]) == 10
    for wish, result in out["results"]:
        thing = wish.split()[-1]
        assert all(thing in attempt.prompt for attempt in result["attempts"])
        assert any(thing in requirement.question for requirement in result["requirements"])


class Scripted(BaseChatModel):
    """Says what it is told to, in turn."""

    turns: list[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        turn = sum(isinstance(m, AIMessage) for m in messages)
        return ChatResult(generations=[ChatGeneration(message=self.turns[turn])])


def calls(*prompts: str) -> AIMessage:
    return AIMessage(
        "", tool_calls=[{"name": "generate_image", "args": {"prompt": p}, "id": f"c{i}"} for i, p in enumerate(prompts)]
    )


def test_an_agent_draws_with_it_as_a_tool() -> None:
    model = Scripted(turns=[calls("two red cars", "a green dog", "a dragon"), AIMessage("Here they are.")])
    agent = create_agent(model, [as_tool(settings=QUICK)], checkpointer=InMemorySaver())
    out = agent.invoke({"messages": [("user", "draw")]}, config())
    told = {m.tool_call_id: m for m in out["messages"] if isinstance(m, ToolMessage)}
    assert [told[c].status for c in ("c0", "c1", "c2")] == ["success", "success", "error"]
    assert "dragon" in told["c2"].text
    for call, thing in (("c0", "car"), ("c1", "dog")):
        assert thing in told[call].artifact["attempts"][0].prompt
        assert '"outcome": "solved"' in told[call].text
    assert out["messages"][-1].text == "Here they are."


def test_agents_tools_ask_a_person_too() -> None:
    model = Scripted(turns=[calls("two red cars"), AIMessage("Done.")])
    agent = create_agent(model, [as_tool(settings=REVIEWED)], checkpointer=InMemorySaver())
    asked = agent.invoke({"messages": [("user", "draw")]}, config())
    assert asked["__interrupt__"][0].value["kind"] == "gems_review"
    out = agent.invoke(Command(resume={"action": "accept"}), config())
    [told] = [m for m in out["messages"] if isinstance(m, ToolMessage)]
    assert told.artifact["outcome"] == "accepted"


def test_the_tool_alone() -> None:
    tool = as_tool(build_graph(settings=QUICK), name="draw")
    assert tool.name == "draw"
    assert list(tool.args) == ["prompt"]
    assert '"outcome": "solved"' in tool.invoke({"prompt": "two red cars"})
    assert '"outcome": "solved"' in asyncio.run(tool.ainvoke({"prompt": "two red cars"}))
    assert "dragon" in tool.invoke({"prompt": "a dragon"})
    with pytest.raises(InputError, match="a graph or settings"):
        as_tool(build_graph(), settings=QUICK)


def test_context_objects_of_ours_pass() -> None:
    out = build_graph().invoke({"prompt": "two red cars"}, context=GemsContext(**QUICK))
    assert out["outcome"] == "solved"


def test_importing_it_costs_next_to_nothing() -> None:
    """A real start, since a forked process has imported much already."""
    code = (
        "import sys; before = {*sys.modules}; import gems;"
        "print(sorted({name.split('.')[0] for name in {*sys.modules} - before} - sys.stdlib_module_names));"
        "from gems import build_graph, as_tool; build_graph();"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'faiss') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['gems']", "[]"]
