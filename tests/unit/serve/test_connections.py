"""Bounds on what one client can make the service hold: sizes, pace and number of connections, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import uvicorn
from servers.waiting import wait_until

from gems.serve.connections import BoundedConnection, Deadlines
from gems.serve.server import _Server

SHORT = Deadlines(head=0.3, body=0.3, reading=0.5)
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nhost: localhost\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, then answers: /stream with events for ever, /large with 8 MB, /early unread, /echo, /headers."""
    assert scope["type"] == "http"
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/stream":
        for _ in range(10):
            await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
            await asyncio.sleep(0.1)
    size = 8_000_000 if scope["path"] == "/large" else 2
    if scope["path"] == "/headers":
        body = b"\n".join(b"%s: %s" % header for header in scope["headers"])
    elif scope["path"] != "/echo":
        body = b"k" * size
    await send({"type": "http.response.body", "body": body, "more_body": False})


@contextmanager
def listening(
    deadlines: Deadlines | None = None, **options: Any
) -> Iterator[tuple[_Server, Callable[[], socket.socket]]]:
    """A server in a thread, and a function that connects to it."""
    config = uvicorn.Config(
        app,
        port=0,
        http=BoundedConnection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        **options,
    )
    server = _Server(config, SimpleNamespace(stopping=True), 0, deadlines)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, lambda: "the server did not start")
        address = server.servers[0].sockets[0].getsockname()
        yield server, lambda: socket.create_connection(address, timeout=20)
    finally:
        server.should_exit = True
        thread.join()


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    answer = b""
    try:
        while part := connection.recv(65536):
            answer += part
    except ConnectionError:
        pass
    return answer


def error_of(answer: bytes) -> tuple[int, str]:
    """Status and code of the last response."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert b"x-content-type-options: nosniff" in head
    assert b"connection: close" in head
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET + b"x: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (GET + b"x: 1\r\n" * 200 + b"\r\n", 431),
        (GET + b"".join(b"x%d: %s\r\n" % (n, b"a" * 1000) for n in range(60)) + b"\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414),
        (POST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + b"x: 1\r\n" * 200 + b"\r\n", 431),
        (GET + b"\x00\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
    ],
    ids=["long", "many", "together", "target", "trailers", "invalid", "nonsense"],
)
def test_heads_are_bounded(sent: bytes, status: int) -> None:
    with listening() as (_, connect), closing(connect()) as connection:
        connection.sendall(sent)
        assert error_of(read_all(connection))[0] == status


@pytest.mark.parametrize("upgrade", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"], ids=["plain", "upgrade"])
@pytest.mark.parametrize(
    "trailer",
    [b"authorization: Bearer key", b"Host: other", b"content-type: text/plain", b"Expect: 100-continue", b"x: 1"],
)
def test_trailers_are_no_headers(trailer: bytes, upgrade: bytes) -> None:
    head = b"POST /headers HTTP/1.1\r\nhost: localhost\r\n" + upgrade + b"transfer-encoding: chunked\r\n"
    with listening() as (_, connect), closing(connect()) as connection:
        connection.sendall(head + b"\r\n1\r\na\r\n0\r\n" + trailer + b"\r\n\r\n")
        connection.sendall(head + b"next: 1\r\nconnection: close\r\n\r\n1\r\na\r\n0\r\n" + trailer + b"\r\n\r\n")
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.count(b"host: localhost") == 2
    assert answer.count(b"next: 1") == 1
    assert trailer.lower() not in answer.lower()
    assert b"100 Continue" not in answer


@pytest.mark.parametrize("start", [GET + b"x: ", b"GET /", POST + b"transfer-encoding: chunked\r\n\r\n1;"])
def test_endless_heads_are_refused_before_they_are_held(start: bytes) -> None:
    """300 MB of one header, path or chunk extension: the connection ends within the first of them."""
    with listening() as (_, connect), closing(connect()) as connection:
        before, sent = psutil.Process().memory_info().rss, 0
        connection.sendall(start)
        try:
            while sent < 300_000_000:
                connection.sendall(b"a" * 1_000_000)
                sent += 1_000_000
        except ConnectionError:
            pass
        assert sent < 30_000_000
        assert psutil.Process().memory_info().rss - before < 30_000_000


def test_requests_sent_ahead_are_bounded() -> None:
    with listening() as (_, connect), closing(connect()) as connection:
        connection.sendall((GET + b"\r\n") * 10 + GET + b"connection: close\r\n\r\n")
        assert read_all(connection).count(b"HTTP/1.1 200") == 11
    with listening() as (server, connect), closing(connect()) as connection:
        connection.sendall((GET + b"\r\n") * 5000)
        assert read_all(connection).count(b"HTTP/1.1 200") < 100
        wait_until(lambda: not server.server_state.connections, lambda: "the connection is still open")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"\r\n\r\n", None),
        (GET, 408),
        (POST + b"content-length: 100\r\n\r\nabc", 408),
        (POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", 408),
        (GET + b"\r\n", 200),  # a connection that is kept alive, and then silent
    ],
    ids=["silent", "blank", "head", "body", "chunks", "kept alive"],
)
def test_a_client_that_stalls_is_let_go(sent: bytes, status: int | None) -> None:
    with listening(SHORT) as (_, connect), closing(connect()) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
    if status is None:
        assert answer == b""
    elif status == 200:
        assert answer.startswith(b"HTTP/1.1 200")
    else:
        assert error_of(answer) == (status, "timeout")


@pytest.mark.parametrize("start", [GET, POST + b"transfer-encoding: chunked\r\n\r\n"])
def test_dripping_does_not_help(start: bytes) -> None:
    drop = b"1\r\na\r\n" if start.startswith(b"POST") else b"a: b\r\n"
    with listening(SHORT) as (server, connect), closing(connect()) as connection:
        connection.sendall(start)
        wait_until(lambda: server.server_state.connections, lambda: "not connected")

        def drip() -> bool:
            try:
                connection.sendall(drop)
            except ConnectionError:
                return True
            return not server.server_state.connections

        wait_until(drip, lambda: "the connection is still open", seconds=10)


def test_a_body_after_a_refusal_ends_too() -> None:
    """The response is there before the body: what still comes is dropped, up to a bound."""
    with listening() as (_, connect), closing(connect()) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000000000\r\n\r\n")

        def pour() -> bool:
            try:
                connection.sendall(b"a" * 100_000)
            except ConnectionError:
                return True
            return False

        wait_until(pour, lambda: "the connection is still open", seconds=10)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"h2c, foo/1"])
@pytest.mark.parametrize(
    "framed",
    [
        b"content-length: 27\r\n\r\nGET /inner HTTP/1.1\r\na: b\r\n",
        b"transfer-encoding: chunked\r\n\r\n1b\r\nGET /inner HTTP/1.1\r\na: b\r\n\r\n0\r\n\r\n",
        b"\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_an_upgrade_is_ignored_and_its_body_is_no_other_request(protocol: bytes, framed: bytes, step: int) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nupgrade: " + protocol
    sent = head + b"\r\n" + framed + b"GET /last HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with listening() as (_, connect), closing(connect()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), step):
            connection.sendall(sent[start : start + step])
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 2  # one for each request
    assert answer.count(b"GET /inner") == framed.count(b"GET /inner")


def test_a_tunnel_is_refused() -> None:
    with listening() as (_, connect), closing(connect()) as connection:
        connection.sendall(b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert error_of(read_all(connection)) == (400, "invalid_http")


def test_streams_live_longer_than_every_deadline() -> None:
    with listening(SHORT) as (_, connect), closing(connect()) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = read_all(connection)
    assert answer.count(b"still here") == 10
    assert answer.endswith(b"0\r\n\r\n")


def test_a_reader_that_stops_reading_is_let_go() -> None:
    with listening(SHORT) as (server, connect), closing(connect()) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_until(lambda: server.server_state.total_requests, lambda: "no response")
        wait_until(lambda: not server.server_state.connections, lambda: "the connection is still open", seconds=10)


def test_a_connection_too_many_is_refused_and_the_others_work() -> None:
    with listening(limit_concurrency=3) as (server, connect):
        connections = [connect() for _ in range(3)]
        try:
            wait_until(lambda: len(server.server_state.connections) == 3, lambda: "not connected")
            with closing(connect()) as refused:
                assert error_of(read_all(refused)) == (503, "too_many_connections")
            for connection in connections:
                connection.sendall(GET + b"connection: close\r\n\r\n")
                assert read_all(connection).startswith(b"HTTP/1.1 200")
        finally:
            for connection in connections:
                connection.close()
