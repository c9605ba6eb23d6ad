"""If the service is stopped or killed while it works, every accepted run still ends and is charged once."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from forked import Process, command_line, environment
from servers.gems_service import ServiceProcess, serving
from servers.waiting import wait_until

pytestmark = pytest.mark.slow

PROMPTS = ["three blue cars to the left of a striped elephant", "seven wooden koalas chasing a sparkling giraffe"]
RUNS = 8


def send(client: httpx.Client, n: int) -> str:
    """Send request number ``n``, and return its run."""
    body = {"prompt": PROMPTS[n % 2], "settings": {"seed": n, "max_rounds": 3}}
    answer = client.post("/v1/runs", json=body, headers={"idempotency-key": f"k{n}"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_accepted_run_is_lost_or_charged_twice(tmp_path: Path, how: signal.Signals) -> None:
    home, accepted = tmp_path / "home", list[str]()
    options = ("--concurrency", "2", "--grace", "0")

    with serving(home, *options) as served, served.client() as client:

        def ask(n: int) -> None:
            accepted.append(send(client, n))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(RUNS)))
        served.wait_for(accepted[0])
        code = served.stop(how)
        assert code == (0 if how == signal.SIGTERM else -how)

    with closing(sqlite3.connect(home / "serve" / "runs.sqlite")) as db:
        before = dict(db.execute("SELECT id, status FROM runs").fetchall())
    assert set(before) == set(accepted)
    assert "queued" in before.values(), "the service must be stopped while runs are queued"
    if how == signal.SIGTERM:
        assert "running" not in before.values(), "no run may be left running"

    with serving(home, *options) as served, served.client() as client:
        views = [served.wait_for(run) for run in accepted]
        # A client that never saw the answer sends its requests again and gets the same runs.
        assert {send(client, n) for n in range(RUNS)} == set(accepted)
    assert {view["status"] for view in views} == {"done"}
    for view in views:
        assert view["usage"]["images"] == len(view["attempts"]), "no image is drawn twice"
        assert len({(a["round"], a["candidate"]) for a in view["attempts"]}) == len(view["attempts"])
    with closing(sqlite3.connect(home / "serve" / "runs.sqlite")) as db:
        [charged] = db.execute("SELECT sum(images) FROM runs").fetchone()
    assert charged == sum(len(view["attempts"]) for view in views)
    with closing(sqlite3.connect(home / "serve" / "checkpoints.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,), "ended runs keep no checkpoints"


def test_a_waiting_request_is_answered_when_the_service_stops(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    body = {"prompt": PROMPTS[1], "n": 6}
    with serving(tmp_path / "home", "--concurrency", "1", "--grace", "0") as served, served.client() as client:

        def ask() -> None:
            answers.append(client.post("/v1/images/generations", json=body))

        with ThreadPoolExecutor(1) as pool:
            pool.submit(ask)
            wait_until(
                lambda: "gems_runs_queued 5.0" in client.get("/metrics").text, lambda: client.get("/metrics").text
            )
            assert served.stop() == 0
    [answer] = answers
    assert answer.status_code == 503
    assert "is resumed when it is started again" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0


def test_a_review_survives_a_restart(tmp_path: Path) -> None:
    settings = {"review": "end", "seed": 3, "memory": False}
    with serving(tmp_path / "home") as served, served.client() as client:
        run = client.post("/v1/runs", json={"prompt": "two red cars", "settings": settings}).json()["id"]
        served.wait_for(run, "waiting")
        served.stop(signal.SIGKILL)
    with serving(tmp_path / "home") as served, served.client() as client:
        view: Any = client.get(f"/v1/runs/{run}").json()
        assert view["status"] == "waiting"
        assert client.post(f"/v1/runs/{run}/review", json={"action": "accept"}).status_code == 200
        assert served.wait_for(run)["outcome"] == "accepted"


def test_a_stop_can_wait_for_running_work(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--grace", "30") as served, served.client() as client:
        run = client.post("/v1/runs", json={"prompt": "two red cars", "settings": {"seed": 3}}).json()["id"]
        served.wait_for(run, "running", "done")
        assert served.stop() == 0
    with closing(sqlite3.connect(tmp_path / "home" / "serve" / "runs.sqlite")) as db:
        assert db.execute("SELECT status FROM runs").fetchall() == [("done",)]


def test_a_log_that_nobody_reads_any_more_decides_nothing(tmp_path: Path) -> None:
    """The service's standard error is often a pipe to a program that collects logs, and that may die first."""
    command = command_line("serve", "--port", "0", "--log-format", "json")
    home = tmp_path / "home"
    home.mkdir()
    process = Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home), text=True)
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        url = next(line.split()[-1] for line in process.stderr if line.startswith("listening at "))
        process.stderr.close()
        process.stdout.close()
        with httpx.Client(base_url=url, timeout=60) as client:
            views = []
            for n in range(4):  # more than there are threads that execute runs
                run = send(client, n)
                served = ServiceProcess(process, url, Path())
                views.append(served.wait_for(run))
        assert {view["status"] for view in views} == {"done"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(20)
