"""Further tries of chat calls: each is one request that is counted, and none is made in vain."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.errors import GraphDrained

from gems.faces import run_here
from gems.models.capabilities import capabilities_of
from gems.models.deadlines import DEADLINE, IN_ONE_TRY
from gems.models.system_messages import invoke
from gems.models.tries import TRIES
from gems.stopping import stopping


class ProviderError(Exception):
    """A provider's error that carries its answer."""

    def __init__(self, status: int, words: str = "", **headers: str) -> None:
        super().__init__(words)
        self.status_code = status
        self.body = {"message": words}
        self.response = httpx.Response(status, headers={n.replace("_", "-"): v for n, v in headers.items()})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits that no server asks for."""
    monkeypatch.setattr("gems.models.tries._WAIT", lambda _: 0.0)


def ask(*faults: Exception, metadata: dict[str, Any] | None = None) -> int:
    """How many requests a call makes to a model that answers after these faults."""
    model = FakeListChatModel(responses=["fine"], metadata=metadata or {TRIES: 3, DEADLINE: 5.0})
    remaining, requests = list(faults), 0

    def request(_: Any) -> str:
        nonlocal requests
        requests += 1
        if remaining:
            raise remaining.pop(0)
        return "fine"

    with contextlib.suppress(ProviderError):
        run_here(invoke(RunnableLambda(request), [HumanMessage("?")], capabilities_of(model), "text", model))
    return requests


@pytest.mark.parametrize("status", [408, 429, 500, 503, 529])
def test_a_fault_that_passes_is_tried_again_up_to_three_times(status: int) -> None:
    assert ask(ProviderError(status, "worker died")) == 2
    assert ask(*(ProviderError(status, "worker died") for _ in range(5))) == 3


@pytest.mark.parametrize(
    "error",
    [
        ProviderError(400, "bad"),
        ProviderError(401, "no key"),
        ProviderError(429, "insufficient_quota"),
        ProviderError(500, "response_format is not supported"),
        ProviderError(503, "busy", retry_after="6"),
    ],
)
def test_what_another_try_would_not_mend_is_not_tried_again(error: ProviderError) -> None:
    assert ask(error) == 1


def test_a_server_is_given_the_time_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("gems.models.tries.pause", waits.append)
    assert ask(ProviderError(529, "overloaded", retry_after="2")) == 2
    assert waits == [2.0]


def test_a_call_in_one_try_and_a_client_of_its_own_tries_are_left_alone() -> None:
    token = IN_ONE_TRY.set(True)
    assert ask(ProviderError(429, "slow down")) == 1
    IN_ONE_TRY.reset(token)
    assert ask(ProviderError(429, "slow down"), metadata={DEADLINE: 5.0}) == 1


def test_a_stop_ends_the_wait_for_another_try() -> None:
    with stopping(lambda: True), pytest.raises(GraphDrained):
        ask(ProviderError(503, "busy"))
