"""A run's record and folder: what is written, and what can be read back."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Attempt, GemsState, Requirement, Usage, Verdict
from gems.memory.image_store import ImageStore
from gems.options import ChatOptions, RoleOptions
from gems.runs.folder import write_run
from gems.runs.record import ModelRecord, RunRecord, load_record, model_records, run_record
from gems.runs.replay import replay

MODELS = {role: ModelRecord("pocket", "f" * 64) for role in ("mllm", "generator")}
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def record(images: ImageStore) -> RunRecord:
    """Two attempts, the second one the best."""
    attempts = [
        Attempt(
            round=n,
            candidate=0,
            prompt=f"cat {n}",
            seed=n,
            image=images.put(Image.new("RGB", (32, 32), (n, n, n)), {}),
            verdicts=(Verdict(requirement_id="r1", answer="yes" if n == 2 else "no", confidence=0.9),),
            score=0.9 if n == 2 else 0.1,
        )
        for n in (1, 2)
    ]
    values = GemsState(
        run_id="abc",
        prompt="ein Kätzchen",
        outcome="solved",
        seed=1,
        attempts=attempts,
        requirements=[Requirement(id="r1", question="Is there a cat?", kind="object")],
        usage=Usage(images=2, seconds=0.25),
        errors=[],
    )
    context = GemsContext(memory_url="postgresql://ann:secret@host/gems")
    return run_record(values, context, MODELS, "a-cat-1", STARTED, STARTED)


def test_other_parameters_of_requests_make_another_model_and_are_not_written_down() -> None:
    def records(own: ChatOptions | None = None, **more: str) -> dict[str, ModelRecord]:
        options = ChatOptions.model_validate({"api_key": "x", "base_url": "http://localhost:1", **more})
        roles = RoleOptions(verifier=own)
        context = GemsContext(mllm="openai:m", chat_options=options, role_options=roles, memory=False).as_operator()
        return model_records(context, load=False)

    plain, common = records(), records(extra_body='{"secret": 5}')
    assert "verifier" not in plain
    assert plain["mllm"].fingerprint == "m"
    marks = {plain["mllm"], common["mllm"], records(extra_body='{"secret": 6}')["mllm"]}
    assert len(marks) == 3
    assert "secret" not in str(marks)
    verifier = records(ChatOptions.model_validate({"extra_body": {"secret": 5}}))
    assert verifier["mllm"] == plain["mllm"]
    assert verifier["verifier"] == common["mllm"]


def test_the_layout_of_run_json(record: RunRecord) -> None:
    content = json.loads(record.to_json())
    keys = """
        schema gems_version run_id thread prompt outcome score best seed models settings operator_settings requirements
        checks memories skills offered attempts usage errors notes started_at finished_at
    """
    assert list(content) == keys.split()
    keys = """
        round candidate strategy prompt seed image edited_from generator verdicts checks score judged experience file
    """
    assert list(content["attempts"][0]) == keys.split()
    assert (content["schema"], content["best"], content["score"]) == (1, 1, 0.9)
    assert content["models"]["generator"] == {"name": "pocket", "fingerprint": "f" * 64}
    assert content["attempts"][1]["file"] == "round-2-0.png"
    assert content["started_at"] == "2026-01-01T00:00:00+00:00"
    assert "memory_url" not in content["settings"]
    assert content["operator_settings"] == ["memory_url"]
    assert '"ein Kätzchen"' in record.to_json()
    assert record.to_json().startswith('{\n  "schema": 1,\n')


def test_a_run_that_was_stopped_before_its_first_step_has_a_record() -> None:
    record = run_record(GemsState(prompt="a cat"), GemsContext(), MODELS, "a-cat-1", STARTED)
    assert (record.outcome, record.best, record.score, record.run_id) == ("cancelled", None, 0.0, None)
    assert record.best_attempt is None


def test_a_folder_holds_every_image_and_can_be_written_again(
    tmp_path: Path, record: RunRecord, images: ImageStore
) -> None:
    folder = tmp_path / "out" / "a-cat-1"
    files = write_run(folder, record, images)
    names = {"round-1-0.png", "round-2-0.png", "best.png", "run.json", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    assert files.image == folder / "best.png"
    assert hashlib.sha256((folder / "best.png").read_bytes()).hexdigest() == record.attempts[1].image.sha256
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_run(folder, record, images)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (
        load_record(folder)
        == load_record(folder / "run.json")
        == (folder, RunRecord.model_validate_json(before["run.json"]))
    )


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, record: RunRecord, images: ImageStore) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"taken.*--out"):
        write_run(tmp_path / "taken", record, images)


def _without(record: dict[str, Any], *path: str | int) -> dict[str, Any]:
    part: Any = record
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [r], "not a run of this version"),
        (lambda r: r | {"schema": 2}, "not a run of this version"),
        (lambda r: _without(r, "models", "generator"), "models has no generator"),
        (lambda r: _without(r, "models"), "damaged .models: Field required"),
        (lambda r: _without(r, "attempts"), "damaged .attempts: Field required"),
        (lambda r: _without(r, "attempts", 0, "image"), "damaged .attempts.0.image: Field required"),
        (lambda r: r | {"attempts": [{**r["attempts"][0], "more": 1}]}, "attempts.0.more: Extra inputs"),
        (lambda r: r | {"attempts": [{**r["attempts"][0], "file": "../../secret.png"}]}, "attempts.0.file"),
        (lambda r: r | {"best": 2}, "best is 2, but there are 2 attempts"),
        (lambda r: r | {"outcome": "lost"}, "damaged .outcome"),
        (lambda r: r | {"prompt": "a" * 100_001}, "a text of 100,001 characters; the limit is 100,000"),
        (lambda r: r | {"attempts": [{**r["attempts"][0], "negative_prompt": "a" * 10**6}]}, "a text of 1,000,000"),
        (lambda r: r | {"models": {**r["models"], "a" * 10**6: r["models"]["generator"]}}, "a text of 1,000,000"),
    ],
)
def test_a_foreign_record_is_refused_in_one_line(tmp_path: Path, record: RunRecord, change: Any, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(change(json.loads(record.to_json()))))
    with pytest.raises(InputError, match=message) as caught:
        load_record(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*run\.json"):
        load_record(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_record(tmp_path)


def test_a_record_of_more_images_than_its_run_can_draw_is_not_replayed(tmp_path: Path, record: RunRecord) -> None:
    settings = record.settings.model_copy(update={"max_rounds": 1, "candidates": 1})
    sent = record.model_copy(update={"settings": settings})
    with pytest.raises(InputError, match="the record has 2 images; a run with its settings draws at most 1"):
        next(replay(tmp_path, sent, GemsContext().as_operator()))
