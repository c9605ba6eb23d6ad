"""Does a bulk run of thousands of prompts survive being killed, with every prompt exactly once?

    python benchmarks/bulk_survival.py --prompts 10000 --kills 3 --out DIR
    python benchmarks/bulk_survival.py --prompts 10000 --ray --out DIR

Prompts of the pocket vocabulary, one attempt each. Alone, the whole process is killed (SIGKILL) at random moments and
started again. With ``--ray``, a cluster of two simulated nodes runs it, and two of its worker processes and one whole
node are killed. At the end, prompts are counted in the Parquet index, and every image is read and compared with its
hash. Printed as JSON, with the memory of the process over time.
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
from gems.memory.image_store import read_image

SMALLEST: Final = ("--max-rounds", "1", "--no-plan", "--no-skills", "--quiet")


def main() -> None:
    """Run, kill, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3, help="of the whole process, without --ray")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--ray", action="store_true", help="two simulated nodes; two workers and a node are killed")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path, out = given.out / "prompts.jsonl", given.out / "results"
    wishes = fresh_prompts(given.prompts, given.seed)
    path.write_text("".join(json.dumps({"id": i, "prompt": p.prompt}) + "\n" for i, p in enumerate(wishes)))
    command = [sys.executable, "-m", "gems", "batch", str(path), "--out", str(out), *SMALLEST]
    command += ["--concurrency", str(given.concurrency)]
    started = time.monotonic()
    told = _on_ray(command, out, given) if given.ray else _alone(command, out, given)
    counted = _count(out, given.prompts)
    print(json.dumps({**told, "minutes": round((time.monotonic() - started) / 60, 1), **counted}, indent=1))
    if not counted["every_prompt_once"]:
        raise SystemExit("not every prompt came exactly once")


def _alone(command: list[str], out: Path, given: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(given.seed)
    moments = sorted(rng.uniform(0.05, 0.9) for _ in range(given.kills))
    kills, memory = [], []
    for moment in [*moments, None]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
        kill_at = None if moment is None else int(moment * given.prompts)
        seen = _watch(process, out, lambda done, at=kill_at: at is not None and done >= at)  # type: ignore[misc]
        memory.append(seen)
        if process.returncode == -signal.SIGKILL:
            kills.append(kill_at)
    return {"killed_at_prompts": kills, "last_exit_code": process.returncode, "memory_mib_of_each_start": memory}


def _watch(process: subprocess.Popen[bytes], out: Path, enough: Callable[[int], bool]) -> dict[str, Any]:
    """Memory over the results that come; the process is killed once there are enough."""
    seen: list[tuple[int, int]] = []
    about = psutil.Process(process.pid)
    while process.poll() is None:
        done = _lines(out)
        try:
            seen.append((done, about.memory_info().rss >> 20))
        except psutil.NoSuchProcess:
            break
        if enough(done):
            process.kill()
        time.sleep(0.25)
    process.wait()
    worked = [mib for done, mib in seen if done > seen[0][0] + 100] or [0]
    third = len(worked) // 3
    return {
        "prompts": seen[-1][0] - seen[0][0],
        "first_third": max(worked[: third + 1]),
        "last_third": max(worked[-third - 1 :]),
        "most": max(worked),
    }


def _lines(out: Path) -> int:
    path = out / "results.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _on_ray(command: list[str], out: Path, given: argparse.Namespace) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    rng = random.Random(given.seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    killed: list[str] = []
    process = subprocess.Popen([*command, "--ray", cluster.address, "--workers", "2"], stdout=subprocess.DEVNULL)  # noqa: S603
    moments = sorted(int(rng.uniform(0.05, 0.9) * given.prompts) for _ in range(3))
    deeds = ["worker", "worker", "node"]
    rng.shuffle(deeds)
    for moment, deed in zip(moments, deeds, strict=True):
        while process.poll() is None and _lines(out) < moment:
            time.sleep(0.25)
        if deed == "node":
            cluster.remove_node(second, allow_graceful=False)
        else:
            os.kill(rng.choice(_workers(process)), signal.SIGKILL)
        killed.append(f"{deed} at {_lines(out)}")
    code = process.wait()
    cluster.shutdown()
    return {"killed": killed, "exit_code": code}


def _workers(process: subprocess.Popen[bytes]) -> list[int]:
    """Worker processes of the cluster that run the graph."""
    while process.poll() is None:
        found = [p.pid for p in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or [])]
        if found:
            return found
        time.sleep(0.5)
    raise SystemExit("it ended before it could be killed")


def _count(out: Path, prompts: int) -> dict[str, Any]:
    """What the Parquet index says, and whether every image is what it should be."""
    table = pq.read_table(out / "index.parquet", columns=["index", "outcome", "image", "sha256", "usage", "error"])
    rows = table.to_pylist()
    with (out / "results.jsonl").open() as file:
        times = Counter(json.loads(line)["index"] for line in file)
    in_index = sorted(row["index"] for row in rows)
    for row in rows:
        if row["image"]:
            read_image(row["image"], row["sha256"])  # raises where it is gone or damaged
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
