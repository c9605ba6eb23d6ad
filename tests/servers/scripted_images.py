"""An image server in the test's own process that gives the answers of a list, and counts what it is asked."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from fakes import ScriptedChatModel
from PIL import Image
from servers.threaded import serving

import gems
from gems.authority import OPERATOR
from gems.errors import BackendError
from gems.models.generators import GeneratedImage, ImageGenerator, ImageRequest
from gems.models.registry import init_image_generator
from gems.options import GeneratorOptions

__all__ = ["Answer", "ScriptedServer", "answering", "draw", "encoded", "file_of", "in_json", "spent_images"]

Answer = tuple[int, Any, str]
"""Status, body and media type. A body that is not bytes is sent as JSON; ``@PATH@`` in it becomes the path."""


class ScriptedServer:
    """What a test knows of its server: its address, and the requests that it got."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.posts: list[dict[str, Any]] = []

    def openai(self, model: str = "m", **options: Any) -> ImageGenerator:
        """The generator that asks it by OpenAI's protocol."""
        settings = GeneratorOptions(base_url=f"{self.address}/v1", api_key="x", timeout=10, **options)
        return init_image_generator(f"openai:{model}", settings, OPERATOR)

    def plain(self, path: str = "/draw", login: str = "") -> ImageGenerator:
        """The generator that asks it for an image by an address."""
        address = self.address.replace("://", f"://{login}") + path
        return init_image_generator(f"http:{address}", GeneratorOptions(timeout=10), OPERATOR)


@contextmanager
def answering(*answers: Answer) -> Iterator[ScriptedServer]:
    """Serve: the first answer to the first POST, and so on; the last one to all others, and to each GET."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Log nothing."""

        def do_POST(self) -> None:
            """The next answer."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.posts.append(json.loads(body) if body.startswith(b"{") else {})
            self._answer(answers[min(len(server.posts), len(answers)) - 1])

        def do_GET(self) -> None:
            """The last answer."""
            self._answer(answers[-1])

        def do_HEAD(self) -> None:
            """The status of the last answer."""
            self._answer((answers[-1][0], b"", "text/plain"))

        def _answer(self, answer: Answer) -> None:
            status, content, kind = answer
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            if len(body) < 1000:
                body = body.replace(b"@PATH@", self.path.encode())
                body = body.replace(b"@LOGIN@", self.headers.get("Authorization", "").encode())
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as http:
        server = ScriptedServer(f"http://127.0.0.1:{http.server_port}")
        yield server


def in_json(content: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return status, content, "application/json"


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """An image as a file in base64."""
    return base64.b64encode(file_of(image, kind, **options)).decode()


def draw(generator: ImageGenerator, prompt: str = "a car") -> GeneratedImage | BackendError:
    """One image of a generator."""
    [result] = generator.generate([ImageRequest(prompt, 7)])
    return result


def spent_images(generator: ImageGenerator, total: int = 9, rounds: int = 1) -> int:
    """How many images count as spent after a run with one candidate a round, without an image if all fails."""

    def answer(form: str, messages: list[Any], index: int) -> dict[str, Any]:
        return {"requirements": [{"question": "Is there a car?", "kind": "object"}]}

    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=answer),
        generator=generator,
        settings={
            "memory": False,
            "plan": False,
            "skills": False,
            "seed": 1,
            "max_rounds": 1,
            "candidates": 1,
            "budget": {"images": total},
        },
    )
    try:
        state = graph.invoke({"prompt": "a car"})
    finally:
        gems.close(graph)
    assert not state.get("attempts"), "an image has arrived"
    return int(state["usage"].images)
