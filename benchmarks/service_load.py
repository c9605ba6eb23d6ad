"""How much of the bare graph's speed does the service keep under load, and does it stay within its memory?

    python benchmarks/service_load.py --clients 200 --seconds 120

Clients in closed loops, each with one request in flight, ask ``gems serve`` for images through OpenAI's endpoint.
Before and after, the graph itself works in one process, without HTTP, in as many threads as the service has, over
prompts of the same kind, with the same checkpoints on disk: the ratio compares what both finish in a second. Printed
as JSON.
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
    parser.add_argument("--seconds", type=float, default=120, help="of load")
    parser.add_argument("--bare-seconds", type=float, default=40, help="of the graph alone, before and after")
    parser.add_argument("--concurrency", type=int, default=2, help="runs at work at once")
    parser.add_argument("--images", type=int, default=3, help="most rounds a prompt")
    parser.add_argument("--memory", action="store_true", help="recall and remember")
    given = parser.parse_args()
    prompts = [p.prompt for p in fresh_prompts(400, 17)]

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEMS_HOME"], os.environ["LANGGRAPH_STRICT_MSGPACK"] = f"{folder}/bare", "true"
        before = bare(given, prompts, Path(folder) / "before.sqlite")
        served = asyncio.run(load(given, prompts, Path(folder) / "served"))
        after = bare(given, prompts, Path(folder) / "after.sqlite")
    ratio = served["images_asked_per_second"] / statistics.mean([before, after])
    print(json.dumps({"bare_per_second": [before, after], **served, "ratio": round(ratio, 3)}, indent=1))


def bare(given: Any, prompts: list[str], checkpoints: Path) -> float:
    """Prompts that the graph finishes in a second."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // given.concurrency))
    until, done = time.monotonic() + given.bare_seconds, count()
    with open_checkpoints(checkpoints) as saver:
        graph = build_graph(checkpointer=saver)

        def work(worker: int) -> None:
            for n in count(worker, given.concurrency):
                if time.monotonic() > until:
                    return
                context = GemsContext(seed=n, memory=given.memory, max_rounds=given.images)
                config: Any = {"configurable": {"thread_id": str(n)}}
                graph.invoke({"prompt": prompts[n % len(prompts)]}, config, context=context, durability="sync")
                next(done)

        graph.invoke({"prompt": prompts[0]}, {"configurable": {"thread_id": "warm"}}, context=GemsContext(memory=False))
        until = time.monotonic() + given.bare_seconds
        started = time.monotonic()
        with ThreadPoolExecutor(given.concurrency) as pool:
            list(pool.map(work, range(given.concurrency)))
    return round(next(done) / (time.monotonic() - started), 3)


async def load(given: Any, prompts: list[str], home: Path) -> dict[str, Any]:
    """The service under load."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home.mkdir()
    options = ["--port", str(port), "--concurrency", str(given.concurrency), "--queue", str(given.clients)]
    options += [] if given.memory else ["--no-memory"]
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-m", "gems", "serve", "--log-format", "json", "--max-rounds", str(given.images)]
        process = subprocess.Popen(  # noqa: S603 - our own command line
            [*command, *options], stdout=log, stderr=log, env={**os.environ, "GEMS_HOME": str(home)}
        )
    try:
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{port}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=600),
        ) as session:
            await up(session)
            return await ask(given, prompts, session, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


async def up(session: aiohttp.ClientSession) -> None:
    """Wait until it answers."""
    for _ in range(600):
        try:
            async with session.get("/healthz"):
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise SystemExit("the service did not come up")


async def ask(
    given: Any, prompts: list[str], session: aiohttp.ClientSession, process: psutil.Process
) -> dict[str, Any]:
    """All clients at once, until the time is over; what is in flight then is waited for."""
    numbers, statuses = count(), Counter[int]()
    ended: list[tuple[float, float]] = []  # when, and how long it took
    memory: list[tuple[float, float]] = []
    until, started, cpu = time.monotonic() + given.seconds, time.monotonic(), time.process_time()

    async def client() -> None:
        while time.monotonic() < until:
            n, begun = next(numbers), time.monotonic()
            body = {"prompt": prompts[n % len(prompts)], "seed": n, "response_format": "b64_json"}
            async with session.post("/v1/images/generations", json=body) as answer:
                statuses[answer.status] += 1
                await answer.read()
                if answer.status == 429:
                    await asyncio.sleep(min(5.0, float(answer.headers["retry-after"])))
                elif answer.status == 200:
                    ended.append((time.monotonic(), time.monotonic() - begun))

    async def watch() -> None:
        while True:
            memory.append((time.monotonic() - started, process.memory_info().rss / 2**20))
            await asyncio.sleep(2)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(given.clients)))
    watcher.cancel()
    # Full load only: not the end, when clients leave one by one.
    within = [(at, took) for at, took in ended if at <= until]
    took = sorted(took for _, took in within)
    warm = [mib for at, mib in memory if given.seconds / 3 < at <= given.seconds]
    quantiles = statistics.quantiles(took, n=100)
    return {
        "clients": given.clients,
        "seconds": given.seconds,
        "concurrency": given.concurrency,
        "statuses": dict(statuses),
        "images_asked_per_second": round(len(within) / given.seconds, 3),
        "latency_p50_s": round(quantiles[49], 2),
        "latency_p99_s": round(quantiles[98], 2),
        "memory_mib": {
            "at_a_third": round(statistics.mean(warm[:3])),
            "at_the_end": round(statistics.mean(warm[-3:])),
            "most": round(max(mib for _, mib in memory)),
        },
        "client_cpu_seconds": round(time.process_time() - cpu, 1),
    }


if __name__ == "__main__":
    main()
