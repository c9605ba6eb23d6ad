"""What a chat model has the user know about its reading of a prompt reaches the user, whichever model it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from forked import gems
from langchain_core.messages import AIMessage

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore

QUESTIONS = {"requirements": [{"question": "Are there any cars?", "kind": "object"}]}


def answer(schema: str, _: list[Any], notes: object) -> AIMessage:
    args = {
        "Plan": {"prompt": "a car"},
        "Requirements": QUESTIONS,
        "Verdicts": {"verdicts": [{"id": "r1", "answer": "yes", "confidence": 0.9, "reason": "seen"}]},
    }[schema]
    return AIMessage(json.dumps(args), response_metadata={"gems_notes": notes} if schema == "Requirements" else {})


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        (["left out:\n shiny\x1b[2J", "left out:\n shiny\x1b[2J", ""], ["left out: shiny[2J"]),
        ("a text", []),
        ([{"a": 1}, 3], []),
        (None, []),
    ],
)
def test_notes_are_in_the_result_and_in_the_event_of_the_requirements(
    notes: object, told: list[str], tmp_path: Path
) -> None:
    model = ScriptedChatModel(script=lambda schema, messages, index: answer(schema, messages, notes))
    graph = build_graph(mllm=model, generator=PaintGenerator(), images=ImageStore(tmp_path / "images"))
    events, out = [], {}
    context = GemsContext(memory=False, seed=5)
    for mode, part in graph.stream({"prompt": "a shiny car"}, context=context, stream_mode=["custom", "values"]):
        events += [part] if mode == "custom" and part["event"] == "requirements" else []
        out = part if mode == "values" else out
    assert [line for line in out["errors"] if line.startswith("decomposer")] == [f"decomposer: {line}" for line in told]
    assert events[0]["notes"] == told


@pytest.mark.slow
def test_the_open_models_tell_what_they_leave_out(tmp_path: Path) -> None:
    options = ("--generator", "open", "--mllm", "open", "--max-rounds", 1, "--no-memory", "--out", tmp_path / "out")
    result = gems("generate", "an ornate corgi", *options, home=tmp_path / "home")
    assert result.returncode in (0, 1), result.stderr
    before_the_first_image = result.stderr.partition("passed, score")[0] + result.stdout.partition("passed, score")[0]
    assert "note: 'corgi' is drawn as a dog" in before_the_first_image
    [record] = (tmp_path / "out").rglob("run.json")
    notes = json.loads(record.read_text())["errors"]
    assert notes == ["decomposer: 'corgi' is drawn as a dog", "decomposer: left out: ornate"]
    assert "left out: ornate" in (record.parent / "report.html").read_text()
