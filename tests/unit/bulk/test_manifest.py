"""What a batch is bound to stays the same when GEMS learns a new setting, and is another one with another value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from gems.bulk.results import claim, read_manifest
from gems.errors import InputError
from gems.evals.identity import bind_folder
from gems.graph.context import GemsContext
from gems.graph.state import Budget, Prices
from gems.options import ChatOptions, GeneratorOptions, RoleOptions
from gems.runs.record import ModelRecord
from gems.runs.same_settings import changed_settings

RECORDED = Path(__file__).with_name("batch-0.1.0.json")
"""A batch that an earlier version began, with the settings below."""
CONTEXT = GemsContext(
    memory=False,
    max_rounds=3,
    mllm="openai:gpt-5",
    chat_options=ChatOptions(temperature=0.5),
    role_options=RoleOptions(verifier=ChatOptions(image_size=512)),
    generator_options=GeneratorOptions(width=512),
    budget=Budget(images=4, prices=Prices(image=0.04)),
)
MODELS = {"mllm": ModelRecord("openai:gpt-5", "gpt-5"), "generator": ModelRecord("pocket", "abc")}
SKILLS = {"counting": "123"}


class NewerOptions(GeneratorOptions):
    sharpness: float = 1.0


class NewerBudget(Budget):
    energy: float | None = None


class NewerContext(GemsContext):
    """The settings of a later version."""

    generator_options: NewerOptions = Field(default_factory=NewerOptions)
    budget: NewerBudget = Field(default_factory=NewerBudget)
    tone: str = "plain"
    extra: dict[str, Any] = Field(default_factory=lambda: {"words": 3})


def newer(**changes: Any) -> NewerContext:
    return NewerContext.model_validate(CONTEXT.model_dump() | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(RECORDED, tmp_path / "batch.json")
    return tmp_path


def test_a_batch_of_an_earlier_version_goes_on(folder: Path) -> None:
    before = RECORDED.read_bytes()
    recorded = json.loads(before)
    for context in (CONTEXT, newer()):
        batch = claim(folder, context, MODELS, SKILLS)
        assert (batch.id, batch.bound_to) == (recorded["id"], recorded["bound_to"])
    assert (folder / "batch.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tone": "loud"}, "tone"),
        ({"extra": {"words": 4}}, "extra.words"),
        ({"generator_options": {"width": 512, "sharpness": 2}}, "generator_options.sharpness"),
        ({"generator_options": {}}, "generator_options.width"),
        ({"budget": {"images": 4, "energy": 1}}, "budget.energy"),
        ({"budget": {"images": 4, "cost": 1}}, "budget.cost"),
        ({"role_options": {"verifier": {"image_size": 256}}}, "role_options.verifier.image_size"),
        ({"role_options": {}}, "role_options.verifier"),
        ({"max_rounds": 5}, "max_rounds"),
    ],
)
def test_another_value_is_another_batch(change: dict[str, Any], name: str, folder: Path) -> None:
    with pytest.raises(InputError, match=rf"other settings or models \({name}[,)]"):
        claim(folder, newer(**change), MODELS, SKILLS)


def test_a_default_that_was_changed_is_another_value(folder: Path) -> None:
    class Changed(GemsContext):
        patience: int = 6

    with pytest.raises(InputError, match=r"\(patience\)"):
        claim(folder, Changed.model_validate(CONTEXT.model_dump() | {"patience": 6}), MODELS, SKILLS)
    assert claim(folder, Changed.model_validate(CONTEXT.model_dump()), MODELS, SKILLS)


def test_a_setting_that_is_gone_is_another_value(folder: Path) -> None:
    record = json.loads(RECORDED.read_text())["settings"]
    assert changed_settings(record | {"tone": "loud"}, CONTEXT) == ["tone"]
    assert changed_settings(record, CONTEXT) == []


@pytest.mark.parametrize("part", ["settings", "models", "skills", "bound_to"])
def test_a_manifest_that_was_changed_is_refused_before_anything_is_paid_again(part: str, folder: Path) -> None:
    manifest = json.loads(RECORDED.read_text())
    manifest[part] = "000000000000" if part == "bound_to" else {**manifest[part], "x": 1}
    (folder / "batch.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was changed since the batch began"):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["[]", '{"layout": 2}', "1", "null", '{"layout": 2, "id": 1}'])
def test_what_is_no_manifest_is_told_in_one_line(content: str, folder: Path) -> None:
    (folder / "batch.json").write_text(content)
    with pytest.raises(InputError, match=r"cannot be read|another version"):
        read_manifest(folder)


def test_an_evaluation_of_an_earlier_version_goes_on_too(tmp_path: Path) -> None:
    """Its folder is bound to its settings in the same way."""
    bind_folder(tmp_path, {"seed": 1, "settings": CONTEXT.model_dump(mode="json")}, CONTEXT)
    bind_folder(tmp_path, {"seed": 1, "settings": newer().model_dump(mode="json")}, newer())
    loud = newer(tone="loud")
    with pytest.raises(InputError, match="other prompts or settings"):
        bind_folder(tmp_path, {"seed": 1, "settings": loud.model_dump(mode="json")}, loud)
