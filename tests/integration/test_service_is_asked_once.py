"""OpenAI's client, with the retries that it makes by default: a run that has ended is not begun again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from openai import APIError, APIStatusError, OpenAI
from servers.gems_service import ServiceProcess
from servers.gems_service import serving as serving_gems
from servers.threaded import serving
from servers.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("asked once")]


class Painter(BaseHTTPRequestHandler):
    """An image server that refuses every prompt in the way of the test."""

    status: ClassVar[int] = 400
    error: ClassVar[dict[str, Any]] = {}
    drawn: ClassVar[list[str]] = []
    may_answer: ClassVar[threading.Event] = threading.Event()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        self.drawn.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"])
        self.may_answer.wait(60)
        body = json.dumps({"error": self.error}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def painter() -> Iterator[ThreadingHTTPServer]:
    Painter.may_answer.set()
    with serving(Painter) as http:
        yield http


@pytest.fixture(scope="module")
def gems(painter: ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    address = f"base_url=http://127.0.0.1:{painter.server_port}/v1"
    options = ("--no-memory", "--grace", "0", "--max-rounds", "1", "--generator", "openai:painter")
    with serving_gems(tmp_path_factory.mktemp("once") / "home", *options, "--generator-option", address) as served:
        yield served


@pytest.fixture
def openai(gems: ServiceProcess) -> Iterator[OpenAI]:
    Painter.drawn.clear()
    with OpenAI(base_url=f"{gems.url}/v1", api_key="none needed") as client:
        assert client.max_retries > 0
        yield client


ENDS = {
    "moderated": (400, {"code": "moderation_blocked", "message": "rejected by our safety system"},
                  400, "content_policy_violation", "refuses to draw this: rejected by our safety system"),
    "no credit": (402, {"message": "You have run out of credits"}, 502, "backend", "does not help: pay for more"),
    "key": (401, {"message": "Incorrect API key provided"}, 502, "backend", "set the right key (GEMS_IMAGE_API_KEY)"),
    "unknown": (404, {"message": "no such model"}, 502, "backend", "answers 404: no such model"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_ends_without_an_image_is_not_begun_again(end: str, openai: OpenAI, gems: ServiceProcess) -> None:
    Painter.status, Painter.error, status, code, words = ENDS[end]
    with pytest.raises(APIStatusError) as caught:
        openai.images.generate(prompt="two red cars")
    assert len(Painter.drawn) == 1
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert words in caught.value.message
    kind = "refused" if status == 400 else "backend"
    with gems.client() as http:
        assert http.get("/v1/runs").json()["data"][0]["error_kind"] == kind


def test_a_stream_tells_of_a_refusal_as_such(openai: OpenAI) -> None:
    Painter.status, Painter.error = ENDS["moderated"][:2]
    with pytest.raises(APIError, match="safety system") as caught:
        list(openai.images.generate(prompt="two red cars", stream=True))
    assert (caught.value.code, caught.value.type) == ("content_policy_violation", "invalid_request_error")
    assert len(Painter.drawn) == 1


def test_a_run_that_was_cancelled_is_not_begun_again(openai: OpenAI, gems: ServiceProcess) -> None:
    Painter.may_answer.clear()
    try:
        with ThreadPoolExecutor(1) as pool, gems.client() as http:
            image = pool.submit(openai.images.generate, prompt="two red cars")
            wait_until(lambda: Painter.drawn, lambda: "nothing is drawn")
            run = http.get("/v1/runs").json()["data"][0]["id"]
            assert http.post(f"/v1/runs/{run}/cancel").is_success
            with pytest.raises(APIStatusError, match="was cancelled"):
                image.result(timeout=60)
            assert http.get("/v1/runs").json()["data"][0]["id"] == run
    finally:
        Painter.may_answer.set()
