"""Calls that a stop ends before their first request are counted nowhere: no server was asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest
from langchain_core.messages import HumanMessage
from pydantic import SecretStr

from gems.errors import BackendError
from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Usage
from gems.models.calling import CALL
from gems.models.servers.providers import init_provider_chat
from gems.models.servers.sent_requests import begin_count, begin_request, may_send_again, watch
from gems.nodes.meter import metered, settle_run
from gems.options import ChatOptions
from gems.stopping import WaitEnded, stopping
from tests.servers.threaded import serving


class _Chat(BaseHTTPRequestHandler):
    asked: list[Any]

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        message = {"role": "assistant", "content": "yes"}
        body = json.dumps({"id": "x", "model": "m", "choices": [{"index": 0, "message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    _Chat.asked = []
    with serving(_Chat) as running:
        yield running


def _state(run_id: str) -> GemsState:
    return cast(GemsState, {"usage": Usage(), "run_id": run_id})


def test_a_call_that_a_stop_ends_before_its_request_is_not_counted(server: ThreadingHTTPServer) -> None:
    options = ChatOptions(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key=SecretStr("none"))
    model = init_provider_chat("openai:m", options, "")
    with metered(_state("answered"), "planner", GemsContext()) as meter:
        model.invoke([HumanMessage("a question")])
    assert (meter.usage.chat_calls, len(_Chat.asked)) == (1, 1)
    with (
        pytest.raises(WaitEnded),
        stopping(lambda: True),
        metered(_state("stopped"), "planner", GemsContext()),
    ):
        model.invoke([HumanMessage("another question")])
    assert len(_Chat.asked) == 1
    assert settle_run("stopped").chat_calls == 0


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_call_that_is_given_up_counts_what_it_has_sent(is_sent: bool) -> None:
    token = CALL.set(object())
    try:
        with metered(_state("given up"), "planner", GemsContext()) as meter:
            meter.on_chat_model_start({}, [[]])
            begin_count()
            assert not is_sent or begin_request()
            if is_sent:
                watch("http11.send_request_headers.started", {"request": SimpleNamespace(method=b"POST")})
            assert may_send_again()  # asked before a wait that no other request follows
        assert meter.usage.chat_calls == int(is_sent)
        sends: list[bool] = []
        thread = threading.Thread(target=lambda: sends.append(meter.may_send(0)))
        thread.start()
        thread.join()
        assert sends == [False]  # nothing is sent that nobody counts
    finally:
        CALL.reset(token)


def test_a_client_that_says_nothing_is_counted_when_it_is_given_up() -> None:
    with metered(_state("silent"), "planner", GemsContext()) as meter:
        meter.on_chat_model_start({}, [[]])
    assert meter.usage.chat_calls == 1


_KEYS = ("ANTHROPIC_API_KEY", "MISTRAL_API_KEY", "OPENROUTER_API_KEY", "GOOGLE_API_KEY")


@pytest.mark.parametrize(
    "name", ["openai:m", "anthropic:m", "mistralai:m", "openrouter:a/m", "google_genai:m", "ollama:m"]
)
@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "no-such-host.invalid"])
def test_a_call_that_reaches_no_server_is_not_counted(name: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in _KEYS:
        monkeypatch.setenv(key, "none")
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        address = f"http://{host.format(port=closed.getsockname()[1])}/v1"
        model = init_provider_chat(name, ChatOptions(base_url=address, api_key=SecretStr("none"), timeout=5), "")
        with metered(_state("unreachable"), "planner", GemsContext(max_chat_calls=1)) as meter:
            for _ in range(2):  # the budget still has room
                with pytest.raises(Exception, match=r"(?i)connect|name|not known|refused"):
                    model.invoke([HumanMessage("a question")])
    assert meter.usage.chat_calls == 0


class _HangsUp(_Chat):
    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.close_connection = True


def test_a_call_whose_answer_is_lost_is_counted_with_each_of_its_tries() -> None:
    _HangsUp.asked = []
    with serving(_HangsUp) as server:
        options = ChatOptions(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key=SecretStr("none"))
        model = init_provider_chat("openai:m", options, "")
        with metered(_state("lost"), "planner", GemsContext()) as meter, pytest.raises(BackendError):
            model.invoke([HumanMessage("a question")])
    assert meter.usage.chat_calls == len(_HangsUp.asked) > 1
