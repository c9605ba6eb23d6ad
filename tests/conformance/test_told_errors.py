"""Errors in answers with status 200, and in bodies of no known form, with each provider's own package."""

from __future__ import annotations

import gzip
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from chatting import PROMPT, fill
from forked import gems_here
from langchain_core.messages import HumanMessage
from servers.threaded import serving

from gems.authority import OPERATOR
from gems.errors import PAY_HINT, BackendError, MalformedAnswerError
from gems.models.registry import init_mllm
from gems.nodes.decomposer import Requirements
from gems.options import ChatOptions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is not default parameter:UserWarning"),
]

NAMES: Final = {
    "responses": ("openai:gpt-5.5-pro", "/v1", "langchain_openai"),
    "chat": ("openai:gpt-4o", "/v1", "langchain_openai"),
    "anthropic": ("anthropic:claude-sonnet-4-5", "", "langchain_anthropic"),
    "google": ("google_genai:gemini-3-pro-preview", "", "langchain_google_genai"),
    "mistral": ("mistralai:mistral-large-latest", "/v1", "langchain_mistralai"),
    "ollama": ("ollama:qwen3-vl:8b", "", "langchain_ollama"),
    "openrouter": ("openrouter:qwen/qwen3-vl", "/api/v1", "langchain_openrouter"),
    "bedrock": ("bedrock_converse:anthropic.claude-sonnet-4-5-20250929-v1:0", "", "langchain_aws"),
}


class Handler(BaseHTTPRequestHandler):
    status: int = 200
    body: bytes = b""
    requests: ClassVar[list[str]] = []
    location: str = ""
    damaged: ClassVar[list[bytes]] = []
    """Bodies that are sent first, as if they were packed."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        if self.location:
            self.send_header("Location", self.location)
        body = self.body
        if self.damaged:
            body = self.damaged.pop()
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server:
    def __init__(self, http: ThreadingHTTPServer, handler: type[Handler]) -> None:
        self.http, self.handler, self.scheme = http, handler, "http"
        self.timeout = 20

    def answers(self, status: int, body: object) -> None:
        self.handler.status, self.handler.body = status, json.dumps(body).encode()

    def options(self, provider: str) -> tuple[str, ChatOptions]:
        name, path, package = NAMES[provider]
        pytest.importorskip(package, reason="install the extra providers", exc_type=ImportError)
        key = {} if provider == "bedrock" else {"api_key": "sk-canary"}
        address = f"{self.scheme}://127.0.0.1:{self.http.server_port}{path}"
        return name, ChatOptions(base_url=address, timeout=self.timeout, **key)

    def error(self, provider: str) -> BackendError:
        """What a call of a provider's model raises."""
        name, options = self.options(provider)
        with pytest.raises(BackendError) as caught:
            fill(init_mllm(name, options, OPERATOR), Requirements, options=options)
        assert "\n" not in str(caught.value)
        return caught.value


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name, value in {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    handler = type("OneHandler", (Handler,), {"requests": []})
    with serving(handler) as http:
        yield Server(http, handler)


def saying(provider: str, text: Any) -> dict[str, Any]:
    """A provider's answer with a text, or with parts of its content as they are."""
    parts = text if isinstance(text, list) else [{"type": "text", "text": text}]
    usage = {"input_tokens": 1, "output_tokens": 1, "inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
    message = {"role": "assistant", "content": text}
    blocks = {"role": "assistant", "content": parts, "usage": usage}
    bodies: dict[str, dict[str, Any]] = {
        "anthropic": {"id": "m", "type": "message", "model": "m", "stop_reason": "end_turn", **blocks},
        "google": {"candidates": [{"content": {"parts": _plain(parts)}, "finishReason": "STOP"}]},
        "ollama": {"model": "m", "message": message, "done": True, "done_reason": "stop"},
        "bedrock": {"output": {"message": {"role": "assistant", "content": _plain(parts)}}, "usage": usage,
                    "stopReason": "end_turn", "metrics": {"latencyMs": 1}},
    }  # fmt: skip
    chat = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": None}
    return bodies.get(provider) or {**chat, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def _plain(parts: list[Any]) -> list[Any]:
    return [part and {"text": part["text"]} for part in parts]


@pytest.mark.parametrize("provider", [name for name in NAMES if name not in ("responses", "ollama")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_null_among_the_parts_of_an_answer_is_left_out(server: Server, provider: str, place: int) -> None:
    parts: list[Any] = [{"type": "text", "text": t} for t in ('{"requirements": [{"question": ', '"Is it red?"}]}')]
    parts.insert(place, None)
    server.answers(200, saying(provider, parts))
    name, options = server.options(provider)
    answer, _ = fill(init_mllm(name, options, OPERATOR), Requirements, options=options)
    assert [requirement.question for requirement in answer.form.requirements] == ["Is it red?"]
    assert len(server.handler.requests) == 1


@pytest.mark.parametrize("provider", [name for name in NAMES if name != "responses"])
def test_an_answer_with_half_a_character_is_sent_back_as_any_other(server: Server, provider: str) -> None:
    server.answers(200, saying(provider, "I see \ud83d"))
    error = server.error(provider)
    assert isinstance(error, MalformedAnswerError), error
    assert len(server.handler.requests) > 1


@pytest.mark.parametrize("provider", [name for name in NAMES if name not in ("responses", "bedrock")])
@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_lose_the_question_is_told(server: Server, provider: str, status: int) -> None:
    server.answers(status, {})
    server.handler.location = "/login"
    error = server.error(provider)
    assert not error.retryable
    assert "redirects" in str(error)
    assert "give the final address as base_url" in str(error)
    assert len(server.handler.requests) == 1


@pytest.mark.parametrize("provider", ["google", "ollama", "anthropic", "openrouter"])
def test_no_question_and_no_key_is_taken_to_another_host(server: Server, provider: str) -> None:
    with serving(type("OtherHandler", (Handler,), {"requests": (asked := [])})) as other:
        server.answers(307, {})
        server.handler.location = f"http://127.0.0.1:{other.server_port}/v1"
        assert "redirects (307)" in str(server.error(provider))
        assert asked == []


@pytest.mark.parametrize("provider", ["google", "mistral", "anthropic", "ollama"])
def test_a_damaged_answer_is_asked_for_again(server: Server, provider: str) -> None:
    server.answers(200, saying(provider, '{"requirements": [{"question": "Is it red?"}]}'))
    damaged = bytearray(gzip.compress(server.handler.body))
    damaged[len(damaged) // 2] ^= 255
    server.handler.damaged = [bytes(damaged)]
    if provider == "ollama":  # which the run itself asks again
        assert server.error(provider).retryable
    name, options = server.options(provider)
    answer, _ = fill(init_mllm(name, options, OPERATOR), Requirements, options=options)
    assert [requirement.question for requirement in answer.form.requirements] == ["Is it red?"]
    assert len(server.handler.requests) == 2


def test_an_ollama_that_has_only_loaded_its_model_may_answer_now(server: Server) -> None:
    empty = saying("ollama", "")
    server.answers(200, {**empty, "done_reason": "load"})
    error = server.error("ollama")
    assert error.retryable
    assert "has loaded its model" in str(error)


@pytest.mark.parametrize("provider", NAMES)
@pytest.mark.parametrize(
    ("body", "says", "status", "passes"),
    [
        ({"error": {"code": 402, "message": "Please top up"}}, f"Please top up{PAY_HINT}", 402, False),
        ({"error": {"code": "insufficient_quota", "message": "You are done"}}, f"You are done{PAY_HINT}", 402, False),
        ({"type": "error", "error": {"type": "authentication_error", "message": "who?"}}, "who?", 401, False),
        ({"error": {"status": "UNAUTHENTICATED", "message": "who?"}}, "who?", 401, False),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "Overloaded", None, True),
        ({"error": {"code": 429, "message": "slower"}}, "slower", 429, True),
        ({"error": {"message": "model crashed"}}, "model crashed", None, False),
        ({"error": "model crashed"}, "model crashed", None, False),
        ({"detail": "no such model"}, "no such model", None, False),
        ("model crashed", "model crashed", None, True),
        (None, "it is empty", None, True),
    ],
)
def test_an_error_in_a_success_is_told_in_its_words(
    server: Server, provider: str, body: object, says: str, status: int | None, passes: bool
) -> None:
    server.answers(200, body)
    error = server.error(provider)
    assert str(error).endswith(f" answers with no chat completion: {says}")
    assert (error.status_code, error.retryable) == (status, passes)
    assert len(server.handler.requests) == 1, "the run asks again, if that may help"


@pytest.mark.parametrize("provider", ["chat", "mistral", "openrouter"])
@pytest.mark.parametrize(
    ("fault", "says", "status", "passes"),
    [
        ({"code": 502, "message": "upstream died"}, "upstream died", None, True),
        ({"code": 402, "message": "Please top up"}, f"Please top up{PAY_HINT}", 402, False),
        ({"code": 401, "message": "User not found."}, "User not found.", 401, False),
        ({"code": 400, "message": "no such option"}, "no such option", None, False),
    ],
)
def test_an_error_in_a_choice_is_told_in_its_words(
    server: Server, provider: str, fault: dict[str, Any], says: str, status: int | None, passes: bool
) -> None:
    message = {"role": "assistant", "content": ""}
    choice = {"index": 0, "message": message, "finish_reason": "error", "error": fault, "logprobs": None}
    fields = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": None}
    server.answers(200, fields | {"choices": [choice], "usage": None})
    error = server.error(provider)
    assert str(error).endswith(f" stopped with an error: {says}")
    assert (error.status_code, error.retryable) == (status, passes)
    assert len(server.handler.requests) == 1


@pytest.mark.parametrize(("code", "passes"), [("invalid_prompt", False), ("server_error", True)])
def test_a_failed_response_is_told_in_its_words(server: Server, code: str, passes: bool) -> None:
    fields = {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "failed"}
    server.answers(200, fields | {"error": {"code": code, "message": "It does not go on"}})
    error = server.error("responses")
    assert str(error).endswith(" answers with no chat completion: It does not go on")
    assert error.retryable == passes


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("google", {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}),
        (
            "anthropic",
            {"type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": "pause_turn"},
        ),
    ],
)
def test_an_answer_without_words_is_no_error(server: Server, provider: str, body: dict[str, Any]) -> None:
    server.answers(200, body | {"usage": {"input_tokens": 3, "output_tokens": 0}})
    assert "it holds no structured answer" in str(server.error(provider))
    assert len(server.handler.requests) > 1, "it is asked for again"


@pytest.mark.parametrize("provider", NAMES)
@pytest.mark.parametrize(
    ("status", "body", "says", "meant"),
    [
        (400, [{"error": {"message": "API key not valid", "status": "INVALID_ARGUMENT"}}], "API key not valid", 401),
        (404, "model not found", "model not found", 404),
        (403, None, "", 403),
        (402, {"detail": "no credits"}, f"no credits{PAY_HINT}", 402),
    ],
)
def test_an_error_in_any_form_keeps_its_status(
    server: Server, provider: str, status: int, body: object, says: str, meant: int
) -> None:
    server.answers(status, body)
    error = server.error(provider)
    assert error.status_code == meant
    assert says in str(error)
    assert "object has no attribute" not in str(error)


@pytest.mark.parametrize("provider", ["anthropic", "google", "ollama", "bedrock"])
def test_a_wrong_key_told_in_a_success_ends_the_run(server: Server, provider: str, tmp_path: Path) -> None:
    server.answers(200, {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}})
    name, options = server.options(provider)
    command = ["generate", PROMPT, "--mllm", name, "--no-memory", "--out", tmp_path / "out"]
    given = [f"--chat-option=base_url={options.base_url}"]
    given += ["--chat-option=api_key=sk-canary"] if options.api_key else []
    result = gems_here(*command, *given, home=tmp_path / "home")
    assert result.returncode == 3, result.stderr
    assert "invalid x-api-key" in result.stderr
    assert len(server.handler.requests) <= 2, "the planner and the decomposer ask once"


def test_what_others_ask_with_the_same_package_is_left_alone(server: Server) -> None:
    """Anthropic's package keeps one client for all models of an address."""
    server.answers(200, {"error": {"message": "model crashed"}})
    name, options = server.options("anthropic")
    from langchain_anthropic import ChatAnthropic

    assert "model crashed" in str(server.error("anthropic"))
    others: Any = {"base_url": options.base_url, "timeout": 20, "api_key": "k", "max_retries": 0}
    with pytest.raises(TypeError):
        ChatAnthropic(model=name.partition(":")[2], **others).invoke([HumanMessage("a car")])


def speak_tls(server: Server, name: str, folder: Path) -> Path:
    """Let a server speak TLS, with a certificate of this name; its file."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.http.socket, server.scheme = context.wrap_socket(server.http.socket, server_side=True), "https"
    return certificate


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
@pytest.mark.parametrize("provider", NAMES)
def test_a_certificate_is_checked_against_the_named_authority(
    server: Server, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = speak_tls(server, "IP:127.0.0.1", tmp_path)
    server.answers(200, {"error": {"message": "model crashed"}})
    variable = "AWS_CA_BUNDLE" if provider == "bedrock" else "SSL_CERT_FILE"
    error = server.error(provider)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert str(error).endswith(f"name the file of the authority that you trust in {variable}")
    assert not error.retryable
    assert server.handler.requests == []
    monkeypatch.setenv(variable, str(certificate))
    server.timeout += 1  # models of the same options are shared
    assert "model crashed" in str(server.error(provider))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
@pytest.mark.parametrize("provider", NAMES)
def test_a_certificate_of_another_name_is_told_as_one(
    server: Server, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = speak_tls(server, "DNS:models.test", tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE" if provider == "bedrock" else "SSL_CERT_FILE", str(certificate))
    error = server.error(provider)
    assert str(error).endswith("its certificate is of another name: write that name in the address")
    assert not error.retryable
    assert server.handler.requests == []


@pytest.mark.parametrize("provider", NAMES)
def test_a_wrong_scheme_is_told_with_the_right_one(server: Server, provider: str) -> None:
    server.scheme = "https"
    error = server.error(provider)
    assert str(error).endswith("no TLS is spoken there: begin its address, or that of the proxy, with http://")
    assert not error.retryable


@pytest.mark.parametrize(
    ("status", "says", "advice"),
    [
        (400, "Client sent an HTTP request to an HTTPS server.", "begin its address with https://"),
        (407, "Who are you?", "that is the proxy's answer: set HTTPS_PROXY"),
    ],
)
@pytest.mark.parametrize("provider", NAMES)
def test_what_stands_before_a_server_is_told_with_what_to_do(
    server: Server, provider: str, status: int, says: str, advice: str
) -> None:
    server.answers(status, {"error": {"message": says}})
    error = server.error(provider)
    assert advice in str(error)
    assert not error.retryable
