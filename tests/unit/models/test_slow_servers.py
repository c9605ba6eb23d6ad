"""Servers that send something all the time, and never an answer."""

from __future__ import annotations

import gc
import io
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from PIL import Image

from gems.authority import OPERATOR
from gems.errors import BackendError
from gems.models.deadlines import end_reads_at, limit_reads
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.registry import init_image_generator, init_mllm
from gems.models.servers.openai_images import PlainImages
from gems.options import ChatOptions, GeneratorOptions

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n"
_DRAWN = b'{"data": [{"url": "/a.png"}]}'


@contextmanager
def server(head: bytes, piece: bytes) -> Iterator[int]:
    """A server that sends a head and then the same piece again and again, until its client leaves.

    If the head is for a file, the request before it is answered at once, with the file's address.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    if b"POST" in connection.recv(65536) and head == _HEAD:
                        start = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(_DRAWN)
                        connection.sendall(start + _DRAWN)
                        continue
                    connection.sendall(head)
                    while True:
                        time.sleep(0.05)
                        connection.sendall(piece)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x"),
        (_HEAD + b"Content-Encoding: deflate\r\nContent-Length: 90000\r\n\r\n", b"\0\0\0\xff\xff"),
    ],
)
def test_a_server_that_never_ends_its_answer_is_given_up(head: bytes, piece: bytes) -> None:
    with server(head, piece) as port:
        name = f"http:http://127.0.0.1:{port}/draw"
        generator = init_image_generator(name, GeneratorOptions(timeout=0.5), OPERATOR)
        [result] = generator.generate([ImageRequest(prompt="a cat", seed=1)])
    assert isinstance(result, BackendError)
    assert "no answer" in str(result) or "too slowly" in str(result)


@pytest.mark.parametrize("head", [_JSON, _HEAD])
def test_json_and_files_that_never_end_are_given_up(head: bytes) -> None:
    with server(head, b" " if head == _JSON else b"X-Slow: a\r\n") as port:
        options = GeneratorOptions(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", timeout=0.3)
        [result] = init_image_generator("openai:m", options, OPERATOR).generate([ImageRequest(prompt="a cat", seed=1)])
    assert isinstance(result, BackendError)
    assert "no answer" in str(result) or "too slowly" in str(result)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (_JSON, b" "),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b": wait\n\n"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 9000\r\n\r\n", b" "),
    ],
)
def test_each_try_of_a_chat_server_ends_in_time(head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gems.models.servers.providers.pause", lambda _: None)
    with server(head, piece) as port:
        options = ChatOptions(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=0.15)
        with pytest.raises(BackendError, match="no answer"):
            init_mllm("openai:m", options, OPERATOR).invoke("What do you wish?")


@pytest.mark.parametrize("package", ["httpcore", "httpcore2"])
def test_a_read_that_is_too_late_is_a_timeout_of_its_own_package(package: str) -> None:
    module = pytest.importorskip(package)
    stream = module.MockStream([b"a"])
    limit_reads("connection.connect_tcp.complete", {"return_value": stream})
    end_reads_at(-math.inf)
    try:
        with pytest.raises(module.ReadTimeout):
            stream.read(1)
    finally:
        end_reads_at(math.inf)


def test_a_generator_that_is_gone_leaves_no_connection_open() -> None:
    image, received = io.BytesIO(), list[bytes]()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(_HEAD + b"Content-Length: %d\r\n\r\n" % len(image.getvalue()) + image.getvalue())
            received.append(connection.recv(65536))

    with listener:
        thread = threading.Thread(target=answer)
        thread.start()
        name = f"http://127.0.0.1:{listener.getsockname()[1]}/draw"
        generator = PlainImages(name, name="http:draw", options=GeneratorOptions())
        assert isinstance(generator.generate([ImageRequest("a cat", 1)])[0], GeneratedImage)
        del generator
        gc.collect()
        thread.join(10)
    assert received == [b""], "the server sees the end of the connection"
