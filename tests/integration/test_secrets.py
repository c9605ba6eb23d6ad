"""Keys are never written anywhere, neither by successful runs nor when a server repeats them in an error."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import traceback
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import forked
import pytest
from chatting import KEY, PROMPT, ChatEndpoint
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.checkpoint.sqlite import SqliteSaver

from gems.authority import OPERATOR
from gems.errors import BackendError, InputError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.models.registry import init_mllm
from gems.nodes.prompt_checks import Plan
from gems.nodes.retry import RETRY
from gems.options import ChatOptions, GeneratorOptions

pytestmark = pytest.mark.slow

CHAT_KEY, IMAGE_KEY = "sk-chat-canary-71d0", "sk-image-canary-c4e8"
CANARIES = (KEY, CHAT_KEY, IMAGE_KEY)
QUICK = RETRY._replace(initial_interval=0.001, max_interval=0.002, jitter=False)


def gems(tmp_path: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with only the given environment variables that could hold keys."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "GEMS_"))}
    variables = {"GEMS_HOME": str(tmp_path / "home"), "GEMS_DEBUG": "", "COLUMNS": "300", **env}
    return forked.run(forked.command_line(*args), cwd=tmp_path, env=clean | variables)


def options(kind: str, **values: str) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{kind}-option", f"{name}={value}")]


def leaks(
    tmp_path: Path, process_result: subprocess.CompletedProcess[str] | None = None, *, min_files: int = 1
) -> list[str]:
    """Files that contain a key, and outputs that do."""
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= min_files
    leaky_files = [str(path) for path in files if any(key.encode() in path.read_bytes() for key in CANARIES)]
    if process_result is not None:
        outputs = {"stdout": process_result.stdout, "stderr": process_result.stderr}
        leaky_files += [name for name, text in outputs.items() if any(key in text for key in CANARIES)]
    return leaky_files


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.rglob("*") if path.is_file()}


# --- the command line -----------------------------------------------------------------------------------------------


def test_a_run_with_the_right_key_succeeds_and_does_not_write_it(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server, "locked")
    address = options("chat", base_url=str(chat.options.base_url))
    result = gems(tmp_path, "generate", PROMPT, "--seed", "7", "--mllm", "openai:pocket", *address, OPENAI_API_KEY=KEY)
    assert result.returncode == 0, result.stderr
    assert {entry["key"] for entry in chat.log} == {f"Bearer {KEY}"}
    assert {entry["form"] for entry in chat.log} >= {"Plan", "Requirements", "Verdicts"}
    assert {"run.json", "report.html", "best.png", "checkpoints.sqlite"} <= names(tmp_path)
    assert leaks(tmp_path, result, min_files=5) == []


def test_a_key_repeated_by_a_chat_server_is_hidden(chat_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server, "echo-key")
    arguments = options("chat", base_url=str(chat.options.base_url), api_key=CHAT_KEY)
    result = gems(tmp_path, "generate", PROMPT, "--mllm", "openai:pocket", "--json", *arguments)
    assert result.returncode == 3, result.stderr
    assert {entry["key"] for entry in chat.log} == {f"Bearer {CHAT_KEY}"}
    assert "Incorrect API key provided: Bearer [key]." in json.loads(result.stdout)["errors"][0]
    assert leaks(tmp_path, result, min_files=3) == []


def test_a_key_repeated_by_an_image_server_is_hidden(chat_server: str, image_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server)
    arguments = [
        *options("chat", base_url=str(chat.options.base_url)),
        *options("generator", base_url=f"{image_server}/locked/v1", timeout="5"),
    ]
    models = ["--mllm", "openai:pocket", "--generator", "openai:painter"]
    result = gems(
        tmp_path, "generate", PROMPT, *models, *arguments, OPENAI_API_KEY=CHAT_KEY, GEMS_IMAGE_API_KEY=IMAGE_KEY
    )
    assert result.returncode == 3, result.stderr
    assert "Incorrect API key provided: Bearer [key]" in result.stderr + result.stdout
    assert {entry["key"] for entry in chat.log} == {f"Bearer {CHAT_KEY}"}
    assert leaks(tmp_path, result, min_files=3) == []


def test_the_rows_of_a_batch_hold_no_key(chat_server: str, image_server: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue dog\n")
    arguments = [
        *options("chat", base_url=str(ChatEndpoint(chat_server, "echo-key").options.base_url), api_key=CHAT_KEY),
        *options("generator", base_url=f"{image_server}/fine/v1", api_key=IMAGE_KEY),
    ]
    models = ["--mllm", "openai:pocket", "--generator", "openai:painter", "--evidence"]
    result = gems(tmp_path, "batch", "prompts.txt", "--out", "out", *models, *arguments)
    assert result.returncode == 3, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all("Bearer [key]" in json.dumps(row) for row in rows)
    assert leaks(tmp_path, result, min_files=2) == []


# --- from Python: events, checkpoints and tracers -------------------------------------------------------------------


class CallbackRecorder(BaseCallbackHandler):
    """Records the arguments of every callback."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def listen(*args: Any, **kwargs: Any) -> None:
            self.heard.append(f"{name} {args!r} {kwargs!r} {json.dumps([args, kwargs], default=str)}")

        return listen


class TraceRecorder(BaseTracer):
    """Records whole traces, as tracers that upload them do."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: list[str] = []

    def _persist_run(self, run: Run) -> None:
        def as_dict(run: Run) -> dict[str, Any]:
            fields = ("name", "inputs", "outputs", "error", "serialized", "extra", "events", "tags")
            return {f: getattr(run, f) for f in fields} | {"children": [as_dict(child) for child in run.child_runs]}

        self.traces.append(f"{json.dumps(as_dict(run), default=str)} {run!r}")


@pytest.mark.parametrize(
    ("chat_does", "images_do", "outcome"),
    [("fine", "fine", "rounds"), ("echo-key", "fine", "failed"), ("fine", "locked", "failed")],
)
def test_events_checkpoints_and_traces_hold_no_key(
    chat_server: str, image_server: str, tmp_path: Path, chat_does: str, images_do: str, outcome: str
) -> None:
    chat = ChatEndpoint(chat_server, chat_does, api_key=CHAT_KEY)
    context = GemsContext(
        mllm="openai:pocket",
        generator="openai:painter",
        chat_options=chat.options,
        generator_options=GeneratorOptions(
            base_url=f"{image_server}/{images_do}/v1",
            api_key=IMAGE_KEY,
            timeout=5.0,  # type: ignore[arg-type]
        ),
        memory=False,
        max_rounds=2,
        seed=7,
    ).as_operator()
    callback_recorder, trace_recorder = CallbackRecorder(), TraceRecorder()
    connection = sqlite3.connect(tmp_path / "checkpoints.sqlite", check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    graph = build_graph(checkpointer=SqliteSaver(connection), images=ImageStore(tmp_path / "images"), retry=QUICK)
    events = list(
        graph.stream(
            {"prompt": PROMPT},
            {"configurable": {"thread_id": "t"}, "callbacks": [callback_recorder, trace_recorder]},
            context=context,
            stream_mode=["values", "updates", "custom", "messages", "debug"],
            durability="sync",
        )
    )
    final = [event for mode, event in events if mode == "values"][-1]
    assert final["outcome"] == outcome
    assert {entry["key"] for entry in chat.log} == {f"Bearer {CHAT_KEY}"}
    if outcome == "failed":
        assert any("Bearer [key]" in error for error in final["errors"])
        assert any("Bearer [key]" in text for text in callback_recorder.heard)
        assert any("Bearer [key]" in text for text in trace_recorder.traces)
    for text in (repr(events), json.dumps(events, default=str), *callback_recorder.heard, *trace_recorder.traces):
        assert not [key for key in CANARIES if key in text]
    # While the connection is open, the latest data is in the write-ahead log.
    assert "checkpoints.sqlite-wal" in names(tmp_path)
    assert leaks(tmp_path) == []
    connection.close()
    assert leaks(tmp_path) == []


# --- malformed keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\r", "\n", "\u2026"])
def test_a_key_with_something_at_its_end_is_not_shown(
    chat_server: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such keys come from files with Windows line ends or from web pages; HTTP libraries quote them in errors."""
    monkeypatch.setenv("OPENAI_API_KEY", CHAT_KEY + end)
    chat = ChatEndpoint(chat_server, api_key=None)
    with pytest.raises(BackendError) as caught:
        chat.fill(Plan)
    assert "pocket at 127.0.0.1" in str(caught.value)
    assert CHAT_KEY not in str(caught.value) + repr(caught.value)
    assert chat.log == []


def test_a_setup_error_does_not_show_the_key() -> None:
    options = ChatOptions(api_key=CHAT_KEY)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot use the chat model 'nonsense:pocket'") as caught:
        init_mllm("nonsense:pocket", options, OPERATOR)
    traceback_text = "".join(traceback.format_exception(caught.value))
    assert "Traceback" in traceback_text
    assert CHAT_KEY not in traceback_text
    assert CHAT_KEY not in f"{options!r} {options} {options.model_dump()} {options.model_dump_json()}"


def test_a_server_without_its_own_key_gets_no_other_key(
    chat_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("GEMS_IMAGE_API_KEY", IMAGE_KEY)
    chat = ChatEndpoint(chat_server, api_key=None)
    assert chat.fill(Plan).prompt
    assert [entry["key"] for entry in chat.log] == ["Bearer none"]
    with urlopen(f"{chat_server}/fine/v1/models") as answer:
        assert json.load(answer)["data"] == [{"id": "pocket", "object": "model"}]
