"""Care of a memory that other processes write to meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from embedding import PointEmbeddings
from remembering import IMAGE, past

from gems.graph.state import ImageRef
from gems.memory import care
from gems.memory.records import Records
from gems.memory.store import FaissStore
from gems.memory.trajectory import SOLVED, TRAJECTORIES, namespace

RUNS, NOTES = namespace("default", TRAJECTORIES), namespace("default", SOLVED)


def remember(store: FaissStore, run: str, sha256: str = IMAGE.sha256) -> None:
    trajectory = past("three cats")
    trajectory.attempts[0] = trajectory.attempts[0].model_copy(
        update={"image": IMAGE.model_copy(update={"sha256": sha256})}
    )
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
        def remove(self, ref: ImageRef) -> bool:
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
