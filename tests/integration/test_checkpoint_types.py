"""Checkpoints of GEMS in a parent's checkpointer, of other versions, and read by another process."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from fakes import PaintGenerator
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from servers.langgraph_dev import ROOT

from gems import build_graph, checkpoint_types
from gems.memory.image_store import ImageStore

PARENT = """
import sqlite3, sys
from typing import Any
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict
import gems

class Desk(TypedDict, total=False):
    prompt: str
    image: Any
    attempts: Any

path, answer = sys.argv[1:]
serde = JsonPlusSerializer(allowed_msgpack_modules=gems.checkpoint_types())
saver = SqliteSaver(sqlite3.connect(path, check_same_thread=False), serde=serde)
desk = StateGraph(Desk)
settings = {"seed": 3, "memory": False, "max_rounds": 3, "review": "rounds", "plan": False}
light = {"mllm": "python:light_models:make_chat", "generator": "python:light_models:make_generator"}
desk.add_node("illustrator", gems.build_graph(settings=settings, **light))
desk.add_edge(START, "illustrator")
graph, config = desk.compile(checkpointer=saver), {"configurable": {"thread_id": "t"}}
out = graph.invoke(Command(resume={"action": answer}) if answer else {"prompt": "two red cars"}, config)
print([type(attempt).__name__ for attempt in graph.get_state(config).values.get("attempts", [])])
"""


@pytest.mark.slow
@pytest.mark.parametrize("strict", ["true", "false"])
def test_a_parents_checkpointer_knows_the_types(strict: str, tmp_path: Path) -> None:
    """Each step is a process of its own, as after a crash: everything is read from the disk."""
    environment = {**os.environ, "LANGGRAPH_STRICT_MSGPACK": strict, "PYTHONPATH": str(ROOT / "tests")}
    for answer in ("", "reject", "accept"):
        command = [sys.executable, "-W", "error", "-c", PARENT, str(tmp_path / "c.sqlite"), answer]
        result = forked.run(command, env=environment)
        assert result.returncode == 0, result.stderr
        assert "eserializ" not in result.stderr, "neither an unregistered nor a blocked type"
    assert result.stdout.strip() == "['Attempt', 'Attempt']"


def test_a_thread_of_the_first_version_goes_on(tmp_path: Path) -> None:
    """The file was written by 0.1.0, whose state had no schema number, and waits for a review."""
    file = tmp_path / "thread.sqlite"
    file.write_bytes(gzip.decompress(Path(__file__).with_name("thread-0.1.0.sqlite.gz").read_bytes()))
    connection = sqlite3.connect(file, check_same_thread=False)
    settings = {"seed": 3, "memory": False, "max_rounds": 2, "review": "end"}
    graph: Any = build_graph(
        checkpointer=SqliteSaver(connection),
        generator=PaintGenerator(),
        images=ImageStore(tmp_path / "images"),
        settings=settings,
    )
    config = {"configurable": {"thread_id": "t"}}
    assert "schema" not in graph.get_state(config).values
    asked = graph.invoke(Command(resume="a text"), config)["__interrupt__"][0].value
    assert asked["fault"]
    out = graph.invoke(Command(resume={"action": "accept"}), config)
    assert (out["outcome"], len(out["attempts"])) == ("accepted", 2)
    assert (out["requirements"][0].weight, out["attempts"][0].generator) == (1.0, "")
    connection.close()


def test_the_server_may_load_every_type_of_the_state() -> None:
    """A deployed server restores no other types from a checkpoint."""
    config = json.loads((ROOT / "langgraph.json").read_text())
    allowed = config["checkpointer"]["serde"]["allowed_msgpack_modules"]
    assert allowed == [[cls.__module__, cls.__name__] for cls in checkpoint_types()]
