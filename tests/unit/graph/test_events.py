"""The events of the graph have the form that ``gems.graph.events`` declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langchain_core.messages import AIMessage
from pydantic import TypeAdapter
from typing_extensions import get_type_hints

from gems.graph import events
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore

DECLARED = {get_args(get_type_hints(kind)["event"])[0]: kind for kind in get_args(events.Event)}


def answer(schema: str, messages: list[Any], call: int) -> Any:
    """A chat model that plans with a skill, rejects the first image and passes the second."""
    if schema == "Plan":
        return [("counting", {})] if call == 0 else {"prompt": "three blue cars"}
    if schema == "Requirements":
        return {"requirements": [{"question": "Are there three cars?", "kind": "count"}]}
    if schema == "Verdicts":
        ids = [line.split(":")[0] for line in str(messages[-1].text).splitlines() if line[:1] in "rs" and ":" in line]
        word = "yes" if call else "no"
        return {"verdicts": [{"id": i, "answer": word, "confidence": 0.9, "reason": "seen"} for i in ids]}
    if schema == "Refinement":
        return {"experience": "say it first", "strategy": "rewrite", "prompt": "cars, three and blue"}
    return AIMessage("")


@pytest.fixture
def emitted(tmp_path: Path) -> list[Any]:
    graph = build_graph(
        mllm=ScriptedChatModel(script=answer), generator=PaintGenerator(), images=ImageStore(tmp_path / "images")
    )
    context = GemsContext(seed=1, memory_url=str(tmp_path / "memory")).as_operator()
    return list(graph.stream({"prompt": "three blue cars"}, context=context, stream_mode="custom"))


def test_every_event_has_exactly_the_declared_keys_and_types(emitted: list[Any]) -> None:
    for event in emitted:
        kind = DECLARED[event["event"]]
        assert event.keys() == get_type_hints(kind).keys()
        TypeAdapter(kind).validate_python(event, strict=True)
    names = {event["event"] for event in emitted}
    # Not covered here: "reuse" needs an earlier run, "preview" a generator with previews.
    assert names == DECLARED.keys() - {"reuse", "preview"}
