"""What chat and image servers answer over HTTP: how often they are asked, and what the user is told."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest
from chatting import fill
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.errors import GraphDrained
from PIL import Image
from servers.threaded import serving

from gems.authority import OPERATOR
from gems.errors import BackendError
from gems.models.calling import call_model
from gems.models.generators import Edit, ImageRequest
from gems.models.registry import init_image_generator, init_mllm
from gems.nodes.decomposer import Requirements
from gems.nodes.meter import settle_run
from gems.nodes.prompt_checks import Plan
from gems.nodes.retry import retry_on
from gems.options import ChatOptions, GeneratorOptions
from gems.stopping import stopping

QUESTION = [SystemMessage("Obey."), HumanMessage("What do you wish?")]
STREAM = b"".join(
    f"data: {json.dumps({'model': 'm', 'choices': [{'index': 0, 'delta': {'content': piece}}]})}\n\n".encode()
    for piece in ("a ", "car")
)


MANY = 9
"""Requests, as long as there is time."""


class Handler(BaseHTTPRequestHandler):
    answer: tuple[int, str, bytes] = (200, "application/json", b"{}")
    requests: int = 0
    script: ClassVar[list[tuple[int, str, bytes]]] = []
    lies: ClassVar[dict[str, str]] = {}

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        status, kind, body = self.script.pop(0) if self.script else type(self).answer
        type(self).requests += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not status:  # it hangs up
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in self.lies.items():
            self.send_header(name, value)
        if status != 204 and not self.lies.keys() & {"Content-Length", "Transfer-Encoding"}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    handler = type("OneHandler", (Handler,), {})
    with serving(handler) as http:
        yield f"http://127.0.0.1:{http.server_port}/v1", handler


def ask(address: str) -> str:
    model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=20), OPERATOR)
    return str(model.invoke(QUESTION).text)


def draw(address: str, name: str, timeout: float = 20.0) -> Any:
    base = {} if name.startswith("http:") else {"base_url": address}
    options = GeneratorOptions(**base, api_key="none", timeout=timeout)
    [result] = init_image_generator(name, options, OPERATOR).generate([ImageRequest("a car", 1)])
    return result


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"message": "You exceeded your current quota, please check your plan", "code": "insufficient_quota"}),
        (429, {"message": "billing hard limit has been reached", "type": "billing_error"}),
        (402, {"message": "Insufficient credits"}),
        (400, {"message": "Your credit balance is too low to access the API"}),
        (403, {"message": "余额不足"}),
        (500, {"message": "insufficient balance"}),
    ],
)
def test_an_account_without_money_is_told_of_at_once(
    server: tuple[str, type[Handler]], status: int, error: dict[str, str]
) -> None:
    address, handler = server
    handler.answer = (status, "application/json", json.dumps({"error": error}).encode())
    with pytest.raises(BackendError) as caught:
        ask(address)
    assert handler.requests == 1
    assert not retry_on(caught.value)
    assert error["message"] in str(caught.value)
    assert "waiting does not help" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_busy_server_is_asked_again(server: tuple[str, type[Handler]]) -> None:
    address, handler = server
    words = "Rate limit reached for m: try again in 1 ms. Add a payment method: /account/billing"
    handler.answer = (429, "application/json", json.dumps({"error": {"message": words}}).encode())
    with pytest.raises(BackendError) as caught:
        ask(address)
    assert handler.requests > 1
    assert retry_on(caught.value)


@pytest.mark.parametrize("kind", ["text/event-stream", "text/event-stream; charset=utf-8", "application/json"])
def test_a_server_that_always_streams_is_understood(server: tuple[str, type[Handler]], kind: str) -> None:
    address, handler = server
    handler.answer = (200, kind, STREAM + b"data: [DONE]\n\n")
    assert ask(address) == "a car"
    assert handler.requests == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "answer",
    [
        {
            "object": "response",
            "status": "completed",
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "message", "content": [{"type": "output_text", "text": "a car"}]},
            ],
            "usage": {"input_tokens": 3, "output_tokens": 2},
        },
        {
            "candidates": [{"content": {"parts": [{"text": "a car"}], "role": "model"}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
        },
    ],
)
def test_an_answer_in_another_protocol_is_understood(server: tuple[str, type[Handler]], answer: Any) -> None:
    address, handler = server
    handler.answer = (200, "application/json", json.dumps(answer).encode())
    message = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=20), OPERATOR).invoke(
        QUESTION
    )
    assert isinstance(message, AIMessage)
    assert message.text == "a car"
    assert message.usage_metadata is not None
    assert message.usage_metadata["total_tokens"] == 5
    assert handler.requests == 1


@pytest.mark.parametrize("status", [0, 408, 409, 500, 502, 504, 524])
def test_what_may_have_been_charged_is_asked_for_three_times(server: tuple[str, type[Handler]], status: int) -> None:
    address, handler = server
    handler.answer = (status, "application/json", b"{}")
    with pytest.raises(BackendError, match="up to 3 tries, each of which may have been charged") as caught:
        ask(address)
    assert handler.requests == 3
    assert not retry_on(caught.value)
    for name in ("openai:m", f"http:{address}"):
        handler.requests = 0
        error = draw(address, name)
        assert "3 tries in 20 s, 3 of them may have been charged" in str(error)
        assert handler.requests == 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [501, 505])
def test_what_a_server_does_not_know_is_asked_for_once(server: tuple[str, type[Handler]], status: int) -> None:
    address, handler = server
    handler.answer = (status, "application/json", b'{"error": "not implemented"}')
    with pytest.raises(BackendError, match=f"answers {status}: not implemented$"):
        ask(address)
    assert handler.requests == 1
    image = Image.new("RGB", (8, 8))
    for name, edit in (("openai:m", None), ("openai:m", Edit(image, keep=(), fix=())), (f"http:{address}", None)):
        handler.requests = 0
        options = GeneratorOptions(**({"base_url": address, "edits": True} if name == "openai:m" else {}), api_key="x")
        [error] = init_image_generator(name, options, OPERATOR).generate([ImageRequest("a car", 1, edit)])
        assert str(error).endswith(f"answers {status}: not implemented")
        assert handler.requests == 1


@pytest.mark.parametrize(
    ("charset", "words"), [("gbk", "一辆红色的汽车"), ("Shift_JIS", "赤い車"), ('"euc-kr"', "빨간 차")]
)
def test_an_answer_is_read_in_the_encoding_that_its_header_names(
    server: tuple[str, type[Handler]], charset: str, words: str
) -> None:
    address, handler = server
    answer = {"choices": [{"message": {"content": words}}], "error": None}
    body = json.dumps(answer, ensure_ascii=False).encode(charset.strip('"'))
    handler.answer = (200, f"application/json; charset={charset}", body)
    assert ask(address) == words
    error = json.dumps({"error": {"message": words}}, ensure_ascii=False).encode(charset.strip('"'))
    handler.answer = (400, f"application/json; charset={charset}", error)
    for request in (lambda: str(draw(address, "openai:m")), lambda: str(draw(address, f"http:{address}"))):
        assert words in request()
    with pytest.raises(BackendError, match=words):
        ask(address)


_LABEL = b"xn--" + b"a" * 2**20


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("codec", "body"),
    [
        ("idna", _LABEL),
        ("idna", _LABEL + b".\xff"),
        ("punycode", _LABEL),
        *[(codec, b"\xff") for codec in ("bz2", "zlib", "hex", "undefined", "unicode_escape", "no such codec")],
    ],
)
def test_no_codec_of_a_header_holds_up_or_breaks_a_run(
    server: tuple[str, type[Handler]], codec: str, body: bytes, status: int
) -> None:
    address, handler = server
    handler.answer = (status, f"application/json; charset={codec}", body)
    began = time.monotonic()
    with suppress(BackendError):
        ask(address)
    draw(address, "openai:m")
    draw(address, f"http:{address}")
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [425, 429, 503, 529])
def test_a_server_that_takes_nothing_is_asked_until_the_time_is_over(
    server: tuple[str, type[Handler]], status: int
) -> None:
    address, handler = server
    handler.answer = (status, "application/json", b"{}")
    if status != 425:  # OpenAI's client does not know it
        with pytest.raises(BackendError) as caught:
            ask(address)
        assert retry_on(caught.value)
    for name in ("openai:m", f"http:{address}"):
        handler.requests = 0
        assert "charged" not in str(draw(address, name, timeout=0.5))
        assert handler.requests > 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("status", "body", "says", "requests"),
    [
        (202, b'{"status": "busy"}', "without an image: busy", MANY),
        (200, b'{"error": "Model x/y is currently loading", "estimated_time": 20}', "is currently loading", MANY),
        (200, b'{"error": {"message": "Rate limit exceeded", "code": "rate_limit_exceeded"}}', "Rate limit", MANY),
        (200, b"All workers are busy, try again later", "All workers are busy", MANY),
        (200, b'{"status": "busy", "task_id": "7"}', "busy", 1),
        (200, b'{"error": "could not draw a busy street"}', "a busy street", 1),
        (200, b'{"error": "busy streets are not drawn, pay the billing"}', "billing", 1),
        (202, b'{"id": "7", "status": "queued"}', "queued .it draws in the background", 1),
        (200, b'{"task_id": "7"}', "in the background", 1),
        (202, b"", "answers 202, without an image or a reason", 1),
        (204, b"", "answers 204, without an image or a reason", 1),
        (205, b"", "answers 205, without an image or a reason", 1),
        (200, b"", "answer is empty .3 tries in 20 s, 3 of them may have been charged", 3),
        (200, b'"sorry, no"', "without an image: sorry, no", 1),
        (200, b'{"error": {"code": 504, "message": "too late"}}', "too late .3 tries in 20 s, 3 of", 3),
    ],
)
def test_a_success_without_an_image_is_told_and_repeated_only_if_nothing_was_drawn(
    server: tuple[str, type[Handler]], status: int, body: bytes, says: str, requests: int
) -> None:
    address, handler = server
    handler.answer = (status, "application/json" if body[:1] in (b"{", b'"') else "text/plain", body)
    for name in ("openai:m", f"http:{address}"):
        handler.requests = 0
        assert re.search(says, str(error := draw(address, name, timeout=0.5 if requests == MANY else 20.0))), error
        assert handler.requests > 1 if requests == MANY else handler.requests == requests


def test_a_page_in_place_of_the_models_is_no_api(server: tuple[str, type[Handler]]) -> None:
    address, handler = server
    options = GeneratorOptions(base_url=address, api_key="none")
    generator: Any = init_image_generator("openai:m", options, OPERATOR)
    for kind, body in (("text/html", b"<!doctype html><html>Hi</html>"), ("", b""), ("text/plain", b"ok")):
        handler.answer = (200, kind, body)
        with pytest.raises(BackendError, match="no API with OpenAI's protocol"):
            generator.check()
    handler.answer = (200, "application/json", b'{"data": []}')
    assert "does not list its models" in generator.check()


def test_an_image_server_without_money_is_asked_once(server: tuple[str, type[Handler]]) -> None:
    address, handler = server
    handler.answer = (
        429,
        "application/json",
        b'{"error": {"code": "insufficient_quota", "message": "quota exceeded"}}',
    )
    error = draw(address, "openai:m")
    assert isinstance(error, BackendError)
    assert "quota exceeded" in str(error)
    assert handler.requests == 1


@pytest.mark.usefixtures("impatient")
def test_an_error_without_a_reason_brings_four_requests_and_the_next_one_three(
    server: tuple[str, type[Handler]],
) -> None:
    address, handler = server
    handler.answer = (500, "text/plain", b"Internal Server Error")
    model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=20), OPERATOR)
    for requests, form in ((4, Plan), (7, Requirements), (10, Plan)):
        with pytest.raises(BackendError, match="answers 500") as caught:
            fill(model, form)
        assert not retry_on(caught.value)
        assert handler.requests == requests


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("faults", "calls"), [([500, 502], 3), ([429, 503], 1), ([0, 500], 3), ([400], 2), ([429, 500], 2), ([], 1)]
)
def test_every_request_that_may_be_charged_is_counted(
    server: tuple[str, type[Handler]], faults: list[int], calls: int
) -> None:
    """Also those that the client sends again by itself; busy servers have done nothing."""
    address, handler = server
    content = json.dumps({"prompt": "a car"})
    whole = json.dumps({"model": "m", "choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
    handler.script = [*((status, "application/json", b"{}") for status in faults), (200, "application/json", whole)]
    model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=20), OPERATOR)
    answer, usage = fill(model, Plan)
    assert answer.form.prompt == "a car"
    assert (handler.requests, usage.chat_calls) == (len(faults) + 1, calls)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [500, 0])
def test_requests_before_a_stop_that_ends_the_wait_for_the_next_one_are_counted(
    server: tuple[str, type[Handler]], status: int
) -> None:
    address, handler = server
    handler.answer = (status, "application/json", b'{"error": {"message": "the worker died"}}')
    model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=20), OPERATOR)
    with stopping(lambda: handler.requests >= 2), pytest.raises(GraphDrained):
        fill(model, Plan, run_id="stopped")
    assert (handler.requests, settle_run("stopped").chat_calls) == (2, 2)


WHOLE = json.dumps(
    {"model": "m", "choices": [{"message": {"content": '{"prompt": "ein süßes Auto"}'}}]}, ensure_ascii=False
)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("lies", "body"),
    [
        ({}, WHOLE.encode("utf-16")),
        ({"Content-Type": "application/json; charset=latin-1"}, WHOLE.encode("latin-1")),
        ({"Content-Type": "application/json; charset=latin-1"}, WHOLE.encode()),
        ({}, b"\xef\xbb\xbf" + WHOLE.encode()),
        ({}, gzip.compress(WHOLE.encode())),
        ({"Content-Encoding": "gzip"}, WHOLE.encode()),
        ({"Content-Encoding": "deflate"}, WHOLE.encode()),
        ({"Content-Length": "9999"}, WHOLE.encode()),
        ({"Transfer-Encoding": "chunked"}, b"%x\r\n%b\r\n" % (len(WHOLE.encode()), WHOLE.encode())),
        ({"Transfer-Encoding": "chunked"}, b"%x\r\n%b\r\nzz\r\n" % (len(WHOLE.encode()), WHOLE.encode())),
    ],
)
def test_a_whole_answer_whose_headers_lie_is_paid_once(
    server: tuple[str, type[Handler]], lies: dict[str, str], body: bytes
) -> None:
    address, handler = server
    handler.answer, handler.protocol_version = (200, "application/json", body), "HTTP/1.1"
    handler.lies = {**lies, "Connection": "close"}
    model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=20), OPERATOR)
    answer, usage = fill(model, Plan)
    assert answer.form.prompt == "ein süßes Auto"
    assert (handler.requests, usage.chat_calls) == (1, 1)


def test_a_call_with_half_a_character_can_be_sent_back(server: tuple[str, type[Handler]]) -> None:
    address, handler = server
    arguments = json.dumps({"a": [{"b \ud83d": "\udcff"}]})
    call = {"id": "c1", "type": "function", "function": {"name": "counting", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    handler.answer = (200, "application/json", json.dumps({"choices": [{"message": message}]}).encode())
    model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=20), OPERATOR)
    answer = asyncio.run(call_model(model, QUESTION, model, lambda _: False))
    assert answer.tool_calls[0]["args"] == {"a": [{"b \ufffd": "\ufffd"}]}
    model.invoke([*QUESTION, answer, ToolMessage("three", tool_call_id="c1")])
    assert handler.requests == 2
