"""Who cancels a run or hangs up while a chat model is asked pays for the question: limits hold all the same."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import forked
import httpx
import pytest
from servers.gems_service import ServiceProcess, serving, write_keys
from servers.hanging_chat import HangingChat, hanging_chat
from servers.waiting import wait_until

pytestmark = pytest.mark.slow

PROMPT = "two red cars"


def _models(chat: HangingChat, *more: str) -> tuple[str, ...]:
    values = (f"base_url={chat.address}", "api_key=k", *more)
    return ("--mllm", "openai:m", *(word for value in values for word in ("--chat-option", value)))


@contextmanager
def _service(folder: Path, daily: str, models: tuple[str, ...]) -> Iterator[tuple[ServiceProcess, httpx.Client]]:
    keys = write_keys(folder / "keys.toml", ann=f"{daily}\nmetrics = true")
    options = ("--keys", str(folder / "keys.toml"), "--no-memory", "--price", "prompt=1", "--price", "completion=1")
    options += ("--price", "image=0.001")
    with serving(folder / "home", *options, *models) as served, served.client(keys["ann"]) as client:
        yield served, client


def _spent(folder: Path) -> dict[str, Any]:
    [path] = (folder / "home").rglob("runs.sqlite")
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return dict(
            db.execute(
                "SELECT sum(images) images, sum(chat_calls) calls, sum(tokens) tokens, sum(cost) cost FROM spending"
            ).fetchone()
        )


@pytest.mark.parametrize("daily", ["{ tokens = 12000 }", "{ cost = 0.012 }"])
def test_a_day_ends_for_a_key_that_cancels_each_run_during_a_call(daily: str, tmp_path: Path) -> None:
    with hanging_chat() as chat, _service(tmp_path, daily, _models(chat)) as (served, client):
        for runs in range(20):  # noqa: B007 - how many were accepted is read below
            answer = client.post("/v1/runs", json={"prompt": PROMPT})
            if answer.status_code != 202:
                break
            before, run = chat.asked, answer.json()["id"]
            wait_until(lambda before=before: chat.asked > before, lambda: "no chat model was asked")
            client.post(f"/v1/runs/{run}/cancel")
            served.wait_for(run, key=client.headers["authorization"].removeprefix("Bearer "))
        assert answer.status_code == 429, answer.text
        assert "this key has used " in answer.json()["error"]["message"]
    assert 1 <= runs < 12
    spent = _spent(tmp_path)
    assert spent["calls"] == chat.asked
    assert spent["tokens"] > 11_000  # no run begins without room for an image, which has a price too
    assert spent["cost"] == pytest.approx(spent["tokens"] / 1e6)


def test_who_hangs_up_during_a_call_pays_for_it(tmp_path: Path) -> None:
    bodies: dict[str, Any] = {
        "/v1/images/generations": {"prompt": PROMPT},
        "/gems/invoke": {"input": {"prompt": PROMPT}},
        "/gems/stream": {"input": {"prompt": PROMPT}},
    }
    with hanging_chat() as chat, _service(tmp_path, "{ tokens = 1000000 }", _models(chat)) as (served, client):
        tokens = 0
        for path, body in bodies.items():
            # Without a budget, the run reserves what the day leaves.
            with suppress(httpx.ReadTimeout), client.stream("POST", path, json=body, timeout=3) as answer:
                answer.read()
            run = client.get("/v1/runs").json()["data"][0]["id"]
            served.wait_for(run, key=client.headers["authorization"].removeprefix("Bearer "))
            assert _spent(tmp_path)["tokens"] > tokens + 1000, path
            tokens = _spent(tmp_path)["tokens"]
        metrics = client.get("/metrics").text
        assert f'gems_spent_total{{what="lost_tokens"}} {float(tokens)}\n' in metrics
    assert _spent(tmp_path)["calls"] == chat.asked


def test_who_cancels_a_run_pays_for_the_images_that_are_being_drawn(tmp_path: Path) -> None:
    with hanging_chat() as server:
        models = ("--generator", "openai:m", "--generator-option", f"base_url={server.address}")
        options = (*models, "--generator-option", "api_key=k")
        with _service(tmp_path, "{ images = 100 }", options) as (served, client):
            run = client.post("/v1/runs", json={"prompt": PROMPT, "settings": {"candidates": 3}}).json()["id"]
            wait_until(lambda: server.asked, lambda: "no image was asked for")
            client.post(f"/v1/runs/{run}/cancel")
            served.wait_for(run, key=client.headers["authorization"].removeprefix("Bearer "))
            asked = server.asked
    spent = _spent(tmp_path)
    assert asked <= spent["images"] <= 3
    assert spent["cost"] >= 0.001 * asked


def test_the_tokens_of_a_batch_end_although_no_answer_comes_in_time(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{n} red cars"}) + "\n" for n in range(2, 14)))
    command = ["batch", prompts, "--out", tmp_path / "out", "--no-memory", "--concurrency", 1]
    with hanging_chat() as chat:
        command += [*_models(chat, "timeout=0.3"), "--price", "prompt=1", "--price", "completion=1"]
        result = forked.gems(*command, "--total-tokens", 9000, "--json", home=tmp_path / "home")
    assert result.returncode == 4, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["limit_reached"], summary["tokens"]) == ("tokens", 0)
    assert summary["tokens_of_lost_answers_about"] >= 9000
    assert summary["cost_of_lost_answers_about"] == pytest.approx(
        summary["tokens_of_lost_answers_about"] / 1e6, abs=1e-4
    )


def test_an_evaluation_tells_of_the_tokens_of_lost_answers(tmp_path: Path) -> None:
    command = ["eval", "grammar", "--n", 1, "--images", 1, "--arms", "single,loop", "--generator", "pocket", "--json"]
    command += ["--mllm", "openai:m", "--out", tmp_path / "out"]
    with hanging_chat(lambda n: 0) as chat:
        result = forked.gems(*command, home=tmp_path / "home", OPENAI_BASE_URL=chat.address, OPENAI_API_KEY="k")
    arms = json.loads(result.stdout)["arms"]
    lost = arms["loop"]["tokens_of_lost_answers_about"]
    assert (arms["loop"]["tokens_per_prompt"], lost >= 1000 * chat.asked > 0) == (0, True)
    assert "tokens_of_lost_answers_about" not in arms["single"]
    words = f"about {lost:,} more tokens for answers that were lost"
    reports = [(tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html")]
    assert [" ".join(text.split()).count(words) for text in (result.stderr, *reports)] == [1, 1, 1]


def test_calls_in_flight_when_a_batch_is_stopped_count_at_its_next_start(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    command = ["batch", prompts, "--out", tmp_path / "out", "--no-memory"]
    with hanging_chat(lambda n: 500) as chat:
        command += [*_models(chat), "--generator", "pocket"]
        with forked.gems_process(*command, home=tmp_path / "home") as process:
            wait_until(lambda: chat.asked, lambda: "no chat model was asked")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        status = forked.gems("batch", "status", tmp_path / "out", "--json", home=tmp_path / "home")
        assert json.loads(status.stdout)["spent"]["lost_tokens"] > 1000
        result = forked.gems(*command, "--total-tokens", 1000, "--json", home=tmp_path / "home")
    assert json.loads(result.stdout)["limit_reached"] == "tokens"
