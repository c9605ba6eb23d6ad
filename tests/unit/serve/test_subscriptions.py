"""Subscribers receive the events of their run from any thread and never wait forever."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from gems.graph.events import StepEvent
from gems.serve.subscriptions import EndEvent, PutOffEvent, Subscriptions, is_last

END = EndEvent(event="end", outcome="solved")


def step(n: int) -> StepEvent:
    return StepEvent(event="step", round=1, candidate=0, step=n, steps=5000)


async def collect(subscriptions: Subscriptions, publish: Any, **options: Any) -> list[Any]:
    """What a subscriber of run "a" receives while ``publish`` works in another thread."""
    received = []
    with subscriptions.subscribe("a", **options) as events:
        thread = threading.Thread(target=publish)
        thread.start()
        while not received or not is_last(received[-1]):
            received.append(await asyncio.wait_for(events.get(), 10))
        thread.join()
    return received


def test_a_subscriber_receives_its_run_and_no_other() -> None:
    subscriptions = Subscriptions()

    def publish() -> None:
        subscriptions.publish("b", END)
        subscriptions.publish("a", step(1))
        subscriptions.publish("a", END)

    assert asyncio.run(collect(subscriptions, publish)) == [step(1), END]
    subscriptions.publish("a", END)  # no subscriber is left


def test_only_the_last_event_on_request() -> None:
    subscriptions = Subscriptions()

    def publish() -> None:
        subscriptions.publish("a", step(1))
        subscriptions.publish("a", END)

    assert asyncio.run(collect(subscriptions, publish, last_only=True)) == [END]


def test_a_slow_subscriber_misses_steps_and_never_the_end() -> None:
    async def follow() -> list[Any]:
        subscriptions = Subscriptions()
        with subscriptions.subscribe("a") as events:
            for n in range(5000):
                subscriptions.publish("a", step(n))
                await asyncio.sleep(0)
            subscriptions.publish("a", END)
            await asyncio.sleep(0)
            return [events.get_nowait() for _ in range(events.qsize())]

    received = asyncio.run(follow())
    assert received[0] == step(0)
    assert received[-1] == END
    assert len(received) == 1001


def test_every_subscriber_learns_that_the_service_stops() -> None:
    async def follow() -> list[Any]:
        subscriptions = Subscriptions()
        with subscriptions.subscribe("a") as first, subscriptions.subscribe("b", last_only=True) as second:
            subscriptions.end_all()
            return [await asyncio.wait_for(events.get(), 10) for events in (first, second)]

    assert asyncio.run(follow()) == [PutOffEvent(event="put_off")] * 2


def test_a_subscriber_whose_loop_has_ended_does_not_block() -> None:
    subscriptions = Subscriptions()

    async def leave_without_goodbye() -> Any:
        subscription = subscriptions.subscribe("a")
        subscription.__enter__()
        return subscription

    subscription = asyncio.run(leave_without_goodbye())
    subscriptions.publish("a", END)
    subscription.__exit__(None, None, None)
