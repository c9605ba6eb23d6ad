"""Does a bulk run of thousands of prompts survive kills, with every prompt in its results exactly once?

    python benchmarks/bulk_survival.py --prompts 10000 --kills 3 --out DIR
    python benchmarks/bulk_survival.py --prompts 10000 --ray --out DIR

Prompts of the pocket vocabulary, one attempt each. Without ``--ray``, the whole process is killed (SIGKILL) at random
moments and started again. With ``--ray``, the run uses a cluster of two simulated nodes; two of its worker processes
and one whole node are killed. At the end, the prompts in the Parquet index are counted, and every image is read and
compared with its hash. Printed as JSON, with the process's memory over time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import pyarrow.parquet as pq

from gems.bulk.results import ResultsFile
from gems.evals.prompts import fresh_prompts
from gems.memory.image_store import read_from, stores_beside

CHEAPEST_RUN: Final = ("--max-rounds", "1", "--no-plan", "--no-skills", "--quiet")


def main() -> None:
    """Run, kill and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3, help="how often to kill the process (without --ray)")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--ray", action="store_true", help="run on two simulated nodes; kill two workers and a node")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path, out = args.out / "prompts.jsonl", args.out / "results"
    prompts = fresh_prompts(args.prompts, args.seed)
    path.write_text("".join(json.dumps({"id": i, "prompt": prompt.prompt}) + "\n" for i, prompt in enumerate(prompts)))
    command = [sys.executable, "-m", "gems", "batch", str(path), "--out", str(out), *CHEAPEST_RUN]
    command += ["--concurrency", str(args.concurrency)]
    started = time.monotonic()
    report = _on_ray(command, out, args) if args.ray else _alone(command, out, args)
    counts = _count(out, args.prompts)
    print(json.dumps({**report, "minutes": round((time.monotonic() - started) / 60, 1), **counts}, indent=1))
    if not counts["every_prompt_once"]:
        raise SystemExit("some prompts are missing from the results or occur more than once")


def _alone(command: list[str], out: Path, args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(args.seed)
    moments = sorted(rng.uniform(0.05, 0.9) for _ in range(args.kills))
    kills, memory = [], []
    for moment in [*moments, None]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
        kill_at = None if moment is None else int(moment * args.prompts)
        memory_use = _watch(process, out, lambda count, at=kill_at: at is not None and count >= at)  # type: ignore[misc]
        memory.append(memory_use)
        if process.returncode == -signal.SIGKILL:
            kills.append(kill_at)
    return {"killed_at_prompts": kills, "last_exit_code": process.returncode, "memory_mib_of_each_start": memory}


def _watch(process: subprocess.Popen[bytes], out: Path, enough: Callable[[int], bool]) -> dict[str, Any]:
    """Record the process's memory while results arrive, and kill it once there are enough of them."""
    samples: list[tuple[int, int]] = []
    status = psutil.Process(process.pid)
    while process.poll() is None:
        count = _lines(out)
        try:
            samples.append((count, status.memory_info().rss >> 20))
        except psutil.NoSuchProcess:
            break
        if enough(count):
            process.kill()
        time.sleep(0.25)
    process.wait()
    under_load = [mib for count, mib in samples if count > samples[0][0] + 100] or [0]
    third = len(under_load) // 3
    return {
        "prompts": samples[-1][0] - samples[0][0],
        "first_third": max(under_load[: third + 1]),
        "last_third": max(under_load[-third - 1 :]),
        "most": max(under_load),
    }


def _lines(out: Path) -> int:
    path = out / "results.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _on_ray(command: list[str], out: Path, args: argparse.Namespace) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    rng = random.Random(args.seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    kills: list[str] = []
    process = subprocess.Popen([*command, "--ray", cluster.address, "--workers", "2"], stdout=subprocess.DEVNULL)  # noqa: S603
    moments = sorted(int(rng.uniform(0.05, 0.9) * args.prompts) for _ in range(3))
    victims = ["worker", "worker", "node"]
    rng.shuffle(victims)
    for moment, victim in zip(moments, victims, strict=True):
        while process.poll() is None and _lines(out) < moment:
            time.sleep(0.25)
        if victim == "node":
            cluster.remove_node(second, allow_graceful=False)
        else:
            os.kill(rng.choice(_workers(process)), signal.SIGKILL)
        kills.append(f"{victim} at {_lines(out)}")
    code = process.wait()
    cluster.shutdown()
    return {"killed": kills, "exit_code": code}


def _workers(process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the cluster's workers that run the graph."""
    while process.poll() is None:
        commands = {p.pid: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
        if worker_ids := [pid for pid, command in commands.items() if "MapWorker" in command]:
            return worker_ids
        time.sleep(0.5)
    raise SystemExit("the run ended before a worker could be killed; give more --prompts")


def _count(out: Path, prompts: int) -> dict[str, Any]:
    """Count what the Parquet index contains, and check every image against its hash."""
    table = pq.read_table(out / "index.parquet", columns=["index", "outcome", "image", "sha256", "usage", "error"])
    rows = table.to_pylist()
    with (out / "results.jsonl").open() as file:
        times = Counter(json.loads(line)["index"] for line in file)
    in_index = sorted(row["index"] for row in rows)
    stores = stores_beside(out)
    for row in rows:
        if row["image"]:
            read_from(stores, row["sha256"], row["image"])  # raises if the image is missing or damaged
    record = ResultsFile(out / "results.jsonl")
    return {
        "rows": len(rows),
        "every_prompt_once": in_index == list(range(prompts)) and times == Counter(range(prompts)),
        "lines_of_results": times.total(),
        "errors": sum(bool(row["error"]) for row in rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "images_charged": sum(row["usage"]["images"] for row in rows if row["usage"]),
        "images_checked": sum(bool(row["image"]) for row in rows),
        "spent_images": record.usage.images,
    }


if __name__ == "__main__":
    main()
