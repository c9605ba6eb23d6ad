"""What a chat server refuses for a reason that no other way of asking changes: a question costs one request then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from fakes import PaintGenerator
from servers.threaded import serving

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import GemsInput
from gems.memory.image_store import ImageStore
from gems.nodes.retry import RETRY
from gems.options import ChatOptions

pytestmark = [pytest.mark.usefixtures("impatient"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Refuses(BaseHTTPRequestHandler):
    """Answers every question alike, or, with a ``feature``, only those that have it in their request."""

    status, words, feature, page = 400, "", "", b""
    requests: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        plan = {"requirements": [{"id": "r1", "question": "Are there two red cars?", "kind": "count"}]}
        message = {"role": "assistant", "content": json.dumps(plan)}
        answer: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        refuses = self.feature in request if self.feature else True
        error = {"error": self.words if self.path.startswith("/api") else {"message": self.words, "type": "api_error"}}
        body = self.page or json.dumps(error if refuses else answer).encode()
        self.send_response(self.status if refuses else 200)
        self.send_header("Content-Type", "text/html" if self.page else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[tuple[ThreadingHTTPServer, type[Refuses]]]:
    handler = type("OneRefuses", (Refuses,), {"requests": []})
    with serving(handler) as http:
        yield http, handler


def run(package: str, http: ThreadingHTTPServer, tmp_path: Path) -> dict[str, Any]:
    address = f"http://127.0.0.1:{http.server_port}"
    options = ChatOptions(base_url=address if package == "ollama" else f"{address}/v1", api_key="none")
    context = GemsContext(mllm=f"{package}:m{http.server_port}", chat_options=options, memory=False).as_operator()
    quick = RETRY._replace(initial_interval=0.01)
    graph = build_graph(generator=PaintGenerator(), images=ImageStore(tmp_path), retry=quick)
    output: dict[str, Any] = graph.invoke(GemsInput(prompt="two red cars"), context=context)
    return output


MEMORY: Final = "model requires more system memory (9.3 GiB) than is available (7.1 GiB)"
FOR_GOOD: Final = {
    "country": (403, "Country, region, or territory not supported"),
    "country, as a bad request": (400, "User location is not supported for the API use."),
    "terms": (403, "This model requires you to accept the provider's terms first"),
    "retired": (400, "The model `llama-3.2-90b-vision-preview` has been decommissioned and is no longer supported."),
    "no provider": (400, "The requested model 'x/tool-use-7b' is not supported by any provider you have enabled."),
    "name": (400, "x/m is not a valid model ID"),
    "plan": (400, "Your plan does not support this model"),
    "throughput": (400, "Invocation of model ID a.b-1 with on-demand throughput isn't supported."),
    "memory": (500, MEMORY),
    "memory, as a bad request": (400, "Model loading was stopped due to insufficient system resources."),
}


@pytest.mark.parametrize("kind", FOR_GOOD)
def test_what_is_about_no_request_is_asked_once_for_each_question(
    kind: str, server: tuple[ThreadingHTTPServer, type[Refuses]], tmp_path: Path
) -> None:
    http, handler = server
    handler.status, handler.words = FOR_GOOD[kind]
    output = run("openai", http, tmp_path)
    assert len(handler.requests) == 2, "the decomposer's question and the planner's"
    assert output["usage"].lost_tokens == 0
    assert [handler.words in error for error in output["errors"]] == [True, True]


def test_an_unknown_model_that_an_answer_tells_of_is_asked_in_no_other_way(
    server: tuple[ThreadingHTTPServer, type[Refuses]], tmp_path: Path
) -> None:
    http, handler = server
    handler.status, handler.words = 200, "x/m is not a valid model ID"
    output = run("openai", http, tmp_path)
    assert len(handler.requests) == 2, "the decomposer's question and the planner's"
    assert all(handler.words in error for error in output["errors"])


@pytest.mark.parametrize("package", ["openai", "ollama"])
def test_a_model_that_does_not_fit_into_memory_has_done_nothing_and_the_line_says_what_to_do(
    package: str, server: tuple[ThreadingHTTPServer, type[Refuses]], tmp_path: Path
) -> None:
    pytest.importorskip(f"langchain_{package}", reason="install the extra providers", exc_type=ImportError)
    http, handler = server
    handler.status, handler.words = 500, MEMORY
    output = run(package, http, tmp_path)
    assert len(handler.requests) == 2
    assert output["usage"].lost_tokens == 0
    assert all("too little memory: free some there, or give a smaller model" in error for error in output["errors"])


@pytest.mark.parametrize(
    ("status", "words", "most"),
    [
        (500, "CUDA error: out of memory", 3),  # of one question, which a smaller batch may leave room for
        (503, "The deployment requires more capacity than is available right now. Please retry later.", 9),
    ],
)
def test_what_may_pass_is_asked_again_but_in_no_other_way(
    status: int, words: str, most: int, server: tuple[ThreadingHTTPServer, type[Refuses]], tmp_path: Path
) -> None:
    http, handler = server
    handler.status, handler.words = status, words
    run("openai", http, tmp_path)
    assert len(handler.requests) == 2 * most


@pytest.mark.parametrize(
    ("status", "words", "feature"),
    [
        (400, "This model is not supported with response_format", "response_format"),
        (403, "Your plan does not support response_format json_schema", "response_format"),
        (404, "No endpoints found that can handle the requested parameters.", "response_format"),
        (500, "response_format is not supported by m-1/json", "response_format"),
        (500, "Failed to initialize samplers: failed to parse grammar", "response_format"),
        (400, "bad request", "response_format"),
    ],
)
def test_what_a_request_can_be_asked_without_is_left_out(
    status: int, words: str, feature: str, server: tuple[ThreadingHTTPServer, type[Refuses]], tmp_path: Path
) -> None:
    http, handler = server
    handler.status, handler.words, handler.feature = status, words, feature
    run("openai", http, tmp_path)
    assert any(feature not in request for request in handler.requests)


def test_words_of_a_server_are_shown_as_such_after_other_ways_have_failed_too(
    server: tuple[ThreadingHTTPServer, type[Refuses]], tmp_path: Path
) -> None:
    pytest.importorskip("langchain_google_genai", reason="install the extra providers", exc_type=ImportError)
    http, handler = server
    handler.status, handler.words = 400, "the moon is in the wrong quarter"
    output = run("google_genai", http, tmp_path)
    assert len(handler.requests) > 2
    assert all("answers 400: the moon is in the wrong quarter" in error for error in output["errors"])
    assert "{" not in "".join(output["errors"])


@pytest.mark.parametrize("package", ["openai", "ollama", "anthropic", "google_genai"])
@pytest.mark.parametrize(
    ("status", "advice"),
    [(403, "or the server's own address if a gateway before it refuses"), (503, "look whether the server runs")],
)
def test_a_page_in_place_of_an_answer_is_told_as_one(
    package: str, status: int, advice: str, server: tuple[ThreadingHTTPServer, type[Refuses]], tmp_path: Path
) -> None:
    module = f"langchain_{package}"
    pytest.importorskip(module, reason="install the extra providers", exc_type=ImportError)
    http, handler = server
    handler.status, handler.page = status, b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
    output = run(package, http, tmp_path)
    assert len(output["errors"]) == 2
    assert all("that is a page" in error and advice in error for error in output["errors"])
    assert "html" not in "".join(output["errors"])
