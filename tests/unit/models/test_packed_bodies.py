"""Packed answers of image servers: a few bytes neither fill the memory nor take hours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import httpx
import pytest
from PIL import Image
from pydantic import SecretStr
from servers.threaded import serving

from gems.authority import OPERATOR
from gems.errors import BackendError
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.registry import init_image_generator
from gems.models.servers import bodies, openai_images
from gems.options import GeneratorOptions

_LIMIT = 2**20
_MUCH = b'"' + b" " * (64 * _LIMIT) + b'"'


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


def _read(content: bytes, **headers: str) -> bytes:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx.Request("POST", "http://server")
    return asyncio.run(bodies.read_body(httpx.Response(200, headers=sent, stream=_Body(content), request=request)))


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (gzip.compress(_MUCH), "gzip"),
        (gzip.compress(_MUCH), "x-gzip"),
        (gzip.compress(gzip.compress(_MUCH)), "gzip, gzip"),
        (gzip.compress(gzip.compress(_MUCH)), "gzip"),
        (zlib.compress(_MUCH), "deflate"),
        (zlib.compress(_MUCH)[2:-4], "deflate"),
        (gzip.compress(_MUCH), "identity"),
        (gzip.compress(_MUCH), "br"),
    ],
    ids=["gzip", "x-gzip", "twice", "twice, told once", "deflate", "raw deflate", "untold", "told wrongly"],
)
def test_a_packed_answer_is_counted_while_it_is_unpacked(
    packed: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BYTES", _LIMIT)
    tracemalloc.start()
    try:
        with contextlib.suppress(BackendError):
            assert len(_read(packed, content_encoding=encoding)) <= _LIMIT
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * _LIMIT


def test_a_file_of_countless_parts_is_left_as_it_is() -> None:
    body = gzip.compress(b"") * 200_000
    began = time.monotonic()
    assert _read(body, content_encoding="gzip") in (b"", body)
    assert time.monotonic() - began < 5


def test_an_answer_is_unpacked_a_few_times_at_most() -> None:
    with pytest.raises(BackendError, match="packs its answer 100 times"):
        _read(b"{}", content_encoding=", ".join(["gzip"] * 100))


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (gzip.compress(b"{}"), "gzip"),
        (gzip.compress(b"{") + gzip.compress(b"}"), "gzip"),
        (gzip.compress(zlib.compress(b"{}")), "deflate, gzip"),
        (zlib.compress(b"{}")[2:-4], "Deflate"),
        (gzip.compress(b"{}"), "none"),
        (b"{}", "zstd"),
    ],
    ids=["once", "in parts", "twice", "without a frame", "told wrongly", "not at all"],
)
def test_what_is_packed_is_read(packed: bytes, encoding: str) -> None:
    assert _read(packed, content_encoding=encoding) == b"{}"


class _Streaming(BaseHTTPRequestHandler):
    body: ClassVar[bytes]
    encoding: ClassVar[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=hex")
        self.send_header("content-encoding", self.encoding)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has had enough
            self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


def _stream(body: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch) -> GeneratedImage | BackendError:
    _Streaming.body, _Streaming.encoding = body, encoding
    with serving(_Streaming) as server:
        monkeypatch.setattr(openai_images, "_OPENAI", f"http://127.0.0.1:{server.server_port}/v1")
        options = GeneratorOptions(api_key=SecretStr(f"sk-of-test-{server.server_port}"), previews=2, timeout=5)
        [result] = init_image_generator("openai:gpt-image-1", options, OPERATOR).generate([ImageRequest("a cat", 0)])
    return result


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"data: " + b"x" * (2 * _LIMIT), "identity"),
        (b": comment\n\n" * (_LIMIT // 5), "identity"),
        (gzip.compress(b"data: " + _MUCH), "gzip"),
    ],
    ids=["endless line", "comments", "packed"],
)
def test_a_stream_is_counted_as_it_arrives(body: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BYTES", _LIMIT)
    result = _stream(body, encoding, monkeypatch)
    assert isinstance(result, BackendError)
    assert "sends more than 1 MB" in str(result)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_stream_is_read_packed_or_not(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    event = {"type": "image_generation.completed", "b64_json": base64.b64encode(buffer.getvalue()).decode()}
    body = b"data: " + json.dumps(event).encode() + b"\n\n"
    result = _stream(gzip.compress(body) if encoding == "gzip" else body, encoding, monkeypatch)
    assert isinstance(result, GeneratedImage), result
