"""What any client can send to the service: from other sites' pages, in odd bodies, by every method."""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from servers.gems_service import ServiceProcess, serving, write_keys
from shared_servers import needs

from gems.serve.settings import RunSettings

pytestmark = pytest.mark.slow

JSON = {"content-type": "application/json"}
RUN = {"prompt": "two red cars", "settings": {"memory": False, "max_rounds": 1}}
CALL = {"input": {"prompt": "two red cars", "context": {"memory": False, "max_rounds": 1}}}
UNSAFE = [
    ("/v1/runs", RUN),
    ("/v1/images/generations", {"prompt": "two red cars"}),
    ("/v1/runs/run-x/cancel", {}),
    ("/v1/runs/run-x/review", {"action": "accept"}),
    ("/gems/invoke", CALL),
    ("/gems/batch", {"inputs": [CALL["input"]]}),
    ("/gems/stream", CALL),
    ("/gems/stream_log", CALL),
    ("/gems/stream_events", CALL),
    ("/gems/c/N4XyA/invoke", CALL),
    ("/nowhere", {}),
]
"""Every route with an unsafe method, and a body for it."""
ALLOWED = "https://allowed.example"


@dataclass
class Keyed:
    served: ServiceProcess
    keys: dict[str, str]

    def client(self, name: str = "ann") -> httpx.Client:
        return self.served.client(self.keys[name])


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    base = tmp_path_factory.mktemp("edge")
    keys = write_keys(base / "keys.toml", ann="", poor="{ images = 0 }", prometheus="")
    with (base / "keys.toml").open("a") as file:
        file.write("metrics = true\n")  # in the table of the last key
    options = ("--keys", str(base / "keys.toml"), "--cors-origin", ALLOWED, "--cors-origin", "http://localhost:3000")
    with serving(base / "home", *options, "--no-memory", "--grace", "0", "--concurrency", "1") as served:
        yield Keyed(served, keys)


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of a response, which has the form of all errors."""
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"], answer.text
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    return error


def run_count(client: httpx.Client) -> int:
    return len(client.get("/v1/runs", params={"limit": 100}).json()["data"])


# --- other sites ----------------------------------------------------------------------------------------------------

FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:1"},
    {"origin": "http://localhost.evil.example"},
    {"origin": "http://[evil"},
    {"host": "localhost", "origin": "https://localhost"},
    {"host": "localhost", "origin": "http://localhost:443"},
    {"host": "localhost:443", "origin": "https://localhost"},
    {"host": "localhost:443", "origin": "http://localhost"},
    {"host": "localhost", "origin": "ftp://localhost"},
    {"host": "localhost", "origin": "//localhost"},
    {"host": "localhost", "origin": "http://localhost", "x-forwarded-proto": "https"},
    {"host": "localhost", "origin": "https://localhost:80", "x-forwarded-proto": "https"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "http://localhost:8888"},
]


@needs("service")
@pytest.mark.parametrize(("path", "body"), UNSAFE)
def test_no_other_site_starts_anything(client: httpx.Client, path: str, body: Any) -> None:
    before = run_count(client)
    for headers in FOREIGN:
        answer = client.post(path, json=body, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "cross_site"), headers
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x", ""):
        content = httpx.Request("POST", client.base_url, json=body).content
        answer = client.post(path, content=content, headers={"content-type": kind})
        assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type"), kind
    assert client.post(path, content=b'{"prompt": "two red cars"}').status_code == 415
    assert client.post(path, content=b"x", headers={**JSON, "content-encoding": "gzip"}).status_code == 415
    assert run_count(client) == before


@needs("service")
def test_the_page_itself_and_programs_may(service: ServiceProcess, client: httpx.Client) -> None:
    port = httpx.URL(service.url).port
    for headers in (
        {},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy.example"},
        {"sec-fetch-site": "none"},
        {"origin": f"http://127.0.0.1:{port}"},
        {"host": f"LOCALHOST:{port}", "origin": f"http://localhost:{port}"},
        {"host": f"[::1]:{port}", "origin": f"http://[::1]:{port}"},
        {"host": "localhost", "origin": "http://localhost:80"},
        {"host": "localhost:80", "origin": "http://localhost"},
        {"host": "localhost:443", "origin": "http://localhost:443"},
        {"host": "localhost", "origin": "https://localhost", "x-forwarded-proto": "https"},
        {"host": "localhost:443", "origin": "https://localhost", "x-forwarded-proto": "https"},
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "application/vnd.api+json"},
    ):
        answer = client.post("/v1/runs", content=b'{"prompt": ""}', headers={**JSON, **headers})
        assert answer.status_code == 422, (headers, answer.text)
        assert error_of(answer)["param"] == "prompt"
    assert client.post("/v1/runs/run-x/cancel").status_code == 404, "no body needs no content type"


@needs("service")
def test_hosts_that_name_this_machine_are_answered(client: httpx.Client) -> None:
    for host, status in (
        *(("[::1]", 200), ("[::1]:8000", 200), ("127.0.0.1", 200), ("127.0.0.2:1", 200), ("localhost", 200)),
        *(("evil.example", 403), ("localhost.evil.example", 403), ("[::2]", 403), ("10.0.0.1", 403)),
        *(("localhost:x", 400), ("[::1", 400), ("a b", 400), ("user@localhost", 400), ("", 400)),
    ):
        answer = client.get("/v1/models", headers={"host": host})
        assert answer.status_code == status, host
    connection = http.client.HTTPConnection(client.base_url.netloc.decode())
    connection.putrequest("GET", "/v1/models")  # adds a Host header of its own
    connection.putheader("host", "localhost")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


@needs("service_edge")
def test_the_operator_can_allow_other_origins(keyed: Keyed) -> None:
    with keyed.client() as ann:
        for origin in (ALLOWED, "http://localhost:3000"):
            preflight = {"origin": origin, "access-control-request-method": "POST"}
            preflight["access-control-request-headers"] = "authorization,content-type,idempotency-key,x-stainless-os"
            answer = httpx.options(f"{keyed.served.url}/v1/runs", headers=preflight)  # browsers send no key here
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
            assert "DELETE" in answer.headers["access-control-allow-methods"]
            sent = {"origin": origin, "sec-fetch-site": "cross-site"}
            answer = ann.post("/v1/runs", json={"prompt": ""}, headers=sent)
            assert answer.status_code == 422
            assert answer.headers["access-control-allow-origin"] == origin
            refused = httpx.post(f"{keyed.served.url}/v1/runs", json=RUN, headers=sent)
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == origin, "the page can read why"
        for path, body in UNSAFE:
            answer = ann.post(path, json=body, headers={"origin": "https://evil.example"})
            assert (answer.status_code, error_of(answer)["code"]) == (403, "cross_site"), path
            assert "access-control-allow-origin" not in answer.headers


# --- bodies ---------------------------------------------------------------------------------------------------------

ODD_BODIES = {
    "deep": b'{"prompt": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "deeper than some parsers": b'{"a":' * 900 + b"1" + b"}" * 900,
    "not utf-8": b'{"prompt": "\xff\xfe"}',
    "integer": b'{"prompt": "two red cars", "n": ' + b"9" * 5000 + b"}",
    "integer beyond sqlite": b'{"prompt": "a", "settings": {"budget": {"images": 36893488147419103232}}}',
    "nan": b'{"input": {"prompt": "a", "context": {"budget": {"cost": NaN}}}}',
    "infinite": b'{"input": {"prompt": "a", "context": {"budget": {"cost": 1e400}}}}',
    "twice": b'{"prompt": "two red cars", "prompt": "a red dog"}',
    "surrogate": b'{"prompt": "two red \\ud83d cars", "inputs": [{"prompt": "\\udc00"}]}',
    "not json": b"{",
    "list": b"[1, 2]",
    "text": b'"two red cars"',
    "null": b"null",
    "number": b"7",
    "nothing": b"",
    "wrong kinds": b'{"prompt": {"a": 1}, "input": [1], "inputs": {"a": 1}, "config": 7, "action": []}',
    "wrong inputs": b'{"inputs": [{"prompt": 7}, null, "x"], "input": {"prompt": 7}, "config": [1, 2]}',
    "no inputs": b'{"inputs": true, "input": true, "config": [{}, {}], "prompt": true, "action": true}',
    "wrong names": b'{"input": {"prompt": "a"}, "include_names": 7, "inputs": [{}], "prompt": 1, "action": 1}',
    "wrong config": b'{"inputs": [{"prompt": "a dragon"}], "input": {"prompt": "a"}, "config": {"configurable": 7}}',
}


@needs("service")
@pytest.mark.parametrize("body", ODD_BODIES.values(), ids=ODD_BODIES)
def test_odd_bodies_get_one_form_of_error_everywhere(client: httpx.Client, body: bytes) -> None:
    for path, _ in UNSAFE[:-1]:
        answer = client.post(path, content=body, headers=JSON)
        if path == "/v1/runs/run-x/cancel" and body in (b"", b"[1, 2]"):
            continue  # takes no body
        if body == ODD_BODIES["wrong config"] and path.startswith("/gems"):
            assert answer.status_code < 500  # LangServe ignores what no part of the agent takes
        else:
            assert 400 <= answer.status_code < 500, (path, answer.status_code, answer.text)
            error_of(answer)


@needs("service")
def test_null_means_left_out_for_every_optional_field_of_every_route(client: httpx.Client) -> None:
    settings = dict.fromkeys(RunSettings.model_fields)
    budget = dict.fromkeys(("chat_calls", "tokens", "seconds", "cost", "prices"))
    image = dict.fromkeys(
        ("model", "n", "size", "seed", "response_format", "output_format", "stream", "partial_images", "quality")
    )
    for path, body, status in (
        ("/v1/images/generations", {"prompt": "two red cars", **image}, 200),
        ("/v1/runs", {"prompt": "two red cars", "settings": None, "thread": None}, 202),
        ("/v1/runs", {"prompt": "two red cars", "settings": {**settings, "budget": budget}}, 202),
        ("/v1/runs", {"prompt": "two red cars", "settings": {**settings, "budget": None}}, 202),
        ("/gems/invoke", {"input": {"prompt": "a red dog", "thread_id": None, "context": None, "resume": None}}, 200),
        ("/gems/invoke", {"input": {"prompt": "a red dog", "context": settings}, "config": None, "kwargs": None}, 200),
        ("/gems/batch", {"inputs": [{"prompt": "a red dog", "thread_id": None}], "config": None, "kwargs": None}, 200),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == status, (path, body, answer.text)


def in_hash(config: Any) -> str:
    from langserve.lzstring import LZString

    return str(LZString.compressToEncodedURIComponent(json.dumps(config)))


LANGSERVE = ("invoke", "stream", "stream_log", "stream_events", "batch")


def langserve_call(route: str, config: Any, **fields: Any) -> dict[str, Any]:
    if route == "batch":
        return {"inputs": [CALL["input"]], "config": config, **fields}
    return {**CALL, "config": config, **fields}


@needs("service")
@pytest.mark.parametrize("route", LANGSERVE)
def test_what_langserve_would_ignore_is_refused(client: httpx.Client, route: str) -> None:
    before = run_count(client)
    bad: list[Any] = [
        {"configurable": {"seed": 3}},
        {"configurable": {"generator": "diffusers:nobody/nothing"}},
        {"configurable": {"thread_id": 7}},
        {"configurable": {"thread_id": "../x"}},
        {"configurable": [1]},
        {"configurable": {"context": {"max_rounds": 1}}},
        {"seed": 3},
        {"max_concurrency": 1},
        {"run_name": "mine"},
    ]
    calls = [(f"/gems/{route}", langserve_call(route, config)) for config in bad]
    calls += [(f"/gems/c/{in_hash(config)}/{route}", langserve_call(route, {})) for config in bad]
    calls += [
        (f"/gems/{route}", langserve_call(route, {}, context={"seed": 3})),
        (f"/gems/{route}", langserve_call(route, {}, kwargs={"seed": 3})),
        (f"/gems/c/{in_hash([1])}/{route}", langserve_call(route, {})),
    ]
    if route == "batch":
        calls.append(("/gems/batch", langserve_call("batch", [{"configurable": {"seed": 3}}])))
    for path, body in calls:
        answer = client.post(path, json=body)
        assert answer.status_code == 422, (path, body, answer.text)
        assert "\n" not in error_of(answer)["message"]
    named = client.post(f"/gems/{route}", json=langserve_call(route, {"configurable": {"seed": 3}}))
    assert "'seed' has no effect here; a request takes prompt, thread_id, context, resume" in error_of(named)["message"]
    assert run_count(client) == before


@needs("service")
@pytest.mark.parametrize("route", LANGSERVE)
def test_a_config_names_the_thread(client: httpx.Client, route: str) -> None:
    """Inside a graph of LangGraph, LangChain's client also sends where in that graph it stands."""
    thread = f"of-{route}"
    labels = {"tags": ["seq:step:1"], "metadata": {"langgraph_step": 1}, "recursion_limit": 10_000}
    own = {"configurable": {"thread_id": thread, "checkpoint_ns": "gems:1", "checkpoint_id": None}}
    assert client.post(f"/gems/{route}", json=langserve_call(route, labels | own)).status_code == 200
    assert client.post(f"/gems/c/{in_hash(own)}/{route}", json=langserve_call(route, labels)).status_code == 200
    runs = client.get("/v1/runs", params={"limit": 2}).json()["data"]
    assert [run["thread"] for run in runs] == [thread, thread]
    other = langserve_call(route, own)
    for fields in other.get("inputs") or [other["input"]]:
        fields = fields | {"thread_id": "another"}
        body = {**other, **({"inputs": [fields]} if route == "batch" else {"input": fields})}
        answer = client.post(f"/gems/{route}", json=body)
        assert answer.status_code == 400
        assert "leave one out" in error_of(answer)["message"]


@needs("service")
def test_null_in_a_review_means_left_out(service: ServiceProcess, client: httpx.Client) -> None:
    begun = client.post("/v1/runs", json={**RUN, "settings": {"memory": False, "review": "end"}}).json()
    service.wait_for(begun["id"], "waiting")
    review = {"action": "accept", "comment": None, "prompt": None, "requirements": None, "image": None}
    answer = client.post(f"/v1/runs/{begun['id']}/review", json=review)
    assert answer.status_code == 200, answer.text
    assert service.wait_for(begun["id"])["outcome"] == "accepted"


# --- every route ----------------------------------------------------------------------------------------------------


@needs("service")
def test_every_response_forbids_framing_and_guessing(client: httpx.Client) -> None:
    image = client.post("/v1/images/generations", json={"prompt": "two red cars", "response_format": "url"}).json()
    run = client.get(f"/v1/runs/{image['data'][0]['gems']['run']}").json()
    for method, path in (
        *(("GET", "/"), ("GET", "/page.js"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")),
        *(("GET", "/openapi.json"), ("GET", "/v1/models"), ("GET", "/v1/runs"), ("GET", f"/v1/runs/{run['id']}")),
        *(("GET", f"/v1/runs/{run['id']}/events"), ("GET", image["data"][0]["url"]), ("GET", run["report"])),
        *(("GET", "/gems/playground/"), ("GET", "/gems/input_schema"), ("GET", "/gems/c/N4XyA/playground/")),
        *(("GET", "/nowhere"), ("POST", "/v1/runs"), ("DELETE", "/healthz"), ("POST", "/gems/invoke")),
        *(("POST", "/gems/stream"), ("OPTIONS", "/v1/runs"), ("GET", "/artifacts/x.png"), ("PUT", "/")),
    ):
        answer = client.request(method, path, json=CALL if path == "/gems/stream" else None)
        headers = answer.headers
        assert headers["x-frame-options"] == "DENY", path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["x-request-id"], path


@needs("service")
def test_head_is_answered_wherever_get_is(client: httpx.Client) -> None:
    image = client.post("/v1/images/generations", json={"prompt": "two red cars", "response_format": "url"}).json()
    run = client.get(f"/v1/runs/{image['data'][0]['gems']['run']}").json()
    waiting = client.post("/v1/runs", json={**RUN, "settings": {"memory": False, "review": "end"}}).json()
    for path in (
        *("/", "/page.js", "/page.css", "/favicon.svg", "/healthz", "/readyz", "/metrics", "/openapi.json"),
        *("/v1/models", "/v1/models/gems", "/v1/runs", f"/v1/runs/{run['id']}", run["report"]),
        *(image["data"][0]["url"], "/gems/playground/", "/gems/input_schema", "/gems/output_schema"),
        *("/gems/config_schema", "/nowhere", "/v1/runs/run-x", "/artifacts/x.png", "/v1/images/generations"),
    ):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers["content-type"] == get.headers["content-type"], path
    stream = client.head(f"/v1/runs/{waiting['id']}/events", timeout=5)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert client.head(f"/v1/runs/{run['id']}/events").status_code == 200
    client.post(f"/v1/runs/{waiting['id']}/cancel")


@needs("service")
def test_a_model_can_be_looked_up(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [client.get(f"/v1/models/{model['id']}").json() for model in listed] == listed
    for path in ("/gems/playground/%00", "/v1/runs/%00", "/v1/models/a%0ab", "/artifacts/%1b.png", "/%7f"):
        assert error_of(client.get(path))["code"] == "invalid_path", path
    answer = client.get("/v1/models/org/none")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


# --- images ---------------------------------------------------------------------------------------------------------


@needs("service")
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(("size", "expected"), [("auto", 512), ("256x128", 128), ("1024x1024", 1024), (None, 512)])
def test_an_image_has_its_size_and_format_by_url_too(
    client: httpx.Client, image_format: str, size: str | None, expected: int
) -> None:
    body = {"prompt": "two red cars", "seed": 3, "size": size, "output_format": image_format}
    for response_format in ("url", "b64_json"):
        answer = client.post("/v1/images/generations", json={**body, "response_format": response_format}).json()
        [image] = answer["data"]
        if response_format == "url":
            response = httpx.get(image["url"])
            assert response.headers["content-type"] == f"image/{image_format}"
            assert httpx.URL(image["url"]).path.endswith(f".{image_format}")
        content = response.content if response_format == "url" else base64.b64decode(image["b64_json"])
        picture = Image.open(io.BytesIO(content))
        assert (picture.format, picture.size) == (image_format.upper(), (expected, expected))
        assert (answer["size"], answer["output_format"]) == (f"{expected}x{expected}", image_format)


@needs("service")
def test_several_images_share_the_size_that_the_answer_names(client: httpx.Client) -> None:
    body = {"prompt": "two red cars", "n": 2, "size": "300x200", "response_format": "url", "output_format": "webp"}
    answer = client.post("/v1/images/generations", json=body).json()
    sizes = {Image.open(io.BytesIO(httpx.get(image["url"]).content)).size for image in answer["data"]}
    assert sizes == {(200, 200)}
    assert answer["size"] == "200x200"


@needs("service")
def test_an_images_signed_size_cannot_be_changed(client: httpx.Client) -> None:
    url = client.post(
        "/v1/images/generations", json={"prompt": "two red cars", "size": "64x64", "response_format": "url"}
    ).json()["data"][0]["url"]
    assert Image.open(io.BytesIO(client.get(url).content)).size == (64, 64)
    assert client.get(url.replace("/artifacts/", "/artifacts/a")).status_code == 404
    assert client.get(url.replace(".png", ".gif")).status_code == 404


# --- operators ------------------------------------------------------------------------------------------------------


@needs("service_edge")
def test_only_a_marked_key_reads_the_metrics_of_all_users(keyed: Keyed) -> None:
    with keyed.client("ann") as ann, keyed.client("prometheus") as prometheus, keyed.served.client() as nobody:
        assert nobody.get("/metrics").status_code == 401
        refused = ann.get("/metrics")
        assert refused.status_code == 403
        assert "gems_" not in refused.text
        assert prometheus.get("/metrics").status_code == 200
        for path in ("/healthz", "/readyz", "/openapi.json", "/"):
            text = nobody.get(path).text
            assert not any(total in text for total in ('"at_work":', '"queued":')), path


@needs("service_edge")
def test_each_counter_is_counted(keyed: Keyed) -> None:
    with keyed.client("ann") as ann, keyed.client("poor") as poor, keyed.client("prometheus") as prometheus:
        done = ann.post("/v1/images/generations", json={"prompt": "two red cars"})
        assert done.status_code == 200
        assert poor.post("/v1/runs", json=RUN).status_code == 429
        [run] = [ann.post("/v1/runs", json={"prompt": "a dragon"}).json()["id"]]
        keyed.served.wait_for(run, key=keyed.keys["ann"])
        families = list(text_string_to_metric_families(prometheus.get("/metrics").text))
    totals: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            if family.name.startswith("gems_") and sample.name.endswith(("_total", "_count")):
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
    assert set(totals) == {
        *("gems_runs_total", "gems_run_seconds_count", "gems_spent_total", "gems_refused_total"),
        *("gems_http_requests_total", "gems_http_request_seconds_count"),
    }
    assert min(totals.values()) > 0, totals


@needs("service_edge")
def test_an_answer_to_no_run_of_ones_own_is_told_alike_on_all_routes(keyed: Keyed) -> None:
    """The threads of other users do not exist, and a stream says so too."""
    with keyed.client("ann") as ann, keyed.client("poor") as other:
        run = ann.post("/v1/runs", json={**RUN, "thread": "anns"}).json()["id"]
        keyed.served.wait_for(run, key=keyed.keys["ann"])
        for route in ("invoke", "batch", "stream", "stream_log", "stream_events"):
            says = []
            for client, thread in ((other, "anns"), (other, "nobodys"), (ann, "anns")):
                fields = {"resume": {"action": "accept"}, "thread_id": thread}
                call = {"inputs": [fields]} if route == "batch" else {"input": fields}
                answer = client.post(f"/gems/{route}", json=call)
                says.append((answer.status_code, answer.json()["error"]["message"].replace(thread, "T")))
            assert says[0] == says[1] == (400, "there is no thread 'T'")
            assert says[2] == (409, "this run waits for no review")


@needs("service_edge")
def test_a_stream_that_is_not_accepted_says_why(keyed: Keyed) -> None:
    """A full queue is refused at the same place as a limit that is used up."""
    with keyed.client("poor") as poor:
        while (plain := poor.post("/v1/runs", json=RUN)).status_code != 429:
            keyed.served.wait_for(plain.json()["id"], key=keyed.keys["poor"])
        for route in ("stream", "stream_log", "stream_events"):
            answer = poor.post(f"/gems/{route}", json=CALL)
            assert (answer.status_code, answer.json()) == (429, plain.json())
            assert int(answer.headers["retry-after"]) >= 1
            assert poor.post(f"/gems/{route}", json={"input": {"prompt": " "}}).status_code == 400


@needs("service_edge")
def test_no_client_causes_a_traceback(keyed: Keyed) -> None:
    """Not even where a run fails in the midst of a stream."""
    with keyed.client("ann") as ann:
        for path in ("/gems/stream", "/gems/stream_log", "/gems/stream_events"):
            answer = ann.post(path, json={"input": {"prompt": "a dragon"}})
            assert answer.status_code == 200
            assert "event: error" in answer.text, "the stream ends as a stream does"
            assert "unknown word 'dragon'" in answer.text, "and says why"
        invoked = ann.post("/gems/invoke", json={"input": {"prompt": "a dragon"}})
        assert (invoked.status_code, "unknown word 'dragon'" in invoked.text) == (400, True)
        for path, _ in UNSAFE:
            for body in ODD_BODIES.values():
                ann.post(path, content=body, headers=JSON)
        for file in ("assets", "%2e", "index.html/x", "x" * 5000, "%2e%2e/%2e%2e/server.py"):
            assert ann.get(f"/gems/playground/{file}").status_code == 404
    lines = keyed.served.log()
    assert [line for line in lines if "exception" in line or line["level"] == "error"] == []
    assert any(line["event"] == "stream_ended" and "dragon" in line["error"] for line in lines)
