"""The state's layout has a number, and its types are known to checkpointers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import PaintGenerator
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import ValidationError

from gems import InputError, build_graph, checkpoint_types
from gems.graph.state import SCHEMA, Attempt, GemsState, ImageRef, Requirement, Turn, Verdict, check_schema
from gems.memory.image_store import ImageStore

IMAGE = ImageRef(uri="file:///a.png", sha256="0" * 64, width=8, height=8)
SETTINGS = {"seed": 3, "memory": False, "max_rounds": 1, "review": "end"}


def graph_in(tmp_path: Path, **arguments: Any) -> Any:
    images = ImageStore(tmp_path / "images")
    return build_graph(generator=PaintGenerator(), images=images, settings=SETTINGS, **arguments)


def config() -> Any:
    return {"configurable": {"thread_id": "t"}}


def test_what_an_older_version_wrote_has_todays_defaults() -> None:
    requirement = Requirement.model_validate({"id": "r1", "question": "Is it red?", "kind": "attribute"})
    assert (requirement.words, requirement.weight, requirement.must, requirement.about) == ("", 1.0, True, "ask")
    verdict = Verdict.model_validate({"requirement_id": "r1", "answer": "yes", "confidence": 1})
    assert verdict.boxes == ()
    attempt = Attempt.model_validate({"round": 1, "candidate": 0, "prompt": "x", "seed": 1, "image": IMAGE})
    assert attempt.generator == ""


def test_a_box_lies_within_the_image() -> None:
    Verdict(requirement_id="r1", answer="yes", confidence=1, boxes=((0, 0, 0.5, 1),))
    for box in ((0, 0, 1.5, 1), (-0.1, 0, 1, 1), (0, 0, 1), (0, 0, float("nan"), 1)):
        with pytest.raises(ValidationError):
            Verdict.model_validate({"requirement_id": "r", "answer": "yes", "confidence": 1, "boxes": [box]})


def test_a_run_writes_its_schema_and_a_newer_one_is_refused_in_one_line(tmp_path: Path) -> None:
    graph = graph_in(tmp_path, checkpointer=InMemorySaver())
    graph.invoke({"prompt": "two red cars"}, config())
    assert graph.get_state(config()).values["schema"] == SCHEMA
    graph.update_state(config(), {"schema": SCHEMA + 1}, as_node="verifier")
    for step in (Command(resume={"action": "accept"}), {"prompt": "a dog"}):
        with pytest.raises(InputError, match=f"a newer version of GEMS .* schema {SCHEMA + 1}") as caught:
            graph.invoke(step, config())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schema", [SCHEMA + 1, "2", None, 1.5])
def test_a_schema_that_is_no_known_number_is_refused(schema: Any) -> None:
    check_schema({})
    check_schema({"schema": SCHEMA})
    with pytest.raises(InputError, match="newer version"):
        check_schema({"schema": schema})


def test_earlier_turns_come_back_as_they_were(tmp_path: Path) -> None:
    turn = Turn(prompt="a red car", image=IMAGE)
    as_json = {"prompt": "a blue car", "requirements": [{"id": "r1", "question": "Is it blue?", "kind": "attribute"}]}
    graph = graph_in(tmp_path, checkpointer=InMemorySaver())
    out = graph.invoke({"prompt": "two red cars", "turns": [turn, as_json]}, config())
    assert out["turns"] == [turn, Turn.model_validate(as_json)]
    assert graph_in(tmp_path, checkpointer=InMemorySaver()).invoke({"prompt": "a dog"}, config())["turns"] == []


@pytest.mark.parametrize("turns", ["a red car", [1], [{"words": "x"}], [{"prompt": "x"}] * 21])
def test_turns_of_another_form_are_refused_in_one_line(turns: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        graph_in(tmp_path).invoke({"prompt": "two red cars", "turns": turns})
    assert str(caught.value).startswith("the input's turns")
    assert "\n" not in str(caught.value)


def test_the_types_for_checkpointers_hold_every_type_of_the_state() -> None:
    names = {cls.__name__ for cls in checkpoint_types()}
    assert {"Attempt", "ImageRef", "Requirement", "Verdict", "Review", "AskedFor", "Memory", "Failure"} <= names
    assert {"Turn", "Usage"} <= names
    assert all(cls.__module__ == GemsState.__module__ for cls in checkpoint_types())
