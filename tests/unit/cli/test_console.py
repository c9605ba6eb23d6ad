"""Text of servers, models, records and file names on the console: it stays text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gems.bulk import ray_driver
from gems.cli.console import err, guarded, out, spending
from gems.cli.live import LiveRun
from gems.errors import BackendError
from gems.graph.events import Event
from gems.graph.state import Prices, Usage
from gems.printable import printable
from gems.secrets import one_line

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\r\x08 a\u202etxt.exe :x: [bold]b[/bold] [link=http://a.b]c[/link]"
SHOWN = "]0;owned[31mred2J atxt.exe :x: [bold]b[/bold] [link=http://a.b]c[/link]"


def shown(console: Console, show: Callable[[], object]) -> str:
    with console.capture() as capture:
        show()
    return capture.get()


def one_row(text: str) -> Table:
    table = Table(title=escape(text), width=200)
    table.add_row(escape(text))
    return table


@pytest.mark.parametrize("console", [out, err])
def test_hostile_text_is_shown_as_text(console: Console) -> None:
    for show in (
        lambda: console.print(escape(HOSTILE), soft_wrap=True),
        lambda: console.print(HOSTILE, markup=False, soft_wrap=True),
        lambda: console.print(one_row(HOSTILE), soft_wrap=True),
    ):
        text = shown(console, show)
        assert SHOWN in text
        assert not set(text) & set("\x1b\x07\x08\x9b\r\u202e")


def test_our_own_markup_still_works() -> None:
    assert shown(out, lambda: out.print("[green]✓[/] :x:")) == "✓ :x:\n"


def test_the_events_of_a_run_are_shown_as_text() -> None:
    events: list[Event] = [
        {"event": "prompt", "round": 1, "strategy": "plan", "prompt": HOSTILE},
        {"event": "requirements", "requirements": [{"id": "r1", "question": HOSTILE, "kind": "other", "skill": ""}]},
        {
            "event": "verdict",
            "round": 1,
            "candidate": 0,
            "requirement_id": "r1",
            "answer": "no",
            "confidence": 0.5,
            "reason": HOSTILE,
        },
        {"event": "experience", "round": 1, "experience": HOSTILE},
        {"event": "reuse", "run": "[bold]x:x:", "round": 1},  # type: ignore[typeddict-unknown-key]
    ]
    live = LiveRun(out)
    text = shown(out, lambda: [live(event) for event in events])
    words = " ".join(text.split())
    assert words.count(":x:") == 5
    assert words.count("[bold]") == 5
    assert "\x1b" not in text


def test_an_error_is_shown_as_text() -> None:
    @guarded
    def fail() -> None:
        raise BackendError(HOSTILE)

    text = shown(err, lambda: _exits(fail))
    assert text == f"error: {SHOWN}\n"


def test_an_error_that_quotes_a_long_name_is_cut() -> None:
    @guarded
    def fail() -> None:
        raise BackendError(f"unknown generator {'x' * 100_000}")

    text = shown(err, lambda: _exits(fail))
    assert len(text) < 4100
    assert text.endswith(" ...\n")


def _exits(command: Callable[[], None]) -> None:
    with pytest.raises(typer.Exit):
        command()


def test_errors_that_are_written_down_have_no_control_characters() -> None:
    assert one_line(HOSTILE) == SHOWN
    assert printable("a\tb\nc é 漢字 \U0001f468\u200d\U0001f469") == "a\tb\nc é 漢字 \U0001f468\u200d\U0001f469"
    assert printable("a\ud800b\u2028c") == "ab c"


def test_spending_is_told_to_the_unit_as_in_json() -> None:
    usage = Usage(images=20, chat_calls=1035, prompt_tokens=9_400_000, completion_tokens=97)
    assert spending(usage, Prices()) == "20 images, 1,035 chat calls, 9,400,097 tokens"
    assert spending(usage, Prices(prompt=2)) == "20 images, 1,035 chat calls, 9,400,097 tokens, cost 18.8"
    assert spending(Usage(images=1), Prices(image=1234.0001)) == "1 images, cost 1,234.0001"


def test_no_library_reports_to_its_makers_unless_the_user_wishes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
        guarded(lambda: None)()
        assert os.environ[name] == "0"
        monkeypatch.delenv(name)
        guarded(lambda: None)()
        assert os.environ[name] == "1"
        assert name in ray_driver._WORKER_VARIABLES


def test_no_file_of_the_current_folder_is_taken_for_a_module(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("open('ran', 'w')")
    version = [sys.executable, "-m", "gems", "--version"]
    assert subprocess.run(version, cwd=tmp_path, capture_output=True, check=True).stdout.startswith(b"gems ")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("error", [ValueError("a\nbug"), KeyError("x"), AssertionError(), MemoryError()])
def test_an_error_of_the_users_own_model_is_one_line_and_no_best_effort(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    @guarded
    def fail() -> None:
        raise error

    def run() -> None:
        with pytest.raises(typer.Exit) as end:
            fail()
        assert end.value.exit_code == 3

    monkeypatch.delenv("GEMS_DEBUG", raising=False)
    line = shown(err, run)
    assert line.startswith(f"error: {type(error).__name__}")
    assert line.count("\n") == 1
    assert line.endswith("GEMS_DEBUG=1 shows where\n")
    monkeypatch.setenv("GEMS_DEBUG", "1")
    with pytest.raises(type(error)):
        fail()
