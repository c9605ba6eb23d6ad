"""Servers that send something all the time, and never an answer."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from gems.authority import OPERATOR
from gems.errors import BackendError
from gems.models.generators import ImageRequest
from gems.models.registry import init_image_generator
from gems.models.servers.openai_images import PlainImages
from gems.options import GeneratorOptions

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


@contextmanager
def server(head: bytes, piece: bytes) -> Iterator[int]:
    """A server that sends a head and then the same piece again and again, until its client leaves."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
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


def test_a_generator_that_is_gone_leaves_no_connection_open() -> None:
    generator = PlainImages("http://127.0.0.1:9/draw", name="http:draw", options=GeneratorOptions())
    client = generator._client
    del generator
    gc.collect()
    assert client.is_closed
