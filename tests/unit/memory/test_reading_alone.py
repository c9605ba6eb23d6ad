"""What only reads a memory changes no byte of its folder, and needs no right to."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from embedding import PointEmbeddings
from remembering import past

from gems.errors import InputError
from gems.memory import care
from gems.memory.experience import recall, remember
from gems.memory.store import FaissStore, reindex
from gems.memory.transfer import export_lines


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A memory with a record that has expired."""
    folder = tmp_path / "memory"
    with closing(FaissStore(folder, embedder=PointEmbeddings())) as store:
        remember(store, "eve", "run1", past("three cats"))
        store.put(("a",), "gone", {"text": "gone"}, ttl=1e-9)
    yield folder
    folder.chmod(0o700)


def read(folder: Path) -> None:
    """All that only reads."""
    assert care.stats(folder).users == {"eve": {"runs": 1, "solved": 1, "experiences": 1}}
    assert care.stats(folder).records == 2
    assert care.find(folder, "run").id == "run1"
    assert len(list(export_lines(folder))) == 2
    assert [name for name, is_right, _ in care.verify(folder, []) if not is_right] == ["images"]
    with closing(FaissStore(folder, embedder=PointEmbeddings(), read_only=True)) as store:
        assert [memory.run for memory in recall(store, "eve", "three cats", 3)] == ["run1"]
        assert store.search((), query="gone", limit=9)[0].key != "gone"
        with pytest.raises(InputError, match="open for reading only"):
            store.put(("a",), "k", {})


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def leave_open(folder: Path) -> None:
    """Leave the files as a killed process does: the last record is in the log alone."""
    copy = folder.with_name("copy")
    with closing(FaissStore(folder, embedder=PointEmbeddings())) as store:
        store.delete(("a",), "gone")
        shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    copy.rename(folder)


def leave_log_alone(folder: Path) -> None:
    leave_open(folder)
    (folder / "records.sqlite-shm").unlink()


@pytest.mark.parametrize(
    "leave", [lambda folder: None, leave_open, leave_log_alone], ids=["closed", "killed", "copied"]
)
@pytest.mark.parametrize("is_writable", [True, False])
def test_reading_changes_no_byte(
    leave: Callable[[Path], None], is_writable: bool, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(memory)
    before = content(memory)
    if not is_writable:
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        memory.chmod(0o500)
    read(memory)
    assert content(memory) == before


def test_others_may_write_meanwhile(memory: Path) -> None:
    with closing(FaissStore(memory, embedder=PointEmbeddings(), read_only=True)) as reader:
        with closing(FaissStore(memory, embedder=PointEmbeddings())) as writer:
            read(memory)
            remember(writer, "eve", "run2", past("two dogs"))
            assert {item.key for item in reader.search(("gems", "trajectories", "eve"))} <= {"run1", "run2"}
        assert {memory.run for memory in recall(reader, "eve", "two dogs", 3)} >= {"run2"}
    assert [path.name for path in memory.iterdir()] == ["records.sqlite"]


def test_an_empty_file_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "records.sqlite").touch()
    with pytest.raises(InputError, match="it holds no records yet"):
        care.stats(tmp_path)
    assert (tmp_path / "records.sqlite").stat().st_size == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE records SET fields = '['",
        "UPDATE records SET fields = '7'",
        "UPDATE records SET expires_at = 'soon'",
        "UPDATE records SET expires_at = 1e300",
        "UPDATE records SET value = x'ff00'",
        "UPDATE vectors SET vector = x'00'",
        "UPDATE meta SET value = 'many' WHERE name = 'dims'",
        "INSERT INTO meta VALUES ('reindexed', '9' || hex(zeroblob(30)))",
    ],
)
def test_what_another_program_wrote_is_told_in_one_line(change: str, memory: Path) -> None:
    with closing(sqlite3.connect(memory / "records.sqlite")) as db, db:
        db.execute(change)
    errors = []
    for command in (
        lambda: list(export_lines(memory)),
        lambda: list(care.verify(memory, [])),
        lambda: reindex(memory, PointEmbeddings(8, "other")),
    ):
        try:
            command()
        except InputError as error:
            errors.append(str(error))
    assert errors or "vectors" in change  # which reindexing has made again
    assert not any("\n" in error for error in errors)
