"""What strangers can do to ``langgraph dev``: web pages, clients that name models, and secrets in what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client
from servers.langgraph_dev import Studio
from shared_servers import needs
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from gems.graph.context import GemsContext, open_settings

SECRET = "hunter2-not-to-be-stored"
INPUT = {"prompt": "two red cars"}
STUDIO = "https://smith.langchain.com"


@pytest.fixture
def http(studio: Studio) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio.url, timeout=60) as client:
        yield client


def refusal(response: httpx.Response, status: int = 422) -> str:
    assert response.status_code == status, response.text
    [line] = response.json()["detail"].splitlines()
    return str(line)


def places_of_a_context(client: httpx.Client, context: Any, *, key: str = "context") -> list[httpx.Response]:
    """Sends a context by every route that takes one."""
    thread = client.post("/threads", json={}).json()["thread_id"]
    wrapped = {"context": context} if key == "context" else {"config": {"configurable": context}}
    body = {"assistant_id": "gems", "input": INPUT, **wrapped}
    cron = {**body, "schedule": "0 0 1 1 *"}
    assistant = client.post("/assistants/search", json={}).json()[0]["assistant_id"]
    command = {"id": 1, "method": "run.start", "params": body}
    return [
        *(client.post(path, json=body) for path in ("/runs", "/runs/wait", "/runs/stream")),
        *(client.post(f"/threads/{thread}/runs{kind}", json=body) for kind in ("", "/wait", "/stream")),
        client.post("/runs/batch", json=[{"assistant_id": "gems", "input": INPUT}, body]),
        client.post("/runs/crons", json=cron),
        client.post(f"/threads/{thread}/runs/crons", json=cron),
        client.post("/assistants", json={"graph_id": "gems", **wrapped}),
        client.patch(f"/assistants/{assistant}", json=wrapped),
        client.post(f"/threads/{thread}/commands", json=command),
        client.post(
            "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "gems", **body}}
        ),
        client.post(f"/a2a/{assistant}", json={"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": wrapped}),
    ]


# --- web pages ------------------------------------------------------------------------------------------------------


@needs("studio")
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://smith.langchain.com.evil.example"])
def test_pages_of_other_sites_are_refused(http: httpx.Client, origin: str) -> None:
    for path in ("/runs/wait", "/threads", "/assistants/search", "/mcp"):
        # As a form or a script without CORS would send it.
        plain = {"origin": origin, "content-type": "text/plain"}
        assert "may not use this server" in refusal(http.post(path, content="{}", headers=plain), 403)
    answer = http.get("/info", headers={"origin": origin})
    assert answer.status_code == 403
    asked = {"origin": origin, "access-control-request-method": "POST"}
    for response in (answer, http.options("/threads", headers=asked)):
        assert "access-control-allow-origin" not in response.headers


@needs("studio")
def test_requests_of_other_sites_without_an_origin_are_refused(http: httpx.Client) -> None:
    for site in ("cross-site", "same-site"):
        assert refusal(http.post("/threads", json={}, headers={"sec-fetch-site": site}), 403)
        assert http.get("/info", headers={"sec-fetch-site": site}).status_code == 200
    assert http.post("/threads", json={}, headers={"sec-fetch-site": "same-origin"}).status_code == 200


@needs("studio")
@pytest.mark.parametrize("origin", [STUDIO, "http://localhost:3000", "http://127.0.0.1:2024", "http://[::1]:8123"])
def test_studio_and_local_pages_may_use_it(http: httpx.Client, origin: str) -> None:
    for response in (
        http.post("/threads", json={}, headers={"origin": origin}),
        http.options("/threads", headers={"origin": origin, "access-control-request-method": "POST"}),
    ):
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
    bad = http.post("/runs/wait", json={"context": {"mllm": "x"}}, headers={"origin": origin})
    assert refusal(bad)
    assert bad.headers["access-control-allow-origin"] == origin, "the page can read the reason"


@needs("studio")
def test_it_answers_to_its_own_names_only(http: httpx.Client, studio: Studio) -> None:
    port = studio.url.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "localhost.evil.example"):
        assert "does not answer to the host" in refusal(http.get("/info", headers={"host": host}), 403)
        assert refusal(http.post("/runs/wait", json={}, headers={"host": host}), 403)
    for host in ("localhost", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.1"):
        assert http.get("/info", headers={"host": host}).status_code == 200
    assert http.get("/ok", headers={"host": "10.1.2.3"}).status_code == 200, "a health check names an address"


@needs("studio")
def test_sockets_are_guarded_too(http: httpx.Client, studio: Studio) -> None:
    thread = http.post("/threads", json={}).json()["thread_id"]
    address = f"{studio.url.replace('http', 'ws', 1)}/threads/{thread}/stream/events"
    with pytest.raises(InvalidStatus):
        connect(address, origin="https://evil.example")  # type: ignore[arg-type]
    with connect(address) as socket:
        params = {"assistant_id": "gems", "input": INPUT, "context": {"mllm": "openai:x"}}
        socket.send(json.dumps({"id": 1, "method": "run.start", "params": params}))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert "only the operator" in closed.value.rcvd.reason


# --- paths ----------------------------------------------------------------------------------------------------------

OPERATORS_PATHS = [
    ("POST", "/deploy"),
    ("POST", "/deploy/"),
    ("POST", "/%64eploy"),
    ("POST", "/deploy?name=x"),
    ("GET", "/deploy"),
    ("HEAD", "/deploy"),
    ("GET", "/deploy/x/stream"),
    ("POST", "/internal/truncate"),
    ("GET", "/internal/debug/thread/THREAD"),
    ("GET", "/metrics"),
    ("GET", "/metrics?format=json"),
    ("GET", "/profile"),
    ("POST", "/ui/gems"),
    ("GET", "/ui/gems/entrypoint.js"),
    ("GET", "/what-a-later-version-adds"),
]


@needs("studio")
def test_paths_that_no_run_needs_are_the_operators(http: httpx.Client) -> None:
    thread = http.post("/threads", json={"metadata": {"note": "kept"}}).json()["thread_id"]
    for method, path in OPERATORS_PATHS:
        body = {"name": "x"} if method == "POST" else None
        response = http.request(method, path.replace("THREAD", thread), json=body)
        assert response.status_code == 403, (method, path, response.text)
        if method != "HEAD":
            assert "only the operator of this server uses /" in refusal(response, 403)
    assert http.get(f"/threads/{thread}").json()["metadata"]["note"] == "kept"


@needs("studio")
def test_studio_and_clients_use_the_paths_that_they_need(http: httpx.Client) -> None:
    [assistant] = http.post("/assistants/search", json={"graph_id": "gems", "limit": 1}).json()
    card = f"/a2a/{assistant['assistant_id']}/.well-known/agent-card.json"
    for path in ("/", "/ok", "/ok?check_db=1", "/info", "/docs", "/openapi.json", card):
        assert http.get(path).status_code == 200, path
    assert http.get("/.well-known/agent-card.json", params={"assistant_id": assistant["assistant_id"]}).is_success
    listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert "gems" in http.post("/mcp", json=listing, headers={"accept": "application/json"}).text
    assert http.post("/store/namespaces", json={}).status_code == 200
    assert http.post("/runs/crons/search", json={}).status_code == 200


# --- what clients may set -------------------------------------------------------------------------------------------

OPERATORS: list[dict[str, Any]] = [
    {"mllm": "python:os:system"},
    {"generator": "http://169.254.169.254/"},
    {"planner": "openai:gpt-5"},
    {"chat_options": {"base_url": "http://evil.example"}},
    {"generator_options": {"trust_remote_code": True}},
    {"memory_url": "/etc"},
    {"images_url": "s3://bucket"},
    {"skills_dir": "/tmp"},
    {"user": "bob"},
    {"embedder": "openai:x"},
]


@needs("studio")
@pytest.mark.parametrize("context", OPERATORS, ids=lambda context: next(iter(context)))
def test_what_only_the_operator_sets_is_refused_by_name(http: httpx.Client, context: dict[str, Any]) -> None:
    [name] = context
    for key in ("context", "configurable"):
        line = refusal(
            http.post(
                "/runs/wait",
                json={
                    "assistant_id": "gems",
                    "input": INPUT,
                    **({"context": context} if key == "context" else {"config": {"configurable": context}}),
                },
            )
        )
        assert f"operator of this server {'has fixed' if name == 'user' else 'sets'} {name}" in line
    assert refusal(http.post("/runs/wait", json={"assistant_id": "gems", "context": {"gems": context}}))


@needs("studio")
def test_every_setting_that_is_not_open_is_refused(http: httpx.Client) -> None:
    for name in GemsContext.model_fields.keys() - open_settings():
        assert name in refusal(http.post("/runs/wait", json={"assistant_id": "gems", "context": {name: "x"}}))


@needs("studio")
@pytest.mark.parametrize("key", ["context", "configurable"])
def test_every_route_that_takes_a_context_is_guarded(http: httpx.Client, key: str) -> None:
    for response in places_of_a_context(http, {"mllm": "openai:gpt-5"}, key=key):
        assert "only the operator of this server sets mllm" in refusal(response), response.request.url


@needs("studio")
@pytest.mark.parametrize(
    ("context", "line"),
    [
        ({"max_round": 3}, "unknown setting 'max_round': did you mean 'max_rounds'?"),
        ({"nonsense": 3}, "unknown setting 'nonsense': choose from: max_rounds, "),
        ({"max_rounds": 0}, "the context's max_rounds is 0: Input should be greater than or equal to 1"),
        ({"budget": {"imagess": 1}}, "the context's budget.imagess"),
    ],
)
def test_a_misspelt_or_bad_setting_is_told(http: httpx.Client, context: Any, line: str) -> None:
    body = {"assistant_id": "gems", "input": INPUT, "context": context}
    assert line in refusal(http.post("/runs/wait", json=body))


@needs("studio")
def test_null_is_left_out_and_names_of_other_graphs_are_not_ours(http: httpx.Client) -> None:
    quick = {"seed": 3, "max_rounds": 1, "memory": False}
    nulls = {"candidates": None, "budget": None, "mllm": None, "user": None}
    body = {"assistant_id": "gems", "input": INPUT, "context": {**quick, **nulls}}
    assert http.post("/runs/wait", json=body).json()["outcome"]
    theirs = {"tenant": "acme", "users": 3, "image_url": "https://example.com"}
    body = {"assistant_id": "gems", "input": INPUT, "config": {"configurable": {**quick, **theirs}}}
    out = http.post("/runs/wait", json=body).json()
    assert (out["attempts"][0]["seed"], len(out["attempts"])) == (3, 1)


@needs("studio")
@pytest.mark.parametrize("key", ["context", "configurable"])
def test_names_that_langgraph_keeps_for_itself_are_refused(http: httpx.Client, key: str) -> None:
    for internal in ({"__pregel_checkpointer": "x"}, {"callbacks": ["x"]}, {"__pregel_runtime": {"store": {}}}):
        [name] = internal
        for response in places_of_a_context(http, internal, key=key):
            assert name in refusal(response), response.request.url


@needs("studio")
def test_a_state_and_a_checkpoint_take_no_internal_names_either(http: httpx.Client) -> None:
    thread = http.post("/threads", json={}).json()["thread_id"]
    checkpoint = {"checkpoint": {"checkpoint_ns": "", "__pregel_replay_state": 1}}
    for path, body in (
        ("state", {"values": {"prompt": "a dog"}, **checkpoint}),
        ("state/checkpoint", checkpoint),
        ("history", checkpoint),
        ("runs/wait", {"assistant_id": "gems", "input": INPUT, **checkpoint}),
        # What LangGraph does not know in a config, it reads as configurable.
        ("runs/wait", {"assistant_id": "gems", "input": INPUT, "config": {"__pregel_replay_state": 1}}),
    ):
        assert "__pregel_replay_state is LangGraph's own" in refusal(http.post(f"/threads/{thread}/{path}", json=body))


@needs("studio")
def test_no_header_becomes_a_setting_of_a_run(http: httpx.Client, studio: Studio) -> None:
    thread = http.post("/threads", json={}).json()["thread_id"]
    headers = {
        "langsmith-trace": SECRET,
        "baggage": f"langsmith-metadata=%7B%22max_rounds%22%3A%22{SECRET}%22%7D,langsmith-project={SECRET}",
        **dict.fromkeys(("x-seed", "seed", "user-agent", "authorization", "x-api-key", "cookie"), SECRET),
    }
    body = {"assistant_id": "gems", "input": INPUT, "context": {"seed": 3, "max_rounds": 1, "memory": False}}
    out = http.post(f"/threads/{thread}/runs/wait", json=body, headers=headers).json()
    assert out["attempts"][0]["seed"] == 3
    http.post(f"/threads/{thread}/state", json={"values": {}}, headers=headers)
    check_nothing_is_stored(http, studio)


@needs("studio")
def test_no_address_for_the_server_to_call_is_taken(http: httpx.Client) -> None:
    body = {"assistant_id": "gems", "input": INPUT, "webhook": "http://169.254.169.254/"}
    assert "webhook" in refusal(http.post("/runs", json=body))


@needs("studio")
def test_the_form_has_only_what_a_client_may_set(studio: Studio) -> None:
    with get_sync_client(url=studio.url) as client:
        [assistant] = client.assistants.search(graph_id="gems", limit=1)
        schemas: Any = client.assistants.get_schemas(assistant["assistant_id"])
    fields = schemas["context_schema"]["properties"]
    assert set(fields) == set(open_settings())
    assert (fields["max_rounds"]["default"], fields["max_rounds"]["maximum"]) == (5, 50)


# --- secrets --------------------------------------------------------------------------------------------------------

SECRETS: list[dict[str, Any]] = [
    {"chat_options": {"api_key": SECRET}},
    {"generator_options": {"api_key": SECRET}},
    {"memory_url": f"postgresql://ann:{SECRET}@db.example/gems"},
    {"images_url": f"s3://key:{SECRET}@bucket/images"},
    {"chat_options": {"base_url": f"https://ann:{SECRET}@llm.example/v1"}},
]


def stored_files_with(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def check_nothing_is_stored(client: httpx.Client, server: Studio) -> None:
    listings = [
        client.post(f"/{kind}/search", json={"limit": 1000}) for kind in ("threads", "assistants", "runs/crons")
    ]
    for thread in listings[0].json():
        listings.append(client.get(f"/threads/{thread['thread_id']}/runs"))
        listings.append(client.get(f"/threads/{thread['thread_id']}/history"))
    assert all(listing.status_code == 200 for listing in listings)
    assert not [listing.url for listing in listings if SECRET in listing.text]
    assert not stored_files_with(SECRET, server.project)
    assert not stored_files_with(SECRET, server.home)
    assert SECRET not in server.log.read_text()


@needs("studio")
@pytest.mark.parametrize("key", ["context", "configurable"])
def test_no_secret_is_stored(http: httpx.Client, studio: Studio, key: str) -> None:
    for context in SECRETS:
        for content in (context, {"gems": context}):
            for response in places_of_a_context(http, content, key=key):
                assert "holds a secret" in refusal(response)
                assert SECRET not in response.text
    check_nothing_is_stored(http, studio)


@needs("studio")
def test_no_secret_is_stored_by_way_of_a_checkpoint(http: httpx.Client, studio: Studio) -> None:
    """The server puts what a checkpoint holds into the run's config, whatever it is called."""
    thread = http.post("/threads", json={}).json()["thread_id"]
    for secret in ({"openai_api_key": SECRET}, {"memory_url": f"postgresql://a:{SECRET}@h/d"}):
        body = {"assistant_id": "gems", "input": INPUT, "checkpoint": {"checkpoint_ns": "", **secret}}
        for path in ("/runs", "/runs/wait", "/runs/stream"):
            assert "holds a secret" in refusal(http.post(f"/threads/{thread}{path}", json=body))
    check_nothing_is_stored(http, studio)


@needs("studio")
def test_a_secret_of_any_name_and_in_any_writing_is_refused(http: httpx.Client, studio: Studio) -> None:
    for theirs in ({"openai_api_key": SECRET}, {"deep": [{"PASSWORD": [SECRET]}]}, {"db": f"mysql://a:{SECRET}@h/d"}):
        for response in places_of_a_context(http, theirs, key="configurable"):
            assert "holds a secret" in refusal(response)
    body = json.dumps({"assistant_id": "gems", "input": INPUT, "config": {"configurable": {"api_key": SECRET}}})
    odd_writings = [
        body.replace("api_key", "\\u0061pi_key").encode(),
        body.encode("utf-8-sig"),
        body.encode("utf-16"),
        body.replace('"assistant_id"', f'"big": {"1" * 5000}, "assistant_id"').encode(),
        body.replace('"assistant_id"', f'"deep": {"[" * 5000}{"]" * 5000}, "assistant_id"').encode(),
        body.replace("}}}", '}, "configurable": {}}}').encode(),
    ]
    for writing in odd_writings:
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            response = http.post("/runs", content=writing, headers={"content-type": kind})
            assert SECRET not in response.text
    check_nothing_is_stored(http, studio)


@needs("studio")
def test_no_secret_is_stored_by_way_of_what_is_no_context(http: httpx.Client, studio: Studio) -> None:
    thread = http.post("/threads", json={}).json()["thread_id"]
    [assistant] = http.post("/assistants/search", json={"graph_id": "gems", "limit": 1}).json()
    run = {"assistant_id": "gems", "input": INPUT}
    for theirs in (
        {"openaiApiKey": SECRET},
        {"notes": [{"Authorization": f"Bearer {SECRET}"}]},
        {"client-secret": {"text": [SECRET]}},
        {"db": f"mysql://a:{SECRET}@h/d"},
        {"endpoint": f"https://llm.example/v1?api-key={SECRET}"},
        {f"mysql://a:{SECRET}@h/d": {}},
    ):
        for method, path, body in (
            ("PUT", "/store/items", {"namespace": ["n"], "key": "k", "value": theirs}),
            ("POST", "/threads", {"metadata": theirs}),
            ("PATCH", f"/threads/{thread}", {"metadata": theirs}),
            ("POST", f"/threads/{thread}/state", {"values": {"prompt": "a dog", **theirs}}),
            ("POST", "/assistants", {"graph_id": "gems", "metadata": theirs}),
            ("PATCH", f"/assistants/{assistant['assistant_id']}", {"metadata": theirs}),
            ("POST", "/runs", {**run, "metadata": theirs}),
            ("POST", "/runs", {**run, "config": {"metadata": theirs}}),
            ("POST", "/runs", {**run, "input": {**INPUT, **theirs}}),
            ("POST", f"/threads/{thread}/runs", {"assistant_id": "gems", "command": {"resume": theirs}}),
            ("POST", "/runs/crons", {**run, "schedule": "0 0 1 1 *", "metadata": theirs}),
        ):
            response = http.request(method, path, json=body)
            assert "holds a secret" in refusal(response), (path, theirs)
            assert SECRET not in response.text
    check_nothing_is_stored(http, studio)
    harmless = {
        "key": "a",
        "tokens": 5,
        "max_token": 5,
        "keyboard": "qwerty",
        "token": None,
        "api_key": "",
        "auth": True,
    }
    item = {"namespace": ["n"], "key": "k", "value": harmless}
    assert http.put("/store/items", json=item).status_code == 204
    assert http.post("/threads", json={"metadata": harmless}).status_code == 200


@needs("studio")
def test_clients_that_are_the_operator_set_everything_but_secrets(trusting_studio: Studio, tmp_path: Path) -> None:
    with httpx.Client(base_url=trusting_studio.url, timeout=60) as http:
        context: Any = {"images_url": str(tmp_path), "user": "bob", "seed": 3, "max_rounds": 1, "mllm": "pocket"}
        out = http.post("/runs/wait", json={"assistant_id": "gems", "input": INPUT, "context": context}).json()
        assert out["image"]["uri"].startswith(tmp_path.as_uri())
        code = {"assistant_id": "gems", "input": INPUT, "context": {"mllm": "python:no_such_module:chat"}}
        assert "cannot import no_such_module" in http.post("/runs/wait", json=code).text
        for context in SECRETS:
            for response in places_of_a_context(http, context):
                assert "holds a secret" in refusal(response)
        assert "did you mean 'max_rounds'" in refusal(http.post("/runs/wait", json={"context": {"max_round": 1}}))
        assert refusal(http.post("/threads", json={}, headers={"origin": "https://evil.example"}), 403)
        check_nothing_is_stored(http, trusting_studio)
        assert "has_api_key" in http.get("/deploy").json(), "Studio offers its button to the operator"
