"""The refiner can choose to edit: only if the generator supports it, visible in the state, on its own edge."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel
from PIL import Image

from gems import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import GemsOutput
from gems.memory.image_store import ImageStore, read_metadata

SETTINGS = GemsContext(memory=False, skills=False, seed=3, max_rounds=3)
STRATEGIES = ["rewrite", "reseed", "edit", "restart"]


def chat(refinements: list[dict[str, Any]]) -> ScriptedChatModel:
    """A chat model that always passes r1, never passes r2, and refines with the given answers."""

    def script(schema: str, messages: Any, index: int) -> Any:
        match schema:
            case "Requirements":
                questions = ["Are there any cars?", "Are the cars blue?"]
                return {"requirements": [{"question": q, "kind": "object"} for q in questions]}
            case "Plan":
                return {"prompt": "planned"}
            case "Refinement":
                return refinements[index]
        answers = {"r1": "yes", "r2": "no"}
        return {"verdicts": [{"id": i, "answer": a, "confidence": 0.9} for i, a in answers.items()]}

    return ScriptedChatModel(script=script)


def run(tmp_path: Path, mllm: ScriptedChatModel, generator: PaintGenerator) -> tuple[GemsOutput, list[str], ImageStore]:
    images = ImageStore(tmp_path)
    graph = build_graph(mllm=mllm, generator=generator, images=images)
    visited: list[str] = []
    output: Any = {}
    for mode, chunk in graph.stream({"prompt": "blue cars"}, context=SETTINGS, stream_mode=["updates", "values"]):
        if mode == "updates":
            visited += chunk
        else:
            output = chunk
    return output, visited, images


def test_an_edit_starts_from_the_best_image_and_lists_what_to_keep(tmp_path: Path) -> None:
    edits = [{"experience": "e", "strategy": "edit", "prompt": "all of it"}] * 2
    generator = PaintGenerator(edits=True)
    output, visited, images = run(tmp_path, chat(edits), generator)

    first, second, third = output["attempts"]
    assert [a.strategy for a in output["attempts"]] == ["plan", "edit", "edit"]
    assert visited.count("generator") == 1
    assert visited.count("editor") == 2
    assert second.prompt == "blue cars: all of it"
    assert first.edited_from == ""
    assert second.edited_from == third.edited_from == first.image.sha256, (
        "of equally good images, the earliest is the best"
    )
    plain, *edited = generator.requests
    assert plain.edit is None
    for request in edited:
        assert request.edit is not None
        assert request.edit.keep == ("Are there any cars?",)
        assert request.edit.fix == ("Are the cars blue?",)
        assert request.edit.image.getpixel((0, 0)) == Image.open(io.BytesIO(images.read(first.image))).getpixel((0, 0))
    edit_metadata = json.loads(read_metadata(images.read(second.image))["gems"])["edit"]
    assert edit_metadata == {"from": first.image.sha256, "keep": ["Are there any cars?"], "fix": ["Are the cars blue?"]}


def test_an_edit_without_words_keeps_the_best_prompt(tmp_path: Path) -> None:
    edits = [{"experience": "e", "strategy": "edit", "prompt": ""}] * 2
    output, _, _ = run(tmp_path, chat(edits), PaintGenerator(edits=True))
    assert [(a.strategy, a.prompt) for a in output["attempts"][1:]] == [("edit", "blue cars: planned")] * 2


@pytest.mark.parametrize("can_edit", [True, False])
def test_the_form_offers_only_what_the_generator_supports(tmp_path: Path, can_edit: bool) -> None:
    model = chat([{"experience": "e", "strategy": "reseed", "prompt": ""}] * 2)
    _, visited, _ = run(tmp_path, model, PaintGenerator(edits=can_edit))
    offered = model.schema("Refinement")["properties"]["strategy"]["enum"]
    assert offered == (STRATEGIES if can_edit else [s for s in STRATEGIES if s != "edit"])
    system = next(messages[0].text for schema, messages, _ in model.calls if schema == "Refinement")
    assert ("- edit:" in system) == can_edit
    assert "editor" not in visited


@pytest.mark.parametrize("redraws", [True, False])
def test_the_refiner_is_told_what_an_edit_does(tmp_path: Path, redraws: bool) -> None:
    model, generator = chat([{"experience": "e", "strategy": "reseed", "prompt": ""}] * 2), PaintGenerator(edits=True)
    generator.redraws_edits = redraws
    run(tmp_path, model, generator)
    system = next(messages[0].text for schema, messages, _ in model.calls if schema == "Refinement")
    assert ("the whole image is drawn again" in system) == redraws
    assert ("only what failed is drawn anew" in system) == (not redraws)


def test_an_edit_that_was_not_offered_is_not_made(tmp_path: Path) -> None:
    bad = {"experience": "e", "strategy": "edit", "prompt": "p"}
    good = {"experience": "e", "strategy": "rewrite", "prompt": "p"}
    model, generator = chat([bad, good]), PaintGenerator()
    output, visited, _ = run(tmp_path, model, generator)
    assert [a.strategy for a in output["attempts"]] == ["plan", "rewrite", "rewrite"]
    assert "editor" not in visited
    assert all(r.edit is None for r in generator.requests)
    assert model.count("Refinement") == 2, "an edit that was not offered is a rewrite, and costs no second call"
