"""Servers behind gateways, proxies and certificates of their own, and rate limits told with an odd status."""

from __future__ import annotations

import base64
import io
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain_core.messages import HumanMessage
from PIL import Image
from servers.threaded import serving

from gems.authority import OPERATOR
from gems.errors import BackendError, InputError
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.registry import init_image_generator, init_mllm
from gems.options import ChatOptions, GeneratorOptions

_BUFFER = io.BytesIO()
Image.radial_gradient("L").convert("RGB").save(_BUFFER, "PNG")
PNG = _BUFFER.getvalue()


class Handler(BaseHTTPRequestHandler):
    script: ClassVar[list[tuple[int, Any]]] = []
    location = ""
    gone = False
    requests: ClassVar[list[str]] = []
    early: ClassVar[list[int]] = []

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.early:
            return self._send(self.early.pop(0), b"")
        if self.location and self.path.startswith("/img"):
            return self._send(302, b"")
        if self.gone:
            return self._send(403, b"<Error><Message>Request has expired</Message></Error>")
        return self._send(200, PNG)

    def do_POST(self) -> None:
        self.requests.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer = self.script.pop(0)
        return self._send(status, json.dumps(answer).encode())

    def do_CONNECT(self) -> None:
        """Refuse to connect to another server."""
        self.requests.append(self.path)
        if self.gone:
            self.close_connection = True
        else:
            self._send(407, b"")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", self.location)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[tuple[ThreadingHTTPServer, type[Handler]]]:
    handler = type("OneHandler", (Handler,), {"script": [], "requests": [], "early": []})
    with serving(handler) as http:
        yield http, handler


def draw(address: str, timeout: float = 10.0) -> Any:
    options = GeneratorOptions(base_url=address, api_key="none", timeout=timeout)
    [result] = init_image_generator("openai:m", options, OPERATOR).generate([ImageRequest("a car", 1)])
    return result


def ask(address: str) -> str:
    model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none", timeout=10), OPERATOR)
    return str(model.invoke([HumanMessage("a car?")]).text)


@pytest.mark.parametrize(
    "address",
    [
        "https://127.0.0.1/img.png",
        "https://127.0.0.1:{port}/img.png",
        "http://127.0.0.1/img.png",
        "http://127.0.0.1:1/img.png",
        "http://localhost:8188/img.png",
        "http://0.0.0.0:7860/img.png",
    ],
)
def test_a_server_behind_a_gateway_does_not_know_its_scheme_and_port(
    server: tuple[ThreadingHTTPServer, type[Handler]], address: str
) -> None:
    http, handler = server
    handler.script = [(200, {"data": [{"url": address.format(port=http.server_port)}]})]
    result = draw(f"http://127.0.0.1:{http.server_port}/v1")
    assert isinstance(result, GeneratedImage), result
    assert handler.requests == ["/v1/images/generations", "/img.png"]


@pytest.mark.parametrize("location", ["http://127.0.0.2:1/other.png", "/img.png"])
def test_an_image_that_is_elsewhere_is_told_of_as_such(
    server: tuple[ThreadingHTTPServer, type[Handler]], location: str
) -> None:
    http, handler = server
    handler.script, handler.location = [(200, {"data": [{"url": "/img.png"}]})], location
    error = draw(f"http://127.0.0.1:{http.server_port}/v1")
    assert isinstance(error, BackendError)
    assert "the image is elsewhere" in str(error)
    assert len(handler.requests) == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [202, 423])
def test_an_image_that_is_under_way_is_asked_for_until_it_is_there(
    server: tuple[ThreadingHTTPServer, type[Handler]], status: int
) -> None:
    http, handler = server
    handler.script, handler.early = [(200, {"data": [{"url": "/img.png?signed=1"}]})], [status] * 9
    result = draw(f"http://127.0.0.1:{http.server_port}/v1?token=a")
    assert isinstance(result, GeneratedImage), result
    assert handler.requests == ["/v1/images/generations?token=a", *["/img.png?signed=1"] * 10]


def test_an_address_of_an_endpoint_may_name_a_parameter_twice(
    server: tuple[ThreadingHTTPServer, type[Handler]],
) -> None:
    http, handler = server
    handler.script = [(200, {"image": base64.b64encode(PNG).decode()})]
    address = f"http://127.0.0.1:{http.server_port}/draw?lora=a&lora=b&seed=9"
    [result] = init_image_generator(f"http:{address}", GeneratorOptions(), OPERATOR).generate([ImageRequest("car", 1)])
    assert isinstance(result, GeneratedImage), result
    assert handler.requests == ["/draw?lora=a&lora=b&seed=1&prompt=car"]


def test_an_address_that_has_expired_lost_a_paid_image(server: tuple[ThreadingHTTPServer, type[Handler]]) -> None:
    http, handler = server
    handler.script, handler.gone = [(200, {"data": [{"url": "/img.png?expires=1"}]})], True
    error = draw(f"http://127.0.0.1:{http.server_port}/v1")
    assert isinstance(error, BackendError)
    assert "an image was drawn, and may be charged, but cannot be fetched" in str(error)
    assert "Request has expired" in str(error)
    assert "key" not in str(error)
    assert len(handler.requests) == 3  # the address is tried once more without the key, which some refuse


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Rate limit exceeded, try again in 1 second"),
        (403, "Requests rate limit exceeded, please try again later."),
        (400, "ThrottlingException: Too many requests, please wait"),
    ],
)
def test_a_rate_limit_told_with_another_status_is_waited_for(
    server: tuple[ThreadingHTTPServer, type[Handler]], status: int, words: str
) -> None:
    http, handler = server
    address = f"http://127.0.0.1:{http.server_port}/v1"
    busy = (status, {"error": {"message": words}})
    handler.script = [busy, busy, (200, {"data": [{"b64_json": base64.b64encode(PNG).decode()}]})]
    assert isinstance(draw(address), GeneratedImage)
    handler.script = [busy, busy, (200, {"choices": [{"message": {"content": "a car"}}]})]
    assert ask(address) == "a car"


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_a_certificate_that_nobody_vouches_for_is_told_of_at_once(
    server: tuple[ThreadingHTTPServer, type[Handler]], tmp_path: Path
) -> None:
    http, handler = server
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    address = f"https://127.0.0.1:{http.server_port}/v1"
    error = draw(address)
    assert isinstance(error, BackendError)
    assert "SSL_CERT_FILE" in str(error)
    assert "tries" not in str(error)
    with pytest.raises(BackendError, match="SSL_CERT_FILE") as caught:
        ask(address)
    assert not caught.value.retryable
    assert handler.requests == []


def test_proxies_that_cannot_be_used_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "[::1]")
    with pytest.raises(InputError, match="NO_PROXY"):
        draw("http://images.example/v1")


def test_a_proxy_that_refuses_to_connect_is_asked_once(
    server: tuple[ThreadingHTTPServer, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    http, handler = server
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{http.server_port}")
    address = "https://images.example/v1"
    error = draw(address)
    assert isinstance(error, BackendError)
    assert handler.requests == ["images.example:443"]
    with pytest.raises(BackendError) as caught:
        ask(address)
    for fault in (error, caught.value):
        assert "407" in str(fault)
        assert "HTTPS_PROXY" in str(fault)
        assert not fault.retryable


@pytest.mark.parametrize("mark", ["#", "/", "?"])
def test_no_part_of_a_proxys_password_is_told(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:hush{mark}word@127.0.0.1:9")
    for use in (draw, ask):
        with pytest.raises(InputError, match="%23") as caught:
            use(f"https://images{ord(mark)}.example/v1")  # models of the same address are shared
        assert "hush" not in str(caught.value)


@pytest.mark.usefixtures("impatient")
def test_a_proxy_that_hangs_up_has_sent_no_request_that_may_be_charged(
    server: tuple[ThreadingHTTPServer, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    http, handler = server
    handler.gone = True
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{http.server_port}")
    error = draw("https://lost.example/v1", timeout=0.5)
    assert "cannot reach lost.example" in str(error)
    assert "charged" not in str(error)
    assert len(handler.requests) > 3
