"""How much of the bare graph's speed does the service keep under load, and does its memory stay constant?

    python benchmarks/service_load.py --clients 200 --turns 6 --seconds 10

Clients in closed loops, each with one request in flight, request images from ``gems serve`` through OpenAI's endpoint.
A process beside it runs the graph without HTTP, in as many threads as the service has, with the same prompts in the
same order, the same settings and the same checkpoints on disk. The two take turns: one is stopped (SIGSTOP) while the
other works, so that both meet the same machine. The clients share the machine with the service, so that their
processor time is told apart; ``ratio_by_processor_time`` is what the service costs without them. Printed as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import torch

from gems.evals.prompts import fresh_prompts
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import Budget
from gems.runs.checkpoints import open_checkpoints

_MAX_IMAGES = 20
"""The service's own limit for a run."""


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--turns", type=int, default=6, help="turns of each of the two")
    parser.add_argument("--seconds", type=float, default=10, help="duration of a turn")
    parser.add_argument("--concurrency", type=int, default=2, help="concurrent runs")
    parser.add_argument("--images", type=int, default=3, help="maximum rounds for each prompt")
    parser.add_argument("--memory", action="store_true", help="recall and remember runs")
    parser.add_argument("--bare", type=Path, help="run the graph without a service, with checkpoints in this file")
    args = parser.parse_args()
    prompts = [p.prompt for p in fresh_prompts(400, 17)]
    if args.bare:
        run_bare(args, prompts)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(args, prompts, Path(folder))), indent=1))


def run_bare(args: Any, prompts: list[str]) -> None:
    """Run the graph until this process is ended; the images of each run that ends are a line on stdout."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.concurrency))
    numbers = count()
    with open_checkpoints(args.bare) as saver:
        graph = build_graph(checkpointer=saver)

        def work(_: int) -> None:
            while True:
                n = next(numbers)
                budget = Budget(images=_MAX_IMAGES)
                context = GemsContext(seed=n, memory=args.memory, max_rounds=args.images, budget=budget)
                config: Any = {"configurable": {"thread_id": str(n)}}
                prompt = prompts[n % len(prompts)]
                state = graph.invoke({"prompt": prompt}, config, context=context, durability="sync")
                print(state["usage"].images, flush=True)

        with ThreadPoolExecutor(args.concurrency) as pool:
            list(pool.map(work, range(args.concurrency)))


@dataclass
class Side:
    """The service or the bare graph: what it did in its turns.

    Attributes:
        process: Its process.
        images: The images of all runs that have ended.
        runs: The number of these runs.
    """

    process: subprocess.Popen[bytes]
    images: int = 0
    runs: int = 0
    turns: list[dict[str, float]] = field(default_factory=list)

    def _figures(self) -> dict[str, float]:
        times = psutil.Process(self.process.pid).cpu_times()
        return {
            "images": self.images,
            "runs": self.runs,
            "user": times.user,
            "system": times.system,
            "clients": time.process_time(),
            "seconds": time.perf_counter(),
        }

    async def take_turn(self, seconds: float) -> None:
        """Work for some seconds, and write down what was done."""
        self.process.send_signal(signal.SIGCONT)
        before = self._figures()
        await asyncio.sleep(seconds)
        after = self._figures()
        self.process.send_signal(signal.SIGSTOP)
        self.turns.append({name: value - before[name] for name, value in after.items()})

    def summary(self) -> dict[str, Any]:
        """Figures of all turns together."""
        total = {name: sum(turn[name] for turn in self.turns) for name in self.turns[0]}
        processor = total["user"] + total["system"]
        return {
            "runs": total["runs"],
            "images": total["images"],
            "images_per_second": round(total["images"] / total["seconds"], 3),
            "processor_ms_per_image": round(1000 * processor / total["images"], 1),
            "of_it_system": round(1000 * total["system"] / total["images"], 1),
            "clients_ms_per_image": round(1000 * total["clients"] / total["images"], 1),
            "cores_busy": round(processor / total["seconds"], 2),
        }


async def measure(args: Any, prompts: list[str], folder: Path) -> dict[str, Any]:
    """Let the two take turns."""
    environment = {**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--concurrency", str(args.concurrency), "--queue", str(args.clients)]
    options += ["--queue-per-key", str(args.clients), *([] if args.memory else ["--no-memory"])]
    command = [sys.executable, "-m", "gems", "serve", "--log-format", "json", "--max-rounds", str(args.images)]
    with (folder / "log").open("wb") as log:
        service = Side(
            subprocess.Popen(  # noqa: S603 - our own command line
                [*command, *options], stdout=log, stderr=log, env={**environment, "GEMS_HOME": f"{folder}/served"}
            )
        )
    bare_command = [sys.executable, __file__, *sys.argv[1:], "--bare", f"{folder}/bare.sqlite"]
    bare_process = await asyncio.create_subprocess_exec(
        *bare_command, stdout=subprocess.PIPE, env={**environment, "GEMS_HOME": f"{folder}/bare"}
    )
    bare = Side(bare_process)  # type: ignore[arg-type] # has what is used of the other
    reader = asyncio.create_task(count_bare(bare, bare_process))
    try:
        return await take_turns(args, prompts, port, service, bare)
    finally:
        reader.cancel()
        for side in (service, bare):
            side.process.kill()
        service.process.wait()
        await bare_process.wait()


async def count_bare(bare: Side, process: asyncio.subprocess.Process) -> None:
    """Count what the bare graph has finished."""
    assert process.stdout is not None
    async for line in process.stdout:
        bare.images += int(line)
        bare.runs += 1


async def take_turns(args: Any, prompts: list[str], port: int, service: Side, bare: Side) -> dict[str, Any]:
    """Start the clients, wait until both work, and measure."""
    statuses, memory = Counter[int](), list[float]()
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}", connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=3600)
    ) as session:
        await wait_until_ready(session)
        numbers = count()

        async def client() -> None:
            while True:
                n = next(numbers)
                body = {"prompt": prompts[n % len(prompts)], "seed": n, "response_format": "b64_json"}
                async with session.post("/v1/images/generations", json=body) as answer:
                    statuses[answer.status] += 1
                    content = await answer.json()
                    if answer.status == 200:
                        service.images += content["data"][0]["gems"]["images"]
                        service.runs += 1
                    else:
                        await asyncio.sleep(1)

        clients = asyncio.gather(*(client() for _ in range(args.clients)))
        while min(service.runs, bare.runs) < 2 * args.concurrency:
            await asyncio.sleep(0.1)
        for side in (service, bare):
            side.process.send_signal(signal.SIGSTOP)
        for turn in range(args.turns):
            for side in (service, bare) if turn % 2 else (bare, service):
                await side.take_turn(args.seconds)
            memory.append(psutil.Process(service.process.pid).memory_info().rss / 2**20)
        clients.cancel()
        with suppress(asyncio.CancelledError):
            await clients
    return summary(args, service, bare) | {
        "statuses": dict(statuses),
        "memory_mib": {"after_the_first_turn": round(memory[0]), "at_the_end": round(memory[-1])},
    }


def summary(args: Any, service: Side, bare: Side) -> dict[str, Any]:
    """The figures of both, and how they compare."""
    served, alone = service.summary(), bare.summary()
    pairs = [
        round(s["images"] / s["seconds"] / (b["images"] / b["seconds"]), 3)
        for s, b in zip(service.turns, bare.turns, strict=True)
    ]
    processor = served["processor_ms_per_image"]
    return {
        "clients": args.clients,
        "turns": f"{args.turns} of {args.seconds:g} s",
        "bare": alone,
        "service": served,
        "ratio": round(served["images_per_second"] / alone["images_per_second"], 3),
        "ratio_by_turn": pairs,
        "ratio_by_processor_time": round(alone["processor_ms_per_image"] / processor, 3),
        "ratio_that_the_clients_leave": round(processor / (processor + served["clients_ms_per_image"]), 3),
    }


async def wait_until_ready(session: aiohttp.ClientSession) -> None:
    """Wait until the service answers."""
    for _ in range(600):
        try:
            async with session.get("/healthz"):
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise SystemExit("the service did not start within a minute")


if __name__ == "__main__":
    main()
