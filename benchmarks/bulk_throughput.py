"""What a bulk run gets out of a machine: against one prompt at a time, the bare generator, and a process a prompt.

    python benchmarks/bulk_throughput.py --prompts 192 --ray
    python benchmarks/bulk_throughput.py --preset z-image-turbo --batch-size 8 --prompts 96

One image a prompt, the pocket chat model. The generator is the pocket one or, with ``--preset``, a ``ZImagePipeline``
of random weights: its images are noise, its work is that of a trained model of the same size. In one run, one after
another: the bare generator on as many images; one prompt at a time; many in flight; the bare generator again; and, with
``--ray``, the same on a Ray cluster of this machine. Rates leave the first results out, for as many as are in flight,
so that they tell of neither loading nor filling. Printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from diffusers_overhead import PRESETS, save_pipeline
from langchain_core.outputs import ChatResult

from gems.bulk.batch import run_batch
from gems.bulk.jobs import Job
from gems.bulk.results import BatchRow
from gems.errors import BackendError
from gems.evals.prompts import fresh_prompts
from gems.graph.context import GemsContext
from gems.models.devices import pick_devices, pick_dtype
from gems.models.generators import ImageRequest
from gems.models.local_weights import without_bars
from gems.models.pocket.chat import PocketChatModel
from gems.models.registry import init_image_generator
from gems.options import GeneratorOptions
from gems.seeds import seed_of_batch_prompt

PROCESSES: Final = 6
"""How many processes are measured for the memory of one a prompt."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--alone", type=int, default=64, help="prompts of the run with one at a time")
    parser.add_argument("--preset", choices=PRESETS, help="a diffusers pipeline of random weights; empty: pocket")
    parser.add_argument("--batch-size", type=int, default=1, help="of the preset")
    parser.add_argument("--steps", type=int, default=9, help="of the preset")
    parser.add_argument("--size", type=int, help="pixels on a side; empty: the preset's")
    parser.add_argument(
        "--chat-seconds", type=float, default=0.0, help="what each chat call lasts besides, as a server's does"
    )
    parser.add_argument("--ray", action="store_true", help="also on Ray")
    parser.add_argument("--processes", action="store_true", help="also the memory of a process a prompt")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, without_bars(), _slow_chat(given.chat_seconds):
        folder = Path(name)
        context = _context(given, folder)
        jobs = [Job(i, p.prompt, seed_of_batch_prompt(1, i)) for i, p in enumerate(fresh_prompts(given.prompts, 5))]
        bare = [_bare(context, jobs)]
        alone, _ = _bulk(folder / "alone", jobs[: given.alone], context, 1)
        many, memory = _bulk(folder / "many", jobs, context, given.in_flight)
        bare.append(_bare(context, jobs))
        mean = sum(bare) / 2
        told: dict[str, Any] = {
            "generator": given.preset or "pocket",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores",
            "prompts": given.prompts,
            "in_flight": given.in_flight,
            "chat_seconds": given.chat_seconds,
            "bare_per_second": [round(rate, 3) for rate in bare],
            "one_at_a_time_per_second": round(alone, 3),
            "in_flight_per_second": round(many, 3),
            "against_one_at_a_time": round(many / alone, 3),
            "against_bare": round(many / mean, 3),
            "memory_mib": memory,
        }
        if given.processes:
            each = _of_processes(folder, jobs[:PROCESSES])
            told["process_mib"] = each
            told["memory_of_a_process_a_prompt"] = round(each * given.in_flight / memory, 1)
        if given.ray:
            on_ray, _ = _bulk(folder / "ray", jobs, context, given.in_flight, ray=True)
            told |= {"ray_per_second": round(on_ray, 3), "ray_against_local": round(on_ray / many, 3)}
        print(json.dumps(told, indent=1))


@contextmanager
def _slow_chat(seconds: float) -> Iterator[None]:
    """Make the pocket chat model answer as late as one behind a network does."""
    at_once = PocketChatModel._generate

    def later(*args: Any, **kwargs: Any) -> ChatResult:
        time.sleep(seconds)
        return at_once(*args, **kwargs)

    if seconds:
        PocketChatModel._generate = later  # type: ignore[method-assign]
    try:
        yield
    finally:
        PocketChatModel._generate = at_once  # type: ignore[method-assign]


def _context(given: argparse.Namespace, folder: Path) -> GemsContext:
    once: dict[str, Any] = {"memory": False, "max_rounds": 1, "skills": False, "plan": False}
    if not given.preset:
        return GemsContext(**once)
    preset, device = PRESETS[given.preset], pick_devices(None)[0]
    save_pipeline(folder / "model", preset, device, pick_dtype(None, device))
    options = GeneratorOptions(
        width=given.size or preset.size,
        height=given.size or preset.size,
        steps=given.steps,
        batch_size=given.batch_size,
        device=device,
    )
    return GemsContext(**once, generator=f"diffusers:{folder / 'model'}", generator_options=options)


def _bare(context: GemsContext, jobs: Sequence[Job]) -> float:
    """Images a second of the generator alone, in batches of its own size."""
    generator = init_image_generator(context.generator, context.generator_options)
    requests = [ImageRequest(job.prompt, job.seed) for job in jobs]
    size = getattr(generator, "batch_size", 1)
    for batch in (requests[:size], requests[:size]):  # loads, and warms up
        generator.generate(batch)
    started = time.perf_counter()
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        if errors := [r for r in generator.generate(batch) if isinstance(r, BackendError)]:
            raise errors[0]
    return len(requests) / (time.perf_counter() - started)


def _bulk(out: Path, jobs: list[Job], context: GemsContext, in_flight: int, *, ray: bool = False) -> tuple[float, int]:
    """Prompts a second of a bulk run, and the most memory that its process took, in MiB."""
    moments: list[float] = []

    def on_done(row: BatchRow) -> None:
        if row.get("error"):
            raise SystemExit(f"{row['prompt']}: {row['error']}")
        moments.append(time.perf_counter())

    given: dict[str, Any] = {"concurrency": in_flight, "on_start": lambda _: None, "on_done": on_done}
    with _peak() as peak:
        if ray:
            from gems.bulk.ray_driver import run_on_ray

            run_on_ray(jobs, out, context, address="local", **given)
        else:
            run_batch(jobs, out, context, **given)
    first = min(in_flight, len(moments) // 2)
    return (len(moments) - first) / (moments[-1] - moments[first - 1]), peak()


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """The most memory of this process meanwhile, in MiB, without what it shares with others."""
    over, most, this = threading.Event(), [0], psutil.Process()

    def watch() -> None:
        while not over.wait(0.2):
            most[0] = max(most[0], this.memory_full_info().pss >> 20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        over.set()
        thread.join()


def _of_processes(folder: Path, jobs: Sequence[Job]) -> int:
    """What each of several processes at the same time takes, one prompt each, in MiB; what they share is divided."""
    env = {**os.environ, "GEMS_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "gems", "generate", "--max-rounds", "1", "--no-plan", "--no-memory", "--quiet"]
    running = [
        psutil.Popen([*command, job.prompt, "--out", str(folder / f"p{job.index}")], env=env, stdout=subprocess.DEVNULL)
        for job in jobs
    ]
    most = dict.fromkeys(running, 0)
    while alive := [process for process in running if process.poll() is None]:
        for process in alive:
            try:
                most[process] = max(most[process], process.memory_full_info().pss >> 20)
            except psutil.Error:
                continue
        time.sleep(0.1)
    shutil.rmtree(folder / "home", ignore_errors=True)
    return round(sum(most.values()) / len(most))


if __name__ == "__main__":
    main()
