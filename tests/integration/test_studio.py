"""``langgraph dev`` loads the graph, and the real client runs it: what LangGraph Studio does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(server: str) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=server) as client:
        yield client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("studio")
    project = base / "project"
    project.mkdir()
    shutil.copy(ROOT / "langgraph.json", project)
    for name in ("graph", "serve", "pyproject.toml"):  # so that .langgraph_api/ is not written into the repository
        (project / name).symlink_to(ROOT / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (base / "log").open("w")
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("langgraph")),
            *("dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)),
        ],
        cwd=project,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "GEMS_HOME": str(base / "home"), "LANGSMITH_TRACING": "false"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                if httpx.get(f"{url}/ok", timeout=1).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            pytest.fail("langgraph dev did not answer")
        assert process.poll() is None, (base / "log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def test_studio_sees_small_schemas_with_titles(client: SyncLangGraphClient) -> None:
    [assistant] = client.assistants.search(graph_id="gems")
    schemas: Any = client.assistants.get_schemas(assistant["assistant_id"])
    assert list(schemas["input_schema"]["properties"]) == ["prompt"]
    fields = schemas["context_schema"]["properties"]
    budget = fields.pop("budget")
    assert "$ref" in budget
    assert all("title" in f and "description" in f for f in fields.values())
    assert fields["max_rounds"]["minimum"] == 1


def test_a_run_over_the_server(client: SyncLangGraphClient) -> None:
    thread = client.threads.create()
    events: list[Any] = list(
        client.runs.stream(
            thread["thread_id"],
            "gems",
            input={"prompt": "two red cars"},
            context={"seed": 3, "max_rounds": 2},
            stream_mode=["custom", "values"],
        )
    )
    assert not [e for e in events if e.event == "error"], events[-1]
    told = {e.data["event"] for e in events if e.event == "custom"}
    assert {"start", "requirements", "prompt", "step", "image", "verdict", "attempt", "outcome"} <= told
    values: Any = client.threads.get_state(thread["thread_id"])["values"]
    assert values["outcome"] in ("solved", "rounds")
    assert values["attempts"][0]["image"]["uri"].endswith(".png")
    assert values["seed"] == 3


def test_bad_input_is_an_error_of_the_run(client: SyncLangGraphClient) -> None:
    events: list[Any] = list(client.runs.stream(None, "gems", input={"prompt": "a dragon"}, stream_mode="values"))
    assert events[-1].event == "error"
    assert "dragon" in events[-1].data["message"]
