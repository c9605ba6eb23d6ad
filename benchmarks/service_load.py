"""How much of the bare graph's speed does the service keep under load, and does its memory stay constant?

    python benchmarks/service_load.py --clients 200 --seconds 120

Clients in closed loops, each with one request in flight, request images from ``gems serve`` through OpenAI's endpoint.
Before and after, the graph runs in this process without HTTP, in as many threads as the service has, over prompts of
the same kind and with the same checkpoints on disk. The ratio compares what both finish per second. Printed as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import torch

from gems.evals.prompts import fresh_prompts
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.runs.checkpoints import open_checkpoints


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120, help="duration of the load")
    parser.add_argument(
        "--bare-seconds", type=float, default=40, help="duration of each measurement of the graph alone"
    )
    parser.add_argument("--concurrency", type=int, default=2, help="concurrent runs")
    parser.add_argument("--images", type=int, default=3, help="maximum rounds for each prompt")
    parser.add_argument("--memory", action="store_true", help="recall and remember runs")
    args = parser.parse_args()
    prompts = [p.prompt for p in fresh_prompts(400, 17)]

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEMS_HOME"], os.environ["LANGGRAPH_STRICT_MSGPACK"] = f"{folder}/bare", "true"
        before = bare(args, prompts, Path(folder) / "before.sqlite")
        service = asyncio.run(load(args, prompts, Path(folder) / "served"))
        after = bare(args, prompts, Path(folder) / "after.sqlite")
    ratio = service["images_asked_per_second"] / statistics.mean([before, after])
    print(json.dumps({"bare_per_second": [before, after], **service, "ratio": round(ratio, 3)}, indent=1))


def bare(args: Any, prompts: list[str], checkpoints: Path) -> float:
    """Prompts that the graph finishes per second."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.concurrency))
    end, completed = time.monotonic() + args.bare_seconds, count()
    with open_checkpoints(checkpoints) as saver:
        graph = build_graph(checkpointer=saver)

        def work(worker: int) -> None:
            for n in count(worker, args.concurrency):
                if time.monotonic() > end:
                    return
                context = GemsContext(seed=n, memory=args.memory, max_rounds=args.images)
                config: Any = {"configurable": {"thread_id": str(n)}}
                graph.invoke({"prompt": prompts[n % len(prompts)]}, config, context=context, durability="sync")
                next(completed)

        graph.invoke({"prompt": prompts[0]}, {"configurable": {"thread_id": "warm"}}, context=GemsContext(memory=False))
        end = time.monotonic() + args.bare_seconds
        started = time.monotonic()
        with ThreadPoolExecutor(args.concurrency) as pool:
            list(pool.map(work, range(args.concurrency)))
    return round(next(completed) / (time.monotonic() - started), 3)


async def load(args: Any, prompts: list[str], home: Path) -> dict[str, Any]:
    """Figures of the service under load."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home.mkdir()
    options = ["--port", str(port), "--concurrency", str(args.concurrency), "--queue", str(args.clients)]
    options += [] if args.memory else ["--no-memory"]
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-m", "gems", "serve", "--log-format", "json", "--max-rounds", str(args.images)]
        process = subprocess.Popen(  # noqa: S603 - our own command line
            [*command, *options], stdout=log, stderr=log, env={**os.environ, "GEMS_HOME": str(home)}
        )
    try:
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{port}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=600),
        ) as session:
            await wait_until_ready(session)
            return await ask(args, prompts, session, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


async def wait_until_ready(session: aiohttp.ClientSession) -> None:
    """Wait until the service answers."""
    for _ in range(600):
        try:
            async with session.get("/healthz"):
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise SystemExit("the service did not start within a minute")


async def ask(args: Any, prompts: list[str], session: aiohttp.ClientSession, process: psutil.Process) -> dict[str, Any]:
    """Run all clients until the time is over, and wait for the requests then in flight."""
    numbers, statuses = count(), Counter[int]()
    answers: list[tuple[float, float]] = []  # time of arrival, seconds taken
    memory: list[tuple[float, float]] = []
    until, started, cpu = time.monotonic() + args.seconds, time.monotonic(), time.process_time()

    async def client() -> None:
        while time.monotonic() < until:
            n, start = next(numbers), time.monotonic()
            body = {"prompt": prompts[n % len(prompts)], "seed": n, "response_format": "b64_json"}
            async with session.post("/v1/images/generations", json=body) as answer:
                statuses[answer.status] += 1
                await answer.read()
                if answer.status == 429:
                    await asyncio.sleep(min(5.0, float(answer.headers["retry-after"])))
                elif answer.status == 200:
                    answers.append((time.monotonic(), time.monotonic() - start))

    async def watch() -> None:
        while True:
            memory.append((time.monotonic() - started, process.memory_info().rss / 2**20))
            await asyncio.sleep(2)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(args.clients)))
    watcher.cancel()
    # Exclude the end, when clients stop one by one and the load falls.
    latencies = sorted(seconds for at, seconds in answers if at <= until)
    steady_memory = [mib for at, mib in memory if args.seconds / 3 < at <= args.seconds]
    quantiles = statistics.quantiles(latencies, n=100)
    return {
        "clients": args.clients,
        "seconds": args.seconds,
        "concurrency": args.concurrency,
        "statuses": dict(statuses),
        "images_asked_per_second": round(len(latencies) / args.seconds, 3),
        "latency_p50_s": round(quantiles[49], 2),
        "latency_p99_s": round(quantiles[98], 2),
        "memory_mib": {
            "at_a_third": round(statistics.mean(steady_memory[:3])),
            "at_the_end": round(statistics.mean(steady_memory[-3:])),
            "most": round(max(mib for _, mib in memory)),
        },
        "client_cpu_seconds": round(time.process_time() - cpu, 1),
    }


if __name__ == "__main__":
    main()
