"""The throughput of a bulk run, against one prompt at a time, the bare generator, and one process for each prompt.

    python benchmarks/bulk_throughput.py --prompts 192 --ray
    python benchmarks/bulk_throughput.py --preset z-image-turbo --batch-size 8 --prompts 96

One image for each prompt, with the pocket chat model. The generator is the pocket one or, with ``--preset``, a
``ZImagePipeline`` with random weights: its images are noise, but it does the work of a trained model of the same size.
One run measures in turn: the bare generator on the same number of images; one prompt at a time; many in flight; the
bare generator again; and, with ``--ray``, many in flight on a Ray cluster on this machine. Rates exclude the first
results, as many as are in flight, so that they include neither loading nor filling. Printed as JSON.
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
"""Number of processes whose memory is measured with ``--processes``."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=192)
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
        bare_rates = [_bare(context, jobs)]
        single_rate, _ = _bulk(folder / "alone", jobs[: args.alone], context, 1)
        rate, memory = _bulk(folder / "many", jobs, context, args.in_flight)
        bare_rates.append(_bare(context, jobs))
        mean_bare_rate = sum(bare_rates) / 2
        report: dict[str, Any] = {
            "generator": args.preset or "pocket",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores",
            "prompts": args.prompts,
            "in_flight": args.in_flight,
            "chat_seconds": args.chat_seconds,
            "bare_per_second": [round(bare_rate, 3) for bare_rate in bare_rates],
            "one_at_a_time_per_second": round(single_rate, 3),
            "in_flight_per_second": round(rate, 3),
            "against_one_at_a_time": round(rate / single_rate, 3),
            "against_bare": round(rate / mean_bare_rate, 3),
            "memory_mib": memory,
        }
        if args.processes:
            process_mib = _process_memory(folder, jobs[:PROCESSES])
            report["process_mib"] = process_mib
            report["memory_of_a_process_a_prompt"] = round(process_mib * args.in_flight / memory, 1)
        if args.ray:
            ray_rate, _ = _bulk(folder / "ray", jobs, context, args.in_flight, ray=True)
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


def _bare(context: GemsContext, jobs: Sequence[Job]) -> float:
    """Images per second of the generator alone, in batches of its own size."""
    generator = init_image_generator(context.generator, context.generator_options, context.authority)
    requests = [ImageRequest(job.prompt, job.seed) for job in jobs]
    size = getattr(generator, "batch_size", 1)
    for batch in (requests[:size], requests[:size]):  # load and warm up
        generator.generate(batch)
    started = time.perf_counter()
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        if errors := [r for r in generator.generate(batch) if isinstance(r, BackendError)]:
            raise errors[0]
    return len(requests) / (time.perf_counter() - started)


def _bulk(out: Path, jobs: list[Job], context: GemsContext, in_flight: int, *, ray: bool = False) -> tuple[float, int]:
    """Prompts per second of a bulk run, and its process's peak memory in MiB."""
    moments: list[float] = []

    def on_done(row: BatchRow) -> None:
        if row.get("error"):
            raise SystemExit(f"{row['prompt']}: {row['error']}")
        moments.append(time.perf_counter())

    options: dict[str, Any] = {"concurrency": in_flight, "on_start": lambda _: None, "on_done": on_done}
    with _peak() as peak:
        if ray:
            from gems.bulk.ray_driver import run_on_ray

            run_on_ray(jobs, out, context, address="local", **options)
        else:
            run_batch(jobs, out, context, **options)
    first = min(in_flight, len(moments) // 2)
    return (len(moments) - first) / (moments[-1] - moments[first - 1]), peak()


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """Measure the peak memory of this process within the block, in MiB; shared memory is divided among its users."""
    stop, peak, process = threading.Event(), [0], psutil.Process()

    def watch() -> None:
        while not stop.wait(0.2):
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
