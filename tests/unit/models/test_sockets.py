"""What a server sent before it hung up reaches the caller, and TLS that breaks is a fault like any other."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from chatting import fill
from langchain_core.messages import HumanMessage
from PIL import Image

from gems.authority import OPERATOR
from gems.errors import BackendError
from gems.models.generators import Edit, GeneratedImage, ImageRequest
from gems.models.registry import init_image_generator, init_mllm
from gems.nodes.prompt_checks import Plan
from gems.options import ChatOptions, GeneratorOptions

_NOISE = Image.effect_noise((1500, 1500), 90).convert("RGB")
_NEEDS_OPENSSL = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")


@contextmanager
def listening(answer: Callable[[socket.socket], None], family: int = socket.AF_INET) -> Iterator[tuple[int, list[int]]]:
    """A port at which each connection is answered by a function, and the connections so far."""
    connections: list[int] = []
    with socket.socket(family) as server:
        server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection.fileno())
                with connection, suppress(OSError):
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], connections
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (part := connection.recv(1000)):
        head += part
    return head


def message(status: str, words: str, *headers: str) -> bytes:
    body = json.dumps({"error": {"message": words}})
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def packed(body: bytes, coding: str, times: int = 1) -> bytes:
    """A body that is repeated so many times, without more than one of them in memory."""
    if coding == "gzip, gzip":
        return gzip.compress(packed(body, "gzip", times))
    packer: Any = zstandard.ZstdCompressor().compressobj() if coding == "zstd" else None
    packer = packer or zlib.compressobj(wbits=zlib.MAX_WBITS | (16 if coding == "gzip" else 0))
    return b"".join(packer.compress(body) for _ in range(times)) + bytes(packer.flush())


def read_request(connection: socket.socket) -> bytes:
    head, _, body = read_head(connection).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    left = int(length[1]) - len(body) if length else 0
    while left > 0 and (part := connection.recv(left)):
        left -= len(part)
    return head


def draw(address: str, *, edit: Image.Image | None = None, timeout: float = 5.0) -> Any:
    options = GeneratorOptions(base_url=address, api_key="none", timeout=timeout, edits=True)
    request = ImageRequest("a car", 1, edit=Edit(edit, (), ("a red car",)) if edit else None)
    [result] = init_image_generator("openai:m", options, OPERATOR).generate([request])
    return result


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The TLS of a server that the client trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("hangs_up_hard", [False, True])
@pytest.mark.parametrize(
    ("status", "words"),
    [("413 Content Too Large", "at most 1 MB"), ("401 Unauthorized", "wrong key"), ("400 Bad Request", "no edits")],
)
def test_the_answer_to_an_upload_that_a_server_refuses_half_way_is_read(
    status: str, words: str, hangs_up_hard: bool
) -> None:
    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(message(status, words))
        if hangs_up_hard:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        threading.Event().wait(0.05)  # the client goes on with its upload meanwhile

    with listening(answer) as (port, connections):
        error = draw(f"http://127.0.0.1:{port}/v1", edit=_NOISE)
    assert isinstance(error, BackendError)
    assert words in str(error)
    assert "charged" not in str(error)
    assert len(connections) == 1


@_NEEDS_OPENSSL
def test_a_server_that_wants_a_certificate_of_the_client_is_told_of(tls: ssl.SSLContext) -> None:
    tls.verify_mode = ssl.CERT_REQUIRED

    def answer(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as encrypted:
            read_head(encrypted)

    with listening(answer) as (port, _):
        address = f"https://127.0.0.1:{port}/v1"
        error = draw(address, timeout=3)
        with pytest.raises(BackendError) as caught:
            init_mllm("openai:m", ChatOptions(base_url=address, api_key="none"), OPERATOR).invoke([HumanMessage("a")])
    for fault in (error, caught.value):
        assert "it wants a certificate of its clients" in str(fault)
        assert "charged" not in str(fault)


@_NEEDS_OPENSSL
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"])
def test_plain_words_amid_tls_are_a_lost_connection(tls: ssl.SSLContext, sent: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        with (
            socket.socket(fileno=socket.dup(connection.fileno())) as plain,
            tls.wrap_socket(connection, server_side=True) as encrypted,
        ):
            read_head(encrypted)
            encrypted.sendall(sent)
            plain.sendall(b"Fatal error: out of memory\n" * 9)

    with listening(answer) as (port, connections):
        error = draw(f"https://127.0.0.1:{port}/v1", timeout=20)
    assert isinstance(error, BackendError)
    assert "3 of them may have been charged" in str(error)
    assert len(connections) == 3


@_NEEDS_OPENSSL
def test_a_server_with_tls_is_found_by_its_name_and_by_addresses_of_both_kinds(tls: ssl.SSLContext) -> None:
    def answer(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as encrypted:
            read_head(encrypted)
            encrypted.sendall(message("401 Unauthorized", "who is there?"))
            encrypted.settimeout(0.3)
            with suppress(OSError):  # what was not read would reset the connection
                while encrypted.recv(65536):
                    continue

    for host, family in (("localhost", socket.AF_INET), ("[::1]", socket.AF_INET6)):
        with suppress(OSError), listening(answer, family) as (port, _):
            assert "who is there?" in str(draw(f"https://{host}:{port}/v1"))


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_name_that_no_host_can_have_is_told_of(host: str) -> None:
    error = draw(f"http://{host}/v1", timeout=0.5)
    assert isinstance(error, BackendError)
    assert f"cannot reach {host}" in str(error)
    assert not isinstance(error, GeneratedImage)


def test_a_server_that_never_says_hello_is_waited_for_as_long_as_told() -> None:
    with listening(lambda connection: threading.Event().wait(2) and None) as (port, _):
        assert "in 1 s" in str(draw(f"https://127.0.0.1:{port}/v1", timeout=1))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "gzip, gzip"])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_an_answer_that_unfolds_without_end_is_refused_before_it_does(coding: str, status: str) -> None:
    bomb = _BOMBS.get(coding) or _BOMBS.setdefault(coding, packed(bytes(2**20), coding, 300))

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        head = f"HTTP/1.1 {status}\r\nContent-Encoding: {coding}\r\nContent-Length: {len(bomb)}\r\n\r\n"
        connection.sendall(head.encode() + bomb)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with listening(answer) as (port, connections):
        address = f"http://127.0.0.1:{port}/v1"
        assert "sends more than 64 MB" in str(draw(address))
        with pytest.raises(BackendError, match="sends more than 64 MB") as caught:
            init_mllm("openai:m", ChatOptions(base_url=address, api_key="none"), OPERATOR).invoke([HumanMessage("a")])
    assert not caught.value.retryable
    assert len(connections) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 * 1024  # in KB


_BOMBS: dict[str, bytes] = {}
_FILE = io.BytesIO()
Image.radial_gradient("L").convert("RGB").save(_FILE, "PNG")
_ANSWER = json.dumps({"data": [{"b64_json": base64.b64encode(_FILE.getvalue()).decode()}]}).encode()
_COMPLETION = json.dumps({"choices": [{"message": {"content": "a car"}, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_packed_answer_that_is_whole_is_paid_once_whatever_its_end(coding: str) -> None:
    lost = 0 if coding == "zstd" else 4  # the sum of what came before

    def answer(connection: socket.socket) -> None:
        content = packed(_COMPLETION if b"chat" in read_request(connection) else _ANSWER, coding)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(content) + 9}\r\n\r\n"
        connection.sendall(head.encode() + content[: -lost or None])

    with listening(answer) as (port, connections):
        address = f"http://127.0.0.1:{port}/v1"
        assert isinstance(draw(address), GeneratedImage)
        model = init_mllm("openai:m", ChatOptions(base_url=address, api_key="none"), OPERATOR)
        assert model.invoke([HumanMessage("a")]).text == "a car"
    assert len(connections) == 2


# --- proxies of the environment --------------------------------------------------------------------------------------

_AUTHORIZATION = b"Basic " + base64.b64encode(b"ann:p@ss")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies, and no waits."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("gems.models.servers.retries._WAIT", lambda _: 0.01)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _tunnel(heads: list[bytes]) -> Callable[[socket.socket], None]:
    """A proxy that wants a password, and connects with this machine whichever host is asked for."""

    def answer(connection: socket.socket) -> None:
        heads.append(head := read_head(connection))
        if b"Proxy-Authorization: " + _AUTHORIZATION not in head:
            connection.sendall(b"HTTP/1.1 407 Who are you?\r\nContent-Length: 0\r\n\r\n")
            return
        port = int(re.search(rb"CONNECT \S+:(\d+)", head)[1])  # type: ignore[index]
        with socket.create_connection(("127.0.0.1", port)) as target:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(target, connection))
            back.start()
            _copy(connection, target)
            back.join()

    return answer


@_NEEDS_OPENSSL
@pytest.mark.usefixtures("no_proxies")
def test_a_server_with_tls_is_asked_through_a_proxy_which_learns_no_key(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as encrypted:
            read_request(encrypted)
            encrypted.sendall(message("400 Bad Request", "who is there?", "Connection: close"))

    heads: list[bytes] = []
    with listening(serve) as (port, connections), listening(_tunnel(heads)) as (proxy, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:p%40ss@127.0.0.1:{proxy}")
        address = f"https://localhost:{port}/v1"
        assert "who is there?" in str(draw(address))
        with pytest.raises(BackendError, match="who is there") as caught:
            init_mllm("openai:m", ChatOptions(base_url=address, api_key="none"), OPERATOR).invoke([HumanMessage("a")])
    assert caught.value.requests == 1, "what the proxy is asked is no call"
    assert [head.split()[0] for head in heads] == [b"CONNECT", b"CONNECT"]
    assert not any(b"\r\nAuthorization" in head for head in heads)
    assert len(connections) == 2


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("no_proxy", ["", "127.0.0.1", "*"])
def test_a_server_without_tls_is_asked_by_a_proxy_unless_told_otherwise(
    no_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        heads.append(read_request(connection))
        connection.sendall(message("400 Bad Request", "so it is"))

    with listening(answer) as (port, _), listening(answer) as (proxy, proxied):
        monkeypatch.setenv("HTTP_PROXY", f"http://ann:p%40ss@127.0.0.1:{proxy}")
        monkeypatch.setenv("NO_PROXY", no_proxy)
        assert "so it is" in str(draw(f"http://127.0.0.1:{port}/v1/{no_proxy}"))
    assert bool(proxied) == (not no_proxy)
    assert (b"Proxy-Authorization: " + _AUTHORIZATION in heads[0]) == (not no_proxy)
    assert heads[0].split()[1].startswith(b"/" if no_proxy else b"http://127.0.0.1")


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("sent", "says", "is_tried_again"),
    [
        (
            b"HTTP/1.1 407 Who are you?\r\n\r\n",
            "images.test: 407 Who are you?; that is the proxy's answer: set HTTPS_PROXY",
            False,
        ),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "images.test: 403 Forbidden; that is the proxy's answer", False),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "cannot reach images.test (502 Bad Gateway)", True),
        (b"", "cannot reach images.test (Server disconnected", True),
        (b"SSH-2.0\r\n\r\n", "cannot reach images.test (illegal status line", True),
    ],
)
def test_a_proxy_that_makes_no_connection_is_told_of_and_costs_nothing(
    sent: bytes, says: str, is_tried_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(sent)

    with listening(answer) as (proxy, connections):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        error = draw(f"https://images.test/v1/{proxy}", timeout=0.3)
    assert isinstance(error, BackendError)
    assert says in str(error)
    assert "charged" not in str(error)
    assert not error.may_cost
    assert (len(connections) > 1) == is_tried_again


def _close(connection: socket.socket) -> None:
    read_head(connection)


def _reset(connection: socket.socket) -> None:
    read_head(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _reset_unread(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _stop_in_its_answer(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 Connection est")


def _close_in_tls(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    connection.recv(1000)


def _hang(connection: socket.socket) -> None:
    read_head(connection)
    while connection.recv(1000):
        pass


CUTS = [_close, _reset, _reset_unread, _stop_in_its_answer, _close_in_tls, _hang]
PROVIDERS = ["openai", "anthropic", "mistralai", "google_genai", "openrouter"]


@pytest.fixture
def quick(no_proxies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gems.models.tries._WAIT", lambda _: 0.01)
    monkeypatch.setattr("gems.models.servers.providers.pause", lambda _: None)


def ask(provider: str, address: str, timeout: float = 5.0) -> BackendError:
    """How a chat model fails that is asked to fill in a form, as a node does."""
    options = ChatOptions(base_url=address, api_key="none", timeout=timeout)
    with pytest.raises(BackendError) as caught:
        fill(init_mllm(f"{provider}:m", options, OPERATOR), Plan)
    return caught.value


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("cut", CUTS)
def test_an_image_is_not_charged_if_a_proxy_has_made_no_connection(
    cut: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(cut) as (proxy, connections):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        error = draw(f"https://cut.test/v1/{proxy}", timeout=0.5)
    assert isinstance(error, BackendError)
    assert connections
    assert "charged" not in str(error)
    assert not error.may_cost


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_chat_call_is_not_charged_if_a_proxy_has_made_no_connection(
    provider: str, cut: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(f"langchain_{provider}")
    with listening(cut) as (proxy, connections):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        error = ask(provider, f"https://cut.test/v1/{proxy}", timeout=1.0 if cut is _hang else 5.0)
    assert connections
    assert "charged" not in str(error)
    assert error.requests == 0, "none of the client's tries was a request to the server"
    assert error.retryable is (cut is not _hang), "another try costs nothing; of a proxy that hangs, only time"


@_NEEDS_OPENSSL
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "provider", [name for name in PROVIDERS if name != "mistralai"]
)  # which trusts no SSL_CERT_FILE
def test_an_answer_that_is_lost_behind_a_proxy_may_be_charged(
    provider: str, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(f"langchain_{provider}")

    def take_and_hang_up(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as encrypted:
            read_request(encrypted)

    with listening(take_and_hang_up) as (port, connections), listening(_tunnel([])) as (proxy, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:p%40ss@127.0.0.1:{proxy}")
        error = ask(provider, f"https://localhost:{port}/v1")
        assert "may have been charged" in str(draw(f"https://localhost:{port}/v1"))
    assert connections
    assert not error.retryable
    assert ("each of which may have been charged" in str(error)) == (provider == "openai")


@_NEEDS_OPENSSL
@pytest.mark.usefixtures("quick")
def test_an_answer_that_is_lost_may_be_charged_though_the_proxy_fails_at_the_next_try(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_and_hang_up(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as encrypted:
            read_request(encrypted)

    heads: list[bytes] = []
    pass_on = _tunnel(heads)

    def pass_the_first_on(connection: socket.socket) -> None:
        (_close if heads else pass_on)(connection)

    with listening(take_and_hang_up) as (port, connections), listening(pass_the_first_on) as (proxy, proxied):
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:p%40ss@127.0.0.1:{proxy}")
        error = ask("openai", f"https://localhost:{port}/v1")
    assert (len(connections), len(proxied)) == (1, 3)
    assert "may have been charged" in str(error)
    assert not error.retryable
