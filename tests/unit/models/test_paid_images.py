"""Images that a server has drawn, in answers that are odd: they are read, or asked for once, since each is paid."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from servers.threaded import serving

from gems.authority import OPERATOR
from gems.errors import BackendError, ContentRefusedError
from gems.memory.image_store import encode_png
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.heads import is_whole_head, readable_head
from gems.models.registry import init_image_generator
from gems.models.servers import bodies
from gems.models.servers.image_files import decode_image
from gems.options import GeneratorOptions


def _file(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


PNG = _file("PNG")
ENCODED = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{ENCODED}"
GOOD = json.dumps({"data": [{"b64_json": ENCODED}]}).encode()


def _events(*contents: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(content).encode() + b"\n\n" for content in contents)


class _Handler(BaseHTTPRequestHandler):
    body: ClassVar[bytes] = b""
    headers_sent: ClassVar[dict[str, str]] = {}
    drawn: ClassVar[int] = 0
    asked: ClassVar[int] = 0

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        """The answer of the test."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).drawn += 1
        port = str(self.server.server_address[1]).encode()
        body = self.body.replace(b"@PORT@", port) if len(self.body) < 500 else self.body
        self._send(200, body, **self.headers_sent)

    def do_GET(self) -> None:
        """The image; at other places than its own, after a while or elsewhere."""
        type(self).asked += 1
        if self.path.endswith("/moved.png"):
            self._send(302, b"", Location="/a.png")
        elif self.path.endswith("/late.png") and self.asked < 3:
            self._send(404, PNG)
        elif self.path.endswith("/elsewhere.png"):
            self._send(302, b"", Location="http://images.example.com/a.png")
        else:
            self._send(200, gzip.compress(PNG) if self.path.endswith("/packed.png") else PNG)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not {"Content-Length", "Transfer-Encoding"} & headers.keys():
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def address() -> Iterator[str]:
    _Handler.drawn = _Handler.asked = 0
    _Handler.headers_sent, _Handler.protocol_version = {}, "HTTP/1.0"
    with serving(_Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits between tries."""
    monkeypatch.setattr("gems.models.servers.retries._WAIT", lambda _: 0.01)


def _draw(address: str, body: bytes, kind: str) -> GeneratedImage | BackendError:
    _Handler.body = body
    options = GeneratorOptions(
        timeout=10.0, **({} if kind == "http" else {"base_url": f"{address}/v1", "api_key": "x"})
    )
    name = f"http:{address}/draw" if kind == "http" else "openai:m"
    [result] = init_image_generator(name, options, OPERATOR).generate([ImageRequest("a car", 1)])
    return result


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n" + PNG,
        gzip.compress(GOOD),
        GOOD + b"\nOK",
        b'{"status": "ok"}\n' + GOOD,
        json.dumps({"images": {"0": ENCODED, "1": ENCODED}}).encode(),
        b'{"status": "processing", "image": "' + ENCODED[:-8].encode() + b'"}\n' + GOOD,
        _events({"type": "partial_image", "b64_json": ENCODED[:-8]}, {"type": "completed", "b64_json": ENCODED}),
        b'{"progress": 50}\n' + GOOD + b"\n",
        GOOD[:-2] + b",]}",
        str({"data": [{"b64_json": ENCODED}]}).encode(),
        b'{"note": "a\nb", ' + GOOD[1:],
        b'{"note": "\xe9", ' + GOOD[1:],
        b"/a.png",
        PNG.hex().encode(),
        base64.encodebytes(PNG),
        " ".join(ENCODED[i : i + 60] for i in range(0, len(ENCODED), 60)).encode(),
        gzip.compress(GOOD[:50]) + gzip.compress(GOOD[50:]),
        *(
            json.dumps(answer).encode()
            for answer in (
                *(
                    {"data": [{name: prefix + ENCODED}]}
                    for name in ("b64_json", "url")
                    for prefix in (
                        *("DATA:IMAGE/PNG;BASE64,", "image/png;base64,", "base64,", "base64:", "\ufeff"),
                        *("data:image/png;base64:", "data:image/png;name=a b.png;base64,"),
                    )
                    if (name, prefix) != ("url", "\ufeff")
                ),
                {"data": [{"b64_json": list(PNG)}]},
                {"image": {"type": "Buffer", "data": list(PNG)}},
                {"data": {"image_urls": ["/a.png"]}},
                {"data": [{"url": "http://localhost:@PORT@/a.png"}]},
                {"data": [{"url": "http://0.0.0.0:@PORT@/a.png"}]},
                {"data": [{"url": "/moved.png"}]},
                {"data": [{"url": "/late.png"}]},
                {"data": [{"url": "/packed.png"}]},
                {"download_url": "/a.png"},
                {"result": {"sample": "/a.png"}},
                {"img_b64": ENCODED},
                {"data": [{"b64_image": ENCODED}]},
                {"generatedImages": [{"image": {"imageBytes": ENCODED}}]},
                {"candidates": [{"content": {"parts": [{"text": "here"}, {"inlineData": {"data": ENCODED}}]}}]},
                {"choices": [{"message": {"images": [{"image_url": {"url": DATA_URL}}]}}]},
                {"choices": [{"message": {"content": f"![a car]({DATA_URL})"}}]},
                {"choices": [{"message": {"content": "Here: ![a car](/a.png)"}}]},
                {"data": [{"b64_json": f"data:;base64,{ENCODED}"}]},
                {"data": [{"b64_json": f"b'{ENCODED}'"}]},
                {"data": [{"b64_json": "\\n".join([ENCODED[:76], ENCODED[76:]])}]},
                {"data": [{"b64_json": " ".join([ENCODED[i : i + 8] for i in range(0, len(ENCODED), 8)])}]},
                {"data": [{"b64_json": "\r\n\t".join([ENCODED[i : i + 5] for i in range(0, len(ENCODED), 5)])}]},
                {"data": [{"b64_json": ENCODED.replace("+", "-").replace("/", "_").rstrip("=")}]},
                {"data": [{"b64_json": PNG.hex()}]},
                {"image": "0x" + PNG.hex().upper()},
                {"image": "\\x" + PNG.hex()},
                {"data": [{"b64_json": base64.b64encode(ENCODED.encode()).decode()}]},
                {"data": [{"b64_json": base64.b64encode(DATA_URL.encode()).decode()}]},
                {"output": [base64.b64encode(PNG.hex().encode()).decode()]},
                {"data": [{"b64_json": "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)}]},
            )
        ),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "http"])
def test_a_drawn_image_is_read_at_the_first_try(address: str, body: bytes, kind: str) -> None:
    result = _draw(address, body, kind)
    assert isinstance(result, GeneratedImage), result
    assert result.image.size == (32, 24)
    assert _Handler.drawn == 1


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_an_image_of_another_format_is_paid_once(address: str, kind: str) -> None:
    result = _draw(address, _file(kind), "openai")
    assert str(result) == "openai:m did not send a PNG, JPEG, WEBP, AVIF image"
    assert _Handler.drawn == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "queued", "status_url": "/a.png"},
        {"error": {"message": "no", "help_url": "/a.png"}, "logo": "/a.png"},
        {"input_image": ENCODED},
        {"thumbnail_url": "/a.png"},
        {"data": [{"url": "/elsewhere.png"}]},
        {"data": [{"url": "http://images.example.com/a.png"}]},
        {"id": "j1", "status": "processing", "image": ENCODED},
        {"state": "IN_PROGRESS", "output": [ENCODED]},
        _events({"type": "image_generation.partial_image", "b64_json": ENCODED}),
        _events({"type": "partial_image", "b64_json": ENCODED}, {"type": "error", "error": {"message": "GPU died"}}),
    ],
)
def test_what_is_not_the_image_is_not_taken_for_it(address: str, answer: Any) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    result = _draw(address, body, "openai")
    assert isinstance(result, BackendError)
    assert "\n" not in str(result)
    assert ENCODED[:40] not in str(result)
    assert _Handler.drawn == 1


def _black() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("answer", "headers"),
    [
        ({"images": [{"url": f"data:image/png;base64,{_black()}"}], "has_nsfw_concepts": [True]}, {}),
        ({"data": [{"b64_json": _black()}], "nsfw_content_detected": [True]}, {}),
        ({"data": [{"b64_json": _black(), "nsfw": True}]}, {}),
        ({"data": [{"b64_json": _black()}, {"b64_json": _black()}], "isNSFW": "true"}, {}),
        ({"image": _black(), "is_safe": False}, {}),
        ({"data": [{"b64_json": ENCODED, "content_filter_results": {"violence": {"filtered": True}}}]}, {}),
        ({"generations": [{"img": ENCODED, "censored": True}]}, {}),
        ({"image": ENCODED, "finish_reason": "CONTENT_FILTERED"}, {}),
        ({"candidates": [{"finishReason": "IMAGE_SAFETY"}]}, {}),
        ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, {}),
        (PNG, {"finish-reason": "CONTENT_FILTERED"}),
        (GOOD, {"Finish-Reason": "content_filtered"}),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "http"])
def test_an_image_that_a_filter_has_stopped_is_a_refusal(
    address: str, answer: Any, headers: dict[str, str], kind: str
) -> None:
    _Handler.headers_sent = headers
    result = _draw(address, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), kind)
    assert isinstance(result, ContentRefusedError), result
    assert "filter" in str(result)
    assert _Handler.drawn == 1


@pytest.mark.parametrize(
    "beside",
    [
        {"has_nsfw_concepts": [False]},
        {"has_nsfw_concepts": [True]},
        {"nsfw": True},
        {"is_safe": True},
        {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}},
        {"finish_reason": "SUCCESS"},
        {"censored": False},
        {"filtered": 0},
    ],
)
def test_an_image_that_was_handed_out_is_taken_whatever_a_filter_says(address: str, beside: dict[str, Any]) -> None:
    result = _draw(address, json.dumps({"data": [{"b64_json": ENCODED}], **beside}).encode(), "openai")
    assert isinstance(result, GeneratedImage), result


@pytest.mark.parametrize("kind", ["openai", "http"])
def test_a_compression_that_cannot_be_read_is_paid_once(address: str, kind: str) -> None:
    _Handler.headers_sent = {"Content-Encoding": "odd", "Content-Type": "application/json"}
    result = _draw(address, b"\x1b\x02\x00\xf8 packed", kind)
    assert "packs its answer (odd)" in str(result)
    assert _Handler.drawn == 1


@pytest.mark.parametrize("kind", ["openai", "http"])
@pytest.mark.parametrize(
    ("body", "says"),
    [(gzip.compress(b" " * 2**17), "sends more than"), (gzip.compress(GOOD)[:-20], "a damaged file (gzip)")],
    ids=["too large", "damaged"],
)
def test_a_compression_that_no_header_tells_of_is_paid_once(
    address: str, kind: str, body: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BYTES", 2**16)
    assert says in str(_draw(address, body, kind))
    assert _Handler.drawn == 1


@pytest.mark.parametrize("kind", ["openai", "http"])
def test_an_answer_that_was_packed_twice_is_read(address: str, kind: str) -> None:
    _Handler.headers_sent = {"Content-Encoding": "gzip"}
    result = _draw(address, gzip.compress(gzip.compress(GOOD)), kind)
    assert isinstance(result, GeneratedImage), result
    assert _Handler.drawn == 1


def test_a_torn_answer_is_asked_for_again(address: str) -> None:
    result = _draw(address, b'{"usage": {"images": 1}, ' + GOOD[1:-20], "openai")
    assert isinstance(result, BackendError)
    assert _Handler.drawn == 3


@pytest.mark.parametrize("kind", ["openai", "http"])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Encoding": "gzip"}, GOOD),
        ({"Content-Encoding": "br"}, GOOD),
        ({"Content-Encoding": "deflate"}, PNG),
        ({"Content-Encoding": "gzip"}, gzip.compress(GOOD[:50]) + gzip.compress(GOOD[50:])),
        ({"Content-Length": str(len(GOOD) + 50)}, GOOD),
        ({"Content-Length": str(len(PNG) + 50)}, PNG),
        ({"Transfer-Encoding": "chunked"}, b"%x\r\n%b\r\n" % (len(GOOD), GOOD)),
    ],
)
def test_a_whole_answer_whose_headers_lie_is_read_at_the_first_try(
    address: str, headers: dict[str, str], body: bytes, kind: str
) -> None:
    _Handler.headers_sent, _Handler.protocol_version = {**headers, "Connection": "close"}, "HTTP/1.1"
    result = _draw(address, body, kind)
    assert isinstance(result, GeneratedImage), result
    assert (result.image.size, _Handler.drawn) == ((32, 24), 1)


@pytest.mark.parametrize("body", [GOOD[:-2], PNG[:-20]])
def test_an_answer_that_is_cut_off_is_not_taken_for_a_whole_one(address: str, body: bytes) -> None:
    _Handler.headers_sent, _Handler.protocol_version = {"Content-Length": "9999", "Connection": "close"}, "HTTP/1.1"
    assert isinstance(_draw(address, body, "openai"), BackendError)
    assert _Handler.drawn == 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 77])
def test_an_image_is_turned_as_its_file_says(address: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save(buffer, "JPEG", exif=exif)
    result = _draw(address, buffer.getvalue(), "http")
    assert isinstance(result, GeneratedImage), result
    assert result.image.size == ((24, 32) if orientation in (6, 8) else (32, 24))


def _jpeg(height: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((256, height), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize(
    ("file", "lost", "drawn"),
    [
        (_jpeg(256), 2, 1),
        (_jpeg(256), 20, 1),
        (_jpeg(256), len(_jpeg(256)) // 2, 3),
        (_jpeg(128), 2, 3),
        (_jpeg(256, progressive=True), 20, 3),
    ],
)
def test_a_jpeg_without_its_last_bytes_is_an_image_if_its_rows_are_there(
    address: str, file: bytes, lost: int, drawn: int, lying: bool
) -> None:
    """Whether all rows are there cannot be told of small and of progressive ones."""
    if lying:
        _Handler.headers_sent, _Handler.protocol_version = (
            {"Content-Length": "99999", "Connection": "close"},
            "HTTP/1.1",
        )
    for kind in ("openai", "http"):
        _Handler.drawn = 0
        result = _draw(address, file[:-lost], kind)
        assert _Handler.drawn == drawn
        assert isinstance(result, BackendError) is (drawn > 1)
        if isinstance(result, GeneratedImage):
            whole = Image.open(io.BytesIO(file)).convert("RGB")
            assert result.image.crop((0, 0, 256, 236)).tobytes() == whole.crop((0, 0, 256, 236)).tobytes()


@pytest.mark.parametrize(
    "headers",
    [
        {"broken header\r\nX": "y"},
        {"<br />\r\n<b>Warning</b>: in draw.php on line 3<br />\r\nX": "y"},
        {"Content Disposition": "inline"},
        {"X-Two ": "y"},
        {"": "y"},
        {"X": "a\0b"},
        {"Content-Length": "unknown"},
        {"Transfer-Encoding": "identity"},
    ],
)
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_broken_line_before_an_answer_loses_nothing(address: str, headers: dict[str, str], version: str) -> None:
    _Handler.headers_sent, _Handler.protocol_version = {**headers, "Connection": "close"}, version
    result = _draw(address, GOOD, "openai")
    assert isinstance(result, GeneratedImage), result
    assert _Handler.drawn == 1


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Content-Length": "7\r\nContent-Length: 8"}, "conflicting"),
        ({"Transfer-Encoding": "gzip, chunked"}, "chunked"),
    ],
)
def test_an_answer_that_is_no_http_is_paid_once(address: str, headers: dict[str, str], says: str) -> None:
    _Handler.headers_sent = headers
    result = _draw(address, GOOD, "openai")
    assert re.search(rf"its answer is no valid HTTP \(.*{says}", str(result))
    assert _Handler.drawn == 1


def _head(stream: io.BytesIO, size: int) -> bytes:
    data = b""
    while not is_whole_head(data) and (more := stream.read(size)):
        data += more
    return readable_head(data)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_lines_before_an_answer_are_read_in_any_pieces(size: int) -> None:
    sent = b"\r\nHTTP/1.1 200 OK\r\nno colon\r\n folded\r\nA: 1\r\n folded\r\nB : 2\nC: 3\r\n\r\nno colon\r\n"
    stream = io.BytesIO(sent)
    assert _head(stream, size) + stream.read() == b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\nC: 3\r\n\r\nno colon\r\n"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", bytes(70_000)])
def test_lines_without_an_end_are_left_alone(sent: bytes) -> None:
    stream = io.BytesIO(sent)
    assert _head(stream, 100) + stream.read() == sent


def _file(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (9, 99, 200)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_nothing_but_the_pixels_of_a_servers_file_is_kept(kind: str) -> None:
    text, exif = PngInfo(), Image.Exif()
    text.add_text("parameters", "somebody's words", zip=True)
    exif[0x010E] = "somebody's words"
    extra: dict[str, Any] = {"PNG": {"pnginfo": text, "transparency": (9, 99, 200)}, "JPEG": {"comment": b"words"}}
    data = _file(kind, exif=exif, icc_profile=b"somebody's words", **extra.get(kind, {}))
    if kind == "PNG":  # the only colour of the picture stands for nothing
        with pytest.raises(BackendError, match="transparent everywhere"):
            decode_image(data, "a server")
        data = _file(kind, exif=exif, icc_profile=b"somebody's words", pnginfo=text, transparency=(1, 2, 3))
    stored = encode_png(decode_image(data, "a server"), {"ours": "kept"})
    assert chunk_names(stored) == [b"IHDR", b"tEXt", b"IDAT", b"IEND"]


def chunk_names(png: bytes) -> list[bytes]:
    names, start = [], 8
    while start < len(png):
        names.append(png[start + 4 : start + 8])
        start += 12 + int.from_bytes(png[start : start + 4])
    return names


@pytest.mark.parametrize("pump", ["![](x", "![", "![](", "data:image/png;base64,", "![](data:", "(x"])
def test_an_answer_of_many_beginnings_of_an_image_is_read_in_a_moment(address: str, pump: str) -> None:
    """A pattern that searched the rest of the text for each of them took minutes, beyond every timeout."""
    text = pump * (2_000_000 // len(pump))
    for answer in ({"image": text}, {"choices": [{"message": {"content": text}}]}):
        assert isinstance(_draw(address, json.dumps(answer).encode(), "openai"), BackendError)


@pytest.mark.timeout(30)
def test_an_answer_of_very_many_values_is_read_in_a_moment(address: str) -> None:
    """Looking for an image in each of them took a minute, as did looking through all of the text for each."""
    assert isinstance(_draw(address, b"{}" * 300_000, "openai"), BackendError)
