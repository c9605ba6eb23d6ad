"""Files that a stranger may have written: checkpoints, figures of learned skills, addresses of images, model names."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from gems.authority import names_more_than_a_model
from gems.errors import InputError
from gems.graph.state import ImageRef
from gems.learning import shelf
from gems.memory.image_store import ImageStore
from gems.runs.checkpoints import open_checkpoints


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("json", b'{"lc": 1, "type": "secret", "id": ["OPENAI_API_KEY"]}', "does not write"),
        ("pickle", pickle.dumps(1), "does not write"),
        ("msgpack", b"\x81", "damaged"),
    ],
)
def test_a_checkpoint_has_our_own_form_or_is_refused(form: str, text: bytes, says: str, tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "c.sqlite") as saver, pytest.raises(InputError, match=says):
        saver.serde.loads_typed((form, text))


def test_the_address_of_an_image_is_not_opened_to_flush_it(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    ref = store.put(Image.new("RGB", (8, 8)), {})
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    store.flush(ref)
    for uri in (f"file://{tmp_path}/pipe", "file:///not/there.png", "http://127.0.0.1:9/i.png"):
        store.flush(ref.model_copy(update={"uri": uri}))
    store.flush(ImageRef(uri="file:///not/there.png", sha256="0" * 64, width=1, height=1))


def test_a_learned_skill_that_is_a_link_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMS_HOME", str(tmp_path / "home"))
    for body in ("one", "two"):
        draft = shelf.add_draft("lamps", "Use when there are lamps.", body, {}, {})
    (tmp_path / "secret").write_text("do not show")
    link = draft.folder.parents[1] / "versions" / "lamps" / "1" / "SKILL.md"
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="outside the skill's folder"):
        shelf.difference("lamps")


@pytest.mark.parametrize("figures", ["[", "[" * 10**5, "[]", '{"interval": ["x", "y"]}', '{"points": 1}'])
def test_figures_that_are_none_count_as_no_trial(figures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMS_HOME", str(tmp_path))
    draft = shelf.add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", {}, {})
    (draft.folder / "gate.json").write_text(figures)
    (draft.folder.parents[1] / "versions" / "lamps" / "1" / "trials.jsonl").write_text(figures + "\n")
    assert shelf.learned_skills("lamps")[0].figures == {}
    assert shelf.past_trials() == []


def test_an_address_within_a_models_name_is_the_operators() -> None:
    assert names_more_than_a_model("litellm:huggingface/https://stranger.example")
    assert not names_more_than_a_model("openrouter:openai/gpt-5")
