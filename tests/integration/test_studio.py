"""``langgraph dev`` loads the graph and the real client runs it, as LangGraph Studio does."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph.graph import START, StateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from servers.langgraph_dev import LANGGRAPH, ROOT, Studio
from shared_servers import needs
from typing_extensions import TypedDict


@pytest.fixture
def client(studio: Studio) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=studio.url) as client:
        yield client


@needs("studio")
def test_studio_sees_small_schemas_with_titles(client: SyncLangGraphClient) -> None:
    [assistant] = client.assistants.search(graph_id="gems")
    schemas: Any = client.assistants.get_schemas(assistant["assistant_id"])
    assert list(schemas["input_schema"]["properties"]) == ["prompt", "turns"]
    fields = schemas["context_schema"]["properties"]
    budget = fields.pop("budget")
    assert "$ref" in budget
    assert all("title" in f and "description" in f for f in fields.values())
    assert fields["max_rounds"]["minimum"] == 1


@needs("studio")
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
    event_names = {e.data["event"] for e in events if e.event == "custom"}
    assert {"start", "requirements", "prompt", "step", "image", "verdict", "attempt", "outcome"} <= event_names
    values: Any = client.threads.get_state(thread["thread_id"])["values"]
    assert values["outcome"] in ("solved", "rounds")
    assert values["attempts"][0]["image"]["uri"].endswith(".png")
    assert values["seed"] == 3


@needs("studio")
def test_bad_input_is_an_error_of_the_run(client: SyncLangGraphClient) -> None:
    events: list[Any] = list(client.runs.stream(None, "gems", input={"prompt": "a dragon"}, stream_mode="values"))
    assert events[-1].event == "error"
    assert "dragon" in events[-1].data["message"]


REVIEWED: Any = {"seed": 3, "review": "end", "memory": False}


def run(client: SyncLangGraphClient, thread: str, **arguments: Any) -> Any:
    return client.runs.wait(thread, "gems", **{"context": REVIEWED, **arguments})


@needs("studio")
def test_a_person_reviews_and_sees_pictures(client: SyncLangGraphClient, studio: Studio) -> None:
    thread = client.threads.create()["thread_id"]
    arguments: Any = {"input": {"prompt": "two red cars"}, "context": REVIEWED}
    events: list[Any] = list(
        client.runs.stream(thread, "gems", **arguments, stream_mode=["values", "updates", "custom"])
    )
    assert {"values", "updates", "custom"} <= {e.event for e in events}
    snapshot: Any = client.threads.get_state(thread)
    assert snapshot["next"] == ["review"]
    [interrupt] = snapshot["interrupts"]
    assert "edit_requirements" in interrupt["value"]["actions"]
    assert set(interrupt["response_schema"]["properties"]) == {"action", "comment", "prompt", "requirements", "image"}

    words, picture = snapshot["values"]["messages"][-1]["content"]
    assert (picture["type"], picture["mime_type"]) == ("image", "image/webp")
    assert len(picture["base64"]) < 8_000, "checkpoints stay small"
    whole = httpx.get(studio.url + words["text"].splitlines()[-1])
    assert whole.headers["content-type"] == "image/png"
    assert hashlib.sha256(whole.content).hexdigest() == interrupt["value"]["image"]["sha256"]
    for nowhere in ("/artifacts/%2e%2e%2fconfig.png", f"/artifacts/{'0' * 64}.png", "/artifacts/x.png"):
        assert httpx.get(studio.url + nowhere).status_code == 404

    for bad_answer, reason in (("no", "a text"), (["accept"], "a list"), ({"action": "explode"}, "action")):
        asked_again = run(client, thread, command={"resume": bad_answer})["__interrupt__"][0]["value"]
        assert reason in asked_again["fault"]
        assert asked_again["round"] == 1
    assert client.threads.get_state(thread)["next"] == ["review"], "a bad answer leaves the review open"
    review_state = run(client, thread, command={"resume": {"action": "reject", "comment": "too small"}})
    assert review_state["__interrupt__"][0]["value"]["round"] == 2
    assert run(client, thread, command={"resume": {"action": "accept"}})["outcome"] == "accepted"


@needs("studio")
def test_a_run_is_forked_with_another_prompt_and_another_seed(client: SyncLangGraphClient) -> None:
    thread = client.threads.create()["thread_id"]
    plain: Any = {"seed": 3, "memory": False}
    first = run(client, thread, input={"prompt": "two red cars"}, context=plain)
    history = client.threads.get_history(thread, limit=50)

    def fork(before: str, **values: Any) -> Any:
        at = [s for s in history if s["next"] == [before]][-1]
        checkpoint = client.threads.update_state(thread, values, checkpoint=at["checkpoint"])["checkpoint"]
        return run(client, thread, input=None, checkpoint=checkpoint, context=plain)

    other = fork("intake", prompt="a green dog")
    assert "Are there any dogs in the image?" in [r["question"] for r in other["requirements"]]
    reseeded = fork("generator", seed=99)
    assert reseeded["attempts"][0]["seed"] == 99
    assert reseeded["attempts"][0]["prompt"] == first["attempts"][0]["prompt"]
    reworded = fork("generator", proposals=[{"prompt": "two red cars in a row"}])
    assert reworded["attempts"][0]["prompt"] == "two red cars in a row"


@needs("studio")
def test_a_run_is_cancelled_over_the_server(client: SyncLangGraphClient) -> None:
    thread = client.threads.create()["thread_id"]
    run_input: Any = {"prompt": "seven wooden koalas chasing a sparkling giraffe"}
    run_info = client.runs.create(
        thread, "gems", input=run_input, context={"max_rounds": 50, "patience": 50, "memory": False}
    )
    client.runs.cancel(thread, run_info["run_id"], wait=True)
    assert client.runs.get(thread, run_info["run_id"])["status"] in ("interrupted", "success")


@needs("studio")
def test_another_graph_can_use_it_as_a_remote_graph(client: SyncLangGraphClient) -> None:
    class Parent(TypedDict, total=False):
        prompt: str
        outcome: str

    remote = RemoteGraph("gems", sync_client=client)
    parent = StateGraph(Parent)
    parent.add_node("draw", remote)
    parent.add_edge(START, "draw")
    assert parent.compile().invoke({"prompt": "two red cars"})["outcome"] in ("solved", "rounds")
    streamed: list[Any] = list(remote.stream({"prompt": "a green dog"}, stream_mode="custom"))
    assert "image" in {event["event"] for event in streamed}


def test_a_dockerfile_can_be_built_from_the_configuration(tmp_path: Path) -> None:
    command = [LANGGRAPH, "dockerfile", "-c", str(ROOT / "langgraph.json")]
    subprocess.run([*command, str(tmp_path / "Dockerfile")], check=True, capture_output=True)
    dockerfile = (tmp_path / "Dockerfile").read_text()
    assert dockerfile.startswith("FROM langchain/langgraph-api")
    assert "/graph/app.py:graph" in dockerfile
    assert "/graph/app.py:app" in dockerfile
