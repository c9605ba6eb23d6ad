"""A run that is stopped at once or killed while servers are asked: who resumes it pays for that, within its limits."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import forked
import pytest
from servers.hanging_chat import HangingChat, hanging_chat
from servers.waiting import wait_until

pytestmark = pytest.mark.slow

KILLS = {
    "twice": (signal.SIGINT, signal.SIGINT),
    "terminated twice": (signal.SIGTERM, signal.SIGTERM),
    "killed": (signal.SIGKILL,),
}


def _models(role: str, server: HangingChat) -> list[str]:
    option = "--generator-option" if role == "--generator" else "--chat-option"
    return [role, "openai:m", option, f"base_url={server.address}", option, "api_key=k"]


def _begin_and_kill(
    command: list[object], server: HangingChat, requests: int, kills: tuple[signal.Signals, ...], home: Path
) -> str:
    """Begin a run, end its process while so many requests are under way, and return the run's name."""
    with forked.gems_process(*command, home=home) as process:
        wait_until(lambda: server.asked >= requests, lambda: f"{server.asked} requests")
        for index, number in enumerate(kills):
            process.send_signal(number)
            if index + 1 < len(kills):
                assert any("Ctrl-C again" in line for line in process.stderr or ()), "the first signal ended it"
        process.communicate(timeout=60)
    assert process.returncode == (130 if len(kills) > 1 else -signal.SIGKILL)
    [run] = {path.stem for path in (home / "threads").glob("*.json")}
    return run


def _resume(run: str, options: list[object], home: Path) -> tuple[dict[str, Any], str]:
    command = ["generate", "--resume", run, *options]
    result = forked.gems(*command, "--json", home=home)
    assert result.stdout, result.stderr
    again = forked.gems(*command, home=home, COLUMNS="300")
    [report] = home.parent.rglob("report.html")
    record = json.loads(result.stdout)
    assert "in flight at a kill" in report.read_text()
    return record, " ".join(again.stdout.split())


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
def test_images_in_flight_count_in_the_limits_of_the_run(kills: tuple[signal.Signals, ...], tmp_path: Path) -> None:
    home, out = tmp_path / "home", ["--out", tmp_path / "out"]
    with hanging_chat() as server:
        models = _models("--generator", server)
        command = ["generate", "two red cars", *models, *out, "--no-memory", "--candidates", 2, "--budget-images", 2]
        run = _begin_and_kill(command, server, 2, kills, home)
        record, text = _resume(run, [*models[2:], *out], home)
    assert server.asked == 2, "the limit has no room for another image"
    assert record["usage"]["images"] == record["usage"]["killed_images"] == 2
    assert "of these, in flight at a kill: up to 2 images" in text


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
@pytest.mark.parametrize("limit", [("--budget-chat-calls", 1), ("--budget-tokens", 1000), ("--budget-cost", 0.001)])
def test_chat_calls_in_flight_count_in_the_limits_of_the_run(
    limit: tuple[object, ...], kills: tuple[signal.Signals, ...], tmp_path: Path
) -> None:
    home, out = tmp_path / "home", ["--out", tmp_path / "out"]
    with hanging_chat() as server:
        models = _models("--mllm", server)
        prices = ["--price", "prompt=1", "--price", "completion=1"]
        command = ["generate", "two red cars", *models, *out, *prices, "--no-memory", "--no-plan", *limit]
        run = _begin_and_kill(command, server, 1, kills, home)
        record, text = _resume(run, [*models[2:], *out], home)
    assert server.asked == 1, "the limit has no room for another call"
    assert record["usage"]["chat_calls"] == record["usage"]["killed_calls"] == 1
    assert record["usage"]["lost_tokens"] > 1000
    assert "of these, in flight at a kill: up to 1 chat call" in text
