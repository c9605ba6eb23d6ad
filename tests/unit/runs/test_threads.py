"""Threads on disk: what is needed to resume a run, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.runs.record import ModelRecord
from gems.runs.sessions import begin_run, resume_run, run_to_end
from gems.runs.threads import Thread, begin_thread, check_models, load_thread


def thread(**changes: object) -> Thread:
    fields: dict[str, object] = {
        "id": "two-cats-1a2b3c",
        "prompt": "two cats",
        "context": GemsContext(seed=3),
        "out": Path("gems-out"),
        "started": datetime(2026, 1, 1, 12, 30, 15, 250, tzinfo=UTC),
        "models": {role: ModelRecord("pocket", "f" * 64) for role in ("generator", "mllm")},
    }
    return Thread(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_saved_thread_is_loaded_as_it_was() -> None:
    thread().save()
    assert load_thread("two-cats-1a2b3c") == thread()


@pytest.mark.parametrize("name", ["../secrets", "Two Cats", ""])
def test_an_invalid_name_reads_no_file(name: str) -> None:
    with pytest.raises(InputError, match="not a run's name"):
        load_thread(name)


def test_a_thread_that_does_not_exist_or_is_damaged_is_named(own_home: Path) -> None:
    with pytest.raises(InputError, match="there is no run 'two-cats-1a2b3c' to resume"):
        load_thread("two-cats-1a2b3c")
    thread().save()
    [path] = (own_home / "threads").iterdir()
    fields = json.loads(path.read_text())
    model = fields["models"]["mllm"]
    bad_models = [{}, {"mllm": model}, {"generator": model}, *({"generator": model, "mllm": m} for m in (None, {}, 5))]
    bad_models += [{"generator": model, "mllm": {**model, "fingerprint": odd}} for odd in (None, True, 5, {"a": 1})]
    bad_fields: list[dict[str, object]] = [
        *({"prompt": odd} for odd in ("a" * 10**6, "", "two\0cats", None, 5, [], {"a": 1})),
        {"context": {"max_rounds": 0}},
        *({"models": models} for models in bad_models),
    ]
    for content in ("{", "[]", json.dumps({"prompt": "x"}), *(json.dumps({**fields, **bad}) for bad in bad_fields)):
        path.write_text(content)
        with pytest.raises(InputError, match=r"two-cats-1a2b3c.json is damaged") as caught:
            load_thread("two-cats-1a2b3c")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("   ", {}, "the prompt is empty"),
        ("x" * 4001, {}, "the limit is 4,000"),
        ("two\x00cats", {}, "control characters"),
        ("two cats", {"skills_dir": "/nowhere"}, "/nowhere"),
        ("two cats", {"images_url": "/dev/null/images"}, "cannot keep images"),
    ],
)
def test_what_cannot_run_is_refused_before_a_model_is_loaded(
    tmp_path: Path, own_home: Path, prompt: str, settings: dict[str, object], message: str
) -> None:
    context = GemsContext(generator="a generator that does not exist", **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        begin_thread(prompt, context, tmp_path / "out")
    assert not (own_home / "threads").exists()


def test_a_run_goes_on_with_its_images_only(tmp_path: Path, own_home: Path) -> None:
    context = GemsContext(memory=False, plan=False, review="end", max_rounds=1)
    session = begin_run("a blue car", context, tmp_path / "out")
    run_to_end(session)  # as far as the review
    other = resume_run(session.thread.id, GemsContext(images_url=str(tmp_path / "other")).as_operator(), out=tmp_path)
    with pytest.raises(InputError, match="give the --images that it was begun with"):
        run_to_end(other)
    assert not run_to_end(resume_run(session.thread.id, GemsContext().as_operator(), out=tmp_path)).had_ended


def test_a_prompt_is_normalised_and_names_the_thread(tmp_path: Path) -> None:
    new_thread = begin_thread("  Two\n cats,\tplease!  ", GemsContext(memory=False), tmp_path / "out")
    assert new_thread.prompt == "Two cats, please!"
    assert new_thread.id.rpartition("-")[0] == "two-cats-please"
    saved = load_thread(new_thread.id)
    assert replace(saved, out=new_thread.out) == new_thread
    assert saved.out == Path("gems-out")  # a file names no folder to write to
    check_models(new_thread)
    with pytest.raises(InputError, match="other weights would make another run"):
        check_models(thread(context=GemsContext(memory=False)))
