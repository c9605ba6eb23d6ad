"""Care of a memory that other processes write to meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from embedding import PointEmbeddings
from PIL import Image
from remembering import IMAGE, past

from gems.errors import BackendError
from gems.graph.state import ImageRef
from gems.memory import care
from gems.memory.image_store import ImageStore
from gems.memory.records import Records
from gems.memory.store import FaissStore
from gems.memory.trajectory import SOLVED, TRAJECTORIES, namespace

RUNS, NOTES = namespace("default", TRAJECTORIES), namespace("default", SOLVED)


def remember(store: FaissStore, run: str, image: str | ImageRef = IMAGE) -> None:
    trajectory = past("three cats")
    ref = IMAGE.model_copy(update={"sha256": image}) if isinstance(image, str) else image
    trajectory.attempts[0] = trajectory.attempts[0].model_copy(update={"image": ref})
    store.put(RUNS, run, trajectory.model_dump(mode="json"), index=["prompt"])
    store.put(NOTES, run, {"run": run}, index=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaissStore]:
    with closing(FaissStore(tmp_path / "memory", embedder=PointEmbeddings())) as store:
        yield store


def test_what_is_remembered_while_others_are_forgotten_stays(store: FaissStore, tmp_path: Path) -> None:
    for run in ("old", "older"):
        remember(store, run, {"old": "1" * 64, "older": "2" * 64}[run])
    removed_hashes = []

    class Images:
        def remove(self, ref: ImageRef, is_needed: Callable[[], bool]) -> bool:
            """A run ends meanwhile."""
            remember(store, "new", "3" * 64)
            removed_hashes.append(ref.sha256)
            return True

    result = care.forget(tmp_path / "memory", care.Selection(("old", "older")), Images())  # type: ignore[arg-type]

    assert {run.id for run in result.runs} == {"old", "older"}
    assert [item.key for item in store.search(NOTES)] == ["new"]
    assert [item.key for item in store.search(RUNS)] == ["new"]
    assert set(removed_hashes) == {"1" * 64, "2" * 64}


def test_a_memory_is_verified_as_of_one_moment(
    store: FaissStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(store, "old")
    read_page = Records.indexed

    def indexed(records: Records, after: int) -> Any:
        remember(store, f"new{after}")
        return read_page(records, after) if after < 5 else []

    monkeypatch.setattr(Records, "indexed", indexed)
    checks = care.verify(tmp_path / "memory", [])
    assert [(name, detail) for name, ok, detail in checks if not ok and name != "images"] == []


class SlowImages(ImageStore):
    """A store of images that somebody else works with while an image is being deleted."""

    meanwhile: Callable[[], None]

    def remove(self, ref: ImageRef, is_needed: Callable[[], bool] = lambda: False) -> bool:
        self.meanwhile()
        return super().remove(ref, is_needed)


def test_an_image_that_is_remembered_while_it_is_forgotten_stays(store: FaissStore, tmp_path: Path) -> None:
    images = SlowImages(tmp_path / "images")
    ref = images.put(Image.new("RGB", (8, 8)), {})
    remember(store, "old", ref)
    images.meanwhile = lambda: remember(store, "new", ref)

    result = care.forget(tmp_path / "memory", care.Selection(("old",)), images)

    assert (len(result.runs), result.images) == (1, 0)
    assert ImageStore(tmp_path / "images").read(ref)
    images.meanwhile = lambda: None
    assert care.forget(tmp_path / "memory", care.Selection(("new",)), images).images == 1
    with pytest.raises(BackendError, match="does not exist"):
        ImageStore(tmp_path / "images").read(ref)


def test_an_image_that_was_forgotten_while_a_run_used_it_comes_back(tmp_path: Path) -> None:
    images = ImageStore(tmp_path)
    ref = images.put(Image.new("RGB", (8, 8)), {})
    images.read(ref)
    assert ImageStore(tmp_path).remove(ref)
    assert not ImageStore(tmp_path).keep(ref)
    assert images.keep(ref)
    assert ImageStore(tmp_path).read(ref)
