"""A memory whose file another program has written: any value in any column."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from embedding import PointEmbeddings
from remembering import past
from typer.testing import CliRunner

from gems.cli.main import app
from gems.errors import InputError
from gems.memory import care
from gems.memory.experience import recall, remember
from gems.memory.store import FaissStore, reindex
from gems.memory.transfer import export_lines
from gems.secrets import one_line

RUNS = {"run1": "two red cars", "run2": "a blue dog on a hill"}
VALUES = {
    "null": None,
    "negative": -1,
    "zero": 0,
    "large": 300_000_000,
    "huge": 2**62,
    "largest": 2**63 - 1,
    "real": 0.5,
    "huge real": 1e308,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "text": "x",
    "no text": "",
    "number in text": "7",
    "blob": b"\xff\xfe",
    "no blob": b"",
    "zeros": bytes(1536),
    "JSON": '{"a": 1}',
    "list": '["prompt"]',
    "nested": '{"a":' * 2000,
    "escape": "\x1b[31m\nline",
}
COLUMNS = {
    "meta": "name value",
    "namespaces": "id path",
    "records": "id namespace key value created_at updated_at fields ttl expires_at",
    "vectors": "id record space vector",
    "removed": "id vector",
    "sqlite_sequence": "name seq",
}


POINTS = PointEmbeddings()


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    with closing(FaissStore(folder, embedder=POINTS)) as store:
        for run, prompt in RUNS.items():
            remember(store, "default", run, past(prompt))
            remember(store, "eve", f"eves-{run}", past(prompt))
        for key in ("k", "gone"):
            store.put(("notes",), key, {"text": "a note"}, index=["text"], ttl=1e6)
        store.delete(("notes",), "gone")
    return folder


def change(folder: Path, table: str, column: str, value: Any) -> bool:
    """Change a column of all rows, or of one if all must differ; whether SQLite lets it."""
    with closing(sqlite3.connect(folder / "records.sqlite")) as db:
        for rows in ("", f" WHERE rowid = (SELECT max(rowid) FROM {table})"):
            with suppress(sqlite3.Error):
                db.execute(f"UPDATE {table} SET {column} = ?{rows}", (value,))
                db.commit()
                return True
    return False


def _search(folder: Path) -> None:
    with closing(FaissStore(folder, embedder=POINTS, read_only=True)) as store:
        store.list_namespaces()
        for namespace in (("gems", "trajectories", "default"), ("notes",), ()):
            store.search(namespace, query="two")
            store.search(namespace, limit=99)
        recall(store, "default", "two", 3)


def _write(folder: Path) -> None:
    with closing(FaissStore(folder, embedder=POINTS)) as store:
        remember(store, "default", "run3", past("three birds"))
        store.compact()


COMMANDS: dict[str, Callable[[Path], object]] = {
    "search": _search,
    "show": lambda folder: care.find(folder, "run1"),
    "stats": care.stats,
    "export": lambda folder: list(export_lines(folder)),
    "verify": lambda folder: list(care.verify(folder, [])),
    "compact": _write,
    "reindex": lambda folder: reindex(folder, POINTS),
}


@pytest.mark.parametrize(("table", "column"), [(table, c) for table, cs in COLUMNS.items() for c in cs.split()])
def test_no_value_of_a_file_ends_a_command_with_an_internal_error(
    table: str, column: str, memory: Path, tmp_path: Path
) -> None:
    faults = []
    for name, value in VALUES.items():
        folder = tmp_path / name
        shutil.copytree(memory, folder)
        if not change(folder, table, column, value):
            continue
        for command in (*COMMANDS, *COMMANDS):  # and after the repair
            try:
                COMMANDS[command](folder)
            except (InputError, sqlite3.Error) as error:
                if "\n" in one_line(error):
                    faults.append((name, command, repr(error)))
            except Exception as error:
                faults.append((name, command, repr(error)))
    assert not faults


def test_the_memory_of_a_search_follows_the_number_of_vectors(memory: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(memory, tmp_path / "memory")
    with closing(sqlite3.connect(folder / "records.sqlite")) as db:
        db.execute("UPDATE vectors SET id = 300000000 WHERE id = (SELECT max(id) FROM vectors)")
        db.execute("UPDATE namespaces SET id = 9000000000 WHERE path = 'notes'")
        db.commit()
    tracemalloc.start()
    _search(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**28
    verified = CliRunner().invoke(app, ["memory", "verify", "--folder", str(folder), "--json"])
    checks = {check["name"]: check for check in json.loads(verified.stdout)}
    assert not checks["vectors"]["ok"]


@pytest.mark.parametrize("value", ["yesterday", "", b"\x00\xff", 1e308])
@pytest.mark.parametrize("column", ["created_at", "updated_at"])
def test_a_record_without_a_time_costs_itself_until_it_is_mended(
    column: str, value: Any, memory: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(memory, tmp_path / "memory")
    with closing(sqlite3.connect(folder / "records.sqlite")) as db:
        db.execute(f"UPDATE records SET {column} = ? WHERE key = 'run1'", (value,))
        db.commit()

    def invoke(*command: str) -> Any:
        return CliRunner().invoke(app, ["memory", *command, "--folder", str(folder)])

    assert invoke("show", "run2").exit_code == 0
    assert "the record 'run1' in gems.trajectories.default has" in invoke("export").stderr
    assert "run1" in invoke("verify").stdout.replace("\n", "")
    COMMANDS["compact"](folder)
    assert invoke("export").exit_code == 0
    assert invoke("show", "run1").exit_code == 0
