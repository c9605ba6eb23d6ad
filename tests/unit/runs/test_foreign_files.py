"""Files that a stranger may have written: checkpoints, figures of learned skills, addresses of images, model names."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import ormsgpack
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_SINGLE_ARG
from PIL import Image

from gems.authority import names_more_than_a_model
from gems.bulk.export import export
from gems.bulk.export_folder import publish
from gems.bulk.journal import Journal
from gems.bulk.latest import read_latest
from gems.bulk.results import ResultsFile, locked, read_manifest, saved_jobs
from gems.bulk.watching import read_progress
from gems.errors import InputError
from gems.graph.builder import build_graph
from gems.graph.state import ImageRef, Requirement, Usage
from gems.learning import shelf
from gems.memory.image_store import ImageStore, encode_png
from gems.memory.index import newest
from gems.memory.records import open_records
from gems.runs.checkpoints import open_checkpoints, read_checkpoints
from gems.runs.interrupted import with_interrupted
from gems.runs.record import load_record
from gems.serve.ledger_file import LedgerFile


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


def test_a_checkpoint_calls_nothing_in_a_program_that_did_not_ask_for_strict_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langgraph.checkpoint.serde._msgpack.STRICT_MSGPACK_ENABLED", False)
    folder = tmp_path / "made by a checkpoint"
    call = ormsgpack.packb(("os", "mkdir", str(folder)))
    with open_checkpoints(tmp_path / "c.sqlite") as saver:
        saver.serde.loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(EXT_CONSTRUCTOR_SINGLE_ARG, call))))
        usage = saver.serde.loads_typed(saver.serde.dumps_typed(Usage(images=3)))
    assert not folder.exists()
    assert usage == Usage(images=3)


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


@pytest.mark.parametrize("number", ["²", "9" * 200, "-1"])
def test_a_version_that_is_no_number_is_none(number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMS_HOME", str(tmp_path))
    metadata = {"gems-version": "9" * 5000, "gems-fixes": number}
    draft = shelf.add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", metadata, {})
    (draft.folder.parents[1] / "versions" / "lamps" / number).mkdir()
    with pytest.raises(InputError, match="has one version only"):
        shelf.difference("lamps")
    assert (shelf.past_trials(), draft.version, draft.fix_count) == ([], 1, 0)
    for name in ("1", number):
        (tmp_path / "index" / name).mkdir(parents=True)
    assert newest(tmp_path / "index") == tmp_path / "index" / "1"


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


ID = "1f0a2b3c-4d5e-6f70-8000-0123456789ab"
FIELDS = {"v": 4, "id": ID, "ts": "2026-01-01", "channel_values": {}, "channel_versions": {}, "versions_seen": {}}


def checkpoint(**values: object) -> dict[str, object]:
    return FIELDS | {"channel_values": values}


@pytest.mark.parametrize(
    "content",
    [
        7,
        None,
        "text",
        [],
        {},
        {"channel_values": {}},
        FIELDS | {"id": "1"},
        FIELDS | {"channel_values": []},
        FIELDS | {"channel_versions": {"a": 1, "b": "2"}},
        FIELDS | {"versions_seen": {"a": 1}},
        checkpoint(usage={"images": 1}),
        checkpoint(usage=7),
        checkpoint(usage=Usage.model_construct(images=-5)),
        checkpoint(attempts={}),
        checkpoint(attempts=["x"]),
        checkpoint(run_id=5),
        checkpoint(errors="x"),
        checkpoint(draft="a" * 10**6),
        checkpoint(requirements=[Requirement(id="r1", question="a" * 10**6, kind="other")]),
    ],
)
def test_what_is_no_checkpoint_is_one_line_with_file_and_thread(content: object, tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with open_checkpoints(path) as saver:
        form, text = saver.serde.dumps_typed(content)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO checkpoints VALUES ('thread-1', '', '1', NULL, ?, ?, '{}')", (form, text))
    with open_checkpoints(path) as saver:
        graph = build_graph(checkpointer=saver)
        config: RunnableConfig = {"configurable": {"thread_id": "thread-1"}}
        for read in (lambda: graph.get_state(config), lambda: list(graph.get_state_history(config))):
            with pytest.raises(InputError, match=r"c\.sqlite holds no usable checkpoint of 'thread-1' \(") as caught:
                read()
            assert "\n" not in str(caught.value)


def test_a_pending_write_that_is_none_is_told(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "c.sqlite") as saver:
        config: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        config = saver.put(config, cast(Checkpoint, FIELDS), {}, {})
        saver.put_writes(config, [("usage", "a lot")], "task")
        with pytest.raises(InputError, match=r"holds no usable checkpoint of 't' \(usage: "):
            saver.get_tuple(config)


NO_USAGE = {
    "infinite": Usage.model_construct(seconds=math.inf),
    "no number": Usage.model_construct(extra_cost=math.nan),
    "more than storage holds": Usage.model_construct(chat_calls=2**64 - 1),
    "negative": Usage.model_construct(images=-1),
}


@pytest.mark.parametrize("usage", NO_USAGE.values(), ids=NO_USAGE)
@pytest.mark.parametrize("channel", ["usage", "gems_interrupted", "gems_in_flight"])
def test_a_usage_that_no_run_can_have_is_refused_before_anything_is_drawn(
    channel: str, usage: Usage, tmp_path: Path
) -> None:
    by_node = {"verifier": usage}
    content = {"usage": usage, "gems_interrupted": by_node, "gems_in_flight": ("task", by_node)}[channel]
    with open_checkpoints(tmp_path / "c.sqlite") as saver:
        graph = build_graph(checkpointer=saver)
        config: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        config = saver.put(config, cast(Checkpoint, FIELDS), {}, {})
        saver.put_writes(config, [(channel, content)], "~task")
        with pytest.raises(InputError, match=r"damaged|no usable checkpoint") as caught:
            with_interrupted(graph, "t", {"usage": Usage()})
        assert "\n" not in str(caught.value)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
COMPUTING = {
    "a view that never ends": f"CREATE VIEW more AS {ENDLESS} i FROM n",
    "a trigger that never ends": f"CREATE TRIGGER t AFTER INSERT ON {{table}} BEGIN {ENDLESS} count(*) FROM n; END",
    "a trigger that changes what is written": "CREATE TRIGGER t AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END",
    "a trigger with our name": "CREATE TRIGGER vector_removed AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END",
    "a column of a gigabyte": "ALTER TABLE {table} ADD COLUMN more BLOB AS (zeroblob(1000000000))",
    "a check that takes long": "CREATE TABLE more (a CHECK (length(hex(zeroblob(100000000))) > 0))",
    "a default value that is computed": "CREATE TABLE more (a DEFAULT/**/(hex(zeroblob(100000000))))",
    "an index that computes": "CREATE INDEX more ON {table} (length(hex(zeroblob(100000000))))",
    "an index of what is computed": "CREATE INDEX more ON {table} ({column}) WHERE length(hex({column})) > 1",
    "a table that is a program": "CREATE VIRTUAL TABLE more USING fts5(a)",
}


@pytest.mark.parametrize("statement", COMPUTING.values(), ids=COMPUTING)
def test_no_database_of_somebody_else_computes_what_is_read(statement: str, tmp_path: Path) -> None:
    checkpoints, memory = tmp_path / "c.sqlite", tmp_path / "memory"
    with open_checkpoints(checkpoints):
        pass
    open_records(memory).close()
    for path, table, column in (
        (checkpoints, "checkpoints", "thread_id"),
        (memory / "records.sqlite", "records", "value"),
    ):
        with closing(sqlite3.connect(path)) as db, db:
            if "vector_removed" in statement:
                db.execute("DROP TRIGGER IF EXISTS vector_removed")
            db.execute(statement.format(table=table, column=column))
    with pytest.raises(InputError, match="is not one that GEMS makes"), open_checkpoints(checkpoints):
        pass
    with pytest.raises(InputError, match="is not one that GEMS makes"), read_checkpoints(checkpoints):
        pass
    for read_only in (True, False):
        with pytest.raises(InputError, match="is not one that GEMS makes"):
            open_records(memory, read_only=read_only)


def _name_in_journal(database: Path, named: Path) -> None:
    """Leave a journal beside a database as a transaction over several databases does that was killed."""
    magic, page = bytes.fromhex("d9d505f920a163d7"), int.from_bytes(database.read_bytes()[16:18], "big")
    pages = database.stat().st_size // page
    head = magic + b"".join(n.to_bytes(4, "big") for n in (0, 1, pages, 512, page))
    name, lock_page = str(named).encode(), 0x40000000 // page + 1
    tail = [lock_page.to_bytes(4, "big"), name, len(name).to_bytes(4, "big"), sum(name).to_bytes(4, "big"), magic]
    database.with_name(f"{database.name}-journal").write_bytes(head.ljust(512, b"\0") + b"".join(tail))


@pytest.mark.parametrize("through_link", [False, True])
def test_no_journal_of_somebody_else_deletes_a_file(through_link: bool, tmp_path: Path) -> None:
    precious, checkpoints, memory = tmp_path / "precious.txt", tmp_path / "c.sqlite", tmp_path / "memory"
    records, ledger = memory / "records.sqlite", tmp_path / "runs.sqlite"
    precious.write_text("mine")
    with open_checkpoints(checkpoints):
        pass
    open_records(memory).close()
    LedgerFile(ledger).close()
    for path in (checkpoints, records, ledger):
        if through_link:
            (path.parent / "elsewhere").mkdir(exist_ok=True)
            path.symlink_to(path.rename(path.parent / "elsewhere" / path.name))
        _name_in_journal(path.resolve(), precious)
    with pytest.raises(InputError, match="names another file"), read_checkpoints(checkpoints):
        pass
    with pytest.raises(InputError, match="names another file"), open_checkpoints(checkpoints):
        pass
    for read_only in (True, False):
        with pytest.raises(InputError, match="names another file"):
            open_records(memory, read_only=read_only)
    with pytest.raises(InputError, match="names another file"):
        LedgerFile(ledger)
    assert precious.read_text() == "mine"


def test_a_damaged_schema_that_is_no_text_is_told_in_a_line(tmp_path: Path) -> None:
    checkpoints, memory, ledger = tmp_path / "c.sqlite", tmp_path / "memory", tmp_path / "runs.sqlite"
    with open_checkpoints(checkpoints):
        pass
    open_records(memory).close()
    LedgerFile(ledger).close()
    for path in (checkpoints, memory / "records.sqlite", ledger):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA writable_schema = 1")
            db.execute("UPDATE sqlite_master SET sql = replace(sql, 'TABLE', CAST(X'FF' AS TEXT))")
    attempts: list[Callable[[], object]] = [
        lambda: open_checkpoints(checkpoints).__enter__(),
        lambda: read_checkpoints(checkpoints).__enter__(),
        lambda: open_records(memory),
        lambda: open_records(memory, read_only=True),
        lambda: LedgerFile(ledger),
    ]
    for attempt in attempts:
        with pytest.raises(InputError, match=r"cannot (use|be read|store)"):
            attempt()


def test_a_journal_of_a_killed_process_is_rolled_back(tmp_path: Path) -> None:
    path, journal = tmp_path / "records.sqlite", tmp_path / "records.sqlite-journal"
    open_records(tmp_path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA cache_size = 1")  # so that both files are written before the transaction ends
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE more AS SELECT zeroblob(100000) AS a")
        left, torn = journal.read_bytes(), path.read_bytes()
    path.write_bytes(torn)
    journal.write_bytes(left)
    with closing(open_records(tmp_path)) as records:
        assert records.meta("store")
    assert not journal.exists()


def test_what_sqlite_itself_adds_to_a_database_is_no_fault(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "c.sqlite"):
        pass
    open_records(tmp_path).close()
    for name in ("c.sqlite", "records.sqlite"):
        with closing(sqlite3.connect(tmp_path / name)) as db, db:
            db.execute("ANALYZE")
    with closing(sqlite3.connect(tmp_path / "c.sqlite")) as db, db:
        db.execute("ALTER TABLE writes DROP COLUMN task_path")  # as LangGraph's earlier versions made it
    for _ in range(2):
        with open_checkpoints(tmp_path / "c.sqlite"), read_checkpoints(tmp_path / "c.sqlite") as saver:
            assert saver is not None
    open_records(tmp_path).close()


# --- folders of batches, evaluations, exports, runs and memories -----------------------------------------------------

LEADS_OUT = "leads out of its folder"
NO_FILE = "neither a file nor a folder"
BATCH_NAMES = (
    ".lock",
    "batch.json",
    "prompts.jsonl",
    "results.jsonl",
    "begun.jsonl",
    "latest.json",
    "index.parquet",
    "not_started.jsonl",
    "checkpoints.sqlite",
    "checkpoints.sqlite-wal",
    "images",
    "images/ab",
    "runs",
    "runs/0123456789abcdef",
)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's, which is the same after the test."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "file").write_text("mine")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"file": "mine"}


def plant(path: Path, how: str, elsewhere: Path) -> None:
    """Put something odd in the place of a file or folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "circle":
        path.symlink_to(path)
    else:
        path.symlink_to({"folder": elsewhere, "file": elsewhere / "file", "new": elsewhere / "new"}[how])


@pytest.mark.parametrize("how", ["folder", "file", "new", "pipe", "circle"])
@pytest.mark.parametrize("name", BATCH_NAMES)
def test_nothing_in_a_batch_folder_leads_elsewhere(name: str, how: str, elsewhere: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plant(out / name, how, elsewhere)
    says = {"pipe": NO_FILE, "circle": "cannot be used|leads out"}.get(how, LEADS_OUT)
    for read in (lambda: locked(out).__enter__(), lambda: read_progress(out), lambda: export(out, "webdataset", out)):
        with pytest.raises(InputError, match=says) as caught:
            read()
        assert str(out / name) in str(caught.value)


def test_links_within_a_folder_and_links_to_a_folder_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "disk" / "pictures").mkdir(parents=True)
    (tmp_path / "disk" / "images").symlink_to(tmp_path / "disk" / "pictures")
    (tmp_path / "disk" / "notes").symlink_to(tmp_path)  # no file of a batch
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize("how", ["folder", "file", "new", "pipe"])
@pytest.mark.parametrize("name", ["records.sqlite", "records.sqlite-wal", "index", "index/lock", "reindexing.lock"])
def test_nothing_in_a_memory_leads_elsewhere(name: str, how: str, elsewhere: Path, tmp_path: Path) -> None:
    plant(tmp_path / "memory" / name, how, elsewhere)
    with pytest.raises(InputError, match=NO_FILE if how == "pipe" else LEADS_OUT):
        open_records(tmp_path / "memory")


@pytest.mark.parametrize("link", ["train", "data", "data/more", "a.tar"])
def test_nothing_in_an_export_leads_elsewhere(link: str, elsewhere: Path, tmp_path: Path) -> None:
    target, draft = tmp_path / "target", tmp_path / "draft"
    file = draft / link / "x.png" if link != "a.tar" else draft / link
    file.parent.mkdir(parents=True)
    file.write_text("new")
    plant(target / link, "folder", elsewhere)
    with pytest.raises(InputError, match="is not the export's"):
        publish(draft, target, {})


def test_an_image_is_not_written_through_a_link(elsewhere: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    digest = hashlib.sha256(encode_png(picture, {})).hexdigest()
    plant(tmp_path / "images" / digest[:2], "folder", elsewhere)
    with pytest.raises(OSError, match="leads out of the image store"):
        ImageStore(tmp_path / "images").put(picture, {})


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    """Sparse files of a terabyte, which cost their maker nothing."""
    for name in ("batch.json", "results.jsonl", "begun.jsonl", "prompts.jsonl", "latest.json", "run.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    readers: tuple[Callable[[], object], ...] = (
        lambda: read_manifest(tmp_path),
        lambda: ResultsFile(tmp_path / "results.jsonl"),
        lambda: Journal(tmp_path / "begun.jsonl"),
        lambda: saved_jobs(tmp_path),
        lambda: read_latest(tmp_path),
        lambda: load_record(tmp_path),
    )
    for read in readers:
        with pytest.raises(InputError, match="more than 64 MB"):
            read()
