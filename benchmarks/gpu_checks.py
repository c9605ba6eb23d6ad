"""The checks of ``gpu_check.py``: each measures one promise on one model, and fails if it is not kept."""

from __future__ import annotations

import hashlib
import io
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from PIL import Image
from random_pipelines import RandomModel

from gems.bulk.batch import run_batch
from gems.bulk.jobs import Job
from gems.bulk.results import BatchRow
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.diffusers.replicas import Replica
from gems.models.generators import GeneratedImage, ImageRequest

__all__ = ["CHECKS", "Check", "Run", "SkippedError"]

PROMPTS: Final = (
    "two dogs",
    "a red car",
    "three cats",
    "a green bird",
    "a dog to the left of a cat",
    "four candles",
    "a blue car",
    "two birds",
)
OOM_BATCH: Final = 4
"""Images of the batch that memory is made too small for."""
STOP_ALLOWANCE: Final = 0.5
"""Seconds that writing a checkpoint and returning may take after a stop, beside the step in progress."""


@dataclass(frozen=True)
class Run:
    """How much the checks measure.

    Attributes:
        pairs: Measurements of the bare pipeline and of the graph, in turns.
        rounds: Images of each of them.
        batches: Batch sizes.
        images: The fewest images that are drawn at each batch size.
        prompts: Prompts of a bulk run.
        cancels: Runs that are stopped.
        few_steps: Denoising steps where their number does not matter.
        stop_steps: Denoising steps of a run that is stopped: so many that it is seen whether it drew them all.
        compiles: Whether models are compiled.
    """

    pairs: int
    rounds: int
    batches: tuple[int, ...]
    images: int
    prompts: int
    cancels: int
    few_steps: int
    stop_steps: int
    compiles: bool


class SkippedError(Exception):
    """The check does not apply here; the message says why."""


@dataclass(frozen=True)
class Check:
    """One check: its name, and a function that fills a dictionary with what it measures.

    The function raises ``AssertionError`` if a promise is not kept, and ``SkippedError`` if it cannot tell here.
    """

    name: str
    run: Callable[[RandomModel, Run, dict[str, Any]], None]


# --- the graph against the bare pipeline ------------------------------------------------------------------------------


def check_overhead(model: RandomModel, run: Run, figures: dict[str, Any]) -> None:
    """Seconds per image through the whole graph and from the pipeline; the images must be the same, bit by bit."""
    generator = model.generator()
    with _graph(generator, run.rounds) as draw_through_graph:
        attempts = draw_through_graph()  # warms up, and shows the prompts and seeds that the bare pipeline is given
        requests = [request for request, _ in attempts]
        bare_images = _bare(model, generator, requests)
        figures["equal_to_bare"] = f"{_equal(bare_images, [image for _, image in attempts])} of {len(attempts)}"
        again, pairs = list[Image.Image](), []
        for _ in range(run.pairs):
            bare_cost = _cost(lambda: again.extend(_bare(model, generator, requests)))
            pairs.append((bare_cost, _cost(draw_through_graph)))
            ratios = [graph.seconds / bare.seconds for bare, graph in pairs]
            figures |= {
                "bare_seconds_per_image": _spread([bare.seconds / len(requests) for bare, _ in pairs]),
                "graph_seconds_per_image": _spread([graph.seconds / len(requests) for _, graph in pairs]),
                "graph_to_bare": _spread(ratios),
                "bare_peak_gb": max((bare.peak_gb for bare, _ in pairs if bare.peak_gb), default=None),
                "graph_peak_gb": max((graph.peak_gb for _, graph in pairs if graph.peak_gb), default=None),
            }
    figures["bare_equal_to_itself"] = f"{_equal(bare_images * run.pairs, again)} of {len(again)}"
    assert _equal(bare_images, [image for _, image in attempts]) == len(attempts), "the graph draws other images"
    assert len({_digest(image) for image in bare_images}) == len(bare_images), "different seeds gave equal images"


@contextmanager
def _graph(
    generator: DiffusersGenerator, rounds: int
) -> Iterator[Callable[[], list[tuple[ImageRequest, Image.Image]]]]:
    """Runs of that many rounds, with checkpoints and images on disk; each gives its requests and images."""
    context = GemsContext(memory=False, skills=False, seed=0, max_rounds=rounds, patience=rounds)
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.sqlite")) as saver,
    ):
        store = ImageStore(Path(folder) / "images")
        graph = build_graph(checkpointer=saver, mllm="pocket", generator=generator, images=store)
        threads = iter(range(10**6))

        def draw() -> list[tuple[ImageRequest, Image.Image]]:
            thread: Any = {"configurable": {"thread_id": str(next(threads))}}
            out = graph.invoke({"prompt": PROMPTS[0]}, thread, context=context, durability="sync")
            assert out["attempts"], f"the run drew nothing: {out['errors']}"
            return [
                (ImageRequest(attempt.prompt, attempt.seed), Image.open(io.BytesIO(store.read(attempt.image))))
                for attempt in out["attempts"]
            ]

        yield draw


def _bare(model: RandomModel, generator: DiffusersGenerator, requests: Sequence[ImageRequest]) -> list[Image.Image]:
    """The images of direct calls of the pipeline, with the generator's arguments."""
    images = []
    for request in requests:
        noise = [torch.Generator("cpu").manual_seed(request.seed)]
        with torch.no_grad():
            images += model.pipeline(prompt=[request.prompt], generator=noise, **generator.settings).images
    return images


# --- batches ----------------------------------------------------------------------------------------------------------


def check_batches(model: RandomModel, run: Run, figures: dict[str, Any]) -> None:
    """Images per second and peak memory at several batch sizes, with another prompt for each image."""
    figures["weights_gb"] = _allocated_gb()
    alone: list[Image.Image] = []
    for size in run.batches:
        requests = _requests(max(size, run.images))
        model.generator(batch_size=size, steps=1).generate(requests[:size])  # warms up
        generator = model.generator(batch_size=size)
        costs, images = [], list[Image.Image]()
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            costs.append(_cost(lambda: images.extend(_images(generator.generate(batch)))))  # noqa: B023
        alone = alone or images  # the first size is one
        figures[f"batch_{size}"] = {
            "images_per_second": _spread([size / cost.seconds for cost in costs]),
            "peak_gb": costs[-1].peak_gb,
            "equal_to_alone": f"{_equal(images, alone)} of {min(len(images), len(alone))}",
            "largest_difference": _difference(images, alone),
        }
        assert len({_digest(image) for image in images}) == len(images), "different prompts gave equal images"


# --- memory -----------------------------------------------------------------------------------------------------------


def check_memory_runs_out(model: RandomModel, run: Run, figures: dict[str, Any]) -> None:
    """A batch that does not fit is halved: all images are drawn, and they are those of a batch of that size."""
    requests = _requests(OOM_BATCH)
    generator = model.generator(batch_size=OOM_BATCH, steps=run.few_steps)
    half = model.generator(batch_size=OOM_BATCH // 2, steps=run.few_steps)
    with generator.replicas.borrow() as replica:
        pass
    _free(replica)
    expected, enough = _peak(lambda: _images(half.generate(requests)))
    _free(replica)
    whole, need = _peak(lambda: _images(generator.generate(requests)))
    _free(replica)
    try:
        with _too_little_memory(model, enough, need, figures):
            started = time.perf_counter()
            results = generator.generate(requests)
            figures["seconds"] = round(time.perf_counter() - started, 3)
        figures["halved_to"] = replica.limit
    finally:
        limit, replica.limit = replica.limit, None
        _free(replica)
    figures["notes"] = [result.note for result in results if isinstance(result, GeneratedImage) and result.note]
    assert limit is not None, "memory sufficed, so nothing was halved"
    images = _images(results)
    if limit != OOM_BATCH // 2:
        expected = _images(model.generator(batch_size=limit, steps=run.few_steps).generate(requests))
    figures["equal_to_smaller_batch"] = f"{_equal(images, expected)} of {OOM_BATCH}"
    figures["equal_to_whole_batch"] = f"{_equal(images, whole)} of {OOM_BATCH}"
    figures["largest_difference_to_whole_batch"] = _difference(images, whole)
    assert _equal(images, expected) == OOM_BATCH, f"the images are not those of batches of {limit}"


def _peak(action: Callable[[], list[Image.Image]]) -> tuple[list[Image.Image], int]:
    """What an action returns, and the most bytes that it allocated on the GPU; 0 without one."""
    if not torch.cuda.is_available():
        return action(), 0
    torch.cuda.reset_peak_memory_stats()
    images = action()
    return images, torch.cuda.max_memory_allocated()


def _free(replica: Replica) -> None:
    """Give back the device's memory that torch keeps for later."""
    if torch.cuda.is_available():
        replica.free()


@contextmanager
def _too_little_memory(model: RandomModel, enough: int, need: int, figures: dict[str, Any]) -> Iterator[None]:
    """Let the device have less memory than a whole batch needs. On a CPU, the decoder refuses such a batch."""
    if not need:
        figures["forced_by"] = "the decoder, which raises torch.OutOfMemoryError for more than half of the batch"
        with _small_decoder(model.pipeline.vae):
            yield
        return
    limit = (enough + need) // 2  # torch takes smaller workspaces when memory is short, so less than the peak may do
    total = torch.cuda.get_device_properties(0).total_memory
    figures["forced_by"] = f"a limit of {limit / 1e9:.1f} GB for this process"
    figures |= {"half_batch_gb": _gb(enough), "whole_batch_gb": _gb(need)}
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def _small_decoder(vae: Any) -> Iterator[None]:
    decode = vae.decode

    def decode_half(latents: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if len(latents) > OOM_BATCH // 2:
            raise torch.OutOfMemoryError("out of memory: forced by the check")
        return decode(latents, *arguments, **options)

    with patch.object(vae, "decode", decode_half):
        yield


# --- several prompts in flight ----------------------------------------------------------------------------------------


def check_in_flight(model: RandomModel, run: Run, figures: dict[str, Any]) -> None:
    """Prompts per second of bulk runs: one prompt at a time, many in flight, and many in batches across prompts."""
    batch = min(4, run.prompts)
    ways = {"one_at_a_time": (1, 1), "in_flight": (run.prompts, 1)}
    ways[f"in_flight_batches_of_{batch}"] = (run.prompts, batch)
    hashes: dict[str, dict[int, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _bulk(model, run, Path(folder) / "out", 1, 1, 1)  # warms up
    for way, (concurrency, batch_size) in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, hashes[way] = _bulk(model, run, Path(folder) / "out", concurrency, batch_size, run.prompts)
        equal = sum(hashes[way].get(key) == value for key, value in hashes["one_at_a_time"].items())
        figures[way] = {
            "prompts_per_second": round(run.prompts / seconds, 3),
            "equal_to_one_at_a_time": f"{equal} of {run.prompts}",
        }
    base_rate, *rates = (figures[way]["prompts_per_second"] for way in ways)
    figures["speedups"] = [round(rate / base_rate, 3) for rate in rates]
    assert all(len(images) == run.prompts for images in hashes.values()), "a prompt has no image"
    assert hashes["in_flight"] == hashes["one_at_a_time"], "images depend on how many prompts are in flight"


def _bulk(
    model: RandomModel, run: Run, out: Path, concurrency: int, batch_size: int, prompts: int
) -> tuple[float, dict[int, str]]:
    """Seconds of a bulk run, and the hash of each prompt's image."""
    options = model.options.model_copy(update={"batch_size": batch_size, "steps": run.few_steps})
    name = f"diffusers:{model.folder}"
    context = GemsContext(memory=False, skills=False, max_rounds=1, generator=name, generator_options=options)
    jobs = [Job(i, PROMPTS[i % len(PROMPTS)], seed=i) for i in range(prompts)]
    rows: list[BatchRow] = []
    started = time.perf_counter()
    run_batch(jobs, out, context.as_operator(), concurrency=concurrency, on_start=lambda _: None, on_done=rows.append)
    seconds = time.perf_counter() - started
    errors = [row["error"] for row in rows if row.get("error")]
    assert not errors, errors[0]
    return seconds, {row["index"]: attempt["sha256"] for row in rows for attempt in row["attempts"][:1]}


# --- stopping ---------------------------------------------------------------------------------------------------------


def check_cancel(model: RandomModel, run: Run, figures: dict[str, Any]) -> None:
    """How long a run goes on after it is asked to stop within a step, in seconds and in steps."""
    generator, requests = model.generator(steps=run.stop_steps), _requests(1)
    model.generator(steps=1).generate(requests)  # warms up
    step_seconds = _cost(lambda: generator.generate(requests)).seconds / run.stop_steps
    latencies, attempts = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for k in range(run.cancels):
            seconds, images = _cancelled(generator, Path(folder, str(k)), step_seconds / 2)
            latencies.append(seconds)
            attempts += images
            figures |= {
                "step_seconds": round(step_seconds, 4),
                "seconds_to_stop": _spread(latencies),
                "steps_to_stop": _spread([latency / step_seconds for latency in latencies]),
                "images_finished": attempts,
            }
    assert not attempts, f"{attempts} of {run.cancels} runs drew their image to the end"
    most = 2 * step_seconds + STOP_ALLOWANCE
    assert max(latencies) <= most, f"a stop took {max(latencies):.2f} s, more than {most:.2f} s"


def _cancelled(generator: DiffusersGenerator, folder: Path, delay: float) -> tuple[float, int]:
    """Ask a run to stop that long after its first step.

    Returns:
        The seconds from then until the device is idle, and how many images the run has.
    """
    control, times = RunControl(), list[float]()

    def ask() -> None:
        times.append(time.perf_counter())
        control.request_drain("stopped by the check")

    folder.mkdir()
    with SqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver:
        images = ImageStore(folder / "images")
        graph = build_graph(checkpointer=saver, mllm="pocket", generator=generator, images=images)
        thread: Any = {"configurable": {"thread_id": "stopped"}}
        context = GemsContext(memory=False, skills=False, seed=0, max_rounds=1)
        timer = threading.Timer(delay, ask)
        with suppress(GraphDrained):
            options: Any = {"stream_mode": "custom", "durability": "sync", "control": control}
            events = graph.stream({"prompt": PROMPTS[0]}, thread, context=context, **options)
            for event in events:
                if event["event"] == "step" and event["step"] == 1:
                    timer.start()
        _wait_for_device()
        ended_at = time.perf_counter()
        timer.join()
        attempts = graph.get_state(thread).values.get("attempts", ())
    return max(0.0, ended_at - times[0]), len(attempts)


# --- compiling --------------------------------------------------------------------------------------------------------


def check_compile(model: RandomModel, run: Run, figures: dict[str, Any]) -> None:
    """The option ``compile``: the first image, which compiles, and those after it."""
    if not run.compiles:
        raise SkippedError("compiling for a CPU takes a minute and says nothing about a GPU")
    requests, plain = _requests(1), model.generator()
    expected = _images(plain.generate(requests))
    before = [_cost(lambda: plain.generate(requests)).seconds for _ in range(3)]
    figures["seconds_per_image_before"] = _spread(before)
    try:
        generator = model.generator(compile=True)
        images: list[Image.Image] = []
        figures["seconds_of_first_image"] = round(
            _cost(lambda: images.extend(_images(generator.generate(requests)))).seconds, 2
        )
        after = [_cost(lambda: generator.generate(requests)).seconds for _ in range(3)]
    finally:
        for module in model.pipeline.transformer.modules():
            module._compiled_call_impl = None
    figures["seconds_per_image_after"] = _spread(after)
    figures["speedup"] = round(statistics.median(before) / statistics.median(after), 3)
    figures["largest_difference"] = _difference(images, expected)


# --- what checks share ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
    seconds: float
    peak_gb: float | None


def _cost(action: Callable[[], object]) -> _Cost:
    """The time until the device is idle again, and the peak of its memory."""
    _wait_for_device()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    action()
    _wait_for_device()
    seconds = time.perf_counter() - started
    return _Cost(seconds, _gb(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _allocated_gb() -> float | None:
    return _gb(torch.cuda.memory_allocated()) if torch.cuda.is_available() else None


def _gb(count: int) -> float:
    return round(count / 1e9, 2)


def _requests(count: int) -> list[ImageRequest]:
    return [ImageRequest(PROMPTS[i % len(PROMPTS)], seed=100 + i) for i in range(count)]


def _images(results: Sequence[Any]) -> list[Image.Image]:
    """The images of a generator's results.

    Raises:
        BackendError: One of them is an error.
    """
    for result in results:
        if not isinstance(result, GeneratedImage):
            raise result
    return [result.image for result in results]


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def _equal(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> int:
    """How many images have the same pixels as the one at their place."""
    return sum(_digest(image) == _digest(other) for image, other in zip(images, references, strict=False))


def _difference(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> int:
    """The largest difference of a pixel, of 255."""
    pairs = zip(images, references, strict=False)
    return max(int(abs(np.asarray(image, np.int16) - np.asarray(other, np.int16)).max()) for image, other in pairs)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


CHECKS: Final = (
    Check("overhead", check_overhead),
    Check("batches", check_batches),
    Check("memory-runs-out", check_memory_runs_out),
    Check("cancel", check_cancel),
    Check("in-flight", check_in_flight),
    Check("compile", check_compile),
)
"""In the order in which they run."""
