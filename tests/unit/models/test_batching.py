"""One generator for many callers: batches, fairness between tenants, and separate faults."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from servers.waiting import wait_until

from gems.errors import BackendError, InputError
from gems.models.batching import BatchingGenerator
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback


class Recorder:
    """An image generator that records its batches and starts each one when its gate is open."""

    name, fingerprint, edits, guide = "recorder", "f", False, ""

    def __init__(self) -> None:
        self.started_count = 0
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def objection(self, prompt: str) -> str:
        return "cannot" if "bad" in prompt else ""

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        self.started_count += len(requests)
        self.gate.wait()
        self.batches.append([r.prompt for r in requests])
        for step in range(1, 4):
            for index in range(len(requests)):
                if on_step is not None:
                    on_step(Step(index, step, 3))
        if any("bad" in r.prompt for r in requests):
            raise InputError("a bad prompt")
        return [
            BackendError("refused") if "refuse" in r.prompt else GeneratedImage(r, Image.new("RGB", (r.seed + 1, 1)))
            for r in requests
        ]


def wait_for(inner: Recorder, batched: BatchingGenerator, requests: int) -> None:
    """Wait until this many requests have arrived, at the gate or in the queue."""

    def arrived_count() -> int:
        with batched._changed:
            return inner.started_count + sum(map(len, batched._queues.values()))

    wait_until(
        lambda: inner.started_count and arrived_count() == requests,
        lambda: f"{arrived_count()} of {requests} requests arrived",
    )


def test_waiting_requests_share_a_batch_and_each_caller_gets_its_own() -> None:
    inner = Recorder()
    inner.gate.clear()
    with BatchingGenerator(inner, max_batch_size=8) as batched, ThreadPoolExecutor(32) as pool:
        answers = pool.map(lambda i: batched.generate([ImageRequest(f"p{i}", i)]), range(32))
        wait_for(inner, batched, 32)
        inner.gate.set()
        results = list(answers)
    for i, [result] in enumerate(results):
        assert isinstance(result, GeneratedImage)
        assert (result.request.prompt, result.image.width) == (f"p{i}", i + 1)
    assert sum(map(len, inner.batches)) == 32
    assert max(map(len, inner.batches)) == 8
    assert len(inner.batches) <= 5


def test_a_large_call_is_split_into_batches_in_order() -> None:
    inner = Recorder()
    with BatchingGenerator(inner, max_batch_size=3) as batched:
        results = batched.generate([ImageRequest("p", seed) for seed in range(7)])
    assert [r.image.width for r in results if isinstance(r, GeneratedImage)] == [1, 2, 3, 4, 5, 6, 7]
    assert [len(batch) for batch in inner.batches] == [3, 3, 1]


def test_a_bad_prompt_fails_alone() -> None:
    inner = Recorder()
    inner.gate.clear()
    with BatchingGenerator(inner, max_batch_size=8) as batched, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(batched.generate, [ImageRequest("first", 1)])]
        wait_for(inner, batched, 1)  # the first is being drawn; the others wait and form one batch
        futures += [pool.submit(batched.generate, [ImageRequest(p, 1)]) for p in ("good", "bad", "refuse")]
        wait_for(inner, batched, 4)
        inner.gate.set()
        assert isinstance(futures[1].result()[0], GeneratedImage)
        assert isinstance(futures[3].result()[0], BackendError)
        with pytest.raises(InputError, match="bad prompt"):
            futures[2].result()
    assert len(inner.batches[1]) == 3


def test_tenants_are_served_in_turn() -> None:
    """A hundred images of one tenant do not delay three of another."""
    inner = Recorder()
    inner.gate.clear()
    with BatchingGenerator(inner, max_batch_size=2) as batched, ThreadPoolExecutor(2) as pool:
        large_call = pool.submit(batched.generate, [ImageRequest("many", i) for i in range(100)], tenant="a")
        wait_for(inner, batched, 100)
        small_call = pool.submit(batched.generate, [ImageRequest("few", i) for i in range(3)], tenant="b")
        wait_for(inner, batched, 103)
        inner.gate.set()
        assert len(small_call.result()) == 3
        assert len(large_call.result()) == 100
    order = [prompt for batch in inner.batches for prompt in batch]
    last = len(order) - 1 - order[::-1].index("few")
    assert order.count("few") == 3
    assert order[:last].count("many") <= 8


def test_a_caller_that_stops_does_not_stop_the_others() -> None:
    inner, heard = Recorder(), list[int]()

    def stop(step: Step) -> None:
        raise KeyboardInterrupt("enough")

    inner.gate.clear()
    with BatchingGenerator(inner, max_batch_size=8) as batched, ThreadPoolExecutor(3) as pool:
        pool.submit(batched.generate, [ImageRequest("first", 1)])
        wait_for(inner, batched, 1)
        stopped_call = pool.submit(batched.generate, [ImageRequest("stopped", 1)], on_step=stop)
        other = pool.submit(batched.generate, [ImageRequest("other", 2)], on_step=lambda s: heard.append(s.step))
        wait_for(inner, batched, 3)
        inner.gate.set()
        with pytest.raises(KeyboardInterrupt):
            stopped_call.result()
        assert isinstance(other.result()[0], GeneratedImage)
    assert heard == [1, 2, 3]


def test_a_closed_generator_accepts_nothing() -> None:
    batched = BatchingGenerator(Recorder(), max_batch_size=2)
    with batched:
        assert batched.objection("bad") == "cannot"
    with pytest.raises(BackendError, match="stopped"):
        batched.generate([ImageRequest("p", 1)])
