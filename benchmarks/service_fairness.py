"""How much longer do the users of a service wait if one of them sends very many requests at once?

    python benchmarks/service_fairness.py

50 keys send requests to ``gems serve`` at the same moment. In one part all of them send a few; in the other part, one
of them, the greedy one, sends 1,000. Each part has a service of its own, and the parts alternate. A run's wait lasts
from the moment at which its request is sent until a worker begins with it. Printed as JSON; ``ratio`` is the median
wait of the others with the greedy key, divided by that without it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from service_process import ServiceProcess, write_keys

PROMPTS = ("two red cars", "a green dog", "three blue cups", "a yellow bird")


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=50, help="number of keys, with the greedy one")
    parser.add_argument("--runs", type=int, default=4, help="requests of every key but the greedy one")
    parser.add_argument("--greedy-runs", type=int, default=1000, help="requests of the greedy key")
    parser.add_argument("--concurrency", type=int, default=2, help="runs at work at once")
    parser.add_argument("--repeats", type=int, default=2, help="how often each part is measured")
    args = parser.parse_args()
    waits: dict[str, list[float]] = {"alone": [], "with_greedy": []}
    statuses: Counter[str] = Counter()
    for _ in range(args.repeats):
        for part, greedy_runs in (("alone", args.runs), ("with_greedy", args.greedy_runs)):
            with tempfile.TemporaryDirectory() as folder:
                part_waits, part_statuses = asyncio.run(measure(args, greedy_runs, Path(folder)))
            waits[part] += part_waits
            statuses.update(part_statuses)
    medians = {part: statistics.median(values) for part, values in waits.items()}
    print(
        json.dumps(
            {
                "keys": args.keys,
                "runs_per_key": args.runs,
                "greedy_runs": args.greedy_runs,
                "statuses": dict(statuses),
                "median_wait_s": {part: round(value, 3) for part, value in medians.items()},
                "p95_wait_s": {part: round(statistics.quantiles(v, n=20)[18], 3) for part, v in waits.items()},
                "ratio": round(medians["with_greedy"] / medians["alone"], 3),
            },
            indent=1,
        )
    )


async def measure(args: Any, greedy_runs: int, folder: Path) -> tuple[list[float], Counter[str]]:
    """The waits of all keys but the greedy one, and how often each status was answered."""
    names = ["greedy", *(f"user-{n}" for n in range(1, args.keys))]
    keys = write_keys(folder / "keys.toml", names)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bounds = ("--queue", "10000", "--queue-per-key", str(max(greedy_runs, args.runs)), "--max-rounds", "1")
    service = ServiceProcess(
        folder / "home", port, "--keys", str(folder / "keys.toml"), "--concurrency", str(args.concurrency), *bounds
    )
    service.start()
    try:
        timeout, connector = aiohttp.ClientTimeout(total=900), aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await service.wait_until_ready(session)
            return await send_all(args, greedy_runs, service.url, keys, session)
    finally:
        service.end(signal.SIGTERM)


async def send_all(
    args: Any, greedy_runs: int, url: str, keys: dict[str, str], session: aiohttp.ClientSession
) -> tuple[list[float], Counter[str]]:
    """Send everything at the same moment, and wait until the runs of all keys but the greedy one have begun."""
    statuses, sent_at = Counter[str](), dict[str, float]()

    async def send(name: str, n: int) -> None:
        body = {"prompt": PROMPTS[n % len(PROMPTS)], "settings": {"seed": n}}
        started = time.time()
        async with session.post(f"{url}/v1/runs", json=body, headers=_headers(keys[name])) as answer:
            statuses[f"{'greedy' if name == 'greedy' else 'others'} {answer.status}"] += 1
            view = await answer.json()
        if answer.status == 202 and name != "greedy":
            sent_at[view["id"]] = started

    greedy = [send("greedy", n) for n in range(greedy_runs)]
    await asyncio.gather(*greedy, *(send(name, n) for n in range(args.runs) for name in keys if name != "greedy"))
    waits: list[float] = []
    for name, key in keys.items():
        if name != "greedy":
            begun_at = await _begun_at(args.runs, url, key, session)
            waits += [begun_at[run] - sent_at[run] for run in begun_at]
    return waits, statuses


async def _begun_at(count: int, url: str, key: str, session: aiohttp.ClientSession) -> dict[str, float]:
    """When each run of a key began, in seconds since 1970."""
    while True:
        async with session.get(f"{url}/v1/runs", params={"limit": "100"}, headers=_headers(key)) as answer:
            runs: Sequence[dict[str, Any]] = (await answer.json())["data"]
        if len(runs) == count and all(run["started_at"] for run in runs):
            return {run["id"]: run["started_at"] for run in runs}
        await asyncio.sleep(0.5)


def _headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


if __name__ == "__main__":
    main()
