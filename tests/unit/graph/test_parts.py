"""``build_graph`` takes a name wherever it takes an object, and refuses everything else in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from embedding import PointEmbeddings
from fakes import PaintGenerator, ScriptedChatModel
from langgraph.store.memory import InMemoryStore

from gems import FaissStore, GemsContext, ImageStore, InputError, as_tool, build_graph
from gems.memory.trajectory import namespace

QUICK = {"seed": 3, "max_rounds": 1, "skills": False}


def answer(schema: str, messages: list[Any], call: int) -> Any:
    if schema == "Requirements":
        return {"requirements": [{"question": "Are there two red cars?", "kind": "count"}]}
    if schema == "Verdicts":
        return {"verdicts": [{"id": "r1", "answer": "yes", "confidence": 0.9}]}
    return {"prompt": "two red cars"}


MODEL = ScriptedChatModel(script=answer)


class AsyncGenerator(PaintGenerator):
    async def generate(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """Is never called."""


class AsyncInspector:
    name, kinds = "late", frozenset({"object"})

    async def inspect(self, *_: Any) -> Any:
        """Is never called."""


@pytest.fixture
def own_models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("own_models")
    module.chat = lambda options: ScriptedChatModel(script=answer)  # type: ignore[attr-defined]
    module.painter = lambda options: PaintGenerator()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_models", module)
    return module


def test_names_and_places_stand_for_objects(own_models: ModuleType, tmp_path: Path) -> None:
    graph = build_graph(
        mllm="python:own_models:chat",
        generator="python:own_models:painter",
        embedder="minilm",
        store=tmp_path / "memory",
        images=str(tmp_path / "images"),
        inspectors="ocr",
        settings=QUICK,
    )
    out = graph.invoke({"prompt": "two red cars"}, context={"user": "ann"})
    assert out["outcome"] == "solved"
    assert out["image"].uri.startswith((tmp_path / "images").as_uri())
    assert (tmp_path / "memory").is_dir()


def test_a_role_has_its_own_model_by_object_or_by_name(own_models: ModuleType) -> None:
    mllm, planner = ScriptedChatModel(script=answer), ScriptedChatModel(script=answer)
    fixed: Any = {"generator": PaintGenerator(), "settings": {**QUICK, "memory": False}}
    build_graph(mllm=mllm, planner=planner, **fixed).invoke({"prompt": "two red cars"})
    assert (planner.count("Plan"), mllm.count("Plan"), mllm.count("Verdicts")) == (1, 0, 1)
    mllm = ScriptedChatModel(script=answer)
    build_graph(mllm=mllm, verifier="python:own_models:chat", **fixed).invoke({"prompt": "two red cars"})
    assert (mllm.count("Plan"), mllm.count("Verdicts")) == (1, 0)


def test_a_named_role_is_not_called_at_an_address_of_the_context(own_models: ModuleType) -> None:
    graph = build_graph(
        mllm=ScriptedChatModel(script=answer),
        planner="python:own_models:chat",
        generator=PaintGenerator(),
        settings={**QUICK, "memory": False},
    )
    context: Any = {"chat_options": {"base_url": "http://evil.example"}}
    with pytest.raises(InputError, match="base_url"):
        graph.invoke({"prompt": "two red cars"}, context=context)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mllm": 5}, "mllm is of type int; give a LangChain chat model, or a model's name"),
        ({"mllm": ScriptedChatModel}, "mllm is the class ScriptedChatModel; give"),
        ({"verifier": PaintGenerator()}, "verifier is of type PaintGenerator; give a LangChain chat model"),
        ({"mllm": MODEL.bind(stop=["."])}, "Binding, which is around a model, as bind, with_retry and"),
        ({"mllm": MODEL.with_retry()}, "mllm is of type RunnableRetry, which is around a model"),
        ({"planner": MODEL.with_fallbacks([MODEL])}, "planner is of type RunnableWithFallbacks, which is around"),
        ({"generator": AsyncGenerator()}, "generate of AsyncGenerator is a coroutine function; name a coroutine"),
        ({"inspectors": [AsyncInspector()]}, "inspect of AsyncInspector is a coroutine function; write a plain"),
        ({"generator": object()}, "generator is of type object; give an ImageGenerator"),
        ({"generator": ScriptedChatModel(script=answer)}, "generator is of type ScriptedChatModel; give"),
        ({"embedder": [1.0]}, "embedder is of type list; give a LangChain embedder"),
        ({"store": {}}, "store is of type dict; give a LangGraph store, a folder"),
        ({"images": InMemoryStore()}, "images is of type InMemoryStore; give an ImageStore"),
        ({"inspectors": [5]}, "an inspector is of type int; give"),
        ({"inspectors": 5}, "inspectors is of type int; give a list"),
        ({"settings": "pocket"}, "settings is str; give names and values"),
        ({"settings": {"max_round": 1}}, "unknown setting 'max_round': did you mean 'max_rounds'"),
        ({"settings": {"nonsense": 1}}, "unknown setting 'nonsense': choose from"),
        ({"checkpointer": "runs.sqlite"}, "checkpointer is of type str; give a LangGraph checkpointer"),
        ({"mllm": ""}, "the setting mllm: String should have at least 1 character"),
        ({"mllm": "nope"}, "unknown chat model 'nope'; give pocket, "),
        ({"verifier": "nope:gpt-5"}, "unknown chat model 'nope:gpt-5'"),
        ({"settings": {"refiner": "transformers:"}}, "unknown chat model 'transformers:'"),
        ({"generator": "nope"}, "unknown image generator 'nope'; give pocket, "),
        ({"generator": "diffusers:"}, "unknown image generator 'diffusers:'"),
        ({"embedder": "nope"}, "unknown embedder 'nope'; use"),
        ({"inspectors": "nope"}, "unknown inspector 'nope'; choose from: ocr"),
        ({"mllm": "pocket", "settings": {"mllm": "pocket"}}, "mllm is given twice"),
        ({"store": InMemoryStore(), "settings": {"memory_url": "m"}}, "memory_url is given twice"),
        ({"generator": PaintGenerator(), "settings": GemsContext(generator="pocket")}, "generator is given twice"),
    ],
)
def test_what_cannot_be_used_is_refused_when_the_graph_is_built(arguments: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_graph(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt-5", "anthropic:claude-x", "openai:any", "transformers:a/b", "python:own:chat"])
def test_a_name_that_some_model_has_is_taken_without_loading_it(name: str) -> None:
    build_graph(mllm=name)
    build_graph(mllm="a-servers/model", settings={"chat_options": {"base_url": "http://127.0.0.1:9/v1"}})


def test_a_tool_is_made_of_a_graph(own_models: ModuleType) -> None:
    names: Any = {"mllm": "python:own_models:chat", "generator": "python:own_models:painter", "memory": False}
    assert '"outcome": "solved"' in as_tool(settings={**QUICK, **names}).invoke({"prompt": "two red cars"})
    for graph in ("openai:gpt-5", ScriptedChatModel(script=answer), build_graph):
        with pytest.raises(InputError, match="as_tool takes a graph"):
            as_tool(graph)  # type: ignore[arg-type]


def test_objects_are_used_as_they_are(tmp_path: Path) -> None:
    store = FaissStore(tmp_path / "memory", embedder=PointEmbeddings())
    graph = build_graph(
        mllm=ScriptedChatModel(script=answer),
        generator=PaintGenerator(),
        images=ImageStore(tmp_path / "images"),
        store=store,
        settings=QUICK,
    )
    graph.invoke({"prompt": "two red cars"}, context={"user": "ann"})
    assert len(store.search(namespace("ann"))) == 1
    store.close()
