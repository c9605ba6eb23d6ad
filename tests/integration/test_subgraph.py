"""GEMS inside other graphs: as a node, called in a node, as a tool, in parallel, and over the network."""

from __future__ import annotations

import asyncio
import json
import operator
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from fakes import PaintGenerator
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
from langgraph.runtime import RunControl, Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from gems import GemsContext, GemsOutput, ImageRef, InputError, as_node, as_tool, build_graph, init_embedder
from gems.errors import BackendError, ContentRefusedError
from gems.memory.trajectory import namespace

QUICK = {"seed": 3, "memory": False, "max_rounds": 2}
REVIEWED = {**QUICK, "review": "end"}


class Shared(TypedDict, total=False):
    """A parent that shares some keys with GEMS and uses others for lists of its own."""

    prompt: str
    image: ImageRef | None
    messages: Annotated[list[AnyMessage], add_messages]
    planning: Annotated[list[str], operator.add]


class Other(TypedDict, total=False):
    """A parent that shares no key with GEMS."""

    request: str
    pictures: Annotated[list[str], operator.add]


def wrapped(graph: Any) -> Any:
    def illustrate(state: Other) -> Other:
        result = graph.invoke({"prompt": state["request"]})
        return {"pictures": [result["image"].uri]}

    return illustrate


def wrapped_whole(graph: Any) -> Any:
    """A node that keeps everything that the run knew at its end."""

    def illustrate(state: Both) -> Both:
        *_, values = graph.stream({"prompt": state["request"]}, stream_mode="values", output_keys=None)
        return {"results": [values]}

    return illustrate


def parent_of(node: Any, schema: Any = Shared, **compiled: Any) -> Any:
    parent = StateGraph(schema, context_schema=dict)
    parent.add_node("gems", node)
    parent.add_edge(START, "gems")
    parent.add_edge("gems", END)
    return parent.compile(**compiled)


def config(thread: str = "t") -> Any:
    return {"configurable": {"thread_id": thread}}


def test_as_a_node_it_adds_nothing_to_the_parents_lists() -> None:
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
        message = tool.invoke({"type": "tool_call", "id": "1", "name": tool.name, "args": {"prompt": state["request"]}})
        return {"pictures": [message.artifact["image"].uri]}

    parents = {
        "node": lambda: parent_of(graph, checkpointer=checkpointer),
        "wrapper": lambda: parent_of(wrapped(graph), Other, checkpointer=checkpointer),
        "tool": lambda: parent_of(by_tool, Other, checkpointer=checkpointer),
    }
    parent = parents[kind]()
    parent_input = {"prompt": "two red cars"} if kind == "node" else {"request": "two red cars"}
    review_state = parent.invoke(parent_input, config(), context=REVIEWED)
    [question] = review_state["__interrupt__"]
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


@pytest.mark.parametrize(
    ("bad_answer", "reason"),
    [
        ("accept", "the answer is a text; give an object"),
        (["accept"], "the answer is a list"),
        (7, "the answer is a number"),
        (False, "the answer is a truth value"),
        ({"comment": "no"}, "action: Field required"),
        ({"action": "explode"}, "action: Input should be"),
        ({"action": "accept", "verdict": 1}, "verdict: Extra inputs"),
        ({"action": "edit_prompt"}, "edit_prompt needs a prompt"),
        ({"action": "edit_requirements", "requirements": "red"}, "requirements: Input should be"),
        ({"action": "accept", "image": "x"}, "image: String should match"),
    ],
)
def test_an_answer_of_another_form_is_asked_for_again(bad_answer: Any, reason: str) -> None:
    graph = build_graph(
        generator=PaintGenerator(), checkpointer=InMemorySaver(), settings={**REVIEWED, "max_rounds": 1}
    )
    graph.invoke({"prompt": "two red cars"}, config())
    [question] = graph.invoke(Command(resume=bad_answer), config())["__interrupt__"]
    assert reason in question.value["fault"]
    assert "\n" not in question.value["fault"]
    accepted = graph.invoke(Command(resume={"action": "accept", "comment": None}), config())
    assert accepted["outcome"] == "accepted"


def test_the_parents_store_is_the_memory(own_home: Path) -> None:
    store = InMemoryStore()
    parent = parent_of(build_graph(), store=store)
    parent.invoke({"prompt": "two red cars"}, context={**QUICK, "memory": True, "user": "ann"})
    assert [item.value["prompt"] for item in store.search(namespace("ann"))] == ["two red cars"]
    assert not (own_home / "memory").exists()


class Colliding(TypedDict, total=False):
    """A parent that uses the names of GEMS for things of its own."""

    wish: str
    prompt: int
    score: str
    errors: Annotated[list[str], operator.add]
    turns: int
    usage: dict[str, int]
    gems: GemsOutput


@dataclass
class CollidingObject:
    wish: str = ""
    score: str = ""
    turns: int = 0
    gems: Any = None


@pytest.mark.parametrize("calls", ["invoke", "ainvoke"])
def test_a_node_of_its_own_key_leaves_the_parents_keys_alone(calls: str) -> None:
    parent = parent_of(as_node(settings={**QUICK, "max_rounds": 1}, prompt="wish"), Colliding)
    theirs = {"wish": "two red cars", "prompt": 7, "score": "2:1", "errors": ["mine"], "turns": 4, "usage": {"a": 1}}
    out = parent.invoke(theirs) if calls == "invoke" else asyncio.run(parent.ainvoke(theirs))
    result = out.pop("gems")
    assert out == theirs
    assert result["image"].uri.endswith(".png")
    assert result["errors"] == []
    as_object = parent_of(as_node(build_graph(settings=QUICK), prompt="wish"), CollidingObject)
    assert as_object.invoke({"wish": "two red cars", "score": "2:1"})["score"] == "2:1"


def test_a_node_of_its_own_key_asks_and_goes_on(tmp_path: Path) -> None:
    parent = parent_of(as_node(settings=REVIEWED, prompt="wish"), Colliding, checkpointer=InMemorySaver())
    [question] = parent.invoke({"wish": "two red cars"}, config())["__interrupt__"]
    assert question.value["kind"] == "gems_review"
    assert parent.invoke(Command(resume={"action": "accept"}), config())["gems"]["outcome"] == "accepted"
    with pytest.raises(InputError, match="the state has no 'caption' to draw"):
        parent_of(as_node(settings=QUICK, prompt="caption"), Colliding).invoke({"wish": "two red cars"})
    with pytest.raises(InputError, match="as_node takes a graph or settings"):
        as_node(build_graph(), settings=QUICK)


def test_a_parents_store_without_an_index_is_told_once_a_run() -> None:
    graph = build_graph(generator=PaintGenerator(), settings={**QUICK, "memory": True, "max_rounds": 1})
    for store, is_told in (
        (InMemoryStore(), True),
        (InMemoryStore(index={"dims": 384, "embed": init_embedder()}), False),
    ):
        parent = parent_of(wrapped_whole(graph), Both, store=store)
        [first] = parent.invoke({"request": "two red cars"})["results"]
        assert first["errors"] == [], "nothing was kept yet"
        [second] = parent.invoke({"request": "two red cars"})["results"]
        assert len([line for line in second["errors"] if "has no index" in line]) == is_told
        assert bool(second["memories"]) != is_told


class GemsAndUsers(GemsContext):
    users: tuple[str, ...] = ()
    image_url: str = "https://example.com"


NEAR = {"users": ["ann"], "seeds": [1], "image_url": "https://example.com", "plans": {"basic": 1}}


@pytest.mark.parametrize("schema", [dict, None, GemsAndUsers])
def test_a_parents_context_may_have_names_that_resemble_ours(schema: Any) -> None:
    gems = build_graph(generator=PaintGenerator())
    quick = {**QUICK, "max_rounds": 1}

    def passes_its_context_on(state: Other, runtime: Runtime[Any]) -> Other:
        context: Any = {**quick, **NEAR}
        return {"pictures": [gems.invoke({"prompt": state["request"]}, context=context)["image"].uri]}

    for node, state, given in (
        (gems, Shared, {"prompt": "two red cars"}),
        (wrapped(gems), Other, {"request": "two red cars"}),
        (passes_its_context_on, Other, {"request": "two red cars"}),
    ):
        parent: Any = StateGraph(state, context_schema=schema)
        parent.add_node("draw", node)
        parent.add_edge(START, "draw")
        out = parent.compile().invoke(given, context={**quick, **NEAR})
        assert out.get("image") or out.get("pictures")


def test_a_parent_whose_context_is_ours_cannot_misspell_it() -> None:
    parent: Any = StateGraph(Shared, context_schema=GemsContext)
    parent.add_node("draw", build_graph(generator=PaintGenerator()))
    parent.add_edge(START, "draw")
    with pytest.raises(InputError, match="unknown setting 'seeds': did you mean 'seed'"):
        parent.compile().invoke({"prompt": "two red cars"}, context={**QUICK, "seeds": [1]})


@dataclass
class TheirContext:
    """A parent's own context; one of its fields has the name of a GEMS field but another meaning."""

    budget: float = 9.99
    tenant: str = "acme"
    gems: dict[str, Any] = field(default_factory=lambda: {**QUICK, "max_rounds": 1, "candidates": 2})


def test_a_context_of_another_class_can_carry_the_settings() -> None:
    parent = StateGraph(Other, context_schema=TheirContext)
    graph = build_graph()
    outputs: list[Any] = []

    def illustrate(state: Other) -> Other:
        outputs.append(graph.invoke({"prompt": state["request"]}))
        return {}

    parent.add_node("illustrate", illustrate)
    parent.add_edge(START, "illustrate")
    parent.compile().invoke({"request": "two red cars"}, context=TheirContext())
    assert len(outputs[0]["attempts"]) == 2
    assert outputs[0]["attempts"][0].seed == 3


def test_inner_events_are_streamed_with_their_path() -> None:
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
    events = [
        d
        for _, d in parent.stream(
            {"prompt": "seven wooden koalas"}, context=context, stream_mode="custom", subgraphs=True
        )
    ]
    assert sum(event["event"] == "image" for event in events) == 1


def test_a_stop_of_the_parent_stops_it_at_the_next_step() -> None:
    parent = parent_of(build_graph(), checkpointer=InMemorySaver())
    control, event_names = RunControl(), list[str]()
    parent_input: Any = {"prompt": "two red cars"}
    slow: Any = {**QUICK, "generator_options": {"steps": 100}}  # which a busy machine does not end before it is stopped
    stream = parent.stream(parent_input, config(), context=slow, stream_mode="custom", subgraphs=True, control=control)

    def follow() -> None:
        for _, event in stream:
            event_names.append(event["event"])
            if event["event"] == "step":
                control.request_drain("stop")

    with pytest.raises(GraphDrained):
        follow()
    assert "image" not in event_names
    assert parent.invoke(None, config(), context=slow)["image"] is not None


def test_a_cancelled_task_stops() -> None:
    parent, events_seen = parent_of(build_graph(), checkpointer=InMemorySaver()), []

    async def go() -> None:
        async for _, event in parent.astream(
            {"prompt": "two red cars"}, config(), context=QUICK, stream_mode="custom", subgraphs=True
        ):
            events_seen.append(event["event"])
            if event["event"] == "image":
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(go())
    assert "outcome" not in events_seen
    assert parent.invoke(None, config(), context=QUICK)["image"] is not None


class Both(TypedDict, total=False):
    request: str
    results: Annotated[list[Any], operator.add]


def test_two_nodes_keep_their_own_settings() -> None:
    small_graph = build_graph(settings={"candidates": 1, "max_rounds": 1, "generator": "pocket", "seed": 11})
    two = build_graph(settings={"candidates": 3, "max_rounds": 1, "generator": "pocket-large", "seed": 22})
    parent = StateGraph(Both, context_schema=dict)
    for name, graph in (("one", small_graph), ("two", two)):
        parent.add_node(name, lambda state, graph=graph: {"results": [graph.invoke({"prompt": state["request"]})]})
        parent.add_edge(START, name)
    out = parent.compile().invoke({"request": "two red cars"}, context={"memory": False, "seed": 1, "candidates": 2})
    seeds_by_count = {len(result["attempts"]): [a.seed for a in result["attempts"]] for result in out["results"]}
    assert seeds_by_count == {1: [11], 3: [22, 23, 24]}
    with pytest.raises(InputError, match="max_round"):
        build_graph(settings={"max_round": 1})
    with pytest.raises(InputError, match="nonsense"):
        build_graph(settings={"nonsense": 1})


def test_ten_parallel_prompts_each_get_their_own_result() -> None:
    graph = build_graph()
    things = ["dog", "cat", "cow", "horse", "koala", "giraffe", "elephant", "car", "guitar", "bicycle"]

    def fan_out(state: Both) -> Sequence[Send]:
        return [Send("draw", {"request": f"a red {thing}"}) for thing in things]

    def draw(state: Both) -> Both:
        return {"results": [(state["request"], graph.invoke({"prompt": state["request"]}))]}

    parent = StateGraph(Both, context_schema=dict)
    parent.add_node("draw", draw)
    parent.add_conditional_edges(START, fan_out, ["draw"])
    out = parent.compile(checkpointer=InMemorySaver()).invoke({}, config(), context=QUICK)
    assert len(out["results"]) == 10
    for request, result in out["results"]:
        thing = request.split()[-1]
        assert all(thing in attempt.prompt for attempt in result["attempts"])
        assert any(thing in requirement.question for requirement in result["requirements"])


class Scripted(BaseChatModel):
    """Gives the scripted answers in order."""

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
    tool_messages = {m.tool_call_id: m for m in out["messages"] if isinstance(m, ToolMessage)}
    assert [tool_messages[c].status for c in ("c0", "c1", "c2")] == ["success", "success", "error"]
    assert "dragon" in tool_messages["c2"].text
    for call, thing in (("c0", "car"), ("c1", "dog")):
        assert thing in tool_messages[call].artifact["attempts"][0].prompt
        assert '"outcome": "solved"' in tool_messages[call].text
    assert out["messages"][-1].text == "Here they are."


@pytest.mark.parametrize("error", [BackendError("server down", retryable=False), ContentRefusedError("not safe")])
@pytest.mark.parametrize("face", ["invoke", "ainvoke"])
def test_a_tool_without_an_image_has_failed(error: BackendError, face: str) -> None:
    tool = as_tool(build_graph(generator=PaintGenerator(fail=lambda request, n: error), settings=QUICK))
    call = {"type": "tool_call", "id": "1", "name": "generate_image", "args": {"prompt": "two red cars"}}
    message = tool.invoke(call) if face == "invoke" else asyncio.run(tool.ainvoke(call))
    content = json.loads(message.text)
    assert message.status == "error"
    assert content["image"] is None
    assert str(error) in content["errors"][0]


def test_a_tool_whose_later_round_fails_has_an_image() -> None:
    def fail(request: Any, n: int) -> BackendError | None:
        return BackendError("server down", retryable=False) if n else None

    graph = build_graph(generator=PaintGenerator(fail=fail), settings=QUICK)
    call = {"type": "tool_call", "id": "1", "name": "generate_image", "args": {"prompt": "two red cars"}}
    message = as_tool(graph).invoke(call)
    assert message.status == "success"
    assert json.loads(message.text)["image"] == message.artifact["image"].uri


def test_a_tool_can_ask_a_person_to_review() -> None:
    model = Scripted(turns=[calls("two red cars"), AIMessage("Done.")])
    agent = create_agent(model, [as_tool(settings=REVIEWED)], checkpointer=InMemorySaver())
    review_state = agent.invoke({"messages": [("user", "draw")]}, config())
    assert review_state["__interrupt__"][0].value["kind"] == "gems_review"
    out = agent.invoke(Command(resume={"action": "accept"}), config())
    [tool_message] = [m for m in out["messages"] if isinstance(m, ToolMessage)]
    assert tool_message.artifact["outcome"] == "accepted"


def test_the_tool_alone() -> None:
    tool = as_tool(build_graph(settings=QUICK), name="draw")
    assert tool.name == "draw"
    assert list(tool.args) == ["prompt"]
    assert '"outcome": "solved"' in tool.invoke({"prompt": "two red cars"})
    assert '"outcome": "solved"' in asyncio.run(tool.ainvoke({"prompt": "two red cars"}))
    assert "dragon" in tool.invoke({"prompt": "a dragon"})
    with pytest.raises(InputError, match="a graph or settings"):
        as_tool(build_graph(), settings=QUICK)


def test_a_gems_context_object_is_accepted() -> None:
    out = build_graph().invoke({"prompt": "two red cars"}, context=GemsContext(**QUICK))
    assert out["outcome"] == "solved"


@pytest.mark.slow
def test_importing_it_loads_no_heavy_library() -> None:
    """Uses a fresh interpreter, because a forked process has already imported many libraries."""
    code = (
        "import sys; before = {*sys.modules}; import gems;"
        "print(sorted({name.split('.')[0] for name in {*sys.modules} - before} - sys.stdlib_module_names));"
        "from gems import build_graph, as_tool; build_graph();"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'faiss') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["['gems']", "[]"]
