"""What commands import: nothing heavy for help and bad input, no torch where servers draw, no diffusers for pocket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chatting import ChatEndpoint
from forked import environment
from servers.scripted_images import answering, in_json

HEAVY = ("torch", "diffusers", "transformers", "scipy", "langgraph", "langchain_core", "numpy")
SCRIPT = f"""\
import json, sys
from gems.cli.main import app
try:
    app()
except SystemExit as end:
    code = end.code
print("IMPORTED", json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))
"""

AT_FIRST_REQUEST = """\
import os, sys
def stop_at_request(event, arguments):
    if event == "socket.connect" and arguments[1][:2] == ("127.0.0.1", 9):
        needless = {"torch", "numpy", "faiss", "jinja2", "gems.memory.index"}
        print("IMPORTED", *(needless & sys.modules.keys()), flush=True)
        os._exit(7)
sys.addaudithook(stop_at_request)
from gems.cli.main import app
app()
"""
"""Ends when the first request is about to leave, and prints what was imported by then that no request needs."""

SLOW_NUMPY = """\
import sys, time
class SlowNumpy:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy._core":
            time.sleep(3)
sys.meta_path.insert(0, SlowNumpy())
from gems.cli.main import app
app()
"""
"""A machine on which NumPy, half there, still is being imported while the chat server answers."""


def imported_by(*arguments: object, home: Path) -> tuple[int, set[str], str]:
    """The exit code of a command in a new process, the heavy packages that it imported, and its errors."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    result = subprocess.run(  # not forked: imports are what is tested
        command, capture_output=True, text=True, check=False, timeout=120, env=environment(home)
    )
    code, names = json.loads(result.stdout.rpartition("IMPORTED ")[2])
    return code or 0, set(names), result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"], ["memory", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert imported_by(*arguments, home=tmp_path)[:2] == (0, set())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "the prompt is empty"),
        (["two red catz"], "unknown word 'catz' (did you mean cat, cats?)"),
        (["a cat and a dog and a"], "expected"),
        (["a cat", "--colour"], "No such option"),
        (["a cat", "--generator-option", "width=0"], "greater than"),
        (["a cat", "--generator-option", "colour=red"], "unknown option"),
        (["a cat", "--candidates", "0"], "greater than"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_anything_heavy_is_imported(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    code, names, errors = imported_by("generate", *arguments, "--out", tmp_path / "out", home=tmp_path / "home")
    assert (code, names) == (2, set()), errors
    assert message in errors
    assert not (tmp_path / "home").exists(), "nothing was begun"


@pytest.mark.slow
def test_servers_and_no_memory_need_no_torch(chat_server: str, image_server: str, tmp_path: Path) -> None:
    chat = ChatEndpoint(chat_server)
    options = [f"--chat-option=base_url={chat.options.base_url}", "--chat-option=api_key=sk-x", "--mllm=openai:pocket"]
    options += ["--generator=openai:any", f"--generator-option=base_url={image_server}/v1"]
    options += ["--generator-option=api_key=sk-x", "--max-rounds=1", "--no-memory"]
    code, names, errors = imported_by(
        "generate", "two red cars", *options, "--out", tmp_path / "out", home=tmp_path / "home"
    )
    assert code in (0, 1), errors
    assert chat.log, "the chat server was asked"
    assert names.isdisjoint({"torch", "diffusers", "transformers", "scipy"})


@pytest.mark.slow
def test_the_first_request_waits_for_nothing_that_only_later_steps_need(tmp_path: Path) -> None:
    options = ["--mllm=openai:any", "--generator=openai:any", "--no-memory", "--out", str(tmp_path / "out")]
    for group in ("chat", "generator"):
        options += [f"--{group}-option=base_url=http://127.0.0.1:9/v1", f"--{group}-option=api_key=sk-x"]
    command = [sys.executable, "-c", AT_FIRST_REQUEST, "generate", "two red cars", *options]
    result = subprocess.run(  # not forked: imports are what is tested
        command, capture_output=True, text=True, check=False, timeout=120, env=environment(tmp_path / "home")
    )
    assert (result.returncode, result.stdout) == (7, "IMPORTED\n"), result.stderr


@pytest.mark.slow
def test_pocket_models_and_the_memory_need_neither_diffusers_nor_transformers(tmp_path: Path) -> None:
    code, names, errors = imported_by(
        "generate", "two red cars", "--seed", 7, "--out", tmp_path / "out", home=tmp_path / "home"
    )
    assert code == 0, errors
    assert names.isdisjoint({"diffusers", "transformers", "scipy"})
    assert errors.startswith("loading the models\n"), "the first line does not wait for the models"


@pytest.mark.slow
def test_a_refusal_that_comes_while_numpy_is_imported_is_told_in_the_servers_words(tmp_path: Path) -> None:
    refusal = {"error": {"message": "The model `any` does not exist", "code": "model_not_found"}}
    with answering(in_json(refusal, 404)) as server:
        options = ["--mllm=openai:any", f"--generator=http:{server.address}/draw", "--out", str(tmp_path / "out")]
        options += [f"--chat-option=base_url={server.address}/v1", "--chat-option=api_key=sk-x"]
        result = subprocess.run(  # not forked: imports are what is tested
            [sys.executable, "-c", SLOW_NUMPY, "generate", "two red cars", *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment(tmp_path / "home"),
        )
    assert result.returncode == 3, result.stderr
    assert "The model `any` does not exist" in result.stderr
    assert "serializable" not in result.stderr
