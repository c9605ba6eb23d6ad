"""The throughput of a bulk run, against one prompt at a time, the bare generator, and one process for each prompt.

    python benchmarks/bulk_throughput.py --prompts 256 --turns 5 --ray
    python benchmarks/bulk_throughput.py --preset z-image-turbo --batch-size 8 --prompts 96

One image for each prompt, with the pocket chat model. The generator is the pocket one or, with ``--preset``, a
``ZImagePipeline`` with random weights: its images are noise, but it does the work of a trained model of the same size.
One run first draws every image once, so that nothing is drawn or loaded for the first time later. Then it measures in
turns the bare generator, many in flight, and the bare generator again, and compares the rate with the mean of its two
neighbours; the median of the turns counts. Processor time is given beside the clock, since other programs disturb it
less: cores divided by it is the most that the machine allows. At the end follow one prompt at a time and, with
``--ray``, many in flight on a Ray cluster on this machine. Rates exclude the first results, as many as are in flight,
so that they include no filling; take four times as many prompts as are in flight, or the end of the batch counts most.
Printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

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
"""Number of processes whose memory is measured with ``--processes``."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--alone", type=int, default=64, help="number of prompts to run one at a time")
    parser.add_argument("--preset", choices=PRESETS, help="a diffusers pipeline with random weights (default: pocket)")
    parser.add_argument("--batch-size", type=int, default=1, help="batch size of the preset")
    parser.add_argument("--steps", type=int, default=9, help="denoising steps of the preset")
    parser.add_argument("--size", type=int, help="pixels on a side (default: the preset's)")
    parser.add_argument(
        "--chat-seconds", type=float, default=0.0, help="delay of each chat call, as with a chat server"
    )
    parser.add_argument("--ray", action="store_true", help="measure on Ray too")
    parser.add_argument("--processes", action="store_true", help="measure the memory of one process per prompt too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, without_bars(), _slow_chat(args.chat_seconds):
        folder = Path(name)
        context = _context(args, folder)
        jobs = [Job(i, p.prompt, seed_of_batch_prompt(1, i)) for i, p in enumerate(fresh_prompts(args.prompts, 5))]
        _bare(context, jobs)
        bare, bulk = [_bare(context, jobs)], []
        for turn in range(args.turns):
            bulk.append(_bulk(folder / f"many-{turn}", jobs, context, args.in_flight))
            bare.append(_bare(context, jobs))
        ratios = [
            2 * r.rate / (before.rate + after.rate) for r, (before, after) in zip(bulk, pairwise(bare), strict=True)
        ]
        single = _bulk(folder / "alone", jobs[: args.alone], context, 1)
        rate, cpu_ms = (statistics.median(values) for values in zip(*((r.rate, r.cpu_ms) for r in bulk), strict=True))
        memory = max(r.memory for r in bulk)
        report: dict[str, Any] = {
            "generator": args.preset or "pocket",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores",
            "prompts": args.prompts,
            "in_flight": args.in_flight,
            "chat_seconds": args.chat_seconds,
            "bare_per_second": [round(b.rate, 2) for b in bare],
            "bare_cpu_ms": [round(b.cpu_ms, 1) for b in bare],
            "in_flight_per_second": [round(r.rate, 2) for r in bulk],
            "in_flight_cpu_ms": [round(r.cpu_ms, 1) for r in bulk],
            "against_bare": [round(ratio, 3) for ratio in ratios],
            "against_bare_median": round(statistics.median(ratios), 3),
            "of_all_processor_time": round(rate * cpu_ms / 1000 / (os.cpu_count() or 1), 3),
            "one_at_a_time_per_second": round(single.rate, 3),
            "against_one_at_a_time": round(rate / single.rate, 3),
            "memory_mib": memory,
        }
        if args.processes:
            process_mib = _process_memory(folder, jobs[:PROCESSES])
            report["process_mib"] = process_mib
            report["memory_of_a_process_a_prompt"] = round(process_mib * args.in_flight / memory, 1)
        if args.ray:
            ray_rate = _bulk(folder / "ray", jobs, context, args.in_flight, ray=True).rate
            report |= {"ray_per_second": round(ray_rate, 3), "ray_against_local": round(ray_rate / rate, 3)}
        print(json.dumps(report, indent=1))


@contextmanager
def _slow_chat(seconds: float) -> Iterator[None]:
    """Delay the pocket chat model's answers, as a network would."""
    generate = PocketChatModel._generate

    def generate_late(*args: Any, **kwargs: Any) -> ChatResult:
        time.sleep(seconds)
        return generate(*args, **kwargs)

    if seconds:
        PocketChatModel._generate = generate_late  # type: ignore[method-assign]
    try:
        yield
    finally:
        PocketChatModel._generate = generate  # type: ignore[method-assign]


def _context(args: argparse.Namespace, folder: Path) -> GemsContext:
    single_round: dict[str, Any] = {"memory": False, "max_rounds": 1, "skills": False, "plan": False}
    if not args.preset:
        return GemsContext(**single_round)
    preset, device = PRESETS[args.preset], pick_devices(None)[0]
    save_pipeline(folder / "model", preset, device, pick_dtype(None, device))
    options = GeneratorOptions(
        width=args.size or preset.size,
        height=args.size or preset.size,
        steps=args.steps,
        batch_size=args.batch_size,
        device=device,
    )
    return GemsContext(
        **single_round, generator=f"diffusers:{folder / 'model'}", generator_options=options
    ).as_operator()


class _Measured(NamedTuple):
    rate: float
    """Images per second."""
    cpu_ms: float
    """Processor time of this process for each image, in milliseconds."""
    memory: int = 0
    """Peak memory in MiB."""


def _bare(context: GemsContext, jobs: Sequence[Job]) -> _Measured:
    """The speed of the generator alone, in batches of its own size."""
    generator = init_image_generator(context.generator, context.generator_options, context.authority)
    requests = [ImageRequest(job.prompt, job.seed) for job in jobs]
    size = getattr(generator, "batch_size", 1)
    for batch in (requests[:size], requests[:size]):  # load and warm up
        generator.generate(batch)
    started, cpu_started = time.perf_counter(), time.process_time()
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        if errors := [r for r in generator.generate(batch) if isinstance(r, BackendError)]:
            raise errors[0]
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return _Measured(len(requests) / seconds, 1000 * cpu_seconds / len(requests))


def _bulk(out: Path, jobs: list[Job], context: GemsContext, in_flight: int, *, ray: bool = False) -> _Measured:
    """The speed of a bulk run, and its process's peak memory."""
    moments: list[tuple[float, float]] = []

    def on_done(row: BatchRow) -> None:
        if row.get("error"):
            raise SystemExit(f"{row['prompt']}: {row['error']}")
        moments.append((time.perf_counter(), time.process_time()))

    options: dict[str, Any] = {"concurrency": in_flight, "on_start": lambda _: None, "on_done": on_done}
    with _peak() as peak:
        if ray:
            from gems.bulk.ray_driver import run_on_ray

            run_on_ray(jobs, out, context, address="local", **options)
        else:
            run_batch(jobs, out, context, **options)
    first = min(in_flight, len(moments) // 2)
    seconds, cpu_seconds = (end - start for start, end in zip(moments[first - 1], moments[-1], strict=True))
    count = len(moments) - first
    return _Measured(count / seconds, 1000 * cpu_seconds / count, peak())


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """Measure the peak memory of this process within the block, in MiB; shared memory is divided among its users."""
    stop, peak, process = threading.Event(), [0], psutil.Process()

    def watch() -> None:
        while not stop.wait(2):  # each look takes 13 ms of a core
            peak[0] = max(peak[0], process.memory_full_info().pss >> 20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()


def _process_memory(folder: Path, jobs: Sequence[Job]) -> int:
    """Mean peak memory in MiB of concurrent processes with one prompt each; shared memory is divided among them."""
    env = {**os.environ, "GEMS_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "gems", "generate", "--max-rounds", "1", "--no-plan", "--no-memory", "--quiet"]
    processes = [
        psutil.Popen([*command, job.prompt, "--out", str(folder / f"p{job.index}")], env=env, stdout=subprocess.DEVNULL)
        for job in jobs
    ]
    peaks = dict.fromkeys(processes, 0)
    while running := [process for process in processes if process.poll() is None]:
        for process in running:
            try:
                peaks[process] = max(peaks[process], process.memory_full_info().pss >> 20)
            except psutil.Error:
                continue
        time.sleep(0.1)
    shutil.rmtree(folder / "home", ignore_errors=True)
    return round(sum(peaks.values()) / len(peaks))


if __name__ == "__main__":
    main()
