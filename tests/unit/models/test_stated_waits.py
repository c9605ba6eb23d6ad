"""The wait that a busy server states is heeded wherever it states it, as that of the header is."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from servers.threaded import serving

from gems.authority import OPERATOR
from gems.errors import BackendError
from gems.faces import run_here
from gems.memory import embedder
from gems.models.capabilities import capabilities_of
from gems.models.generators import ImageRequest
from gems.models.registry import init_image_generator, init_mllm
from gems.models.servers.stated_waits import retry_after
from gems.models.system_messages import invoke
from gems.options import ChatOptions, GeneratorOptions

RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "19s"}


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "7"}, {}, 7),
        ({"retry-after": "7"}, {"error": {"message": "Please try again in 70s"}}, 7),
        ({"retry-after-ms": "1500", "retry-after": "2"}, {}, 1.5),
        ({}, {"error": {"code": 429, "details": [{"@type": "QuotaFailure"}, RETRY_INFO]}}, 19),
        ({}, [{"error": {"details": [{**RETRY_INFO, "retryDelay": "19.8s"}]}}], 19.8),
        ({}, {"error": {"message": "limit: 10\nPlease retry in 19.8s."}}, 19.8),
        ({}, {"error": {"message": "Please retry in 58.5ms."}}, 0.0585),
        ({}, {"error": {"message": "Limit 30000, Used 29000. Please try again in 7.66s. Visit"}}, 7.66),
        ({}, {"error": {"message": "tokens per day (TPD). Please try again in 1m26.4s."}}, 86.4),
        ({}, {"error": {"message": "Please try again in 320ms. Visit https://"}}, 0.32),
        ({}, {"error": {"message": "Please try again in 2h3m4s"}}, 7384),
        ({}, {"error": {"message": "S0 pricing tier. Please retry after 21 seconds. Please go"}}, 21),
        ({}, {"message": "Please wait 2 minutes and 5 attempts"}, 120),
        ({}, {"detail": "slow down", "retry_after": 4.5}, 4.5),
        ({}, {"error": {"metadata": {"retry_after_ms": 250}}}, 0.25),
        ({}, {"error": {"retryAfter": "12"}}, 12),
        ({}, {"error": "Model x is currently loading", "estimated_time": 20.5}, 20.5),
        ({}, "Too many requests, retry after 3 seconds", 3),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7.5s"}, {}, 7.5),
        ({"x-ratelimit-remaining-requests": "12", "x-ratelimit-reset-requests": "2m59s"}, {}, 0),
        ({}, {"error": {"message": "The API deployment does not exist. Try again in a moment."}}, 0),
        ({}, {"error": {"message": "rate limit of 10 requests in 60 seconds; retry 3 times"}}, 0),
        ({}, {"retry_after": True, "retryDelay": None, "retry_after_ms": "soon"}, 0),
        ({}, {"retry_after": -5}, 0),
        ({}, {"error": {"message": "upstream error: queue wait 300s exceeded"}}, 0),
        ({}, {"error": {"message": "retried 3 times, gave up wait after 120 seconds"}}, 0),
        ({}, {"error": {"message": "the time to retry after 30 seconds exceeded"}}, 0),
        ({}, {"error": {"message": "Please retry after 2 seconds. If the problem persists, wait 24 hours."}}, 2),
        ({}, {"error": {"message": "Slow. If this persists, please retry after 24 hours"}}, 0),
        ({}, "<p>Please try again in 2 seconds. If this goes on, wait 30 minutes and call us.</p>", 2),
        ({}, {"message": "Please retry after 2 s.", "hint": "Please wait 24 hours if you need support."}, 2),
        ({}, {"message": "You must wait 5 seconds before making another request"}, 5),
        ({}, {"message": "Too fast: wait for 7s and retry"}, 7),
        ({}, {"retryAfter": 2000}, 2),
        ({}, {"retry_after": "90"}, 90),
        ({}, {"retry_after_seconds": 1500}, 1500),
        ({}, {"retry_after_seconds": 86_400}, 0),
        ({}, {"retry_after_ms": 86_400_000}, 0),
        ({}, {"retry_after": 1e300}, 0),
        ({}, {"retry_after": 10**400}, 0),
        ({}, '{"retry_after": Infinity}', 0),
        ({}, '{"retry_after": NaN}', 0),
        ({}, {"retry_after": "inf"}, 0),
        ({}, {"retry_after": "Tue, 01 Dec 2015 10:30:00 GMT"}, 0),
        ({"retry-after": "inf"}, {}, 0),
        ({"retry-after": "nan"}, {}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "Tue, 01 Dec 2015 10:30:00 GMT"}, {}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "6m0s"}, {}, 360),
        ({}, {}, 0),
    ],
)
def test_a_wait_is_read_wherever_it_is_stated(headers: dict[str, str], body: object, seconds: float) -> None:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    assert retry_after(headers, content) == pytest.approx(seconds)


def test_a_wait_may_be_a_point_in_time() -> None:
    now = time.time()
    assert retry_after({"retry-after": email.utils.formatdate(now + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    dates = [email.utils.formatdate(now + 30, usegmt=True), datetime.fromtimestamp(now + 30, UTC).isoformat()]
    for stamp in (f"{now + 30:.0f}", f"{(now + 30) * 1000:.0f}", *dates):
        headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": stamp}
        assert retry_after(headers) == pytest.approx(30, abs=2)
        assert retry_after({}, json.dumps({"retry_after": stamp}).encode()) == pytest.approx(30, abs=2)
    assert retry_after({}, json.dumps({"retry_after": int(now + 30)}).encode()) == pytest.approx(30, abs=2)


@pytest.mark.parametrize("pump", ["retry in ", "1s ", "9", "wait 1 ", "try again in 1s"])
def test_an_endless_error_is_read_in_a_moment(pump: str) -> None:
    retry_after({}, (pump * 100_000).encode())
    retry_after({}, json.dumps({"error": pump * 100_000}).encode())


GOOGLE = {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED", "details": [RETRY_INFO]}}
OPENAI = {"error": {"message": "Rate limit reached. Please try again in 19s.", "type": "tokens"}}
SLOW = {"error": {"message": "slow down"}}
QUEUE = {"error": {"message": "upstream error: queue wait 300s exceeded"}}
FAR = {"error": {"message": "Rate limit reached. Please try again in 23h59m.", "type": "tokens"}}


@pytest.fixture
def busy_server() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses the first request of each kind, with the error whose name is in the address."""
    asked: list[str] = []
    errors = {
        "google": GOOGLE,
        "openai": OPENAI,
        "far": FAR,
        "queue": QUEUE,
        "milliseconds": {"retryAfter": 2000},
        "header": SLOW,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.path)
            kind = self.path.split("/")[1]
            is_busy = kind in ("far", "header") or len(asked) == 1
            body = json.dumps(errors[kind] if is_busy else self.answer()).encode()
            self.send_response(429 if is_busy else 200)
            self.send_header("content-type", "application/json")
            if kind == "header":
                self.send_header("retry-after", "300")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self) -> dict[str, Any]:
            if "embeddings" in self.path:
                return {"data": [{"index": 0, "embedding": [1.0, 2.0], "object": "embedding"}], "object": "list"}
            if "generateContent" in self.path:
                part = {"content": {"role": "model", "parts": [{"text": "fine"}]}, "finishReason": "STOP", "index": 0}
                return {"candidates": [part], "modelVersion": "m"}
            message = {"role": "assistant", "content": "fine"}
            return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which nobody waits for."""
    seconds: list[float] = []

    async def wait(length: float) -> None:
        seconds.append(length)

    for name in ("gems.models.tries.pause", "gems.models.servers.providers.pause"):
        monkeypatch.setattr(name, seconds.append)
    monkeypatch.setattr("gems.models.servers.retries.apause", wait)
    monkeypatch.setattr("openai._base_client.time.sleep", seconds.append)
    return seconds


def ask(name: str, base_url: str) -> str:
    model = init_mllm(name, ChatOptions(base_url=base_url, api_key="none", timeout=30.0), OPERATOR)
    return str(run_here(invoke(model, [HumanMessage("?")], capabilities_of(model), "text", model)).text)


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("openai:x", "openai", "/v1"),
        ("openai:gemini-x", "google", "/v1"),
        pytest.param("google_genai:gemini-3-pro-preview", "google", "", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_chat_server_is_given_the_time_that_its_error_asks_for(
    name: str, kind: str, path: str, busy_server: tuple[str, list[str]], waits: list[float]
) -> None:
    pytest.importorskip("langchain_google_genai" if "google" in name else "langchain_openai", exc_type=ImportError)
    url, asked = busy_server
    assert ask(name, f"{url}/{kind}{path}") == "fine"
    assert [wait for wait in waits if wait > 1] == [19.0]
    assert len(asked) == 2


def test_a_wait_that_no_call_has_time_for_is_not_begun(busy_server: tuple[str, list[str]], waits: list[float]) -> None:
    url, asked = busy_server
    with pytest.raises(Exception, match="23h59m"):
        ask("openai:x", f"{url}/far/v1")
    assert (waits, len(asked)) == ([], 1)


def test_a_wait_that_ends_the_tries_of_a_chat_call_is_named(
    busy_server: tuple[str, list[str]], waits: list[float]
) -> None:
    url, asked = busy_server
    with pytest.raises(Exception, match="slow down") as caught:
        ask("openai:x", f"{url}/header/v1")
    assert "slow down (it asks to wait 300 s)" in str(caught.value)
    assert (waits, len(asked)) == ([], 1)


def test_an_embedder_is_given_the_time_that_its_error_asks_for(
    busy_server: tuple[str, list[str]], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = busy_server
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/openai/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert embedder._embedder.__wrapped__("openai:waits").embed_query("a car") == [1.0, 2.0]
    assert waits == [19.0]
    assert len(asked) == 2


def test_an_image_server_is_given_the_time_that_its_error_asks_for(
    busy_server: tuple[str, list[str]], waits: list[float]
) -> None:
    url, asked = busy_server
    generator = init_image_generator(
        "openai:x", GeneratorOptions(base_url=f"{url}/openai/v1", api_key="none", timeout=30.0), authority=OPERATOR
    )
    [failure] = generator.generate([ImageRequest("a car", seed=1)])
    assert isinstance(failure, BackendError)  # this server draws nothing
    assert waits[0] == 19.0
    assert len(asked) >= 2
    generator.close()


def images(url: str, kind: str) -> BackendError:
    options = GeneratorOptions(base_url=f"{url}/{kind}/v1", api_key="none", timeout=30.0)
    generator = init_image_generator("openai:x", options, authority=OPERATOR)
    [failure] = generator.generate([ImageRequest("a car", seed=1)])
    generator.close()
    assert isinstance(failure, BackendError)  # this server draws nothing
    return failure


@pytest.mark.parametrize("kind", ["queue", "milliseconds"])
def test_an_image_server_is_asked_again_after_a_number_that_is_no_long_wait(
    kind: str, busy_server: tuple[str, list[str]], waits: list[float]
) -> None:
    url, asked = busy_server
    images(url, kind)
    assert waits[0] <= 2.0
    assert len(asked) >= 2


def test_a_wait_that_ends_the_tries_for_an_image_is_named(
    busy_server: tuple[str, list[str]], waits: list[float]
) -> None:
    url, asked = busy_server
    assert "asks to wait 86340 s" in str(images(url, "far"))
    assert (waits, len(asked)) == ([], 1)
