"""What the service promises to each of its users, as clients see it: over HTTP, with a process of its own."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers.gems_service import ServiceProcess, serving, write_keys
from servers.waiting import wait_until

pytestmark = pytest.mark.slow

EASY, HARD = "two red cars", "seven wooden koalas chasing a sparkling giraffe"


@contextmanager
def keyed(base: Path, *options: str, **daily: str) -> Iterator[tuple[ServiceProcess, dict[str, str]]]:
    """A service with a key for each user, and the keys."""
    keys = write_keys(base / "keys.toml", **daily)
    arguments = ("--keys", str(base / "keys.toml"), "--no-memory", "--grace", "0", *options)
    with serving(base / "home", *arguments) as served:
        yield served, keys


def post(client: httpx.Client, prompt: str, **settings: Any) -> httpx.Response:
    return client.post("/v1/runs", json={"prompt": prompt, "settings": {"seed": 3, **settings}})


def used(client: httpx.Client, name: str) -> float:
    runs = client.get("/v1/runs", params={"limit": 100}).json()["data"]
    views = [client.get(f"/v1/runs/{run['id']}").json() for run in runs]
    return sum(view["usage"][name] for view in views)


def address(served: ServiceProcess) -> tuple[str, int]:
    url = httpx.URL(served.url)
    return url.host, url.port or 0


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_day_has_no_more_tokens_than_its_limit_however_many_runs_are_sent_at_once(tmp_path: Path) -> None:
    with (
        keyed(tmp_path, "--concurrency", "4", ann="{ tokens = 700 }") as (served, keys),
        served.client(keys["ann"]) as ann,
    ):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: post(ann, HARD, seed=n), range(8)))
        accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        assert accepted
        for run in accepted:
            served.wait_for(run, key=keys["ann"])
        tokens = used(ann, "prompt_tokens") + used(ann, "completion_tokens")
        assert tokens <= 2 * 700, "at most one call goes beyond the limit"
        assert {answer.status_code for answer in answers} == {202, 429}


def test_a_day_costs_no_more_than_its_limit_however_many_runs_are_sent_at_once(tmp_path: Path) -> None:
    with (
        keyed(tmp_path, "--concurrency", "4", "--price", "image=0.1", ann="{ cost = 0.5 }") as (served, keys),
        served.client(keys["ann"]) as ann,
    ):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: post(ann, HARD, seed=n), range(8)))
        for answer in answers:
            if answer.status_code == 202:
                served.wait_for(answer.json()["id"], key=keys["ann"])
        assert 0 < used(ann, "images") <= 5


def test_a_key_with_many_runs_lets_the_others_have_their_turns(tmp_path: Path) -> None:
    with (
        keyed(tmp_path, "--concurrency", "1", greedy="", ann="") as (served, keys),
        served.client(keys["greedy"]) as greedy,
        served.client(keys["ann"]) as ann,
    ):
        runs = [post(greedy, HARD, seed=n, max_rounds=3).json()["id"] for n in range(15)]
        run = post(ann, EASY, max_rounds=1).json()["id"]
        served.wait_for(run, key=keys["ann"])
        ended = [n for n in runs if greedy.get(f"/v1/runs/{n}").json()["status"] in ("done", "failed")]
        assert len(ended) <= 5, "it waited for what was in progress only"


def test_a_users_key_does_not_read_the_figures_of_all_users(tmp_path: Path) -> None:
    with keyed(tmp_path, ann="") as (served, keys), served.client(keys["ann"]) as ann:
        answer = ann.get("/metrics")
        assert answer.status_code == 403
        assert "gems_" not in answer.text


def test_every_counter_counts_what_it_is_named_for(tmp_path: Path) -> None:
    options = ("--no-memory", "--grace", "0", "--concurrency", "1", "--queue", "0")
    with serving(tmp_path / "home", *options) as served, served.client() as client:
        served.wait_for(post(client, EASY, max_rounds=1).json()["id"])
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda n: post(client, HARD, seed=n), range(6)))
        assert 429 in [answer.status_code for answer in answers]
        for answer in answers:
            if answer.status_code == 202:
                served.wait_for(answer.json()["id"])
        text = client.get("/metrics").text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("gems_") and sample.name.endswith(("_total", "_count")):
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
    assert totals
    assert min(totals.values()) > 0, totals


# --- faults that pass -------------------------------------------------------------------------------------------------


@contextmanager
def unusable_checkpoints(home: Path) -> Iterator[None]:
    """For the duration of the block, every use of the service's checkpoint file fails."""
    [path] = home.rglob("checkpoints.sqlite")
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE checkpoints RENAME TO hidden")
        try:
            yield
        finally:
            db.execute("ALTER TABLE hidden RENAME TO checkpoints")


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_run_outlives_a_fault_that_passes_and_a_cancel_is_kept(tmp_path: Path, *, is_cancelled: bool) -> None:
    final = "cancelled" if is_cancelled else "done"
    with serving(tmp_path / "home", "--no-memory", "--grace", "0") as served, served.client() as client:
        run = post(client, HARD, max_rounds=9, patience=9).json()["id"]
        served.wait_for(run, "running")
        with unusable_checkpoints(tmp_path / "home"):
            wait_until(lambda: '"interrupted"' in served.output(), served.output)  # its next step has failed
            if is_cancelled:
                client.post(f"/v1/runs/{run}/cancel")
        assert served.wait_for(run, seconds=40)["status"] == final
    with serving(tmp_path / "home", "--no-memory", "--grace", "0") as served, served.client() as client:
        assert client.get(f"/v1/runs/{run}").json()["status"] == final


# --- connections ------------------------------------------------------------------------------------------------------


def test_endless_headers_cost_no_memory(tmp_path: Path) -> None:
    with (
        keyed(tmp_path, ann="") as (served, _),
        closing(socket.create_connection(address(served), timeout=30)) as connection,
    ):
        process = psutil.Process(served.process.pid)
        before, sent = process.memory_info().rss, 0
        connection.sendall(b"GET /v1/runs HTTP/1.1\r\nhost: localhost\r\nx: ")
        try:
            while sent < 100_000_000:
                connection.sendall(b"a" * 1_000_000)
                sent += 1_000_000
        except ConnectionError:
            pass
        assert process.memory_info().rss - before < 40_000_000
        assert sent < 40_000_000


def test_a_client_that_sends_half_a_request_is_let_go(tmp_path: Path) -> None:
    halves = (b"", b"GET /v1/runs HTTP/1.1\r\nhost: localhost\r\n", b"POST /v1/runs HTTP/1.1\r\ncontent-le")
    with serving(tmp_path / "home", "--no-memory", "--grace", "0") as served:
        connections = [socket.create_connection(address(served), timeout=25) for _ in halves]
        try:
            for connection, half in zip(connections, halves, strict=True):
                connection.sendall(half)
            for connection in connections:
                while connection.recv(65536):
                    pass
        finally:
            for connection in connections:
                connection.close()


def test_a_run_is_accepted_and_shown_while_its_checkpoints_cannot_be_read(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--no-memory", "--grace", "0") as served, served.client() as client:
        served.wait_for(post(client, EASY, max_rounds=1).json()["id"])
        with unusable_checkpoints(tmp_path / "home"):
            answer = post(client, EASY, max_rounds=1)
            assert answer.status_code == 202, answer.text
            assert client.get(f"/v1/runs/{answer.json()['id']}").status_code == 200
        assert served.wait_for(answer.json()["id"])["status"] == "done"


@pytest.mark.slow
def test_a_client_that_hangs_up_ends_the_run_that_it_waits_for(tmp_path: Path) -> None:
    """Unless it has sent a key, with which it will come back."""
    requests: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
        ("/v1/images/generations", {"prompt": HARD}, {}, "cancelled"),
        ("/v1/images/generations", {"prompt": HARD, "stream": True}, {}, "cancelled"),
        ("/gems/invoke", {"input": {"prompt": HARD}}, {}, "cancelled"),
        ("/gems/stream", {"input": {"prompt": HARD}}, {}, "cancelled"),
        ("/v1/images/generations", {"prompt": HARD}, {"idempotency-key": "k"}, "queued"),
    ]
    options = ("--no-memory", "--grace", "0", "--concurrency", "1")
    with serving(tmp_path / "home", *options) as served, served.client() as client:
        for seed in range(10):  # the others wait behind these
            post(client, HARD, max_rounds=20, candidates=16, patience=20, seed=seed)
        for path, body, headers, status in requests:
            with (
                suppress(httpx.ReadTimeout),
                client.stream("POST", path, json=body, headers=headers, timeout=0.5) as ok,
            ):
                ok.read()
            run = client.get("/v1/runs").json()["data"][0]["id"]
            if status == "cancelled":
                assert served.wait_for(run)["status"] == status, path
            else:
                time.sleep(1.5)  # longer than it takes to see that a client has gone
                assert client.get(f"/v1/runs/{run}").json()["status"] == status
