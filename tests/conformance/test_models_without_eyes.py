"""A verifier that reads no images: its server is asked once, and the error says what to give instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes import PaintGenerator
from forked import gems_here
from servers.threaded import serving

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import GemsInput
from gems.memory.image_store import ImageStore
from gems.nodes.retry import RETRY

pytestmark = pytest.mark.usefixtures("impatient")

ADVICE = "it reads no images: give a verifier that sees images (--verifier"


class Blind(BaseHTTPRequestHandler):
    """Speaks OpenAI's protocol, and refuses what has an image with the words of the test."""

    status = 400
    words: Any = ""
    requests: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        body = json.dumps(self.words if isinstance(self.words, dict) else {"error": {"message": self.words}}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ThreadingHTTPServer, type[Blind]]]:
    handler = type("OneBlind", (Blind,), {"requests": []})
    with serving(handler) as http:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{http.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield http, handler


def draw(name: str, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    """A run whose verifier is behind the server; the other roles are the pocket model's."""
    context = GemsContext(verifier=name, memory=False, **settings).as_operator()
    graph = build_graph(
        generator=PaintGenerator(), images=ImageStore(tmp_path), retry=RETRY._replace(initial_interval=0.01)
    )
    output: dict[str, Any] = graph.invoke(GemsInput(prompt="two red cars"), context=context)
    return output


REFUSALS = {
    "openai": (400, "Invalid content type. image_url is only supported by certain models."),
    "openai-o": (400, "This model does not support image_url content."),
    "vllm": (400, "Qwen/Qwen3-8B is not a multimodal model"),
    "vllm-limit": (400, "At most 0 image(s) may be provided in one prompt."),
    "llama.cpp": (
        500,
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    ),
    "ollama": (500, "Failed to create new sequence: this model is missing data required for image input"),
    "openrouter": (404, "No endpoints found that support image input"),
    "deepseek": (
        422,
        "Failed to deserialize JSON body: messages[1]: unknown variant `image_url`, expected `text`",
    ),
    "groq": (
        400,
        "'messages.1' : for 'role:user' these must be satisfied[('messages.1.content': value must be a string)]",
    ),
    "mistral": (400, {"object": "error", "message": "Image input is not enabled for this model", "code": "3051"}),
    "google": (400, "Image input modality is not enabled for models/gemma-3-1b-it"),
    "anthropic": (400, "'claude-2.1' does not support image input."),
    "bedrock": (400, "This model doesn't support the image content block that you provided."),
    "lm-studio": (400, "Model does not support images. Please use a model that does."),
    "litellm": (400, 'litellm.BadRequestError: OpenAIException - {"error":{"message":"image input is not supported"}}'),
    "fastapi": (
        422,
        {"detail": [{"loc": ["body", "messages", 1, "content"], "msg": "Input should be a valid string"}]},
    ),
    "gateway": (200, {"error": {"message": "No endpoints found that support image input", "code": 404}}),
    "gateway-500": (200, {"error": {"message": "image input is not supported", "code": 500}}),
    "zh": (400, "该模型不支持图片输入"),
}


@pytest.mark.parametrize("provider", REFUSALS)
def test_a_verifier_that_reads_no_images_is_asked_once(
    provider: str, server: tuple[ThreadingHTTPServer, type[Blind]], tmp_path: Path
) -> None:
    http, handler = server
    handler.status, handler.words = REFUSALS[provider]
    output = draw(f"openai:{provider}-{http.server_port}", tmp_path, candidates=3)
    assert len(handler.requests) == 1
    assert "image_url" in json.dumps(handler.requests)
    assert output["outcome"] == "failed"
    assert output["image"] is not None, "what was drawn is kept"
    [error] = output["errors"]
    assert ADVICE in error


@pytest.mark.parametrize(
    "beside", [{"note": "I cannot see any image"}, {"errors": [{"text": "No image"}]}, {"image_provided": False}]
)
def test_a_verifier_that_says_in_its_form_that_it_saw_no_image_solves_nothing(
    beside: dict[str, Any], server: tuple[ThreadingHTTPServer, type[Blind]], tmp_path: Path
) -> None:
    http, handler = server
    answers = [{"id": f"r{number}", "answer": "yes", "confidence": 1} for number in range(1, 4)]
    message = {"role": "assistant", "content": json.dumps({"verdicts": answers, **beside})}
    handler.status, handler.words = 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    output = draw(f"openai:blind-{http.server_port}", tmp_path)
    assert output["outcome"] == "failed"
    assert output["image"] is not None
    assert "has seen no image" in output["errors"][-1]
    assert len(handler.requests) <= 2, "no other image is drawn"


OTHER_REFUSALS = {
    "too large": (400, "Image too large: the maximum is 5 MB"),
    "format": (400, "Unsupported image format image/webp. Supported: png, jpeg"),
    "format, in other words": (415, "Invalid content type: image/png"),
    "size": (400, "This model does not support image size 4096x4096"),
    "large ones": (400, "This model does not support images larger than 5 MB"),
    "damaged": (400, "The image data you provided does not represent a valid image. Could not process image"),
    "one too many": (400, "At most 1 image(s) may be provided in one request; multiple images are not supported"),
    "moderated": (400, "image input is not supported: the image was flagged by our safety system"),
    "address": (422, {"detail": [{"loc": ["messages", 1, "content", 1, "image_url"], "msg": "must be a string"}]}),
    "a kind of answer": (400, "images are not supported with response_format json_schema"),
    "the words of the user": (400, 'bad request near "a sign: this model does not support images"'),
    "no such model": (404, "The model vision-xl does not exist"),
    "other output": (404, "No endpoints found that support image output"),
    "tools": (400, "this vision model does not support tools"),
}


@pytest.mark.parametrize("kind", OTHER_REFUSALS)
def test_a_refusal_of_one_image_or_of_something_else_is_not_taken_for_one_of_all_images(
    kind: str, server: tuple[ThreadingHTTPServer, type[Blind]], tmp_path: Path
) -> None:
    http, handler = server
    handler.status, handler.words = OTHER_REFUSALS[kind]
    output = draw(f"openai:other-{http.server_port}", tmp_path)
    assert output["outcome"] == "failed"
    assert output["errors"]
    assert "reads no images" not in "".join(output["errors"])


def test_a_judge_that_reads_no_images_is_refused_before_anything_is_drawn(
    server: tuple[ThreadingHTTPServer, type[Blind]], tmp_path: Path
) -> None:
    http, handler = server
    handler.status, handler.words = REFUSALS["vllm"]
    judge = ("--scorer", "soft-tifa", "--judge", f"openai:judge-{http.server_port}")
    command = ("eval", "grammar", "--n", 2, "--arms", "single", *judge, "--out", tmp_path / "out")
    result = gems_here(*command, home=tmp_path / "home")
    assert result.returncode == 3
    [line] = result.stderr.strip().splitlines()
    assert ADVICE in line
    assert "--judge" in line
    assert len(handler.requests) == 1
    assert not (tmp_path / "out" / "arms").exists()


def test_the_command_line_says_what_to_give(server: tuple[ThreadingHTTPServer, type[Blind]], tmp_path: Path) -> None:
    http, handler = server
    handler.status, handler.words = REFUSALS["llama.cpp"]
    command = ("generate", "two red cars", "--verifier", f"openai:cli-{http.server_port}", "--no-memory")
    result = gems_here(*command, "--out", tmp_path / "out", home=tmp_path / "home")
    assert result.returncode == 3
    assert ADVICE in " ".join(result.stderr.split())
    assert len(handler.requests) == 1
