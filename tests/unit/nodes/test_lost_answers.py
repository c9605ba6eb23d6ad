"""Answers that a server has given, or may have given, and that nobody has: they count as far as they can be known."""

from __future__ import annotations

import asyncio
import base64
import uuid
from contextlib import suppress
from typing import Any, cast

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from servers.hanging_chat import HangingChat, hanging_chat

from gems.authority import OPERATOR
from gems.faces import run_here
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsState, Prices, TokenPrices, Usage
from gems.models.calling import call_model
from gems.models.registry import init_mllm
from gems.nodes.meter import Meter, metered
from gems.options import ChatOptions
from gems.stopping import WaitEnded, cancelled_if

QUESTION = "what is the requirement? " * 120
ONE_ANSWER = len(QUESTION) // 3 + 1000
PRICES = Prices(prompt=1, completion=1, roles={"planner": TokenPrices(completion=10)})
MODELS = ["openai:m", "anthropic:m"]


def _new_run() -> GemsState:
    return cast(GemsState, {"run_id": uuid.uuid4().hex, "usage": Usage()})


def _setup(chat: HangingChat, name: str, **options: Any) -> tuple[BaseChatModel, GemsContext]:
    address = chat.address if name == "openai:m" else chat.address.removesuffix("/v1")
    chosen = ChatOptions(base_url=address, api_key="k", **options)
    context = GemsContext(budget=Budget(prices=PRICES), chat_options=chosen)
    return init_mllm(name, chosen, authority=OPERATOR), context


async def _ask(model: BaseChatModel, content: Any = QUESTION) -> None:
    await call_model(model, [HumanMessage(content)], model, lambda error: False)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("status", "lost_per_request"), [(402, 0), (400, 0), (429, 0), (500, 1), (504, 1), (0, 1), (None, 1)]
)
def test_what_may_have_been_answered_counts_and_refusals_do_not(
    name: str, status: int | None, lost_per_request: int
) -> None:
    with hanging_chat(lambda n: status) as chat:
        model, context = _setup(chat, name, timeout=0.5 if status is None else 20)
        with suppress(Exception), metered(_new_run(), "planner", context) as meter:
            run_here(_ask(model))
        lost = chat.asked * lost_per_request
    assert chat.asked
    assert meter.usage.tokens == 0
    assert ONE_ANSWER * lost <= meter.usage.lost_tokens <= (ONE_ANSWER + 9) * lost
    # The dearer tokens of the role's own model count as such.
    assert meter.usage.lost_cost == pytest.approx((meter.usage.lost_tokens + 9 * 1000 * lost) / 1e6)


def test_answers_that_were_lost_before_one_came_count_beside_it() -> None:
    with hanging_chat(lambda n: {1: 500, 2: 429}.get(n, 200)) as chat:
        model, context = _setup(chat, "openai:m")
        with metered(_new_run(), "planner", context) as meter:
            run_here(_ask(model))
    assert meter.usage.tokens == 1000
    assert ONE_ANSWER <= meter.usage.lost_tokens <= ONE_ANSWER + 9


@pytest.mark.parametrize("is_awaited", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_call_that_is_cancelled_counts(name: str, is_awaited: bool) -> None:
    with hanging_chat() as chat:
        model, context = _setup(chat, name, timeout=30)
        meter: Meter

        async def ask_and_cancel() -> None:
            nonlocal meter
            with metered(_new_run(), "planner", context) as meter:
                task = asyncio.create_task(_ask(model))
                while not chat.asked:
                    await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        if is_awaited:
            asyncio.run(ask_and_cancel())
        else:
            with (
                pytest.raises(WaitEnded),
                cancelled_if(lambda: chat.asked > 0),
                metered(_new_run(), "planner", context) as meter,
            ):
                run_here(_ask(model))
    assert meter.usage.chat_calls == 1
    assert ONE_ANSWER <= meter.usage.lost_tokens <= ONE_ANSWER + 9


def test_the_run_s_longest_answer_and_its_limit_say_how_long_a_lost_one_may_be() -> None:
    def lost_tokens(longest: int | None) -> int:
        with hanging_chat(lambda n: 200 if n == 1 else 500) as chat:
            chat.answer["usage"] = {"prompt_tokens": 1, "completion_tokens": 5000, "total_tokens": 5001}
            model, context = _setup(chat, "openai:m", **({"max_tokens": longest} if longest else {}))
            with suppress(Exception), metered(_new_run(), "planner", context) as meter:
                run_here(_ask(model))
                run_here(_ask(model, "x"))
            return meter.usage.lost_tokens // (chat.asked - 1)

    assert (lost_tokens(None), lost_tokens(64)) == (5001, 65)


def test_images_that_a_model_was_to_read_count_by_their_size() -> None:
    image = {"type": "image", "base64": base64.b64encode(b"x" * 900_000).decode(), "mime_type": "image/png"}
    with hanging_chat(lambda n: 0) as chat:
        model, context = _setup(chat, "openai:m", image_size=750)
        with suppress(Exception), metered(_new_run(), "verifier", context) as meter:
            run_here(_ask(model, [image, {"type": "text", "text": "?"}]))
    assert meter.usage.lost_tokens == chat.asked * (750 + 1 + 1000)
