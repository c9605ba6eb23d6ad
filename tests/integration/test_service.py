"""The service over real HTTP in a separate process: runs, reviews, limits, and metrics for operators."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import structlog
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from servers.gems_service import ServiceProcess, serving
from servers.waiting import wait_until
from shared_servers import needs
from typer.testing import CliRunner

from gems.cli.main import app as cli

REVIEWED = {"review": "end", "seed": 3, "memory": False}


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def begin(client: httpx.Client, prompt: str = "two red cars", **settings: Any) -> Any:
    answer = client.post("/v1/runs", json={"prompt": prompt, "settings": {"memory": False, **settings}})
    assert answer.status_code == 202, answer.text
    return answer.json()


def events_of(client: httpx.Client, run: str) -> list[tuple[str, Any]]:
    with client.stream("GET", f"/v1/runs/{run}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(answer.iter_text()).split("\n\n")
    events = []
    for block in filter(None, blocks):
        if not block.startswith(":"):
            name, data = block.split("\n", 1)
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


@needs("service")
def test_a_run_is_accepted_followed_and_kept(service: ServiceProcess, client: httpx.Client) -> None:
    run = begin(client, "three blue cars to the left of a striped elephant", seed=4)
    assert run["status"] in ("queued", "running")
    events = events_of(client, run["id"])
    names = [name for name, _ in events]
    assert names[0] == names[-1] == "run"
    assert events[-1][1]["status"] == "done"
    view = client.get(f"/v1/runs/{run['id']}").json()
    assert view["outcome"] == "solved"
    assert view["usage"]["images"] == len(view["attempts"])
    assert view["attempts"][view["best"]]["seed"] == 4 + view["best"]
    assert all(r["answer"] == "yes" for r in view["requirements"])
    [listed] = [entry for entry in client.get("/v1/runs").json()["data"] if entry["id"] == run["id"]]
    for name in ("usage", "outcome", "score", "errors", "notes", "skills", "memories", "ended_at"):
        assert listed[name] == view[name], name
    assert not listed["attempts"]

    png = client.get(view["image"]["url"])
    assert png.headers["content-type"] == "image/png"
    assert hashlib.sha256(png.content).hexdigest() == view["image"]["sha256"]
    small = client.get(view["image"]["url"], params={"size": 64})
    assert Image.open(io.BytesIO(small.content)).size == (64, 64)
    assert client.get(view["image"]["url"], params={"size": 5000}).status_code == 422
    report = client.get(view["report"])
    assert "three blue cars to the left of a striped elephant" in report.text
    assert "script-src" not in report.headers["content-security-policy"]
    assert report.headers["content-security-policy"].startswith("default-src 'none'")
    # A second request returns the outcome of an ended run at once.
    assert [name for name, _ in events_of(client, run["id"])] == ["run", "run"]


@needs("service")
def test_events_of_a_queued_and_running_run(client: httpx.Client) -> None:
    for _ in range(2):  # two runs keep the workers busy, so the third is still queued
        begin(client, "six red dogs and seven green cats", max_rounds=5)
    events = events_of(client, begin(client, "two red cars", seed=3)["id"])
    names = [name for name, _ in events]
    for expected in ("requirements", "prompt", "step", "image", "verdict", "attempt", "end"):
        assert expected in names, names
    [image] = [event for name, event in events if name == "image"]
    assert client.get(image["url"]).headers["content-type"] == "image/png"


@needs("service")
def test_bad_prompts_and_settings_give_a_one_line_error(service: ServiceProcess, client: httpx.Client) -> None:
    run = begin(client, "a dragon")["id"]
    view = service.wait_for(run)
    assert view["status"] == "failed"
    assert view["error_kind"] == "input"
    assert "'dragon'" in view["error"]
    assert view["usage"]["images"] == 0
    for body, status, message in (
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": "   "}, 400, "empty"),
        ({"prompt": "x" * 4001}, 422, "prompt"),
        ({"prompt": "two\x00cars"}, 400, "control characters"),
        ({"prompt": "two cars", "settings": {"max_rounds": 0}}, 422, "max_rounds"),
        ({"prompt": "two cars", "settings": {"mllm": "openai:gpt-5"}}, 422, "mllm"),
        ({"prompt": "two cars", "settings": {"user": "ann"}}, 422, "user"),
        ({"prompt": "two cars", "settings": {"images_url": "/etc"}}, 422, "images_url"),
        ({"prompt": "two cars", "thread": "../x"}, 422, "thread"),
        ({}, 422, "prompt"),
    ):
        answer = client.post("/v1/runs", json=body)
        assert answer.status_code == status, (body, answer.text)
        error = answer.json()["error"]
        assert message in error["message"]
        assert "\n" not in error["message"]
    assert client.post("/v1/runs", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert client.post("/v1/runs", content=b"x" * 70_000).status_code == 413
    assert client.post("/v1/runs", content=iter([b"x" * 40_000] * 3)).status_code == 413  # no Content-Length
    assert client.get("/v1/runs/run-nobody").status_code == 404
    assert client.get("/artifacts/nothing.png").status_code == 404
    assert client.get("/nowhere").json()["error"]["type"] == "invalid_request_error"


@needs("service")
def test_a_review_can_reject_edit_and_accept(service: ServiceProcess, client: httpx.Client) -> None:
    run = begin(client, **REVIEWED)["id"]
    view = service.wait_for(run, "waiting")
    assert view["review"]["would_end"] == "solved"
    assert client.get(view["review"]["image"]["url"]).status_code == 200

    def answer(**review: Any) -> Any:
        response = client.post(f"/v1/runs/{run}/review", json=review)
        assert response.status_code == 200, response.text
        return service.wait_for(run, "waiting", "done", "cancelled")

    assert client.post(f"/v1/runs/{run}/review", json={"action": "explode"}).status_code == 422
    assert client.post(f"/v1/runs/{run}/review", json={"action": "edit_prompt"}).status_code == 422
    view = answer(action="reject", comment="they are too small")
    assert [a["judged"] for a in view["attempts"]] == ["rejected", ""]
    view = answer(action="edit_prompt", prompt="two red dragons")
    assert "dragons" in view["review"]["fault"]
    view = answer(action="edit_prompt", prompt="two red cars in a row")
    assert view["attempts"][-1]["strategy"] == "person"
    assert view["attempts"][-1]["prompt"] == "two red cars in a row"
    view = answer(action="edit_requirements", requirements=[{"question": "Are there any cars in the image?"}])
    assert [r["question"] for r in view["requirements"]] == ["Are there any cars in the image?"]
    first = view["attempts"][0]["image"]["sha256"]
    view = answer(action="accept", image="0" * 64)
    assert "no attempt" in view["review"]["fault"]
    view = answer(action="accept", image=first)
    assert (view["status"], view["outcome"], view["image"]["sha256"]) == ("done", "accepted", first)
    again = client.post(f"/v1/runs/{run}/review", json={"action": "accept"})
    assert again.status_code == 409


@needs("service")
def test_a_review_is_answered_only_once(service: ServiceProcess, client: httpx.Client) -> None:
    run = begin(client, **REVIEWED)["id"]
    service.wait_for(run, "waiting")

    def accept(_: int) -> int:
        return client.post(f"/v1/runs/{run}/review", json={"action": "accept"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(accept, range(8))) == [200, *[409] * 7]
    assert service.wait_for(run)["outcome"] == "accepted"


@needs("service")
def test_cancelled_at_any_moment(service: ServiceProcess, client: httpx.Client) -> None:
    long = {"max_rounds": 5, "patience": 5, "candidates": 4}  # the last four are still queued when they are cancelled
    runs = [begin(client, "seven wooden koalas chasing a sparkling giraffe", **long)["id"] for _ in range(6)]
    for run in reversed(runs):
        answer = client.post(f"/v1/runs/{run}/cancel")
        assert answer.status_code in (200, 409)
    views = [service.wait_for(run) for run in runs]
    assert [v["status"] for v in views[2:]] == ["cancelled"] * 4
    assert {v["status"] for v in views} <= {"cancelled", "done"}
    waiting = begin(client, **REVIEWED)["id"]
    service.wait_for(waiting, "waiting")
    client.post(f"/v1/runs/{waiting}/cancel")
    ended_run = service.wait_for(waiting)
    assert ended_run["status"] == "cancelled"
    assert ended_run["image"], "the best image so far is kept"
    assert client.post(f"/v1/runs/{waiting}/cancel").status_code == 409


@needs("service")
def test_a_repeated_request_starts_no_second_run(client: httpx.Client) -> None:
    key = {"idempotency-key": "again"}

    def send(_: int) -> Any:
        return client.post("/v1/runs", json={"prompt": "two green dogs"}, headers=key).json()["id"]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send, range(8)))) == 1
    for other in (
        {"prompt": "a red dog"},
        {"prompt": "two green dogs", "settings": {"seed": 7}},
        {"prompt": "two green dogs", "thread": "other"},
    ):
        answer = client.post("/v1/runs", json=other, headers=key)
        assert answer.status_code == 409, other
        assert "another request" in answer.json()["error"]["message"]
    assert client.post("/v1/images/generations", json={"prompt": "two green dogs"}, headers=key).status_code == 409


@needs("service")
def test_a_repeated_images_request_with_other_fields_is_refused(client: httpx.Client) -> None:
    body, key = {"prompt": "a red dog", "n": 2, "seed": 3}, {"idempotency-key": "images"}
    first = client.post("/v1/images/generations", json=body, headers=key).json()["data"]
    again = client.post("/v1/images/generations", json={**body, "size": "auto"}, headers=key).json()["data"]
    assert [image["gems"]["run"] for image in again] == [image["gems"]["run"] for image in first]
    for change in ({"n": 1}, {"n": 3}, {"seed": 4}, {"size": "64x64"}, {"response_format": "url"}):
        answer = client.post("/v1/images/generations", json={**body, **change}, headers=key)
        assert answer.status_code == 409, change


@needs("service")
def test_a_run_is_deleted_once_it_has_ended(service: ServiceProcess, client: httpx.Client) -> None:
    run = begin(client, "seven wooden koalas chasing a sparkling giraffe", max_rounds=5, patience=5)["id"]
    early = client.delete(f"/v1/runs/{run}")
    assert early.status_code == 409
    assert "cancel it first" in early.json()["error"]["message"]
    client.post(f"/v1/runs/{run}/cancel")
    service.wait_for(run)
    view = service.wait_for(begin(client, "a red dog", seed=11)["id"])
    for ended_run in (run, view["id"]):
        assert client.delete(f"/v1/runs/{ended_run}").status_code == 204
        assert client.get(f"/v1/runs/{ended_run}").status_code == 404
        assert client.delete(f"/v1/runs/{ended_run}").status_code == 404
        assert client.get(f"/v1/runs/{ended_run}/events").status_code == 404
        assert ended_run not in {entry["id"] for entry in client.get("/v1/runs").json()["data"]}
    assert client.get(view["image"]["url"]).status_code == 404
    assert client.get(view["report"]).status_code == 404


@needs("service")
def test_runs_are_listed_page_by_page(service: ServiceProcess, client: httpx.Client) -> None:
    mine = [begin(client, "a red dog", max_rounds=1)["id"] for _ in range(5)]
    run_ids, before = [], None
    while True:
        page = client.get("/v1/runs", params={"limit": 2, **({"before": before} if before else {})}).json()
        run_ids += [run["id"] for run in page["data"]]
        before = page["next"]
        if before is None:
            break
    assert run_ids[:5] == mine[::-1]
    views = [service.wait_for(run) for run in mine]
    rows = {row["id"]: row for row in client.get("/v1/runs", params={"limit": 100}).json()["data"]}
    assert [(rows[v["id"]]["outcome"], rows[v["id"]]["score"]) for v in views] == [
        (v["outcome"], v["score"]) for v in views
    ]
    assert views[0]["score"] > 0
    assert len(run_ids) == len(set(run_ids))


@needs("service")
def test_the_address_is_printed_once_the_service_listens(service: ServiceProcess) -> None:
    """The service was started with --port 0."""
    assert f"listening at {service.url}/" in service.output()
    assert ":0/" not in service.output()


@needs("service")
def test_operators_see_health_metrics_and_requests(service: ServiceProcess, client: httpx.Client) -> None:
    service.wait_for(begin(client, "a red dog")["id"])
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"
    metrics = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    outcomes = {s.labels["outcome"]: s.value for s in metrics["gems_runs"].samples if s.name == "gems_runs_total"}
    assert outcomes["solved"] >= 1
    amounts = {s.labels["what"]: s.value for s in metrics["gems_spent"].samples if s.name.endswith("total")}
    assert amounts["images"] >= 1
    assert metrics["gems_runs_queued"].samples[0].value >= 0
    assert metrics["process_resident_memory_bytes"].samples[0].value > 1e6
    routes = {s.labels["route"] for s in metrics["gems_http_requests"].samples}
    assert "/v1/runs/{run}" in routes
    assert not any("run-" in route for route in routes), "one series per route, not per run"

    answer = client.get("/healthz", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(client.get("/healthz", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]) == 32
    [line] = [entry for entry in service.log() if entry.get("request_id") == "mine-1"]
    assert (line["path"], line["status"]) == ("/healthz", 200)


@needs("service")
def test_pages_of_other_origins_are_refused(client: httpx.Client) -> None:
    assert client.get("/v1/runs", headers={"host": "evil.example"}).status_code == 403
    cross = client.options(
        "/v1/runs", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert "access-control-allow-origin" not in cross.headers
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.slow
def test_a_full_queue_says_when_to_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("full") / "home"
    with serving(home, "--queue", "1", "--concurrency", "1") as served, served.client() as client:
        answers = []
        lock = threading.Barrier(6)

        def ask(_: int) -> None:
            lock.wait()
            body = {"prompt": "seven wooden koalas chasing a sparkling giraffe", "settings": {"memory": False}}
            answers.append(client.post("/v1/runs", json=body))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, range(6)))
        refused = [a for a in answers if a.status_code == 429]
        accepted = [a.json()["id"] for a in answers if a.status_code == 202]
        assert refused
        assert accepted
        assert len(refused) + len(accepted) == 6
        assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        for run in accepted:
            assert served.wait_for(run)["status"] == "done"
        body = {"prompt": "two red cars", "settings": {"memory": False}}
        wait_until(lambda: client.post("/v1/runs", json=body).status_code == 202, lambda: "the queue is still full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "new-key"),
        (["--keys", "nowhere.toml"], "cannot read the keys"),
        (["--generator", "nonsense"], "nonsense"),
        (["--port", "99999"], "65535"),
        (["--cors-origin", "https://example.org/"], "'https://example.org/' is not an origin"),
        (["--cors-origin", "example.org"], "'example.org' is not an origin"),
    ],
)
def test_a_service_that_cannot_start_reports_why(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()  # the service's logs would go to the runner's stream, which is closed after this test
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    result = CliRunner().invoke(cli, ["serve", *options])
    structlog.reset_defaults()
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
