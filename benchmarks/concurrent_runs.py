"""Measures many runs at once on one event loop: time, heartbeat, memory, and what is drawn after a cancel.

The models wait a fixed time in place of a server: a chat model and an image generator with clients for event loops,
so that a run makes three calls in a row (decomposer, generator, verifier). Everything else is real.

    python benchmarks/concurrent_runs.py                  # 100 runs, 1,000 runs, a cancel, 8 candidates
    python benchmarks/concurrent_runs.py --runs 100       # only so many
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image

import gems
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback

_QUESTION = {"question": "Are there any cars in the image?", "kind": "object", "words": "cars", "must": True}
_REQUIREMENTS = json.dumps({"requirements": [_QUESTION]})
_HEARTBEAT = 0.02
"""Seconds between two beats."""


def answer(messages: Sequence[BaseMessage], passes: bool) -> str:
    """The answer of a decomposer or a verifier."""
    if json.loads(messages[-1].text.rpartition("\n")[2])["title"] == "Verdicts":
        row = {"id": "r1", "answer": "yes" if passes else "no", "confidence": 1.0, "reason": "a car"}
        return json.dumps({"verdicts": [row], "quality": 0.9, "flaws": ""})
    return _REQUIREMENTS


class WaitingChatModel(BaseChatModel):
    """Answers after a time, without holding a thread meanwhile."""

    seconds: float
    spread: float = 0.2
    passes: bool = True

    @property
    def _llm_type(self) -> str:
        return "waiting"

    def _result(self, messages: Sequence[BaseMessage]) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer(messages, self.passes)))])

    def _seconds(self) -> float:
        return self.seconds * random.uniform(1 - self.spread, 1 + self.spread)

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        time.sleep(self._seconds())
        return self._result(messages)

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        await asyncio.sleep(self._seconds())
        return self._result(messages)


class WaitingGenerator:
    """Draws a small image after a time, without holding a thread meanwhile."""

    name, fingerprint, edits = "waiting", "0" * 64, False

    def __init__(self, seconds: float, spread: float = 0.2) -> None:
        self.seconds, self.spread = seconds, spread

    def _image(self, request: ImageRequest) -> GeneratedImage:
        return GeneratedImage(request, Image.new("RGB", (64, 64), (request.seed % 256, 0, 0)))

    def generate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> list[Any]:
        """See ``ImageGenerator.generate``."""
        time.sleep(self.seconds)
        return [self._image(request) for request in requests]

    async def agenerate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> list[Any]:
        """See ``Asynchronous.agenerate``."""
        await asyncio.sleep(self.seconds * random.uniform(1 - self.spread, 1 + self.spread))
        return [self._image(request) for request in requests]


class Server(WaitingGenerator):
    """Draws for many at once: the images of a round take one, two, three times as long and so on."""

    draws_for_many = True

    async def agenerate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> list[Any]:
        """See ``Asynchronous.agenerate``."""
        await asyncio.sleep(self.seconds * (1 + requests[0].seed))
        return [self._image(request) for request in requests]


class SlowPipeline:
    """Draws in this process, four steps an image, one image after another."""

    name, fingerprint, edits, batch_size = "slow", "0" * 64, False, 1

    def __init__(self, seconds: float) -> None:
        self.seconds, self.drawn, self.begun = seconds, list[float](), threading.Event()

    @property
    def replicas(self) -> Any:
        """See ``Local.replicas``."""
        return argparse.Namespace(devices=("cpu",))

    def load(self) -> None:
        """See ``Local.load``."""

    def generate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> list[Any]:
        """See ``ImageGenerator.generate``."""
        images = []
        for index, request in enumerate(requests):
            for step in range(1, 5):
                self.begun.set()
                time.sleep(self.seconds / 4)
                if on_step:
                    on_step(Step(index, step, 4))
            self.drawn.append(time.perf_counter())
            images.append(GeneratedImage(request, Image.new("RGB", (64, 64), (request.seed % 256, 0, 0))))
        return images


class Heartbeat:
    """Measures by how much an event loop is late."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(_HEARTBEAT)
            self.delays.append(time.perf_counter() - start - _HEARTBEAT)

    @property
    def p99(self) -> float:
        """Milliseconds that 99 in 100 beats are not late by."""
        return 1000 * statistics.quantiles(self.delays, n=100, method="inclusive")[-1]


async def many(count: int, seconds: float, folder: str) -> None:
    """Run so many prompts at once, three calls in a row each."""
    settings = {"memory": False, "skills": False, "plan": False}
    graph = gems.build_graph(
        mllm=WaitingChatModel(seconds=seconds), generator=WaitingGenerator(seconds), images=folder, settings=settings
    )
    await graph.ainvoke({"prompt": "cars"})
    cpu, start = time.process_time(), time.perf_counter()
    async with Heartbeat() as heartbeat:
        results = await asyncio.gather(*(graph.ainvoke({"prompt": "cars"}) for _ in range(count)))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert all(result["outcome"] == "solved" for result in results)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count} ainvoke, three calls of {seconds} s: {wall:.1f} s, {1000 * cpu / count:.1f} ms of processor time a "
        f"run, heartbeat p99 {heartbeat.p99:.0f} ms, worst {1000 * max(heartbeat.delays):.0f} ms, "
        f"{threading.active_count()} threads, {memory:.0f} MB",
        flush=True,
    )


async def cancelled(folder: str) -> None:
    """Cancel a run while it draws the third of 16 candidates."""
    generator = SlowPipeline(0.4)
    settings = {"memory": False, "skills": False, "plan": False, "candidates": 16}
    graph = gems.build_graph(mllm=WaitingChatModel(seconds=0), generator=generator, images=folder, settings=settings)
    task = asyncio.create_task(graph.ainvoke({"prompt": "cars"}))
    while len(generator.drawn) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    at_cancel = len(generator.drawn)
    await asyncio.sleep(2.0)
    print(f"a cancel in mid-round of 16: {len(generator.drawn) - at_cancel} images drawn after it", flush=True)


async def verified(folder: str, seconds: float) -> None:
    """Verify 8 candidates of which none passes."""
    for concurrency in (1, 8):
        settings: dict[str, Any] = {"memory": False, "skills": False, "plan": False, "candidates": 8, "max_rounds": 1}
        graph = gems.build_graph(
            mllm=WaitingChatModel(seconds=seconds, spread=0, passes=False),
            generator=WaitingGenerator(0),
            images=folder,
            settings={**settings, "verify_concurrency": concurrency},
        )
        start, verified_at = 0.0, 0.0
        async for chunk in graph.astream({"prompt": "cars"}, stream_mode="updates"):
            start = time.perf_counter() if "generator" in chunk else start
            verified_at = time.perf_counter() if "verifier" in chunk else verified_at
        print(f"8 candidates, verifier of {seconds} s, verify_concurrency {concurrency}: {verified_at - start:.2f} s")


async def overlapping(folder: str, seconds: float) -> None:
    """Draw 4 candidates that arrive one after another, and verify each."""
    settings = {"memory": False, "skills": False, "plan": False, "candidates": 4, "max_rounds": 1, "seed": 0}
    model = WaitingChatModel(seconds=seconds, spread=0, passes=False)
    graph = gems.build_graph(mllm=model, generator=Server(seconds), images=folder, settings=settings)
    start = end = 0.0
    async for chunk in graph.astream({"prompt": "cars"}, stream_mode="updates"):
        start = time.perf_counter() if "cross_check" in chunk else start
        end = time.perf_counter() if "verifier" in chunk else end
    print(f"4 candidates, one each {seconds} s, verifier of {seconds} s: {end - start:.2f} s", flush=True)


def main() -> None:
    """Measure, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="*", default=[100, 1000], help="how many at once (100 1000)")
    parser.add_argument("--seconds", type=float, default=0.5, help="what one call takes (0.5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for count in args.runs:
            asyncio.run(many(count, args.seconds, folder))
        asyncio.run(cancelled(folder))
        asyncio.run(verified(folder, args.seconds))
        asyncio.run(overlapping(folder, args.seconds))


if __name__ == "__main__":
    main()
